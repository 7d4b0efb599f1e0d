from __future__ import annotations

import pytest

from dcn_plugin.cli.processes import launched, open_device
from dcn_plugin.errors import SpecError


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"WORLD_SIZE": "1"}, False),
        ({"WORLD_SIZE": "2"}, True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, True),
    ],
)
def test_a_process_knows_whether_it_was_launched(
    variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() is expected


def test_a_device_that_is_not_there_is_a_named_error() -> None:
    assert open_device("cpu").type == "cpu"
    for name in ("cuda:99", "warp drive"):
        with pytest.raises(SpecError, match="device cannot be used"):
            open_device(name)

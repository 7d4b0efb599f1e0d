from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.engine import sweep
from dcn_plugin.engine.bench import Speed
from dcn_plugin.engine.sweep import sweep_speed
from dcn_plugin.errors import InputSizeError, SpecError
from dcn_plugin.surgery import defect_spec
from tests.nets import SmallNet, same, shaken, snapshot

SPEED = Speed(
    batch_size=1,
    backend="c",
    dense_ms=2.0,
    compact_ms=1.0,
    speedup=2.0,
    quartiles=(1.5, 2.5),
    ideal=4.0,
    packed_bytes=2**20,
    compact_seconds=0.5,
    relative_error=1e-6,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Every model that is measured, and how; nothing is timed."""
    seen: list[tuple[nn.Module, dict[str, Any]]] = []

    def measure(model: nn.Module, **options: Any) -> Speed:
        seen.append((model, options))
        return SPEED

    monkeypatch.setattr(sweep, "measure_speed", measure)
    return seen


def masked_net() -> nn.Module:
    return dcn.defectify(
        shaken(SmallNet()), ("conv1", "bn1"), 0.9, "channel", seed=7, sampling="exact", input_size=(3, 16, 16)
    )


def test_every_network_meets_every_p_and_every_batch_size(asked: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    points = list(sweep_speed({"a": masked_net(), "b": masked_net()}, keep=(0.5, 0.2), batch_sizes=(1, 4), rounds=3))
    wanted = [(name, p, batch) for name in "ab" for p in (0.5, 0.2) for batch in (1, 4)]
    assert [(point.network, point.p) for point in points] == [one[:2] for one in wanted]
    assert [options["batch_size"] for _, options in asked] == [one[2] for one in wanted]
    assert [defect_spec(model).p for model, _ in asked] == [one[1] for one in wanted]
    assert all(options["rounds"] == 3 and not model.training for model, options in asked)


def test_a_defective_network_keeps_everything_but_p(asked: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    model = masked_net()
    before = snapshot(model)
    list(sweep_speed({"a": model}, keep=(0.5,), batch_sizes=(1,)))
    assert same(before, snapshot(model))
    old, new = defect_spec(model), defect_spec(asked[0][0])
    kept = ("blocks", "mode", "seed", "sampling", "input_size")
    assert [getattr(new, name) for name in kept] == [getattr(old, name) for name in kept]
    assert torch.equal(asked[0][0].get_parameter("fc.weight"), model.get_parameter("fc.weight"))


def test_blocks_and_size_can_be_others(asked: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    list(sweep_speed({"a": masked_net()}, keep=(0.5,), batch_sizes=(1,), blocks="all", size=24))
    spec = defect_spec(asked[0][0])
    assert (spec.blocks, spec.input_size) == ("all", (3, 24, 24))


def test_the_twin_of_a_network_is_made_once(asked: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    list(sweep_speed({"a": masked_net()}, keep=(0.5, 0.2), batch_sizes=(1, 2)))
    assert len({id(options["twin"]) for _, options in asked}) == 1


def test_a_plain_network_without_a_known_size_is_refused() -> None:
    with pytest.raises(InputSizeError):
        list(sweep_speed({"a": SmallNet().eval()}, keep=(0.5,), batch_sizes=(1,)))


def test_a_keep_probability_out_of_range_is_refused() -> None:
    with pytest.raises(SpecError):
        list(sweep_speed({"a": masked_net()}, keep=(1.5,), batch_sizes=(1,)))

"""Named errors: what they say, what they are instances of, and that they cross processes; warnings that name a line."""

from __future__ import annotations

import errno
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dcn_plugin import errors
from dcn_plugin.errors import DcnError, DeadSiteWarning, OutputError, OutputPermissionError, SpecError, warn_caller

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DcnError)]
STATES = [
    "ModelChangedError",
    "TraceError",
    "MaskLostError",
    "MaskStateError",
    "CompactError",
    "CheckpointError",
    "ExportError",
]
OTHERS = {"OutputError": OSError, "OutputPermissionError": PermissionError, "MissingExtraError": ImportError}


def test_a_named_error_crosses_a_process_border() -> None:
    error = SpecError("What.", 3, "allowed", "fix it")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.got, again.fix) == (str(error), 3, "fix it")
    assert str(error) == "What. Got: 3. Allowed: allowed. Fix: fix it."
    assert isinstance(error, DcnError) and isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("What.",), "What."),
        (("What.", None), "What. Got: None."),
        (("What.", "a", "b"), "What. Got: 'a'. Allowed: b."),
        (("What.", "<unset>", None, "run it"), "What. Fix: run it."),
        (("What.", torch.arange(8)), "What. Got: tensor([0, 1, 2, 3, 4, 5, 6, 7])."),
        (("What.", torch.zeros(3, 3)), "What. Got: Tensor (3, 3)."),
        (("What.", np.zeros((2, 5))), "What. Got: ndarray (2, 5)."),
    ],
)
def test_an_error_says_what_it_was_told_and_of_large_arrays_only_the_shape(parts: tuple[Any, ...], text: str) -> None:
    assert str(DcnError(*parts)) == text


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not DcnError])
def test_an_error_is_the_built_in_one_that_a_caller_expects_and_crosses_a_process_border(kind: type[DcnError]) -> None:
    error = kind("What.", [1], "allowed", "fix it")
    expected = OTHERS.get(kind.__name__, RuntimeError if kind.__name__ in STATES else ValueError)
    assert isinstance(error, expected)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.what, again.got, again.allowed, again.fix) == (
        str(error), "What.", [1], "allowed", "fix it",
    )  # fmt: skip


def test_a_file_that_cannot_be_written_keeps_the_numbers_of_the_system() -> None:
    error = OutputPermissionError("What.", "path")
    assert error.errno is error.filename is error.strerror is None
    error.errno, error.filename, error.strerror = errno.EACCES, "path", "Permission denied"
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, again.filename, again.strerror) == (errno.EACCES, "path", "Permission denied")
    assert str(again) == "What. Got: 'path'."
    assert isinstance(again, PermissionError) and isinstance(again, OutputError)


def test_all_names_are_exported_in_order_and_every_warning_can_be_silenced_as_one() -> None:
    named = {name for name, kind in vars(errors).items() if getattr(kind, "__module__", "") == errors.__name__}
    assert errors.__all__ == sorted(errors.__all__)
    assert set(errors.__all__) == {name for name in named if not name.startswith("_")}
    for name in errors.__all__:
        assert not name.endswith("Warning") or issubclass(getattr(errors, name), errors.DcnWarning)


def inside_of_the_package(source: str) -> dict[str, Any]:
    """What a module of the package would define."""
    module: dict[str, Any] = {"__name__": "dcn_plugin.somewhere", "warn_caller": warn_caller, "Dead": DeadSiteWarning}
    exec(source, module)
    return module


def test_a_warning_points_at_the_line_that_called_into_the_package_however_deep_it_was() -> None:
    module = inside_of_the_package("def outer(run): run()\ndef inner(): warn_caller('Dead.', Dead)")
    inner: Callable[[], None] = module["inner"]

    def callback() -> None:
        inner()

    with pytest.warns(DeadSiteWarning, match="Dead") as caught:
        line = sys._getframe().f_lineno + 1
        module["outer"](callback)
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
    with pytest.warns(UserWarning, match="Plain") as caught:
        line = sys._getframe().f_lineno + 1
        warn_caller("Plain.")
    assert (caught[0].filename, caught[0].lineno, caught[0].category) == (__file__, line, UserWarning)


def test_a_warning_of_one_line_of_the_users_is_shown_once() -> None:
    inner = inside_of_the_package("def inner(): warn_caller('Once.')")["inner"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            inner()
    assert len(caught) == 1

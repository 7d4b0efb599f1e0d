"""What a tool made of a network is held against the network itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dcn_plugin.engine.export.graph import ExportModel
from dcn_plugin.errors import ExportError, MaskLostError, MissingExtraError

__all__ = ["Run", "check_masks", "check_outputs", "refused", "required"]

Run = Callable[[Tensor], Sequence[Any]]
"""A tool's form of a network: images (N, C, H, W) -> its outputs, as arrays or tensors."""

CLOSE = 1e-4
"""Most that an output may differ, as a share of the largest one: rounding of float32, far below that of bfloat16."""


def required(module: str, extra: str) -> ModuleType:
    """Import an optional tool.

    Args:
        module: its name, such as "openvino".
        extra: of this package, which brings it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{module.partition('.')[0]} is not installed.", fix=f"pip install 'dcn-plugin[{extra}]'"
        ) from error


def refused(tool: str, error: Exception) -> ExportError:
    """What to raise where a tool fails: converters raise whatever their passes raise, and pages of text with it."""
    cause: BaseException = error
    while (below := cause.__cause__ or cause.__context__) is not None:
        cause = below
    text = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
    return ExportError(f"{tool} cannot take the network: {text}", fix="try another version of it, or another tool")


def check_masks(shown: ExportModel, run: Run, tool: str, batch: int = 1) -> None:
    """Run a tool's form of a network that shows its masked values, and count defective neurons that are not zero.

    Args:
        shown: made by :func:`for_export` with ``show_masked=True``.
        run: the tool's form of it.
        tool: what to call it.
        batch: number of images.

    Raises:
        MaskLostError: there are some.
    """
    if leaks := shown.leaks(run(shown.example_images(batch))):
        raise MaskLostError(
            f"{tool} does not keep masked neurons at zero: {', '.join(f'{n} at {site}' for site, n in leaks.items())}.",
            tuple(leaks),
            "every masked neuron is exactly zero",
            "nothing was written; another version of the tool may do better",
        )


def check_outputs(model: ExportModel, run: Run, tool: str, batches: Sequence[int] = (1,)) -> None:
    """Compare the outputs of a tool's form with those of torch.

    Args:
        model: made by :func:`for_export`; more outputs than the network's own are not looked at.
        run: the tool's form.
        tool: what to call it.
        batches: numbers of images.

    Raises:
        ExportError: they differ by more than :data:`CLOSE`.
    """
    for batch in batches:
        images = model.example_images(batch)
        with torch.no_grad():
            expected = model(images)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for ours, theirs in zip(expected[: model.outputs], run(images), strict=False):
            values = torch.as_tensor(theirs).to(ours.dtype)
            same = values.shape == ours.shape
            # Written so that NaN counts as a difference.
            if not same or not bool(((values - ours).abs() <= CLOSE * ours.abs().max()).all()):
                shown = f"{float((values - ours).abs().max()):.1e}" if same else str(tuple(values.shape))
                raise ExportError(
                    f"What {tool} computes is not what torch computes.",
                    f"a difference of {shown} in outputs up to {float(ours.abs().max()):.1e}, at batch {batch}",
                    f"a difference of {CLOSE:g} of the largest output",
                    "nothing was written; look for operations of the network that the tool rounds or replaces",
                )

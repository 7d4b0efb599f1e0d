"""Networks with auxiliary heads: which of the outputs that they return in training is the one that counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import check_logits
from dcn_plugin.attacks.checks import described
from dcn_plugin.errors import DcnError, InputSizeError, ModelOutputError
from dcn_plugin.support.model_state import dummy_image, eval_mode, training_flags
from dcn_plugin.support.randomness import isolated_rng
from dcn_plugin.surgery.norm_slots import is_norm
from dcn_plugin.surgery.wrappers import network_in

__all__ = ["main_head"]

_log = logging.getLogger(__name__)


@torch.no_grad()
def main_head(model: nn.Module, shape: tuple[int, int, int]) -> Callable[[Any], Tensor] | None:
    """Find the logits in what a model returns in training mode, held against what it returns in eval mode.

    Networks with auxiliary heads return several outputs in training, as tuples, named tuples or dicts. Their main head
    is the output that eval mode returns alone. It is found by its values: on one image, in training mode but for
    normalisation and for modules without children (dropout), whatever is not switched by the mode is the same. Where
    something else changes the values, an entry named "logits" or "out" is the main head.

    Args:
        model: images in [0, 1] -> logits in eval mode; flags, buffers and global random state come back as they were.
        shape: (C, H, W) of the images.

    Returns:
        A function of what the model returned that gives the logits of its main head; None where it returns these alone.

    Raises:
        InputSizeError: it does not take such images in training mode.
        ModelOutputError: its main head cannot be told.
    """
    network = network_in(model)
    images = dummy_image(network, shape).repeat(2, 1, 1, 1)
    with eval_mode(network):
        expected = network(images)
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers() if buffer.dtype != torch.bool]
    try:
        with training_flags(network), isolated_rng(0, device=images.device):
            for module in network.modules():
                module.training = any(True for _ in module.children()) and not is_norm(module)
            network.training = True
            output = network(images)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, DcnError):
            raise
        raise InputSizeError(
            f"The model does not take the images of this data set in training ({str(error).splitlines()[0]}).",
            shape,
            "images (C, H, W) that the model is made for",
            "give it images of the size it is made for; auxiliary heads often need larger ones",
        ) from error
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
    if isinstance(output, Tensor):
        check_logits(output, count=len(images), finite=False)
        return None
    name = _main_entry(output, expected)
    _log.warning(
        "In training, the model returns %s; it is trained with %s alone, which is what it returns in evaluation.",
        described(output),
        f"output {name}" if isinstance(name, int) else repr(name),
    )
    if isinstance(output, Mapping) or isinstance(name, int):
        return lambda output: output[name]
    return lambda output: getattr(output, name)


def _main_entry(output: object, expected: Tensor) -> str | int:
    """Key, field or place of the entry that is ``expected``."""
    entries: dict[str | int, object] = {}
    if isinstance(output, Mapping):
        entries = dict(output)
    elif isinstance(output, Sequence):
        entries = dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    logits = {name: o for name, o in entries.items() if isinstance(o, Tensor) and o.shape == expected.shape}
    equal = [name for name, value in logits.items() if torch.allclose(value, expected, rtol=1e-4, atol=1e-5)]
    if len(equal) == 1:  # heads that start from zeros are all alike
        return equal[0]
    for name in ("logits", "out"):
        if name in logits:
            return name
    raise ModelOutputError(
        f"In training, the model returns several outputs, and {'none' if not equal else 'more than one'} is what it "
        "returns in evaluation.",
        described(output),
        "a floating-point tensor (N, classes) in both modes, or a tuple or dict that holds the one of evaluation",
        "wrap the model in a module whose forward returns its logits alone, or switch its auxiliary heads off, e.g. "
        "aux_logits=False",
    )

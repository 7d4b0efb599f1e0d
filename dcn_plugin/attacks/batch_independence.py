"""Whether what a network says about an image depends on the other images of its batch."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dcn_plugin.errors import MixedBatchWarning, warn_caller
from dcn_plugin.support.model_state import copy_of, eval_mode
from dcn_plugin.surgery.wrappers import network_in

__all__ = ["mixes_batch", "warn_if_mixed"]

_known: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def warn_if_mixed(model: nn.Module, images: Tensor, *, name: str = "") -> None:
    """Warn if the answer for an image depends on the others of its batch; each network is probed once in a process.

    Args:
        model: (N, C, H, W) -> a tensor; its training flags come back as they were.
        images: floating point (N, C, H, W), N >= 1, of which the first is shown to the network.
        name: of the model, for the warning; its class by default.
    """
    network = network_in(model)
    origin = getattr(network, "origin", None)  # of a compact model: it has the same answers, and no packed weights
    network = network_in(origin) if isinstance(origin, nn.Module) else network
    name = name or type(_asked(network)).__name__
    if network not in _known:
        _known[network] = mixes_batch(network, images)
    if _known[network] is not None:
        warn_caller(
            f"What {name} says about an image depends on the other images of its batch: "
            f"{_known[network]}. Accuracies, attacks and their distances then depend on the batch size and on the "
            "order of the images. Norms should use running statistics in eval mode.",
            MixedBatchWarning,
        )


def mixes_batch(model: nn.Module, images: Tensor) -> str | None:
    """Tell how a network mixes the images of a batch in eval mode; None: no mixing was observed.

    First its modules are looked at: batch norms without running statistics, or which stay in training mode. Then an
    image is shown to a copy of it beside itself and beside another one, in batches of the same shape and with the same
    random numbers, so that an answer that differs comes from the other image and not from rounding. The network itself
    is not run, so that its queries count those of the attack only. (The copy shares its weights.) One that cannot
    be copied, or does not take two images, is not probed.

    Args:
        model: (N, C, H, W) -> a tensor. It and the global generators stay as they are.
        images: floating point (N, C, H, W), N >= 1, of which the first is shown.

    Returns:
        What mixes them, for a sentence.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
        >>> mixes_batch(net, torch.rand(1, 3, 8, 8))
        "'1' (BatchNorm2d) normalises by the statistics of the batch"
    """
    with eval_mode(model):
        for path, module in _asked(model).named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
                return f"{path!r} ({type(module).__name__}) normalises by the statistics of the batch"
    shadow = _copy(model)
    if shadow is not None and _differs(shadow.eval(), images):
        return "an image got another answer beside another image"
    return None


def _asked(model: nn.Module) -> nn.Module:
    """The user's network inside an attack's wrapper; ``model`` itself if it is no such wrapper.

    Such a module names the user's model by a property ``asked_model``.
    """
    network = getattr(model, "asked_model", None)
    return network_in(network) if isinstance(network, nn.Module) else model


def _copy(model: nn.Module) -> nn.Module | None:
    """A copy that shares the model's parameters; None of a model that cannot be copied."""
    try:
        return copy_of(model, share_parameters=True)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # whatever the user keeps on it: files, locks, graphs
        return None


def _differs(model: nn.Module, images: Tensor) -> bool:
    image = images[:1].detach()
    ramp = torch.linspace(0, 1, image[0].numel(), device=image.device).to(image.dtype).view_as(image)
    alone, beside = torch.cat([image, image]), torch.cat([image, ramp])
    try:
        first, second = _answers(model, alone), _answers(model, beside)
        if first is None or second is None or not _far(first, second):
            return False
        again = _answers(model, beside)
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return False
    # A network that draws from a generator of its own answers anew each time: that is no mixing.
    return again is not None and not _far(second, again)


def _answers(model: nn.Module, images: Tensor) -> Tensor | None:
    """The network's output for the first image, as float64."""
    devices = [images.device] if images.device.type == "cuda" else []
    # Every question draws from the global generators as they are now, and gives them back so.
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        logits = model.forward(images)  # not through hooks: they are the model's own functions, copied or not
    ok = isinstance(logits, Tensor) and logits.is_floating_point() and logits.ndim >= 2 and len(logits) == len(images)
    return logits[0].double() if ok else None


def _far(left: Tensor, right: Tensor) -> bool:
    """Whether two outputs for one image, at one place of equally large batches, differ by more than rounding."""
    scale = max(float(left.abs().max()), float(right.abs().max()))
    return float((left - right).abs().max()) > 1e-3 * scale

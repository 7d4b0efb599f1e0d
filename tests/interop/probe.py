"""What every row of the interop matrix is held against: a probe that sees masked neurons, and the nets it looks at.

The expected masks are sampled again from the specification, so that a buffer which a tool changed is noticed.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.specs import SiteSpec
from tests.nets import NoNorm

SIZE = (3, 32, 32)
IMAGES = torch.linspace(-2, 2, 2 * 3 * 32 * 32).mul(37).sin().view(2, *SIZE)


class Glass(nn.Module):
    """Every kind of slot, and its forward returns the logits and each activation as it is in front of its ReLU.

    What it returns cannot be optimised away, so a compiled or exported copy shows its masked neurons too.
    Slots: batch norm, no norm, group norm, channels-last layer norm, fused batch norm (behind its ReLU).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1)
        self.conv3, self.norm3 = nn.Conv2d(8, 8, 3, 2, 1), nn.GroupNorm(2, 8)
        self.conv4, self.norm4 = nn.Conv2d(8, 8, 3, 1, 1), nn.LayerNorm(8)
        self.conv5, self.norm5 = nn.Conv2d(8, 8, 3, 1, 1), timm.layers.BatchNormAct2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        one = self.norm1(self.conv1(x))
        two = self.conv2(torch.relu(one))
        three = self.norm3(self.conv3(torch.relu(two)))
        four = self.norm4(self.conv4(torch.relu(three)).permute(0, 2, 3, 1))
        five = self.norm5(self.conv5(torch.relu(four).permute(0, 3, 1, 2)))
        return self.head(five.mean((2, 3))), one, two, three, four, five


NETS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: timm.create_model("test_resnet", num_classes=5),
    "fused norm": lambda: timm.create_model("test_byobnet", num_classes=5),
    "no norm": NoNorm,
    "layer norm": lambda: timm.create_model("test_convnext", num_classes=5),
    "every slot": Glass,
}


def make(name: str = "batch norm", *, p: float = 0.4, seed: int = 3, mode: Any = "neuron") -> nn.Module:
    """A defective network in eval mode, with parameters and statistics as after some training."""
    torch.manual_seed(0)
    # Few channels: with independent draws a whole layer could be dead.
    sampling: Any = "exact" if mode == "channel" else "bernoulli"
    model = dcn.defectify(NETS[name](), "all", p, mode, input_size=SIZE, seed=seed, sampling=sampling)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # weights and biases of norms are all one or zero at first
                parameter.add_(torch.randn_like(parameter) * 0.2)
        for _ in range(3):
            model(IMAGES)  # in train mode: moves the running statistics
    return model.eval()


def loss_of(out: Any) -> Tensor:
    """A loss over everything a network returns, with a gradient at zeros too."""
    outs = [out] if isinstance(out, Tensor) else list(out)
    return torch.stack([(o.float() - 1).square().mean() for o in outs]).sum()


def kept(site: SiteSpec) -> Tensor:
    """The mask of a site, from its seed alone, in the memory order of its activation."""
    mask = dcn.sample_mask(site.mask, site.shape, site=site.ordinal)
    if site.layout == "NCHW":
        return mask
    return mask.permute(1, 2, 0) if site.layout == "NHWC" else mask.permute(1, 2, 0).flatten(0, 1)


@dataclass
class Seen:
    """What was seen at one site: calls, masked neurons that were not zero, masked gradients that were not zero."""

    calls: int = 0
    loud: int = 0
    gradients: int = 0
    loud_gradients: int = 0


@dataclass
class Sightings:
    """What was seen at all sites."""

    sites: dict[str, Seen] = field(default_factory=dict)

    def loud(self) -> list[str]:
        """The sites where a mask did not act, on the activation or on its gradient."""
        return [name for name, s in self.sites.items() if not s.calls or s.loud or s.loud_gradients]


@contextmanager
def watching(model: nn.Module) -> Iterator[Sightings]:
    """Look at every masked neuron while ``model`` runs, in front of the activation, and at its gradient.

    A site's place is found by its name in the specification, so the model may have been rewritten.
    """
    sightings = Sightings()
    handles: list[Any] = []
    for site in dcn.defect_spec(model).sites:
        seen = sightings.sites[site.name] = Seen()
        owner = model.get_submodule(site.name)
        dead = ~kept(site)
        act, drop = getattr(owner, "act", None), getattr(owner, "drop", None)
        before_act = isinstance(act, nn.Module) and not isinstance(act, nn.Identity)
        handles.append(owner.register_forward_hook(_look(seen, dead, act if before_act else None)))
        if isinstance(drop, nn.Module):
            handles.append(drop.register_forward_pre_hook(_look_back(seen, dead)))
    try:
        yield sightings
    finally:
        for handle in handles:
            handle.remove()


def _look(seen: Seen, dead: Tensor, act: nn.Module | None) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, out: Tensor) -> None:
        seen.calls += 1
        silent = torch.zeros((), dtype=out.dtype, device=out.device)
        # Behind the activation of a fused layer, a silent neuron shows what the activation makes of zero.
        silent = silent if act is None else act(silent.clone())
        seen.loud += int((out.detach()[:, dead.to(out.device)] != silent.detach()).sum())

    return hook


def _look_back(seen: Seen, dead: Tensor) -> Callable[..., None]:
    def look(gradient: Tensor) -> None:
        seen.gradients += 1
        seen.loud_gradients += int((gradient[:, dead.to(gradient.device)] != 0).sum())

    def hook(_: nn.Module, args: Any) -> None:
        if args[0].requires_grad:
            args[0].register_hook(look)

    return hook


def assert_masks_act(model: nn.Module, images: Tensor = IMAGES, *, call: Any = None, backward: bool = True) -> Tensor:
    """Run ``call`` (or ``model``) and hold every masked neuron, and its gradient, against exactly zero.

    Returns:
        the logits.
    """
    with watching(model) as sightings, torch.enable_grad():
        out = (call or model)(images)
        if backward:
            model.zero_grad()
            loss_of(out).backward()
    assert sightings.loud() == []
    assert not backward or all(seen.gradients for seen in sightings.sites.values())
    return out if isinstance(out, Tensor) else out[0]  # type: ignore[no-any-return]


def assert_glass_is_silent(defective: nn.Module, outputs: tuple[Tensor, ...]) -> None:
    """Hold what a copy of a defective :class:`Glass` returned against its specification."""
    sites = dcn.defect_spec(defective).sites
    assert len(sites) == len(outputs) - 1
    for site, out in zip(sites, outputs[1:], strict=True):
        assert (out[:, ~kept(site)] == 0).all(), site.name
        assert (out[:, kept(site)] != 0).any(), site.name


def gradients(model: nn.Module, images: Tensor = IMAGES, call: Any = None) -> dict[str, Tensor]:
    """The gradients of all parameters, for a loss over everything the model returns."""
    model.zero_grad()
    loss_of((call or model)(images)).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_dead_channels_learn_nothing(model: nn.Module, grads: dict[str, Tensor]) -> None:
    """With mode="channel", no parameter of a dead channel has a gradient."""
    looked = 0
    for site in dcn.defect_spec(model).sites:
        dead = ~dcn.sample_mask(site.mask, site.shape, site=site.ordinal)[:, 0, 0]
        for name in {f"{site.name}.weight", f"{site.name}.bias"} & grads.keys():
            assert dead.any() and (grads[name][dead] == 0).all(), name
            assert (grads[name][~dead] != 0).any(), name
            looked += 1
    assert looked


def unmasked(model: nn.Module) -> nn.Module:
    """A copy whose first mask no longer acts, for proofs that a test can fail."""
    broken = copy.deepcopy(model)
    next(m for m in broken.modules() if isinstance(m, dcn.DefectMask2d)).mask.fill_(True)
    return broken


def needs(library: str) -> Any:
    """The library, or a skip that says which one is missing."""
    if importlib.util.find_spec(library.partition(".")[0]) is None:
        pytest.skip(f"{library} is not installed")
    return importlib.import_module(library)

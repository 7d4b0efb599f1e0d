from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.attacks import EnsembleSource
from dcn_plugin.evaluate import relation
from dcn_plugin.models import cifar_resnet
from tests.toys import ModeNet


def net(seed: int = 0, *, width: int = 4, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return cifar_resnet((1, 1, 1, 1), in_chans=1, width=width, num_classes=classes).eval()


def defective(model: nn.Module, *, seed: int = 0, p: float = 0.5) -> nn.Module:
    return dcn.defectify(model, p=p, seed=seed, input_size=(1, 8, 8))


class Normalize(nn.Module):
    """As users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1, 1), 0.4))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean


class Committee(nn.Module):
    """An ensemble that its author wrote without nn.ModuleList."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = list(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class Classifier:
    """Like ART's: not a module, but it has one."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model


class Adapted(nn.Module):
    """A module around an object of another library, that it also patched its own forward with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.classifier = Classifier(model)
        self.forward = functools.partial(type(self).forward, self)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier._model(x)
        return logits


class Headed(nn.Module):
    """A backbone and a head."""

    def __init__(self, backbone: nn.Module, outputs: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(10, outputs)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "the network": lambda model: model,
    "torch.compile": lambda model: torch.compile(model),  # type: ignore[return-value]
    "DataParallel": nn.DataParallel,
    "Normalized": lambda model: dcn.Normalized(model, [0.5], [0.25]),
    "Sequential": lambda model: nn.Sequential(Normalize(), model, nn.Identity()),
    "deepcopy": copy.deepcopy,
    "float64": lambda model: copy.deepcopy(model).double(),
    "bfloat16": lambda model: copy.deepcopy(model).bfloat16(),
    "channels_last": lambda model: copy.deepcopy(model).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "compact": lambda model: dcn.compact(model, backend="reference"),
    "a list": Committee,
    "an object": Adapted,
    "ensemble": lambda model: EnsembleSource([net(7, width=6), model]),
    "own ensemble": lambda model: Committee(net(8), net(7, width=6), model),
}
# compact() takes a network with masks in float32, and an ensemble has none of its own.
_OUTER = sorted(WRAPPERS.keys() - {"compact"})


_CHANGED = {"float64", "bfloat16"}


@functools.cache
def small(seed: int = 0, masks: int = 0, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 3))
    return dcn.defectify(nn.Sequential(*layers), blocks="0", p=0.5, seed=masks, input_size=(1, 8, 8)).eval()


@functools.cache
def wrapped(name: str) -> nn.Module:
    return WRAPPERS[name](small())


@pytest.mark.parametrize("inner", sorted(WRAPPERS))
@given(outer=st.lists(st.sampled_from(_OUTER), max_size=2, unique=True), swap=st.booleans())
@settings(max_examples=8, deadline=None)
def test_a_network_is_known_behind_any_wrappers(inner: str, outer: list[str], swap: bool) -> None:
    model = wrapped(inner)
    for name in outer:
        # A compact model stays where it was made, and what is compiled is not compiled again.
        if name != inner and not (inner == "compact" and name in _CHANGED):
            model = WRAPPERS[name](model)
    same, other, far = small(), small(masks=1), small(seed=3, width=5)
    assert relation(*((same, model) if swap else (model, same))) == "same network"
    assert relation(*((other, model) if swap else (model, other))) == "other masks"
    assert relation(*((far, model) if swap else (model, far))) == "other network"


def test_relation_is_read_off_masks_and_weights() -> None:
    plain, retrained = net(0), net(1)
    assert relation(plain, plain) == relation(plain, copy.deepcopy(plain)) == "same network"
    assert relation(plain, retrained) == "other weights"
    first = defective(plain)
    assert relation(first, defective(retrained)) == "other weights"
    assert relation(first, defective(plain, seed=1)) == "other masks"
    assert relation(first, defective(retrained, seed=1)) == "other masks"
    assert relation(first, retrained) == relation(first, defective(retrained, p=0.3)) == "other network"


def test_the_same_weights_with_other_masks_or_none_are_no_other_network() -> None:
    plain = net(0)
    first = defective(plain)
    assert relation(first, plain) == relation(plain, first) == "other masks"
    assert relation(first, defective(plain, p=0.3)) == "other masks"
    assert relation(EnsembleSource([plain, net(1)]), first) == "other masks"
    # The masks of another member are not the network's own.
    assert relation(EnsembleSource([first, defective(net(1))]), plain) == "other masks"


def test_ensembles_with_a_common_member_are_the_same_network_and_others_as_close_as_their_members() -> None:
    a, b, c = net(0), net(1), net(2, width=5)
    assert relation(EnsembleSource([a, c]), EnsembleSource([c, b])) == "same network"
    assert relation(Committee(a, c), EnsembleSource([b, c])) == "same network"
    assert relation(EnsembleSource([a, c]), b) == "other weights"
    assert relation(EnsembleSource([c, c]), b) == "other network"


def test_a_shared_backbone_is_gray_box_whatever_the_heads() -> None:
    backbone = net(0)
    assert relation(Headed(backbone, 3), Headed(copy.deepcopy(backbone), 5)) == "other weights"
    assert relation(Headed(backbone, 3), Headed(net(1), 5)) == "other network"
    assert relation(Headed(defective(backbone), 3), Headed(defective(backbone, seed=1), 5)) == "other masks"
    assert relation(Headed(backbone, 3), backbone) == "same network"


def test_what_a_network_does_in_training_only_makes_no_other_structure() -> None:
    def built(drop: float, *, inplace: bool, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        drops = nn.Dropout(drop) if drop else nn.Identity()
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace), drops, nn.Flatten(), nn.Linear(16, 3))

    assert relation(built(0.0, inplace=False, seed=0), built(0.2, inplace=True, seed=1)) == "other weights"


def test_networks_without_telling_weights_are_told_by_their_structure() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    zeros = [nn.Sequential(nn.Flatten(), nn.Linear(4, width)) for width in (3, 3, 5)]
    for model in zeros:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    assert relation(Constant(), Constant()) == relation(zeros[0], zeros[1]) == "same network"
    assert relation(Constant(), nn.Flatten()) == relation(zeros[0], zeros[2]) == "other network"
    assert relation(Constant(), ModeNet()) == "other network"


@torch.no_grad()
def test_one_weight_makes_other_weights() -> None:
    model = net()
    changed = copy.deepcopy(model)
    list(changed.parameters())[5].view(-1)[3] += 1e-3
    assert relation(model, changed) == relation(changed, model) == "other weights"


def test_traced_networks_are_known_by_their_weights() -> None:
    model = ModeNet().eval()
    assert relation(model, torch.fx.symbolic_trace(model)) == "same network"
    exported = torch.export.export(model, (torch.zeros(1, 1, 4, 4),)).module()
    assert relation(exported, model) == "same network"

"""Where a mask fits into a normalisation: twins compute what the plain norm computes, and give it back."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm.layers as tl
import torch
from timm.layers.norm import LayerNorm2dFp32, LayerNormFp32, RmsNorm2dFp32, RmsNormFp32
from timm.layers.split_batchnorm import SplitBatchNorm2d
from timm.models.metaformer import GroupNorm1NoBias, LayerNorm2dNoBias, LayerNormNoBias
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d as TorchvisionLayerNorm2d
from torchvision.ops.misc import FrozenBatchNorm2d

import dcn_plugin as dcn
from dcn_plugin.errors import SiteError
from dcn_plugin.layers import owns_output
from dcn_plugin.surgery.norm_slots import _TWINS, is_norm, layout_of, remove_slot, slot_of, taken_names, with_slot
from tests.nets import same, shaken, snapshot

WIDTH = 4


class Inherited(nn.BatchNorm2d):
    """A subclass that changes nothing in the forward."""


class Changed(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


# name -> how it is made, and whether it normalises the last dimension
PLAIN: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "BatchNorm2d": (lambda: nn.BatchNorm2d(WIDTH), False),
    "BatchNorm2d without affine": (lambda: nn.BatchNorm2d(WIDTH, affine=False), False),
    "BatchNorm2d without statistics": (lambda: nn.BatchNorm2d(WIDTH, track_running_stats=False), False),
    "BatchNorm2d with cumulative statistics": (lambda: nn.BatchNorm2d(WIDTH, momentum=None), False),
    "FrozenBatchNorm2d": (lambda: FrozenBatchNorm2d(WIDTH), False),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(WIDTH), False),
    "InstanceNorm2d with affine": (lambda: nn.InstanceNorm2d(WIDTH, affine=True), False),
    "InstanceNorm2d with statistics": (lambda: nn.InstanceNorm2d(WIDTH, track_running_stats=True), False),
    "SplitBatchNorm2d": (lambda: SplitBatchNorm2d(WIDTH, num_splits=2), False),
    "GroupNorm": (lambda: nn.GroupNorm(2, WIDTH), False),
    "GroupNorm without affine": (lambda: nn.GroupNorm(2, WIDTH, affine=False), False),
    "timm GroupNorm": (lambda: tl.GroupNorm(WIDTH, num_groups=2), False),
    "GroupNorm1": (lambda: tl.GroupNorm1(WIDTH), False),
    "LayerNorm": (lambda: nn.LayerNorm(WIDTH), True),
    "LayerNorm over three dimensions": (lambda: nn.LayerNorm((WIDTH, 6, 6)), False),
    "LayerNorm without affine": (lambda: nn.LayerNorm(WIDTH, elementwise_affine=False), True),
    "timm LayerNorm": (lambda: tl.LayerNorm(WIDTH), True),
    "LayerNormFp32": (lambda: LayerNormFp32(WIDTH), True),
    "LayerNorm2d": (lambda: tl.LayerNorm2d(WIDTH), False),
    "LayerNorm2dFp32": (lambda: LayerNorm2dFp32(WIDTH), False),
    "torchvision LayerNorm2d": (lambda: TorchvisionLayerNorm2d(WIDTH), False),
    "RmsNorm": (lambda: tl.RmsNorm(WIDTH), True),
    "RmsNormFp32": (lambda: RmsNormFp32(WIDTH), True),
    "RmsNorm2d": (lambda: tl.RmsNorm2d(WIDTH), False),
    "RmsNorm2dFp32": (lambda: RmsNorm2dFp32(WIDTH), False),
    "a subclass": (lambda: Inherited(WIDTH), False),
    "GroupNorm1NoBias": (lambda: GroupNorm1NoBias(WIDTH), False),
    "LayerNormNoBias": (lambda: LayerNormNoBias(WIDTH), True),
    "LayerNorm2dNoBias": (lambda: LayerNorm2dNoBias(WIDTH), False),
}
FUSED = [
    lambda: tl.BatchNormAct2d(WIDTH),
    lambda: tl.GroupNormAct(WIDTH, num_groups=2),
    lambda: tl.LayerNormAct2d(WIDTH),
    lambda: tl.FrozenBatchNormAct2d(WIDTH),
]


def images(last: bool) -> Tensor:
    x = torch.randn(4, WIDTH, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    return x.permute(0, 2, 3, 1).contiguous() if last else x


def test_every_norm_with_a_twin_is_tested_here_but_the_one_that_needs_several_processes() -> None:
    made = {type(make()) for make, _ in PLAIN.values()}
    assert set(_TWINS) - made == {nn.SyncBatchNorm}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("training", [True, False])
def test_a_twin_computes_bit_for_bit_what_the_plain_norm_computes(name: str, training: bool) -> None:
    make, last = PLAIN[name]
    plain = shaken(make()).train(training)
    twin = copy.deepcopy(plain)
    assert is_norm(plain) and slot_of(plain) == "norm"
    with_slot(twin)
    assert twin.state_dict().keys() == plain.state_dict().keys()
    for _ in range(2):
        assert torch.equal(twin(images(last)), plain(images(last)))
    for key, value in plain.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), key


@pytest.mark.parametrize("name", PLAIN)
def test_the_slot_sees_the_norms_output_and_its_result_is_what_comes_out(name: str) -> None:
    make, last = PLAIN[name]
    plain = shaken(make())
    twin = copy.deepcopy(plain)
    with_slot(twin)

    class Halve(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    twin.drop = Halve()
    assert torch.equal(twin(images(last)), plain(images(last)) / 2)


@pytest.mark.parametrize("name", PLAIN)
def test_removing_the_slot_leaves_no_trace(name: str) -> None:
    norm = shaken(PLAIN[name][0]())
    before, cls = snapshot(norm), type(norm)
    with_slot(norm)
    remove_slot(norm, cls)
    assert type(norm) is cls
    assert same(before, snapshot(norm))


@pytest.mark.parametrize("make", FUSED)
def test_a_fused_norm_has_its_slot_between_norm_and_activation(make: Callable[[], nn.Module]) -> None:
    norm = shaken(make())
    assert is_norm(norm) and slot_of(norm) == "norm_act"

    class Negate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -x

    plain = norm(images(False))
    norm.drop = Negate()
    negated = norm(images(False))
    assert (plain >= 0).all() and (negated >= 0).all() and ((plain > 0) & (negated > 0)).sum() == 0


def test_after_timms_converter_the_plain_form_is_that_of_the_converted_norm() -> None:
    net = nn.Sequential(nn.BatchNorm2d(WIDTH))
    with_slot(net[0])
    split = tl.convert_splitbn_model(net, 2)
    remove_slot(split[0], nn.BatchNorm2d)
    assert type(split[0]) is SplitBatchNorm2d


def test_a_subclass_with_its_own_forward_has_no_slot_but_is_a_norm() -> None:
    assert is_norm(Changed(WIDTH)) and slot_of(Changed(WIDTH)) is None


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm1d(4), tl.EvoNorm2dS0(4), tl.FilterResponseNormTlu2d(4), tl.SimpleNorm2d(4)]
)
def test_a_norm_that_is_not_known_is_recognised_by_its_name(norm: nn.Module) -> None:
    assert is_norm(norm) and slot_of(norm) is None


class NormConv2d(nn.Conv2d):
    """Its name holds "norm", and it convolves."""


class WeightNormConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 4, 3),
        NormConv2d(3, 4, 3),
        WeightNormConv(),
        nn.LocalResponseNorm(3),
        tl.ConvNormAct(3, 4),
        tl.NormMlpClassifierHead(4, 0),
        tl.NormMlpClassifierHead(4, 10),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_module_that_holds_a_norm_or_only_sounds_like_one_is_none(module: nn.Module) -> None:
    assert not is_norm(module)


class WithAct(nn.BatchNorm2d):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.ReLU()


class WithDrop(nn.GroupNorm):
    def __init__(self, width: int) -> None:
        super().__init__(2, width)
        self.drop = 0.1


class WithMethod(nn.BatchNorm2d):
    def gain(self) -> Tensor:
        return self.weight.abs().mean()


class WithReset(nn.GroupNorm):
    def __init__(self, width: int) -> None:
        super().__init__(2, width)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.5)


class WithConstant(nn.InstanceNorm2d):
    groups = 3


class WithProperty(tl.LayerNorm2d):
    @property
    def width(self) -> int:
        return 7


def patched() -> nn.Module:
    norm = nn.BatchNorm2d(WIDTH)
    norm.forward = lambda x: x + 1  # type: ignore[method-assign]
    return norm


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: WithAct(WIDTH), "act"),
        (lambda: WithDrop(WIDTH), "drop"),
        (lambda: WithMethod(WIDTH), "gain"),
        (lambda: WithReset(WIDTH), "reset_parameters"),
        (lambda: WithConstant(WIDTH), "groups"),
        (lambda: WithProperty(WIDTH), "width"),
        (patched, "forward"),
    ],
)
def test_what_a_norm_has_of_its_own_is_not_overwritten(make: Callable[[], nn.Module], name: str) -> None:
    assert slot_of(make()) is None and taken_names(make()) == [name]
    with pytest.raises(SiteError, match=f"cannot carry a mask.*it has a '{name}' of its own"):
        dcn.defectify(nn.Sequential(nn.Conv2d(3, WIDTH, 3), make(), nn.ReLU()), "all", input_size=(3, 8, 8))


@pytest.mark.parametrize("make", [nn.BatchNorm2d, nn.InstanceNorm2d], ids=lambda c: c.__name__)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_parametrised_norm_keeps_its_parametrisation(make: Callable[..., nn.Module], when: str) -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs()

    def parametrize(norm: nn.Module) -> None:
        nn.utils.parametrize.register_parametrization(norm, "weight", Positive())

    plain = nn.Sequential(nn.Conv2d(3, WIDTH, 3), shaken(make(WIDTH, affine=True)), nn.ReLU())
    reference = copy.deepcopy(plain)
    parametrize(reference[1])
    net = dcn.defectify(reference if when == "before" else plain, "all", p=1, input_size=(3, 8, 8))
    if when == "after":
        parametrize(net[1])
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(x), reference(x))
    dcn.verify(net)
    again = dcn.undefectify(net)
    assert torch.equal(again(x), reference(x)) and type(again[1]).__name__ == type(reference[1]).__name__
    nn.utils.parametrize.remove_parametrizations(again[1], "weight")
    assert type(again[1]) is make and torch.equal(again(x), reference(x))


def test_the_layout_follows_the_dimension_that_is_normalised() -> None:
    assert layout_of(nn.LayerNorm(4), 4) == "NHWC"
    assert layout_of(nn.LayerNorm(4), 3) == "NLC"
    assert layout_of(nn.LayerNorm((4, 6, 6)), 4) == "NCHW"
    assert {layout_of(norm, 4) for norm in (tl.LayerNorm2d(4), TorchvisionLayerNorm2d(4), nn.BatchNorm2d(4))} == {
        "NCHW"
    }


@pytest.mark.parametrize("name", PLAIN)
def test_a_slot_that_owns_its_output_may_be_overwritten_without_harm_to_the_gradient(name: str) -> None:
    make, last = PLAIN[name]
    norm = shaken(make()).train()
    with_slot(norm)
    if not owns_output(norm):
        return

    class Zero(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.inplace = inplace

        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(0.5) if self.inplace else x * 0.5

    gradients = []
    for inplace in (True, False):
        norm.drop = Zero(inplace)
        x = images(last).requires_grad_()
        norm(x).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(gradients[0], gradients[1])

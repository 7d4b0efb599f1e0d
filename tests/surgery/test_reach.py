"""What lies between a mask and the next activation: decided by what runs, and measured by verify.

Each part below stands behind a convolution (or a norm) and in front of a ReLU. The oracle is the definition: zero some
neurons in front of the part, and look whether they are zero behind it and the others are as they were.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm.layers as tl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import MaskLostError, SiteError
from dcn_plugin.surgery import plan_defects
from tests.nets import shaken

WIDTH, SIZE = 8, (3, 8, 8)


class LN2d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(WIDTH, 1, 1)), nn.Parameter(torch.zeros(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return self.w * centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt() + self.b


class Rms(nn.Module):
    """Keeps zeros, and still is a norm: it scales by a statistic."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(self.dims, keepdim=True) + 1e-6)


class Response(nn.Module):
    """ConvNeXt V2's GRN, in NCHW."""

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        return x + x * (size / (size.mean(1, keepdim=True) + 1e-6))


class FilterResponse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(
            x * torch.rsqrt(x.square().mean((2, 3), keepdim=True) + 1e-6), torch.full((1, 1, 1, 1), -0.1)
        )


class HandBatch(nn.Module):
    """Batch statistics in training, a shift and a scale in eval, where it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("m", torch.zeros(1, WIDTH, 1, 1))
        self.register_buffer("v", torch.ones(1, WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return (x - x.mean((0, 2, 3), True)) / x.std((0, 2, 3), keepdim=True)
        return (x - self.m) / torch.sqrt(self.v + 1e-5)


class Bias(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(shape))  # zero now, and something else after training

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.g * x


class Conditional(nn.Module):
    """A shift that is computed from the images, one number a channel (FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x.mean((2, 3)))[:, :, None, None]


class Do(nn.Module):
    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def nhwc(norm: Callable[[Tensor], Tensor]) -> nn.Module:
    return Do(lambda x: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def tokens(norm: Callable[[Tensor], Tensor]) -> nn.Module:
    return Do(lambda x: norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape))


def seen(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, (1, 2, 3), keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


# name -> (how it is made, a part of the reason)
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "layer norm by hand": (LN2d, r"'part' \(LN2d\) normalises"),
    "RMS norm over channels": (lambda: Rms((1,)), "normalises"),
    "RMS norm over positions": (lambda: Rms((2, 3)), "normalises"),
    "RMS norm over both": (lambda: Rms((1, 2, 3)), "normalises"),
    "response norm": (Response, "normalises"),
    "filter response norm": (FilterResponse, "normalises"),
    "batch norm by hand": (HandBatch, "adds a constant"),
    "one function": (lambda: Do(seen), "normalises"),
    "F.normalize": (lambda: Do(lambda x: F.normalize(x, dim=1)), "normalises"),
    "F.batch_norm": (lambda: Do(lambda x: F.batch_norm(x, torch.ones(WIDTH), torch.ones(WIDTH))), "as a function"),
    "F.group_norm": (lambda: Do(lambda x: F.group_norm(x, 2)), "as a function"),
    "F.instance_norm": (lambda: Do(F.instance_norm), "as a function"),
    "F.layer_norm over all": (lambda: Do(lambda x: F.layer_norm(x, x.shape[1:])), "as a function"),
    "F.layer_norm in NHWC": (lambda: nhwc(lambda x: F.layer_norm(x, (WIDTH,))), "as a function"),
    "F.layer_norm of tokens": (lambda: tokens(lambda x: F.layer_norm(x, (WIDTH,))), "normalises"),
    "F.rms_norm in NHWC": (lambda: nhwc(lambda x: F.rms_norm(x, (WIDTH,))), "normalises"),
    "EvoNorm": (lambda: tl.EvoNorm2dS0(WIDTH, group_size=4), "no place for a mask"),
    "a bias": (lambda: Bias(WIDTH, 1, 1), r"'part' \(Bias\) adds a constant"),
    "a bias of every position": (lambda: Bias(WIDTH, 8, 8), "adds a constant"),
    "a number": (lambda: Do(lambda x: x + 0.1), "adds a constant"),
    "a bias in place": (lambda: Do(lambda x: x.sub_(0.1)), "adds a constant"),
    "a conditional bias": (Conditional, "adds a constant"),
    "a blur": (lambda: tl.BlurPool2d(WIDTH, stride=1), "mixes positions"),
    "average pooling": (lambda: nn.AvgPool2d(2), "mixes positions"),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), "mixes positions"),
}
TAKEN: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "a learned scale": Scale,
    "layer scale": lambda: tl.LayerScale2d(WIDTH),
    "a number": lambda: Do(lambda x: x * 0.5 / 3),
    "a sum that starts at 0": lambda: Do(lambda x: 0 + x),
    "dropout": lambda: nn.Dropout2d(0.5),
    "another order and back": lambda: nhwc(lambda x: x.contiguous()),
    "squeeze and excite": lambda: tl.SqueezeExcite(WIDTH, rd_channels=4),
    "channel attention": lambda: tl.EcaModule(WIDTH),
    "max pooling": lambda: nn.MaxPool2d(2),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "padding": lambda: nn.ZeroPad2d(1),
    "SiLU by hand": lambda: Do(lambda x: x * torch.sigmoid(x)),
    "softsign": nn.Softsign,
    "a square": lambda: Do(lambda x: x * x),
    "a skip over a convolution": lambda: Skip(),
}


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(x))


class Net(nn.Module):
    def __init__(self, part: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.norm = nn.Identity() if norm is None else norm
        self.part = part
        self.body = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)
        self.bn = nn.BatchNorm2d(WIDTH)
        self.fc = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.part(self.norm(self.conv(x))))
        return self.fc(F.relu(self.bn(self.body(x))).mean((2, 3)))


def commutes(part: nn.Module) -> bool:
    """Whether zeroing neurons in front of ``part`` is the same as zeroing them behind it: the definition."""
    x = torch.randn(2, WIDTH, 8, 8, generator=torch.Generator().manual_seed(0))
    keep = torch.rand(1, WIDTH, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    part = shaken(part)
    return torch.allclose(part(x.clone() * keep), part(x.clone()) * keep, atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_keep_a_mask_is_refused_by_name_before_anything_is_changed(name: str) -> None:
    make, reason = REFUSED[name]
    net = Net(make()).eval()
    with pytest.raises(SiteError, match=reason):
        dcn.defectify(net, "all", input_size=SIZE)
    spec = plan_defects(net, "all", input_size=SIZE, filter_fn=lambda _, path: path in ("bn", "body"))
    assert [site.name for site in spec.sites] == ["bn"]


@pytest.mark.parametrize("name", [n for n in REFUSED if n not in ("average pooling", "bilinear")])
def test_what_is_refused_really_does_not_keep_a_mask(name: str) -> None:
    assert not commutes(REFUSED[name][0]())


@pytest.mark.parametrize("name", TAKEN)
def test_what_keeps_a_mask_is_taken(name: str) -> None:
    spec = plan_defects(Net(TAKEN[name]()).eval(), "all", input_size=SIZE)
    assert spec.sites[0].name == "conv" and spec.sites[-1].name == "bn"


@pytest.mark.parametrize("name", ["a learned scale", "layer scale", "a number", "dropout", "another order and back"])
def test_what_is_taken_really_keeps_a_mask(name: str) -> None:
    assert commutes(TAKEN[name]())


def test_a_norm_inside_a_module_of_another_name_carries_the_mask_itself() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    net = Net(Wrapped()).eval()
    assert [site.name for site in plan_defects(net, "all", input_size=SIZE).sites] == ["part.inner", "bn"]


@pytest.mark.parametrize(
    "part", [LN2d, lambda: Bias(WIDTH, 1, 1), lambda: nn.AvgPool2d(2), lambda: nn.BatchNorm2d(WIDTH)]
)
def test_behind_a_norm_the_same_holds(part: Callable[[], nn.Module]) -> None:
    with pytest.raises(SiteError, match=r"between 'norm' and the next activation"):
        dcn.defectify(Net(part(), nn.BatchNorm2d(WIDTH)).eval(), "all", input_size=SIZE)
    assert plan_defects(Net(Scale(), nn.BatchNorm2d(WIDTH)).eval(), "all", input_size=SIZE).sites[0].name == "norm"


def test_a_norm_by_hand_behind_a_sum_is_refused_too() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
            self.norm1, self.norm2, self.fc = nn.BatchNorm2d(WIDTH), LN2d(), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.conv(F.relu(self.norm1(x)))
            return self.fc(F.relu(self.norm2(x)).mean((2, 3)))

    with pytest.raises(SiteError, match=r"1 of 2 .*'norm2' \(LN2d\) normalises between 'conv' and the next activation"):
        dcn.defectify(PreActivation(), "all", input_size=SIZE)


def test_a_residual_stream_is_taken_as_it_always_was() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
            self.fc = nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.fc(F.relu(x + self.conv(x)).mean((2, 3)))

    net = dcn.defectify(Residual(), "all", p=0.5, input_size=SIZE)
    assert [site.name for site in dcn.defect_spec(net).sites] == ["stem", "conv"]
    dcn.verify(net)


def test_a_convolution_whose_own_forward_normalises_carries_its_mask_behind_that() -> None:
    class Normed(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return LN2d()(super().forward(x))

    net = Net(nn.Identity()).eval()
    net.conv = Normed(3, WIDTH, 3, padding=1)
    made = dcn.defectify(net, "all", p=0.5, input_size=SIZE)
    assert bool((made.conv(torch.rand(2, *SIZE))[:, ~made.conv.drop.mask[0]] == 0).all())
    dcn.verify(made)


def test_a_convolution_that_activates_itself_is_refused() -> None:
    class Activated(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sigmoid()

    net = Net(nn.Identity()).eval()
    net.conv = Activated(3, WIDTH, 3, padding=1)
    with pytest.raises(SiteError, match=r"'conv' applies an activation \(sigmoid\) itself, in front of the mask"):
        dcn.defectify(net, "all", input_size=SIZE)


def test_a_hook_of_the_users_own_runs_behind_the_mask_and_is_seen() -> None:
    net = Net(nn.Identity()).eval()
    net.conv.register_forward_hook(lambda module, args, out: out + 1)
    with pytest.raises(SiteError, match="adds a constant between 'conv' and the next activation"):
        dcn.defectify(net, "all", input_size=SIZE)


@pytest.mark.parametrize("attribute", ["drop", "forward"])
def test_an_attribute_of_a_convolution_is_not_overwritten(attribute: str) -> None:
    net = Net(nn.Identity()).eval()
    if attribute == "drop":
        net.conv.drop = nn.Dropout(0.1)
    else:
        net.conv.forward = net.conv.forward  # as tools do that put a function around it
    with pytest.raises(SiteError, match=f"'conv' is a Conv2d, which has a '{attribute}' of its own"):
        dcn.defectify(net, "all", input_size=SIZE)


def test_a_networks_own_defect_spec_is_not_overwritten() -> None:
    net = Net(nn.Identity()).eval()
    net.defect_spec = "mine"
    with pytest.raises(SiteError, match="attribute 'defect_spec' of its own"):
        dcn.defectify(net, "all", input_size=SIZE)


# verify measures.


def broken(how: str) -> nn.Module:
    net = dcn.defectify(Net(nn.Identity()).eval(), "all", p=0.5, input_size=SIZE)
    if how == "bias":
        net.part = shaken(Bias(WIDTH, 1, 1))
    elif how == "norm":
        net.part = LN2d()
    elif how == "batch norm":
        net.part = shaken(nn.BatchNorm2d(WIDTH))
    elif how == "hook":
        net.conv.register_forward_hook(lambda module, args, out: out * 2 + 1)
    elif how == "nhwc":
        net.part = nhwc(shaken(nn.LayerNorm(WIDTH)))
    return net.eval()


@pytest.mark.parametrize("how", ["bias", "norm", "batch norm", "hook", "nhwc"])
def test_verify_measures_what_reaches_the_activation(how: str) -> None:
    with pytest.raises(MaskLostError, match=r"1 of 2 masks no longer act \(conv: .* defective neurons are not"):
        dcn.verify(broken(how))
    dcn.verify(broken("nothing"))


def test_verify_sees_through_a_network_written_by_hand() -> None:
    def net(norm: nn.Module) -> nn.Module:
        layer = dcn.DefectiveConv2d(3, WIDTH, 3, padding=1, output_size=8, site=0, p=0.5)
        return nn.Sequential(layer, norm, nn.ReLU()).eval()

    images = torch.rand(2, *SIZE)
    dcn.verify(net(nn.Identity()), images)
    dcn.verify(net(Scale()), images)
    with pytest.raises(MaskLostError, match="not zero in front of the next activation, relu"):
        dcn.verify(net(shaken(nn.BatchNorm2d(WIDTH))), images)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: F.pad(x, (1, 1, 1, 1)).flip(2)[:, :4].relu(),
        lambda x: torch.cat([x, x + 1 - 1], 1).chunk(2, 1)[0].permute(0, 2, 3, 1).sigmoid(),
        lambda x: F.pixel_unshuffle(F.pixel_shuffle(-x * 2, 2), 2).reshape(x.shape[0], -1).tanh(),
        lambda x: F.interpolate(x, scale_factor=2).split([3, 5], 1)[1].relu_(),
    ],
)
def test_neurons_are_followed_wherever_they_are_moved(run: Callable[[Tensor], Tensor]) -> None:
    def net(before: nn.Module) -> nn.Module:
        layer = dcn.DefectiveConv2d(3, WIDTH, 3, padding=1, output_size=8, site=0, p=0.5)
        return nn.Sequential(layer, before, Do(run)).eval()

    dcn.verify(net(nn.Identity()), torch.rand(2, *SIZE))
    with pytest.raises(MaskLostError, match="not zero in front of the next activation"):
        dcn.verify(net(shaken(Bias(WIDTH, 1, 1))), torch.rand(2, *SIZE))

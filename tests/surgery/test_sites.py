"""Which convolution feeds which norm: one small network a rule of dcn_plugin/surgery/sites.py."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import timm.layers as tl
import torch
import torch.nn.functional as F
import torchvision
from timm.layers.norm import SimpleNorm2d
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import SiteError, TraceError
from dcn_plugin.surgery.norm_slots import is_norm
from dcn_plugin.surgery.sites import Site, find_sites
from dcn_plugin.surgery.trace import trace_model

SIZE = (3, 8, 8)


class Net(nn.Module):
    """Named layers and the function that runs them: the network is readable in the test."""

    def __init__(self, run: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def conv(inner: int = 3, outer: int = 4, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel, padding=kernel // 2, **options)


def bn(width: int = 4) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width)


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(*self.order)


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def sites(model: nn.Module, size: tuple[int, int, int] = SIZE) -> list[Site]:
    return find_sites(model, trace_model(model, size, is_norm=is_norm))


def pairs(model: nn.Module) -> dict[str, str]:
    """Owner of the mask -> its convolution."""
    found = sites(model)
    assert not [site.problem for site in found if site.problem]
    return {site.owner: site.conv for site in found}


def problems(model: nn.Module) -> dict[str, str]:
    return {site.owner: site.problem for site in sites(model) if site.problem}


# Rule 2: which norm belongs to which convolution.


@pytest.mark.parametrize(
    ("model", "slot"),
    [
        (chain(conv=conv(), norm=bn(), act=nn.ReLU()), "norm"),
        (chain(conv=conv(), act=nn.GELU(), norm=bn()), "norm"),
        (chain(conv=conv(), pool=nn.MaxPool2d(2), norm=bn()), "norm"),
        (chain(conv=conv(), norm=nn.GroupNorm(2, 4)), "norm"),
        (chain(conv=conv(), norm=tl.LayerNorm2d(4)), "norm"),
        (chain(conv=conv(), norm=torchvision.models.convnext.LayerNorm2d(4)), "norm"),
        (chain(conv=conv(), norm=tl.BatchNormAct2d(4)), "norm_act"),
        (chain(conv=conv(), norm=tl.GroupNormAct(4, num_groups=2)), "norm_act"),
        (chain(conv=conv(outer=6, groups=3), norm=bn(6)), "norm"),
        (chain(conv=conv(outer=3, groups=3), norm=bn(3)), "norm"),
        (chain(conv=tl.StdConv2d(3, 4, 3), norm=bn()), "norm"),
        (chain(conv=conv(), blur=tl.BlurPool2d(4), norm=bn()), "norm"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(type(layer).__name__ for layer in value),
)
def test_the_norm_behind_a_convolution_carries_its_mask(model: nn.Module, slot: str) -> None:
    assert pairs(model) == {"norm": "conv"}
    assert sites(model)[0].slot == slot


def test_a_norm_over_nhwc_or_tokens_belongs_to_the_convolution_it_only_reorders() -> None:
    nhwc = chain(conv=conv(), order=Permute(0, 2, 3, 1), norm=nn.LayerNorm(4))
    tokens = chain(conv=conv(), order=Tokens(), norm=nn.LayerNorm(4))
    assert pairs(nhwc) == pairs(tokens) == {"norm": "conv"}
    assert [(s.layout, s.shape) for s in (*sites(nhwc), *sites(tokens))] == [("NHWC", (4, 8, 8)), ("NLC", (4, 8, 8))]


def test_a_norm_over_tokens_behind_an_addition_belongs_to_no_convolution() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        tokens = net.conv(x).flatten(2).transpose(1, 2)
        return net.norm(tokens + net.mix(tokens))

    assert pairs(Net(run, conv=conv(), mix=nn.Linear(4, 4), norm=nn.LayerNorm(4))) == {"conv": "conv"}


def test_in_a_pre_activation_net_the_mask_acts_on_the_norm_of_the_sum() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x + net.conv1(F.relu(net.norm1(x)))
        return net.conv2(F.relu(net.norm2(x)))

    model = Net(run, stem=conv(), norm1=bn(), conv1=conv(4), norm2=bn(), conv2=conv(4))
    assert pairs(model) == {"norm1": "stem", "norm2": "conv1", "conv2": "conv2"}


def test_in_a_dense_net_the_norm_of_a_concatenation_belongs_to_its_last_convolution() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        first = net.conv0(x)
        second = net.conv1(F.relu(net.norm1(first)))
        return F.relu(net.norm2(torch.cat([first, second], 1)))

    model = Net(run, conv0=conv(), norm1=bn(), conv1=conv(4), norm2=bn(8))
    assert pairs(model) == {"norm1": "conv0", "norm2": "conv1"}
    assert sites(model)[1].shape == (8, 8, 8)


def test_two_norms_that_read_a_convolution_as_it_is_are_both_sites() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.conv(x)
        return net.norm1(x) + net.norm2(x)

    assert pairs(Net(run, conv=conv(), norm1=bn(), norm2=bn())) == {"norm1": "conv", "norm2": "conv"}


def test_a_norm_that_no_convolution_owns_can_be_asked_for_and_is_numbered_after_all_convolutions() -> None:
    model = chain(conv1=conv(), bn1=bn(), act=nn.ReLU(), bn2=bn(), conv2=conv(4, 5), bn3=bn(5))
    trace = trace_model(model, SIZE, is_norm=is_norm)
    usual, asked = find_sites(model, trace), find_sites(model, trace, unowned=True)
    assert [(site.owner, site.conv, site.ordinal) for site in usual] == [("bn1", "conv1", 0), ("bn3", "conv2", 1)]
    (other,) = [site for site in asked if site not in usual]
    assert (other.owner, other.conv, other.ordinal, other.shape) == ("bn2", "conv1", 2, (4, 8, 8))
    assert [site.owner for site in asked] == ["bn1", "bn2", "bn3"]


def test_a_norm_of_the_images_or_of_pooled_features_is_not_found_even_then() -> None:
    model = chain(bn0=bn(3), conv=conv(), bn1=bn(), pool=nn.AdaptiveAvgPool2d(1), bn2=bn())
    found = find_sites(model, trace_model(model, SIZE, is_norm=is_norm), unowned=True)
    assert [site.owner for site in found] == ["bn1"]


def test_a_parallel_convolution_into_the_same_norm_carries_no_mask_of_its_own() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.norm(net.left(x) + net.right(x))

    assert pairs(Net(run, left=conv(), right=conv(), norm=bn())) == {"norm": "right"}


def test_another_convolution_or_norm_ends_the_way_to_a_norm() -> None:
    model = chain(conv1=conv(), conv2=conv(4), norm1=bn(), act=nn.ReLU(), norm2=bn())
    assert pairs(model) == {"conv1": "conv1", "norm1": "conv2"}


def test_a_transposed_convolution_is_no_site_and_ends_the_way_to_a_norm() -> None:
    model = chain(conv=conv(), up=nn.ConvTranspose2d(4, 4, 2, 2), norm=bn())
    assert pairs(model) == {"conv": "conv"}


def test_a_tensor_written_through_a_view_of_it_carries_what_was_written() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 8, 8, 8)
        out[:, :4] = net.left(x)
        out[:, 4:].copy_(net.right(x))
        return net.norm(out)

    model = Net(run, left=conv(), right=conv(), norm=bn(8))
    assert pairs(model) == {"norm": "right"}
    assert sites(model)[0].shape == (8, 8, 8)


def test_in_place_activations_and_additions_keep_the_way_to_a_norm() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        out = net.conv1(x)
        out += net.conv2(x)
        view = out.view(1, 4, 8, 8)
        F.relu_(out)
        return net.norm(view)

    assert pairs(Net(run, conv1=conv(), conv2=conv(), norm=bn())) == {"norm": "conv2"}


# Rule 3: convolutions without a norm.


def test_a_convolution_without_norm_carries_its_own_mask() -> None:
    model = chain(conv1=conv(), act=nn.ReLU(), conv2=conv(4))
    assert pairs(model) == {"conv1": "conv1", "conv2": "conv2"}
    assert {site.slot for site in sites(model)} == {"conv"}


def test_of_a_separable_convolution_the_norm_belongs_to_the_pointwise_half() -> None:
    model = chain(depthwise=conv(outer=3, groups=3), pointwise=conv(kernel=1), norm=bn())
    assert pairs(model) == {"depthwise": "depthwise", "norm": "pointwise"}


@pytest.mark.parametrize("response", [nn.LocalResponseNorm(3), nn.CrossMapLRN2d(3), tl.grn.GlobalResponseNorm(4)])
def test_a_response_normalisation_is_no_norm_of_a_convolution(response: nn.Module) -> None:
    if isinstance(response, tl.grn.GlobalResponseNorm):
        response = nn.Sequential(Permute(0, 2, 3, 1), response, Permute(0, 3, 1, 2))
    assert pairs(chain(conv=conv(), act=nn.ReLU(), response=response)) == {"conv": "conv"}


# Rule 1: gates.


def test_a_squeeze_and_excite_gate_is_no_site() -> None:
    assert pairs(chain(conv=conv(), norm=bn(), se=tl.SqueezeExcite(4, rd_channels=2))) == {"norm": "conv"}


def test_a_gate_of_one_number_a_channel_is_no_site_whatever_makes_it() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.norm(net.conv(x))
        return x * F.relu(net.gate(x)).mean((2, 3), keepdim=True)

    assert pairs(Net(run, conv=conv(), norm=bn(), gate=conv(4))) == {"norm": "conv"}


def test_a_spatial_gate_is_no_site_also_when_it_is_upsampled_and_has_a_norm() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.norm(net.conv(x))
        gate = net.gate_norm(net.gate(F.avg_pool2d(x, 2)))
        return x * F.interpolate(torch.sigmoid(gate), scale_factor=2)

    assert pairs(Net(run, conv=conv(), norm=bn(), gate=conv(4), gate_norm=bn())) == {"norm": "conv"}


def test_an_activation_that_multiplies_by_its_own_sigmoid_is_no_gate() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.norm(net.conv(x))
        return x * torch.sigmoid(x)

    assert pairs(Net(run, conv=conv(), norm=bn())) == {"norm": "conv"}


def test_a_product_of_two_feature_maps_has_two_sites() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return F.relu6(net.left(x)) * net.right(x)

    assert pairs(Net(run, left=conv(), right=conv())) == {"left": "left", "right": "right"}


@pytest.mark.parametrize("fused", [True, False], ids=["scaled_dot_product", "softmax"])
def test_queries_keys_and_talking_heads_are_no_sites_but_values_are(fused: bool) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (net.q, net.k, net.v))
        if fused:
            return F.scaled_dot_product_attention(q, k, v)
        return net.heads((q @ k.transpose(-2, -1)).softmax(-1)) @ v

    heads = {} if fused else {"heads": conv(1, 1, 1)}
    assert pairs(Net(run, q=conv(), k=conv(), v=conv(), **heads)) == {"v": "v"}


# Rule 4: what is too small or not two-dimensional.


def test_an_output_of_one_pixel_carries_no_mask() -> None:
    model = chain(conv=conv(), norm=bn(), pool=nn.AdaptiveAvgPool2d(1), head=conv(4), head_norm=bn())
    assert pairs(model) == {"norm": "conv"}


def test_a_norm_behind_the_global_pool_leaves_the_mask_to_the_convolution() -> None:
    assert pairs(chain(conv=conv(), pool=nn.AdaptiveAvgPool2d(1), norm=bn())) == {"conv": "conv"}


def test_one_and_three_dimensional_convolutions_are_no_sites() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.conv(x)
        return net.deep(x.unsqueeze(1)).flatten(2) + net.flat(x.flatten(2)).mean()

    assert pairs(Net(run, conv=conv(), flat=nn.Conv1d(4, 4, 3), deep=nn.Conv3d(1, 2, 1))) == {"conv": "conv"}


# Rule 5: modules that run several times.


def test_a_module_called_twice_at_one_size_carries_one_mask() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        for _ in range(2):
            x = F.relu(net.norm(net.conv(x)))
        return x

    model = Net(run, stem=conv(), conv=conv(4), norm=bn())
    assert pairs(model) == {"stem": "stem", "norm": "conv"}
    net = dcn.defectify(model, "all", input_size=SIZE)
    dcn.verify(net)
    assert sum(isinstance(module, dcn.DefectMask2d) for module in net.modules()) == 2


@pytest.mark.parametrize("normed", [True, False])
def test_a_module_called_at_two_sizes_is_refused_by_name(normed: bool) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.norm(net.conv(x))
        return net.norm(net.conv(F.max_pool2d(x, 2)))

    model = Net(run, conv=conv(3, 3), norm=bn(3) if normed else nn.ReLU())
    owner = "norm" if normed else "conv"
    assert problems(model) == {
        owner: f"'{owner}' runs more than once, at 3x8x8 and at 3x4x4; a mask has one size",
    }
    with pytest.raises(SiteError, match="runs more than once, at 3x8x8 and at 3x4x4"):
        dcn.defectify(model, "all", input_size=SIZE)


def test_a_norm_that_also_runs_at_a_size_where_no_convolution_feeds_it_is_refused() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.norm(F.max_pool2d(net.norm(net.conv(x)), 2))

    assert "at 4x8x8 and at 4x4x4" in problems(Net(run, conv=conv(), norm=bn()))["norm"]


def test_a_convolution_with_a_norm_in_one_call_only_is_refused() -> None:
    # Its own mask would also act in front of the norm, where it makes another network.
    def run(net: Net, x: Tensor) -> Tensor:
        return net.conv(F.relu(net.norm(net.conv(x))))

    found = problems(Net(run, conv=conv(3, 3), norm=bn(3)))
    assert found == {"conv": "'conv' runs more than once, with a norm behind it and without"}


def test_a_module_under_two_names_is_one_site_by_its_first_name() -> None:
    shared = conv(3, 3)
    model = chain(conv1=shared, act=nn.ReLU(), conv2=shared)
    assert pairs(model) == {"conv1": "conv1"}


# What cannot carry a mask is refused by name.


@pytest.mark.parametrize(
    "norm",
    [
        tl.EvoNorm2dS0(4, group_size=2),
        tl.EvoNorm2dB0(4),
        tl.FilterResponseNormTlu2d(4),
        SimpleNorm2d(4),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_a_norm_without_a_place_for_a_mask_is_refused_by_name(norm: nn.Module) -> None:
    model = chain(conv=conv(), norm=norm)
    with pytest.raises(SiteError, match=rf"'norm' is a {type(norm).__name__}, which has no place for a mask"):
        dcn.defectify(model, "all", input_size=SIZE)


def test_a_subclass_with_its_own_arithmetic_is_refused_by_its_own_name() -> None:
    class Renorm(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    assert "is a Renorm" in problems(chain(conv=conv(), norm=Renorm(4)))["norm"]


def test_a_normalisation_called_as_a_function_is_refused_by_name() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return F.batch_norm(net.conv(x), torch.zeros(4), torch.ones(4))

    with pytest.raises(SiteError, match=r"batch_norm.* is called as a function"):
        dcn.defectify(Net(run, conv=conv()), "all", input_size=SIZE)


def test_a_convolution_called_as_a_function_is_refused_by_name() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight)

    with pytest.raises(SiteError, match=r"'dynamic' is called as a function, not through an nn.Conv2d"):
        dcn.defectify(chain(dynamic=Dynamic()), "all", input_size=SIZE)
    assert pairs(chain(dynamic=Dynamic(), norm=bn())) == {"norm": "dynamic"}


def test_a_layer_whose_forward_is_called_directly_is_refused_by_name() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.conv.forward(x)

    assert "called as a function" in problems(Net(run, conv=conv()))[""]


@pytest.mark.filterwarnings("ignore:.*torch.jit.:DeprecationWarning", "ignore:.*torch.jit.:FutureWarning")
def test_a_scripted_part_is_refused_by_name() -> None:
    model = chain(stem=conv(), part=torch.jit.script(chain(conv=conv(4), norm=bn())))
    assert "called as a function" in problems(model)[""]


# What runs, and what comes out.


def test_a_convolution_that_is_not_run_or_leads_nowhere_is_no_site() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        net.dead(x)
        return net.conv(x)

    assert pairs(Net(run, conv=conv(), dead=conv(), unused=conv())) == {"conv": "conv"}


@pytest.mark.parametrize("pack", [tuple, lambda out: dict(zip("ab", out, strict=True)), list])
def test_every_head_of_several_outputs_is_found(pack: Callable[..., object]) -> None:
    def run(net: Net, x: Tensor) -> object:
        x = net.conv(x)
        return pack([net.main(x), net.aux(x)])

    assert set(pairs(Net(run, conv=conv(), main=conv(4), aux=conv(4)))) == {"conv", "main", "aux"}


def test_an_auxiliary_head_that_runs_in_training_only_is_no_site() -> None:
    def run(net: Net, x: Tensor) -> object:
        x = net.conv(x)
        return (net.main(x), net.aux(x)) if net.training else net.main(x)

    assert set(pairs(Net(run, conv=conv(), main=conv(4), aux=conv(4)))) == {"conv", "main"}


def test_a_model_that_returns_no_tensor_of_its_own_is_a_named_error() -> None:
    with pytest.raises(TraceError, match="returned no tensor computed from its input"):
        sites(Net(lambda net, x: {"loss": float(net.conv(x).sum())}, conv=conv()))


def test_ordinals_count_every_convolution_that_runs_but_no_blur_filter() -> None:
    model = chain(conv1=conv(), blur=tl.BlurPool2d(4), se=tl.SqueezeExcite(4, rd_channels=2), conv2=conv(4), norm=bn())
    assert [(site.conv, site.ordinal) for site in sites(model)] == [("conv1", 0), ("conv2", 3)]


def test_a_convolution_of_a_constant_is_no_site_but_counts_in_the_ordinals() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.conv(x) + net.position(torch.ones(1, 3, 8, 8)) + net.last(x)

    model = Net(run, conv=conv(), position=conv(), last=conv())
    assert [(site.conv, site.ordinal) for site in sites(model)] == [("conv", 0), ("last", 2)]


def test_a_wrapper_changes_paths_and_nothing_else() -> None:
    inner = chain(conv=conv(), norm=bn())
    wrapped = dcn.Normalized(inner, (0.5,) * 3, (0.5,) * 3)
    assert pairs(wrapped) == {"model.norm": "model.conv"}
    assert pairs(nn.Sequential(nn.Sequential(inner))) == {"0.0.norm": "0.0.conv"}
    assert [site.ordinal for site in sites(wrapped)] == [site.ordinal for site in sites(inner)]


class SeveralReaders(nn.Module):
    """A convolution that several layers read."""

    def __init__(self, *norms: nn.Module, raw: bool = False) -> None:
        super().__init__()
        self.conv, self.norms, self.raw = nn.Conv2d(3, 8, 3), nn.ModuleList(norms), raw

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.seen = [norm(x) for norm in self.norms] + [x] * self.raw
        return torch.cat([signal.relu() for signal in self.seen], 1).mean((2, 3))


@pytest.mark.parametrize(
    "make", [lambda: nn.BatchNorm2d(8), lambda: nn.InstanceNorm2d(8, affine=True), lambda: nn.GroupNorm(2, 8)]
)
def test_every_norm_that_reads_a_convolution_as_it_is_has_its_mask(make) -> None:
    net = SeveralReaders(nn.BatchNorm2d(8), make())
    defective = dcn.defectify(net, "all", p=0.3, input_size=(3, 16, 16)).eval()
    dcn.verify(defective)
    defective(torch.rand(8, 3, 16, 16))
    first, second = ((signal == 0).all(0) for signal in defective.seen)
    assert torch.equal(first, second)
    assert 0.6 < float(first.float().mean()) < 0.8
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(dcn.undefectify(defective)(x), net.eval()(x))


def test_an_activation_beside_a_norm_is_refused() -> None:
    net = SeveralReaders(nn.BatchNorm2d(8), raw=True)
    with pytest.raises(SiteError, match=r"relu.* reads the convolution 'conv' beside the norm 'norms.0'"):
        dcn.defectify(net, "all", p=0.3, input_size=(3, 16, 16))

"""The mask, the layer that carries one, and normalisation inside the model."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import nn

from dcn_plugin import DefectiveConv2d, DefectMask2d, MaskSpec, Normalized, defectify
from dcn_plugin.errors import ImageRangeError, MaskShapeError, SpecError
from dcn_plugin.surgery.masked_conv import masked_conv_class, unmasked_conv_class

dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@given(st.booleans(), st.booleans(), dtypes, st.integers(0, 3), st.floats(0.1, 1))
@settings(max_examples=40)
def test_a_mask_zeroes_its_neurons_and_leaves_the_others_bit_equal(inplace, channels_last, dtype, batch, p) -> None:
    layer = DefectMask2d((5, 6, 7), MaskSpec(p), inplace=inplace)
    x = torch.randn(batch, 5, 6, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = x.to(memory_format=memory_format)
    expected = torch.where(layer.mask, x, torch.zeros((), dtype=dtype))
    out = layer(x)
    assert out.dtype is dtype and torch.equal(out, expected)
    assert out.is_contiguous(memory_format=memory_format)
    if batch:
        assert (out.data_ptr() == x.data_ptr()) is inplace


def test_the_gradient_is_the_mask_itself() -> None:
    for inplace in (False, True):
        layer = DefectMask2d((4, 5, 5), MaskSpec(0.4), inplace=inplace)
        x = torch.randn(3, 4, 5, 5, requires_grad=True)
        layer(x * 1).sum().backward()
        assert torch.equal(x.grad, layer.mask.float().expand_as(x))


@pytest.mark.parametrize("size", [(4, 5, 6), (4, 6, 5), (3, 5, 5), (1, 5, 5), (4, 1, 1)])
def test_an_activation_of_another_size_is_refused_by_name_and_never_broadcast(size) -> None:
    layer = DefectMask2d((4, 5, 5), MaskSpec())
    with pytest.raises(MaskShapeError, match=f"{'x'.join(map(str, size))} but its defect mask is 4x5x5"):
        layer(torch.zeros(2, *size))
    flat = DefectMask2d((1, 1, 1), MaskSpec(1))
    with pytest.raises(MaskShapeError):
        flat(torch.zeros(2, *size))


def message(layer: DefectMask2d, *shape: int) -> str:
    with pytest.raises(MaskShapeError) as caught:
        layer(torch.zeros(shape))
    return str(caught.value)


def test_the_message_about_a_size_names_both_ways_to_masks_of_another_size() -> None:
    layer = DefectMask2d((4, 5, 5), MaskSpec())
    layer.made_for = "3x10x10"
    text = message(layer, 2, 4, 6, 6)
    assert "feed images of 3x10x10" in text and "input_size=(C, H, W) of defectify()" in text and "img_size=" in text


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (2, 3, 5, 6)), ("NHWC", (2, 5, 6, 3)), ("NLC", (2, 30, 3))])
def test_the_message_about_channels_does_not_speak_of_images(layout, shape) -> None:
    text = message(DefectMask2d((4, 5, 6), MaskSpec(), layout=layout), *shape)
    assert "other channels" in text and "undefectify() the network before its channels are removed" in text
    assert "image" not in text and "size" not in text


def test_an_activation_without_a_batch_is_refused_with_what_is_missing() -> None:
    assert "feed a batch of images" in message(DefectMask2d((4, 5, 5), MaskSpec()), 4, 5, 5)


# Where autograd does not let a tensor be overwritten, it is not.


def hooked(model: nn.Module) -> nn.Module:
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
    return model


def small(**options) -> nn.Module:
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return defectify(nn.Sequential(*layers, nn.Flatten()), "all", p=0.5, input_size=(3, 8, 8), **options).eval()


def written_by_hand(norm: nn.Module | None) -> nn.Module:
    layer = DefectiveConv2d(3, 4, 3, output_size=6, site=0, p=0.5, norm=norm)
    return nn.Sequential(layer, nn.ReLU(), nn.Flatten()).eval()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        small,
        lambda: written_by_hand(None),
        lambda: written_by_hand(nn.BatchNorm2d(4)),
        lambda: written_by_hand(nn.Identity()),
        lambda: written_by_hand(nn.Sequential(nn.BatchNorm2d(4), nn.Sigmoid())),
        lambda: written_by_hand(nn.InstanceNorm2d(4)),
    ],
)
def test_full_backward_hooks_on_every_module_change_no_gradient(make, training) -> None:
    torch.manual_seed(0)
    plain = make().train(training)
    net = hooked(copy.deepcopy(plain))
    for model in (plain, net):
        for module in model.modules():
            if isinstance(module, DefectMask2d):
                module.inplace = module.inplace and model is net  # the plain one out of place: the oracle
    gradients = []
    for model in (plain, net):
        x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        model(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_without_hooks_the_mask_still_overwrites_what_a_norm_puts_out() -> None:
    net, seen = small(), []
    net[1].drop.register_forward_hook(lambda module, args, out: seen.append(out.data_ptr() == args[0].data_ptr()))
    net(torch.rand(1, 3, 8, 8))
    assert seen == [True]


def test_networks_that_share_weights_can_be_stacked_over_masks_alone() -> None:
    net, x = small(), torch.rand(2, 3, 8, 8)
    masks = {key: value for key, value in net.state_dict().items() if key.endswith("mask")}
    stacked = {key: torch.stack([value, ~value, value | True]) for key, value in masks.items()}
    together = torch.vmap(lambda own: torch.func.functional_call(net, own, (x,)))(stacked)
    for i, logits in enumerate(together):
        own = {key: value[i] for key, value in stacked.items()}
        assert torch.allclose(logits, torch.func.functional_call(net, own, (x,)), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own rules for jacfwd
@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd, torch.func.grad], ids=lambda f: f.__name__)
def test_derivatives_by_torch_func_are_those_of_backward(transform) -> None:
    net, x = small(), torch.rand(1, 3, 8, 8)
    expected = torch.autograd.functional.jacobian(lambda images: net(images).sum(), x)
    assert torch.allclose(transform(lambda images: net(images).sum())(x), expected, atol=1e-6)


@pytest.mark.parametrize("make", [small, lambda: written_by_hand(nn.BatchNorm2d(4))])
def test_gradient_checkpoints_with_hooks_are_bit_equal(make) -> None:
    net = make().train()
    x = torch.rand(2, 3, 8, 8).requires_grad_()
    for module in net.modules():  # statistics would be taken twice
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    net(x).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    torch.utils.checkpoint.checkpoint(hooked(net), x, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(net.parameters(), expected, strict=True))


# Arguments of other types.


def test_numbers_of_numpy_and_torch_are_taken() -> None:
    spec = MaskSpec(np.float32(0.5), seed=np.int64(3))
    assert spec == MaskSpec(torch.tensor(0.5), seed=3) and type(spec.p) is float and type(spec.seed) is int
    layer = DefectMask2d((np.int64(4), 5, 6), spec, site=np.int32(2))
    assert torch.equal(layer.mask, DefectMask2d((4, 5, 6), spec, site=2).mask)
    square = DefectiveConv2d(3, 4, 3, output_size=5, site=0)
    assert square.drop.shape == (4, 5, 5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DefectMask2d((4, 5, 5), 0.3),
        lambda: DefectMask2d((4, 5, 5), MaskSpec(), layout="HWC"),
        lambda: DefectMask2d((4, 5, 5), MaskSpec(), site="0"),
        lambda: DefectMask2d("455", MaskSpec()),
        lambda: DefectiveConv2d(3, 4, 3, output_size="ab", site=0),
        lambda: DefectiveConv2d(3, 4, 3, output_size=(5, 5), site=0, p="0.3"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused_by_name(make) -> None:
    with pytest.raises((SpecError, MaskShapeError), match="Allowed: "):
        make()


def test_whole_numbers_are_refused_by_name() -> None:
    with pytest.raises(ImageRangeError, match=r"torch.uint8.*floating-point"):
        DefectMask2d((4, 5, 5), MaskSpec())(torch.zeros(2, 4, 5, 5, dtype=torch.uint8))


@pytest.mark.parametrize(("layout", "order"), [("NHWC", (0, 2, 3, 1)), ("NLC", None)])
def test_other_layouts_mask_the_same_neurons(layout, order) -> None:
    spec = MaskSpec(0.4, seed=3)
    reference = DefectMask2d((4, 5, 6), spec, site=2)
    layer = DefectMask2d((4, 5, 6), spec, site=2, layout=layout)
    x = torch.randn(2, 4, 5, 6)
    tokens = x.permute(order) if order else x.flatten(2).transpose(1, 2)
    expected = reference(x)
    expected = expected.permute(order) if order else expected.flatten(2).transpose(1, 2)
    assert torch.equal(layer(tokens), expected)
    assert torch.equal(layer.kept(), reference.kept())


def test_the_mask_is_a_persistent_bool_buffer_and_no_parameter() -> None:
    layer = DefectMask2d((4, 5, 5), MaskSpec())
    assert list(layer.state_dict()) == ["mask"] and not list(layer.parameters())
    assert layer.half().mask.dtype is torch.bool and layer.double().mask.dtype is torch.bool


@given(st.sampled_from([None, "batch", "group"]), st.integers(1, 2), st.sampled_from([1, 2]), st.booleans())
@settings(max_examples=20)
def test_the_papers_layer_is_convolution_norm_mask(norm, stride, groups, training) -> None:
    norms = {None: None, "batch": nn.BatchNorm2d(6), "group": nn.GroupNorm(3, 6)}
    size = (8 // stride, 10 // stride)
    layer = DefectiveConv2d(
        4, 6, 3, stride=stride, padding=1, groups=groups, output_size=size, site=1, p=0.5, norm=norms[norm]
    ).train(training)
    x = torch.randn(2, 4, 8, 10)
    plain = copy.deepcopy(layer)
    z = nn.functional.conv2d(x, plain.weight, plain.bias, stride, 1, 1, groups)
    expected = (z if norm is None else plain.norm(z)) * layer.drop.mask
    assert torch.equal(layer(x), expected)
    assert tuple(expected.shape[1:]) == (6, *size) and bool((expected == 0).any())


def test_batch_statistics_are_taken_over_all_neurons_the_masked_ones_too() -> None:
    layer = DefectiveConv2d(3, 4, 3, padding=1, output_size=(8, 8), site=0, p=0.3, norm=nn.BatchNorm2d(4)).train()
    plain = nn.BatchNorm2d(4).train()
    x = torch.randn(5, 3, 8, 8)
    layer(x)
    plain(nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    assert torch.equal(layer.norm.running_mean, plain.running_mean)
    assert torch.equal(layer.norm.running_var, plain.running_var)


def test_layers_with_different_sites_have_different_masks() -> None:
    first, second = (DefectiveConv2d(3, 8, 3, output_size=(9, 9), site=site) for site in (0, 1))
    assert not torch.equal(first.drop.mask, second.drop.mask)


def test_the_papers_layer_takes_holes_and_patterns_too() -> None:
    layer = DefectiveConv2d(3, 8, 3, output_size=(9, 9), site=0, p=0.5, mode="nm", span=4)
    assert layer.drop.kept().view(2, 4, 9, 9).sum(1).eq(2).all()


@pytest.mark.parametrize("base", [nn.Conv2d, StdConv2d, ScaledStdConv2d])
def test_a_convolution_class_with_a_mask_survives_copy_and_pickle(base) -> None:
    conv = base(3, 5, 3, padding=1)
    plain = copy.deepcopy(conv)
    conv.__class__ = masked_conv_class(base)
    conv.drop = DefectMask2d((5, 6, 6), MaskSpec(0.5), inplace=True)
    x = torch.randn(2, 3, 6, 6)
    expected = plain(x) * conv.drop.mask
    for again in (conv, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(again(x), expected) and isinstance(again, base)
        assert unmasked_conv_class(type(again)) is base
    assert masked_conv_class(base) is masked_conv_class(base)


def test_normalized_takes_images_between_0_and_1() -> None:
    model = Normalized(nn.Identity(), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    x = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(x[:, c] - m) / s for c, (m, s) in enumerate([(0.5, 0.1), (0.4, 0.2), (0.3, 0.3)])], 1)
    assert torch.allclose(model(x), expected)
    assert not model.state_dict()  # the constants belong to the model's definition, not to its weights


def test_a_network_in_half_precision_is_normalised_with_constants_in_float32() -> None:
    network = torch.nn.Conv2d(3, 4, 3)
    images = torch.rand(2, 3, 8, 8)
    model = Normalized(copy.deepcopy(network).bfloat16(), [0.5] * 3, [0.25] * 3)
    expected = Normalized(network, [0.5] * 3, [0.25] * 3)(images)
    assert torch.allclose(model(images.bfloat16()).float(), expected, atol=0.1)


@pytest.mark.parametrize("x", [torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, 4)])
def test_normalized_refuses_bytes_and_other_channel_counts_by_name(x) -> None:
    with pytest.raises(ImageRangeError, match="floating-point images"):
        Normalized(nn.Identity(), mean=(0.5,) * 3, std=(0.1,) * 3)(x)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.1, 0.1)), ((0.5,), (0.0,)), ((0.5,), (-1.0,))])
def test_normalisation_constants_that_make_no_sense_are_refused(mean, std) -> None:
    with pytest.raises(SpecError, match="positive std"):
        Normalized(nn.Identity(), mean, std)

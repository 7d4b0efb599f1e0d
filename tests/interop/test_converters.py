"""Rows of the interop matrix: tools that replace modules or average weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, freeze_batch_norm_2d, unfreeze_batch_norm_2d
from timm.utils import ModelEmaV2, ModelEmaV3
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dcn_plugin as dcn
from dcn_plugin.errors import MaskLostError
from tests.interop.probe import IMAGES, NETS, SIZE, assert_masks_act, make, watching

Convert = Callable[[Any], Any]

# What keeps the mask. split-BN comes back in train mode, whatever it was before.
KEEPERS: dict[str, Convert] = {
    "timm SyncBN": convert_sync_batchnorm,
    "split-BN": lambda model: convert_splitbn_model(model, num_splits=2).eval(),
    "freeze": freeze_batch_norm_2d,
    "freeze, unfreeze": lambda model: unfreeze_batch_norm_2d(freeze_batch_norm_2d(model)).eval(),
}
# The class of a plain batch norm that each tool leaves behind.
PLAIN = {
    "timm SyncBN": "SyncBatchNorm",
    "split-BN": "SplitBatchNorm2d",
    "freeze": "FrozenBatchNorm2d",
    "freeze, unfreeze": "BatchNorm2d",
}


def logits(model: nn.Module) -> Tensor:
    out = model(IMAGES)
    return out if isinstance(out, Tensor) else out[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("tool", KEEPERS)
@pytest.mark.parametrize("name", NETS)
def test_batch_norm_converters_of_timm_keep_the_mask(tool: str, name: str) -> None:
    model = make(name)
    converted = KEEPERS[tool](copy.deepcopy(model))
    out = assert_masks_act(converted)
    # A frozen batch norm computes scale and shift in another order.
    assert torch.allclose(out, logits(model), atol=1e-6) if tool == "freeze" else torch.equal(out, logits(model))
    dcn.verify(converted)


@pytest.mark.parametrize("tool", ["split-BN", "freeze", "freeze, unfreeze"])
@pytest.mark.parametrize("name", ["batch norm", "every slot"])
def test_a_converted_network_trains_with_its_masks(tool: str, name: str) -> None:
    converted = KEEPERS[tool](make(name)).train()
    assert_masks_act(converted, torch.cat([IMAGES, -IMAGES]))


@pytest.mark.parametrize("tool", KEEPERS)
@pytest.mark.parametrize("name", NETS)
def test_undefectify_after_a_converter_gives_what_the_converter_makes_of_the_plain_network(
    tool: str, name: str
) -> None:
    model = make(name, p=1.0)
    converted = KEEPERS[tool](dcn.undefectify(model))
    restored = dcn.undefectify(KEEPERS[tool](copy.deepcopy(model)))
    assert repr(restored) == repr(converted)
    assert [type(m) for m in restored.modules()] == [type(m) for m in converted.modules()]
    assert restored.state_dict().keys() == converted.state_dict().keys()
    assert torch.equal(logits(restored), logits(converted))
    if name == "batch norm":
        norm = restored.get_submodule(dcn.defect_spec(model).sites[0].name)
        assert type(norm).__name__ == PLAIN[tool]


@pytest.mark.parametrize("tool", KEEPERS)
def test_a_converted_network_can_be_made_defective(tool: str) -> None:
    model = make("batch norm")
    converted = KEEPERS[tool](dcn.undefectify(model))
    again = dcn.defectify(converted, "all", 0.4, input_size=SIZE, seed=3)
    assert dcn.defect_spec(again) == dcn.defect_spec(model)
    assert torch.allclose(assert_masks_act(again), logits(model), atol=1e-6)


@pytest.mark.parametrize("name", ["batch norm", "fused norm", "every slot"])
def test_torchs_own_sync_batch_norm_loses_the_mask_and_verify_says_so(name: str) -> None:
    model = make(name)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    with watching(converted) as sightings:
        converted(IMAGES)
    assert sightings.loud()
    with pytest.raises(MaskLostError, match=r"runs without calling it.*Fix: .*timm.layers.convert_sync_batchnorm"):
        dcn.verify(converted)
    assert "SyncBatchNorm" in {type(module).__name__ for module in dcn.undefectify(converted).modules()}


def test_re_parameterisation_loses_the_masks_of_its_branches_and_verify_says_so() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("repvgg_a0", num_classes=5, drop_path_rate=0.0)
    model = dcn.defectify(plain, "bottom", 0.4, input_size=SIZE).eval()
    dcn.verify(model)
    fused = reparameterize_model(model)
    assert not dcn.is_defective(fused)
    with pytest.raises(MaskLostError, match="its mask is gone"):
        dcn.verify(fused)
    assert torch.allclose(fused.stem(IMAGES), plain.eval().stem(IMAGES), atol=1e-4)
    assert not torch.allclose(fused.stem(IMAGES), model.stem(IMAGES), atol=1e-1)  # type: ignore[operator]
    # The way round: fuse first, then make the plain convolutions that are left defective.
    after = dcn.defectify(reparameterize_model(plain), "all", 0.4, input_size=SIZE)
    assert_masks_act(after)


def test_folding_a_norm_into_its_convolution_loses_the_mask_and_verify_says_so() -> None:
    model: Any = make("batch norm")
    model.conv1[0] = fuse_conv_bn_eval(model.conv1[0], model.conv1[1])
    model.conv1[1] = nn.Identity()
    with pytest.raises(MaskLostError, match=r"conv1.1: its mask is gone"):
        dcn.verify(model)


# ------------------------------------------------------------------------------------------- averages


def step(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)


AVERAGES: dict[str, Callable[[nn.Module], Any]] = {
    "ModelEmaV2": lambda model: ModelEmaV2(model, decay=0.5),
    "ModelEmaV3": lambda model: ModelEmaV3(model, decay=0.5),
    "ModelEmaV3, one by one": lambda model: ModelEmaV3(model, decay=0.5, foreach=False),
    "ModelEmaV3, no buffers": lambda model: ModelEmaV3(model, decay=0.5, exclude_buffers=True),
    "AveragedModel": AveragedModel,
    "AveragedModel, EMA": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)),
    "AveragedModel, EMA, buffers": lambda model: AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True
    ),
}


@pytest.mark.parametrize("tool", AVERAGES)
@pytest.mark.parametrize("name", ["batch norm", "every slot"])
def test_weight_averages_keep_the_mask_as_it_is(tool: str, name: str) -> None:
    model = make(name)
    start = logits(model)
    average = AVERAGES[tool](model)
    for _ in range(3):
        step(model)
        average.update_parameters(model) if isinstance(average, AveragedModel) else average.update(model)
    masks = {key: value for key, value in model.state_dict().items() if value.dtype == torch.bool}
    assert all(torch.equal(value, average.module.state_dict()[key]) for key, value in masks.items())
    out = assert_masks_act(average.module.eval(), backward=False)
    assert not torch.equal(out, start) and not torch.equal(out, logits(model))
    dcn.verify(average.module)


def test_a_plain_average_over_buffers_refuses_a_mask_on_its_own() -> None:
    model = make("every slot")
    average = AveragedModel(model, use_buffers=True)
    average.update_parameters(model)  # the first one copies
    with pytest.raises(NotImplementedError, match="bool"):
        average.update_parameters(model)


# ---------------------------------------------------------------------------- parametrised and pruned


def weight_norm(conv: nn.Module) -> None:
    parametrizations.weight_norm(conv)


def spectral_norm(conv: nn.Module) -> None:
    parametrizations.spectral_norm(conv)


@pytest.mark.parametrize("tool", [weight_norm, spectral_norm])
@pytest.mark.parametrize("name", ["batch norm", "no norm"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_parametrised_weights_and_masks_stack_in_either_order(tool: Convert, name: str, order: str) -> None:
    site = dcn.defect_spec(make(name)).sites[0]
    torch.manual_seed(1)
    if order == "before":
        plain = dcn.undefectify(make(name))
        tool(plain.get_submodule(site.conv))
        model = dcn.defectify(plain, "all", 0.4, input_size=SIZE, seed=3)
    else:
        model = make(name)
        tool(model.get_submodule(site.conv))
    out = assert_masks_act(model)
    assert tool is spectral_norm or torch.allclose(out, logits(make(name)), atol=1e-5)
    dcn.verify(model)
    assert torch.equal(assert_masks_act(copy.deepcopy(model)), out)

    restored = dcn.undefectify(model)
    conv = restored.get_submodule(site.conv)
    assert parametrize.is_parametrized(conv)
    assert torch.equal(conv.weight, model.get_submodule(site.conv).weight)  # type: ignore[arg-type]
    assert torch.isfinite(logits(restored)).all()
    # Only here: torch takes the property away from the class, which copies of one module share.
    parametrize.remove_parametrizations(model.get_submodule(site.conv), "weight")
    assert torch.allclose(assert_masks_act(model), out, atol=1e-5)
    dcn.verify(model)
    assert type(dcn.undefectify(model).get_submodule(site.conv)) is nn.Conv2d


class Conv2dTwice(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_parametrised_convolution_of_another_class_keeps_its_own_forward() -> None:
    plain: Any = nn.Sequential(Conv2dTwice(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1))
    weight_norm(plain[0])
    model = dcn.defectify(plain, "all", 0.4, input_size=SIZE)
    assert_masks_act(model)
    assert torch.equal(dcn.undefectify(model)(IMAGES), plain(IMAGES))
    parametrize.remove_parametrizations(model[0], "weight")  # type: ignore[index]
    assert_masks_act(model)
    restored: Any = dcn.undefectify(model)
    assert type(restored[0]) is Conv2dTwice
    assert torch.allclose(restored(IMAGES), plain(IMAGES), atol=1e-5)


@pytest.mark.parametrize("name", ["batch norm", "no norm"])
def test_pruned_weights_and_masks_stack(name: str) -> None:
    model = make(name)
    site = dcn.defect_spec(model).sites[0]
    conv = model.get_submodule(site.conv)
    prune.l1_unstructured(conv, "weight", 0.5)
    out = assert_masks_act(model)
    assert not torch.equal(out, logits(make(name)))
    dcn.verify(model)
    prune.remove(conv, "weight")
    assert torch.equal(assert_masks_act(model), out)
    dcn.verify(model)
    assert type(dcn.undefectify(model).get_submodule(site.conv)) is nn.Conv2d

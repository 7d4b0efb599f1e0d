"""Rows of the interop matrix: tools that put modules around layers, replace them, or keep weights elsewhere.

The modules of this file have the structure of those that the libraries build, so that what they do to a mask is tested
without them; where a library is installed, it is tested itself (``needs`` says which version was looked at).
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import CheckpointError, MaskLostError, MaskStateError, NotDefectiveError, SiteError, TraceError
from tests.interop.probe import IMAGES, SIZE, assert_masks_act, make, needs
from tests.interop.test_by_hand import ByHand
from tests.nets import SmallNet

SMALL = IMAGES[:, :, :16, :16].contiguous()


class Adapter(nn.Module):
    """What peft 0.21.2 puts in the place of a convolution for LoHa and LoKr: the convolution, and one added to it."""

    def __init__(self, base_layer: nn.Conv2d) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.delta = nn.Parameter(torch.full_like(base_layer.weight, 0.01))

    def get_base_layer(self) -> nn.Module:
        return self.base_layer

    def forward(self, x: Tensor) -> Tensor:
        base = self.base_layer
        return base(x) + torch.nn.functional.conv2d(x, self.delta, None, base.stride, base.padding)


class Adapted(nn.Module):
    """The two levels that ``peft.get_peft_model`` puts around a network."""

    def __init__(self, network: nn.Module, *layers: str) -> None:
        super().__init__()
        for layer in layers:
            network.set_submodule(layer, Adapter(network.get_submodule(layer)))  # type: ignore[arg-type]
        self.base_model = nn.ModuleDict({"model": network})

    def forward(self, x: Tensor) -> Any:
        return self.base_model["model"](x)


class QuantizedConv2d(nn.Conv2d):
    """What optimum-quanto 0.2.7 puts in the place of every instance of nn.Conv2d, whatever its subclass adds."""


def quantized(network: nn.Module, *exclude: str) -> nn.Module:
    for path, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d) and path not in exclude:
            options = (layer.kernel_size, layer.stride, layer.padding)
            conv = QuantizedConv2d(layer.in_channels, layer.out_channels, *options).eval()  # type: ignore[arg-type]
            conv.weight, conv.bias = layer.weight, layer.bias
            network.set_submodule(path, conv)
    return network


# Adapters


@pytest.mark.parametrize("levels", [True, False], ids=["inside PeftModel", "bare"])
def test_an_adapter_behind_a_mask_is_noticed_where_the_convolution_carries_it(levels: bool) -> None:
    network = make("no norm")
    adapted = Adapted(network, "features.0")
    with pytest.raises(
        MaskLostError,
        match=r"1 of 2 masks.*features.0: \d+ defective neurons .* tests.Adapter that stands.*undefectify",
    ):
        dcn.verify(adapted if levels else network)
    nn.init.zeros_(adapted.base_model["model"].features[0].delta)  # type: ignore[union-attr, arg-type]
    dcn.verify(adapted)


class Bypass(Adapter):
    """What peft 0.21.2 puts in the place of a convolution for HRA: it convolves itself, with the layer's weights."""

    def forward(self, x: Tensor) -> Tensor:
        base = self.base_layer
        return torch.nn.functional.conv2d(x, base.weight, base.bias, base.stride, base.padding)


def test_an_adapter_that_leaves_its_layer_out_is_noticed() -> None:
    network: Any = make("no norm")
    network.features[0] = Bypass(network.features[0])
    with pytest.raises(MaskLostError, match=r"1 of 2 masks.*features.0: its layer is never run"):
        dcn.verify(network)


def test_an_adapter_in_front_of_a_norm_leaves_its_mask_alone() -> None:
    dcn.verify(Adapted(make(), "conv1.3", "layer1.0.conv1"))


def test_an_adapter_is_noticed_in_a_network_written_by_hand_that_was_never_seen_before() -> None:
    with pytest.raises(MaskLostError, match=r"1 of 2 masks.*base_model.model.conv2: "):
        dcn.verify(Adapted(ByHand().eval(), "conv2"), SMALL)


class Tuple(nn.Module):
    """Puts out more than its layer, and no activation of its size."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x).flatten(1)


class Behind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x).flatten(1)).sum(1)


def test_what_stands_around_a_layer_has_to_put_out_its_neurons() -> None:
    network = dcn.defectify(Behind(), "all", input_size=SIZE)
    network.conv = Tuple(network.conv)  # type: ignore[assignment, arg-type]
    with pytest.raises(MaskLostError, match=r"a tests.Tuple stands around its layer, and puts out nothing of its size"):
        dcn.verify(network)


def test_a_module_around_a_part_of_the_network_is_no_concern_of_its_masks() -> None:
    class Around(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> Any:
            return self.part(x) + 1

    network = make("no norm")
    network.features = Around(network.features)  # type: ignore[assignment, arg-type]
    dcn.verify(network)
    net = ByHand().eval()
    dcn.verify(net, SMALL)
    dcn.verify(nn.Sequential(nn.Identity(), net), SMALL)


class Own(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_tool_that_builds_a_second_masked_convolution_is_refused_by_name() -> None:
    # LoRA of peft 0.21.2: type(base_layer)(in_features, r, kernel_size, ...)
    for conv in (nn.Conv2d(3, 4, 3), Own(3, 4, 3)):
        layer = dcn.defectify(nn.Sequential(conv, nn.ReLU()), "all", input_size=SIZE)[0]
        with pytest.raises(SiteError, match=r"LoRA and DoRA.*undefectify"):
            type(layer)(3, 2, 3)
        assert type(pickle.loads(pickle.dumps(layer))) is type(copy.deepcopy(layer)) is type(layer)


def test_a_checkpoint_of_a_peft_model_says_what_it_is_to_a_bare_network(tmp_path: Path) -> None:
    path, adapted = tmp_path / "net.safetensors", Adapted(make(), "conv1.3")
    dcn.save_checkpoint(adapted, path)
    for network in (make(), dcn.undefectify(make())):
        with pytest.raises(CheckpointError, match=r"holds a PeftModel.*get_peft_model.*merge_and_unload"):
            dcn.load_checkpoint(path, network)
    twin = dcn.load_checkpoint(path, Adapted(make(seed=4), "conv1.3"))
    assert torch.equal(twin(IMAGES), adapted(IMAGES))
    dcn.verify(twin)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig"])
def test_peft_behind_a_mask_is_noticed_and_in_front_of_a_norm_it_is_fine(kind: str) -> None:
    peft = needs("peft")
    config = getattr(peft, kind)(target_modules=["features.0"], init_weights=False)
    with pytest.raises(MaskLostError, match=r"features.0: \d+ defective neurons .* peft.Conv2d that stands"):
        dcn.verify(peft.get_peft_model(make("no norm"), config).eval())
    adapted = peft.get_peft_model(make(), getattr(peft, kind)(target_modules=["conv1.3"], init_weights=False)).eval()
    dcn.verify(adapted)
    expected = adapted(IMAGES)
    merged = adapted.merge_and_unload()
    assert torch.allclose(assert_masks_act(merged, backward=False), expected, rtol=1e-4, atol=1e-4)
    dcn.verify(merged)


@pytest.mark.slow
def test_peft_lora_is_refused_by_name_and_hra_is_noticed() -> None:
    peft = needs("peft")
    with pytest.raises(MaskLostError, match=r"features.0: its layer is never run"):
        dcn.verify(peft.get_peft_model(make("no norm"), peft.HRAConfig(target_modules=["features.0"])).eval())
    with pytest.raises(SiteError, match="LoRA and DoRA"):
        peft.get_peft_model(make("no norm"), peft.LoraConfig(target_modules=["features.0"]))
    adapted = peft.get_peft_model(make(), peft.LoraConfig(target_modules=["conv1.3"], init_lora_weights=False)).eval()
    dcn.verify(adapted)


# Replaced subclasses


def test_a_replaced_convolution_takes_its_mask_along_and_that_is_noticed() -> None:
    with pytest.raises(
        MaskLostError, match=r"1 of 2 masks.*features.3: its mask is gone; its layer is of class QuantizedConv2d"
    ):
        dcn.verify(quantized(make("no norm"), "features.0"))
    dcn.verify(quantized(make()))  # masks behind norms stay


SIGHTS: dict[str, Callable[[nn.Module], object]] = {
    "verify": lambda net: dcn.verify(net, SMALL),
    "summary": dcn.summary,
}


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize(
    "travel",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), lambda net: nn.Sequential(nn.Identity(), net)],
    ids=["deepcopy", "pickle", "inside another"],
)
def test_a_network_written_by_hand_knows_its_masks_once_it_was_seen(sight: str, travel: Any) -> None:
    net = ByHand().eval()
    SIGHTS[sight](net)
    net = travel(net)
    dcn.verify(net, SMALL)
    quantized(net, "conv2", "1.conv2")
    for _ in range(2):  # and is not told otherwise by what it sees then
        with pytest.raises(
            MaskLostError, match=r"1 of 2 masks.*conv1: its mask is gone; its layer is of class QuantizedConv2d"
        ):
            dcn.verify(net, SMALL)
        dcn.summary(net)
    with pytest.raises(MaskLostError, match=r"2 of 2 masks"):
        dcn.verify(quantized(net), SMALL)


def test_the_layers_of_a_network_written_by_hand_can_be_stated() -> None:
    net = quantized(ByHand().eval(), "conv2")
    with pytest.raises(
        MaskLostError, match=r"1 of 2 masks.*conv1: its mask is gone; its layer is of class QuantizedConv2d"
    ):
        dcn.verify(net, SMALL, layers=("conv1", "conv2"))
    with pytest.raises(MaskLostError, match=r"1 of 2 masks.*conv7: its mask is gone, and its layer too"):
        dcn.verify(net, SMALL, layers=("conv2", "conv7"))
    dcn.verify(net, SMALL, layers=("conv2",))
    with pytest.raises(MaskLostError, match=r"1 of 1 masks.*conv2"):
        dcn.verify(quantized(net), SMALL)
    with pytest.raises(NotDefectiveError):
        dcn.verify(quantized(ByHand().eval()), SMALL)  # neither seen nor stated


@pytest.mark.slow
def test_quanto_takes_the_masks_of_convolutions_and_that_is_noticed() -> None:
    quanto = needs("optimum.quanto")
    network = make("no norm")
    quanto.quantize(network, weights=quanto.qint8, exclude="features.0")
    quanto.freeze(network)
    with pytest.raises(MaskLostError, match=r"1 of 2 masks.*features.3: its mask is gone"):
        dcn.verify(network)
    network = make()
    expected = assert_masks_act(network, backward=False)
    quanto.quantize(network, weights=quanto.qint8)
    quanto.freeze(network)
    dcn.verify(network)
    assert torch.allclose(assert_masks_act(network, backward=False), expected, atol=0.05)


# Weights elsewhere


class Offload:
    """What accelerate 1.15.0 leaves on a module whose weights it brings for each call, and takes away again."""

    offload = True

    def __init__(self, module: nn.Module, *, buffers: bool) -> None:
        kinds = [module._parameters, module._buffers] if buffers else [module._parameters]
        self.tensors = [(kind, dict(kind)) for kind in kinds]
        self.forward, module.forward = module.forward, self.call
        self.take()

    def take(self) -> None:
        for kind, tensors in self.tensors:
            kind.update({name: _on_meta(tensor) for name, tensor in tensors.items()})  # type: ignore[arg-type]

    def call(self, *args: Any) -> Any:
        for kind, tensors in self.tensors:
            kind.update(tensors)  # type: ignore[arg-type]
        try:
            return self.forward(*args)
        finally:
            self.take()


def _on_meta(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


def offloaded(network: nn.Module, *, buffers: bool) -> nn.Module:
    for module in network.modules():
        if not list(module.children()):
            module._hf_hook = Offload(module, buffers=buffers)  # type: ignore[assignment]
    return network


def test_a_network_with_offloaded_weights_is_verified() -> None:
    network = make()
    expected = network(IMAGES)
    offloaded(network, buffers=False)
    dcn.verify(network)
    dcn.verify(network, IMAGES)
    assert torch.equal(network(IMAGES), expected)
    mask = next(m for m in network.modules() if isinstance(m, dcn.DefectMask2d))
    mask.mask.logical_not_()
    with pytest.raises(MaskLostError, match="other masks"):
        dcn.verify(network)


def test_offloaded_masks_are_named_and_nothing_is_materialised() -> None:
    with pytest.raises(TraceError, match=r"masks of this \w+ are offloaded.*remove_hook_from_submodules") as caught:
        dcn.verify(offloaded(make(), buffers=True))
    assert "to_empty" not in str(caught.value)


def test_a_named_model_is_built_without_weights_and_takes_them_later() -> None:
    options = {"width": 4, "img_size": 16}
    whole = timm.create_model("defective_resnet18_cifar", **options).eval()
    with torch.device("meta"):
        empty = timm.create_model("defective_resnet18_cifar", **options).eval()
    assert {m.mask.device.type for m in empty.modules() if isinstance(m, dcn.DefectMask2d)} == {"cpu"}
    assert dcn.defect_spec(empty) == dcn.defect_spec(whole)
    empty.load_state_dict(whole.state_dict(), assign=True)
    dcn.verify(empty)
    assert torch.equal(empty(SMALL), whole(SMALL))


def test_masks_that_a_loader_put_in_place_act_and_are_named_as_other_masks() -> None:
    network, other = make(), make(seed=4)
    for module, source in zip(network.modules(), other.modules(), strict=True):
        module._buffers.update(source._buffers)  # as accelerate's set_module_tensor_to_device does
    with pytest.raises(
        MaskLostError, match=r"\d+ of \d+ masks act, but are other masks.*load_state_dict\(model\."
    ) as caught:
        dcn.verify(network)
    assert "no longer act" not in str(caught.value)
    network.load_state_dict(network.state_dict())  # the fix of the message
    dcn.verify(network)


@pytest.mark.slow
def test_accelerate_offloads_and_dispatches(tmp_path: Path) -> None:
    accelerate = needs("accelerate")
    network = make()
    expected = network(IMAGES)
    path = str(tmp_path / "net.safetensors")  # accelerate 1.15.0 fails on a Path
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    dcn.verify(accelerate.cpu_offload(copy.deepcopy(network), execution_device="cpu"))
    with pytest.raises(TraceError, match="offloaded"):
        dcn.verify(accelerate.cpu_offload(copy.deepcopy(network), execution_device="cpu", offload_buffers=True))
    with pytest.raises(MaskLostError, match="are other masks"):
        dcn.verify(accelerate.load_checkpoint_and_dispatch(make(seed=4), path, {"": "cpu"}))
    with accelerate.init_empty_weights():
        empty = dcn.defectify(SmallNet(), input_size=SIZE)
    assert all(mask.device.type == "cpu" for key, mask in empty.state_dict().items() if key.endswith("drop.mask"))
    loaded = accelerate.load_checkpoint_and_dispatch(make(), path, {"": "cpu"})
    dcn.verify(loaded)
    assert torch.equal(loaded(IMAGES), expected)


# Masks as numbers


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_masks_that_became_the_numbers_0_and_1_are_masks(dtype: torch.dtype, assign: bool) -> None:
    # timm's avg_checkpoints.py averages in float64 and writes float32, masks included.
    for network, other in ((make(), make(seed=4)), (ByHand().eval(), copy.deepcopy(ByHand()).eval())):
        state = {k: v.to(dtype) if v.dtype == torch.bool else v for k, v in network.state_dict().items()}
        other.load_state_dict(state, assign=assign)
        assert {m.mask.dtype for m in other.modules() if isinstance(m, dcn.DefectMask2d)} == {torch.bool}
        dcn.verify(other, SMALL if isinstance(other, ByHand) else IMAGES)


def test_an_average_over_different_masks_is_refused_and_nothing_is_loaded() -> None:
    network, other = make(), make(seed=4)
    pairs = zip(network.state_dict().items(), other.state_dict().values(), strict=True)
    state = {key: (a.double() + b.double()) / 2 for (key, a), b in pairs}
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(MaskStateError, match=r"other numbers than 0 and 1.*average"):
        network.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

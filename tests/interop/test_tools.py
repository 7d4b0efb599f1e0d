"""Rows of the interop matrix: tools that quantise, shard, explain, or count operations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import MaskShapeError
from tests.interop.probe import (
    IMAGES,
    assert_glass_is_silent,
    assert_masks_act,
    kept,
    make,
    needs,
    unmasked,
    watching,
)

ROOMY = 0.15  # 8 bits for numbers of the size of 2 to 4


def assert_quantized_is_silent_and_near(quantized: Callable[[Tensor], Any], glass: nn.Module) -> None:
    outputs = tuple(out.dequantize() if out.is_quantized else out for out in quantized(IMAGES))
    assert_glass_is_silent(glass, outputs)
    near = [torch.allclose(a, b, atol=ROOMY) for a, b in zip(outputs, glass(IMAGES), strict=True)]
    same = [torch.equal(a, b) for a, b in zip(outputs, glass(IMAGES), strict=True)]
    assert all(near) and not any(same)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # torch's own
def test_fx_quantisation_keeps_masked_neurons_at_zero() -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    def quantized(network: nn.Module) -> nn.Module:
        prepared = prepare_fx(copy.deepcopy(network), get_default_qconfig_mapping("x86"), (IMAGES,))
        prepared(IMAGES)
        return convert_fx(prepared)

    glass = make("every slot")
    assert_quantized_is_silent_and_near(quantized(glass), glass)
    with pytest.raises(AssertionError):
        assert_quantized_is_silent_and_near(quantized(unmasked(glass)), glass)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_pt2e_quantisation_keeps_masked_neurons_at_zero() -> None:
    steps = needs("torchao.quantization.pt2e.quantize_pt2e")
    x86 = needs("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    glass = make("every slot")
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    exported = torch.export.export(copy.deepcopy(glass), (IMAGES,)).module()
    prepared = steps.prepare_pt2e(exported, quantizer)
    prepared(IMAGES)
    assert_quantized_is_silent_and_near(steps.convert_pt2e(prepared), glass)


@pytest.mark.slow
def test_torchao_quantises_the_weights_of_linear_layers_and_leaves_masks_alone() -> None:
    quantization = needs("torchao.quantization")
    network = make()
    expected = assert_masks_act(network, backward=False)
    quantization.quantize_(network, quantization.Int8WeightOnlyConfig())
    dcn.verify(network)
    out = assert_masks_act(network, backward=False)
    assert torch.allclose(out, expected, atol=0.02) and not torch.equal(out, expected)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # torch's own, on CPUs
def test_fsdp2_shards_weights_and_keeps_masks() -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    network = make()
    expected = network(IMAGES)
    sharded = fully_shard(copy.deepcopy(network), mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    dcn.verify(sharded)
    assert torch.equal(assert_masks_act(sharded, backward=False), expected)
    other = make(seed=4)
    other.load_state_dict(get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True)))
    assert torch.equal(other(IMAGES), expected)
    dcn.verify(other)


@pytest.mark.slow
def test_captum_explains_the_network_with_its_masks() -> None:
    attr = needs("captum.attr")
    network: Any = make()
    images = IMAGES.clone().requires_grad_()
    with watching(network) as sightings:
        attr.IntegratedGradients(network).attribute(images, target=0, n_steps=4)
    assert sightings.loud() == []
    site = dcn.defect_spec(network).sites[0]
    activation = attr.LayerActivation(network, network.get_submodule(site.name)).attribute(images)
    assert not activation[:, ~kept(site)].any() and activation[:, kept(site)].any()
    saliency = attr.Saliency(network).attribute(images, target=0)
    (gradient,) = torch.autograd.grad(network(images)[:, 0].sum(), images)
    assert torch.equal(saliency, gradient.abs())
    dcn.verify(network)


COUNTERS: dict[str, Callable[[nn.Module, Tensor], float]] = {
    "thop": lambda net, images: needs("thop").profile(net, (images,), verbose=False)[0],
    "ptflops": lambda net, images: needs("ptflops").get_model_complexity_info(
        net, tuple(images.shape[1:]), as_strings=False, print_per_layer_stat=False, backend="pytorch"
    )[0],
    "ptflops, aten": lambda net, images: needs("ptflops").get_model_complexity_info(
        net, tuple(images.shape[1:]), as_strings=False, print_per_layer_stat=False, backend="aten"
    )[0],
}
KNOW_CLASSES_ONLY = ("thop", "ptflops")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:distutils Version classes:DeprecationWarning")  # of thop 0.1.1
@pytest.mark.parametrize("counter", COUNTERS)
def test_counters_that_know_exact_classes_count_no_masked_convolution(counter: str) -> None:
    images = torch.rand(1, 3, 64, 64)
    plain = timm.create_model("vgg11", num_classes=5, mlp_ratio=1 / 64).eval()
    net = dcn.defectify(plain, input_size=(3, 64, 64))
    count = COUNTERS[counter]
    whole, masked = (count(copy.deepcopy(network), images) for network in (plain, net))
    assert masked < 0.6 * whole if counter in KNOW_CLASSES_ONLY else masked == whole


def test_torchs_own_counter_counts_what_a_plain_network_costs() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    plain = timm.create_model("vgg11", num_classes=5, mlp_ratio=1 / 64).eval()
    counts = []
    for network in (plain, dcn.defectify(plain, input_size=(3, 32, 32))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.rand(1, 3, 32, 32))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch-pruning, about parameters without a group
@pytest.mark.parametrize("name", ["batch norm", "no norm"])
def test_pruned_channels_are_named_and_the_image_size_is_not_blamed(name: str) -> None:
    pruning = needs("torch_pruning")
    network: Any = make(name)
    head = [module for module in network.modules() if isinstance(module, nn.Linear)]
    importance = pruning.importance.MagnitudeImportance()
    pruning.pruner.MagnitudePruner(network, IMAGES, importance, pruning_ratio=0.5, ignored_layers=head).step()
    with pytest.raises(MaskShapeError, match=r"other channels.*undefectify\(\) the network before") as caught:
        dcn.verify(network)
    assert "img_size" not in str(caught.value) and "feed images" not in str(caught.value)

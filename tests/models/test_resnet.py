from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from dcn_plugin.errors import SpecError
from dcn_plugin.models import cifar_resnet, resnet18_cifar
from dcn_plugin.surgery import defect_spec, defectify


def test_resnet18_has_the_papers_number_of_parameters() -> None:
    assert sum(p.numel() for p in resnet18_cifar().parameters() if p.requires_grad) == 11_173_962


@pytest.mark.parametrize("width", [4, 5, 16, 64])
def test_any_width_runs_and_keeps_the_resolution_of_small_images(width: int) -> None:
    model = cifar_resnet((1, 1, 1, 1), num_classes=7, in_chans=1, width=width).eval()
    x = torch.rand(2, 1, 16, 16)
    assert model.layer1(model.act1(model.bn1(model.conv1(x)))).shape == (2, width, 16, 16)
    assert model(x).shape == (2, 7)


def test_the_children_and_the_feature_info_are_those_of_timms_resnet() -> None:
    model = resnet18_cifar(width=4).eval()
    assert {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"} <= {
        name for name, _ in model.named_children()
    }
    shapes: dict[str, torch.Size] = {}
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(
            lambda _module, _args, out, name=info["module"]: shapes.update({name: out.shape})
        )
    model(torch.rand(1, 3, 32, 32))
    for info in model.feature_info:
        assert shapes[info["module"]][1:] == (info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])


def test_the_bottom_half_carries_the_papers_ten_masks() -> None:
    spec = defect_spec(defectify(resnet18_cifar(), "bottom", 0.3, input_size=(3, 32, 32)))
    assert [site.shape for site in spec.sites] == [(64, 32, 32)] * 5 + [(128, 16, 16)] * 5
    assert {site.block for site in spec.sites} == {"stem", "layer1", "layer2"}


def test_weights_have_pytorchs_default_initialisation_not_timms() -> None:
    torch.manual_seed(0)
    model = resnet18_cifar(width=16)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            # Kaiming uniform with a = sqrt(5): uniform in +-1 / sqrt(fan_in).
            bound = module.weight[0].numel() ** -0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound, name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all(), name


def test_three_layers_make_a_network_that_timm_truncates_as_it_does_with_four() -> None:
    model = cifar_resnet((1, 1, 1), width=4).eval()
    x = torch.rand(1, 3, 32, 32)
    last, maps = model.forward_intermediates(x)
    assert [m.shape[1:] for m in maps] == [(4, 32, 32), (4, 32, 32), (8, 16, 16), (16, 8, 8)]
    assert torch.equal(last, maps[-1]) and torch.equal(last, model.forward_features(x))
    assert model.prune_intermediate_layers(-1 + 2) == [3] and torch.equal(model(x), last)


def test_widths_are_given_layer_by_layer_and_a_first_projection_on_demand() -> None:
    model = cifar_resnet((1, 1, 1, 1), widths=(4, 4, 10, 12, 6), project_first=True, block="bottleneck")
    assert [model.conv1.out_channels, *(getattr(model, f"layer{i}")[0].conv2.out_channels for i in range(1, 5))] == [
        *(4, 4, 10, 12, 6)
    ]
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    assert cifar_resnet((1, 1, 1, 1), width=4).layer1[0].downsample is None
    first = cifar_resnet((1, 1, 1, 1), width=4, project_first=True).layer1[0].downsample
    assert [type(module) for module in first] == [nn.Conv2d, nn.BatchNorm2d] and first[0].kernel_size == (1, 1)


def test_timms_options_reach_every_layer() -> None:
    model = cifar_resnet((2, 2, 2, 2), width=8, act_layer="silu", drop_path_rate=0.3, drop_rate=0.1, global_pool="max")
    assert not [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    rates = [
        block.drop_path.drop_prob if block.drop_path else 0 for i in (1, 4) for block in getattr(model, f"layer{i}")
    ]
    assert rates == pytest.approx([0, 0.3 / 7, 0.3 * 6 / 7, 0.3])
    assert model.drop_rate == 0.1 and model.global_pool.pool_type == "max"


@pytest.mark.parametrize(
    "build",
    [
        lambda: cifar_resnet((2, 2)),
        lambda: cifar_resnet((2, 2, 2, 2), block="wide"),
        lambda: cifar_resnet((2, 2, 2, 2), stem_reduction=2),
        lambda: cifar_resnet((2, 2, 2, 2), widths=(4, 4, 4, 4)),
        lambda: cifar_resnet((2, 2, 2, 2), widths=(4, 4, 0, 4, 4)),
        lambda: cifar_resnet((2, 0, 2, 2)),
        lambda: resnet18_cifar(width=3),
        lambda: resnet18_cifar(num_classes=-1),
        lambda: resnet18_cifar(in_chans=0),
    ],
)
def test_sizes_that_make_no_network_are_refused(build: object) -> None:
    assert callable(build)
    with pytest.raises(SpecError):
        build()


def test_a_stem_that_reduces_by_four_makes_timms_network_with_another_first_convolution() -> None:
    model = cifar_resnet(num_classes=7, stem_reduction=4).eval()
    other = timm.create_model("resnet18", num_classes=7).eval()
    other.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    other.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), other(x))
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [64 // info["reduction"] for info in model.feature_info] == [m.shape[-1] for m in maps] == [32, 16, 8, 4, 2]


def test_at_imagenet_size_the_paper_masks_ten_places() -> None:
    model = timm.create_model(
        "defective_resnet18_cifar", num_classes=1000, img_size=224, stem_reduction=4, blocks="paper", p=0.1
    )
    sites = defect_spec(model).sites
    assert [site.shape for site in sites] == [(64, 112, 112)] + [(64, 56, 56)] * 4 + [(128, 28, 28)] * 5
    assert [site.name for site in sites][-5:] == [
        *("layer2.0.bn1", "layer2.0.bn2", "layer2.0.downsample.1", "layer2.1.bn1", "layer2.1.bn2")
    ]

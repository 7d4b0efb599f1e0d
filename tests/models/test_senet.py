"""The SENet for small images: its block against plain functions, its shapes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_plugin.errors import SpecError
from dcn_plugin.models import cifar_senet
from tests.nets import shaken


def norm_relu(module: nn.Module, x: Tensor) -> Tensor:
    mean, var, weight, bias = (getattr(module, part) for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, mean, var, weight, bias))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_scales_its_residual_by_squeeze_and_excitation_and_adds_what_its_first_norm_activated(
    stride: int,
) -> None:
    model = shaken(cifar_senet((1, 1, 1, 1), width=16), seed=3)
    block = model.stages[0].blocks[0] if stride == 1 else model.stages[1].blocks[0]
    x = torch.rand(2, 16, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    activated = norm_relu(block.norm1, x)
    y = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    y = F.conv2d(norm_relu(block.norm2, y), block.conv2.weight, padding=1)
    squeezed = F.relu(F.conv2d(y.mean((2, 3), keepdim=True), block.se.fc1.weight, block.se.fc1.bias))
    y = y * torch.sigmoid(F.conv2d(squeezed, block.se.fc2.weight, block.se.fc2.bias))
    # The shortcut is the block's own input, or a bare projection of what the first norm has activated.
    shortcut = x if stride == 1 else F.conv2d(activated, block.downsample.conv.weight, stride=2)
    torch.testing.assert_close(block(x), y + shortcut, rtol=1e-5, atol=1e-5)
    assert block.se.fc1.out_channels == block.conv2.out_channels // 16


def test_nothing_comes_between_the_last_block_and_the_mean_over_positions() -> None:
    model = shaken(cifar_senet((1, 1, 1, 1), width=8))
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        features = model.stages(model.stem(x))
        assert torch.equal(model.forward_features(x), features)
        torch.testing.assert_close(model(x), F.linear(features.mean((2, 3)), model.head.fc.weight, model.head.fc.bias))


@pytest.mark.parametrize(("width", "layers"), [(8, (1, 1, 1, 1)), (24, (1, 2, 1, 1))])
def test_widths_double_from_stage_to_stage_and_the_stem_keeps_the_resolution(
    width: int, layers: tuple[int, ...]
) -> None:
    model = cifar_senet(layers, width=width, num_classes=7, in_chans=1).eval()
    shapes: dict[str, torch.Size] = {}
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(
            lambda _module, _args, out, name=info["module"]: shapes.update({name: out.shape})
        )
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    assert [tuple(shape[1:]) for shape in shapes.values()] == [
        (width, 32, 32), (width, 32, 32), (2 * width, 16, 16), (4 * width, 8, 8), (8 * width, 4, 4),
    ]  # fmt: skip
    for info in model.feature_info:
        assert shapes[info["module"]][1:] == (info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])
    assert [len(stage.blocks) for stage in model.stages] == list(layers)


def test_without_classes_the_output_are_the_pooled_features() -> None:
    model = cifar_senet((1, 1, 1, 1), width=8, num_classes=0).eval()
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(model(x), model.forward_features(x).mean((2, 3)))


def test_timms_options_reach_every_layer() -> None:
    model = cifar_senet(
        (2, 2, 2, 2), width=8, act_layer="silu", drop_path_rate=0.3, drop_rate=0.1, global_pool="max",
        dtype=torch.float64,
    )  # fmt: skip
    norms = [model.stem.norm, *(getattr(b, n) for s in model.stages for b in s.blocks for n in ("norm1", "norm2"))]
    assert {type(norm.act) for norm in norms} == {nn.SiLU}
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.3 * place / 7 for place in range(8)])
    assert (model.head.drop.p, model.head.global_pool.pool_type) == (0.1, "max")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_weights_have_pytorchs_default_initialisation_not_timms() -> None:
    torch.manual_seed(0)
    for name, module in cifar_senet((1, 1, 1, 1), width=16).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            bound = module.weight[0].numel() ** -0.5  # uniform in +-1 / sqrt(fan_in)
            assert 0.9 * bound < module.weight.abs().max() <= bound, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (2, 2, 2)}, "four stages"),
        ({"layers": (2, 0, 2, 2)}, r"four stages.*Got: \(2, 0, 2, 2\)"),
        ({"width": 12}, "a multiple of 8"),
        ({"width": 0}, "width"),
        ({"num_classes": -1}, "num_classes >= 0"),
        ({"in_chans": 0}, "in_chans >= 1"),
    ],
)
def test_sizes_that_make_no_network_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        cifar_senet(**options)  # type: ignore[arg-type]

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from dcn_plugin.checkpoint import load_checkpoint, save_checkpoint
from dcn_plugin.errors import BlockError, MaskStateError, SpecError
from dcn_plugin.layers import DefectMask2d, Normalized
from dcn_plugin.models import cifar_resnet, regularize
from dcn_plugin.surgery import defectify, masks_of, undefectify
from dcn_plugin.surgery.inspection import verify
from dcn_plugin.training import isolated_rng

KINDS = ("spatial-dropout", "dropblock")
IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def plain() -> ResNet:
    with isolated_rng(0):
        return cifar_resnet((2, 2, 2, 2), width=8).eval()


def watched(model: nn.Module) -> tuple[list[str], dict[str, tuple[Tensor, Tensor]]]:
    """Run a model in training mode; the order of its layers, and input and output of each (copies)."""
    order: list[str] = []
    given: dict[str, Tensor] = {}
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, args: given.update({name: args[0].detach().clone()})  # the layer may work in place

    def after(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(_: nn.Module, args: Any, out: Tensor) -> None:
            order.append(name)
            seen[name] = (given[name], out.detach().clone())

        return record

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_pre_hook(before(name)) for name, module in leaves]
    handles += [module.register_forward_hook(after(name)) for name, module in leaves]
    model.train()
    try:
        with isolated_rng(1):
            model(IMAGES)
    finally:
        model.eval()
        for handle in handles:
            handle.remove()
    return order, seen


@pytest.mark.parametrize(("kind", "layer"), [("spatial-dropout", "Dropout2d"), ("dropblock", "DropBlock2d")])
def test_every_block_of_layer3_and_layer4_drops_at_two_places_and_no_other_block_at_any(
    kind: Any, layer: str, plain: ResNet
) -> None:
    model = regularize(plain, kind)
    order, _ = watched(model)
    names = [n for n, m in model.named_modules() if type(m).__name__ == layer]
    blocks = [f"layer{i}.{j}" for i in (3, 4) for j in (0, 1)]
    assert names == [f"{block}.{place}" for block in blocks for place in ("drop_block", "conv2.regularizer")]
    for block in blocks:
        own = [name.removeprefix(f"{block}.") for name in order if name.startswith(f"{block}.")][:7]
        assert own == ["conv1", "bn1", "drop_block", "act1", "aa", "conv2.regularizer", "bn2"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_on_is_what_was_dropped_and_what_is_kept_is_only_scaled(kind: Any, plain: ResNet) -> None:
    model = regularize(plain, kind)
    _, seen = watched(model)
    for block in ("layer3.0", "layer4.1"):
        for place, after in (("drop_block", "act1"), ("conv2.regularizer", "bn2")):
            given, dropped = seen[f"{block}.{place}"]
            kept = dropped != 0
            ratio = dropped[kept] / given[kept]
            assert kept.any() and not kept.all()
            torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))
            assert ratio[0] > 1
            assert torch.equal(seen[f"{block}.{after}"][0] != 0, kept)


def test_spatial_dropout_drops_one_channel_in_ten_as_a_whole() -> None:
    drop = regularize(cifar_resnet((1, 1, 1, 1), width=4)).layer3[0].drop_block.train()  # type: ignore[index, union-attr, operator]
    with isolated_rng(0):
        out = drop(torch.ones(400, 50, 3, 3))
    channels = out.flatten(2)
    assert torch.equal(channels.amin(2), channels.amax(2))
    assert (channels[..., 0] == 0).float().mean() == pytest.approx(0.1, abs=0.01)  # 4.7 standard deviations
    assert out.max() == pytest.approx(1 / 0.9)


def dropped_slowly(shape: tuple[int, ...], *, keep: float, size: int) -> Tensor:
    """Ghiasi's rate, a block around every centre that is drawn, cell by cell: 0 where dropped, then the scale."""
    height, width = shape[2:]
    gamma = (1 - keep) / size**2 * height / (height - size + 1) * width / (width - size + 1)
    centres = torch.empty(shape).bernoulli_(gamma)
    kept = torch.ones(shape)
    for image, channel, row, column in centres.nonzero().tolist():
        for r in range(row - size // 2, row + size // 2 + 1):
            for c in range(column - size // 2, column + size // 2 + 1):
                if 0 <= r < height and 0 <= c < width:
                    kept[image, channel, r, c] = 0
    return kept * kept.numel() / kept.sum()


@pytest.mark.parametrize(("side", "share"), [(8, 0.86), (4, 0.755)])
def test_dropblock_drops_squares_of_each_channel_by_itself(side: int, share: float) -> None:
    drop = regularize(cifar_resnet((1, 1, 1, 1), width=4), "dropblock").layer4[0].drop_block.train()  # type: ignore[index, union-attr, operator]
    shape = (20, 30, side, side)
    with isolated_rng(0):
        found = drop(torch.ones(shape))
    with isolated_rng(0):
        expected = dropped_slowly(shape, keep=0.9, size=3)
    torch.testing.assert_close(found, expected)
    assert (found > 0).float().mean() == pytest.approx(share, abs=0.03)  # as the documentation says
    assert not torch.equal(found[:, 0], found[:, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_in_eval_mode_nothing_happens_and_keys_and_weights_are_the_same(kind: Any, plain: ResNet) -> None:
    model = regularize(plain, kind)
    assert not model.training
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(model(IMAGES), plain(IMAGES))
    assert not isinstance(plain.layer3[0].drop_block, type(model.layer3[0].drop_block))  # type: ignore[index, union-attr]
    with isolated_rng(5):
        other = cifar_resnet((2, 2, 2, 2), width=8).eval()
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(IMAGES), other(IMAGES))


@pytest.mark.parametrize("kind", KINDS)
def test_the_flags_of_the_model_are_kept_in_the_new_parts(kind: Any) -> None:
    net = cifar_resnet((1, 1, 1, 1), width=4).train()
    net.layer4.eval()
    net.layer3[0].bn2.eval()  # type: ignore[index, union-attr, operator]
    model = regularize(net, kind)
    for name, module in model.named_modules():
        assert module.training == (not name.startswith("layer4") and name != "layer3.0.bn2")


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_of_the_global_generator_decides_and_copies_are_alike(kind: Any, plain: ResNet) -> None:
    model = regularize(plain, kind)
    runs = []
    for copied, seed in ((model, 0), (copy.deepcopy(model), 0), (pickle.loads(pickle.dumps(model)), 0), (model, 1)):
        copied.train()
        with isolated_rng(seed), torch.no_grad():
            runs.append(copied(IMAGES))
        copied.eval()
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], runs[3])


@pytest.mark.parametrize("blocks", ["bottom", "top", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_dropout_go_together_in_both_orders(kind: Any, blocks: Any, plain: ResNet) -> None:
    options: dict[str, Any] = {"blocks": blocks, "p": 0.5, "input_size": (3, 32, 32), "seed": 3}
    defective = defectify(plain, **options)
    first, second = regularize(defective, kind), defectify(regularize(plain, kind), **options)
    for model in (first, second):
        verify(model)
        assert {n: m.mask.sum() for n, m in masks_of(model).items()} == {
            n: m.mask.sum() for n, m in masks_of(defective).items()
        }
        assert list(model.state_dict()) == list(defective.state_dict())
        assert torch.equal(model(IMAGES), defective(IMAGES))
        assert torch.equal(undefectify(model)(IMAGES), plain(IMAGES))
        assert sum(type(m).__name__ in ("Dropout2d", "DropBlock2d") for m in undefectify(model).modules()) == 8
    with isolated_rng(0):
        trained = first.train()(IMAGES)
    with isolated_rng(0):
        assert torch.equal(second.train()(IMAGES), trained)


def test_masked_neurons_are_silent_in_training_too_where_dropout_follows(plain: ResNet) -> None:
    model = regularize(defectify(plain, "top", p=0.3, input_size=(3, 32, 32)))
    _, seen = watched(model)
    mask = model.get_submodule("layer3.0.bn1.drop")
    assert isinstance(mask, DefectMask2d)
    given, dropped = seen["layer3.0.drop_block"]
    assert (given[:, ~mask.mask[0]] == 0).all() and (dropped[:, ~mask.mask[0]] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_go_from_a_defective_network_to_a_regularised_one_and_back(
    kind: Any, plain: ResNet, tmp_path: Path
) -> None:
    defective = defectify(plain, "bottom", p=0.5, input_size=(3, 32, 32))
    regularized = regularize(defective, kind)
    for source, target in ((defective, regularized), (regularized, defective)):
        save_checkpoint(source, tmp_path / "net.safetensors")
        with torch.no_grad():
            target.fc.bias.add_(1)  # type: ignore[union-attr, operator]
        load_checkpoint(tmp_path / "net.safetensors", target, inplace=True)
        assert torch.equal(target(IMAGES), source(IMAGES))
    state = regularized.state_dict()
    state.pop("bn1.drop.mask")
    with pytest.raises(MaskStateError):
        regularized.load_state_dict(state)


def test_bottlenecks_drop_after_the_second_norm_and_behind_the_third_convolution() -> None:
    model = regularize(cifar_resnet((1, 1, 1, 1), block="bottleneck", width=4), "dropblock")
    order, _ = watched(model)
    own = [name.removeprefix("layer4.0.") for name in order if name.startswith("layer4.0.")][:9]
    assert own == ["conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3.regularizer"]


def test_layers_are_the_last_two_unless_they_are_named() -> None:
    def dropping(model: nn.Module) -> list[str]:
        return [name for name, module in model.named_modules() if isinstance(module, nn.Dropout2d)]

    three = timm.create_model("wrn32_4_cifar", width=4)
    assert {name.partition(".")[0] for name in dropping(regularize(three))} == {"layer2", "layer3"}
    assert not dropping(three)
    wrapped = Normalized(cifar_resnet((1, 1, 1, 1), width=4), (0.5,) * 3, (0.5,) * 3)
    found = dropping(regularize(wrapped, layers=["layer1"]))
    assert found == ["model.layer1.0.drop_block", "model.layer1.0.conv2.regularizer"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"kind": "dropout"}, SpecError, "'spatial-dropout', 'dropblock'"),
        ({"keep": 0}, SpecError, "keep probability"),
        ({"keep": 1}, SpecError, "keep probability"),
        ({"keep": float("nan")}, SpecError, "keep probability"),
        ({"block_size": 0}, SpecError, "block size"),
        ({"block_size": 2.5}, SpecError, "block size"),
        ({"layers": ["layer5"]}, BlockError, "layer1, layer2, layer3, layer4"),
        ({"layers": "layer3"}, BlockError, "as a sequence"),
        ({"layers": []}, BlockError, "layer1"),
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(
    options: dict[str, Any], error: type[Exception], match: str, plain: ResNet
) -> None:
    with pytest.raises(error, match=match):
        regularize(plain, **options)


def test_networks_that_have_no_place_for_it_are_refused(plain: ResNet) -> None:
    with pytest.raises(BlockError, match="not one ResNet"):
        regularize(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(SpecError, match="already"):
        regularize(regularize(plain), "dropblock")
    with pytest.raises(SpecError, match="already"):
        regularize(timm.create_model("resnet18", drop_block_rate=0.1))


def test_timms_own_argument_does_not_give_this() -> None:
    """Why there is a function at all; where this fails, timm has learned it."""
    model = timm.create_model("resnet18", drop_block_rate=0.1)
    own, ours = (m.layer3[0] for m in (model, regularize(timm.create_model("resnet18"), "dropblock")))
    assert (own.drop_block.block_size, own.drop_block.couple_channels) == (5, True)
    assert (ours.drop_block.block_size, ours.drop_block.couple_channels) == (3, False)
    assert type(own.conv2) is nn.Conv2d

"""summary reports what is there; verify raises when a mask does not act."""

import numpy as np
import pytest
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.errors import ImageRangeError, InputSizeError, MaskLostError, MaskShapeError, SpecError, TraceError
from tests.nets import NoNorm, SmallNet, same, shaken, snapshot

SIZE = (3, 16, 16)


def make(**options: object) -> nn.Module:
    return dcn.defectify(shaken(SmallNet()), input_size=SIZE, **options)


def test_the_summary_has_one_row_a_site_and_the_share_that_is_really_kept() -> None:
    net = make(p=0.5, sampling="exact")
    report = dcn.summary(net)
    assert [row.name for row in report.rows][:2] == ["bn1", "layer1.bn1"] and len(report.rows) == 7
    assert {row.kept for row in report.rows} == {0.5} and {row.p for row in report.rows} == {0.5}
    assert report.kept * 2 == report.neurons == 4 * 8 * 256 + 3 * 12 * 64
    text = str(report)
    assert "layer2.shortcut.1" in text and "12x8x8" in text and text.splitlines()[-1].startswith("7 sites, 5,248 of")


@pytest.mark.parametrize(("mode", "span", "text"), [("hole", 3, "hole 3x3"), ("nm", 4, "nm 2:4")])
def test_the_summary_shows_the_span_of_a_mode_that_has_one(mode, span, text) -> None:
    net = make(mode=mode, span=span, p=0.5)
    assert {row.mode for row in dcn.summary(net).rows} == {text}
    assert f"mode={text}, " in repr(net.bn1.drop)
    dcn.verify(net)


def test_the_summary_reads_networks_written_by_hand() -> None:
    net = nn.Sequential(dcn.DefectiveConv2d(3, 4, 3, output_size=(14, 14), site=0, p=0.1), nn.ReLU())
    (row,) = dcn.summary(net).rows
    assert (row.name, row.block, row.shape, row.p) == ("0", "-", (4, 14, 14), 0.1)


@pytest.mark.parametrize("net", [make, lambda: dcn.defectify(NoNorm(), input_size=SIZE)])
def test_verify_is_content_with_a_network_whose_masks_act_and_changes_nothing(net) -> None:
    model = net().train()
    images = torch.rand(2, *SIZE)
    before = snapshot(model)
    dcn.verify(model)
    dcn.verify(model, images)
    assert same(before, snapshot(model))


def bypass(net: nn.Module) -> None:
    net.bn1.__class__ = nn.BatchNorm2d  # the buffer stays, nobody calls it


def remove(net: nn.Module) -> None:
    net.layer1.bn2 = nn.BatchNorm2d(8).eval()


def flip(net: nn.Module) -> None:
    net.bn1.drop.mask[0, 0, 0, 0] ^= True


def shift(net: nn.Module) -> None:
    net.bn1.drop.register_forward_hook(lambda module, args, out: out + 1)


def skip(net: nn.Module) -> None:
    net.layer1 = nn.Identity()


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (bypass, "bn1: its layer runs without calling it"),
        (remove, "layer1.bn2: its mask is gone"),
        (flip, "bn1: its bits are not those that its seed gives"),
        (shift, "bn1: .* defective neurons are not silent"),
        (skip, "layer1.bn1: its mask is gone"),
    ],
)
def test_verify_names_the_mask_that_no_longer_acts(harm, match) -> None:
    net = make()
    harm(net)
    with pytest.raises(MaskLostError, match=match):
        dcn.verify(net)


def test_verify_notices_a_mask_whose_layer_is_never_run() -> None:
    net = make()
    net.layer2.forward = lambda x: torch.zeros(x.shape[0], 12, 8, 8)
    with pytest.raises(MaskLostError, match=r"layer2.bn1: its layer is never run"):
        dcn.verify(net)


def test_torchs_sync_batchnorm_loses_the_masks_and_timms_keeps_them() -> None:
    dcn.verify(convert_sync_batchnorm(make()))
    with pytest.raises(MaskLostError, match=r"7 of 7 masks.*timm.layers.convert_sync_batchnorm"):
        dcn.verify(nn.SyncBatchNorm.convert_sync_batchnorm(make()))


def test_a_hand_written_network_is_verified_on_the_images_it_is_given() -> None:
    net = nn.Sequential(dcn.DefectiveConv2d(3, 4, 3, output_size=(14, 14), site=0, norm=nn.BatchNorm2d(4)), nn.ReLU())
    dcn.verify(net, torch.rand(1, *SIZE))
    with pytest.raises(InputSizeError, match="images"):
        dcn.verify(net)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((1, 3, 16, 16), dtype=np.float32), "ndarray"),
        ([1], "list"),
        (torch.zeros(1, *SIZE, dtype=torch.uint8), "torch.uint8"),
        (torch.rand(*SIZE), r"torch.float32 \(3, 16, 16\)"),
    ],
)
def test_verify_refuses_what_is_no_batch_of_images_by_name(images, got) -> None:
    with pytest.raises(ImageRangeError, match=rf"{got}.*floating-point tensor \(N, C, H, W\)"):
        dcn.verify(make(), images)


def test_the_hints_of_verify_are_arguments_that_verify_has() -> None:
    net = nn.Sequential(dcn.DefectiveConv2d(3, 4, 3, output_size=14, site=0), nn.ReLU())
    with pytest.raises(InputSizeError, match=r"images=.*verify\(model, torch.rand") as caught:
        dcn.verify(net)
    assert "input_size" not in str(caught.value)
    with pytest.raises(InputSizeError, match="one of the two"):
        dcn.verify(make(), torch.rand(1, *SIZE), example_inputs=torch.rand(1, *SIZE))
    with pytest.raises(MaskShapeError, match="feed images of 3x16x16"):
        dcn.verify(make(), torch.rand(1, 3, 20, 20))
    with pytest.raises(InputSizeError, match=r"expected input.* to have 3 channels"):
        dcn.verify(make(), torch.rand(1, 1, 16, 16))


def test_pruned_channels_are_named_and_no_image_size_is_blamed() -> None:
    net = make()
    net.conv1 = nn.Conv2d(3, 6, 3, 1, 1, bias=False)
    pruned = nn.BatchNorm2d(6)
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(net.bn1, name, getattr(pruned, name))
    with pytest.raises(MaskShapeError, match=r"other channels.*undefectify\(\) the network before") as caught:
        dcn.verify(net.eval())
    assert "images" not in str(caught.value)


def test_a_hand_written_network_takes_the_masks_of_another_seed_and_says_so() -> None:
    net, other = (
        nn.Sequential(dcn.DefectiveConv2d(3, 4, 3, output_size=(14, 14), site=0, seed=seed)) for seed in (0, 1)
    )
    net.load_state_dict(other.state_dict())
    dcn.verify(net, torch.rand(1, *SIZE))
    assert torch.equal(net[0].drop.mask, other[0].drop.mask) and "loaded" in repr(net)
    net.load_state_dict(dcn.DefectiveConv2d(3, 4, 3, output_size=(14, 14), site=0).state_dict(prefix="0."))
    assert "sampled" in repr(net)


def test_sites_of_several_parts_are_told_apart() -> None:
    def part(p: float) -> nn.Module:
        layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        return dcn.defectify(layers, "all", p=p, input_size=(3, 16, 16))

    both = nn.ModuleDict({"a": part(0.3), "b": part(0.5)})
    assert [(row.name, row.p) for row in dcn.summary(both).rows] == [("a.1", 0.3), ("b.1", 0.5)]


@pytest.mark.parametrize("layers", ["conv1", (), (1, 2)])
def test_layers_that_are_no_names_are_refused(layers) -> None:
    net = nn.Sequential(dcn.DefectiveConv2d(3, 4, 3, output_size=14, site=0), nn.ReLU())
    with pytest.raises(SpecError, match=r"no names of layers.*\('conv1', 'conv2'\)"):
        dcn.verify(net, torch.rand(1, *SIZE), layers=layers)


def test_the_layers_of_a_specification_are_not_stated_again() -> None:
    with pytest.raises(SpecError, match=r"says which of its layers carry masks.*leave layers out"):
        dcn.verify(make(), layers=("bn1",))


def test_masks_that_are_layers_of_their_own_are_told_apart_and_may_be_followed_by_anything() -> None:
    masks = [dcn.DefectMask2d((4, 14, 14), dcn.MaskSpec(), site=site) for site in (0, 1)]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), masks[0], nn.Sigmoid(), nn.Conv2d(4, 4, 1), masks[1], nn.Sigmoid())
    images = torch.rand(1, *SIZE)
    dcn.verify(net, images)
    net[1] = nn.Identity()
    with pytest.raises(
        MaskLostError, match=r"1 of 2 masks no longer act \(1: its mask is gone; its layer is of class Identity"
    ):
        dcn.verify(net, images)
    net[1] = masks[0]
    dcn.verify(net, images)
    net[4].forward = lambda x: x + 1
    with pytest.raises(MaskLostError, match=r"1 of 2 masks no longer act \(4: \d+ defective neurons are not silent"):
        dcn.verify(net, images)


def test_weights_that_are_not_there_are_named_with_images_too() -> None:
    with pytest.raises(TraceError, match=r"meta device.*load_state_dict"):
        dcn.verify(make().to("meta"), torch.rand(1, *SIZE))

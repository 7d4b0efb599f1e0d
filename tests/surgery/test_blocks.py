"""Blocks: where a network is cut, what the parts are called, and which sites an argument chooses."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import timm
import timm.layers as tl
import torch
import torch.nn.functional as F
import torchvision
from timm.layers.norm import SimpleNorm2d
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import BlockError, PlacementWarning, SiteError, SpecError
from dcn_plugin.specs import mask_specs
from dcn_plugin.surgery import plan_defects
from dcn_plugin.surgery.blocks import Blocks, find_blocks
from dcn_plugin.surgery.norm_slots import is_norm
from dcn_plugin.surgery.trace import trace_model
from tests.nets import NoNorm, SmallNet
from tests.test_golden import build

SIZE = (3, 16, 16)


def blocks(model: nn.Module, size: tuple[int, int, int] = SIZE) -> Blocks:
    return find_blocks(model, trace_model(model, size, is_norm=is_norm))


def names(model: nn.Module, size: tuple[int, int, int] = SIZE) -> list[str]:
    return [block.name for block in blocks(model, size).items]


def chosen(model: nn.Module, which: object = "bottom", **options: object) -> list[str]:
    return [site.name for site in plan_defects(model, which, **{"input_size": SIZE, **options}).sites]


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.exit = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        return self.exit(torch.cat([x, F.interpolate(torch.relu(self.down(x)), scale_factor=2)], 1))


class Staged(nn.Module):
    """Stages in a ModuleList, which itself never runs; `feature_info` as timm's models have it, if asked for."""

    def __init__(self, feature_info: list[str] | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3)
        )
        if feature_info:
            self.feature_info = [{"module": module} for module in feature_info]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x.mean((2, 3))


# Where a network is cut (rules 1 and 2).


def test_on_timm_models_the_blocks_are_the_stages_of_feature_info() -> None:
    assert names(build("timm/resnet18"), (3, 64, 64)) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert names(Staged(["stem", "stages.1", "stages.2"])) == ["stem", "stages.0..stages.1", "stages.2"]


def test_a_stage_without_a_convolution_counts_in_a_vision_transformer() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=5)
    assert names(model, (3, 32, 32)) == ["patch_embed", "blocks.1", "blocks.2", "blocks.3", "blocks.4"]
    with pytest.warns(
        PlacementWarning, match=r"one convolution .*'patch_embed.proj', and 20 linear layers over tokens"
    ):
        assert chosen(model, input_size=(3, 32, 32)) == ["patch_embed.proj"]
    with pytest.raises(SiteError, match="No site is left"):
        chosen(model, "top", input_size=(3, 32, 32))


def test_otherwise_a_child_that_lowers_the_resolution_starts_a_block() -> None:
    assert names(SmallNet()) == ["conv1..layer1", "layer2", "layer3"]
    torchvision_names = ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert names(build("torchvision/resnet18"), (3, 64, 64)) == torchvision_names


def test_a_wrapper_is_looked_through() -> None:
    inner = build("timm/resnet18")
    wrapped = nn.Sequential(dcn.Normalized(inner, (0.5,) * 3, (0.5,) * 3), nn.Softmax(1))
    assert names(wrapped, (3, 64, 64)) == ["stem", *(f"0.model.layer{i}" for i in range(1, 5))]


def test_a_max_pool_belongs_to_what_follows_and_the_children_of_the_only_part_count() -> None:
    assert names(NoNorm()) == ["stem", "features.3"]
    assert names(NoNorm().features) == ["stem", "3"]


def test_a_trunk_in_which_the_resolution_falls_again_and_again_is_opened() -> None:
    def stage(inner: int, outer: int) -> nn.Sequential:
        # Its last convolution lowers the resolution: one fall, so that it stays one part.
        return nn.Sequential(nn.Conv2d(inner, outer, 1), tl.SqueezeExcite(outer), nn.Conv2d(outer, outer, 3, 2, 1))

    trunk = nn.Sequential(stage(4, 8), stage(8, 8), stage(8, 8), stage(8, 8))
    model = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3, padding=1), trunk=trunk))
    assert names(model, (3, 64, 64)) == ["stem", "trunk.0", "trunk.1", "trunk.2", "trunk.3"]


def test_stages_in_a_module_list_are_children_like_any_other() -> None:
    assert names(Staged()) == ["stem", "stages.0", "stages.1", "stages.2"]


def test_a_feature_info_that_names_no_running_module_is_not_gone_by() -> None:
    assert names(Staged(["stem", "stage1"])) == names(Staged())


def test_a_norm_right_behind_the_last_convolution_of_a_stage_stays_with_it() -> None:
    model = Staged(["stem.0", "stages.0", "stages.1", "stages.2"])
    assert chosen(model, 0) == ["stem.1"]


def test_a_mask_lies_in_the_block_in_which_its_norm_runs() -> None:
    model = build("timm/resnetv2_50")
    spec = plan_defects(model, "all", input_size=(3, 64, 64))
    where = {site.name: (site.conv, site.block) for site in spec.sites}
    assert where["stages.1.blocks.0.norm1"] == ("stages.0.blocks.2.conv3", "stages.1")


# bottom and top (rule 4).


@pytest.mark.parametrize(("stages", "bottom"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_bottom_is_the_first_half_rounded_up_and_top_the_rest(stages: int, bottom: int) -> None:
    layers = [layer for _ in range(stages) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.MaxPool2d(2))]
    model = nn.Sequential(*layers)
    convs = [str(i) for i in range(0, 2 * stages, 2)]
    size = (3, 64, 64)
    assert chosen(model, "bottom", input_size=size) == convs[:bottom]
    assert chosen(model, "top", input_size=size) == convs[bottom:]
    assert chosen(model, "all", input_size=size) == convs


def test_bottom_of_a_resnet_is_stem_layer1_and_layer2_at_any_size() -> None:
    for name in ("timm/resnet18", "torchvision/resnet18"):
        for side in (32, 64):
            parts = {site.split(".")[0] for site in chosen(build(name), input_size=(3, side, side))}
            assert parts == {"bn1", "layer1", "layer2"}
    assert {site.split(".")[0] for site in chosen(SmallNet())} == {"bn1", "layer1", "layer2"}


def test_a_network_that_goes_back_up_has_no_bottom_but_takes_globs() -> None:
    with pytest.raises(BlockError, match=r"goes back up, at 'exit'.*blocks: 0: stem, 1: down\.\.exit"):
        chosen(UNet())
    assert chosen(UNet(), ("enter", "d*")) == ["enter", "down"]
    assert chosen(UNet(), "all") == ["enter", "down"]


def test_within_a_stage_that_timm_names_a_network_may_go_back_up() -> None:
    model = nn.Sequential(UNet(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1))
    assert blocks(model).problem == "its resolution goes back up, at '0.exit'"
    model.feature_info = [{"module": "0"}, {"module": "2"}]
    assert blocks(model).problem is None
    assert chosen(model) == ["0.enter", "0.down", "0.exit"]


def test_stages_that_timm_names_may_not_go_back_up_from_one_to_the_next() -> None:
    model = UNet()
    model.feature_info = [{"module": "enter"}, {"module": "down"}, {"module": "exit"}]
    assert blocks(model).problem == "its resolution goes back up, at 'exit'"


def test_an_attention_gate_at_a_coarser_resolution_does_not_count_as_going_up() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.gate, self.conv2 = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(x)
            gate = torch.sigmoid(self.gate(F.max_pool2d(x, 2)))
            return self.conv2(F.max_pool2d(x * F.interpolate(gate, scale_factor=2), 2))

    assert blocks(Gated()).problem is None


def test_a_network_with_one_block_is_refused_with_its_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with pytest.raises(BlockError, match=r"it has only one block.*blocks: 0: 0\.\.3"):
        chosen(model)
    assert chosen(model, 0) == ["1"]
    assert names(nn.Conv2d(3, 4, 3)) == ["all"]


# What an argument chooses.


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (0, ["bn1", "layer1.bn1", "layer1.bn2", "layer1.shortcut.1"]),
        ((2,), ["layer3.bn1", "layer3.bn2", "layer3.shortcut.1"]),
        ("layer2", ["layer2.bn1", "layer2.bn2", "layer2.shortcut.1"]),
        ("conv1..layer1", ["bn1", "layer1.bn1", "layer1.bn2", "layer1.shortcut.1"]),
        ("layer1", ["layer1.bn1", "layer1.bn2", "layer1.shortcut.1"]),
        ("conv1", ["bn1"]),
        ("layer[12].bn1", ["layer1.bn1", "layer2.bn1"]),
        (
            ["*.shortcut", 2],
            ["layer1.shortcut.1", "layer2.shortcut.1", "layer3.bn1", "layer3.bn2", "layer3.shortcut.1"],
        ),
    ],
)
def test_numbers_names_and_globs_choose_sites_in_execution_order(which: object, expected: list[str]) -> None:
    assert chosen(SmallNet(), which) == expected


def test_the_name_of_a_block_chooses_that_block_and_not_what_its_convolutions_feed_elsewhere() -> None:
    model = build("timm/resnetv2_50")
    size = (3, 64, 64)
    assert chosen(model, "stages.1", input_size=size) == chosen(model, 2, input_size=size)
    assert "stages.2.blocks.0.norm1" not in chosen(model, "stages.1", input_size=size)


@pytest.mark.parametrize("which", ["layer9", 7, True, ("layer1", "layer9"), (0, 7), ("layer1", "*.bn9"), (), []])
def test_a_part_that_matches_nothing_is_refused_also_among_others_that_match(which: object) -> None:
    with pytest.raises(BlockError, match=r"0: conv1\.\.layer1, 1: layer2, 2: layer3"):
        chosen(SmallNet(), which)


def test_each_block_takes_its_own_keep_probability_and_the_first_match_wins() -> None:
    masks = mask_specs({0: 0.5, "layer2": 0.25, "*.bn1": 0.125, "layer3": 1})
    spec = plan_defects(SmallNet(), "all", masks, input_size=SIZE)
    p = {site.name: site.mask.p for site in spec.sites}
    assert (p["bn1"], p["layer1.bn1"], p["layer2.bn1"], p["layer3.bn1"], p["layer3.bn2"]) == (0.5, 0.5, 0.25, 0.125, 1)


def test_a_mapping_that_leaves_a_chosen_block_out_is_refused() -> None:
    with pytest.raises(SpecError, match=r"no keep probability for block 'layer2' \(number 1\)"):
        plan_defects(SmallNet(), "bottom", mask_specs({0: 0.5}), input_size=SIZE)


def test_filter_fn_is_asked_for_the_owner_of_each_chosen_mask() -> None:
    asked: list[tuple[type, str]] = []

    def odd(module: nn.Module, name: str) -> bool:
        asked.append((type(module), name))
        return name.endswith("bn2")

    assert chosen(SmallNet(), "bottom", filter_fn=odd) == ["layer1.bn2", "layer2.bn2"]
    assert [name for _, name in asked] == chosen(SmallNet(), "bottom")
    assert {kind for kind, _ in asked} == {nn.BatchNorm2d}
    with pytest.raises(SiteError, match="No site is left in SmallNet"):
        chosen(SmallNet(), "bottom", filter_fn=lambda module, name: False)


def test_a_place_that_can_carry_no_mask_can_be_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), SimpleNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU())
    with pytest.raises(SiteError, match="1 of 2 chosen places in Sequential cannot carry a mask: the norm '1'"):
        chosen(model, "all")
    assert chosen(model, "all", filter_fn=lambda module, name: not isinstance(module, SimpleNorm2d)) == ["3"]


# What the network returns is no neuron of its own.


class Heads(nn.Module):
    """A dense prediction with an auxiliary output: logits at the images' size, and boxes."""

    def __init__(self, *, last: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.score = nn.Conv2d(4, 5, 1)
        self.box = nn.Conv2d(4, 4, 1)
        self.last = last

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.body(torch.relu(self.stem(x))))
        score = F.interpolate(self.score(features), scale_factor=2, mode="bilinear")
        return {"out": self.last(score), "aux": [self.box(features).flatten(2).exp().transpose(1, 2)]}


@pytest.mark.parametrize(
    "last", [nn.Identity(), nn.Sigmoid(), nn.Softmax(1), nn.Tanh()], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("what", ["all", ("*",), 0], ids=str)
def test_a_convolution_whose_output_is_returned_is_left_out(last: nn.Module, what: Any) -> None:
    assert chosen(Heads(last=last), what) == ["stem", "body"]


def test_a_glob_for_the_output_alone_is_refused_with_the_reason() -> None:
    with pytest.raises(SiteError, match="returns what 'score', 'box' puts out: a mask there would silence answers"):
        chosen(Heads(last=nn.Identity()), ("score", "body"))


def test_a_convolution_behind_which_a_hidden_activation_lies_is_no_output() -> None:
    squeezed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    assert chosen(squeezed, "all") == ["0", "2"]
    embedded = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5 * 36, 2))
    assert chosen(embedded, "all", input_size=(3, 8, 8)) == ["0", "2"]
    class_maps = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert chosen(class_maps, "all") == ["0"]


def test_a_network_of_outputs_alone_is_taken_as_it_is() -> None:
    assert chosen(nn.Sequential(nn.Conv2d(3, 4, 3)), "all") == ["0"]


def test_the_logits_of_torchvisions_segmentation_carry_no_masks() -> None:
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    found = chosen(model, "all", input_size=(3, 32, 32))
    assert not [name for name in found if "classifier.high" in name or "classifier.low" in name]
    assert "backbone.0.1" in found and len(found) > 30


# The paper's placement.


@pytest.mark.parametrize(("name", "count"), [("resnet18", 10), ("resnet50", 8), ("vgg19_bn", 4)])
def test_the_papers_placement_has_the_papers_number_of_masks(name: str, count: int) -> None:
    size = (3, 64, 64)
    assert len(chosen(build(f"timm/{name}"), "paper", input_size=size)) == count


def test_the_papers_placement_is_the_papers() -> None:
    size = (3, 64, 64)
    resnet18, resnet50 = build("timm/resnet18"), build("timm/resnet50")
    assert chosen(resnet18, "paper", input_size=size) == chosen(resnet18, "bottom", input_size=size)
    convs = [resnet50.get_submodule(s.conv) for s in plan_defects(resnet50, "paper", input_size=size).sites]
    assert [conv.kernel_size for conv in convs] == [(7, 7)] + [(3, 3)] * 7
    vgg = plan_defects(build("timm/vgg19_bn"), "paper", input_size=size)
    assert [site.ordinal for site in vgg.sites] == [0, 1, 2, 3]


def test_the_papers_placement_is_refused_where_the_paper_has_none() -> None:
    model = torchvision.models.mobilenet_v2(weights=None)
    with pytest.raises(BlockError, match="Where the paper would place masks in MobileNetV2 is not known"):
        chosen(model, "paper")

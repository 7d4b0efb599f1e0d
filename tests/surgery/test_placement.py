"""``blocks="paper"``: every mask of the paper's networks, against lists written from the page on the authors' code."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from dcn_plugin.errors import BlockError
from dcn_plugin.surgery import defectify, plan_defects
from tests.nets import SmallNet
from tests.test_golden import expand

# Norm and shape of every mask in the order they run; ranges as in tests/golden/README.md.
RESNET18 = """
bn1 64x32x32
layer1.0.bn{1..2} 64x32x32
layer1.1.bn{1..2} 64x32x32
layer2.0.bn{1..2} 128x16x16
layer2.0.downsample.1 128x16x16
layer2.1.bn{1..2} 128x16x16
"""
RESNET50 = """
bn1 64x32x32
layer1.{0..2}.bn2 64x32x32
layer2.{0..3}.bn2 128x16x16
"""
DENSENET121 = """
features.denseblock1.denselayer{1..6}.norm1 {64..224}x32x32
features.transition1.norm 256x32x32
features.denseblock2.denselayer{1..12}.norm1 {128..480}x16x16
features.transition2.norm 512x16x16
"""
SENET18 = """
stages.0.blocks.0.norm{1..2} 64x32x32
stages.0.blocks.1.norm{1..2} 64x32x32
stages.1.blocks.0.norm1 64x32x32
stages.1.blocks.0.norm2 128x16x16
stages.1.blocks.1.norm{1..2} 128x16x16
"""
VGG19_BN = """
features.1 64x32x32
features.4 64x32x32
features.8 128x16x16
features.11 128x16x16
"""
WRN32 = """
bn1 16x32x32
layer1.0.bn{1..2} 64x32x32
layer1.1.bn{1..2} 64x32x32
layer1.2.bn{1..2} 64x32x32
layer1.3.bn{1..2} 64x32x32
layer1.4.bn{1..2} 64x32x32
"""
SMALL = {
    "resnet18_cifar": (RESNET18, 10),
    "resnet50_cifar": (RESNET50, 8),
    "densenet121_cifar": (DENSENET121, 20),
    "senet18_cifar": (SENET18, 8),
    "vgg19_cifar": (VGG19_BN, 4),
    "wrn32_4_cifar": (WRN32, 11),
}
VGG19 = VGG19_BN.replace("s.11", "s.7").replace("s.8", "s.5").replace("s.4", "s.2").replace("s.1 ", "s.0 ")
# At 224 timm's stems have halved the resolution already, and its max-pools again; VGG has no stem.
LARGE = {
    "resnet18": RESNET18.replace("bn1 64x32x32", "bn1 64x112x112", 1),
    "resnet50": RESNET50.replace("bn1 64x32x32", "bn1 64x112x112", 1),
    "densenet121": DENSENET121,
    "vgg19": VGG19,
    "vgg19_bn": VGG19_BN,
}


def build(name: str, **options: object) -> nn.Module:
    """The network with all weights zero: its structure is what counts, and drawing weights takes long."""
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()
    return model


def listed(text: str, sides: dict[str, int]) -> list[tuple[str, str]]:
    """The masks that a list says, with other sides instead of 32 and 16."""
    for old, new in sides.items():
        text = text.replace(f"x{old}x{old}", f"x{new}x{new}")
    lines = [single for line in text.split("\n") if line for single in expand(line)]
    return [(name, shape) for name, _, shape in (line.partition(" ") for line in lines)]


def planned(model: nn.Module, blocks: str, size: tuple[int, int, int] | None = None) -> list[tuple[str, str]]:
    sites = plan_defects(model, blocks, input_size=size).sites
    return [(site.name, "x".join(map(str, site.shape))) for site in sites]


@pytest.mark.parametrize(("tag", "sides"), [("cifar10", {}), ("mnist", {"32": 28, "16": 14})])
@pytest.mark.parametrize("name", SMALL)
def test_the_papers_masks_are_where_the_authors_put_them(name: str, tag: str, sides: dict[str, int]) -> None:
    text, count = SMALL[name]
    found = planned(build(f"{name}.{tag}"), "paper")
    assert found == listed(text, sides)
    assert len(found) == count


@pytest.mark.parametrize(
    ("name", "options", "sides"),
    [
        ("resnet18", {}, {"32": 56, "16": 28}),
        ("resnet50", {}, {"32": 56, "16": 28}),
        ("densenet121", {}, {"32": 56, "16": 28}),
        ("vgg19", {"mlp_ratio": 0.01}, {"32": 224, "16": 112}),
        ("vgg19_bn", {"mlp_ratio": 0.01}, {"32": 224, "16": 112}),
    ],
)
def test_timms_networks_at_224_have_the_same_masks(name: str, options: dict[str, float], sides: dict[str, int]) -> None:
    assert planned(build(name, **options), "paper", (3, 224, 224)) == listed(LARGE[name], sides)


def test_the_top_of_resnet18_is_layer3_and_layer4() -> None:
    names = ("layer3.0.bn1", "layer3.0.bn2", "layer3.0.downsample.1", "layer3.1.bn1", "layer3.1.bn2")
    expected = [(name, "256x8x8") for name in names]
    expected += [(name.replace("layer3", "layer4"), "512x4x4") for name in names]
    assert planned(build("resnet18_cifar"), "top") == expected


@pytest.mark.parametrize("name", ["resnet18_cifar", "wrn32_4_cifar"])
def test_the_papers_masks_are_a_part_of_the_bottom(name: str) -> None:
    model = build(name, width=8)
    paper, bottom = planned(model, "paper"), planned(model, "bottom")
    assert [site for site in bottom if site in paper] == paper
    # The one difference: the projection that a Wide-ResNet has in its first stage is not masked.
    assert [n for n, _ in bottom if n not in dict(paper)] == ([] if name[0] == "r" else ["layer1.0.downsample.1"])


def test_the_extra_shortcut_of_a_wider_net_is_not_masked() -> None:
    model = build("resnet18_cifar", width=8, widths=(16, 16, 32, 32, 64), project_first=True)
    assert "layer1.0.downsample.1" in dict(planned(model, "bottom"))
    found = planned(model, "paper")
    assert [name for name, _ in found] == [name for name, _ in listed(RESNET18, {})]
    assert {shape for _, shape in found} == {"16x32x32", "32x16x16"}


def test_a_norm_that_no_convolution_owns_is_masked_by_the_papers_placement_only() -> None:
    model = build("senet18_cifar", width=8)
    first = "stages.0.blocks.0.norm1"
    assert first in dict(planned(model, "paper")) and first not in dict(planned(model, "all"))
    with pytest.raises(BlockError):
        plan_defects(model, (first,))


def test_its_mask_shares_its_bits_with_no_other_and_moves_none() -> None:
    model = build("senet18_cifar", width=8)
    everywhere, paper = (defectify(model, blocks, 0.5) for blocks in ("all", "paper"))
    bits = {name: mask for name, mask in paper.state_dict().items() if name.endswith(".mask")}
    first = bits.pop("stages.0.blocks.0.norm1.drop.mask")
    assert all(torch.equal(mask, everywhere.state_dict()[name]) for name, mask in bits.items())
    others = [mask for name, mask in everywhere.state_dict().items() if name.endswith(".mask")]
    assert not any(torch.equal(first, mask) for mask in others)


def test_a_network_that_the_paper_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(BlockError, match="senet18_cifar"):
        plan_defects(SmallNet(), "paper", input_size=(3, 16, 16))

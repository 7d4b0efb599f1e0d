"""The paper's variants by the labels of its tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.errors import SpecError
from dcn_plugin.models import VARIANTS, Variant, build_variant, paper_variant
from tests.models.timm_checks import seeded


def channels(model: nn.Module) -> list[int]:
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    return [model.conv1.out_channels, *(layer[-1].conv2.out_channels for layer in layers)]


@pytest.mark.parametrize(
    ("label", "widths", "count"),
    [
        ("Standard", [64, 64, 128, 256, 512], 11_173_962),
        ("0.5-Bottom DC", [32, 32, 64, 256, 512], 10_505_578),
        ("0.1-Bottom DC", [7, 7, 13, 256, 512], 10_211_859),
        ("0.5-Bottom x2", [128, 128, 256, 256, 512], 13_537_162),
    ],
)
def test_a_variant_has_the_papers_widths_and_number_of_parameters(label: str, widths: list[int], count: int) -> None:
    options = paper_variant(label).options()
    # A mask has no bits on the meta device, so the parameters are counted on the network without masks.
    with torch.device("meta"):
        model = build_variant(Variant(), **{k: options[k] for k in ("widths", "project_first") if k in options})
    assert channels(model) == widths
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("label", VARIANTS)
def test_every_variant_builds_narrow_with_the_masks_that_its_label_says(label: str) -> None:
    variant = VARIANTS[label]
    assert paper_variant(label) == variant
    options = {"sampling": "exact"} if variant.masked else {}
    with seeded():
        model = build_variant(label, width=16, seed=3, **options)
    assert dcn.is_defective(model) == variant.masked == ("Standard" not in label and "DC" not in label)
    if variant.masked:
        spec = dcn.defect_spec(model)
        p = {site.block: site.mask.p for site in spec.sites}
        expected = dict.fromkeys(("stem", "layer1", "layer2"), variant.bottom)
        expected |= dict.fromkeys(("layer3", "layer4"), variant.top)
        assert p == {block: value for block, value in expected.items() if value is not None}
        assert len(spec.sites) == 10 * ((variant.bottom is not None) + (variant.top is not None))
        assert spec.seed == 3 and spec.mode == ("shared" if "SM" in label else "neuron")


def test_the_labels_are_the_rows_of_the_papers_largest_tables() -> None:
    assert len(VARIANTS) == 31
    assert [label for label, variant in VARIANTS.items() if variant.members == 5] == [
        "Standard EN",
        "0.7-Bottom EN",
        "0.5-Bottom EN",
        "0.3-Bottom EN",
        "0.1-Bottom EN",
    ]


@pytest.mark.parametrize(
    ("label", "same"),
    [
        ("0.5-Bottom channel (DC)*", "0.5-Bottom DC"),
        ("0.1-Bottom shared (SM)*", "0.1-Bottom SM"),
        ("0.3-Bottom x2 width*", "0.3-Bottom x2"),
        ("Standard ensemble of 5 (EN)*", "Standard EN"),
        ("0.7-Bottom,0.3-Top", "0.7-Bottom, 0.3-Top"),
        ("standard", "Standard"),
    ],
)
def test_a_label_is_understood_as_the_number_files_spell_it(label: str, same: str) -> None:
    assert paper_variant(label) == VARIANTS[same]


def test_keep_probabilities_that_the_paper_does_not_have_are_understood() -> None:
    assert paper_variant("0.4-Bottom SM") == Variant(0.4, kind="shared")
    assert paper_variant(".45-Bottom, 0.9-Top") == Variant(0.45, 0.9)


@pytest.mark.parametrize(
    "label",
    ["", "Bottom", "0.3-Middle", "1.3-Bottom", "0-Bottom", "0.3-Bottom XL", "0.3-Top DC", "0.3-Top, 0.5-Top", "1"],
)
def test_a_label_that_says_no_variant_is_refused(label: str) -> None:
    with pytest.raises(SpecError):
        paper_variant(label)


def test_every_network_has_the_variants_of_table_4_and_of_mnist() -> None:
    for net, size in (("senet18_cifar", (3, 32, 32)), ("vgg19_cifar.mnist", (1, 28, 28))):
        model = build_variant("0.5-Bottom", net, width=8)
        assert dcn.defect_spec(model).input_size == size and dcn.defect_spec(model).blocks == "paper"


@pytest.mark.parametrize("label", ["0.5-Top", "0.5-Bottom DC", "0.5-Bottom x2", "0.5-Bottom, 0.5-Top"])
def test_what_the_paper_has_for_resnet18_only_is_refused_for_others(label: str) -> None:
    with pytest.raises(SpecError, match="resnet18_cifar"):
        build_variant(label, "vgg19_cifar", width=8)


def test_members_of_an_ensemble_differ_in_their_masks() -> None:
    first, second = (build_variant("0.5-Bottom EN", width=8, seed=seed) for seed in (0, 1))
    a, b = (m.state_dict()["bn1.drop.mask"] for m in (first, second))
    assert not torch.equal(a, b)


def test_a_mask_of_the_shared_variant_is_one_for_all_channels() -> None:
    mask = build_variant("0.5-Bottom SM", width=8).state_dict()["layer1.0.bn1.drop.mask"]
    assert (mask == mask[:, :1]).all() and not mask.all() and mask.any()

"""What a network says about its masks."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import InputSizeError, NotDefectiveError, SpecError
from dcn_plugin.surgery import (
    check_model,
    defect_spec,
    expected_sites,
    image_size,
    is_defective,
    masks_of,
    owner_path,
)
from tests.nets import NoNorm, SmallNet

SIZE = (3, 16, 16)


@pytest.fixture
def net() -> nn.Module:
    return dcn.defectify(SmallNet(), p=0.5, input_size=SIZE)


def by_hand() -> nn.Module:
    """A network whose masks no specification knows."""
    return nn.Sequential(dcn.DefectiveConv2d(3, 4, 3, output_size=14, site=0, p=0.5), nn.ReLU())


def test_masks_are_told_by_the_paths_of_their_modules(net: nn.Module) -> None:
    masks = masks_of(net)
    assert list(masks) == [path for path, module in net.named_modules() if isinstance(module, dcn.DefectMask2d)]
    assert [mask.mask.shape[1:] for mask in masks.values()] == [site.shape for site in defect_spec(net).sites]
    assert is_defective(net) and not is_defective(SmallNet())


def test_a_specification_says_whether_its_masks_were_loaded(net: nn.Module) -> None:
    assert defect_spec(net).mask_origin == "sampled"
    other = dcn.defectify(SmallNet(), p=0.5, seed=1, input_size=SIZE)
    net.load_state_dict(other.state_dict())
    assert defect_spec(net).mask_origin == "loaded"


def test_a_specification_says_the_keep_probabilities_that_the_masks_have_now(net: nn.Module) -> None:
    spec, masks = defect_spec(net), list(masks_of(net).values())
    for mask in masks:
        mask.spec = dataclasses.replace(mask.spec, p=0.75)
    assert defect_spec(net).p == 0.75 and {site.mask.p for site in defect_spec(net).sites} == {0.75}
    for mask in masks[1:]:
        mask.spec = dataclasses.replace(mask.spec, p=0.5)
    blocks = [site.block for site in spec.sites]
    first_alone = blocks.count(blocks[0]) == 1
    names = dict.fromkeys(blocks) if first_alone else [site.name for site in spec.sites]
    p = defect_spec(net).p
    assert isinstance(p, tuple) and [name for name, _ in p] == list(names) and p[0][1] == 0.75
    made_again = dcn.defectify(SmallNet(), **{**defect_spec(net).options, "input_size": SIZE})
    assert [site.mask for site in defect_spec(made_again).sites] == [mask.spec for mask in masks]
    masks[-1].spec = dataclasses.replace(masks[-1].spec, p=0.25)
    made_again = dcn.defectify(SmallNet(), **{**defect_spec(net).options, "input_size": SIZE})
    assert [site.mask for site in defect_spec(made_again).sites] == [mask.spec for mask in masks]


def test_a_specification_takes_over_no_more_than_p(net: nn.Module) -> None:
    spec = defect_spec(net)
    for mask in masks_of(net).values():
        mask.spec = dataclasses.replace(mask.spec, p=0.75, seed=9)
    assert defect_spec(net) == spec


def test_a_specification_is_seen_through_whatever_holds_the_network(net: nn.Module) -> None:
    around = nn.ModuleDict({"inner": net})
    assert defect_spec(around) == defect_spec(net)
    assert expected_sites(around) == [site.name for site in defect_spec(net).sites]


def test_a_network_written_by_hand_has_masks_and_expects_none() -> None:
    hand = by_hand()
    assert is_defective(hand)
    assert len(masks_of(hand)) == 1
    assert expected_sites(hand) == []
    with pytest.raises(NotDefectiveError, match="was not made defective by defectify"):
        defect_spec(hand)


def test_a_plain_network_is_refused_by_name() -> None:
    with pytest.raises(NotDefectiveError, match="carries no defect masks"):
        masks_of(SmallNet())
    with pytest.raises(SpecError, match=r"build it first, e\.g\. timm\.create_model\('resnet18'\)"):
        check_model("resnet18")


def test_masks_that_a_tool_dropped_are_still_expected(net: nn.Module) -> None:
    for path, module in list(net.named_modules()):
        if isinstance(module, dcn.DefectMask2d):
            net.set_submodule(path, nn.Identity())
    assert masks_of(net) == {}
    assert len(expected_sites(net)) > 0


@pytest.mark.parametrize("make", [SmallNet, NoNorm, lambda: timm.create_model("test_resnet")])
def test_the_owner_of_a_mask_is_the_module_whose_slot_it_sits_in(make: type[nn.Module]) -> None:
    net = dcn.defectify(make(), p=0.5, input_size=(3, 32, 32))
    for path in masks_of(net):
        owner = net.get_submodule(owner_path(net, path))
        assert any(isinstance(module, dcn.DefectMask2d) for module in owner.modules())
        assert not isinstance(owner, nn.Sequential | dcn.DefectMask2d)


def test_the_size_of_images_is_given_or_timms() -> None:
    net = timm.create_model("test_resnet")
    assert image_size(net, None) == tuple(net.pretrained_cfg["input_size"])
    assert image_size(net, (1, 8, 8)) == (1, 8, 8)
    with pytest.raises(InputSizeError, match="SmallNet is not known"):
        image_size(SmallNet(), None)


def test_asking_changes_nothing(net: nn.Module) -> None:
    before: dict[str, Tensor] = {name: value.clone() for name, value in net.state_dict().items()}
    masks_of(net), defect_spec(net), expected_sites(net), is_defective(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

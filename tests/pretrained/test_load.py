from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import dcn_plugin as dcn
from dcn_plugin.checkpoint.class_names import class_names_of
from dcn_plugin.errors import CheckpointError, PretrainedError
from dcn_plugin.pretrained import PretrainedCard, load_half, load_pretrained, register_pretrained
from tests.pretrained.toy_cards import SIZE, toy_card, toy_network

IMAGES = torch.rand(4, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("p", [None, 0.5])
def test_a_registered_network_is_the_one_that_was_saved(tmp_path: Path, p: float | None) -> None:
    card = toy_card(tmp_path, p=p)
    register_pretrained(tmp_path / "toy.json")
    net = load_pretrained(card.name)
    assert not any(module.training for module in net.modules())
    assert {tensor.dtype for tensor in net.parameters()} == {torch.float32}
    assert dcn.is_defective(net) == (p is not None)
    assert torch.equal(net(IMAGES), load_half(tmp_path / "toy.safetensors", toy_network(3)).eval()(IMAGES))


def test_a_network_behind_a_url_is_downloaded_into_the_folder_that_is_named(tmp_path: Path) -> None:
    server = tmp_path / "server"
    server.mkdir()
    card = toy_card(server, p=0.5)
    register_pretrained(dataclasses.replace(card, url=(server / card.file).as_uri()))
    first = load_pretrained(card.name, cache_dir=tmp_path / "cache")
    (server / card.file).unlink()
    assert torch.equal(load_pretrained(card.name, cache_dir=tmp_path / "cache")(IMAGES), first(IMAGES))


def test_the_class_names_of_the_card_are_the_networks(tmp_path: Path) -> None:
    card = toy_card(tmp_path)
    assert "class_names" not in card.to_json()  # earlier versions read such cards
    named = dataclasses.replace(card, class_names=["ant", "bee", "cat"])
    assert PretrainedCard.from_json(named.to_json()) == named
    named.write(tmp_path / "toy.json")
    register_pretrained(tmp_path / "toy.json")
    assert class_names_of(load_pretrained(card.name)) == ("ant", "bee", "cat")


def test_the_global_random_state_is_left_alone(tmp_path: Path) -> None:
    toy_card(tmp_path, p=0.5)
    register_pretrained(tmp_path / "toy.json")
    before = torch.get_rng_state()
    load_pretrained("toy_net.tag")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_normalisation_of_the_card_is_inside(tmp_path: Path) -> None:
    toy_card(tmp_path, normalization={"mean": [0.5], "std": [0.25]})
    register_pretrained(tmp_path / "toy.json")
    net = load_pretrained("toy_net.tag")
    bare = load_half(tmp_path / "toy.safetensors", toy_network(3)).eval()
    assert torch.equal(net(IMAGES), bare((IMAGES - 0.5) / 0.25))


def test_a_name_of_timm_is_an_architecture_too(tmp_path: Path) -> None:
    args = {"num_classes": 3, "in_chans": 1, "width": 4, "layers": [1, 1, 1, 1]}
    toy_card(tmp_path, architecture="resnet18_cifar", model_args=args)
    register_pretrained(tmp_path / "toy.json")
    bare = load_half(tmp_path / "toy.safetensors", toy_network(3)).eval()
    assert torch.equal(load_pretrained("toy_net.tag")(IMAGES), bare(IMAGES))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "cifar_resnot"}, "did you mean cifar_resnet"),
        ({"architecture": "os:system"}, "not known here"),
        ({"architecture": "hf-hub:somebody/net"}, "not known here"),
        ({"model_args": {"depth": 3}}, "does not take the arguments"),
    ],
    ids=["a typing error", "code", "a hub", "an unknown argument"],
)
def test_a_card_that_cannot_be_built_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    toy_card(tmp_path, **changes)
    register_pretrained(tmp_path / "toy.json")
    with pytest.raises(PretrainedError, match=says):
        load_pretrained("toy_net.tag")


def test_masks_that_are_not_those_of_the_card_are_refused(tmp_path: Path) -> None:
    toy_card(tmp_path, p=0.5, defects=None)
    register_pretrained(tmp_path / "toy.json")
    with pytest.raises(CheckpointError, match=r"masks in toy\.safetensors.*p=0\.5, seed 5.*no masks"):
        load_pretrained("toy_net.tag")


def test_a_plain_file_under_a_defective_card_is_refused(tmp_path: Path) -> None:
    toy_card(tmp_path, defects=dcn.defect_spec(toy_network(p=0.5)))
    register_pretrained(tmp_path / "toy.json")
    with pytest.raises(CheckpointError, match="no masks"):
        load_pretrained("toy_net.tag")

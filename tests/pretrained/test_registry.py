from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dcn_plugin.errors import PretrainedError
from dcn_plugin.pretrained import list_pretrained, pretrained_card, register_pretrained
from tests.pretrained.toy_cards import toy_card


def test_names_are_listed_by_a_glob() -> None:
    assert list_pretrained() == sorted(list_pretrained())
    assert list_pretrained("digits_resnet.s*") == ["digits_resnet.source", "digits_resnet.standard"]
    assert list_pretrained("no such*") == []


def test_a_registered_card_is_listed_and_found(tmp_path: Path) -> None:
    card = toy_card(tmp_path)
    assert "toy_net.tag" not in list_pretrained()
    assert register_pretrained(tmp_path / "toy.json") == card
    assert "toy_net.tag" in list_pretrained()
    assert pretrained_card("toy_net.tag") == card


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(PretrainedError, match=r"did you mean digits_resnet\.standard") as caught:
        pretrained_card("digits_resnet.standart")
    assert "digits_resnet.defective_p0.3" in str(caught.value)
    with pytest.raises(PretrainedError, match="register_pretrained"):
        pretrained_card("zzz")


def test_a_name_is_taken_only_once_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    card = toy_card(tmp_path, url="https://example.invalid/toy.safetensors")
    other = dataclasses.replace(card, n_correct=1)
    register_pretrained(card)
    register_pretrained(card)  # the same card again, as a notebook's cell does
    with pytest.raises(PretrainedError, match="has this name"):
        register_pretrained(other)
    register_pretrained(other, replace=True)
    assert pretrained_card(card.name) == other


def test_the_names_of_the_package_are_taken(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match="has this name"):
        register_pretrained(toy_card(tmp_path, name="digits_resnet.source", url="https://example.invalid/toy"))


def test_a_card_that_says_nowhere_where_its_weights_are_is_refused(tmp_path: Path) -> None:
    card = toy_card(tmp_path)
    with pytest.raises(PretrainedError, match="where its weights are"):
        register_pretrained(card)
    (tmp_path / "toy.safetensors").unlink()
    with pytest.raises(PretrainedError, match="where its weights are"):
        register_pretrained(tmp_path / "toy.json")

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dcn_plugin.errors import PretrainedError
from dcn_plugin.pretrained import PretrainedCard
from tests.pretrained.toy_cards import toy_card


@pytest.mark.parametrize("p", [None, 0.5])
def test_a_card_is_the_same_after_a_trip_through_its_file(tmp_path: Path, p: float | None) -> None:
    card = toy_card(tmp_path, p=p, url="https://example.invalid/toy", normalization={"mean": (0.5,), "std": (0.2,)})
    again = PretrainedCard.read(tmp_path / "toy.json")
    assert again == card
    assert again.to_json() == card.to_json()
    assert (again.defects is None) == (p is None)
    assert again.accuracy == 0.75


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "two words"),
        ("name", ""),
        ("summary", ""),
        ("architecture", None),
        ("model_args", {"layers": {1, 2}}),
        ("model_args", {"pretrained": True}),
        ("model_args", {"checkpoint_path": "elsewhere.pth"}),
        ("model_args", {1: 2}),
        ("input_size", (16, 16)),
        ("num_classes", 0),
        ("normalization", {"mean": [0.5]}),
        ("data_hash", "0" * 63),
        ("sha256", "A" * 64),
        ("seed", -1),
        ("n_test", 0),
        ("n_test", "many"),
        ("n_correct", 9),
        ("n_correct", True),
        ("file", "../toy.safetensors"),
        ("file", "folder/toy.safetensors"),
        ("file", "toy.pth"),
        ("url", "ftp://example.invalid/toy"),
        ("url", 3),
        ("versions", {"torch": float("nan")}),
        ("class_names", ["ant", "bee"]),
        ("class_names", ["ant", "bee", "bee"]),
        ("class_names", "abc"),
        ("schema", 2),
    ],
    ids=str,
)
def test_a_card_with_an_unusable_field_is_refused_by_its_name(tmp_path: Path, field: str, value: Any) -> None:
    card = toy_card(tmp_path)
    with pytest.raises(PretrainedError, match=field) as caught:
        dataclasses.replace(card, **{field: value})
    assert caught.value.allowed


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw.pop("sha256"),
        lambda raw: raw.update(more=1),
        lambda raw: raw["training"].update(epochs=0),
        lambda raw: raw.update(defects={"p": 0.3}),
    ],
    ids=["a field is missing", "an unknown field", "no training", "no defects"],
)
def test_text_that_is_no_card_is_refused(tmp_path: Path, spoil: Any) -> None:
    raw = json.loads(toy_card(tmp_path).to_json())
    spoil(raw)
    with pytest.raises(PretrainedError, match="no card of a pretrained network"):
        PretrainedCard.from_json(json.dumps(raw))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"], ids=["no JSON", "no object", "no text"])
def test_a_file_that_is_no_card_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(PretrainedError, match="card of a pretrained network"):
        PretrainedCard.read(tmp_path / "card.json")


def test_a_card_does_not_change_with_what_it_was_made_from(tmp_path: Path) -> None:
    args = {"layers": [1, 1, 1, 1], "in_chans": 1}
    card = toy_card(tmp_path, model_args=args)
    args["in_chans"] = 3
    assert card.model_args["in_chans"] == 1

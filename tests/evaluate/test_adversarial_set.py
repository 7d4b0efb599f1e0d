"""Adversarial images of one attack on one source: what a batch says, what is kept, and what the key depends on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from dcn_plugin.attacks import CW, PGD
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.evaluate import AdversarialSet, RunDirectory, measure_targets
from tests.evaluate.conftest import Asked

ATTACK = PGD(0.15, steps=3)


def test_the_set_says_of_each_image_what_an_attack_on_all_of_them_at_once_says(
    models: dict[str, Asked], data: ImageSet
) -> None:
    adversarial = AdversarialSet("a", models["a"], ATTACK, data, batch_size=32)
    result = ATTACK(models["a"], data.images, data.labels)
    batches = list(adversarial)
    assert [(batch.first, len(batch.images)) for batch in batches] == [(0, 32), (32, 32), (64, 16)]
    for batch in batches:
        rows = slice(batch.first, batch.first + 32)
        torch.testing.assert_close(batch.images, result.images[rows])
        assert torch.equal(batch.labels, data.labels[rows])
        for column, expected in (
            ("source_correct", result.correct), ("fooled", result.fooled), ("zero_gradient", result.zero_gradient),
            ("started", result.started), ("queries", result.queries),
            ("backward_passes", result.backward_passes),
        ):  # fmt: skip
            assert torch.equal(getattr(batch, column), expected[rows]), column
        furthest = (batch.images - data.images[rows]).double().abs().flatten(1).amax(1)
        torch.testing.assert_close(batch.change, furthest)
    assert 0 < int(result.fooled.sum()) < int(result.correct.sum())
    assert (adversarial.title, len(adversarial)) == ("PGD on a", 80)


def test_images_are_fooled_as_they_were_before_rounding_and_changed_as_they_are_after_it(
    models: dict[str, Asked], data: ImageSet
) -> None:
    class Half(PGD):
        """Adds half a level of 8 bits, which rounding takes away or doubles."""

        def perturb(self, run: Any) -> Tensor:
            return (run.images + 0.45 / 255).clamp(0, 1)

    levels = ImageSet((data.images * 255).round() / 255, data.labels, 3, "levels")
    plain = AdversarialSet("a", models["a"], Half(0.01), levels).loaded
    rounded = AdversarialSet("a", models["a"], Half(0.01), levels, "8bit").loaded
    assert torch.equal(rounded.images, levels.images)
    assert not rounded.change.any() and plain.change.max() > 0.4 / 255
    for column in ("fooled", "source_correct", "distance", "queries"):
        torch.testing.assert_close(getattr(rounded, column), getattr(plain, column), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("limit", "sizes"), [(10, [4, 4, 2]), (8, [4, 4]), (3, [3]), (200, [4] * 20), (None, [4] * 20)]
)
def test_a_limit_takes_the_first_images_only(
    models: dict[str, Asked], data: ImageSet, limit: int | None, sizes: list[int]
) -> None:
    adversarial = AdversarialSet("a", models["a"], PGD(0.1, steps=1), data, batch_size=4, limit=limit)
    batches = list(adversarial)
    assert [len(batch.images) for batch in batches] == sizes
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.labels[:limit])
    assert len(adversarial) == adversarial.described["n_total"] == sum(sizes)


def test_without_a_store_each_look_attacks_anew_until_the_set_is_loaded(
    models: dict[str, Asked], data: ImageSet
) -> None:
    adversarial = AdversarialSet("a", models["a"], ATTACK, data, batch_size=32)
    first = [batch.images for batch in adversarial]
    rows = models["a"].rows
    for again, images in zip(adversarial, first, strict=True):
        assert torch.equal(again.images, images)
    assert models["a"].rows > rows
    everything, rows = adversarial.loaded, models["a"].rows
    assert (everything.first, len(everything.images)) == (0, 80)
    for batch in adversarial:
        assert torch.equal(batch.images, everything.images[batch.first : batch.first + 32])
        assert torch.equal(batch.queries, everything.queries[batch.first : batch.first + 32])
    assert models["a"].rows == rows


def test_a_part_of_a_batch_keeps_its_columns_and_its_place(models: dict[str, Asked], data: ImageSet) -> None:
    *_, last = AdversarialSet("a", models["a"], ATTACK, data, batch_size=32)
    part = last.part(70, 4)
    assert part.first == 70
    assert torch.equal(part.images, last.images[6:10])
    assert torch.equal(part.labels, data.labels[70:74])
    assert len(last.part(78, 4).fooled) == 2  # at most those that there are


@pytest.mark.parametrize(
    "change",
    [
        {"source": "b"}, {"attack": PGD(0.15, steps=4)}, {"attack": CW(steps=3)}, {"rounding": "8bit"},
        {"batch_size": 16}, {"limit": 5}, {"data": "other"},
    ],
)  # fmt: skip
def test_the_key_changes_with_whatever_the_images_depend_on(
    models: dict[str, Asked], data: ImageSet, change: dict[str, Any]
) -> None:
    if "source" in change:
        change = {"source": models["b"]}
    if "data" in change:
        change = {"data": ImageSet(data.images.flip(0), data.labels, 3, "toy")}
    settings: dict[str, Any] = {"source": models["a"], "attack": ATTACK, "data": data}
    known = AdversarialSet("a", **settings).key
    assert known is not None
    assert AdversarialSet("another name", **settings).key == known
    assert AdversarialSet("a", **{**settings, **change}).key != known


def test_the_source_is_hashed_by_the_run_that_asks(models: dict[str, Asked], data: ImageSet) -> None:
    asked: list[object] = []

    def key(model: object) -> dict[str, Any]:
        asked.append(model)
        return {"model": "mine"}

    adversarial = AdversarialSet("a", models["a"], ATTACK, data, model_key=key)
    assert adversarial.key is not None and adversarial.key["source"] == {"model": "mine"}
    assert asked[0] is models["a"]


def test_a_set_without_a_key_is_made_and_not_kept_and_the_log_says_so(
    tmp_path: Path, models: dict[str, Asked], data: ImageSet, caplog: pytest.LogCaptureFixture
) -> None:
    adversarial = AdversarialSet(
        "a", models["a"], ATTACK, data, store=RunDirectory(tmp_path), model_key=lambda model: None
    )
    with caplog.at_level(logging.WARNING):
        assert sum(len(batch.images) for batch in adversarial) == 80
    assert adversarial.key is None
    assert "The images of PGD on a are not kept" in caplog.text
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_first_batch_keeps_some_fooled_images_to_look_at(
    tmp_path: Path, models: dict[str, Asked], data: ImageSet
) -> None:
    first, *rest = list(AdversarialSet("a", models["a"], ATTACK, data, "8bit", 32, RunDirectory(tmp_path)))
    files = sorted(tmp_path.glob("sets/*/*.safetensors"))
    columns = safetensors.torch.load_file(files[0])
    rows = first.fooled.nonzero().flatten()[:6]
    assert torch.equal(columns["example_clean"], data.images[rows])
    assert torch.equal(columns["example_labels"], data.labels[rows])
    with torch.no_grad():
        expected = models["a"](ATTACK(models["a"], data.images[:32], data.labels[:32]).images[rows]).argmax(1)
    assert torch.equal(columns["example_said"], expected)
    assert (columns["example_said"] != columns["example_labels"]).all()
    assert columns["images"].dtype == torch.uint8
    for path in files[1:]:
        assert not any(name.startswith("example") for name in safetensors.torch.load_file(path))
    assert len(files) == 1 + len(rest)


def test_a_record_is_told_what_data_and_attack_it_was(models: dict[str, Asked], data: ImageSet) -> None:
    assert AdversarialSet("a", models["a"], ATTACK, data, "8bit", limit=7).described == {
        "data": "toy", "data_hash": data.content_hash, "n_total": 7, "attack": "PGD",
        "attack_settings": ATTACK.settings, "eps": 0.15, "steps": 3, "rounding": "8bit",
    }  # fmt: skip
    without_ball = AdversarialSet("a", models["a"], CW(steps=5), data).described
    assert (without_ball["eps"], without_ball["steps"]) == (None, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 0}, SpecError, "batch size"),
        ({"limit": 0}, SpecError, "number of images"),
        ({"rounding": "16bit"}, SpecError, "8bit"),
        ({"store": "folder"}, SpecError, "RunDirectory"),
        ({"data": [1, 2]}, DataError, "images"),
        ({"source": "resnet18"}, SpecError, "Source 'a'"),
        ({"attack": "pgd"}, SpecError, "attack"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(
    models: dict[str, Asked], data: ImageSet, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"source": models["a"], "attack": ATTACK, "data": data, **change}
    with pytest.raises(error, match=message):
        AdversarialSet("a", **arguments)


def test_a_damaged_batch_of_images_is_made_again(tmp_path: Path, models: dict[str, Asked], data: ImageSet) -> None:
    adversarial = AdversarialSet("a", models["a"], ATTACK, data, "none", 32, RunDirectory(tmp_path))
    before = torch.cat([batch.images for batch in adversarial])
    victim = sorted(tmp_path.glob("sets/*/*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:100])
    assert torch.equal(torch.cat([batch.images for batch in adversarial]), before)


def test_images_rounded_to_8_bits_are_kept_as_bytes_and_read_back_bit_equal(
    tmp_path: Path, models: dict[str, Asked], data: ImageSet
) -> None:
    store = RunDirectory(tmp_path)
    adversarial = AdversarialSet("a", models["a"], ATTACK, data, "8bit", 32, store)
    first = [batch.images for batch in adversarial]
    rows = models["a"].rows
    again = [batch.images for batch in adversarial]
    assert models["a"].rows == rows  # nothing is attacked a second time
    assert all(torch.equal(before, after) for before, after in zip(first, again, strict=True))
    as_bytes = sum(path.stat().st_size for path in tmp_path.glob("sets/*/*.safetensors"))
    list(AdversarialSet("a", models["a"], ATTACK, data, "none", 32, RunDirectory(tmp_path / "float")))
    as_floats = sum(path.stat().st_size for path in tmp_path.glob("float/sets/*/*.safetensors"))
    # Three bytes of four of each pixel, but for what the headers differ in.
    assert as_floats - as_bytes == pytest.approx(3 * data.images.numel(), abs=100)


def test_rounding_gives_images_of_256_levels_and_is_recorded(models: dict[str, Asked], data: ImageSet) -> None:
    adversarial = AdversarialSet("a", models["a"], ATTACK, data, rounding="8bit")
    plain = AdversarialSet("a", models["a"], ATTACK, data)
    levels = adversarial.loaded.images * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert (adversarial.loaded.images - plain.loaded.images).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(adversarial.loaded.fooled, plain.loaded.fooled)  # judged before rounding
    assert measure_targets(adversarial, models, seed=0)[0].rounding == "8bit"
    with pytest.raises(SpecError, match="rounding"):
        AdversarialSet("a", models["a"], ATTACK, data, rounding="16bit")  # type: ignore[arg-type]

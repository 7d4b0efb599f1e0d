from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dcn_plugin.data import ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import Change, RunDirectory, measure_changes
from tests.evaluate.conftest import Asked


def mirrored(images: Tensor, labels: Tensor, first: int) -> Tensor:
    return images.flip(-1)


MIRROR = Change("mirror", mirrored, {"axis": "width"})


def test_counts_agree_with_a_slow_loop_over_single_images(models: dict[str, Asked], data: ImageSet) -> None:
    results = list(measure_changes("mirror", models, data, [MIRROR], seed=1, confidence=0.6, batch_size=13))
    expected = {name: {"clean": 0, "defended": 0, "correct": 0} for name in models}
    counted = 0
    for image, label in zip(data.images, data.labels.tolist(), strict=True):
        with torch.no_grad():
            clean = {name: model(image[None])[0].softmax(0) for name, model in models.items()}
            after = {name: int(model(image[None].flip(-1)).argmax()) for name, model in models.items()}
        counts = all(int(p.argmax()) == label and p[label] >= 0.6 for p in clean.values())
        counted += counts
        for name, own in expected.items():
            own["clean"] += int(clean[name].argmax()) == label
            own["correct"] += after[name] == label
            own["defended"] += counts and after[name] == label
    assert [r.target for r in results] == list(models)
    for result in results:
        own = expected[result.target]
        assert (result.n_counted, result.n_clean_correct, result.n_defended, result.n_correct) == (
            counted,
            *own.values(),
        )
        assert result.attack_settings == {"axis": "width", "confidence": 0.6}
    assert 0 < counted < len(data)


def test_a_change_is_told_where_its_batch_begins_and_what_its_labels_are(
    models: dict[str, Asked], data: ImageSet
) -> None:
    seen: list[tuple[int, int]] = []

    def watch(images: Tensor, labels: Tensor, first: int) -> Tensor:
        assert torch.equal(labels, data.labels[first : first + len(labels)])
        assert torch.equal(images, data.images[first : first + len(labels)])
        seen.append((first, len(labels)))
        return images

    list(measure_changes("none", models, data, [Change("none", watch)], seed=0, batch_size=33))
    assert seen == [(0, 33), (33, 33), (66, 14)]


def test_clean_images_are_asked_about_once_for_all_changes(models: dict[str, Asked], data: ImageSet) -> None:
    list(measure_changes("mirror", models, data, [MIRROR, MIRROR, MIRROR], seed=0))
    assert {model.rows for model in models.values()} == {
        4 * len(data) + 1
    }  # one black image shows whether a model takes the data


def test_other_targets_or_settings_are_measured_anew(models: dict[str, Asked], data: ImageSet, tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    list(measure_changes("mirror", models, data, [MIRROR], seed=0, store=store))
    rows = models["a"].rows
    list(measure_changes("mirror", {"a": models["a"]}, data, [MIRROR], seed=0, store=store))
    assert models["a"].rows == 2 * rows  # fewer targets, other images count
    list(measure_changes("mirror", models, data, [Change("mirror", mirrored, {"axis": "x"})], seed=0, store=store))
    assert models["a"].rows == 3 * rows


@pytest.mark.parametrize("confidence", [-0.1, 1.1, float("nan")])
def test_a_confidence_that_is_no_probability_is_refused(
    models: dict[str, Asked], data: ImageSet, confidence: float
) -> None:
    with pytest.raises(SpecError, match="confidence"):
        next(measure_changes("mirror", models, data, [MIRROR], seed=0, confidence=confidence))


def test_nothing_to_measure_is_an_error(models: dict[str, Asked], data: ImageSet) -> None:
    for targets, changes in (({}, [MIRROR]), (models, [])):
        with pytest.raises(SpecError, match="nothing to measure"):
            next(measure_changes("mirror", targets, data, changes, seed=0))  # type: ignore[arg-type]

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dcn_plugin.data import patch_permutations, patch_shuffle
from dcn_plugin.errors import ModelOutputError, SpecError
from dcn_plugin.evaluate import RunDirectory, shuffle
from tests.evaluate.watched import WatchedImages, count_calls, known_set, says, two_models
from tests.toys import linear_model

MODELS = two_models()


@pytest.mark.parametrize("confidence", [0.0, 0.9])
def test_counts_agree_with_a_slow_loop_over_single_images(confidence: float) -> None:
    data = known_set()
    results = list(shuffle(MODELS, data, [2, 4], seed=9, shuffle_seed=5, confidence=confidence, batch_size=7))
    assert [(r.attack_settings["k"], r.target) for r in results] == [(2, "a"), (2, "b"), (4, "a"), (4, "b")]
    for result in results:
        k = int(result.attack_settings["k"])  # type: ignore[arg-type]
        counted = defended = right = clean = 0
        for place, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
            order = patch_permutations(1, k, seed=5, first_index=place)[0].tolist()
            side = 8 // k
            moved = image.clone()
            for to, origin in enumerate(order):
                (y, x), (v, u) = divmod(to, k), divmod(origin, k)
                moved[:, y * side : (y + 1) * side, x * side : (x + 1) * side] = image[
                    :, v * side : (v + 1) * side, u * side : (u + 1) * side
                ]
            with torch.no_grad():
                sure = all(m(image[None]).softmax(1)[0, label] >= confidence for m in MODELS.values())
            counts = sure and all(says(m, image) == label for m in MODELS.values())
            still = says(MODELS[result.target], moved) == label
            counted += counts
            defended += counts and still
            right += still
            clean += says(MODELS[result.target], image) == label
        assert (result.n_counted, result.n_defended) == (counted, defended)
        assert (result.n_correct, result.n_clean_correct) == (right, clean)
        assert 0 < defended < counted
    assert {(r.protocol, r.attack, r.seed, r.attack_settings["shuffle_seed"]) for r in results} == {
        ("shuffle", "patch shuffle", 9, 5)
    }


def test_the_confidence_that_counts_is_the_papers_by_default_and_is_recorded() -> None:
    (result,) = shuffle({"a": MODELS["a"]}, known_set(), [2], seed=0)
    (lenient,) = shuffle({"a": MODELS["a"]}, known_set(), [2], seed=0, confidence=0.5)
    assert result.attack_settings["confidence"] == 0.99
    assert 0 < result.n_counted < lenient.n_counted


def test_a_model_that_is_never_sure_counts_no_image() -> None:
    unsure = linear_model(64)
    with torch.no_grad():
        unsure[1].weight.mul_(1e-3)  # type: ignore[index]
    (result,) = shuffle({"unsure": unsure}, known_set(), [2], seed=0)
    assert (result.n_counted, result.defense_rate) == (0, None)
    assert result.n_clean_correct == 54


def test_a_k_that_does_not_divide_the_images_is_refused_before_a_model_is_asked() -> None:
    model = linear_model(64)
    calls = count_calls(model)
    with pytest.raises(SpecError, match="3 x 3"):
        shuffle({"a": model}, known_set(), [2, 3], seed=0)
    assert not calls


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"targets": {}}, "target"), ({"ks": []}, "change"), ({"confidence": 1.5}, "confidence")],
)
def test_nothing_to_measure_is_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        next(shuffle(**{"targets": MODELS, "data": known_set(), "seed": 0} | arguments))  # type: ignore[arg-type]


def test_logits_that_are_no_numbers_are_refused() -> None:
    broken = linear_model(64)
    with torch.no_grad():
        broken[1].bias.fill_(torch.nan)  # type: ignore[index]
    with pytest.raises(ModelOutputError, match="finite"):
        next(shuffle({"broken": broken}, known_set(), [2], seed=0))


def test_a_finished_measurement_is_not_asked_again_and_a_missing_k_is(tmp_path: Path) -> None:
    model, data = linear_model(64), known_set()
    calls = count_calls(model)
    first = list(shuffle({"a": model}, data, [2], seed=0, store=RunDirectory(tmp_path)))
    assert calls
    calls.clear()
    assert list(shuffle({"a": model}, data, [2], seed=0, store=RunDirectory(tmp_path))) == first
    assert not calls
    more = list(shuffle({"a": model}, data, [2, 4], seed=0, store=RunDirectory(tmp_path)))
    assert more[0] == first[0]
    assert calls
    calls.clear()
    list(shuffle({"a": model}, data, [2], seed=0, shuffle_seed=1, store=RunDirectory(tmp_path)))
    assert calls


def test_images_are_read_a_batch_at_a_time_whose_size_changes_nothing() -> None:
    data = WatchedImages(known_set())
    small = list(shuffle(MODELS, data, seed=0, batch_size=7))
    assert data.largest == 7
    assert small == list(shuffle(MODELS, data, seed=0, batch_size=60))


def test_one_patch_leaves_every_image_as_it_is() -> None:
    data = known_set()
    (result,) = shuffle({"a": MODELS["a"]}, data, [1], seed=0)
    assert result.defense_rate == 1
    assert torch.equal(patch_shuffle(data.images, 1), data.images)

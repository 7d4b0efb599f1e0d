from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dcn_plugin.data import ImageSet, paired_folders
from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.evaluate import RunDirectory, stylized
from tests.evaluate.watched import WatchedImages, count_calls, known_set, says, two_models
from tests.image_files import pixels, write_image
from tests.toys import images, linear_model

MODELS = two_models()


def pair() -> tuple[ImageSet, ImageSet]:
    """Images, and the same with others shining through."""
    plain = known_set()
    painted = 0.7 * plain.images + 0.3 * images(len(plain), seed=1, shape=(1, 8, 8))
    return plain, ImageSet(painted, plain.labels, 3, "painted")


def test_counts_agree_with_a_slow_loop_over_single_images() -> None:
    plain, painted = pair()
    results = list(stylized(MODELS, plain, painted, seed=9, batch_size=7))
    assert [r.target for r in results] == ["a", "b"]
    for result in results:
        counted = defended = right = 0
        for clean, changed, label in zip(plain.images, painted.images, plain.labels.tolist(), strict=True):
            counts = all(says(m, clean) == label for m in MODELS.values())
            still = says(MODELS[result.target], changed) == label
            counted += counts
            defended += counts and still
            right += still
        assert (result.n_counted, result.n_defended, result.n_correct) == (counted, defended, right)
        assert 0 < defended < counted
        assert (result.protocol, result.attack, result.seed, result.data) == ("stylized", "stylized", 9, "toy")
        assert result.data_hash == plain.content_hash
        assert result.attack_settings == {"images": "painted", "images_hash": painted.content_hash}


def test_paired_folders_are_measured_pair_by_pair(tmp_path: Path) -> None:
    for place, name in enumerate(["cat/0", "cat/1", "dog/0"]):
        write_image(tmp_path / "plain" / f"{name}.png", pixels(seed=place))
        write_image(tmp_path / "painted" / f"{name}-stylized-x.png", pixels(seed=10 + place))
    plain, painted = paired_folders(tmp_path / "plain", tmp_path / "painted")
    model = linear_model(3 * 64, 2)
    (result,) = stylized({"a": model}, plain, painted, seed=0, batch_size=2)
    everything = painted.take(torch.arange(3))
    expected = [says(model, image) == label for image, label in zip(everything, [0, 0, 1], strict=True)]
    assert (result.n_total, result.n_correct) == (3, sum(expected))


@pytest.mark.parametrize("broken", ["length", "size", "labels"])
def test_sets_that_are_no_pairs_are_refused_by_name_before_a_model_is_asked(broken: str) -> None:
    plain, painted = pair()
    other = {
        "length": ImageSet(painted.images[:-1], painted.labels[:-1], 3, "painted"),
        "size": ImageSet(painted.images[..., :-1], painted.labels, 3, "painted"),
        "labels": ImageSet(painted.images, painted.labels.flip(0), 3, "painted"),
    }[broken]
    model = linear_model(64)
    calls = count_calls(model)
    with pytest.raises(DataError, match=r"'painted'.*'toy'"):
        stylized({"a": model}, plain, other, seed=0)
    assert not calls


def test_no_target_is_refused() -> None:
    with pytest.raises(SpecError, match="target"):
        next(stylized({}, *pair(), seed=0))


def test_a_finished_measurement_is_not_asked_again_unless_the_pictures_changed(tmp_path: Path) -> None:
    model, (plain, painted) = linear_model(64), pair()
    calls = count_calls(model)
    first = list(stylized({"a": model}, plain, painted, seed=0, store=RunDirectory(tmp_path)))
    assert calls
    calls.clear()
    assert list(stylized({"a": model}, plain, painted, seed=0, store=RunDirectory(tmp_path))) == first
    assert not calls
    repainted = ImageSet(painted.images.flip(3), painted.labels, 3, "painted")
    assert list(stylized({"a": model}, plain, repainted, seed=0, store=RunDirectory(tmp_path))) != first
    assert calls


def test_both_sets_are_read_a_batch_at_a_time_whose_size_changes_nothing() -> None:
    plain, painted = map(WatchedImages, pair())
    small = list(stylized(MODELS, plain, painted, seed=0, batch_size=7))
    assert (plain.largest, painted.largest) == (7, 7)
    assert small == list(stylized(MODELS, plain, painted, seed=0, batch_size=60))

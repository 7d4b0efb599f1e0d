from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.checkpoint.class_names import name_classes
from dcn_plugin.data import CUE_CLASSES, CueConflict
from dcn_plugin.errors import ClassesError, InputSizeError, ModelOutputError, SpecError
from dcn_plugin.evaluate import RunDirectory, cue_conflict, cue_decisions, wilson
from tests.evaluate.watched import count_calls, says
from tests.image_files import pixels, write_image
from tests.toys import linear_model

THREE = ("bear", "bird", "cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of three shapes and three textures, four of each pair; 36 have a conflict."""
    root, seed = tmp_path_factory.mktemp("cue"), 0
    for shape in THREE:
        for texture in THREE:
            for number in range(4):
                write_image(root / shape / f"{shape}{number}-{texture}{number}.png", pixels(4, 4, seed=seed))
                seed += 1
    return root


@pytest.fixture
def data(folder: Path) -> CueConflict:
    return CueConflict(folder, class_names=THREE)


def test_the_shape_bias_agrees_with_a_slow_loop_over_single_images(data: CueConflict) -> None:
    models: dict[str, nn.Module] = {name: linear_model(48, 3, seed=seed) for name, seed in (("a", 0), ("b", 1))}
    results = list(cue_conflict(models, data, seed=9, batch_size=7))
    assert [r.target for r in results] == ["a", "b"]
    for result in results:
        n_shape = n_texture = 0
        for place, image in enumerate(data.take(torch.arange(len(data)))):
            said = says(models[result.target], image)
            n_shape += said == int(data.labels[place])
            n_texture += said == int(data.texture_labels[place])
        low, high = wilson(n_shape, n_shape + n_texture)
        assert result.figures == {
            "shape_bias": n_shape / (n_shape + n_texture),
            "shape_bias_low": low,
            "shape_bias_high": high,
            "n_shape": n_shape,
            "n_texture": n_texture,
        }
        assert n_shape > 0 < n_texture
        assert (result.n_total, result.n_counted) == (24, n_shape + n_texture)
        assert result.n_counted < result.n_total
        assert (result.n_clean_correct, result.n_defended, result.n_correct) == (None, None, None)
        assert (result.protocol, result.seed) == ("cue-conflict", 9)
        assert result.attack_settings == {"class_map": "identity", "model_classes": 3}


class Always(nn.Module):
    """Says one class, whatever it sees."""

    def __init__(self, number: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("row", 5 * torch.eye(classes)[number])

    def forward(self, x: Tensor) -> Tensor:
        return self.row.expand(len(x), -1)  # type: ignore[operator]


class Reader(nn.Module):
    """Knows every image and says its shape, or its texture."""

    def __init__(self, data: CueConflict, answers: Tensor) -> None:
        super().__init__()
        self.known, self.answers, self.classes = data.take(torch.arange(len(data))), answers, data.num_classes

    def forward(self, x: Tensor) -> Tensor:
        place = (x[:, None] - self.known[None]).flatten(2).abs().sum(2).argmin(1)
        return nn.functional.one_hot(self.answers[place], self.classes).float() * 5


def test_a_model_that_sees_shapes_has_a_bias_of_one_and_one_that_sees_textures_of_zero(data: CueConflict) -> None:
    readers: dict[str, nn.Module] = {"shape": Reader(data, data.labels), "texture": Reader(data, data.texture_labels)}
    shape, texture = cue_conflict(readers, data, seed=0)
    assert (shape.figures["shape_bias"], shape.n_counted) == (1, 24)
    assert (texture.figures["shape_bias"], texture.n_counted) == (0, 24)


def test_answers_that_name_neither_cue_leave_no_bias(folder: Path) -> None:
    (result,) = cue_conflict({"knife": Always(CUE_CLASSES.index("knife"), 16)}, CueConflict(folder), seed=0)
    assert result.n_counted == 0
    assert (result.figures["shape_bias"], result.figures["shape_bias_low"]) == (None, None)


def slow_decision(logits: Sequence[float], class_map: Sequence[int | None], num_cues: int) -> int:
    """Softmax, then the mean over each cue's classes, as model-vs-human does it."""
    shifted = np.exp(np.array(logits) - max(logits))
    probabilities = shifted / shifted.sum()
    averages = []
    for cue in range(num_cues):
        members = [probabilities[i] for i, mapped in enumerate(class_map) if mapped == cue]
        averages.append(np.mean(members) if members else -1)
    return int(np.argmax(averages))


def test_decisions_average_the_probabilities_of_each_cues_classes() -> None:
    class_map = [2, None, 0, 0, 0, 1, None, 1, 2, 0]
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) * 2
    expected = [slow_decision(row, class_map, 3) for row in logits.double().tolist()]
    assert cue_decisions(logits, class_map, 3).tolist() == expected
    sums = torch.zeros(200, 3).index_add(
        1, torch.tensor([2, 0, 0, 0, 1, 1, 2, 0]), logits.softmax(1)[:, [0, 2, 3, 4, 5, 7, 8, 9]]
    )
    assert sums.argmax(1).tolist() != expected


def test_a_decision_is_made_although_every_probability_rounds_to_zero() -> None:
    logits = torch.tensor([[5000.0, -10.0, 10.0, 0.0]])
    assert cue_decisions(logits, [None, 0, 1, 2], 3).tolist() == [1]
    assert cue_decisions(logits, [2, 0, 1, 2], 3).tolist() == [2]


def test_a_class_map_serves_models_of_other_classes(data: CueConflict) -> None:
    class_map = [None, 2, 1, 0, 0, None]
    model = linear_model(48, 6)
    (result,) = cue_conflict({"a": model}, data, seed=0, class_map=class_map)
    n_shape = n_texture = 0
    for place, image in enumerate(data.take(torch.arange(len(data)))):
        with torch.no_grad():
            said = slow_decision(model(image[None])[0].double().tolist(), class_map, 3)
        n_shape += said == int(data.labels[place])
        n_texture += said == int(data.texture_labels[place])
    assert (result.figures["n_shape"], result.figures["n_texture"]) == (n_shape, n_texture)
    assert result.attack_settings["model_classes"] == 6
    assert result.attack_settings["class_map"] != "identity"


@pytest.mark.parametrize(
    ("class_map", "match"), [([0, 1, 2, 3], "does not have"), ([-1, 0, 1, 2], "does not have"), ([0, 1, None], "cat")]
)
def test_a_map_to_strange_classes_or_without_a_class_of_the_images_is_refused(
    data: CueConflict, class_map: list[int | None], match: str
) -> None:
    with pytest.raises(SpecError, match=match):
        cue_conflict({"a": linear_model(48, len(class_map))}, data, seed=0, class_map=class_map)


def test_a_model_of_other_classes_than_the_map_is_refused(data: CueConflict) -> None:
    with pytest.raises(ModelOutputError, match="class_map"):
        next(cue_conflict({"a": linear_model(48, 10)}, data, seed=0))


def test_no_target_is_refused(data: CueConflict) -> None:
    with pytest.raises(SpecError, match="target"):
        cue_conflict({}, data, seed=0)


def test_a_finished_measurement_is_not_asked_again(data: CueConflict, tmp_path: Path) -> None:
    model = linear_model(48, 3)
    calls = count_calls(model)
    first = list(cue_conflict({"a": model}, data, seed=0, batch_size=5, store=RunDirectory(tmp_path)))
    assert max(calls) == 5
    calls.clear()
    assert list(cue_conflict({"a": model}, data, seed=0, batch_size=5, store=RunDirectory(tmp_path))) == first
    assert not calls
    list(cue_conflict({"a": model}, data, seed=0, class_map=[1, 0, 2], store=RunDirectory(tmp_path)))
    assert calls


def test_all_targets_are_looked_at_before_the_first_is_measured(data: CueConflict) -> None:
    first = linear_model(48, 3)
    calls = count_calls(first)
    with pytest.raises(InputSizeError, match="'small' does not take"):
        list(cue_conflict({"a": first, "small": linear_model(47, 3)}, data, seed=0))
    with pytest.raises(ModelOutputError, match="classes of many"):
        list(cue_conflict({"a": first, "many": linear_model(48, 4)}, data, seed=0))
    assert calls == [1, 1]
    named = linear_model(48, 3)
    name_classes(named, list(reversed(THREE)))
    with pytest.raises(ClassesError, match="'named'"):
        next(cue_conflict({"named": named}, data, seed=0))
    assert len(list(cue_conflict({"named": named}, data, seed=0, class_map=[2, 1, 0]))) == 1

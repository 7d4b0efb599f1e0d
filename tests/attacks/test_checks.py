"""Images, labels and logits at the border of the attacks: what is refused, and what the error says to do."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict, namedtuple
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import PGD
from dcn_plugin.attacks.checks import (
    check_answers,
    check_images,
    check_labels,
    check_logits,
    described,
    warn_if_probabilities,
)
from dcn_plugin.errors import ImageRangeError, LabelError, ModelOutputError
from tests.toys import images, linear_model


def labels(count: int) -> Tensor:
    return torch.arange(count) % 3


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), "floating point"),
        (torch.zeros(1, 4, 4), "NCHW|N, C, H, W"),
        (torch.zeros(0, 1, 4, 4), "N >= 1"),
        (torch.full((3, 1, 4, 4), 255.0), "divide 8-bit images by 255"),
        (torch.full((3, 1, 4, 4), -0.01), "range"),
        (torch.full((3, 1, 4, 4), float("nan")), "range"),
    ],
)
def test_images_that_are_none_are_refused_by_name(bad: Tensor, why: str) -> None:
    with pytest.raises(ImageRangeError, match=why):
        PGD(0.1, steps=1)(linear_model(16), bad, labels(len(bad)))


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3),
        torch.zeros(4, dtype=torch.int64),
        torch.eye(3, dtype=torch.int64),
        torch.tensor([0, 1, 3]),
        torch.tensor([0, 1, -1]),
        torch.tensor([True, False, True]),
    ],
)
def test_labels_that_are_none_are_refused_by_name(bad: Tensor) -> None:
    with pytest.raises(LabelError):
        PGD(0.1, steps=1)(linear_model(16), images(3), bad)


@pytest.mark.parametrize(
    "out",
    [
        lambda x: x,
        lambda x: (x.flatten(1),),
        lambda x: x.flatten(1)[:2],
        lambda x: x.flatten(1) * float("nan"),
        lambda x: x.flatten(1).argmax(1),
    ],
    ids=["4-d", "tuple", "other batch", "nan", "classes"],
)
def test_a_model_that_returns_no_logits_is_refused_by_name(out: object) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            assert callable(out)
            return out(x)

    with pytest.raises(ModelOutputError):
        PGD(0.1, steps=1)(Odd(), images(3), labels(3))


def test_a_model_that_returns_probabilities_is_warned_about_and_one_with_logits_is_not() -> None:
    with pytest.warns(UserWarning, match="probabilities"):
        PGD(0.1, steps=1)(nn.Sequential(linear_model(16), nn.Softmax(dim=1)), images(3), labels(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(0.1, steps=1)(linear_model(16), images(3), labels(3))


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        (torch.zeros(3, 1, dtype=torch.int64), r"labels\.flatten\(\)"),
        (torch.eye(3), r"labels\.argmax\(1\)"),
        (torch.zeros(3), r"labels\.long\(\)"),
    ],
)
def test_the_advice_fits_the_labels(labels: Tensor, advice: str) -> None:
    with pytest.raises(LabelError, match=advice):
        check_labels(labels, count=3)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_the_two_logits_that_the_error_tells_of_have_the_sigmoid_as_their_softmax(shape: tuple[int, ...]) -> None:
    said = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for check in (check_logits, check_answers):
        with pytest.raises(ModelOutputError) as caught:
            check(said, count=5)
    first, second = re.findall(r"with z = (.*), return (torch.stack.*\));", str(caught.value.fix))[0]
    names: dict[str, Any] = {"torch": torch, "model": lambda images: images, "images": said}
    names["z"] = eval(first, names)
    two = cast(Tensor, eval(second, names))
    assert torch.allclose(check_logits(two, count=5).softmax(1)[:, 1], said.flatten().sigmoid())


def test_what_fits_passes_and_logits_come_back_as_they_are() -> None:
    check_images(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    for dtype in (torch.uint8, torch.uint16, torch.int64):
        check_labels(torch.tensor([0, 2, 1]).to(dtype), count=3, num_classes=3)
    logits = torch.zeros(3, 2, dtype=torch.float16)
    assert check_logits(logits, count=3) is check_answers(logits, count=3) is logits
    classes = torch.tensor([1, 0, 1], dtype=torch.int32)
    assert check_answers(classes, count=3) is classes


def test_the_largest_class_of_the_model_is_one_below_their_number() -> None:
    check_labels(torch.tensor([0, 9]), count=2, num_classes=10)
    check_labels(torch.tensor([0, 10]), count=2)  # of how many classes is not known
    with pytest.raises(LabelError, match=r"Got: \(0, 10\)\. Allowed: 0 \.\. 10 - 1\."):
        check_labels(torch.tensor([0, 10]), count=2, num_classes=10)
    with pytest.raises(LabelError, match=r"Got: \(-1, 10\)\. Allowed: 0 \.\. classes - 1\."):
        check_labels(torch.tensor([-1, 10]), count=2)


def test_logits_that_are_not_finite_are_counted_by_image_unless_nobody_waits_for_them() -> None:
    logits = torch.zeros(4, 3)
    logits[1, 0], logits[1, 2], logits[3, 1] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(ModelOutputError, match="not finite for 2 of 4 images"):
        check_logits(logits, count=4)
    assert check_logits(logits, count=4, finite=False) is logits


@pytest.mark.parametrize(
    "answers",
    [torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.bool), torch.zeros(3, 1, dtype=torch.int64)],
)
def test_decisions_are_one_integer_an_image(answers: Tensor) -> None:
    with pytest.raises(ModelOutputError, match=r"does not return logits\..*\(3, classes\)"):
        check_answers(answers, count=3)


@pytest.mark.parametrize("shape", [(2, 5), (4, 5), (3, 5, 1)])
def test_logits_are_one_row_an_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelOutputError) as caught:
        check_logits(torch.zeros(shape), count=3)
    assert caught.value.got == ("torch.float32", shape)
    assert caught.value.allowed == "a floating-point tensor (3, classes)"


Pair = namedtuple("Pair", ["logits", "aux"])


@pytest.mark.parametrize(
    ("output", "words", "entry"),
    [
        ((torch.zeros(2, 3), None), "tuple of (2, 3), NoneType", "[0]"),
        ([torch.zeros(2, 3)], "list of (2, 3)", "[0]"),
        (Pair(torch.zeros(2, 3), 1), "Pair of logits: (2, 3), aux: int", ".logits"),
        (OrderedDict(aux=3, out=torch.zeros(2, 3)), "OrderedDict of aux: int, out: (2, 3)", "['out']"),
        ({"logits": torch.zeros(1)}, "dict of logits: (1,)", "['logits']"),
        ("text", "str", "[0]"),
        (None, "NoneType", "[0]"),
    ],
)
def test_an_output_is_described_by_its_entries_and_the_advice_takes_the_logits_out(
    output: Any, words: str, entry: str
) -> None:
    assert described(output) == words
    with pytest.raises(ModelOutputError) as caught:
        check_logits(output, count=2)
    assert caught.value.got == words
    assert str(caught.value.fix).endswith(f"model(images){entry}")


@pytest.mark.parametrize(
    ("rows", "warned"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[0.2, 0.8004], [0.5, 0.5]], True),  # as half precision rounds them
        ([[0.2, 0.8], [0.5, 0.6]], False),
        ([[-0.2, 1.2], [0.5, 0.5]], False),
    ],
)
def test_rows_that_sum_to_one_without_a_negative_entry_are_probabilities(rows: list[list[float]], warned: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_probabilities(torch.tensor(rows), name="Target 'net'")
    assert [str(warning.message).startswith("Target 'net' seems to return probabilities") for warning in caught] == (
        [True] * warned
    )

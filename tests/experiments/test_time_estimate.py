from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from dcn_plugin.experiments import step_times
from dcn_plugin.experiments.datasets import DATA, SPLIT_MNIST
from dcn_plugin.experiments.measurements import Measurement, measurements_of
from dcn_plugin.experiments.network_store import PUBLIC_STEPS, build
from dcn_plugin.experiments.networks import Job, jobs_of, read_network
from dcn_plugin.experiments.recipe import load_recipe
from dcn_plugin.experiments.scales import scale_for
from dcn_plugin.experiments.step_times import Span, Timed, multiply_adds
from dcn_plugin.experiments.time_estimate import FORWARD, Estimate, Remaining, estimate
from tests.experiments.recipe_files import TINY, write_recipe

CPU = torch.device("cpu")
HEAD = TINY.split("[[measure]]")[0]
# Every step takes a second: what is told is the number of steps.
TARGETS = 2


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """A second a step and image; the jobs that were timed."""
    timed: list[Job] = []
    monkeypatch.setattr(step_times, "_time", lambda job, *_: timed.append(job) or Timed(1.0, 1.0))
    monkeypatch.setattr(step_times, "on_threads", lambda span, _: span)
    return timed


def planned(folder: Path, entry: str) -> list[Measurement]:
    text = f"{HEAD}[[measure]]\n{entry}\n[smoke]\nimages = 16\ncount = 3\nboundary_steps = 10\n"
    return measurements_of(load_recipe(write_recipe(folder, text)), "smoke", [0])


def jobs(text: str, *, images: int | None = 32) -> list[Job]:
    scale = scale_for("smoke", "cifar10", {"train_images": images, "epochs": 4})
    return jobs_of([read_network(text, net="resnet18")], seed=0, scale=scale, data="digits")


@pytest.mark.parametrize(
    ("entry", "steps"),
    [
        # A forward pass of every target on the clean images, and one on those of each attack; one source a time.
        (
            'protocol = "transfer"\nsources = ["resnet18", "vgg19"]\nattacks = ["fgsm(16)", "pgd(1,20,16)"]',
            2 * 16 * ((1 + 2) + (1 + 2) * FORWARD * TARGETS),
        ),
        (
            'protocol = "tapm"\nsources = ["resnet18", "vgg19"]\nattacks = ["fgsm(16)"]',
            16 * (1 * 2 + (1 + 2) * FORWARD * TARGETS),
        ),
        ('protocol = "whitebox"\nattacks = ["fgsm(16)", "pgd(1,20,16)"]', 16 * (1 + 2) * TARGETS),
        ('protocol = "distance"\nattacks = ["boundary"]', 3 * 20 * FORWARD * TARGETS),
        ('protocol = "gaussian"\nlevels = [4, 8, 16]', 16 * (1 + 3) * FORWARD * TARGETS),
        ('protocol = "shuffle"\nks = [2, 4]', 16 * (1 + 2) * FORWARD * TARGETS),
        ('protocol = "stylized"', 16 * (1 + 1) * FORWARD * TARGETS),
    ],
)
def test_the_steps_of_a_measurement_are_counted(entry: str, steps: float, tmp_path: Path, seconds: list[Job]) -> None:
    expected = estimate([], planned(tmp_path, entry), CPU)
    assert expected.training.likely == 0
    assert expected.measuring.likely == pytest.approx(steps)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Standard", 4),
        ("Standard + AT", 4 * (1 + 2)),  # two steps of the attack at scale smoke
        ("Standard + PubDef", 4 * 2 + PUBLIC_STEPS * 2),
        ("Standard EN", 2 * 4),
    ],
)
def test_the_steps_of_training_are_counted(text: str, steps: int, seconds: list[Job]) -> None:
    assert estimate(jobs(text), [], CPU).training.likely == 32 * steps
    whole = DATA["digits"].train_images
    assert estimate(jobs(text, images=10 * whole), [], CPU).training.likely == whole * steps


def test_every_kind_of_network_is_timed_once(seconds: list[Job]) -> None:
    estimate([*jobs("Standard"), *jobs("0.3-Bottom"), *jobs("vgg19")], [], CPU)
    assert sorted(job.network.net for job in seconds) == ["resnet18", "vgg19"]


def test_a_step_is_timed_on_this_machine() -> None:
    training = estimate(jobs("Standard", images=1), [], CPU).training
    assert 0 < training.low <= training.likely <= training.high < 60


@pytest.mark.parametrize(
    ("training", "measuring", "kinds", "text"),
    [
        (10, 20, (2, 0), "about 30 s, between 15 s and 60 s (training 10 s, measuring 20 s; 2 kinds of network timed)"),
        (
            89,
            91,
            (1, 0),
            "about 3 min, between 2 min and 6 min (training 89 s, measuring 2 min; 1 kind of network timed)",
        ),
        (
            *(5400, 3600, (1, 2)),
            "about 2.5 h, between 75 min and 5.0 h (training 1.5 h, measuring 60 min; "
            "1 kind of network timed, 2 scaled by multiply-adds)",
        ),
    ],
)
def test_times_are_told_in_their_unit(training: float, measuring: float, kinds: tuple[int, int], text: str) -> None:
    spans = [Span(likely / 2, likely, likely * 2) for likely in (training, measuring)]
    assert str(Estimate(*spans, *kinds)) == text


def test_a_run_tells_what_is_left_from_what_its_parts_took(tmp_path: Path) -> None:
    trained, cells = jobs("Standard", images=10) * 3, planned(tmp_path, 'protocol = "whitebox"\nattacks = ["fgsm(16)"]')
    left = Remaining(trained, cells, CPU)
    assert left.seconds is None and not str(left)
    weight = cells[0].images * TARGETS / (10 * 4)  # of the measurement, in trainings
    left.finished("training", 100)
    assert left.seconds == pytest.approx(100 * (2 + weight))
    left.finished("training", 300)  # something else runs on the machine by now
    assert left.seconds == pytest.approx(200 * (1 + weight))
    assert re.fullmatch(r", about \d+ (s|min) left", str(left))
    left.finished("training", 200)
    assert left.seconds == pytest.approx(200 * weight)
    left.finished("measuring", 1)
    assert left.seconds == 0


def test_what_is_left_is_weighed_by_multiply_adds_where_nothing_is_timed() -> None:
    small, wide = jobs("Standard", images=10)[0], jobs("Standard", images=10)[0]
    wide = dataclasses.replace(wide, scale=dataclasses.replace(wide.scale, width=16))
    left = Remaining([small, wide], [], CPU)
    left.finished("training", 1.0)
    shape = (1, *DATA["digits"].shape)
    ratio = multiply_adds(build(wide), shape) / multiply_adds(build(small), shape)
    assert left.seconds == pytest.approx(ratio) and 3 < ratio < 4


def test_a_distilled_network_is_trained_on_as_many_images_as_its_target_answers(seconds: list[Job]) -> None:
    (job,) = jobs({"variant": "0.3-Bottom", "answers_of": "Standard"}, images=None)  # type: ignore[arg-type]
    # 32 images at hand, twice as many in every further round, and four epochs each.
    assert estimate([job], [], CPU).training.likely == pytest.approx(4 * (32 + 64 + 128 + 256))


def test_a_source_under_masks_drawn_anew_takes_a_pass_for_each_of_them(tmp_path: Path, seconds: list[Job]) -> None:
    entry = 'protocol = "transfer"\nsources = { one = { variant = "0.3-Bottom", redrawn = 5 } }\nattacks = ["fgsm(16)"]'
    expected = 16 * (5 + (1 + 1) * FORWARD * TARGETS)
    assert estimate([], planned(tmp_path, entry), CPU).measuring.likely == pytest.approx(expected)


def test_the_images_of_a_split_mnist_are_counted_as_they_are(seconds: list[Job]) -> None:
    """Without MNIST's training file its test images are split, and there are an eighth of the images to train on."""
    (published,) = jobs("Standard", images=None)
    published = dataclasses.replace(published, data="mnist")
    split = dataclasses.replace(published, copy=SPLIT_MNIST)
    expected = [estimate([job], [], CPU).training.likely for job in (published, split)]
    assert expected == [4 * 60_000, 4 * 8_000]

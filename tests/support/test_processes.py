from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcn_plugin.attacks import PGD, HopSkipJump
from dcn_plugin.data import CUE_CLASSES, CueConflict, ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import (
    AdversarialSet,
    Result,
    RunDirectory,
    Team,
    amplitude,
    correct_on,
    cue_conflict,
    gaussian,
    minimal_distance,
    sanity,
    shuffle,
    stylized,
    tapm,
    transfer,
    whitebox,
)
from dcn_plugin.evaluate.sharding import own_batches
from dcn_plugin.support.processes import whole
from tests.evaluate.teams import together
from tests.evaluate.watched import WatchedImages, count_calls, known_set, two_models
from tests.image_files import pixels, write_image
from tests.launched import launched
from tests.toys import linear_model

ATTACKS = [PGD(0.1, steps=2), PGD(0.2, steps=2)]
DATA = known_set(50)
FLIPPED = ImageSet(DATA.images.flip(3), DATA.labels, DATA.num_classes, "flipped")

# In each of them four batches of 16, 16, 16 and 2 images: of three processes one gets two.
PROTOCOLS: dict[str, Callable[..., Iterator[Result]]] = {
    "transfer": lambda models, **common: transfer(models, models, ATTACKS, DATA, rounding="8bit", **common),
    "tapm": lambda models, **common: tapm(models, models, ATTACKS, DATA, **common),
    "whitebox": lambda models, **common: whitebox(models, ATTACKS, DATA, **common),
    "distance": lambda models, **common: minimal_distance(
        models, HopSkipJump(max_queries=60, seed=3), DATA, count=40, **common
    ),
    "distance to few": lambda models, **common: minimal_distance(
        models, HopSkipJump(max_queries=60), DATA, count=3, **common
    ),
    "sanity": lambda models, **common: sanity(
        models["a"], DATA, eps=0.1, steps=2, sources={"b": models["b"]}, queries=20, **common
    ),
    "gaussian": lambda models, **common: gaussian(models, DATA, [0.1, 0.3], **common),
    "shuffle": lambda models, **common: shuffle(models, DATA, (2,), confidence=0.4, **common),
    "amplitude": lambda models, **common: amplitude(models, DATA, **common),
    "stylized": lambda models, **common: stylized(models, DATA, FLIPPED, **common),
}


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_several_processes_have_the_records_of_one(name: str, size: int) -> None:
    measure, models = PROTOCOLS[name], two_models()
    alone = list(measure(models, seed=4, batch_size=16))
    shared = together(size, lambda team: list(measure(copy.deepcopy(models), seed=4, batch_size=16, accelerator=team)))
    assert len(alone) > 0
    assert shared == [alone] * size


def test_several_processes_have_the_shape_bias_of_one(tmp_path: Path) -> None:
    for seed, shape in enumerate(CUE_CLASSES[:3]):
        for number, texture in enumerate(CUE_CLASSES[:3]):
            write_image(
                tmp_path / shape / f"{shape}{number}-{texture}{number}.png", pixels(4, 4, seed=9 * seed + number)
            )
    data = CueConflict(tmp_path, class_names=CUE_CLASSES[:3])
    models = {"a": linear_model(48, 3)}
    alone = list(cue_conflict(models, data, training_seed=0, batch_size=2))
    assert (alone[0].n_counted or 0) > 0
    shared = together(
        2, lambda team: list(cue_conflict(copy.deepcopy(models), data, training_seed=0, batch_size=2, accelerator=team))
    )
    assert shared == [alone, alone]


def test_each_image_is_attacked_by_one_process_and_only_that_one_reads_it() -> None:
    def work(team: Team) -> tuple[list[int], list[tuple[int, int]], int]:
        model, data = two_models()["a"], WatchedImages(DATA)
        calls: list[int] = []
        model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])) if args[0].requires_grad else None)
        made = AdversarialSet("a", model, PGD(0.1, steps=1), data, batch_size=16, team=team)
        return calls, [(batch.first, len(batch.images)) for batch in made], data.read

    first, second = together(2, work)
    assert first == ([16, 16], [(0, 16), (32, 16)], 32)
    assert second == ([16, 2], [(16, 16), (48, 2)], 18)


@pytest.mark.parametrize("rounding", ["none", "8bit"])
def test_the_loaded_set_is_whole_everywhere_and_then_read_in_parts(rounding: Any) -> None:
    alone = AdversarialSet("a", two_models()["a"], ATTACKS[0], DATA, rounding, 16).loaded

    def work(team: Team) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        made = AdversarialSet("a", two_models()["a"], ATTACKS[0], DATA, rounding, 16, team=team)
        # Python 3.11's cached_property holds a lock while it computes, and threads would wait for each other in it.
        vars(made)["loaded"] = AdversarialSet.loaded.func(made)
        return made.loaded.images, made.loaded.distance, [batch.first for batch in made]

    for images, distance, _ in (shared := together(3, work)):
        assert torch.equal(images, alone.images)
        torch.testing.assert_close(distance, alone.distance, rtol=0, atol=0, equal_nan=True)
    assert [places for *_, places in shared] == [[0, 48], [16], [32]]


def test_one_process_writes_the_records_and_finished_ones_are_not_measured_again(tmp_path: Path) -> None:
    def work(team: Team) -> tuple[int, int, int]:
        models, store = two_models(), RunDirectory(tmp_path / "shared")
        calls = [count_calls(model) for model in models.values()]
        results = list(
            transfer(models, models, ATTACKS, DATA, training_seed=0, batch_size=16, store=store, accelerator=team)
        )
        if team.leads:
            store.finish({"name": "test"}, results)
        return store.measured, store.reused, sum(map(len, calls))

    assert [counts[:2] for counts in together(2, work)] == [(8, 0), (0, 0)]
    assert together(2, work) == [(0, 8, 0), (0, 0, 0)]

    alone, models = RunDirectory(tmp_path / "alone"), two_models()
    alone.finish(
        {"name": "test"}, list(transfer(models, models, ATTACKS, DATA, training_seed=0, batch_size=16, store=alone))
    )
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    # One process goes on from what several have made, image batches included.
    for unit in (tmp_path / "shared" / "units").iterdir():
        unit.unlink()
    gradients: list[bool] = []
    models["a"].register_forward_pre_hook(lambda _, args: gradients.append(args[0].requires_grad))
    list(
        transfer(models, models, ATTACKS, DATA, training_seed=0, batch_size=16, store=RunDirectory(tmp_path / "shared"))
    )
    assert gradients and not any(gradients)


def files(folder: Path) -> dict[str, Any]:
    """Name -> content of every file of a run, but for what says when it was made."""
    found: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    found["results.json"] = json.loads(found["results.json"]) | {"run": None}
    return found


def test_processes_with_other_weights_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    def work(team: Team) -> None:
        models = {"a": linear_model(64, seed=team.rank)}
        list(whitebox(models, ATTACKS, DATA, training_seed=0, accelerator=team, store=RunDirectory(tmp_path / "run")))

    with pytest.raises(SpecError, match=r"processes do not measure the same.*set\.source\.state"):
        together(2, work)
    assert not (tmp_path / "run").exists()


def test_batches_of_a_set_without_an_index_are_dealt_out_as_well() -> None:
    class Stream:
        """Only what every source of images has."""

        name, num_classes, shape, content_hash = DATA.name, DATA.num_classes, DATA.shape, DATA.content_hash
        batches = DATA.batches

        def __len__(self) -> int:
            return len(DATA)

    for data in (Stream(), DATA):
        dealt = [list(own_batches(data, 16, Team(rank, 2), count=40)) for rank in (0, 1)]
        assert [[(first, len(images)) for first, images, _ in own] for own in dealt] == [[(0, 16), (32, 8)], [(16, 16)]]
        for own in dealt:
            for first, images, labels in own:
                assert torch.equal(images, DATA.images[first : first + len(images)])
                assert torch.equal(labels, DATA.labels[first : first + len(images)])
    with pytest.raises(SpecError, match="batch size"):
        next(own_batches(DATA, 0, Team(0, 2)))


def test_parts_come_together_in_the_order_of_the_data_whoever_has_them() -> None:
    column = torch.arange(5)

    def work(team: Team) -> tuple[torch.Tensor, ...]:
        own = {0: [(3, (column[3:],)), (0, (column[:1],))], 1: [(1, (column[1:3],))], 2: []}[team.rank]
        return whole(own, team)  # type: ignore[arg-type]

    for (found,) in together(3, work):
        assert torch.equal(found, column)


def test_the_clean_accuracy_is_shared_out_too() -> None:
    def work(team: Team) -> tuple[torch.Tensor, int]:
        model: nn.Module = two_models()["b"]
        calls = count_calls(model)
        return correct_on(model, DATA, batch_size=16, team=team), sum(calls)

    alone = correct_on(two_models()["b"], DATA)
    (first, own), (second, rest) = together(2, work)
    assert torch.equal(first, alone)
    assert torch.equal(second, alone)
    assert (own, rest) == (32, 18)


# One test, because its processes import everything anew.
@pytest.mark.slow
def test_two_launched_processes_write_the_files_of_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("torchattacks")
    launched("tests.evaluate.team_worker", str(tmp_path))
    shared, alone = files(tmp_path / "together"), files(tmp_path / "alone")
    assert shared == alone
    first = json.loads((tmp_path / "first.json").read_text())
    assert first["results"] == alone["results.json"]["results"]
    assert {record["protocol"] for record in first["results"]} == {"transfer", "tapm", "whitebox", "hopskipjump"}
    # Nothing was left to do for the second call.
    again = json.loads((tmp_path / "together" / "results.json").read_text())["run"]
    assert (first["run"]["units_reused"], again["units_measured"]) == (0, 0)
    assert again["units_reused"] == first["run"]["units_measured"] > 0

    # The command line.
    model, out = "tests.cli.factory:linear", tmp_path / "cli"
    options = ["--data", "digits", "--size", "8", "--limit", "40", "--batch-size", "16", "--no-progress"]
    attack = ["--source", f"s={model},seed=2", "--target", f"a={model}", "--attack", "pgd,eps=0.1,steps=2"]
    printed = launched("dcn_plugin.cli", "evaluate", "transfer", *attack, *options, "--out", str(out))
    assert printed.count("Page: ") == 1
    ((record,), run) = (json.loads((out / "results.json").read_text())[key] for key in ("results", "run"))
    assert (record["n_total"], run["units_measured"]) == (40, 1)
    assert (out / "report.html").exists()

"""The choice of p by short fine-tunings: whom it ranks first, what it costs, and that it goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet, load_digits
from dcn_plugin.errors import AlreadyDefectiveError, BlockError, CheckpointError, DcnError, SpecError
from dcn_plugin.experiments import choose
from dcn_plugin.experiments.choose import Candidate, Trial, choose_defects, plan_rounds
from dcn_plugin.pretrained import load_pretrained
from dcn_plugin.training import TrainConfig
from tests.nets import same, snapshot

DIGITS = load_digits(size=16)
FEW = DIGITS.train.subset(torch.arange(120))
VAL = DIGITS.val.subset(torch.arange(60))
CONFIG = TrainConfig(epochs=4, batch_size=10, lr=0.02)
CANDIDATES = [Candidate(0.7), Candidate(0.5), Candidate(0.5, "all"), Candidate(0.2)]


def network() -> nn.Module:
    return load_pretrained("digits_resnet.standard")


def choice(out: Path, **change: Any) -> choose.Choice:
    given: dict[str, Any] = {
        "model": network(),
        "data": FEW,
        "val": VAL,
        "candidates": CANDIDATES,
        "lose": 0.1,
        "sources": {"source": load_pretrained("digits_resnet.source")},
        "attacks": [PGD(0.2, steps=3)],
        "config": CONFIG,
        "out": out,
        "tell": lambda _: None,
        **change,
    }
    return choose_defects(given.pop("model"), given.pop("data"), given.pop("val"), given.pop("candidates"), **given)


@pytest.mark.parametrize(
    ("candidates", "epochs", "rounds"),
    [
        (1, 6, [(1, 6)]),
        (2, 6, [(2, 6)]),
        (3, 6, [(3, 3), (2, 6)]),
        (4, 5, [(4, 3), (2, 5)]),
        (8, 6, [(8, 2), (4, 3), (2, 6)]),
        (4, 1, [(4, 1), (2, 1)]),
    ],
)
def test_every_round_has_half_of_the_candidates_and_twice_the_epochs(
    candidates: int, epochs: int, rounds: list[tuple[int, int]]
) -> None:
    assert plan_rounds(candidates, epochs) == rounds


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, choose.Choice, list[str]]:
    out, told = tmp_path_factory.mktemp("choice"), []
    return out, choice(out, tell=told.append), told


def test_the_better_half_of_a_round_goes_on_and_the_best_of_the_last_is_chosen(done: Any) -> None:
    _, outcome, told = done
    assert told[0].startswith("4 candidates for 2 epochs, 2 candidates for 4 epochs: about")
    assert len(told) == 8
    first, last = ([trial for trial in outcome.trials if trial.stage == stage] for stage in (1, 2))
    assert [trial.candidate for trial in first] == CANDIDATES and [trial.epochs for trial in last] == [4, 4]

    def falls_short(trial: Trial) -> tuple[float, float]:
        return max(0.0, outcome.least - trial.clean), -trial.attacked

    assert [trial.candidate for trial in last] == [trial.candidate for trial in sorted(first, key=falls_short)][:2]
    affordable = [trial for trial in last if trial.clean >= outcome.clean - 0.1]
    assert affordable and outcome.chosen == max(affordable, key=lambda trial: trial.attacked) == outcome.nearest


def test_the_record_and_the_networks_say_the_same(done: Any) -> None:
    out, outcome, _ = done
    record = json.loads((out / "choice.json").read_text())
    assert len(record["trials"]) == 6 and record["chosen"]["candidate"]["p"] == outcome.chosen.candidate.p
    assert record["settings"]["lose"] == 0.1 and record["settings"]["val"]["images"] == 60
    for folder in (out / "trials").iterdir():
        spec = dcn.checkpoint.read_spec(folder / "last.safetensors")
        assert f"p={spec.p:g}-{spec.blocks}" in folder.name


def test_the_same_call_goes_on_and_trains_nothing_again(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, outcome, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("state.safetensors")}
    assert choice(out) == outcome
    assert {path: path.stat().st_mtime_ns for path in out.rglob("state.safetensors")} == before
    with pytest.raises(CheckpointError, match=r"about\.start"):
        choice(out, model=load_pretrained("digits_resnet.source"))
    with pytest.raises(CheckpointError, match=r"config\.lr"):
        choice(out, config=TrainConfig(epochs=4, batch_size=10, lr=0.01))


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_choice(
    done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, calls = choose.train, []

    def stopped(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(choose, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        choice(tmp_path)
    assert choice(tmp_path) == done[1]


def test_nothing_is_chosen_where_every_candidate_costs_too_much(tmp_path: Path) -> None:
    outcome = choice(tmp_path, candidates=[Candidate(0.05), Candidate(0.02)], lose=0.0)
    assert outcome.chosen is None
    assert outcome.nearest.clean == max(trial.clean for trial in outcome.trials) < outcome.least


UNTRAINED = ImageSet(VAL.images, (VAL.labels + 1) % 10, 10, "shifted")
REFUSED: dict[str, tuple[dict[str, Any], type[DcnError], str]] = {
    "a defective network": ({"model": load_pretrained("digits_resnet.defective_p0.3")}, AlreadyDefectiveError, "masks"),
    "no candidate": ({"candidates": []}, SpecError, "at least one"),
    "two alike": ({"candidates": [Candidate(0.5), Candidate(0.5)]}, SpecError, "no two alike"),
    "a p above 1": ({"candidates": [Candidate(1.5)]}, SpecError, "keep probability"),
    "no block": ({"candidates": [Candidate(0.5), Candidate(0.5, ("layer9",))]}, BlockError, "layer9"),
    "a loss of points": ({"lose": 2}, SpecError, "0.02"),
    "no attack": ({"attacks": []}, SpecError, "attack"),
    "an untrained network": ({"val": UNTRAINED}, SpecError, "hardly more than chance"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_chosen_from_is_refused_before_anything_is_trained(case: str, tmp_path: Path) -> None:
    change, error, said = REFUSED[case]
    model = change.get("model") or network()
    before = snapshot(model)
    with pytest.raises(error, match=said):
        choice(tmp_path, **{**change, "model": model})
    assert same(before, snapshot(model))
    assert not (tmp_path / "trials").exists()

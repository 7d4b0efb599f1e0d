"""The one loop of all protocols: what is measured, kept and hashed, and the seed that every protocol takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import AdversarialSet, Result, RunDirectory, cache_keys, measure_targets, transfer
from dcn_plugin.evaluate.session import Session, Unit, training_seed_of
from dcn_plugin.support.processes import ALONE
from tests.evaluate.test_arguments import TARGETS, ask
from tests.toys import image_set, linear_model

PROTOCOLS = [*TARGETS, "cue-conflict"]


def nets(names: str) -> dict[str, nn.Module]:
    return {name: linear_model(16, seed=number) for number, name in enumerate(names)}


# --- the seed of the training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "cue-conflict"])
def test_every_protocol_but_sanity_needs_the_seed_of_the_training(protocol: str) -> None:
    with pytest.raises(SpecError, match=r"seed of the models' training is missing.*Fix: "):
        ask(protocol, seed=None)


def test_sanity_takes_zero_for_the_seed_that_is_not_given() -> None:
    assert {record.seed for record in ask("sanity", seed=None)} == {0}


@pytest.mark.parametrize("protocol", ["transfer", "tapm", "whitebox", "gaussian", "shuffle", "sanity"])
def test_the_seed_goes_into_the_records_under_its_name_and_under_the_one_it_had(protocol: str) -> None:
    named = list(ask(protocol, seed=None, training_seed=7))
    assert {record.seed for record in named} == {7}
    assert list(ask(protocol, seed=7)) == list(ask(protocol, seed=7, training_seed=7)) == named


@pytest.mark.parametrize("protocol", [*TARGETS, "sanity"])
def test_two_seeds_that_differ_are_refused_at_the_call(protocol: str) -> None:
    with pytest.raises(SpecError, match=r"training_seed and seed, its old name, differ.*Got: \[3, 4\]"):
        ask(protocol, seed=4, training_seed=3)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0"])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(SpecError, match="training seed"):
        training_seed_of(seed, None)
    with pytest.raises(SpecError, match="training seed"):
        training_seed_of(None, seed, default=0)


def test_targets_of_one_set_take_both_names_too() -> None:
    models = nets("ab")
    images = AdversarialSet("a", models["a"], PGD(0.1, steps=1), image_set(6))
    assert measure_targets(images, models, training_seed=5) == measure_targets(images, models, seed=5)
    with pytest.raises(SpecError, match="is missing"):
        measure_targets(images, models)


# --- the loop ---------------------------------------------------------------------------------------------------------


def record(name: str) -> Result:
    return Result(protocol="transfer", target=name, data="toy", data_hash="0" * 20, seed=0, n_total=1, n_counted=1)


def session(store: RunDirectory | None = None, *, progress: bool = False) -> Session:
    return Session(training_seed=0, batch_size=8, store=store, team=ALONE, progress=progress)


def unit(name: str, parts: Sequence[str], calls: list[tuple[str, ...]], *, keyed: bool = True) -> Unit:
    """A unit whose records are named after its parts."""

    def measure(missing: Sequence[str], bar: Any) -> dict[str, list[Result]]:
        calls.append(tuple(missing))
        return {part: [record(name + part)] for part in missing}

    key = (lambda part: {"unit": name, "part": part}) if keyed else (lambda part: None)
    return Unit(title=name, key=key, measure=measure, parts=parts)


def targets(results: Sequence[Result] | Iterator[Result]) -> list[str]:
    return [result.target for result in results]


def test_a_unit_is_kept_before_the_next_one_is_measured(tmp_path: Path) -> None:
    calls: list[tuple[str, ...]] = []
    store = RunDirectory(tmp_path)
    units = [unit(name, ("1",), calls) for name in "ab"]
    records = session(store).measure("toy", units, count=2, size=1)
    assert next(records).target == "a1"
    assert len(calls) == 1
    assert store.read_unit({"unit": "a", "part": "1"}) == (record("a1"),)
    assert not store.read_unit({"unit": "b", "part": "1"})
    assert targets(records) == ["b1"]


def test_parts_are_measured_where_they_are_missing_and_come_in_their_order(tmp_path: Path) -> None:
    calls: list[tuple[str, ...]] = []
    store = RunDirectory(tmp_path)
    assert targets(session(store).recall(unit("a", "2", calls))) == ["a2"]
    assert targets(session(store).recall(unit("a", "321", calls))) == ["a3", "a2", "a1"]
    assert targets(session(store).recall(unit("a", "12", calls))) == ["a1", "a2"]
    assert calls == [("2",), ("3", "1")]


def test_a_unit_without_a_key_is_measured_again(tmp_path: Path) -> None:
    calls: list[tuple[str, ...]] = []
    store = RunDirectory(tmp_path)
    for _ in range(2):
        assert targets(session(store).recall(unit("a", "1", calls, keyed=False))) == ["a1"]
    assert len(calls) == 2
    assert not list(tmp_path.rglob("*.json"))


def test_without_a_store_no_key_is_asked_for() -> None:
    def key(part: str) -> None:
        raise AssertionError(part)

    whole = Unit.whole("a", key=lambda: key(""), measure=lambda bar: [record("a")])
    assert targets(session().measure("toy", [whole], count=1, size=1)) == ["a"]


def test_progress_tells_of_every_unit(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[str, ...]] = []
    units = (unit(name, "1", calls) for name in ("first", "second"))
    assert len(list(session(progress=True).measure("toy", units, count=2, size=5))) == 2
    shown = capsys.readouterr().err
    assert "1/2: first" in shown and "2/2: second" in shown


@pytest.mark.parametrize("stored", [True, False])
def test_each_model_of_a_transfer_matrix_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    hashed: list[int] = []
    plain = cache_keys.model_key
    monkeypatch.setattr(cache_keys, "model_key", lambda model: hashed.append(id(model)) or plain(model))
    sources, others = nets("abc"), nets("defg")
    attacks = [PGD(0.1, steps=1), PGD(0.05, steps=1)]
    data: ImageSet = image_set(6)
    store = RunDirectory(tmp_path) if stored else None
    assert len(list(transfer(sources, others, attacks, data, training_seed=0, store=store))) == 3 * 2 * 4
    assert len(hashed) == len(set(hashed)) == (7 if stored else 0)

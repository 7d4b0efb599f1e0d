"""Which p a trained network can afford: short fine-tunings of several, of which the better half goes on.

Successive halving (Jamieson and Talwalkar 2016): all candidates are fine-tuned for a few epochs, the better half for
twice as many, and so on, until two are left. Every fine-tuning starts from the network as it was and is a whole one,
with gradual defects and its own learning-rate cycle; so those of a round are compared at equal epochs.

::

    DIR/trials/NAME/   one folder a fine-tuning, as dcn_plugin.training.train leaves it
    DIR/attacks/       adversarial images and what they did
    DIR/choice.json    the record
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import ImageFiles, ImageSet
from dcn_plugin.errors import AlreadyDefectiveError, SpecError
from dcn_plugin.evaluate import RunDirectory, correct_on, model_key, transfer
from dcn_plugin.evaluate.cache_keys import digest
from dcn_plugin.experiments.step_times import on_threads, time_step
from dcn_plugin.experiments.time_estimate import FORWARD, Estimate
from dcn_plugin.support.atomic_file import check_output, write_atomic
from dcn_plugin.support.environment import hardware, package_versions
from dcn_plugin.support.model_state import copy_of, device_of
from dcn_plugin.surgery import defectify, is_defective
from dcn_plugin.training import TrainConfig, train

__all__ = ["Candidate", "Choice", "Trial", "choose_defects", "plan_rounds"]

SCHEMA = 1
TIMED = 32  # images of a batch that is timed


@dataclass(frozen=True)
class Candidate:
    """Masks that may be chosen.

    Args:
        p: keep probability.
        blocks: as :func:`dcn_plugin.defectify` takes them.
    """

    p: float
    blocks: str | tuple[str | int, ...] = "bottom"

    def __str__(self) -> str:
        blocks = self.blocks if isinstance(self.blocks, str) else "+".join(map(str, self.blocks))
        return f"p={self.p:g} {blocks}"


@dataclass(frozen=True)
class Trial:
    """One fine-tuning and what came of it.

    Args:
        candidate: its masks.
        stage: number of the round, from 1.
        epochs: of the fine-tuning.
        clean: share of the validation images that are right.
        attacked: share that is right under attack, the mean over sources and attacks.
    """

    candidate: Candidate
    stage: int
    epochs: int
    clean: float
    attacked: float


@dataclass(frozen=True)
class Choice:
    """All trials, and the candidate that they lead to.

    Args:
        clean: of the network as it was: share of the validation images that are right.
        attacked: of the network as it was, under the same attacks.
        least: clean accuracy that may not be fallen below.
        trials: in the order in which they ran, round after round.
        chosen: of the last round, the one with the highest accuracy under attack of those that stay above ``least``;
            None where none does.
    """

    clean: float
    attacked: float
    least: float
    trials: tuple[Trial, ...]
    chosen: Trial | None

    @property
    def nearest(self) -> Trial:
        """The trial of the last round that is chosen, or that comes nearest to ``least``."""
        last = [trial for trial in self.trials if trial.stage == self.trials[-1].stage]
        return self.chosen or max(last, key=lambda trial: trial.clean)


def plan_rounds(candidates: int, epochs: int) -> list[tuple[int, int]]:
    """How many candidates each round has, and the epochs of each of its fine-tunings.

    Args:
        candidates: number of them, >= 1.
        epochs: of the last round.

    Example:
        >>> plan_rounds(8, epochs=6)
        [(8, 2), (4, 3), (2, 6)]
    """
    counts = [candidates]
    while counts[-1] > 2:
        counts.append(math.ceil(counts[-1] / 2))
    return [(count, math.ceil(epochs / 2 ** (len(counts) - 1 - i))) for i, count in enumerate(counts)]


def choose_defects(
    model: nn.Module,
    data: ImageSet | ImageFiles,
    val: ImageSet | ImageFiles,
    candidates: Sequence[Candidate],
    *,
    lose: float,
    sources: Mapping[str, nn.Module],
    attacks: Sequence[Attack],
    config: TrainConfig,
    out: str | os.PathLike[str],
    seed: int = 0,
    workers: int = 4,
    progress: bool = False,
    tell: Callable[[str], None] = print,
) -> Choice:
    """Find the masks that gain most under transfer attacks for a clean accuracy that may be lost.

    A trial ranks before another if it falls less below the clean accuracy that is wanted; of those that do not fall
    below it, the one with the higher accuracy under attack does. A run that was stopped goes on with the same call.

    Args:
        model: trained, without masks, images in [0, 1] -> logits. It is not changed.
        data: to fine-tune on.
        val: to choose on: report the chosen network on other images.
        candidates: at least one.
        lose: clean accuracy on ``val`` that may be lost, as a share: 0.02 is two points.
        sources: name -> network that the attacker has.
        attacks: on the sources.
        config: of a fine-tuning of the last round; ``gradual`` is linear where it says nothing.
        out: folder of the trials.
        seed: of the masks.
        workers: processes that decode image files.
        progress: show progress bars.
        tell: gets the expected time before anything is trained, and a line for every trial.

    Returns:
        The trials and the choice; ``out`` holds the record.

    Raises:
        AlreadyDefectiveError: ``model`` has masks.
        SpecError: no candidate or two alike, a loss out of range, or a network that knows no more than chance.
        BlockError, SiteError: a candidate's blocks are none of the network's. Nothing was trained.
        CheckpointError: ``out`` holds trials with other settings.
    """
    _check(model, candidates, lose)
    check_output(out)
    # Whatever is wrong with the last candidate is wrong before the first is trained.
    networks = {
        candidate: defectify(model, candidate.blocks, candidate.p, input_size=data.shape, seed=seed)
        for candidate in candidates
    }
    config = dataclasses.replace(config, gradual=config.gradual or "linear", select="last")
    bench = _Bench(model, data, val, sources, attacks, config, Path(out), workers, progress)
    rounds = plan_rounds(len(candidates), config.epochs)
    shown = ", ".join(f"{count} candidates for {epochs} epochs" for count, epochs in rounds)
    tell(f"{shown}: {bench.estimate(next(iter(networks.values())), rounds)}")
    clean, attacked = bench.measure("as it is", model)
    if clean < 1.5 / data.num_classes:
        raise SpecError(
            "The network knows hardly more than chance: there is nothing to fine-tune.",
            f"{clean:.1%} of the validation images",
            f"more than {1.5 / data.num_classes:.1%}",
            "give it its trained weights, e.g. --init-from FILE",
        )
    tell(f"as it is: clean {clean:.1%}, under attack {attacked:.1%}")
    trials: list[Trial] = []
    alive = list(candidates)
    for stage, (count, epochs) in enumerate(rounds, start=1):
        results = {}
        for candidate in alive[:count]:
            trial = results[candidate] = bench.trial(candidate, networks[candidate], stage, epochs)
            tell(f"{candidate}, {epochs} epochs: clean {trial.clean:.1%}, under attack {trial.attacked:.1%}")
        trials += results.values()
        alive = sorted(results, key=lambda candidate: _rank(results[candidate], clean - lose), reverse=True)
    affordable = [trial for trial in results.values() if not _shortfall(trial, clean - lose)]
    chosen = max(affordable, key=lambda trial: trial.attacked, default=None)
    choice = Choice(clean, attacked, clean - lose, tuple(trials), chosen)
    settings = {"lose": lose, "masks_seed": seed, **bench.settings()}
    record = {
        "schema": SCHEMA,
        "settings": settings,
        "versions": package_versions(),
        "hardware": hardware(device_of(model)),
        **dataclasses.asdict(choice),
    }
    write_atomic(Path(out) / "choice.json", json.dumps(record, indent=1) + "\n")
    return choice


def _check(model: nn.Module, candidates: Sequence[Candidate], lose: float) -> None:
    if is_defective(model):
        raise AlreadyDefectiveError(
            "The choice starts from a network without masks.",
            f"a defective {type(model).__name__}",
            "a trained network without masks",
            "call dcn_plugin.undefectify(model), or name the model without its masks",
        )
    if not candidates or len(set(candidates)) < len(candidates):
        raise SpecError("The candidates are not usable.", list(map(str, candidates)), "at least one, no two alike")
    if not 0 <= lose < 1:
        raise SpecError("The clean accuracy that may be lost is out of range.", lose, "a share in [0, 1), e.g. 0.02")


@dataclass(frozen=True, eq=False)
class _Bench:
    """What all trials have in common; the arguments are those of :func:`choose_defects`."""

    model: nn.Module
    data: ImageSet | ImageFiles
    val: ImageSet | ImageFiles
    sources: Mapping[str, nn.Module]
    attacks: Sequence[Attack]
    config: TrainConfig
    out: Path
    workers: int
    progress: bool

    def trial(self, candidate: Candidate, network: nn.Module, stage: int, epochs: int) -> Trial:
        """Fine-tune a copy of a network, and measure it."""
        network, name = copy_of(network), f"{candidate}, {epochs} epochs"
        train(
            network,
            self.data,
            self.config.lasting(epochs),
            out=self.out / "trials" / re.sub(r"[^A-Za-z0-9.=_-]+", "-", name),
            about={"start": digest(model_key(self.model))},
            workers=self.workers,
            progress=self.progress,
            name=name,
        )
        return Trial(candidate, stage, epochs, *self.measure(name, network))

    def measure(self, name: str, network: nn.Module) -> tuple[float, float]:
        """Share of right answers to clean images, and the mean over attacks of that to attacked ones."""
        store = RunDirectory(self.out / "attacks")
        records = list(
            transfer(
                self.sources,
                {name: network},
                self.attacks,
                self.val,
                training_seed=self.config.seed,
                store=store,
                progress=self.progress,
            )
        )
        attacked = [record.accuracy_all or 0.0 for record in records]
        return float(correct_on(network, self.val).double().mean()), sum(attacked) / len(attacked)

    def estimate(self, network: nn.Module, rounds: Sequence[tuple[int, int]]) -> Estimate:
        """What everything takes on this machine, if nothing of it is there."""
        images, _ = next(iter(self.data.batches(min(self.config.batch_size, TIMED))))
        seconds = on_threads(time_step(copy_of(network), images, self.config).span, device_of(network))
        passes = sum(count * epochs for count, epochs in rounds)
        steps = len(self.sources) * sum(getattr(attack, "steps", 1) for attack in self.attacks)
        shown = FORWARD * (1 + len(self.sources) * len(self.attacks)) * (1 + sum(count for count, _ in rounds))
        return Estimate(seconds * len(self.data) * passes, seconds * len(self.val) * (steps + shown))

    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {
            "training": json.loads(self.config.to_json()),
            "sources": list(self.sources),
            "attacks": list(map(repr, self.attacks)),
            "data": {"name": self.data.name, "images": len(self.data)},
            "val": {"name": self.val.name, "images": len(self.val)},
        }


def _rank(trial: Trial, least: float) -> tuple[float, float]:
    return -_shortfall(trial, least), trial.attacked


def _shortfall(trial: Trial, least: float) -> float:
    """By how much a trial falls below the clean accuracy that is wanted; what rounding takes away is nothing."""
    return max(0.0, round(least - trial.clean, 9))

"""AutoAttack on every network: the robust accuracy that papers and leaderboards state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import ModelOutputError, SpecError
from dcn_plugin.evaluate.arguments import check_attack, check_images
from dcn_plugin.evaluate.predictions import logits_of
from dcn_plugin.evaluate.protocol import Option, Protocol, Request
from dcn_plugin.evaluate.protocols.whitebox import attacks_in
from dcn_plugin.evaluate.records import Result
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session
from dcn_plugin.support.model_state import device_of

__all__ = ["PROTOCOL", "autoattack"]

#: RobustBench's radii for CIFAR-10.
EPS, EPS_L2 = 8 / 255, 0.5
NAME = "AutoAttack"
#: Images that are asked about twice; two answers that differ by less than this share of the largest logit are rounding.
_TWICE, _ROUNDING = 16, 1e-3


def autoattack(
    targets: Mapping[str, nn.Module],
    attack: Attack,
    data: LabelledImages,
    *,
    training_seed: int | None = None,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Attack every target on itself with AutoAttack: APGD-CE, APGD-T, FAB-T and Square, one after the other.

    An image counts as held only if it is right when clean and after all four. What AutoAttack cannot judge is refused
    before it asks: too few classes for its losses, images that its tiles do not fit (Square in L2), and a network that
    answers the same image differently, for which the standard version's verdict means nothing.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        attack: ``TorchAttack("AutoAttack", norm=..., eps=...)`` of :mod:`dcn_plugin.adapters.torchattacks`, in the
            standard version ("plus" has more parts; "rand" is for networks that draw, and is measured with
            :func:`whitebox`).
        data: the clean images.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        batch_size: images at a time, a multiple of the attack's ``batch``.
        store: finished records and images are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Yields:
        One record a target; protocol "autoattack". Counts are those of :func:`whitebox`: ``accuracy_all`` is the robust
        accuracy as RobustBench defines it. Norm, version and steps stand in ``attack_settings``; the published attack
        takes 100 steps.

    Raises:
        SpecError: the attack is another one, or of the version "rand"; no target; or an argument of the wrong type.
        DataError: ``data`` is no set of labelled images.
        ImageRangeError: the images' size does not fit.
        ModelOutputError: there are too few classes; a target returns no logits, or answers at random.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Example::

        attack = TorchAttack("AutoAttack", norm="Linf", eps=8 / 255)
        (record,) = autoattack({"net": net}, attack, data, training_seed=0)

    Source: Croce and Hein 2020, arXiv 2003.01690; the check of randomness is that of their code.
    """
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    attack, data = check_attack(attack), check_images(data)
    if attack.name != NAME or attack.settings.get("version") == "rand":
        raise SpecError(
            "This protocol measures AutoAttack for networks that do not draw.",
            repr(attack),
            'TorchAttack("AutoAttack", norm=..., eps=...) of dcn_plugin.adapters.torchattacks, version "standard"',
            "measure any other attack with whitebox()",
        )

    def check(name: str, target: nn.Module) -> None:
        _check_repeats(target, data, session.batch_size, name)

    return attacks_in(session, PROTOCOL.record, targets, [attack], data, check=check)


def _check_repeats(target: nn.Module, data: LabelledImages, batch_size: int, name: str) -> None:
    """Refuse a network that says something else when it is asked again."""
    images = next(iter(data.batches(min(_TWICE, batch_size))))[0]
    device = device_of(target)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        first, second = (logits_of(target, images, batch_size=batch_size, name=name) for _ in range(2))
    change = float((first - second).abs().max())
    if change > _ROUNDING * max(float(first.abs().max()), 1e-6):
        raise ModelOutputError(
            f"The network {name!r} answers the same image differently: AutoAttack's standard version would judge its "
            "luck.",
            f"logits that differ by up to {change:.3g}",
            "the same logits for the same image",
            "take the randomness out, or measure it with the white-box protocol and AutoAttack,version=rand",
        )


def _written(options: Mapping[str, Any]) -> str:
    norm, eps = options["norm"], options["eps"]
    if norm == "L2" and eps == EPS:
        raise SpecError(
            "In L2 AutoAttack needs a radius of its own: the default is that of L-inf, and next to nothing in L2.",
            eps,
            "a number > 0, in units of [0, 1] images",
            f"--eps {EPS_L2} is RobustBench's for CIFAR-10",
        )
    return f"autoattack,norm={norm},eps={eps},batch={options['batch']}"


def _measure_all(request: Request) -> Iterator[Result]:
    return autoattack(request.targets, check_attack(request.attacks), request.data, **request.run)


PROTOCOL = Protocol(
    name="autoattack",
    record="autoattack",
    title="AutoAttack",
    help="robust accuracy under AutoAttack (standard), in L-inf or L2",
    measure=_measure_all,
    attack=_written,
    options=(
        Option(
            name="norm",
            choices=("Linf", "L2"),
            default="Linf",
            help=f"of the ball; L2 needs --eps beside it, {EPS_L2} for CIFAR-10",
        ),
        Option(name="eps", kind="positive", default=EPS, help="radius, e.g. 16/255"),
        Option(
            name="batch",
            flag="--attack-batch",
            kind="count",
            default=64,
            metavar="N",
            help="images that it draws for at once, which decides on what it draws; --batch-size is a multiple of it",
        ),
    ),
    figure="accuracy_all",
    rounding="none",
    better="higher",
    itself=True,
)

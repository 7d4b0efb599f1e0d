"""White-box attacks: every network is attacked on itself. They break a defective network; the figure says how fast."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.evaluate.adversarial_set import AdversarialSet, passes_of
from dcn_plugin.evaluate.arguments import (
    check_attacks,
    check_images,
    check_models,
)
from dcn_plugin.evaluate.cache_keys import Key
from dcn_plugin.evaluate.data_checks import check_all_names, check_fits
from dcn_plugin.evaluate.predictions import ran_on
from dcn_plugin.evaluate.protocol import DEFAULT_ATTACKS, ROUNDING, Protocol
from dcn_plugin.evaluate.records import Result, Rounding
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session, Unit
from dcn_plugin.support.processes import whole

__all__ = ["PROTOCOL", "attacks_in", "whitebox"]


def whitebox(
    targets: Mapping[str, nn.Module],
    attacks: Sequence[Attack],
    data: LabelledImages,
    *,
    training_seed: int | None = None,
    rounding: Rounding = "none",
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Attack every target on itself.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        attacks: each runs once a target.
        data: the clean images.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        rounding: of the images that are kept; whether the target is fooled is judged before.
        batch_size: images at a time.
        store: finished records and images are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Yields:
        Records in the order target, attack; protocol "whitebox". ``n_counted`` are the images the target has right
        when clean, ``n_defended`` those of them that the attack did not turn. An image that is wrong when clean counts
        as lost, so ``accuracy_all`` is the robust accuracy as RobustBench defines it.

    Raises:
        SpecError: no target or no attack, or an argument of the wrong type; or the processes have different models or
            data.
        DataError: ``data`` is no set of labelled images.
        LabelError, ModelOutputError: as the attack does.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Example:
        >>> records = whitebox({"net": net}, [PGD(eps=8 / 255), PGD(eps=16 / 255)], data, training_seed=0)
        >>> [round(255 * record.eps) for record in records]
        [8, 16]

    Source: paper, appendix, table 12.
    """
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    return attacks_in(session, "whitebox", targets, attacks, data, rounding)


def attacks_in(
    session: Session,
    protocol: str,
    targets: Mapping[str, nn.Module],
    attacks: Sequence[Attack],
    data: LabelledImages,
    rounding: Rounding = "none",
    *,
    check: Callable[[str, nn.Module], None] = lambda name, target: None,
) -> Iterator[Result]:
    """:func:`whitebox` in a session of the caller's, under the name of a protocol.

    Args:
        session: what all measurements of the call share.
        protocol: its name in the records.
        targets: see :func:`whitebox`, as the next three.
        attacks: each runs once a target.
        data: the clean images.
        rounding: of the images that are kept.
        check: gets the name and the model of each target that has to be measured, before it is attacked.
    """
    measured, data = check_models(targets, "target to measure"), check_images(data)
    sets = session.adversarial_sets(measured, check_attacks(attacks), data, rounding)
    check_all_names(data, measured)
    check_once = functools.cache(lambda: check_fits(data, measured))

    def unit(images: AdversarialSet) -> Unit:
        def measure(bar: Any) -> list[Result]:
            check_once()
            check(images.name, images.source)
            return _measure(session, protocol, images, bar)

        return Unit.whole(images.title, functools.partial(_key, session, protocol, images), measure)

    return session.measure(protocol, map(unit, sets), count=len(sets), size=len(data))


def _key(session: Session, protocol: str, images: AdversarialSet) -> Key | None:
    made_from = images.key
    if made_from is None:
        return None
    return {"protocol": protocol, "set": made_from, "target": images.name, "seed": session.training_seed}


def _measure(session: Session, protocol: str, images: AdversarialSet, bar: Any) -> list[Result]:
    parts = []
    for batch in images:
        passes = (batch.queries, batch.backward_passes)
        parts.append((batch.first, (batch.source_correct, batch.fooled, batch.zero_gradient, batch.change, *passes)))
        bar.update(len(batch.images) * session.team.size)
    right, fooled, zero_gradient, change, queries, backward = whole(parts, session.team)
    defended = int((right & ~fooled).sum())
    return [
        Result(
            protocol=protocol,
            target=images.name,
            source=images.name,
            relation="same network",
            **images.described,
            seed=session.training_seed,
            n_zero_gradient=int(zero_gradient.sum()),
            largest_change=float(change.max()),
            **passes_of(queries, backward),
            n_clean_correct=int(right.sum()),
            n_counted=int(right.sum()),
            n_defended=defended,
            n_correct=defended,
            hardware=ran_on(images.source),
        )
    ]


PROTOCOL = Protocol(
    name="whitebox",
    record="whitebox",
    title="White-box attacks",
    help="every target attacked on itself",
    measure=lambda request: whitebox(request.targets, request.attacks, request.data, **request.options, **request.run),
    attacks=DEFAULT_ATTACKS,
    options=(ROUNDING,),
    rounding="none",
    better="higher",
    itself=True,
)

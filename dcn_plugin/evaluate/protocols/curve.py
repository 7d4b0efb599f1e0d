"""Robust accuracy over eps from one run: an attack without a bound says of every image how far it has to be moved."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.adversarial_set import AdversarialSet, passes_of
from dcn_plugin.evaluate.arguments import check_attacks, check_images, check_models, check_numbers
from dcn_plugin.evaluate.cache_keys import Key
from dcn_plugin.evaluate.data_checks import check_all_names, check_fits
from dcn_plugin.evaluate.predictions import ran_on
from dcn_plugin.evaluate.protocol import Option, Protocol, Request
from dcn_plugin.evaluate.records import Result
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session, Unit
from dcn_plugin.support.processes import whole

__all__ = ["DEFAULT_LEVELS", "PROTOCOL", "robustness_curve"]

#: Norm of an attack -> the radii that are reported where none are named.
DEFAULT_LEVELS: Mapping[str, tuple[float, ...]] = {
    "l2": (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    "linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255),
}


def robustness_curve(
    targets: Mapping[str, nn.Module],
    attacks: Sequence[Attack],
    data: LabelledImages,
    levels: Sequence[float] | None = None,
    *,
    training_seed: int | None = None,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Attack every target on itself without a bound, and count at each radius who is still right.

    An image is lost at every radius that its adversarial image lies within. One run gives the whole curve, where an
    attack in a ball needs a run a radius; at each radius the curve is an upper bound of the accuracy, as with any
    attack.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        attacks: without a bound: CW, HopSkipJump, those of :mod:`dcn_plugin.adapters.adv_lib`, or
            :class:`~dcn_plugin.attacks.BestOf` several.
        data: the clean images.
        levels: radii > 0 in the norm of the attack, in units of [0, 1] images; :data:`DEFAULT_LEVELS` by default.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        batch_size: images at a time.
        store: finished records and images are kept there as they come, and reused: other radii attack nothing anew.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Yields:
        Records in the order target, attack, radius; protocol "curve", ``eps`` the radius. ``n_counted`` are the images
        that the target has right when clean, ``n_defended`` those of them for which no adversarial image was found
        within the radius; an image that is wrong when clean counts as lost. ``figures``: "n_not_fooled", the images for
        which the attack found nothing at any distance, and "median_length" of those that it fooled.

    Raises:
        SpecError: no target or no attack, an attack within a ball, a radius <= 0, or an argument of the wrong type; or
            the processes have different models or data.
        DataError: ``data`` is no set of labelled images.
        LabelError, ModelOutputError: as the attack does.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Example:
        >>> records = robustness_curve({"net": net}, [CW(steps=5, bisections=1)], data, [0.5, 1.0], training_seed=0)
        >>> [(record.protocol, record.eps) for record in records]
        [('curve', 0.5), ('curve', 1.0)]

    Source: Rony et al. 2019, arXiv 1811.09600, section 5 (curves from a minimum-norm attack).
    """
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    measured, data = check_models(targets, "target to measure"), check_images(data)
    radii = None if levels is None else check_numbers(levels, "radius")
    if radii is not None and not (radii and min(radii) > 0):
        raise SpecError("The radii are not usable.", radii, "numbers > 0, in units of [0, 1] images", "e.g. [0.5, 1.0]")
    attacks = check_attacks(attacks)
    for attack in attacks:
        if attack.eps is not None:
            raise SpecError(
                "A curve from one run asks for an attack without a bound.",
                repr(attack),
                "CW(), HopSkipJump(), or an attack of dcn_plugin.adapters.adv_lib",
                "attacks in a ball are measured with whitebox(), a run for each eps",
            )
    sets = session.adversarial_sets(measured, attacks, data, "none")
    check_all_names(data, measured)
    check_once = functools.cache(lambda: check_fits(data, measured))

    def unit(images: AdversarialSet) -> Unit:
        at = tuple(radii if radii is not None else DEFAULT_LEVELS[images.attack.change_norm])

        def measure(bar: Any) -> list[Result]:
            check_once()
            return _measure(session, images, at, bar)

        return Unit.whole(images.title, functools.partial(_key, session, images, at), measure)

    return session.measure("curve", map(unit, sets), count=len(sets), size=len(data))


def _key(session: Session, images: AdversarialSet, radii: Sequence[float]) -> Key | None:
    made_from = images.key
    if made_from is None:
        return None
    key = {"protocol": "curve", "set": made_from, "target": images.name, "seed": session.training_seed}
    return key | {"radii": list(radii)}


def _measure(session: Session, images: AdversarialSet, radii: Sequence[float], bar: Any) -> list[Result]:
    parts = []
    for batch in images:
        passes = (batch.queries, batch.backward_passes)
        parts.append((batch.first, (batch.source_correct, batch.fooled, batch.zero_gradient, batch.change, *passes)))
        bar.update(len(batch.images) * session.team.size)
    right, fooled, zero_gradient, change, queries, backward = whole(parts, session.team)
    lengths = change[right & fooled]
    figures = {
        "n_not_fooled": int((right & ~fooled).sum()),
        "median_length": float(lengths.quantile(0.5)) if len(lengths) else None,
    }
    counts = [int((right & ~(fooled & (change <= radius))).sum()) for radius in radii]
    return [
        Result(
            protocol="curve",
            target=images.name,
            source=images.name,
            relation="same network",
            **(images.described | {"eps": radius}),
            seed=session.training_seed,
            n_zero_gradient=int(zero_gradient.sum()),
            largest_change=float(change.max()),
            **passes_of(queries, backward),
            n_clean_correct=int(right.sum()),
            n_counted=int(right.sum()),
            n_defended=defended,
            n_correct=defended,
            figures=figures,
            hardware=ran_on(images.source),
        )
        for radius, defended in zip(radii, counts, strict=True)
    ]


def _measure_all(request: Request) -> Iterator[Result]:
    return robustness_curve(request.targets, request.attacks, request.data, **request.options, **request.run)


PROTOCOL = Protocol(
    name="curve",
    record="curve",
    title="Robust accuracy over eps",
    help="robust accuracy at many radii from one attack without a bound on every target",
    measure=_measure_all,
    attacks=("cw",),
    options=(
        Option(
            name="levels",
            flag="--radius",
            kind="positive",
            several=True,
            help="radius, again for more, in the norm of the attack, e.g. 0.5 or 8/255 (default: seven up to 2 in L2, "
            "six up to 32/255 in L-inf)",
        ),
    ),
    figure="accuracy_all",
    column="{attack} {level}",
    rounding="none",
    better="higher",
    itself=True,
    figures=("n_not_fooled", "median_length"),
)

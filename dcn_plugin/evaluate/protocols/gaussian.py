"""Gaussian noise: each image gets its own noise, the same for every model and scaled from level to level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from dcn_plugin.attacks import SampleStreams
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.arguments import (
    check_count,
    check_number,
    check_numbers,
)
from dcn_plugin.evaluate.protocol import Option, Protocol, Request
from dcn_plugin.evaluate.protocols.changed_images import Change, changes_in
from dcn_plugin.evaluate.records import Result
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session

__all__ = ["PROTOCOL", "Noise", "add_noise", "gaussian"]

Noise = Literal["plain", "clipped"]
DEFAULT_LEVELS = (0.1, 0.2, 0.3)


def add_noise(images: Tensor, level: float, *, noise: Noise = "plain", seed: int = 0, first_index: int = 0) -> Tensor:
    """Add Gaussian noise and clip to [0, 1].

    Args:
        images: (N, C, H, W) in [0, 1].
        level: "plain": sigma. "clipped": eps; the noise has sigma = eps / 2 and is clipped to +-eps (the paper's).
        noise: which of the two.
        seed: of the noise.
        first_index: place of the first image in its data set. An image's noise depends on its place and
            the seed, not on its batch nor on the level, which only scales it.

    Returns:
        (N, C, H, W) in [0, 1].

    Raises:
        SpecError: the level is not positive and finite, or ``noise`` is unknown.

    Source: "clipped": the authors' code, for figure 4 (docs: concepts/authors-code).
    """
    level = _check_level(level, noise)
    indices = range(first_index, first_index + len(images))
    unit = SampleStreams("gaussian", seed, indices).normal(images)
    change = level * unit if noise == "plain" else (level / 2 * unit).clamp(-level, level)
    return (images + change).clamp(0, 1)


def _check_level(level: object, noise: Noise) -> float:
    if noise not in ("plain", "clipped"):
        raise SpecError("Unknown kind of noise.", noise, "'plain', 'clipped'")
    number = check_number(level, "noise level")
    if number <= 0:
        raise SpecError("The noise level is not usable.", level, "a number > 0, in units of [0, 1] images")
    return number


def gaussian(
    targets: Mapping[str, nn.Module],
    data: LabelledImages,
    levels: Sequence[float],
    *,
    training_seed: int | None = None,
    noise: Noise = "plain",
    noise_seed: int = 0,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Measure every target under Gaussian noise.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        data: the clean images.
        levels: see :func:`add_noise`.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        noise: see :func:`add_noise`.
        noise_seed: of the noise.
        batch_size: images at a time.
        store: finished records are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Raises:
        SpecError: no target or level, or as :func:`add_noise`; nothing was run.

    Yields:
        Records in the order level, target; protocol "gaussian", eps = the level.

    Example:
        >>> [record.eps for record in gaussian({"net": net}, data, [0.1, 0.2], training_seed=0)]
        [0.1, 0.2]

    Source: paper, section 4.3, figure 4.
    """

    def at(level: float) -> Change:
        return Change(
            name=f"gaussian-{noise}",
            apply=lambda images, _, first: add_noise(images, level, noise=noise, seed=noise_seed, first_index=first),
            settings={"noise": noise, "level": level, "noise_seed": noise_seed},
            eps=level,
        )

    noise_seed = check_count(noise_seed, "seed of the noise", least=0)
    changes = [at(_check_level(level, noise)) for level in check_numbers(levels, "noise level")]
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    return changes_in(session, "gaussian", targets, data, changes)


def _measure_levels(request: Request) -> Iterator[Result]:
    options = dict(request.options)
    sigmas = options.pop("sigmas", None) or ()
    if sigmas and options.get("noise") == "clipped":
        raise SpecError(
            "Clipped noise is told by its largest change eps; its sigma is eps / 2.",
            {"sigma": list(sigmas)},
            f"--level {' --level '.join(f'{2 * sigma:g}' for sigma in sigmas)}",
        )
    levels = [*(options.pop("levels", None) or ()), *sigmas] or DEFAULT_LEVELS
    return gaussian(request.targets, request.data, levels, **options, **request.run)


PROTOCOL = Protocol(
    name="gaussian",
    record="gaussian",
    title="Gaussian noise",
    help="Gaussian noise",
    measure=_measure_levels,
    options=(
        Option(
            name="levels",
            flag="--level",
            kind="positive",
            several=True,
            help="strength, again for more, in the unit of images in [0, 1], e.g. 0.1 or 16/255: the standard "
            "deviation sigma of plain noise, the largest change eps of clipped noise (default: 0.1, 0.2 and 0.3)",
        ),
        Option(
            name="sigmas",
            flag="--sigma",
            kind="positive",
            several=True,
            help="the same as --level, for plain noise; of clipped noise sigma is eps / 2, so that --level says it",
        ),
        Option(
            name="noise",
            choices=("plain", "clipped"),
            default="plain",
            help="clipped: sigma = eps / 2, cut at +-eps, the paper's",
        ),
    ),
    column="{level}",
    better="higher",
)

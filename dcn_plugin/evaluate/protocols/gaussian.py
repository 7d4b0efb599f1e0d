"""Gaussian noise: each image gets its own noise, the same for every model and scaled from level to level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from dcn_plugin.attacks import SampleStreams
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.arguments import check_count, check_number, check_numbers
from dcn_plugin.evaluate.protocols.changed_images import Change, measure_changes
from dcn_plugin.evaluate.records import Result
from dcn_plugin.evaluate.run_directory import RunDirectory

__all__ = ["Noise", "add_noise", "gaussian"]

Noise = Literal["plain", "clipped"]


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

    Source: "clipped": the authors' code (figure 4).
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
    seed: int,
    noise: Noise = "plain",
    noise_seed: int = 0,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
) -> Iterator[Result]:
    """Measure every target under Gaussian noise; the arguments not named here are those of :func:`measure_changes`.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        data: the clean images.
        levels: see :func:`add_noise`.
        seed: of the run that made the models; it goes into the records.
        noise: see :func:`add_noise`.
        noise_seed: of the noise.
        batch_size: images at a time.
        store: see there.
        accelerator: see there.
        progress: see there.

    Raises:
        SpecError: no target or level, or as :func:`add_noise`; nothing was run.

    Yields:
        Records in the order level, target; protocol "gaussian", eps = the level.

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
    return measure_changes(
        "gaussian",
        targets,
        data,
        changes,
        seed=seed,
        batch_size=batch_size,
        store=store,
        accelerator=accelerator,
        progress=progress,
    )

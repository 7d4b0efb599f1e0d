"""Gaussian noise: each image gets its own noise, the same for every model and scaled from level to level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import SampleStreams
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.environment import hardware
from dcn_plugin.evaluate.predict import correct, device_of
from dcn_plugin.evaluate.records import Result

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
    if noise not in ("plain", "clipped"):
        raise SpecError("Unknown kind of noise.", noise, "'plain', 'clipped'")
    if not 0 < level < float("inf"):
        raise SpecError("The noise level is not usable.", level, "a number > 0, in units of [0, 1] images")
    indices = range(first_index, first_index + len(images))
    unit = SampleStreams("gaussian", seed, indices).normal(images)
    change = level * unit if noise == "plain" else (level / 2 * unit).clamp(-level, level)
    return (images + change).clamp(0, 1)


def gaussian(
    targets: Mapping[str, nn.Module],
    data: ImageSet,
    levels: Sequence[float],
    *,
    seed: int,
    noise: Noise = "plain",
    noise_seed: int = 0,
    batch_size: int = 256,
) -> Iterator[Result]:
    """Measure every target under Gaussian noise.

    The counted images are those that ALL targets classify correctly when clean (the paper's choice).

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        data: the clean images.
        levels: see :func:`add_noise`.
        seed: of the run that made the models; it goes into the records.
        noise: see :func:`add_noise`.
        noise_seed: of the noise.
        batch_size: images at a time.

    Raises:
        SpecError: no target, or as :func:`add_noise`.

    Yields:
        Records in the order level, target; protocol "gaussian", eps = the level.

    Source: paper, section 4.3, figure 4.
    """
    if not targets:
        raise SpecError("There is no target to measure.", {}, "name -> model, at least one")
    clean = {
        name: correct(target, data.images, data.labels, batch_size=batch_size, name=name)
        for name, target in targets.items()
    }
    counted = torch.stack(list(clean.values())).all(dim=0)
    for level in levels:
        noisy = add_noise(data.images, level, noise=noise, seed=noise_seed)
        for name, target in targets.items():
            still = correct(target, noisy, data.labels, batch_size=batch_size, name=name)
            yield Result(
                protocol="gaussian",
                target=name,
                data=data.name,
                data_hash=data.content_hash,
                seed=seed,
                attack=f"gaussian-{noise}",
                attack_settings={"noise": noise, "level": level, "noise_seed": noise_seed},
                eps=level,
                n_total=len(data),
                n_clean_correct=int(clean[name].sum()),
                n_counted=int(counted.sum()),
                n_defended=int((counted & still).sum()),
                n_correct=int(still.sum()),
                hardware=hardware(device_of(target)),
            )

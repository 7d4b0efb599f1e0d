"""The training images as attacks on public models change them: what PubDef trains on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.adversarial_set import AdversarialSet
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.support.processes import Team, whole
from dcn_plugin.support.progress import progress_bar

__all__ = ["public_images"]


def public_images(
    sources: Mapping[str, nn.Module],
    attacks: Sequence[Attack],
    data: LabelledImages,
    *,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
) -> list[Tensor]:
    """Attack every image through every public model; the result is what :func:`pubdef` takes.

    Args:
        sources: name -> public model, images in [0, 1] -> logits.
        attacks: each runs once a source.
        data: the images that are trained on, as they are.
        batch_size: images at a time.
        store: finished images are kept there as they come, and reused where the same are asked for.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the work; all of them get all images.
        progress: show a progress bar on stderr, if that is a terminal.

    Returns:
        One tensor for every pair of a source and an attack, uint8 (N, C, H, W) in the order of ``data``, on the CPU.

    Raises:
        SpecError: no source or no attack.
        LabelError, ModelOutputError: as the attack does.

    Source: Sitawarin et al. 2024, arXiv 2310.17645.
    """
    if not sources or not attacks:
        raise SpecError(
            "PubDef trains on images attacked through public models.",
            {"sources": list(sources), "attacks": [attack.name for attack in attacks]},
            "at least one of each",
        )
    team = Team.of(accelerator)
    pairs = list(itertools.product(sources.items(), attacks))
    results: list[Tensor] = []
    with progress_bar(len(pairs) * len(data), "public models", show=progress, team=team) as bar:
        for number, ((name, source), attack) in enumerate(pairs, 1):
            adversarial = AdversarialSet(name, source, attack, data, "8bit", batch_size, store, team=team)
            team.check({"set": adversarial.key})
            parts = []
            for batch in adversarial:
                parts.append((batch.first, ((batch.images * 255).round().to(torch.uint8),)))
                bar.update(len(batch.images) * team.size)
            results += whole(parts, team)
            bar.reach(number * len(data))
    return results

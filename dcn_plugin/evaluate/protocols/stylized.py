"""Stylised images: the same pictures in another texture, beside their originals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.data import IndexedImages
from dcn_plugin.errors import DataError
from dcn_plugin.evaluate.arguments import (
    check_images,
)
from dcn_plugin.evaluate.protocol import Protocol
from dcn_plugin.evaluate.protocols.changed_images import Change, changes_in
from dcn_plugin.evaluate.records import Result
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session

__all__ = ["PROTOCOL", "stylized"]


def stylized(
    targets: Mapping[str, nn.Module],
    original: IndexedImages,
    changed: IndexedImages,
    *,
    training_seed: int | None = None,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Measure every target on images of which each is another rendering of an original.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        original: the images as they are.
        changed: the same pictures in the same order, stylised; both as
            :func:`~dcn_plugin.data.paired_folders` gives them.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        batch_size: images at a time.
        store: finished records are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Raises:
        DataError: the two differ in length, size or labels; nothing was run.
        SpecError: no target.

    Yields:
        One record a target; protocol "stylized". ``data`` is the originals, the settings name the other set.

    Example:
        >>> original = changed = data  # or paired_folders("val", "val-stylized", size=224)
        >>> [record.target for record in stylized({"net": net}, original, changed, training_seed=0)]
        ['net']

    Source: paper, section 4.4; Geirhos et al. 2019, "ImageNet-trained CNNs are biased towards texture".
    """
    check_images(original)
    check_images(changed)
    _check_pairs(original, changed)

    def other(images: Tensor, _: Tensor, first: int) -> Tensor:
        return changed.take(torch.arange(first, first + len(images))).to(images.device)

    change = Change(
        name="stylized", apply=other, settings={"images": changed.name, "images_hash": changed.content_hash}
    )
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    return changes_in(session, "stylized", targets, original, [change])


def _check_pairs(original: IndexedImages, changed: IndexedImages) -> None:
    left, right = original.name, changed.name
    fix = "open both with dcn_plugin.data.paired_folders"
    if len(original) != len(changed):
        raise DataError(
            f"{right!r} does not have as many images as {left!r}.",
            (len(original), len(changed)),
            "one stylised image an original, in the same order",
            fix,
        )
    if original.shape != changed.shape:
        raise DataError(
            f"The images of {right!r} are of another size than those of {left!r}.",
            (original.shape, changed.shape),
            "the same (C, H, W)",
            "pass paired_folders(..., size=224, resize=256)",
        )
    differ = (original.labels.cpu() != changed.labels.cpu()).nonzero().flatten().tolist()
    if differ:
        raise DataError(
            f"{len(differ)} images of {right!r} have another label than their counterparts in {left!r}.",
            {"first places": differ[:5]},
            "the same labels in the same order",
            fix,
        )


PROTOCOL = Protocol(
    name="stylized",
    record="stylized",
    title="Stylised images",
    help="stylised images (Stylized-ImageNet's layout)",
    measure=lambda request: stylized(request.targets, *request.data, **request.run),
    data="pair",
    strength=None,
    column="stylized",
    better="higher",
)

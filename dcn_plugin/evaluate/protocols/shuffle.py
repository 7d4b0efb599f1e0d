"""Patch shuffle: images cut into a grid whose patches are permuted. Local texture stays, shape goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dcn_plugin.data import LabelledImages, patch_shuffle
from dcn_plugin.evaluate.arguments import (
    check_counts,
    check_images,
)
from dcn_plugin.evaluate.protocol import Option, Protocol, Strength
from dcn_plugin.evaluate.protocols.changed_images import Change, changes_in
from dcn_plugin.evaluate.records import Result
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session

__all__ = ["PROTOCOL", "shuffle"]

DEFAULT_KS = (2, 4, 8)


def shuffle(
    targets: Mapping[str, nn.Module],
    data: LabelledImages,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    training_seed: int | None = None,
    shuffle_seed: int = 0,
    confidence: float = 0.99,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Measure every target on images whose patches are shuffled.

    A model that needs the shape of things loses more here than one that goes by texture, so a LOW figure speaks for
    shape. Read it against chance: a model that guesses among C classes gets 1 / C right. An image's permutation
    depends on its place in the data set, so that all targets see the same images; at k = 2 one image in 24 stays as
    it is.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        data: the clean images; height and width are multiples of every k.
        ks: patches along either axis, one change each.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        shuffle_seed: of the permutations.
        confidence: an image counts only if every target gives its true class at least this softmax probability. The
            default is the paper's; a model that is never so sure counts no image, and has no defence rate.
        batch_size: images at a time.
        store: finished records are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Raises:
        SpecError: no target or no k, images that cannot be cut into k x k patches, a confidence outside [0, 1], or
            a seed out of range.

    Yields:
        Records in the order k, target; protocol "shuffle".

    Example:
        >>> [record.target for record in shuffle({"net": net, "plain": plain}, data, [4], training_seed=0)]
        ['net', 'plain']

    Source: paper, section 4.4.
    """
    data = check_images(data)
    several = check_counts(ks, "number of patches k")
    changes = [_change(k, shuffle_seed) for k in several]
    for k in several:
        # One black image, so that a k that does not divide the sides is found before the first k is measured.
        patch_shuffle(torch.zeros(1, *data.shape), k, seed=shuffle_seed)
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    return changes_in(session, "shuffle", targets, data, changes, confidence)


def _change(k: int, seed: int) -> Change:
    return Change(
        name="patch shuffle",
        apply=lambda images, _, first: patch_shuffle(images, k, seed=seed, first_index=first),
        settings={"k": k, "shuffle_seed": seed},
    )


PROTOCOL = Protocol(
    name="shuffle",
    record="shuffle",
    title="Shuffled patches",
    help="shuffled patches",
    measure=lambda request: shuffle(request.targets, request.data, **request.options, **request.run),
    options=(
        Option(
            name="ks",
            flag="-k",
            kind="count",
            several=True,
            default=DEFAULT_KS,
            metavar="K",
            help="a K x K grid, again for more",
        ),
        Option(
            name="confidence",
            kind="probability",
            default=0.99,
            metavar="P",
            help="least softmax that counts; the default is the paper's",
        ),
    ),
    strength=Strength("k", "k", start=1.0, logarithmic=True),
    column="{k}",
    better="lower",
)

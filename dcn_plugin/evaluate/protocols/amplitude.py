"""Amplitude swap: images with the Fourier phase of one image (its shape) and the amplitude of another (its texture)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from dcn_plugin.data import IndexedImages, amplitude_partners, amplitude_swap
from dcn_plugin.evaluate.arguments import (
    check_images,
)
from dcn_plugin.evaluate.protocol import Protocol
from dcn_plugin.evaluate.protocols.changed_images import Change, Changed, changes_in
from dcn_plugin.evaluate.records import Result
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session

__all__ = ["PROTOCOL", "amplitude"]


def amplitude(
    targets: Mapping[str, nn.Module],
    data: IndexedImages,
    *,
    training_seed: int | None = None,
    partner_seed: int = 0,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Measure every target on images that keep their phase and get the amplitude of an image of another class.

    The right answer is the class of the phase. All targets see the same images.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        data: the clean images, of two classes or more.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        partner_seed: of the choice of the images whose amplitude is taken; see
            :func:`~dcn_plugin.data.amplitude_partners`.
        batch_size: images at a time.
        store: finished records are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Raises:
        SpecError: no target, or a seed out of range.
        DataError: all images are of one class.

    Yields:
        One record a target; protocol "amplitude-swap". Of the counted images, the figures "n_amplitude_class" and
        "amplitude_class_rate" are those that the target takes for the class of the amplitude. "clipped_share" is the
        share of all pixel values that left [0, 1] and were clipped: where it is large, the amplitude is no longer
        quite that of the other image.

    Example:
        >>> [record.target for record in amplitude({"net": net, "plain": plain}, data, training_seed=0)]
        ['net', 'plain']

    Source: Chen et al. 2021, "Amplitude-phase recombination"; phase carries the shape: Oppenheim and Lim 1981.
    """
    data = cast(IndexedImages, check_images(data))
    partners = amplitude_partners(data.labels, seed=partner_seed)

    def swap(images: Tensor, _: Tensor, first: int) -> Changed:
        others = data.take(partners[first : first + len(images)])
        swapped = amplitude_swap(images, others.to(images.device))
        return Changed(swapped.images, {"clipped_share": swapped.clipped})

    change = Change(
        name="amplitude swap",
        apply=swap,
        settings={"partner_seed": partner_seed},
        lures={"amplitude_class": data.labels.cpu()[partners]},
    )
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    return changes_in(session, "amplitude-swap", targets, data, [change])


PROTOCOL = Protocol(
    name="amplitude",
    record="amplitude-swap",
    title="Amplitude swap",
    help="phase of one image, Fourier amplitude of another",
    measure=lambda request: amplitude(request.targets, request.data, **request.options, **request.run),
    strength=None,
    column="amplitude swap",
    better="higher",
    figures=("n_amplitude_class", "amplitude_class_rate", "clipped_share"),
)

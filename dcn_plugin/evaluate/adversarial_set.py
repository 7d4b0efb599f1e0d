"""Adversarial images of one attack on one source: made once, batch by batch, and kept in a run directory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import Attack
from dcn_plugin.attacks.checks import check_answers
from dcn_plugin.data import LabelledImages
from dcn_plugin.evaluate.arguments import (
    check_attack,
    check_count,
    check_images,
    check_model,
    check_rounding,
    check_store,
)
from dcn_plugin.evaluate.cache_keys import Key, attack_key, data_key, model_key, surroundings
from dcn_plugin.evaluate.data_checks import check_fit
from dcn_plugin.evaluate.records import Rounding
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.sharding import own_batches
from dcn_plugin.support.model_state import device_of, eval_mode
from dcn_plugin.support.processes import ALONE, Team, whole

__all__ = ["AdversarialBatch", "AdversarialSet", "passes_of"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AdversarialBatch:
    """What an attack made of B consecutive images. Everything lies on the CPU.

    Args:
        first: place of the first of them in the data set.
        images: float32 (B, C, H, W) in [0, 1], rounded as the set says.
        labels: int64 (B,).
        source_correct: bool (B,), the source was right on the clean image.
        fooled: bool (B,), the source was right and no longer is (judged before rounding, as in the authors' code).
        zero_gradient: bool (B,), the loss had a gradient of exactly zero at some step.
        started: bool (B,), False where a decision-based attack found no adversarial image to start from.
        distance: float64 (B,), see :class:`~dcn_plugin.attacks.AttackResult`; of the images before rounding.
        queries: int64 (B,), images of each sample that the source was asked about: forward passes.
        backward_passes: int64 (B,), those of them through which a gradient came back.
        change: float64 (B,), how far each of ``images`` is from the clean one, in the norm of the attack.
    """

    first: int
    images: Tensor
    labels: Tensor
    source_correct: Tensor
    fooled: Tensor
    zero_gradient: Tensor
    started: Tensor
    distance: Tensor
    queries: Tensor
    backward_passes: Tensor
    change: Tensor

    def part(self, first: int, count: int) -> AdversarialBatch:
        """The images from place ``first`` of the data set on, at most ``count`` of them."""
        rows = slice(first - self.first, first - self.first + count)
        return AdversarialBatch(first, *(getattr(self, column)[rows] for column in _COLUMNS))


# Fooled images of the first batch that are kept with what they were and what the source says of them, to be looked at.
_EXAMPLES = 6

_COLUMNS = tuple(field.name for field in fields(AdversarialBatch))[1:]


@dataclass(frozen=True, eq=False)
class AdversarialSet:
    """What one attack makes of one image set on one source.

    Iterating over it makes the images, or reads them from ``store``, one batch in memory at a time. Without a store
    each iteration attacks anew; :attr:`loaded` keeps all of them. Where several processes share the set, each goes
    through its own batches only, and :attr:`loaded` is the whole set on all of them.

    Args:
        name: of the source, as in the records.
        source: images in [0, 1] -> logits.
        attack: any attack of :mod:`dcn_plugin.attacks`, or a foreign one behind :mod:`dcn_plugin.adapters`.
        data: the clean images.
        rounding: "8bit" rounds to multiples of 1/255, as images written to files are; it may add up to 0.5/255 to
            the distance. The images are then stored as uint8.
        batch_size: images at a time.
        store: where finished batches are kept and looked for.
        limit: how many images of ``data``, from the first on; all by default.
        team: processes that share the images; ``Team.of(accelerator)`` for those of an Accelerator. Each writes the
            batches it makes into the store.
        model_key: gives the key of the source; within one run :class:`ModelKeys`, which hashes it once.

    Raises:
        SpecError: an argument of the wrong type, unknown rounding, or a batch size or limit below 1.
        DataError: ``data`` is no set of labelled images.
        ImageRangeError, ModelOutputError: the attack does not take images of this shape, or this number of classes.
    """

    name: str
    source: nn.Module
    attack: Attack
    data: LabelledImages
    rounding: Rounding = "none"
    batch_size: int = 256
    store: RunDirectory | None = None
    limit: int | None = None
    team: Team = ALONE
    model_key: Callable[[nn.Module], Key | None] = model_key

    def __post_init__(self) -> None:
        check_model(self.source, name=f"Source {self.name!r}")
        check_images(self.data)
        check_attack(self.attack).check_data(self.data.shape, self.data.num_classes)
        check_rounding(self.rounding)
        check_store(self.store)
        object.__setattr__(self, "batch_size", check_count(self.batch_size, "batch size"))
        if self.limit is not None:
            object.__setattr__(self, "limit", check_count(self.limit, "number of images"))

    @property
    def title(self) -> str:
        """The attack and its source: "PGD on resnet18"."""
        return f"{self.attack.name} on {self.name}"

    def __len__(self) -> int:
        return len(self.data) if self.limit is None else min(self.limit, len(self.data))

    @property
    def key(self) -> Key | None:
        """What the images depend on; None if the source or the attack cannot be told from others."""
        source, attack = self.model_key(self.source), attack_key(self.attack)
        if source is None or attack is None:
            return None
        return {
            "source": source,
            "attack": attack,
            "data": data_key(self.data),
            "rounding": self.rounding,
            "batch_size": self.batch_size,
            "limit": self.limit,
            **surroundings(device_of(self.source)),
        }

    @property
    def described(self) -> dict[str, Any]:
        """What a record says of the data and of the attack."""
        settings = self.attack.settings
        steps = settings.get("steps")
        return {
            "data": self.data.name,
            "data_hash": self.data.content_hash,
            "n_total": len(self),
            "attack": self.attack.name,
            "attack_settings": settings,
            "eps": self.attack.eps,
            "steps": steps if isinstance(steps, int) else None,
            "rounding": self.rounding,
        }

    def __iter__(self) -> Iterator[AdversarialBatch]:
        """Go through this process's part of the set once, in the order of the data.

        Raises:
            LabelError, ModelOutputError: as the attack does.
            ClassesError, InputSizeError: the source's classes or images are not those of the data.
        """
        if "loaded" in vars(self):
            step = self.team.size * self.batch_size
            for first in range(self.team.rank * self.batch_size, len(self), step):
                yield self.loaded.part(first, self.batch_size)
            return
        key = self.key if self.store is not None else None
        if self.store is not None and key is None:
            _log.warning("The images of %s on %s are not kept: they have no key", self.attack.name, self.name)
        for first, images, labels in own_batches(self.data, self.batch_size, self.team, count=len(self)):
            columns = self.store.read_batch(key, first) if self.store is not None and key is not None else None
            if columns is None:
                self._fits  # noqa: B018  (checked once)
                columns = self._attacked(images, labels, first)
                if self.store is not None and key is not None:
                    about = {"source": self.name, "attack": self.attack.name}
                    self.store.write_batch(key, first, columns, about)
            columns = {column: columns[column] for column in _COLUMNS if column not in ("labels", "change")}
            if self.rounding == "8bit":
                columns["images"] = columns["images"].float() / 255
            # Not kept, but measured each time: runs of before it was measured have no such column.
            change = self.attack.changes(images.cpu(), columns["images"])
            yield AdversarialBatch(first=first, labels=labels.cpu(), change=change, **columns)

    @functools.cached_property
    def loaded(self) -> AdversarialBatch:
        """All images as one batch. It stays in memory; later iterations read it."""
        parts = [(batch.first, tuple(getattr(batch, column) for column in _COLUMNS)) for batch in self]
        return AdversarialBatch(0, *whole(parts, self.team))

    @functools.cached_property
    def _fits(self) -> bool:
        check_fit(self.source, self.data, name=self.name)
        return True

    def _attacked(self, images: Tensor, labels: Tensor, first: int) -> dict[str, Tensor]:
        device = device_of(self.source)
        result = self.attack(
            self.source, images.to(device), labels.to(device), batch_size=self.batch_size, first_index=first
        )
        adversarial = result.images.cpu()
        if self.rounding == "8bit":
            adversarial = (adversarial * 255).round().to(torch.uint8)
        examples: dict[str, Tensor] = {}
        if self.store is not None and not first and len(rows := result.fooled.nonzero().flatten()[:_EXAMPLES]):
            with torch.no_grad(), eval_mode(self.source):
                answers = check_answers(self.source(result.images[rows]), count=len(rows))
            examples = {
                "example_clean": images.to(device)[rows].float().cpu(),
                "example_labels": labels.cpu()[rows.cpu()].long(),
                "example_said": (answers.argmax(dim=1) if answers.ndim == 2 else answers).cpu().long(),
            }
        return {
            **examples,
            "images": adversarial,
            "source_correct": result.correct.cpu(),
            "fooled": result.fooled.cpu(),
            "zero_gradient": result.zero_gradient.cpu(),
            "started": result.started.cpu(),
            "distance": result.distance.cpu(),
            "queries": result.queries.cpu(),
            "backward_passes": result.backward_passes.cpu(),
        }


def passes_of(queries: Tensor, backward_passes: Tensor) -> dict[str, Any]:
    """What a record says an attack cost, summed over its images: forward and backward passes, counted apart."""
    return {"n_forward_passes": int(queries.sum()), "n_backward_passes": int(backward_passes.sum())}

"""adv-lib's minimum-norm attacks, run as ours: seeded, checked, counted."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dcn_plugin.adapters._adv_lib_table import KNOWN, NORMS, look_up, resolve_options
from dcn_plugin.adapters._foreign import ForeignAttack, Option, Watched
from dcn_plugin.attacks import Attack, AttackRun, BestOf
from dcn_plugin.errors import ImageRangeError, ModelOutputError, SpecError
from dcn_plugin.support.arguments import check_count, is_count, plain

__all__ = ["MinimumNorm", "minimum_norm_attacks", "nearest_of_all"]


class MinimumNorm(ForeignAttack):
    """One of adv-lib's attacks for the smallest change, untargeted and without a bound.

    The result is that of ``adv_lib.attacks.<attack>(model, images, labels, ...)`` in eval mode on the images that the
    model has right. The options have adv-lib's defaults and names, but for these: ``steps`` is the number of gradients,
    ``step_size`` the first step of ALMA and FMN, Greek letters are spelled out. DDN does not round its images to 8 bits
    unless ``levels=256`` says so; ALMA's search for a first step is left out, as it does not end where the first
    gradient points out of the range of pixels. APGD minimises by a bisection over eps of ``searches`` runs of ``steps``
    gradients, up to ``radius`` (by default the diagonal of the image); PDGD in L-inf is the proximal PDPGD.

    An image for which the attack finds nothing comes back clean, counts as not fooled, and is warned of.

    ``queries`` and ``backward_passes`` are exact, but for APGD, which asks about fewer and fewer images and does not
    tell which: there they are upper bounds. APGD draws; see :class:`ForeignAttack` for its pieces of ``batch`` images.

    Args:
        attack: DDN, ALMA, PDGD, FMN or APGD.
        norm: "L2" or "Linf", of PDGD, FMN and APGD; the others minimise L2.
        seed: of everything the attack draws.
        batch: images a piece of a random attack has.
        **options: of the attack, see :data:`dcn_plugin.adapters._adv_lib_table.KNOWN`.

    Raises:
        SpecError: the attack, the norm or an option does not exist, or a value is out of range.

    Example::

        MinimumNorm("DDN", steps=100)(model, images, labels).median_distance

    Source: Rony and Ben Ayed, adversarial-library (BSD-3); each attack's paper stands in the table.
    """

    def __init__(
        self, attack: str, /, *, norm: Literal["L2", "Linf"] = "L2", seed: int = 0, batch: int = 64, **options: Option
    ) -> None:
        entry = look_up(attack)
        if norm not in entry.norms:
            raise SpecError(f"adv-lib's {attack} does not minimise this norm.", norm, ", ".join(entry.norms))
        batch = check_count(batch, "batch of a random attack")
        super().__init__(
            attack,
            library=f"adv-lib {importlib.metadata.version('adv-lib')}",
            eps=None,
            norm=norm,
            batch=batch if entry.random else None,
            options=resolve_options(attack, options),
            seed=seed,
        )
        self._known = entry

    @property
    def correct_only(self) -> bool:
        """Always: where the model is wrong there is nothing to look for."""
        return True

    @property
    def watched(self) -> Watched:
        """The first gradient, that of the clean image: a penalty that is met has no slope. APGD begins elsewhere."""
        return "none" if self._known.random else "first"

    def check_data(self, shape: tuple[int, int, int], num_classes: int) -> None:
        """Refuse a network of too few classes; see :meth:`Attack.check_data`."""
        needed = 2 if self._options.get("loss") == "ce" else self._known.min_classes
        if num_classes < needed:
            raise ModelOutputError(
                f"The loss of adv-lib's {self.name} compares several logits.", num_classes, f"{needed} or more"
            )

    def _check_fit(self, run: AttackRun) -> None:
        if run.images.dtype != torch.float32:
            raise ImageRangeError(
                f"adv-lib's {self.name} does not take this type.", run.images.dtype, "torch.float32", "images.float()"
            )

    def _build(self, probe: nn.Module, seed: int, run: AttackRun) -> Callable[[Tensor, Tensor], Tensor]:
        return functools.partial(self._run, probe)

    def _run(self, probe: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return self._known.call(probe, images, labels, NORMS[self.norm], self._options)


def minimum_norm_attacks(
    norm: Literal["L2", "Linf"] = "L2", *, steps: int = 100, seed: int = 0, batch: int = 64
) -> dict[str, Attack]:
    """The attacks of the table that minimise a norm, each with ``steps`` gradients an image.

    APGD bisects over eps, and so its runs share the gradients: twelve of them, of steps / 12 each and at least five.

    Args:
        norm: "L2" (DDN, ALMA, PDGD, FMN, APGD) or "Linf" (PDGD, FMN, APGD).
        steps: gradients an image, >= 2.
        seed: of everything they draw.
        batch: see :class:`MinimumNorm`.

    Returns:
        name -> attack.

    Raises:
        SpecError: the norm does not exist, or there are too few steps.
    """
    steps = plain(steps)
    if norm not in NORMS or not is_count(steps, least=2):
        raise SpecError("norm or steps are not usable.", (norm, steps), "'L2' or 'Linf', and an int >= 2")
    return {
        name: MinimumNorm(
            name, norm=norm, seed=seed, batch=batch, steps=max(5, steps // 12) if name == "APGD" else steps
        )
        for name, entry in KNOWN.items()
        if norm in entry.norms
    }


def nearest_of_all(norm: Literal["L2", "Linf"] = "L2", *, steps: int = 100, seed: int = 0, batch: int = 64) -> BestOf:
    """All of :func:`minimum_norm_attacks` as one attack: each image gets the nearest success.

    Args:
        norm: see there, as the others.
        steps: gradients an image and attack.
        seed: of everything they draw.
        batch: of APGD's pieces; the images of a data set must come in multiples of it.
    """
    return BestOf(list(minimum_norm_attacks(norm, steps=steps, seed=seed, batch=batch).values()), norm=norm)

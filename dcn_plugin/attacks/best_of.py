"""Several attacks without a bound, of which each image gets the nearest success."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dcn_plugin.attacks.base import Attack, AttackRun
from dcn_plugin.errors import SpecError, WeakAttackWarning, warn_caller

__all__ = ["BestOf"]


class BestOf(Attack):
    """Run every attack on every image, and keep the adversarial image that lies nearest to the clean one.

    No attack finds the smallest change of every image; their union is nearer to it than each. Queries and backward
    passes are those of all together.

    Args:
        attacks: without a bound (``eps`` None); at least one.
        norm: that distances are compared in, "L2" or "Linf"; each attack must minimise it.

    Warns:
        WeakAttackWarning: no attack found an adversarial image for some.

    Raises:
        SpecError: no attack, one with a bound, or one that minimises another norm.

    Example:
        >>> attack = BestOf([CW(steps=5, bisections=1), HopSkipJump(max_queries=100)], norm="L2")
        >>> attack(net, images, labels).images.shape
        torch.Size([8, 1, 16, 16])

    Source: Cina et al. 2024, "AttackBench", arXiv 2404.19460 (the best of several attacks, image by image).
    """

    def __init__(self, attacks: Sequence[Attack], *, norm: Literal["L2", "Linf"] = "L2") -> None:
        super().__init__(eps=None)
        if norm not in ("L2", "Linf"):
            raise SpecError("The norm is not usable.", norm, "'L2', 'Linf'")
        members = [attacks] if isinstance(attacks, Attack) else list(attacks)
        if not members:
            raise SpecError("There is nothing to take the best of.", members, "at least one attack")
        for attack in members:
            if not isinstance(attack, Attack) or attack.eps is not None:
                raise SpecError(
                    "The best of several attacks is that of the smallest change.",
                    repr(attack),
                    "attacks without a bound (eps None), e.g. CW(), HopSkipJump()",
                )
            if attack.change_norm != norm.lower():
                raise SpecError(
                    f"{attack.name} minimises another norm.", attack.change_norm, norm.lower(), "give it norm=, too"
                )
        self.norm, self._attacks = norm, tuple(members)
        self.attacks = "; ".join(map(repr, members))

    @property
    def unkeyed(self) -> tuple[str, ...]:
        """What the members have that no record can say."""
        return tuple(f"{attack.name}.{name}" for attack in self._attacks for name in attack.unkeyed)

    def check_data(self, shape: tuple[int, int, int], num_classes: int) -> None:
        """Refuse what one of the members does not take; see :meth:`Attack.check_data`."""
        for attack in self._attacks:
            attack.check_data(shape, num_classes)

    def perturb(self, run: AttackRun) -> Tensor:
        """Return the adversarial images (N, C, H, W) of one batch."""
        nearest = run.images.clone()
        smallest = torch.full((len(nearest),), torch.inf, dtype=torch.float64, device=nearest.device)
        started = torch.zeros_like(run.started)
        for number, attack in enumerate(self._attacks, 1):
            size = len(run.images) if attack.batch is None else -(-len(run.images) // attack.batch) * attack.batch
            with warnings.catch_warnings():
                # What one attack does not find another may; what none finds is told below.
                warnings.simplefilter("ignore", WeakAttackWarning)
                result = attack(run.model, run.images, run.labels, batch_size=size, first_index=run.streams.indices[0])
            run.queries += result.queries.cpu().numpy()
            run.backward_passes += result.backward_passes.cpu().numpy()
            run.zero_gradient |= result.zero_gradient
            started |= result.started
            length = attack.changes(run.images, result.images).to(smallest.device)
            closer = result.fooled & (length < smallest)
            nearest[closer] = result.images[closer]
            smallest[closer] = length[closer]
            if run.on_progress is not None:
                run.on_progress(number / len(self._attacks))
        run.started = started
        missed = run.correct & started & smallest.isinf()
        if missed.any():
            warn_caller(
                f"{self.name}: none of {len(self._attacks)} attacks found an adversarial image for "
                f"{int(missed.sum())} of {int(run.correct.sum())} images that the model has right. They come back "
                "clean and count as not fooled: take more steps.",
                WeakAttackWarning,
            )
        return nearest

"""Projected gradient descent in the L-inf ball; one step of it is FGSM."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from dcn_plugin.attacks.arguments import check_flag
from dcn_plugin.attacks.base import Attack, AttackRun
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import is_count, is_number, plain

__all__ = ["PGD"]

#: All steps together reach this many times the radius of the ball.
STEP_RATIO = 2.5
PAPER_STEP_RATIO = 1.25
#: No pixel can move further than 1; the sign of a step may turn.
MAX_STEP = 2


class PGD(Attack):
    """Untargeted PGD: climb the sign of the loss gradient, stay within eps and within [0, 1].

    ``PGD(eps, steps=1)`` is FGSM.

    Args:
        eps: largest change of a pixel, in units of [0, 1] images.
        steps: number of gradient steps, >= 1.
        step_size: change of a pixel in one step; by default 2.5 * eps / steps, the ratio of Madry et al.'s code: it
            leaves steps to turn round at the edge of the ball. :meth:`paper` has half of it.
        random_start: begin at a uniformly random point of the ball. Off by default, as in the paper.
        seed: of the random start; a sample's start depends on its place among the images, not on its batch.

    Raises:
        SpecError: a setting is out of range.

    Example:
        >>> result = PGD(eps=8 / 255, steps=10)(net, images, labels)
        >>> bool((result.images - images).abs().max() <= 8 / 255 + 1e-6)
        True

    Source: Madry et al. 2018, arXiv 1706.06083; the paper's settings: the authors' code
    (docs: concepts/authors-code).
    """

    eps: float

    def __init__(
        self,
        eps: float,
        *,
        steps: int = 20,
        step_size: float | None = None,
        random_start: bool = False,
        seed: int = 0,
    ) -> None:
        eps, steps, step_size, random_start = map(plain, (eps, steps, step_size, random_start))
        if not is_number(eps):
            raise SpecError("eps is not usable.", eps, "a number in (0, 1]", "write 8 / 255 for 8 of 255 grey levels")
        super().__init__(eps=eps, seed=seed)
        if not is_count(steps, least=1):
            raise SpecError("An attack needs at least one step.", steps, "an int >= 1")
        if step_size is None:
            step_size = min(STEP_RATIO * eps / steps, MAX_STEP)
        if not (is_number(step_size) and 0 < step_size <= MAX_STEP):
            raise SpecError("The step size is not usable.", step_size, "a number in (0, 2]", "try 2.5 * eps / steps")
        check_flag("random_start", random_start)
        self.steps, self.step_size, self.random_start = steps, step_size, random_start

    @classmethod
    def paper(cls, eps: float, *, steps: int = 20) -> Self:
        """The paper's step of 1.25 * eps / steps: 20 steps of 1/255 for 16/255, 40 steps of 1/255 for 32/255.

        Source: the authors' code (docs: concepts/authors-code).
        """
        checked = cls(eps, steps=steps)
        return cls(eps, steps=steps, step_size=PAPER_STEP_RATIO * checked.eps / checked.steps)

    @property
    def reach(self) -> float:
        """How far all steps together can move a pixel."""
        return self.steps * self.step_size

    def perturb(self, run: AttackRun) -> Tensor:
        """Return the adversarial images (N, C, H, W) of one batch."""
        low = (run.images - self.eps).clamp(min=0)
        high = (run.images + self.eps).clamp(max=1)
        images = run.images
        if self.random_start:
            images = _into(images + run.streams.uniform(images, -self.eps, self.eps), low, high)
        for _ in range(self.steps):
            images = _into(images + self.step_size * self.direction(run.loss_gradient(images)), low, high)
        return images

    def direction(self, gradient: Tensor) -> Tensor:
        """Where a step goes, (N, C, H, W) like the gradient."""
        return gradient.sign()


def _into(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(images, low), high)

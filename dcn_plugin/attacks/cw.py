"""Carlini and Wagner's L2 attack: the smallest change that reaches a wanted confidence, by gradient descent."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from dcn_plugin.attacks.arguments import check_flag
from dcn_plugin.attacks.base import Attack, AttackRun
from dcn_plugin.attacks.checks import check_logits
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import is_count, is_number, plain

__all__ = ["CW"]

#: tanh(w) runs over +-(1 - EDGE) of its range as a pixel runs from 0 to 1: at the edges the slope is still about EDGE.
EDGE = 0.05
#: Progress is looked at ten times a round; a sample whose loss fell by less than this share of it stops.
LEAST_PROGRESS = 1e-4
CHECKS = 10
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8
#: c may exceed its limit by what its repeated multiplication rounds.
ROUNDING = 1 + 1e-5


class CW(Attack):
    """CW L2, untargeted: minimise ||delta||_2^2 + c * max(0, z_y - max_{j != y} z_j + confidence).

    It succeeds on a sample where another logit exceeds that of the true class by ``confidence`` and the model
    is wrong. c is searched for each sample: it grows until the attack succeeds, then it is bisected. The closest
    success of a sample over all rounds and steps is returned; without any it comes back clean. Samples do not
    influence each other: losses are summed, not averaged, and each sample stops by its own loss.

    The defaults find small distances. :meth:`paper` gives the settings that the paper used.

    Args:
        confidence: >= 0, in units of logits.
        steps: Adam steps of a round, at most.
        step_size: of Adam, in units of w, where a pixel is (1 + tanh(w) / 0.95) / 2.
        c_start: first c.
        c_factor: > 1, c grows by it while a sample has no success.
        c_max: c grows no further than this.
        bisections: rounds that follow the first success of a sample.
        early_stop: a sample leaves a round when its loss has stopped falling.

    Raises:
        SpecError: a setting is out of range.

    Example:
        >>> result = CW(steps=5, bisections=1)(net, images, labels)
        >>> result.distance.shape
        torch.Size([8])

    Source: Carlini and Wagner 2017, arXiv 1608.04644, sections V and VI. Theirs lets pixels reach 0 and 1 only in the
    limit w -> +-infinity, where the slope is 0 and pixels that start there never move; here they lie at finite w.
    """

    def __init__(
        self,
        *,
        confidence: float = 0.0,
        steps: int = 1000,
        step_size: float = 0.005,
        c_start: float = 1e-3,
        c_factor: float = 10.0,
        c_max: float = 1e10,
        bisections: int = 5,
        early_stop: bool = True,
    ) -> None:
        super().__init__(eps=None)
        confidence, steps, step_size, c_start = map(plain, (confidence, steps, step_size, c_start))
        c_factor, c_max, bisections, early_stop = map(plain, (c_factor, c_max, bisections, early_stop))
        if not (is_number(confidence) and 0 <= confidence < math.inf):
            raise SpecError("The confidence is not usable.", confidence, "a number >= 0")
        if not (is_count(steps, least=1) and is_count(bisections, least=0)):
            raise SpecError("A number of steps is not usable.", (steps, bisections), "steps >= 1, bisections >= 0")
        if not (is_number(step_size) and 0 < step_size <= 1):
            raise SpecError("The step size is not usable.", step_size, "a number in (0, 1]", "try 0.005")
        search = (c_start, c_factor, c_max)
        if not (all(map(is_number, search)) and 0 < c_start <= c_max < math.inf and 1 < c_factor < math.inf):
            raise SpecError("The search for c is not usable.", search, "0 < start <= most, and a factor > 1")
        check_flag("early_stop", early_stop)
        self.confidence, self.steps, self.step_size = confidence, steps, step_size
        self.c_start, self.c_factor, self.c_max = c_start, c_factor, c_max
        self.bisections, self.early_stop = bisections, early_stop

    @classmethod
    def paper(cls, *, confidence: float = 40.0) -> Self:
        """The settings behind the paper's CW columns; confidence 20 where the source was ResNet-18.

        At most 1,000 Adam steps of 5e-4, c from 1e-3 times 10 up to 1e10.

        Source: the authors' code (docs: concepts/authors-code).
        """
        return cls(confidence=confidence, steps=1000, step_size=5e-4, c_start=1e-3, c_factor=10.0, c_max=1e10)

    def perturb(self, run: AttackRun) -> Tensor:
        """Return the adversarial images (N, C, H, W) of one batch."""
        search = _Search.begin(run.images, self.c_start)
        todo = run.correct.clone()
        growths = math.floor(math.log(self.c_max / self.c_start * ROUNDING, self.c_factor))
        rounds = growths + 1 + self.bisections
        for number in range(rounds):
            rows = todo.nonzero().flatten()
            if not len(rows):
                break
            won = self._descend(run, search, rows)
            search.next_c(rows, won, self.c_factor)
            search.bisected[rows] += search.upper[rows].isfinite().long()
            # The first success is a growth's, not a bisection's.
            todo &= (search.bisected <= self.bisections) & (search.c <= self.c_max * ROUNDING)
            if run.on_progress is not None:
                run.on_progress((number + 1) / rounds)
        return search.best

    def _descend(self, run: AttackRun, search: _Search, rows: Tensor) -> Tensor:
        """One round of Adam at the current c: bool, of the shape of ``rows``, who succeeded at some step."""
        descent = _Descent.begin(rows, run.images[rows], search.c[rows])
        won = torch.zeros_like(run.correct)
        for step in range(self.steps):
            leaf = _to_pixels(descent.w).to(run.images.dtype).requires_grad_()
            logits = check_logits(run.forward(leaf, descent.rows.cpu().numpy()), count=len(leaf))
            margin = _margin(logits, run.labels[descent.rows])
            hinge = (self.confidence - margin).clamp(min=0)
            (gradient,) = torch.autograd.grad(hinge.sum(), leaf)
            images, margin, hinge = leaf.detach(), margin.detach(), hinge.detach()
            gap = images - descent.clean
            squared = (gap * gap).flatten(1).sum(dim=1)

            better = (margin >= self.confidence) & (margin > 0)
            won[descent.rows] |= better
            better &= squared < search.squared[descent.rows]
            search.best[descent.rows[better]] = images[better]
            search.squared[descent.rows[better]] = squared[better]

            stuck = (hinge > 0) & (gradient == 0).flatten(1).all(dim=1)
            run.zero_gradient[descent.rows[stuck]] = True
            # The gradients of both terms, by way of the pixels.
            towards = descent.c.view(-1, 1, 1, 1) * gradient + 2 * gap
            descent.step(towards * _slope(descent.w), self.step_size, step + 1)
            if self.early_stop and (step + 1) % max(1, self.steps // CHECKS) == 0:
                loss = squared + descent.c * hinge
                descent.keep(loss < (1 - LEAST_PROGRESS) * descent.loss, loss)
                if not len(descent.rows):
                    break
        return won[rows]


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit minus that of the true class, (N,): above 0 where the model is wrong."""
    true_class = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    # Not by subtracting a large number: that is wrong for logits larger than it, and loses digits of the others.
    return logits.masked_fill(true_class, -math.inf).amax(dim=1) - logits[true_class]


def _to_pixels(w: Tensor) -> Tensor:
    return ((w.tanh() / (1 - EDGE) + 1) / 2).clamp(0, 1)


def _to_w(images: Tensor) -> Tensor:
    return ((2 * images - 1) * (1 - EDGE)).atanh()


def _slope(w: Tensor) -> Tensor:
    """Derivative of a pixel with respect to its w."""
    return (1 - w.tanh().square()) / (2 * (1 - EDGE))


@dataclass
class _Descent:
    """The M samples that still descend in this round."""

    rows: Tensor  # int64, place in the batch
    clean: Tensor
    w: Tensor
    mean: Tensor  # Adam's averages of the gradient and of its square
    square: Tensor
    c: Tensor
    loss: Tensor  # at the last check

    @classmethod
    def begin(cls, rows: Tensor, clean: Tensor, c: Tensor) -> _Descent:
        clean = clean.to(c.dtype)
        return cls(
            rows=rows,
            clean=clean,
            w=_to_w(clean),
            mean=torch.zeros_like(clean),
            square=torch.zeros_like(clean),
            c=c,
            loss=torch.full_like(c, math.inf),
        )

    def step(self, gradient: Tensor, step_size: float, number: int) -> None:
        """Adam (Kingma and Ba 2015); afterwards w is put back where pixels are in [0, 1]."""
        self.mean.mul_(BETA1).add_(gradient * (1 - BETA1))
        self.square.mul_(BETA2).add_(gradient * gradient * (1 - BETA2))
        mean, square = self.mean / (1 - BETA1**number), self.square / (1 - BETA2**number)
        edge = math.atanh(1 - EDGE)
        self.w = (self.w - step_size * mean / (square.sqrt() + ADAM_EPS)).clamp(-edge, edge)

    def keep(self, mask: Tensor, loss: Tensor) -> None:
        self.loss = loss
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[mask])


@dataclass
class _Search:
    """The search for c, and the best images, of all N samples."""

    best: Tensor
    squared: Tensor  # ||delta||_2^2 of the best, infinity without success
    c: Tensor
    lower: Tensor
    upper: Tensor
    bisected: Tensor

    @classmethod
    def begin(cls, images: Tensor, c: float) -> _Search:
        # Half precision holds neither c nor small steps.
        dtype = torch.promote_types(images.dtype, torch.float32)
        first = torch.full((len(images),), c, dtype=dtype, device=images.device)
        return cls(
            best=images.clone(),
            squared=torch.full_like(first, math.inf),
            c=first,
            lower=torch.zeros_like(first),
            upper=torch.full_like(first, math.inf),
            bisected=torch.zeros(len(images), dtype=torch.int64, device=images.device),
        )

    def next_c(self, rows: Tensor, won: Tensor, factor: float) -> None:
        """Narrow the interval of c, and choose its middle or, without an upper end, the next larger c."""
        c = self.c[rows]
        lower = torch.where(won, self.lower[rows], torch.maximum(self.lower[rows], c))
        upper = torch.where(won, torch.minimum(self.upper[rows], c), self.upper[rows])
        self.lower[rows], self.upper[rows] = lower, upper
        self.c[rows] = torch.where(upper.isinf(), c * factor, (lower + upper) / 2)

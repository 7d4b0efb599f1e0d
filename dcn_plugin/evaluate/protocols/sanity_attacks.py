"""What attacks do to one model on one image set, each attack run once: what :func:`sanity` compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import PGD, Attack, AttackRun, HopSkipJump
from dcn_plugin.data import LabelledImages
from dcn_plugin.evaluate.adversarial_set import passes_of
from dcn_plugin.evaluate.data_checks import check_fits
from dcn_plugin.evaluate.predictions import correct, logits_of
from dcn_plugin.evaluate.sharding import own_batches
from dcn_plugin.support.model_state import device_of
from dcn_plugin.support.processes import ALONE, Team, whole

__all__ = ["Attempts", "Outcome", "RandomCorners"]

T = TypeVar("T")


class RandomCorners(Attack):
    """Random corners of the L-inf ball, the first that fools the model: what an attack with gradients has to beat.

    Args:
        eps: radius of the ball.
        draws: corners an image.
        seed: of the corners; an image's depend on its place in the data set.
    """

    eps: float

    def __init__(self, eps: float, *, draws: int, seed: int = 0) -> None:
        super().__init__(eps=eps, seed=seed)
        self.draws = draws

    def perturb(self, run: AttackRun) -> Tensor:
        """Return the adversarial images (N, C, H, W) of one batch."""
        adversarial, standing = run.images.clone(), run.correct.clone()
        for _ in range(self.draws):
            rows = standing.nonzero().flatten()
            if not len(rows):
                break
            corner = run.streams.uniform(run.images[rows], -1, 1, rows=rows.tolist()).sign()
            tried = (run.images[rows] + self.eps * corner).clamp(0, 1)
            won = run.logits(tried, rows.cpu().numpy()).argmax(dim=1) != run.labels[rows]
            adversarial[rows[won]] = tried[won]
            standing[rows[won]] = False
        return adversarial


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one attack did to N images. Everything is (N,) and lies on the CPU.

    Args:
        right: bool, the model is right on the clean image.
        fooled: bool, it was right and is no longer, and the image lies within the ball.
        zero_gradient: bool, the loss had a gradient of exactly zero at some step.
        margin: float64, the largest logit of another class less that of the true class, on the attack's image. Unlike
            the cross-entropy it does not round to zero where a model is sure.
        queries: int64, forward passes of the attack on the model that it attacked.
        backward_passes: int64, those of them through which a gradient came back.
    """

    right: Tensor
    fooled: Tensor
    zero_gradient: Tensor
    margin: Tensor
    queries: Tensor
    backward_passes: Tensor


@dataclass(frozen=True, eq=False)
class Attempts:
    """Attacks on one model; each runs when it is first asked for, one batch in memory at a time.

    Args:
        model: images in [0, 1] -> logits.
        data: the clean images.
        eps: radius of the L-inf ball.
        steps: of PGD.
        sources: name -> model for transfer attacks.
        queries: of HopSkipJump on each image.
        attack_seed: of what is random.
        batch_size: images at a time.
        team: processes that share the images; each gets the complete outcomes.
    """

    model: nn.Module
    data: LabelledImages
    eps: float
    steps: int
    sources: Mapping[str, nn.Module]
    queries: int
    attack_seed: int
    batch_size: int
    team: Team = ALONE
    _done: dict[str, Outcome] = field(default_factory=dict, init=False)
    _compared: set[str] = field(default_factory=set, init=False)

    def pgd(self, eps: float | None = None, *, source: str | None = None) -> Outcome:
        """PGD on the model, or on a source whose images the model is shown; in the ball of ``eps``, or of another."""
        radius = self.eps if eps is None else eps
        attack = PGD(radius, steps=self.steps, step_size=2.5 * radius / self.steps)
        return self._once(attack, radius, source)

    def one_step(self) -> Outcome:
        """FGSM on the model."""
        return self._once(PGD(self.eps, steps=1), self.eps)

    def decisions(self) -> Outcome:
        """HopSkipJump on the model, where it ends within the ball."""
        attack = HopSkipJump(max_queries=self.queries, norm="linf", seed=self.attack_seed)
        return self._once(attack, self.eps)

    def noise(self) -> Outcome:
        """As many random corners of the ball as PGD has steps."""
        return self._once(RandomCorners(self.eps, draws=self.steps, seed=self.attack_seed), self.eps)

    @property
    def n_right(self) -> int:
        """Images that are right when clean. Every attack finds that out; one must have run."""
        return int(next(iter(self._done.values())).right.sum())

    def counted(self, check: Callable[[Attempts], T]) -> tuple[T, dict[str, Any]]:
        """What a check says, and the passes of the attacks that it compares, whether they ran for it or before."""
        self._compared.clear()
        finding = check(self)
        compared = [self._done[about] for about in self._compared]
        queries, backward = (
            torch.cat([getattr(outcome, name) for outcome in compared]) for name in ("queries", "backward_passes")
        )
        return finding, passes_of(queries, backward)

    def _once(self, attack: Attack, radius: float, source: str | None = None) -> Outcome:
        about = f"{attack} on {source}"
        if not self._done:
            check_fits(self.data, {"": self.model}, self.sources)
        if about not in self._done:
            self._done[about] = self._run(attack, radius, None if source is None else self.sources[source])
        self._compared.add(about)
        return self._done[about]

    def _run(self, attack: Attack, radius: float, source: nn.Module | None) -> Outcome:
        attacked = self.model if source is None else source
        device, size = device_of(attacked), self.batch_size
        parts = []
        for first, batch, truth in own_batches(self.data, size, self.team):
            images, labels = batch.to(device), truth.cpu()
            result = attack(attacked, images, labels.to(device), batch_size=size, first_index=first)
            right = result.correct.cpu() if source is None else correct(self.model, images, labels, batch_size=size)
            margin = _margin(logits_of(self.model, result.images, batch_size=size), labels)
            furthest = (result.images - images).abs().flatten(1).amax(dim=1).cpu()
            # x + eps is rounded to the dtype of the images.
            inside = furthest <= radius + torch.finfo(images.dtype).eps
            passes = (result.queries.cpu(), result.backward_passes.cpu())
            parts.append((first, (right, right & (margin > 0) & inside, result.zero_gradient.cpu(), margin, *passes)))
        return Outcome(*whole(parts, self.team))


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest logit (N, classes) of another class less that of the true class, float64 (N,)."""
    true = labels[:, None]
    others = logits.double().scatter(1, true, -torch.inf)
    return others.amax(dim=1) - logits.double().gather(1, true)[:, 0]

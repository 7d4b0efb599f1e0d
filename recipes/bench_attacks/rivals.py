"""Foolbox's and ART's decision-based attacks, asked as many questions as ours.

Neither takes a budget of queries. A :class:`Watch` around the model counts the questions of each image, notes the
closest adversarial image asked about so far, and stops the attack when the budget is spent.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence

import foolbox
import numpy as np
import torch
from art.attacks.evasion import BoundaryAttack as ArtBoundary
from art.attacks.evasion import HopSkipJump as ArtHopSkipJump
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from dcn_plugin.training import isolated_rng

__all__ = ["RIVALS", "Distances", "Watch"]

#: Queries -> ||delta||_2^2 / (C * H * W) of each image, float64 (N,).
Distances = dict[int, Tensor]
ENDLESS = 10**6


class BudgetSpentError(Exception):
    """The attack has asked all it may."""


class Watch(nn.Module):
    """Counts questions; every forward pass holds one question about each image, or several about a single one.

    Args:
        model: images -> logits.
        clean: (N, C, H, W).
        truth: int64 (N,).
        marks: numbers of queries an image at which the distances are noted; after the last one it stops.
    """

    def __init__(self, model: nn.Module, clean: Tensor, truth: Tensor, marks: Sequence[int]) -> None:
        super().__init__()
        self.model, self.clean, self.truth, self.marks = model, clean, truth, sorted(marks)
        self.asked = 0
        self.best = torch.full((len(clean),), torch.inf, dtype=torch.float64)
        self.noted: Distances = {}
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Answer, count, and note."""
        logits: Tensor = self.model(images)
        count = len(self.clean)
        assert len(images) % count == 0
        moves = images.detach().view(-1, *self.clean.shape) - self.clean
        distance = moves.double().square().flatten(2).mean(dim=2)
        wrong = logits.detach().argmax(dim=1).view(-1, count) != self.truth
        for row, fooled in zip(distance, wrong, strict=True):
            self.best = torch.where(fooled & (row < self.best), row, self.best)
            self.asked += 1
            if self.asked in self.marks:
                self.noted[self.asked] = self.best.clone()
            if self.asked == self.marks[-1]:
                raise BudgetSpentError
        return logits

    @property
    def distances(self) -> Distances:
        """The distances at every mark; an attack that ended by itself keeps its last ones."""
        return {mark: self.noted.get(mark, self.best) for mark in self.marks}


class _Float32Classifier(PyTorchClassifier):
    """ART's attacks make float64 images from NumPy 2 on, which a float32 model cannot take."""

    def predict(
        self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **kwargs: object
    ) -> np.ndarray:
        """Cast, and predict."""
        return super().predict(x.astype(np.float32), batch_size, training_mode, **kwargs)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """ART draws from NumPy's global generator, and its data loader from PyTorch's."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        with isolated_rng(seed):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _foolbox(attack: Callable[[], foolbox.attacks.base.MinimizationAttack]) -> Callable[..., Distances]:
    def run(
        model: nn.Module, clean: Tensor, truth: Tensor, starts: Tensor, marks: Sequence[int], *, seed: int
    ) -> Distances:
        watch = Watch(model, clean, truth, marks)
        asked = foolbox.PyTorchModel(watch, bounds=(0, 1))
        with isolated_rng(seed), contextlib.suppress(BudgetSpentError):
            attack().run(asked, clean, foolbox.criteria.Misclassification(truth), starting_points=starts)
        return watch.distances

    return run


def _art(attack: Callable[[PyTorchClassifier], ArtBoundary | ArtHopSkipJump]) -> Callable[..., Distances]:
    def run(
        model: nn.Module, clean: Tensor, truth: Tensor, starts: Tensor, marks: Sequence[int], *, seed: int
    ) -> Distances:
        # One image at a time, as ART works inside.
        parts = [_one(model, *each, marks, seed + i) for i, each in enumerate(zip(clean, truth, starts, strict=True))]
        return {mark: torch.cat([part[mark] for part in parts]) for mark in marks}

    def _one(
        model: nn.Module, clean: Tensor, truth: Tensor, start: Tensor, marks: Sequence[int], seed: int
    ) -> Distances:
        watch = Watch(model, clean[None], truth[None], marks)
        classes = model(clean[None]).shape[1]
        estimator = _Float32Classifier(
            watch, nn.CrossEntropyLoss(), tuple(clean.shape), classes, clip_values=(0.0, 1.0), device_type="cpu"
        )
        logging.disable(logging.WARNING)  # it warns at every image that no better point was found
        try:
            with _seeded(seed), warnings.catch_warnings(), contextlib.suppress(BudgetSpentError):
                warnings.simplefilter("ignore")
                attack(estimator).generate(clean[None].numpy(), truth[None].numpy(), x_adv_init=start[None].numpy())
        finally:
            logging.disable(logging.NOTSET)
        return watch.distances

    return run


#: attack -> tool -> how to run it: (model, clean, truth, starts, marks, seed=...) -> distances. All settings but the
#: numbers of steps, which the budget replaces, are the tools' defaults.
RIVALS: dict[str, dict[str, Callable[..., Distances]]] = {
    "BoundaryAttack": {
        "foolbox": _foolbox(lambda: foolbox.attacks.BoundaryAttack(steps=ENDLESS)),
        "art": _art(lambda estimator: ArtBoundary(estimator, targeted=False, max_iter=ENDLESS, verbose=False)),
    },
    "HopSkipJump": {
        "foolbox": _foolbox(lambda: foolbox.attacks.HopSkipJumpAttack(steps=ENDLESS)),
        "art": _art(lambda estimator: ArtHopSkipJump(estimator, max_iter=ENDLESS, verbose=False)),
    },
}

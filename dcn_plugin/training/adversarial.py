"""What happens to a batch between the data and the model: the place of adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dcn_plugin.support.arguments import check_rules
from dcn_plugin.support.model_state import eval_mode
from dcn_plugin.training.data import Batch

__all__ = ["StepImages", "describe", "madry"]


class StepImages(Protocol):
    """Gives the batch that a step really trains on.

    Adversarial training changes ``images`` through the model (:func:`madry`). Training on images that were made
    beforehand looks them up by ``batch.places`` and moves them as the clean ones were, with ``batch.moves``; it may
    return more images than it got, e.g. clean and attacked ones together, with ``weights`` for their losses.

    A class of yours should have a ``repr`` that says its settings, as dataclasses do: a run goes on only with a
    hook of the same description.
    """

    def __call__(self, model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        """Return the batch to train on.

        Args:
            model: the bare model in training mode, under the loop's autocast. Modes have to come back as they were,
                and no gradient may be left in the parameters.
            batch: what the data gave.
            generator: a CPU generator of this epoch and process, for whatever is random.
        """
        ...


def describe(hook: StepImages | None) -> str | None:
    """A hook as text that is the same in another process."""
    if hook is None:
        return None
    text = repr(hook)
    return getattr(hook, "__qualname__", type(hook).__qualname__) if " at 0x" in text else text


@dataclass(frozen=True)
class Madry:
    eps: float
    steps: int
    step_size: float

    def __post_init__(self) -> None:
        rules = {
            "eps": (0 < self.eps <= 1, "a number in (0, 1]"),
            "steps": (self.steps >= 1, "an int >= 1"),
            "step_size": (0 < self.step_size <= 2, "a number in (0, 2]"),
        }
        check_rules("The {name} of adversarial training is not usable.", vars(self), rules)

    def __call__(self, model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        low, high = (batch.images - self.eps).clamp(min=0), (batch.images + self.eps).clamp(max=1)
        noise = torch.rand(batch.images.shape, generator=generator).to(batch.images.device)
        images = torch.clamp(batch.images + (2 * noise - 1) * self.eps, low, high)
        with eval_mode(model):
            for _ in range(self.steps):
                images = torch.clamp(images + self.step_size * _gradient(model, images, batch.labels).sign(), low, high)
        return batch._replace(images=images)


def madry(eps: float = 8 / 255, *, steps: int = 7, step_size: float | None = None) -> StepImages:
    """Adversarial training: every batch is replaced by what PGD with a random start makes of it.

    The model is in eval mode while it is attacked, so that running statistics are of the images it is trained on.

    Args:
        eps: largest change of a pixel, in units of [0, 1] images.
        steps: of PGD.
        step_size: change of a pixel in one step; by default eps / 4, and at least eps / steps.

    Raises:
        SpecError: a setting is out of range.

    Source: Madry et al. 2018, arXiv 1706.06083; 8/255, 7 steps of 2/255 is their CIFAR-10 setting.
    """
    if step_size is None:
        # What cannot be divided is refused by name in there.
        step_size = max(eps / 4, eps / max(steps, 1))
    return Madry(eps, steps, step_size)


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    leaf = images.detach().requires_grad_()
    # The sum: the sign of an image's gradient must not depend on its batch.
    loss = F.cross_entropy(model(leaf), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient

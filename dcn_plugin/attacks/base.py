"""What every attack shares: its subclass writes the step, this file owns everything around it.

The call checks images, labels and logits, puts the model into eval mode and gives every submodule its flag
back, switches gradients of weights off and on again, cuts the images into batches, gives each
sample its own random stream, counts what each sample asked of the model and the samples whose gradient is zero,
and checks what comes out.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_plugin.attacks.arguments import as_labels, check_model, check_types
from dcn_plugin.attacks.batch_independence import warn_if_mixed
from dcn_plugin.attacks.checks import (
    check_answers,
    check_images,
    check_labels,
    check_logits,
    warn_if_probabilities,
)
from dcn_plugin.attacks.dtypes import as_input, model_dtype, rounded, walking_dtype
from dcn_plugin.attacks.streams import SampleStreams
from dcn_plugin.errors import ImageRangeError, SpecError, WeakAttackWarning, warn_caller
from dcn_plugin.support.arguments import check_count, is_number, plain
from dcn_plugin.support.model_state import eval_mode, frozen_weights, unchanged
from dcn_plugin.support.progress import progress_bar

__all__ = ["Attack", "AttackResult", "AttackRun", "Rows", "Status"]

Status = Literal["fooled", "not fooled", "no start", "misclassified"]
Norm = Literal["linf", "l2"]
Rows = npt.NDArray[np.int64]
# An attack that asks again and again is done with a share of its images, not with a number of them.
_LAYOUT = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack made of N images.

    Args:
        images: (N, C, H, W) in [0, 1], in the input's dtype and order.
        correct: bool (N,), the model was right on the clean image. Where it was not there was nothing to fool.
        fooled: bool (N,), right on the clean image and wrong on ``images``, asked once more at the end.
        zero_gradient: bool (N,), the loss had a gradient of exactly zero at some step. Such a sample stands
            still and looks robust without being so.
        started: bool (N,), False where a decision-based attack found no adversarial image to start from. Such
            a sample comes back clean and does not count.
        distance: float64 (N,), ||delta||_2^2 / (C * H * W) in units of [0, 1] images, the paper's score. NaN where
            the image does not count: misclassified, no start, not fooled.
        queries: int64 (N,), forward passes: images of this sample that the model was asked about, the check of the
            clean image and that of the result included; an image whose gradient was taken is one query.
        backward_passes: int64 (N,), those of the queries through which a gradient came back to the image; 0 for attacks
            that ask for logits or decisions alone.
    """

    images: Tensor
    correct: Tensor
    fooled: Tensor
    zero_gradient: Tensor
    started: Tensor
    distance: Tensor
    queries: Tensor
    backward_passes: Tensor

    @property
    def status(self) -> list[Status]:
        """One word a sample. "not fooled" is a failure that counts; "no start" and "misclassified" do not count."""
        return [
            "misclassified" if not correct else "fooled" if fooled else "not fooled" if started else "no start"
            for correct, fooled, started in zip(
                self.correct.tolist(), self.fooled.tolist(), self.started.tolist(), strict=True
            )
        ]

    @property
    def counts(self) -> dict[str, int]:
        """How many samples there are, and how many of them have a distance that counts."""
        return {
            "n_total": len(self.correct),
            "n_clean_correct": int(self.correct.sum()),
            "n_failed_starts": int((~self.started).sum()),
            "n_counted": int(self.fooled.sum()),
        }

    @property
    def median_distance(self) -> float:
        """Median of ``distance`` over the ``n_counted`` samples that have one; NaN where none has."""
        counted = self.distance[self.fooled]
        return float(counted.quantile(0.5)) if len(counted) else float("nan")


class AttackRun:
    """One batch under attack: what a step may use.

    Args:
        model: in eval mode, its weights frozen.
        images: (N, C, H, W), clean; float32 also where the caller's are in half precision.
        labels: int64 (N,).
        streams: one random stream a sample.
        dtype: of the caller's images, by default that of ``images``.
        max_rows: images that the model may be asked about in one forward pass.
        starting_points: (N, C, H, W) in [0, 1], where the caller gave some.
        on_progress: is told the share of this batch that is done, in [0, 1].

    An attack reads ``correct``, bool (N,), whether the model is right on the clean image; it writes ``started`` and
    ``zero_gradient``. ``queries`` and ``backward_passes``, int64 (N,) in NumPy, count by themselves, whoever takes the
    gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        streams: SampleStreams,
        *,
        dtype: torch.dtype | None = None,
        max_rows: int | None = None,
        starting_points: Tensor | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        self.model, self.images, self.labels, self.streams = model, images, labels, streams
        self._dtype, self._model_dtype = images.dtype if dtype is None else dtype, model_dtype(model)
        self.max_rows = len(images) if max_rows is None else max_rows
        self.starting_points, self.on_progress = starting_points, on_progress
        self.zero_gradient = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.started = torch.ones_like(self.zero_gradient)
        self.correct = torch.ones_like(self.zero_gradient)
        self.queries = np.zeros(len(images), dtype=np.int64)
        self.backward_passes = np.zeros_like(self.queries)
        self.num_classes: int | None = None

    def forward(self, images: Tensor, rows: Rows | None = None) -> object:
        """Ask the model about images and count it, whatever it answers.

        The model sees them in the dtype of the caller's images, which is what these can become, and then in its own.
        Logits in half precision come back in float32.

        Args:
            images: (M, C, H, W).
            rows: int64 (M,), which sample each belongs to; by default image i to sample i, M = N.
        """
        asked: Rows | int = 1 if rows is None else np.bincount(rows, minlength=len(self.queries))
        assert rows is not None or len(images) == len(self.queries)
        self.queries += asked
        if torch.is_grad_enabled() and images.requires_grad:
            # A node of its own, so that only what comes back through this very question is counted.
            images = images.view_as(images)
            images.register_hook(functools.partial(self._count_backward, asked))
        answer = self.model(as_input(images.to(self._dtype), self._model_dtype))
        return answer.to(walking_dtype(answer.dtype)) if isinstance(answer, Tensor) else answer

    def _count_backward(self, asked: Rows | int, gradient: Tensor) -> None:
        self.backward_passes += asked

    @torch.no_grad()
    def logits(self, images: Tensor, rows: Rows | None = None) -> Tensor:
        """Ask about images: finite logits (M, classes), without a graph. Arguments as in :meth:`forward`."""
        logits = check_logits(self.forward(images, rows), count=len(images))
        self.num_classes = logits.shape[1]
        return logits

    @torch.no_grad()
    def classes(self, images: Tensor, rows: Rows | None = None) -> Tensor:
        """Ask for decisions: int64 (M,), of a model that returns logits or labels. Arguments as in :meth:`forward`."""
        answers = check_answers(self.forward(images, rows), count=len(images))
        self.num_classes = answers.shape[1] if answers.ndim == 2 else None
        return answers.argmax(dim=1) if answers.ndim == 2 else answers.long()

    def loss_gradient(self, images: Tensor) -> Tensor:
        """Gradient of each sample's own cross-entropy with respect to ``images``, of the same shape."""
        leaf = images.detach().requires_grad_()
        logits = check_logits(self.forward(leaf), count=len(leaf))
        # The sum, not the mean: a sample's gradient must not depend on its batch.
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, self.labels, reduction="sum"), leaf)
        self.zero_gradient |= (gradient == 0).flatten(1).all(dim=1)
        return gradient


class Attack(ABC):
    """An attack in the L-inf ball, or in no ball at all (``eps = None``).

    Subclasses set ``eps`` and write :meth:`perturb`; they keep their settings as plain attributes.

    Args:
        eps: largest change of a pixel, in units of [0, 1] images, or None.
        seed: of the random streams.

    Raises:
        SpecError: eps is not in (0, 1], or the seed is out of range.

    Example:
        >>> class Negative(Attack):
        ...     def perturb(self, run):
        ...         return 1 - run.images
        >>> Negative(eps=None)(net, images, labels).images.shape
        torch.Size([8, 1, 16, 16])
    """

    #: Whether the attack works on the decision alone, so that a model may return labels in place of logits.
    decision_based: ClassVar[bool] = False
    #: Images that a random attack draws for at once, so that they must not be cut; None: each image draws by itself.
    batch: int | None = None

    def __init__(self, *, eps: float | None, seed: int = 0) -> None:
        eps, seed = plain(eps), plain(seed)
        if eps is not None and not (is_number(eps) and 0 < eps <= 1):
            raise SpecError("eps is not usable.", eps, "a number in (0, 1]", "write 8 / 255 for 8 of 255 grey levels")
        SampleStreams(self.name, seed, ())
        self.eps, self.seed = eps, seed

    @property
    def name(self) -> str:
        """The field's name for it; the class's own by default."""
        return type(self).__name__

    @property
    def reach(self) -> float | None:
        """How far all steps together can move an image, in the attack's norm; None where steps have no fixed length."""
        return None

    @property
    def change_norm(self) -> Norm:
        """The norm that the attack bounds or minimises: "linf" or "l2".

        It is that of an attribute ``norm``; without one "linf" for an attack in a ball, and otherwise "l2".
        """
        named = str(getattr(self, "norm", "l2" if self.eps is None else "linf")).lower()
        return "linf" if named == "linf" else "l2"

    def changes(self, images: Tensor, adversarial: Tensor) -> Tensor:
        """How far each image was moved in :attr:`change_norm`: float64 (N,)."""
        moves = (adversarial.double() - images.double()).flatten(1)
        return moves.abs().amax(dim=1) if self.change_norm == "linf" else moves.norm(dim=1)

    @property
    def settings(self) -> dict[str, float | int | str | bool | None]:
        """Every public scalar attribute: what a record says about this attack."""
        return {key: value for key, value in self._public.items() if _is_scalar(value)}

    @property
    def unkeyed(self) -> tuple[str, ...]:
        """Names of the public attributes that are no scalars: ``settings``, and so a cache key, leaves them out."""
        return tuple(key for key, value in self._public.items() if not _is_scalar(value))

    @property
    def _public(self) -> dict[str, Any]:
        return {key: value for key, value in sorted(vars(self).items()) if not key.startswith("_")}

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.settings.items())})"

    def check_data(self, shape: tuple[int, int, int], num_classes: int) -> None:  # noqa: B027 (most take everything)
        """Refuse images or a number of classes that the attack does not take, before a network is asked about any.

        Protocols call it when they are called. By default everything is taken.

        Args:
            shape: (C, H, W) of the images.
            num_classes: of the network.

        Raises:
            ImageRangeError: it does not take images of this shape.
            ModelOutputError: its loss needs more classes.
        """

    @abstractmethod
    def perturb(self, run: AttackRun) -> Tensor:
        """Return the adversarial images (N, C, H, W) of one batch."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int = 256,
        first_index: int = 0,
        progress: bool = False,
    ) -> AttackResult:
        """Attack every image.

        Args:
            model: images in [0, 1] -> logits. It comes back as it was, also after an exception. It is asked in the
                dtype that its parameters share, whatever that of the images.
            images: floating point (N, C, H, W) in [0, 1], on the model's device. Images in half precision are
                attacked in float32, and each is asked about as it is in half precision.
            labels: integers (N,), the true classes.
            batch_size: images at a time; it decides on memory and speed, not on the result.
            first_index: place of the first image in its data set. Random draws are keyed by it, so that a data set
                attacked piece by piece gives the same images as at once.
            progress: show a progress bar on stderr, if that is a terminal.

        Returns:
            The adversarial images and what became of each.

        Warns:
            WeakAttackWarning: all steps together do not reach the edge of the ball.

        Raises:
            ImageRangeError: ``images`` are not of that kind, or the attack left its ball or the range of pixels.
            LabelError: ``labels`` are not of that kind, or out of the range of the logits.
            ModelChangedError: the attack changed a mode, a weight, a hook or a module of the model.
            ModelOutputError: the model does not return finite (N, classes) logits.
            SpecError: ``batch_size`` or ``first_index`` is out of range, or ``model`` is no module.
        """
        return self._attack(model, images, labels, batch_size=batch_size, first_index=first_index, progress=progress)

    @final
    def _attack(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        first_index: int,
        progress: bool,
        starting_points: Tensor | None = None,
    ) -> AttackResult:
        check_model(model)
        check_types(images)
        check_images(images)
        labels = as_labels(labels, images)
        check_labels(labels, count=len(images))
        if starting_points is not None:
            check_types(starting_points)
            self._check_output(images, starting_points, name="The starting points")
        batch_size = check_count(batch_size, "batch size")
        first_index = check_count(first_index, "place of the first image", least=0)
        self._warn_if_weak()
        # Tensors made in inference mode cannot carry gradients; clone() under this context makes normal ones.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            eval_mode(model),
            frozen_weights(model),
            progress_bar(len(images), self.name, show=progress, layout=_LAYOUT) as bar,
        ):
            images, labels = images.detach().clone(), labels.detach().clone().long()
            starts = None if starting_points is None else starting_points.detach().clone()
            parts = [
                self._attack_batch(
                    model,
                    images[i : i + batch_size],
                    labels[i : i + batch_size],
                    first_index=first_index + i,
                    max_rows=batch_size,
                    starting_points=None if starts is None else starts[i : i + batch_size],
                    done=i,
                    tell=bar.reach if progress else None,
                )
                for i in range(0, len(images), batch_size)
            ]
            warn_if_mixed(model, as_input(images[:1], model_dtype(model)))
        return AttackResult(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(AttackResult)))

    def _attack_batch(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        first_index: int,
        max_rows: int,
        starting_points: Tensor | None,
        done: int,
        tell: Callable[[float], None] | None,
    ) -> AttackResult:
        count, walking = len(images), walking_dtype(images.dtype)
        wide = images.to(walking)
        run = AttackRun(
            model,
            wide,
            labels,
            SampleStreams(self.name, self.seed, range(first_index, first_index + count)),
            dtype=images.dtype,
            max_rows=max_rows,
            starting_points=None if starting_points is None else starting_points.to(walking),
            on_progress=None if tell is None else lambda share: tell(done + share * count),
        )
        run.correct = self._classes(run, wide, None) == labels
        with unchanged(model, self.name):
            adversarial = self.perturb(run).detach()
        self._check_output(wide, adversarial, name=self.name)
        adversarial = rounded(adversarial, images, eps=self.eps, norm=self.change_norm)
        # Only who was right and got somewhere is asked again.
        again = (run.correct & run.started).nonzero().flatten()
        fooled = torch.zeros_like(run.correct)
        if len(again):
            rows = again.cpu().numpy()
            fooled[again] = self._classes(run, adversarial[again], rows) != labels[again]
        distance = (adversarial.to(walking) - wide).double().flatten(1).square().mean(dim=1)
        if tell is not None:
            tell(done + count)
        return AttackResult(
            images=adversarial,
            correct=run.correct,
            fooled=fooled,
            zero_gradient=run.zero_gradient,
            started=run.started,
            distance=torch.where(fooled, distance, torch.nan),
            queries=torch.from_numpy(run.queries.copy()).to(images.device),
            backward_passes=torch.from_numpy(run.backward_passes.copy()).to(images.device),
        )

    def _classes(self, run: AttackRun, images: Tensor, rows: Rows | None) -> Tensor:
        if self.decision_based:
            classes = run.classes(images, rows)
            check_labels(run.labels, count=len(run.labels), num_classes=run.num_classes)
            return classes
        logits = run.logits(images, rows)
        if rows is None:
            check_labels(run.labels, count=len(images), num_classes=logits.shape[1])
            warn_if_probabilities(logits, name=type(run.model).__name__)
        return logits.argmax(dim=1)

    def _check_output(self, images: Tensor, adversarial: Tensor, *, name: str) -> None:
        if adversarial.shape != images.shape or adversarial.dtype != images.dtype:
            raise ImageRangeError(
                f"{name} returned images of another shape or type.",
                (str(adversarial.dtype), tuple(adversarial.shape)),
                f"{images.dtype} {tuple(images.shape)}",
            )
        bad = int(adversarial.isnan().flatten(1).any(dim=1).sum())
        if bad:
            raise ImageRangeError(
                f"{name} returned NaN for {bad} of {len(images)} images.", "NaN", "numbers in [0, 1]",
                "take another attack, or other options: it divided by a gradient or a norm of zero",
            )  # fmt: skip
        check_images(adversarial)
        if self.eps is None:
            return
        furthest = float((adversarial - images).abs().max())
        if furthest > self.eps + self._ball_rounding(images.dtype):
            raise ImageRangeError(
                f"{name} left its eps-ball.", furthest, f"<= {self.eps}", "project onto the ball after every step"
            )

    def _ball_rounding(self, dtype: torch.dtype) -> float:
        """By how much x + eps may leave the L-inf ball: it is rounded to the dtype of the images."""
        return torch.finfo(dtype).eps

    def _warn_if_weak(self) -> None:
        # A share of eps is what the steps' sum may lose to rounding.
        if self.eps is None or self.reach is None or self.reach >= self.eps * (1 - 1e-6):
            return
        warn_caller(
            f"{self.name}: steps * step size (alpha) = {self.reach:.4g} is below eps = {self.eps:.4g}. The attack "
            "cannot reach the edge of its ball and is weaker than its eps says: take more steps or a larger step size, "
            "or leave the step size out.",
            WeakAttackWarning,
        )


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, float | int | str | bool)

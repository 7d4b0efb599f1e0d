"""Attacks of other libraries, run as ours: what the runner of each library shares."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import Attack, AttackResult, AttackRun, SampleStreams, check_logits
from dcn_plugin.attacks.base import Rows
from dcn_plugin.errors import ImageRangeError, SpecError, WeakAttackWarning, warn_caller
from dcn_plugin.support.arguments import plain
from dcn_plugin.support.randomness import isolated_global_rngs

__all__ = ["ForeignAttack", "Option", "Probe", "Watched"]

Option = float | int | str | bool
Watched = Literal["all", "first", "none"]


class ForeignAttack(Attack):
    """An attack of another library, untargeted.

    What libraries leave to their caller is done here: images outside [0, 1] are an error; the output is checked
    against the ball of the attack's norm; modes, ``requires_grad`` and the global generators come back as they were,
    also after an exception; samples whose gradient is exactly zero are counted and warned about.

    Random attacks draw for a whole batch at once, so their result depends on where it is cut. They are cut into pieces
    of ``batch`` images, counted from the first image of the data set, and each piece is seeded from ``seed`` and the
    place of its first image (:meth:`batch_seed`); ``settings`` says so. Attacks that draw nothing have ``batch`` None.

    Args:
        attack: its name in its library.
        library: name and version, for records.
        eps: radius of the ball, in its norm; None for an attack without a bound.
        norm: of the ball, or that the attack minimises.
        batch: images a piece of a random attack has; None for an attack that draws nothing.
        options: all options of the attack, defaults included.
        seed: of everything the attack draws.
    """

    def __init__(
        self,
        attack: str,
        *,
        library: str,
        eps: float | None,
        norm: str,
        batch: int | None,
        options: Mapping[str, Option],
        seed: int,
    ) -> None:
        self.attack = attack  # before the base class asks for the name
        super().__init__(eps=eps if norm == "Linf" else None, seed=seed)
        self.eps, self.norm, self.batch, self.library = eps, norm, batch, library
        self._options = dict(options)

    @property
    def name(self) -> str:
        """The attack's name in its library."""
        return self.attack

    @property
    def settings(self) -> dict[str, float | int | str | bool | None]:
        """The options of the library, given or default, and what this class adds to them."""
        return dict(sorted((super().settings | self._options).items()))

    @property
    def correct_only(self) -> bool:
        """Whether it is shown only the images that the model has right; the others come back clean."""
        return False

    @property
    def watched(self) -> Watched:
        """Which of its gradients tell of a network without one; a loss may be flat once an image is adversarial."""
        return "all"

    @property
    def copies(self) -> int:
        """How often it shows each image in one forward pass, one copy after the other."""
        return 1

    def batch_seed(self, first_index: int = 0) -> int:
        """Seed of the piece whose first image has this place in the data set.

        To repeat a piece with the library alone: ``torch.manual_seed(batch_seed)``, and for the attacks that have an
        option ``seed`` (they reseed the generator themselves) that option as well.
        """
        key = SampleStreams(self.name, self.seed, ()).key
        return int(np.random.SeedSequence((key, first_index)).generate_state(1)[0])

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
        """Attack every image; see :meth:`Attack.__call__`.

        Args:
            model: images in [0, 1] -> logits. It comes back as it was, also after an exception.
            images: float32 (N, C, H, W) in [0, 1], on the model's device; most attacks take float64 too. Images in
                half precision are attacked in float32; see :meth:`Attack.__call__`.
            labels: integers (N,), the true classes.
            batch_size: images at a time. For a random attack a multiple of ``batch``.
            first_index: place of the first image in its data set. For a random attack a multiple of ``batch``.
            progress: show a progress bar on stderr, if that is a terminal.

        Warns:
            UserWarning: images kept their class while their gradient was exactly zero.
            WeakAttackWarning: all steps together do not reach the edge of the ball.

        Raises:
            ImageRangeError: the images are not of a kind that this attack takes, or it left its ball.
            LabelError: the labels are not of that kind.
            ModelOutputError: the model does not return finite logits, or has too few classes for this attack.
            SpecError: ``batch_size`` or ``first_index`` is out of range or no multiple of ``batch``.
        """
        batch_size, first_index = plain(batch_size), plain(first_index)
        if self.batch is not None and isinstance(batch_size, int) and isinstance(first_index, int):
            if batch_size % self.batch or first_index % self.batch:
                raise SpecError(
                    f"{self.name} draws for {self.batch} images at once, and these pieces do not fit.",
                    {"batch_size": batch_size, "first_index": first_index},
                    f"multiples of {self.batch}",
                    f"pass batch_size={max(1, batch_size // self.batch) * self.batch} and a first_index that fits, or "
                    f"build the attack with batch={math.gcd(batch_size, first_index)}",
                )
            batch_size = self.batch if batch_size > 0 else batch_size  # what is below 1 is refused by the base class
        result = super().__call__(
            model, images, labels, batch_size=batch_size, first_index=first_index, progress=progress
        )
        unmoved = result.zero_gradient & result.correct & ~result.fooled
        if unmoved.any():
            warn_caller(
                f"{self.name}: {int(unmoved.sum())} of {len(images)} images kept their class while the gradient of the "
                "loss was exactly zero at some step. That looks like robustness and is not: the logits may be "
                "saturated. Look at their scale, or use an attack on the logits (CW) or without gradients (Square).",
            )
        self._warn_if_clean(images, result)
        return result

    def perturb(self, run: AttackRun) -> Tensor:
        """Return the adversarial images (N, C, H, W) of one batch."""
        _, channels, height, width = run.images.shape
        if run.num_classes is not None:
            self.check_data((channels, height, width), run.num_classes)
        self._check_fit(run)
        rows = np.arange(len(run.images))
        if self.correct_only:
            # It would leave the others out itself, and then not tell which images it asks about.
            rows = rows[run.correct.cpu().numpy()]
        if not len(rows):
            return run.images
        index = torch.from_numpy(rows).to(run.images.device)
        probe = Probe(run, rows, copies=self.copies, watched=self.watched)
        seed = self.batch_seed(run.streams.indices[0])
        with isolated_global_rngs(seed):
            # Some views of libraries fail on images whose channels lie last in memory.
            adversarial = self._build(probe, seed, run)(run.images[index].contiguous(), run.labels[index]).detach()
        probe.settle()
        images = run.images.clone()
        images[index] = adversarial
        if self.norm == "L2" and self.eps is not None:
            self._check_l2_ball(run.images, images, self.eps)
        return images

    def _warn_if_clean(self, images: Tensor, result: AttackResult) -> None:
        # Attacks that are shown the images that the model has right return those clean that they could not turn.
        if self.correct_only and self.eps is not None:
            return
        same = (result.images == images).flatten(1).all(dim=1)
        clean = same & result.correct & ~result.fooled & ~result.zero_gradient
        if clean.any():
            why = "it found no adversarial image for them" if self.eps is None else "it did not move them"
            warn_caller(
                f"{self.name}: {int(clean.sum())} of {int(result.correct.sum())} images that the model has right came "
                f"back clean: {why}. They count as not fooled, which is the attack's failure and no robustness. Take "
                "more steps, or another attack.",
                WeakAttackWarning,
            )

    @abstractmethod
    def _check_fit(self, run: AttackRun) -> None:
        """Refuse images and models that the attack does not take, before it asks about them."""

    @abstractmethod
    def _build(self, probe: nn.Module, seed: int, run: AttackRun) -> Callable[[Tensor, Tensor], Tensor]:
        """The library's attack on the probe: (images, labels) -> adversarial images."""

    def _ball_rounding(self, dtype: torch.dtype) -> float:
        # Libraries mix float32 numbers into float64 images.
        return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)

    def _check_l2_ball(self, images: Tensor, adversarial: Tensor, eps: float) -> None:
        furthest = float((adversarial - images).double().flatten(1).norm(dim=1).max())
        # Every pixel of x + delta is rounded to the dtype of the images, and so is the norm that delta was scaled by.
        rounding = self._ball_rounding(images.dtype) * (math.sqrt(images[0].numel()) + 10 * eps)
        if not furthest <= eps + rounding:
            raise ImageRangeError(f"{self.name} left its eps-ball (L2).", furthest, f"<= {eps}")


class Probe(nn.Module):
    """Stands in front of the model: counts queries, checks logits, and looks at the gradients that come back.

    Args:
        run: the batch.
        rows: int64 (M,), the samples that the attack works on.
        copies: of each sample in one forward pass, one after the other.
        watched: which gradients are looked at.
    """

    def __init__(self, run: AttackRun, rows: Rows, *, copies: int, watched: Watched = "all") -> None:
        super().__init__()
        # torchattacks looks for the device at the first parameter, and prints a line where there is none.
        self.place = nn.Parameter(torch.empty(0, device=run.images.device), requires_grad=False)
        self._run, self._rows, self._copies = run, rows, copies
        self._looks, self._watched = watched != "none", watched
        self._index = torch.from_numpy(rows).to(run.images.device)
        self._alive: Tensor | None = None
        self.training = False

    def train(self, mode: bool = True) -> Probe:
        """Change nothing: the base class has put the model into eval mode, and leaving it would thaw frozen norms."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return finite logits, in the dtype of the images."""
        self.settle()
        # The momentum attacks divide a gradient of zero by its norm, and those of Nesterov's kind then show the model
        # the NaN that comes out: one such sample must not spoil the batch. What this returns is a node of the graph,
        # as the hook needs, even where the input is a leaf.
        images = images.nan_to_num(nan=0.5)
        # Of several batches, one after the other, as copies of the images; of a part it does not tell which part: then
        # every sample counts as asked about.
        shown = len(self._rows) * self._copies
        batches = len(images) // shown if len(images) % shown == 0 else 0
        if images.requires_grad:
            # A network whose weights lie channels last returns such gradients, and some of torchattacks' views fail.
            images.register_hook(Tensor.contiguous)
            if batches and self._looks:
                images.register_hook(self._look)
                self._looks = self._watched == "all"
        rows = np.tile(np.repeat(self._rows, self._copies), max(1, batches))
        # The network may compute in another dtype than the attack does.
        return check_logits(self._run.forward(images, rows), count=len(images)).to(images.dtype)

    def _look(self, gradient: Tensor) -> None:
        alive = (gradient != 0).flatten(1).any(dim=1).view(-1, len(self._rows), self._copies).any(dim=2).any(dim=0)
        self._alive = alive if self._alive is None else self._alive | alive

    def settle(self) -> None:
        """Write down which samples got no gradient at all from the last forward pass."""
        if self._alive is not None:
            self._run.zero_gradient[self._index] |= ~self._alive
            self._alive = None

"""torchattacks' own attacks, run as ours: seeded, checked, counted, and without a trace on model and generators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torchattacks
from torch import Tensor, nn

from dcn_plugin.adapters._torchattacks_sizes import check_diversity, check_square_l2
from dcn_plugin.adapters._torchattacks_table import Option, look_up, resolve_options
from dcn_plugin.attacks import Attack, AttackResult, AttackRun, SampleStreams, check_logits
from dcn_plugin.attacks.base import Rows
from dcn_plugin.errors import ImageRangeError, ModelOutputError, SpecError, warn_caller
from dcn_plugin.support.arguments import check_count, plain
from dcn_plugin.support.randomness import isolated_global_rngs

__all__ = ["TorchAttack"]

#: AutoAttack runs Square with torchattacks' default.
AUTOATTACK_P_INIT = 0.8


class TorchAttack(Attack):
    """One of torchattacks' attacks, untargeted.

    The result is that of ``torchattacks.<attack>(model, ...)(images, labels)`` in eval mode, but for two things: where
    ``alpha`` is not given it follows eps (see below), and AutoAttack takes 100 steps, as published. What torchattacks
    leaves to its caller is done here: images outside [0, 1] are an error (it clamps them); the output is checked
    against the ball of the attack's norm; modes, ``requires_grad`` and the global generators come back as they were,
    also after an exception; samples whose gradient is exactly zero are counted and warned about; sizes and options on
    which an attack fails half-way, or silently does something else, are refused by name.

    Random attacks draw for a whole batch at once, so their result depends on where it is cut. They are cut into pieces
    of ``batch`` images, counted from the first image of the data set, and each piece is seeded from ``seed`` and the
    place of its first image (:meth:`batch_seed`); ``settings`` says so. Attacks that draw nothing have ``batch`` None.

    ``queries`` and ``zero_gradient`` are kept for each sample as long as the attack asks about the whole batch. APGD
    with restarts, APGDT, FAB with restarts, Square and AutoAttack ask about fewer and fewer images and do not tell
    which: from then on every image that was right when clean counts as asked about (an upper bound), and gradients
    are not looked at.

    Args:
        attack: its name in torchattacks, e.g. "DIFGSM". The table of
            :mod:`dcn_plugin.adapters._torchattacks_table` holds those that run; others are refused by name.
        seed: of everything the attack draws.
        batch: images a piece of a random attack has; it decides on memory too.
        **options: options of that attack's constructor, by their names there (eps, alpha, steps, decay, ...); what is
            not given has torchattacks' default, but for ``alpha``. That is 2/255 there whatever eps is, and its ten
            steps reach no further than 20/255. Here it is torchattacks' default times eps / (its default of eps), and
            at least eps / steps: max(eps / 4, eps / steps), 1.25 * eps for FFGSM, max(eps / 5, eps / steps) for PGDL2
            and PGDRSL2. At torchattacks' own eps, from four steps on (in L2 five), nothing differs. AutoAttack has one
            more option: ``steps`` of its APGD, APGD-T and FAB-T, 100 as published, where torchattacks takes 10.
            ``n_classes`` of APGDT, FAB and AutoAttack is a limit: a model with fewer classes gets its own number.
            ``seed`` and ``verbose`` are not passed on.

    Raises:
        SpecError: the attack or an option does not exist, or a value is out of range.

    Example::

        TorchAttack("DIFGSM", eps=16 / 255, steps=10, seed=0)(model, images, labels)

    Source: Kim 2020, arXiv 2010.01950; each attack's paper is named in its class there.
    """

    eps: float

    def __init__(self, attack: str, /, *, seed: int = 0, batch: int = 64, **options: Option) -> None:
        entry = look_up(attack)
        self.attack = attack  # before the base class asks for the name
        resolved = resolve_options(attack, options)
        norm: Any = entry.norm or resolved.pop("norm")
        eps = float(resolved.pop("eps"))
        batch = check_count(batch, "batch of a random attack")
        if norm == "L2" and not 0 < eps < math.inf:
            raise SpecError("eps is not usable.", eps, "a number > 0: the radius of the L2 ball")
        super().__init__(eps=eps if norm == "Linf" else None, seed=seed)
        self.eps, self.norm = eps, norm
        self.batch = batch if entry.draws(resolved) else None
        self.library = f"torchattacks {torchattacks.__version__}"
        self._known, self._options = entry, resolved

    @property
    def name(self) -> str:
        """The attack's name in torchattacks."""
        return self.attack

    @property
    def reach(self) -> float | None:
        """How far all steps together can move an image, in the attack's norm; None for attacks without ``alpha``."""
        if "alpha" not in self._options:
            return None
        return float(self._options["alpha"]) * int(self._options.get("steps", 1))

    @property
    def settings(self) -> dict[str, float | int | str | bool | None]:
        """The options of torchattacks' constructor, given or default, and what this class adds to them."""
        return dict(sorted((super().settings | self._options).items()))

    def batch_seed(self, first_index: int = 0) -> int:
        """Seed of the piece whose first image has this place in the data set.

        To repeat a piece with torchattacks alone: ``torch.manual_seed(batch_seed)``, and for the attacks that have an
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
        return result

    def perturb(self, run: AttackRun) -> Tensor:
        """Return the adversarial images (N, C, H, W) of one batch."""
        self._check_fit(run)
        rows = np.arange(len(run.images))
        if self._known.correct_only:
            # It would leave the others out itself, and then not tell which images it asks about.
            rows = rows[run.correct.cpu().numpy()]
        if not len(rows):
            return run.images
        index = torch.from_numpy(rows).to(run.images.device)
        probe = _Probe(run, rows, copies=int(self._options.get("noise_batch_size", 1)))
        seed = self.batch_seed(run.streams.indices[0])
        with isolated_global_rngs(seed):
            # Some of its views fail on images whose channels lie last in memory.
            adversarial = self._build(probe, seed, run)(run.images[index].contiguous(), run.labels[index]).detach()
        probe.settle()
        images = run.images.clone()
        images[index] = adversarial
        if self.norm == "L2":
            self._check_l2_ball(run.images, images)
        return images

    def _build(self, probe: nn.Module, seed: int, run: AttackRun) -> Any:
        given = dict(self._options, eps=self.eps)
        if self._known.norm is None:
            given |= {"norm": self.norm, "seed": seed}  # these reseed the global generators with it
        if "n_classes" in given:
            assert run.num_classes is not None
            given["n_classes"] = min(int(given["n_classes"]), run.num_classes)
        if self.name != "AutoAttack":
            return getattr(torchattacks, self.attack)(probe, **given)
        steps = given.pop("steps")
        built = torchattacks.AutoAttack(probe, **given)
        for part in built._autoattack.attacks:
            if hasattr(part, "steps"):
                part.steps = steps
        return built

    def _check_fit(self, run: AttackRun) -> None:
        _, channels, height, width = run.images.shape
        dtypes = (torch.float32,) if self._known.float32_only else (torch.float32, torch.float64)
        if run.images.dtype not in dtypes:
            allowed = " or ".join(map(str, dtypes))
            raise ImageRangeError(f"torchattacks' {self.name} does not take this type.", run.images.dtype, allowed)
        if self._known.rgb_only and channels != 3:
            raise ImageRangeError(
                f"torchattacks' {self.name} has a kernel for RGB.",
                tuple(run.images.shape),
                "(N, 3, H, W)",
                "repeat a grey channel three times, or take another attack",
            )
        if self._known.square_only and height != width:
            raise ImageRangeError(
                f"torchattacks' {self.name} makes every image a square.", tuple(run.images.shape), "(N, C, S, S)"
            )
        if "resize_rate" in self._options:
            check_diversity(self.name, self._options, width, run.model)
        asks_square = self.name == "Square" or (self.name == "AutoAttack" and self._options["version"] != "rand")
        if asks_square and self.norm == "L2":
            check_square_l2(self.name, height, width, p_init=float(self._options.get("p_init", AUTOATTACK_P_INIT)))
        needed = self._known.classes_needed(self._options)
        if run.num_classes is not None and run.num_classes < needed:
            raise ModelOutputError(
                f"The loss of torchattacks' {self.name} compares several logits.", run.num_classes, f"{needed} or more"
            )

    def _ball_rounding(self, dtype: torch.dtype) -> float:
        # torchattacks mixes float32 numbers into float64 images.
        return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)

    def _check_l2_ball(self, images: Tensor, adversarial: Tensor) -> None:
        furthest = float((adversarial - images).double().flatten(1).norm(dim=1).max())
        # Every pixel of x + delta is rounded to the dtype of the images, and so is the norm that delta was scaled by.
        rounding = self._ball_rounding(images.dtype) * (math.sqrt(images[0].numel()) + 10 * self.eps)
        if not furthest <= self.eps + rounding:
            raise ImageRangeError(f"{self.name} left its eps-ball (L2).", furthest, f"<= {self.eps}")


class _Probe(nn.Module):
    """Stands in front of the model: counts queries, checks logits, and looks at the gradients that come back.

    Args:
        run: the batch.
        rows: int64 (M,), the samples that the attack works on.
        copies: of each sample in one forward pass, one after the other.
    """

    def __init__(self, run: AttackRun, rows: Rows, *, copies: int) -> None:
        super().__init__()
        # torchattacks looks for the device at the first parameter, and prints a line where there is none.
        self.place = nn.Parameter(torch.empty(0, device=run.images.device), requires_grad=False)
        self._run, self._rows, self._copies = run, rows, copies
        self._index = torch.from_numpy(rows).to(run.images.device)
        self._alive: Tensor | None = None
        self.training = False

    def train(self, mode: bool = True) -> _Probe:
        """Change nothing: the base class has put the model into eval mode, and leaving it would thaw frozen norms."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return finite logits, in the dtype of the images."""
        self.settle()
        # The momentum attacks divide a gradient of zero by its norm, and those of Nesterov's kind then show the model
        # the NaN that comes out: one such sample must not spoil the batch. What this returns is a node of the graph,
        # as the hook needs, even where the input is a leaf.
        images = images.nan_to_num(nan=0.5)
        full_batch = len(images) == len(self._rows) * self._copies
        if images.requires_grad:
            # A network whose weights lie channels last returns such gradients, and some of torchattacks' views fail.
            images.register_hook(Tensor.contiguous)
            if full_batch:
                images.register_hook(self._look)
        # A part of the batch does not tell which part: then every sample counts as asked about.
        rows = np.repeat(self._rows, self._copies)
        # The network may compute in another dtype than the attack does.
        return check_logits(self._run.forward(images, rows), count=len(images)).to(images.dtype)

    def _look(self, gradient: Tensor) -> None:
        alive = (gradient != 0).flatten(1).any(dim=1).view(len(self._rows), self._copies).any(dim=1)
        self._alive = alive if self._alive is None else self._alive | alive

    def settle(self) -> None:
        """Write down which samples got no gradient at all from the last forward pass."""
        if self._alive is not None:
            self._run.zero_gradient[self._index] |= ~self._alive
            self._alive = None

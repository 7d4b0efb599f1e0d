"""torchattacks' own attacks, run as ours: seeded, checked, counted, and without a trace on model and generators."""

from __future__ import annotations

import math
from typing import Any

import torch
import torchattacks
from torch import nn

from dcn_plugin.adapters._foreign import ForeignAttack, Option
from dcn_plugin.adapters._torchattacks_sizes import check_diversity, check_square_l2
from dcn_plugin.adapters._torchattacks_table import look_up, resolve_options
from dcn_plugin.attacks import AttackRun
from dcn_plugin.errors import ImageRangeError, ModelOutputError, SpecError
from dcn_plugin.support.arguments import check_count

__all__ = ["TorchAttack"]

#: AutoAttack runs Square with torchattacks' default.
AUTOATTACK_P_INIT = 0.8


class TorchAttack(ForeignAttack):
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
        resolved = resolve_options(attack, options)
        norm: Any = entry.norm or resolved.pop("norm")
        eps = float(resolved.pop("eps"))
        batch = check_count(batch, "batch of a random attack")
        if norm == "L2" and not 0 < eps < math.inf:
            raise SpecError("eps is not usable.", eps, "a number > 0: the radius of the L2 ball")
        super().__init__(
            attack,
            library=f"torchattacks {torchattacks.__version__}",
            eps=eps,
            norm=norm,
            batch=batch if entry.draws(resolved) else None,
            options=resolved,
            seed=seed,
        )
        self._known = entry

    @property
    def correct_only(self) -> bool:
        """As the table has it."""
        return self._known.correct_only

    @property
    def copies(self) -> int:
        """More than one in attacks with smoothing."""
        return int(self._options.get("noise_batch_size", 1))

    @property
    def reach(self) -> float | None:
        """How far all steps together can move an image, in the attack's norm; None for attacks without ``alpha``."""
        if "alpha" not in self._options:
            return None
        return float(self._options["alpha"]) * int(self._options.get("steps", 1))

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

    def check_data(self, shape: tuple[int, int, int], num_classes: int) -> None:
        """Refuse sizes and classes on which the attack fails; see :meth:`Attack.check_data`."""
        channels, height, width = shape
        if self._known.rgb_only and channels != 3:
            raise ImageRangeError(
                f"torchattacks' {self.name} has a kernel for RGB.",
                shape,
                "(3, H, W)",
                "repeat a grey channel three times, or take another attack",
            )
        if self._known.square_only and height != width:
            raise ImageRangeError(f"torchattacks' {self.name} makes every image a square.", shape, "(C, S, S)")
        asks_square = self.name == "Square" or (self.name == "AutoAttack" and self._options["version"] != "rand")
        if asks_square and self.norm == "L2":
            check_square_l2(self.name, height, width, p_init=float(self._options.get("p_init", AUTOATTACK_P_INIT)))
        needed = self._known.classes_needed(self._options)
        if num_classes < needed:
            raise ModelOutputError(
                f"The loss of torchattacks' {self.name} compares several logits.", num_classes, f"{needed} or more"
            )

    def _check_fit(self, run: AttackRun) -> None:
        dtypes = (torch.float32,) if self._known.float32_only else (torch.float32, torch.float64)
        if run.images.dtype not in dtypes:
            allowed = " or ".join(map(str, dtypes))
            raise ImageRangeError(f"torchattacks' {self.name} does not take this type.", run.images.dtype, allowed)
        if "resize_rate" in self._options:
            check_diversity(self.name, self._options, run.images.shape[3], run.model)

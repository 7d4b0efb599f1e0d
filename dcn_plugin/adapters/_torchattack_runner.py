"""torchattack's transfer attacks, run as ours: seeded, checked, counted."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchattack
from torch import Tensor, nn

from dcn_plugin.adapters._foreign import ForeignAttack, Option
from dcn_plugin.adapters._torchattack_table import look_up, resolve_options
from dcn_plugin.attacks import AttackRun
from dcn_plugin.errors import ImageRangeError, MissingExtraError
from dcn_plugin.support.arguments import check_count

__all__ = ["TransferAttack"]


class TransferAttack(ForeignAttack):
    """One of torchattack's attacks, untargeted, within an L-inf ball: those of 2018 to 2024 that run on any network.

    The result is that of ``torchattack.create_attack(...)(images, labels)`` in eval mode. Attacks that do something
    else than their paper says, that edit the network, or that are made for certain networks are refused by name, with
    the reason (:mod:`dcn_plugin.adapters._torchattack_table`); images of a size or number of channels that an attack
    does not take are refused before it asks about them.

    All but MIFGSM draw for a whole batch; see :class:`ForeignAttack` for their pieces of ``batch`` images. Admix mixes
    the images of a piece, and DeCoWA warps them by a common map that all of them shape: there an image's result depends
    on the others of its piece (``mixes_batch``).

    Args:
        attack: its name in torchattack, e.g. "BSR".
        seed: of everything the attack draws.
        batch: images a piece of a random attack has; it decides on memory too.
        **options: eps, steps, alpha (eps / steps unless it is given), decay, and those of that attack, by torchattack's
            names. ``num_classes`` of Admix is the network's.

    Raises:
        SpecError: the attack or an option does not exist, or a value is out of range.
        MissingExtraError: MuMoDIG without kornia.

    Example::

        TransferAttack("BSR", eps=8 / 255, num_scale=10)(model, images, labels)

    Source: Song 2023, torchattack (MIT); each attack's paper and year stand in the table.
    """

    eps: float

    def __init__(self, attack: str, /, *, seed: int = 0, batch: int = 64, **options: Option) -> None:
        entry = look_up(attack)
        resolved = resolve_options(attack, options)
        batch = check_count(batch, "batch of a random attack")
        if entry.module is not None and importlib.util.find_spec(entry.module) is None:
            raise MissingExtraError(
                f"torchattack's {attack} needs {entry.module}.", entry.module, fix=f"pip install {entry.module}"
            )
        super().__init__(
            attack,
            library=f"torchattack {torchattack.__version__}",
            eps=float(resolved.pop("eps")),
            norm="Linf",
            batch=batch if entry.random else None,
            options=resolved,
            seed=seed,
        )
        self.year, self.mixes_batch = entry.year, entry.mixes
        self._known = entry

    @property
    def reach(self) -> float:
        """How far all steps together can move a pixel."""
        return float(self._options["alpha"]) * int(self._options["steps"])

    @property
    def gradients(self) -> int:
        """Gradients an image that a run takes."""
        return int(self._options["steps"]) * self._known.gradients(self._options)

    def check_data(self, shape: tuple[int, int, int], num_classes: int) -> None:
        """Refuse sizes on which the attack fails; see :meth:`Attack.check_data`."""
        channels, height, width = shape
        if self._known.size is not None and (height, width) != self._known.size:
            allowed = "(C, {}, {})".format(*self._known.size)
            raise ImageRangeError(
                f"torchattack's {self.name} is fixed to one size of images.", shape, allowed, "take another attack"
            )
        if self._known.rgb_only and channels != 3:
            raise ImageRangeError(
                f"torchattack's {self.name} draws noise for RGB.", shape, "(3, H, W)", "take another attack"
            )
        least = 2 * int(self._options["num_block"]) if "num_block" in self._options else 1
        if "resize_rate" in self._options:
            least = next(size for size in range(1, 10_000) if int(size * float(self._options["resize_rate"])) >= 1)
        if min(height, width) < least:
            raise ImageRangeError(
                f"torchattack's {self.name} cuts or shrinks images, and these are too small.", shape,
                f"{least} pixels a side or more", "take larger images, or fewer blocks",
            )  # fmt: skip
        if self.name == "DIFGSM" and height != width:
            raise ImageRangeError(f"torchattack's {self.name} makes every image a square.", shape, "(C, S, S)")

    def _check_fit(self, run: AttackRun) -> None:
        if run.images.dtype != torch.float32:
            raise ImageRangeError(f"torchattack's {self.name} does not take this type.", run.images.dtype, "float32")

    def _build(self, probe: nn.Module, seed: int, run: AttackRun) -> Callable[[Tensor, Tensor], Tensor]:
        given: dict[str, Any] = dict(self._options, eps=self.eps)
        if self._known.classes:
            assert run.num_classes is not None
            given["num_classes"] = run.num_classes
        library_attack = torchattack.create_attack(self.attack, probe, None, run.images.device, **given)

        def attack(images: Tensor, labels: Tensor) -> Tensor:
            with warnings.catch_warnings():
                # torch asks for an argument of meshgrid, which DeCoWA does not give.
                warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
                adversarial: Tensor = library_attack(images, labels)
            return adversarial

        return attack

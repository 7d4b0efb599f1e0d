"""Attacks of recipes, in the notation of the registry, and what a scale makes of them.

In a recipe an attack has the paper's settings where the paper has some: ``boundary`` is ``boundary-paper``, and
``fgsm(8)``, ``pgd(1,20,16)`` (step, steps, eps in grey levels) are those of its tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dcn_plugin.adapters.attack_registry import make_attack, parse_attack
from dcn_plugin.attacks import CW, PGD, Attack, BoundaryAttack, HopSkipJump
from dcn_plugin.errors import SpecError
from dcn_plugin.experiments.scales import Scale
from dcn_plugin.support.named_options import Spec

__all__ = ["ATTACKS", "AttackSpec", "read_attack"]

GREY = 1 / 255
_FORM = re.compile(r"([a-z-]+)(?:\(([^()]*)\))?")


@dataclass(frozen=True)
class AttackSpec:
    """An attack of a recipe, and what it costs at a scale.

    Args:
        text: as the recipe has it.
        kind: a key of :data:`ATTACKS`, or "" for any other attack of the registry.
        numbers: its settings, in grey levels where they are lengths.
    """

    text: str
    kind: str
    numbers: tuple[float, ...]

    def make(self, scale: Scale, *, channels: int = 3) -> list[Attack]:
        """The attacks: one, or those of a set such as "modern(8)".

        Args:
            scale: cuts steps and queries down.
            channels: of the images.

        Raises:
            SpecError: a setting is out of range.
            MissingExtraError: it needs torchattacks, which is not installed.
        """
        if self.kind in ATTACKS:
            return ATTACKS[self.kind].make(self.numbers, scale, channels)
        return list(make_attack(_cut_down(self.text, scale)).values())

    def gradients(self, scale: Scale) -> int:
        """How many forward and backward passes an image takes, at most."""
        if self.kind in ATTACKS:
            return ATTACKS[self.kind].cost(self.numbers, scale)
        return sum(map(_cost, self.make(scale)))

    @property
    def few_images(self) -> bool:
        """Whether it runs on ``scale.cw_images`` only."""
        return self.kind == "cw" or parse_attack(self.text).head in ("cw", "cw-paper")


@dataclass(frozen=True)
class _Kind:
    """How one kind of attack is written, made and paid for.

    Args:
        form: as an error shows it.
        counts: how many numbers it may have.
        make: (numbers, scale, channels) -> attacks.
        cost: (numbers, scale) -> passes an image.
    """

    form: str
    counts: tuple[int, ...]
    make: Callable[[tuple[float, ...], Scale, int], list[Attack]]
    cost: Callable[[tuple[float, ...], Scale], int]


def read_attack(text: str) -> AttackSpec:
    """Read an attack.

    Raises:
        SpecError: an unknown kind (the nearest names are in the message), or numbers that do not fit it.
    """
    match = _FORM.fullmatch(text.replace(" ", ""))
    if match is None or match[1] not in ATTACKS:
        make_attack(parse_attack(text))  # so that what does not exist is told when the recipe is read
        return AttackSpec(text, "", ())
    kind = ATTACKS[match[1]]
    try:
        numbers = tuple(map(float, match[2].split(","))) if match[2] else ()
    except ValueError:
        numbers = (0.0,) * 99
    if len(numbers) not in kind.counts:
        raise SpecError(f"The attack {match[1]} is written otherwise.", text, kind.form)
    return AttackSpec(text, match[1], numbers)


def _cut_down(text: str, scale: Scale) -> Spec:
    """An attack of the registry at a scale: fewer steps that go as far in all, fewer queries, batches that fit."""
    spec = parse_attack(text)
    members = list(make_attack(spec).values())
    if len(members) > 1:
        return spec
    settings, options = members[0].settings, dict(spec.options)
    steps, eps = settings.get("steps"), members[0].eps
    if isinstance(steps, int) and scale.max_steps is not None and steps > scale.max_steps:
        options["steps"] = scale.max_steps
        for length in ("step_size", "alpha"):
            if length in options and eps is not None:
                options[length] = min(options[length] * steps / scale.max_steps, 2 * eps)
    queries = settings.get("max_queries")
    if isinstance(queries, int) and scale.queries is not None:
        options["max_queries"] = min(queries, scale.queries)
    if members[0].batch is not None:
        options.setdefault("batch", scale.batch_size)
    return Spec(spec.head, options)


def _cost(attack: Attack) -> int:
    """Gradients an image takes of an attack of the registry, as far as its settings tell."""
    count = getattr(attack, "gradients", None) or attack.settings.get("steps") or attack.settings.get("max_queries")
    return count if isinstance(count, int) else 1


def _steps(steps: float, scale: Scale) -> int:
    return min(int(steps), scale.max_steps or int(steps))


def _walk(numbers: tuple[float, ...], scale: Scale) -> tuple[float, int, float]:
    """(eps, steps, step size) in units of [0, 1]: fewer steps go further each, in the paper's ratio."""
    step, full_steps, eps = numbers
    steps = _steps(full_steps, scale)
    return eps * GREY, steps, min(step * full_steps / steps, 2 * eps) * GREY


def _fgsm(numbers: tuple[float, ...], scale: Scale, channels: int) -> list[Attack]:
    return [PGD(numbers[0] * GREY, steps=1, step_size=numbers[0] * GREY)]


def _pgd(numbers: tuple[float, ...], scale: Scale, channels: int) -> list[Attack]:
    eps, steps, size = _walk(numbers, scale)
    return [PGD(eps, steps=steps, step_size=size)]


def _mifgsm(numbers: tuple[float, ...], scale: Scale, channels: int) -> list[Attack]:
    from dcn_plugin.adapters.torchattacks import TorchAttack

    eps, steps, size = _walk(numbers, scale)
    return [TorchAttack("MIFGSM", eps=eps, alpha=size, steps=steps, decay=1.0)]


def _cw(numbers: tuple[float, ...], scale: Scale, channels: int) -> list[Attack]:
    if scale.cw_steps >= 1000:
        return [CW.paper(confidence=numbers[0])]
    # Fewer steps of the paper's length would not leave the image.
    return [CW(confidence=numbers[0], steps=scale.cw_steps, step_size=0.01, c_start=1e-1, bisections=2)]


def _boundary(numbers: tuple[float, ...], scale: Scale, channels: int) -> list[Attack]:
    return [BoundaryAttack.paper(steps=scale.boundary_steps, max_queries=scale.queries)]


def _hopskipjump(numbers: tuple[float, ...], scale: Scale, channels: int) -> list[Attack]:
    return [HopSkipJump(max_queries=scale.queries or 25_000)]


def _modern(numbers: tuple[float, ...], scale: Scale, channels: int) -> list[Attack]:
    from dcn_plugin.adapters.torchattacks import modern_transfer_attacks

    attacks = modern_transfer_attacks(
        numbers[0] * GREY,
        steps=_steps(10, scale),
        channels=channels,
        kernel=5,
        batch=scale.batch_size,
        neighbours=_neighbours(scale),
    )
    return list(attacks.values())


def _modern_gradients(neighbours: int) -> int:
    """Gradients of one step of all of the set: DI, TI, low-pass MI, SI-NI, VMI, VNI, Admix, GRA, BSR, DeCoWA."""
    return 3 + 5 + 2 * (1 + neighbours) + 15 + (1 + neighbours) + 3 * neighbours


def _neighbours(scale: Scale) -> int:
    return 20 if scale.max_steps is None else 2


def _square(numbers: tuple[float, ...], scale: Scale, channels: int) -> list[Attack]:
    from dcn_plugin.adapters.torchattacks import TorchAttack

    return [
        TorchAttack(
            "Square", norm="Linf", eps=numbers[0] * GREY, n_queries=_square_queries(scale), batch=scale.batch_size
        )
    ]


def _square_queries(scale: Scale) -> int:
    return 5000 if scale.name == "full" else 10 * scale.cw_steps


def _autoattack(numbers: tuple[float, ...], scale: Scale, channels: int) -> list[Attack]:
    from dcn_plugin.adapters.torchattacks import TorchAttack

    eps = numbers[0] * GREY
    if scale.max_steps is not None:  # AutoAttack knows no number of steps; this is its first part
        return [TorchAttack("APGD", norm="Linf", eps=eps, steps=scale.max_steps, batch=scale.batch_size)]
    return [TorchAttack("AutoAttack", norm="Linf", eps=eps, batch=scale.batch_size)]


# Passes an image. CW leaves most of its rounds early. A query is a third of a gradient. AutoAttack takes about
# 100 + 9 * 100 + 9 * 100 gradients and 5,000 queries if the image resists.
ATTACKS: Mapping[str, _Kind] = {
    "fgsm": _Kind("fgsm(EPS)", (1,), _fgsm, lambda numbers, scale: 1),
    "pgd": _Kind("pgd(STEP,STEPS,EPS)", (3,), _pgd, lambda numbers, scale: _steps(numbers[1], scale)),
    "mifgsm": _Kind("mifgsm(STEP,STEPS,EPS)", (3,), _mifgsm, lambda numbers, scale: _steps(numbers[1], scale)),
    "cw": _Kind("cw(CONFIDENCE)", (1,), _cw, lambda numbers, scale: 4 * scale.cw_steps),
    "boundary": _Kind("boundary", (0,), _boundary, lambda numbers, scale: 2 * scale.boundary_steps),
    "hopskipjump": _Kind("hopskipjump", (0,), _hopskipjump, lambda numbers, scale: 2 * scale.boundary_steps),
    "modern": _Kind(
        "modern(EPS)", (1,), _modern, lambda numbers, scale: _modern_gradients(_neighbours(scale)) * _steps(10, scale)
    ),
    "square": _Kind("square(EPS)", (1,), _square, lambda numbers, scale: _square_queries(scale) // 3),
    "autoattack": _Kind("autoattack(EPS)", (1,), _autoattack, lambda numbers, scale: scale.max_steps or 3500),
}
"""Kind -> how it is written, made and paid for."""

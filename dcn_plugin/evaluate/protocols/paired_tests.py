"""Two attacks on the same images: which wins more of them, by more than chance?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dcn_plugin.evaluate.records import Scalar
from dcn_plugin.support.statistics import sign_test

__all__ = ["LEVEL", "Verdict", "not_weaker", "only_one", "stronger"]

LEVEL = 0.05
"""A difference counts if chance alone would bring it at most this often."""

FEW = 5
"""With fewer images no difference can be told from chance: 0.5 ** 5 is 3 %, 0.5 ** 4 is 6 %."""


@dataclass(frozen=True)
class Verdict:
    """What a check says.

    Args:
        passed: None where it could not judge.
        figures: the numbers behind it.
    """

    passed: bool | None
    figures: Mapping[str, Scalar]


def only_one(first: Tensor, second: Tensor) -> tuple[int, int]:
    """Number of images, of bool (N,) each, that only the first and that only the second attack wins."""
    return int((first & ~second).sum()), int((second & ~first).sum())


def not_weaker(right: Tensor, **pair: Tensor) -> Verdict:
    """Ask that the first of two attacks is not the weaker one by more than chance.

    Args:
        right: bool (N,), the images that count.
        pair: name -> bool (N,), the images that each of the two attacks wins.

    Returns:
        ``passed`` is None if fewer than 5 images count, or neither attack wins any. Figures: what each wins, what each
        wins alone, and "p_weaker", the probability of such a lead of the second attack by chance.
    """
    first, second = pair.values()
    only_first, only_second = only_one(first, second)
    chance = sign_test(only_second, only_first)
    judged = int(right.sum()) >= FEW and bool((first | second).any())
    return Verdict(chance > LEVEL if judged else None, _figures(pair) | {"p_weaker": chance})


def stronger(right: Tensor, **pair: Tensor) -> Verdict:
    """Ask that the first of two attacks is the stronger one by more than chance.

    It also is if it leaves fewer than 5 images standing, where no difference could show. It is not if the second
    attack is stronger, or wins more images than the first one adds to them, by more than chance.

    Args are those of :func:`not_weaker`.

    Returns:
        ``passed`` is None if fewer than 5 images count, or the numbers allow neither answer. Figures: as there, but
        "p_stronger", the probability of such a lead of the first attack by chance.
    """
    first, second = pair.values()
    only_first, only_second = only_one(first, second)
    chance, total = sign_test(only_first, only_second), int(right.sum())
    figures = _figures(pair) | {"p_stronger": chance}
    if total < FEW:
        return Verdict(None, figures)
    if sign_test(only_second, only_first) <= LEVEL:
        return Verdict(False, figures)
    if chance <= LEVEL or total - int(first.sum()) < FEW:
        return Verdict(True, figures)
    return Verdict(False if sign_test(int(second.sum()), only_first) <= LEVEL else None, figures)


def _figures(pair: Mapping[str, Tensor]) -> dict[str, Scalar]:
    alone = only_one(*pair.values())
    won: dict[str, Scalar] = {f"n_{name}": int(fooled.sum()) for name, fooled in pair.items()}
    return won | {f"n_only_{name}": count for name, count in zip(pair, alone, strict=True)}

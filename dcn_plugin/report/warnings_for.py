"""What a reader must know before believing the tables: rows without a figure, attacks that stood still."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.report.aggregate import strength_of, words_of
from dcn_plugin.support.number_format import listed, number

__all__ = ["cautions"]

# The share of images without a gradient from which on an attack is suspected of having stood still.
_ZERO_GRADIENT = 0.05


def cautions(results: Sequence[Result]) -> list[str]:
    """Sentences on records that hold no figure, or one that is weaker than it looks; empty if there is none."""
    sentences = []
    lost = {result.target for result in results if result.n_clean_correct == 0}
    if lost:
        sentences.append(
            f"No clean image is classified correctly by {listed(sorted(lost))}: nothing can be said of it."
        )
    inside = [r for r in results if r.relation == "same network" and not words_of(r).itself and r.source != r.target]
    if inside:
        rows = _by_setting((_setting(result), result.target) for result in inside)
        sentences.append(
            "White-box, not transfer: the attacked source is the network itself, holds it or lies within it. No "
            f"conclusion is drawn from these rows: {rows}."
        )
    empty = [r for r in results if r.n_counted == 0 and r.target not in lost and not words_of(r).verdicts]
    if empty:
        rows = _by_setting((_setting(result), result.target) for result in empty)
        sentences.append(f"No image counts, so that there is no rate or distance (a dash in the tables): {rows}.")
    failed = sorted((r for r in results if r.n_failed_starts), key=_failed_share, reverse=True)
    if failed:
        rows = _by_setting((_setting(r), f"{r.target} {r.n_failed_starts} of {r.n_total}") for r in failed)
        sentences.append(f"Failed starts: images without a distance, which count neither as far nor as near: {rows}.")
    still = [r for r in results if (r.n_zero_gradient or 0) > _ZERO_GRADIENT * r.n_total]
    if still:
        rows = listed(f"{_setting(r)} ({r.n_zero_gradient} of {r.n_total} images)" for r in still)
        sentences.append(
            "The loss had no gradient at some step, so that the attack stood still and is weaker than it could be: "
            f"{rows}."
        )
    return sentences


def _setting(result: Result) -> str:
    """Attack, source and strength: "PGD on resnet18, eps 8/255"."""
    words = strength_of(result)
    strength = words.of(result)
    return (
        (result.attack or result.protocol)
        + (f" on {result.source}" if result.source else "")
        + (f", {words.label} {number(strength)}" if strength is not None else "")
    )


def _by_setting(rows: Iterable[tuple[str, str]]) -> str:
    groups: dict[str, list[str]] = {}
    for setting, text in rows:
        groups.setdefault(setting, []).append(text)
    return listed(f"{setting} ({listed(texts, most=4)})" for setting, texts in groups.items())


def _failed_share(result: Result) -> float:
    return (result.n_failed_starts or 0) / result.n_total

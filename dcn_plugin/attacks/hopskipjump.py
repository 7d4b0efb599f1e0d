"""HopSkipJump: a gradient estimated at the decision boundary from decisions alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from dcn_plugin.attacks.bands import Bands, Spectra, bandwidths
from dcn_plugin.attacks.base import AttackRun, Rows
from dcn_plugin.attacks.decision import (
    Asker,
    Bools,
    DecisionAttack,
    Floats,
    StartSearch,
    at,
    column,
    row_sums,
)
from dcn_plugin.attacks.noise import COMPETE, LowPassNoise, NoiseTable, OrthogonalNoise, check_coarse
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import check_choice, is_count, is_number, plain

__all__ = ["HopSkipJump"]

Norm = Literal["l2", "linf"]
Probes = Literal["tangent", "sphere"]
_Probes = NoiseTable | LowPassNoise

#: Probes are drawn and added up in blocks of this many a sample; a power of two.
BLOCK = 32
#: Step lengths a hop tries, each half of the one before.
TRIES = 5
#: A landing point must be closer than the point before by this share of the distance.
LEAST_GAIN = 1e-3
#: A hop that gains less than this share of the distance is slow: the next probes have more frequencies, and after
#: ``PATIENCE`` slow hops in a row with probes of all frequencies the sample has converged.
SLOW, PATIENCE = 0.005, 5
#: While probes have the lowest frequencies only, a hop is slow that gains less than this.
FIRST_SLOW = 0.05
#: Where bandwidths compete, this share of a gradient is taken to be left within one whose hop was slow.
AFTER_SLOW = 0.5
#: From one kind of probes to the next, this many times as many frequencies a side.
FINER = 1.6
#: Probes that have more than 1 / NEARLY_ALL of the frequencies are not worth a level of their own.
NEARLY_ALL = 1.5
#: By default the first probes have 1 / COARSEST of the frequencies, but at least this many a side: with
#: fewer there are too few ways to go.
COARSEST, LEAST_SIDE = 4, 8
#: The bisection ends at this share of what is published: a point farther inside would see no other class around it.
BISECTION = 1 / 8
#: Where a step lands is first found to this share of its length; only the landing point that wins is found precisely.
ROUGHLY = 1e-3
#: Most steps land close to where they reach: the first question is asked this far in, and the next ones four times as
#: far each.
FIRST_CUT = 0.03
#: Pixels at the edge do not shrink in step with the others: a gap is brought to a length in this many goes.
CLIPPED_TRIES = 3
#: How far the centre of the probes is moved after a block of one answer only, in units of a probe's move of one pixel.
LIFT = 0.25
#: A last hop with less than this share of its probes is not worth its queries.
WORTH_A_HOP = 0.25


class HopSkipJump(DecisionAttack):
    """HopSkipJump, untargeted, on all images at once.

    Each hop probes the surroundings of a point on the boundary, estimates from the decisions where the adversarial side
    lies, steps there, and bisects back to the boundary. It needs far fewer queries than the Boundary attack for
    the same distance.

    Seven things differ from the published algorithm. Probes are drawn orthogonal to the line to the clean image
    (``probes="tangent"``): along that line the answer is known, and near the closest point it would drown all others.
    At up to 1,024 dimensions they are drawn orthogonal to each other, too: overlaps would disturb the estimate.
    Their centre is moved along that line until half of them are adversarial: near the closest point the boundary curves
    away from the point, and answers that are nearly all the same tell nearly nothing.
    Of the step lengths distance / sqrt(t) * 2, 1, 1/2, 1/4, 1/8 the one that ends closest to the clean image is
    taken, not the first that is adversarial; a hop that gains nothing is not followed. What a step adds to a pixel
    beyond 0 or 1 is kept in mind, so that the pixel stays at the edge when the other pixels shrink: the closest
    adversarial image may lie there, and steps that are clipped for good do not reach it. Probes may have low
    frequencies only (``coarse``): there are fewer of them to try, so that the same number tells more of what the
    network reads there, and nothing of the rest. And several starts are tried (``scouts``).

    Args:
        max_queries: budget of each sample, all checks included; None = no limit.
        steps: at most this many hops of each walk, or None.
        norm: "l2" minimises ||delta||_2, "linf" the largest change of a pixel. ``AttackResult.distance`` is the
            squared L2 score in both cases.
        probes: "tangent", or "sphere" for probes in all directions, as published. By default "tangent" for the L2 norm:
            it is the L2 sphere that they are tangent to.
        coarse: "compete": before each hop, bandwidths from 8 frequencies a side (of a cosine transform) to all of
            them, in grey and in all colours, compete for the probes. What a bandwidth's estimate is worth follows from
            the number of its dimensions and from the part of this sample's gradient that lies in it, which each
            estimate tells more about; see :class:`~dcn_plugin.attacks.bands.Spectra`. A number bets on low
            frequencies, which networks may read first, or, as defective ones, may not: the first probes have only the
            lowest 1 / coarse of the frequencies a side, and where that gains little, 1.6 times as many, and so on until
            there are all. 1 = all from the beginning, as published. None = 4, or 2 or 1 if there would be fewer than
            8 frequencies a side, which was the default before bandwidths competed.
        initial_probes: decisions the first estimate uses; hop t uses sqrt(t) times as many, in whole blocks of 32.
        max_probes: most probes of one estimate.
        theta: radius of the probes in units of the distance to the clean image; the bisection ends at an eighth of
            theta / sqrt(D) of that distance, D = C * H * W.
        scouts: starts that are tried, for 2 % of the budget each, and the two that come closest for another 3 %; see
            :class:`~dcn_plugin.attacks.decision.DecisionAttack`.
        restarts: a sample that has converged may start again from other blobs this many times.
        start_draws: images a sample may try for a start.
        start_grid: the start is blended with the clean image in this many steps.
        start_search: where on that grid: "linear" or "bisection".
        seed: of the noise and of the probes; what a sample draws depends on its place among the images, not on
            its batch.

    Raises:
        SpecError: a setting is out of range, or there is a limit neither on queries nor on steps.

    Example:
        >>> result = HopSkipJump(max_queries=100, norm="linf")(net, images, labels)
        >>> int(result.queries.max()) <= 100
        True

    Source: Chen, Jordan, Wainwright 2020, arXiv 1904.02144, algorithm 2, with the authors' released choice of theta
    and of the radius (0.01). Low frequencies first: Guo, Frank, Weinberger 2018, arXiv 1809.08758; Li et al. 2020,
    QEBA, arXiv 2005.14137.
    """

    scout_rounds: ClassVar[tuple[tuple[float, int], ...]] = ((0.02, 2), (0.03, 1))

    def __init__(
        self,
        *,
        max_queries: int | None = 5_000,
        steps: int | None = None,
        norm: Norm = "l2",
        probes: Probes | None = None,
        coarse: int | Literal["compete"] | None = "compete",
        initial_probes: int = 100,
        max_probes: int = 10_000,
        theta: float = 0.01,
        scouts: int = 8,
        restarts: int = 0,
        start_draws: int = 1000,
        start_grid: int = 1000,
        start_search: StartSearch = "bisection",
        seed: int = 0,
    ) -> None:
        super().__init__(
            max_queries=max_queries,
            steps=steps,
            scouts=scouts,
            restarts=restarts,
            start_draws=start_draws,
            start_grid=start_grid,
            start_search=start_search,
            seed=seed,
        )
        coarse, initial_probes, max_probes, theta = map(plain, (coarse, initial_probes, max_probes, theta))
        check_choice("norm", norm, Norm)
        if probes is None:
            probes = "tangent" if norm == "l2" else "sphere"
        check_choice("kind of probes", probes, Probes)
        counts = (initial_probes, max_probes)
        if not (all(is_count(count, least=2) for count in counts) and initial_probes <= max_probes):
            raise SpecError("The numbers of probes are not usable.", counts, "2 <= first <= most")
        if coarse is not None:
            check_coarse(coarse)
        if not (is_number(theta) and 0 < theta < 1):
            raise SpecError("Theta is not usable.", theta, "a number in (0, 1)", "try 0.01")
        self.norm, self.probes, self.theta = norm, probes, theta
        self.coarse, self.initial_probes, self.max_probes = coarse, initial_probes, max_probes

    def approach(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        """Hop; see :meth:`DecisionAttack.approach`."""
        contest = None
        if self.coarse == COMPETE:
            widths = bandwidths(run.images)
            tables: list[_Probes] = [width.noise(run.streams, run.images) for width in widths]
            contest = Spectra(Bands(run.images, widths), len(rows))
        else:
            tables = _tables(run, points, _coarsest(run.images) if self.coarse is None else int(self.coarse))
        hops = _Hops.begin(rows, asker.clean[at(rows)], points, asker.used(rows))
        everyone = np.arange(len(rows))
        hops.distance = self.lengths(hops.gap)
        self._land(asker, hops, everyone, hops.gap.clone())
        result = points.clone()
        hop = 0
        while True:
            hop += 1
            probes = self._probe_counts(hop, hops, asker)
            done = probes == 0
            result[at(hops.place[done])] = hops.points()[at(done)]
            hops.keep(~done)
            if not len(hops.rows):
                return result
            self.tell(run, asker, steps=hop)
            probes, share, finest = probes[~done], 2 / np.sqrt(hop), len(tables) - 1
            if contest is None:
                direction = self._unit(self._estimate_normal(asker, tables, hops, probes, run.max_rows))
                slow = self._hop(asker, hops, direction, share, first_slow=FIRST_SLOW, finest=finest)
                hops.level += slow & (hops.level < finest)
                continue
            contest.keep(~done)
            hops.level = chosen = contest.choose(probes)
            direction = self._estimate_normal(asker, tables, hops, probes, run.max_rows)
            direction = self._unit(contest.learn(direction, chosen, probes))
            slow = self._hop(asker, hops, direction, share, first_slow=SLOW, finest=finest)
            contest.deplete(chosen, np.where(slow, AFTER_SLOW, 1.0))

    def _probe_counts(self, hop: int, hops: _Hops, asker: Asker) -> Rows:
        """How many probes each sample affords in this hop, 0 where it is done."""
        wanted = min(int(self.initial_probes * np.sqrt(hop)), self.max_probes)
        if wanted > BLOCK:  # a block with a few probes costs a forward pass too
            wanted -= wanted % BLOCK
        # Steps and bisections follow.
        affordable = np.minimum(asker.left(hops.rows) - BLOCK, wanted)
        more = (affordable >= max(2, WORTH_A_HOP * wanted)) & (hops.slow < PATIENCE)
        if self.steps is not None and hop > self.steps:
            more[:] = False
        return np.where(more, affordable, 0)

    def lengths(self, moves: Tensor) -> Floats:
        """Length of each row of (M, D) in the attack's norm, float64 (M,)."""
        if self.norm == "l2":
            return super().lengths(moves)
        lengths: Floats = moves.abs().amax(dim=1).cpu().numpy().astype(np.float64)
        return lengths

    def _shrink(self, gap: Tensor, share: Floats) -> Tensor:
        """Gaps (M, D) at these shares of their length."""
        if self.norm == "l2":
            return gap * column(share, gap)
        radius = column(share, gap) * gap.abs().amax(dim=1, keepdim=True)
        return torch.minimum(torch.maximum(gap, -radius), radius)

    def _land(
        self, asker: Asker, hops: _Hops, who: Rows, gap: Tensor, *, width: float = 0.0, outside: float = 0.0
    ) -> None:
        """Bisect between the clean images of ``who`` and adversarial points at ``gap``, (len(who), D), and go there.

        ``outside`` is a share of the gap that is known not to be adversarial. The bisection ends at a share of the
        distance: ``width``, or what the probes ask for if that is more.
        """
        rows, clean = hops.rows[who], hops.clean[at(who)]
        low, high, cut = np.full(len(rows), outside), np.ones(len(rows)), np.full(len(rows), FIRST_CUT)
        width = max(width, BISECTION * self.theta / np.sqrt(clean.shape[1]))
        while True:
            todo = ((high - low > width * high) & (asker.left(rows) > 0)).nonzero()[0]
            if not len(todo):
                break
            middle = (low[todo] + high[todo]) / 2
            middle = np.where(low[todo] == 0, np.maximum(middle, 1 - cut[todo]), middle)
            cut[todo] *= 4
            won = asker.adversarial(within(clean[at(todo)], self._shrink(gap[at(todo)], middle)), rows[todo])
            high[todo[won]] = middle[won]
            low[todo[~won]] = middle[~won]
        gap = self._shrink(gap, high)
        distance = self.lengths(within(clean, gap) - clean)
        closer = distance <= hops.distance[who]
        hops.gap[at(who[closer])] = gap[at(closer)]
        hops.distance[who[closer]] = distance[closer]

    def _estimate_normal(self, asker: Asker, tables: list[_Probes], hops: _Hops, probes: Rows, max_rows: int) -> Tensor:
        """Direction into the adversarial side at each point, (M, D), of any length. Source: eq. (9), (16)."""
        here = hops.points()
        gap = here - hops.clean
        norm = np.sqrt(row_sums(gap * gap))
        outward, radius = gap.mul_(column(1 / norm, gap)), self.theta * norm
        signed, plain = torch.zeros_like(gap), torch.zeros_like(gap)
        balance = np.zeros(len(probes))
        for first in range(0, int(probes.max()), BLOCK):
            number = first + np.arange(BLOCK)
            for group, noise in _groups(probes > first, hops.level, tables, max(1, max_rows // BLOCK)):
                rows = np.repeat(hops.rows[group], BLOCK)
                series = np.repeat(hops.counter[group], BLOCK)
                moves, squares = noise.directions(rows, series, np.tile(number, len(group)))
                if self.probes == "tangent":
                    along = outward[at(group)].repeat_interleave(BLOCK, dim=0)
                    overlap = row_sums(moves * along)
                    moves.sub_(along.mul_(column(overlap, along)))
                    squares = np.maximum(squares - overlap**2, np.finfo(np.float64).tiny)
                moves.mul_(column(np.repeat(radius[group], BLOCK) / np.sqrt(squares), moves))
                lift = column(hops.lift[group] * radius[group] / np.sqrt(here.shape[1]), here)
                start = (here[at(group)] + lift * outward[at(group)]).clamp_(0, 1).unsqueeze(1)
                points = moves.view(len(group), BLOCK, -1).add_(start).clamp_(0, 1)
                active = (number < probes[group][:, None]).reshape(-1)
                sign = np.zeros(len(active))
                sign[active] = 2.0 * asker.adversarial(points.view(len(active), -1)[at(active)], rows[active]) - 1
                answers = sign.reshape(-1, BLOCK).sum(axis=1)
                balance[group] += answers
                hops.lift[group] -= LIFT * answers / BLOCK
                # The sum of moves, not of points: those would lose the moves' digits.
                moved = points.sub_(start)
                plain[at(group)] += _sum_block(moved * column(active.astype(np.float64), moved).view(-1, BLOCK, 1))
                signed[at(group)] += _sum_block(moved.mul_(column(sign, moved).view(-1, BLOCK, 1)))
        hops.counter += probes
        mean = balance / probes
        # Without its mean the estimate would follow the mean of the probes; if all answers agree it is all there is.
        mean[np.abs(mean) == 1] = 0
        return signed.sub_(plain.mul_(column(mean, plain)))

    def _unit(self, normal: Tensor) -> Tensor:
        """Directions (M, D) of length 1 in the norm, in place."""
        if self.norm == "linf":
            return normal.sign_()
        lengths = np.maximum(np.sqrt(row_sums(normal * normal)), np.finfo(np.float32).tiny)
        return normal.mul_(column(1 / lengths, normal))

    def _hop(
        self, asker: Asker, hops: _Hops, direction: Tensor, share: float, *, first_slow: float, finest: int
    ) -> Bools:
        """Step along the normal by ``share`` of the distance, by half of that, ...: the closest landing point wins.

        Returns:
            Which hops were slow, bool (M,).
        """
        start, length = hops.gap.clone(), share * hops.distance
        before = hops.distance.copy()
        for _ in range(TRIES):
            todo = (asker.left(hops.rows) > 0).nonzero()[0]
            if not len(todo):
                break
            reach = (direction[at(todo)] * column(length[todo], direction)).add_(start[at(todo)])
            # One query tells whether this way ends closer than the best so far.
            clean, wanted = hops.clean[at(todo)], (1 - LEAST_GAIN) * hops.distance[todo]
            for _ in range(CLIPPED_TRIES):
                there = np.maximum(self.lengths(within(clean, reach) - clean), np.finfo(np.float64).tiny)
                reach = self._shrink(reach, np.minimum(wanted / there, 1))
            won = asker.adversarial(within(clean, reach), hops.rows[todo])
            if won.any():
                self._land(asker, hops, todo[won], reach[at(won)], width=ROUGHLY)
            length /= 2
        moved = (hops.distance < before).nonzero()[0]
        if len(moved):
            # A little more than it is wide: shares of a gap are rounded.
            self._land(asker, hops, moved, hops.gap[at(moved)], outside=1 - 1.01 * ROUGHLY)
        at_finest = hops.level == finest
        least = np.where((hops.level == 0) & ~at_finest, first_slow, SLOW)
        slow: Bools = hops.distance > (1 - least) * before
        # A slow hop with fewer frequencies says nothing of the others.
        hops.slow = np.where(slow, hops.slow + at_finest, 0)
        return slow


def within(clean: Tensor, gap: Tensor) -> Tensor:
    """The images (M, D) at these gaps from the clean ones."""
    return (clean + gap).clamp_(0, 1)


@dataclass
class _Hops:
    """The M samples that still hop. Everything has M rows, in one order."""

    rows: Rows  # place in the batch
    place: Rows  # place in the result
    clean: Tensor
    gap: Tensor  # to a point on the boundary; beyond the edge of [0, 1] a pixel stays at the edge
    distance: Floats  # of that point, in the attack's norm
    counter: Rows  # probes drawn so far
    level: Rows  # of the probes' frequencies, 0 = the lowest only
    slow: Rows  # hops in a row that gained little with probes of all frequencies
    lift: Floats  # of the probes' centre, away from the clean image, in units of radius / sqrt(D)

    @classmethod
    def begin(cls, rows: Rows, clean: Tensor, points: Tensor, counter: Rows) -> _Hops:
        return cls(
            rows,
            np.arange(len(rows)),
            clean,
            points - clean,
            np.zeros(len(rows)),
            counter,
            np.zeros(len(rows), dtype=np.int64),
            np.zeros(len(rows), dtype=np.int64),
            np.zeros(len(rows)),
        )

    def points(self) -> Tensor:
        """The current points (M, D), adversarial."""
        return within(self.clean, self.gap)

    def keep(self, mask: Bools) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            setattr(self, field.name, value[at(mask)] if isinstance(value, Tensor) else value[mask])


def _coarsest(images: Tensor) -> int:
    """The default of ``coarse``: the power of two that divides the first probes' frequencies."""
    coarse = 1
    while coarse < COARSEST and min(images.shape[2:]) // (2 * coarse) >= LEAST_SIDE:
        coarse *= 2
    return coarse


def _tables(run: AttackRun, points: Tensor, coarse: int) -> list[_Probes]:
    """Where probes are looked up: those of the lowest frequencies, of more and more of them, and of all."""
    tables: list[_Probes] = []
    factor = float(coarse)
    while factor > NEARLY_ALL:
        tables.append(LowPassNoise(run.streams, run.images, factor))
        factor /= FINER
    return [*tables, OrthogonalNoise(run.streams, points)]


def _groups(still: Bools, level: Rows, tables: list[_Probes], size: int) -> Iterator[tuple[Rows, _Probes]]:
    """Cut the samples ``still`` into groups of ``size`` that read the same table."""
    for number, table in enumerate(tables):
        rows = (still & (level == number)).nonzero()[0]
        for i in range(0, len(rows), size):
            yield rows[i : i + size], table


def _sum_block(values: Tensor) -> Tensor:
    """Sum (M, BLOCK, D) over its blocks, pair by pair: the same order of additions for every M."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values[:, 0]

"""The Boundary attack: a random walk along the decision boundary that comes closer and closer to the image."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np
from torch import Tensor

from dcn_plugin.attacks.bands import Race, RacedNoise
from dcn_plugin.attacks.base import AttackRun, Rows
from dcn_plugin.attacks.decision import Asker, Bools, DecisionAttack, Floats, StartSearch, at, column, row_sums
from dcn_plugin.attacks.noise import COMPETE, CoarseNoise, NoiseTable, check_coarse
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import check_choice, is_count, is_number, plain

__all__ = ["BoundaryAttack"]

Adaptation = Literal["smooth", "window"]

#: A source step below this moves nothing in float32: the sample has converged.
CONVERGED = 1e-7
#: A sample whose distance falls below this share of what it was at its last convergence tries once more.
WORTH_ANOTHER_TRY = 0.99
#: Shares of candidates that should be adversarial: sideways steps, and steps towards the image after such a one.
SPHERICAL_TARGET, SOURCE_TARGET = 0.5, 0.25
#: At first the best step lengths change fast. After this many directions of a walk they hardly do: steps that jump at
#: every answer are then mostly too long or too short, and checks are wasted. From there on they adapt at ``CALM`` of
#: the rate, with checks ``RARER`` times as rare.
SETTLED, CALM, RARER = 1000, 0.4, 3
#: Every this many directions one is coarse. The others keep the walk from being blind to what no coarse one can reach.
COARSE_EVERY = 4
#: A direction that lies along the gap, as every one does for a single number, has only rounding errors to go sideways:
#: its sideways part counts as at least this share of the whole, both squared.
LEAST_SIDEWAYS = 1e-6
#: Foolbox 1.x: length of the two windows, and the shares that lengthen or shorten a step.
SPHERICAL_WINDOW, SOURCE_WINDOW = 100, 30
TOO_LOW, TOO_HIGH = 0.2, 0.5
_TINY = np.finfo(np.float64).tiny


class BoundaryAttack(DecisionAttack):
    """The Boundary attack (L2), untargeted, on all images at once.

    From an adversarial image, each candidate goes a random step sideways on the sphere around the clean image and
    then a step towards it; an adversarial candidate that is closer becomes the new image. Every sample has its own
    directions, its own step lengths, its own count of queries, and leaves the batch when it has converged or
    used its budget. Where it converges depends on where it started: ``restarts`` spend what is left on other starts.

    There are fewer directions of low frequencies to try: an attack that bets on them wins where a network reads low
    frequencies, and wastes queries where it does not. By default there is no bet: bandwidths from 8 frequencies a side
    to full resolution, in grey and in all colours, share out the directions by what each brought on this sample lately;
    a tenth of them goes to all in equal parts. It costs some queries where a network reads all frequencies alike.
    Neither the published attack nor the paper's has other directions than those of full resolution: compare with
    ``coarse=1``, or say that bandwidths compete. A direction depends on the seed, the sample's place among the images,
    its own count of queries and, where bandwidths compete, the answers that it got before, and on nothing else.

    The defaults spend queries well. :meth:`paper` gives the settings that the paper used.

    Args:
        max_queries: budget of each sample, all checks included; None = no limit.
        steps: at most this many steps of each walk, or None; a step ends with an adversarial candidate or after
            ``directions`` candidates.
        directions: candidates a step may try.
        spherical_step: first length of the sideways step, in units of the distance to the clean image.
        source_step: first length of the step towards the clean image, in the same unit.
        step_adaptation: factor, > 1, by which steps grow and shrink.
        adaptation: when they do. "smooth": after every answer, upwards by up to the factor where the candidate was
            adversarial and downwards where it was not, such that half of the sideways steps and a quarter of the steps
            towards the image succeed; after 1,000 directions more calmly, and with fewer checks. "window": as in
            Foolbox 1.x, after 100 sideways steps or 30 steps towards the image whose share of success lies outside of
            20 to 50 %.
        check_every: every this many steps the sideways step is asked about on its own, which costs a query.
        coarse: "compete", or a number: every fourth direction is drawn at 1 / coarse of the resolution, rounding up,
            and enlarged. 1 = full resolution always, as published.
        scouts: starts that are tried; see :class:`~dcn_plugin.attacks.decision.DecisionAttack`.
        restarts: a sample that has converged may start again from other blobs this many times.
        start_draws: images a sample may try for a start.
        start_grid: the start is blended with the clean image in this many steps.
        start_search: where on that grid: "linear" or "bisection".
        seed: of the noise and of the directions; what a sample draws depends on its place among the images, not
            on its batch.

    Raises:
        SpecError: a setting is out of range, or there is a limit neither on queries nor on steps.

    Example:
        >>> result = BoundaryAttack(max_queries=100)(net, images, labels)
        >>> int(result.queries.max()) <= 100
        True

    Source: Brendel, Rauber, Bethge 2018, arXiv 1712.04248. The adaptation "smooth" is the success rule of evolution
    strategies (Rechenberg 1973) in place of the trust region with windows. Coarse directions: Guo, Frank, Weinberger
    2018, "Low frequency adversarial perturbation", arXiv 1809.08758. Sharing out tries by what they brought: adaptive
    operator selection, Thierens 2005, doi 10.1145/1068009.1068251.
    """

    def __init__(
        self,
        *,
        max_queries: int | None = 25_000,
        steps: int | None = None,
        directions: int = 25,
        spherical_step: float = 0.01,
        source_step: float = 0.01,
        step_adaptation: float = 1.25,
        adaptation: Adaptation = "smooth",
        check_every: int = 3,
        coarse: int | Literal["compete"] = "compete",
        scouts: int = 5,
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
        directions, check_every, coarse = map(plain, (directions, check_every, coarse))
        spherical_step, source_step, step_adaptation = map(plain, (spherical_step, source_step, step_adaptation))
        if not (is_count(directions, least=1) and is_count(check_every, least=1)):
            raise SpecError("A number of candidates or steps is not usable.", (directions, check_every), "ints >= 1")
        check_coarse(coarse)
        lengths = (spherical_step, source_step)
        if not (all(map(is_number, lengths)) and 0 < spherical_step <= 1 and 0 < source_step < 1):
            raise SpecError("A step is not usable.", lengths, "numbers in (0, 1)", "try 0.01")
        if not (is_number(step_adaptation) and 1 < step_adaptation <= 10):
            raise SpecError("The step adaptation is not usable.", step_adaptation, "a factor in (1, 10]", "try 1.25")
        check_choice("adaptation", adaptation, Adaptation)
        self.directions = directions
        self.spherical_step, self.source_step = spherical_step, source_step
        self.step_adaptation, self.adaptation, self.check_every = step_adaptation, adaptation, check_every
        self.coarse = coarse

    @classmethod
    def paper(cls, *, steps: int = 5000, max_queries: int | None = None, seed: int = 0) -> Self:
        """The settings behind the paper's scores: the defaults of Foolbox 1.x.

        Up to 25 candidates in each of 5,000 steps, both steps 0.01 at first, adaptation 1.5 by windows, start from
        uniform noise blended in 1/1000 steps, no coarse directions. One difference: Foolbox walks on for 100 steps
        after the second convergence; here the sample leaves.

        Source: paper, appendix; the authors' code (docs: concepts/authors-code); Foolbox 1.8, ``BoundaryAttack``.
        """
        return cls(
            max_queries=max_queries,
            steps=steps,
            step_adaptation=1.5,
            adaptation="window",
            check_every=10,
            coarse=1,
            scouts=1,
            start_search="linear",
            seed=seed,
        )

    def approach(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        """Walk; see :meth:`DecisionAttack.approach`."""
        noise: _Directions | RacedNoise
        if self.coarse == COMPETE:
            noise = RacedNoise(run.streams, run.images)
        else:
            noise = _Directions(run, points, int(self.coarse))
        clean = asker.clean[at(rows)]
        result = points.clone()
        walk = _Walk.begin(rows, clean, points, asker.used(rows), self, kinds=noise.kinds)
        while True:
            done = self._done(walk, asker)
            if done.any():
                result[at(walk.place[done])] = walk.best[at(done)]
                walk.keep(~done)
            if not len(walk.rows):
                return result
            self.tell(run, asker, steps=int(walk.step.min()))
            self._ask_once(walk, asker, noise)

    def _done(self, walk: _Walk, asker: Asker) -> Bools:
        done: Bools = asker.left(walk.rows) < 1
        if self.steps is not None:
            done |= walk.step > self.steps
        converged = walk.source < CONVERGED
        if converged.any():
            # It may only be a narrow place: try again with long steps, as Foolbox 1.x does.
            again = converged & (walk.distance < WORTH_ANOTHER_TRY * walk.converged_at)
            walk.converged_at[converged] = walk.distance[converged]
            walk.spherical[again], walk.source[again] = self.spherical_step, self.source_step
            done |= converged & ~again
        return done

    def _ask_once(self, walk: _Walk, asker: Asker, noise: _Directions | RacedNoise) -> None:
        """One query of every sample: about its sideways step alone, or about its candidate."""
        # Sideways first: the candidate of that direction is asked about only if it succeeds.
        calm = (walk.counter - walk.first >= SETTLED) & (self.adaptation == "smooth")
        every = np.where(calm, RARER * self.check_every, self.check_every)
        checked = (walk.step % every == 0) | (np.isfinite(walk.converged_at) & (self.adaptation == "window"))
        sideways = checked & ~walk.sideways_won
        points, distance = walk.candidates(noise, sideways)
        won = asker.adversarial(points, walk.rows)
        candidate = ~sideways
        before = walk.distance.copy()
        walk.accept(candidate & won & (distance < walk.distance), points)

        walk.sideways_won = sideways & won
        spent = candidate | ~won
        walk.race.record(np.log(np.maximum(before, _TINY) / np.maximum(walk.distance, _TINY)), spent)
        walk.counter += spent
        walk.tried += spent
        new_step = (candidate & won) | (walk.tried >= self.directions)
        walk.step += new_step
        walk.tried[new_step] = 0
        if self.adaptation == "smooth":
            self._adapt_smoothly(walk, sideways, won, calm)
        else:
            self._adapt_by_windows(walk, sideways, candidate & checked, won, new_step)

    def _adapt_smoothly(self, walk: _Walk, sideways: Bools, won: Bools, calm: Bools) -> None:
        rate = np.log(self.step_adaptation) * np.where(calm, CALM, 1)
        target = np.where(sideways, SPHERICAL_TARGET, SOURCE_TARGET)
        factor = np.exp(rate * (won - target) / (1 - target))
        walk.spherical = np.where(sideways, np.minimum(walk.spherical * factor, 1), walk.spherical)
        walk.source = np.where(sideways, walk.source, np.minimum(walk.source * factor, 0.5))

    def _adapt_by_windows(self, walk: _Walk, sideways: Bools, source: Bools, won: Bools, new_step: Bools) -> None:
        walk.spherical_window.add(sideways, won)
        walk.source_window.add(source, won)
        factor = walk.spherical_window.verdict(new_step, self.step_adaptation)
        walk.spherical *= factor
        walk.source *= factor * walk.source_window.verdict(new_step, self.step_adaptation)


class _Directions:
    """Normal directions of full resolution, and every ``COARSE_EVERY``-th a coarse one, where ``coarse`` is above 1."""

    #: Which of them is coarse is fixed: there is nothing to choose.
    kinds = 1

    def __init__(self, run: AttackRun, points: Tensor, coarse: int) -> None:
        self._fine = NoiseTable(run.streams, points)
        self._coarse = CoarseNoise(run.streams, run.images, coarse) if coarse > 1 else None

    def directions(self, rows: Rows, counters: Rows, kind: Rows) -> tuple[Tensor, Floats]:
        """Look up one direction for each of the samples; see :meth:`NoiseTable.directions`."""
        points, squares = self._fine.directions(rows, counters)
        who = (counters % COARSE_EVERY == 0).nonzero()[0]
        if self._coarse is None or not len(who):
            return points, squares
        points[at(who)], squares[who] = self._coarse.directions(rows[who], counters[who])
        return points, squares


@dataclass
class _Window:
    """The last answers of M samples: bool (M, length), and how many there are, int64 (M,)."""

    answers: Bools
    count: Rows

    def add(self, who: Bools, won: Bools) -> None:
        rows = who.nonzero()[0]
        self.answers[rows, self.count[rows] % self.answers.shape[1]] = won[rows]
        self.count[rows] += 1

    def verdict(self, who: Bools, factor: float) -> Floats:
        """What to multiply a step with, (M,); a window that has spoken starts afresh."""
        full = who & (self.count >= self.answers.shape[1])
        if not full.any():
            return np.ones(len(who))
        share = self.answers.mean(axis=1)
        more, less = full & (share > TOO_HIGH), full & (share < TOO_LOW)
        self.count[more | less] = 0
        return np.where(more, factor, np.where(less, 1 / factor, 1.0))

    def keep(self, mask: Bools) -> None:
        self.answers, self.count = self.answers[mask], self.count[mask]


@dataclass
class _Walk:
    """The M samples that still walk. Everything has M rows, in one order."""

    rows: Rows  # place in the batch
    place: Rows  # place in the result
    clean: Tensor
    best: Tensor
    gap: Tensor  # best - clean
    distance: Floats  # its norm
    spherical: Floats
    source: Floats
    step: Rows  # number of the current step, from 1
    tried: Rows  # candidates of the current step
    first: Rows  # number of the walk's first direction
    counter: Rows  # number of the current direction
    sideways_won: Bools  # the current direction's sideways step was adversarial
    converged_at: Floats  # distance at the last convergence, infinity before
    race: Race  # between kinds of directions
    spherical_window: _Window
    source_window: _Window

    @classmethod
    def begin(
        cls, rows: Rows, clean: Tensor, points: Tensor, counter: Rows, attack: BoundaryAttack, *, kinds: int
    ) -> _Walk:
        count = len(rows)
        gap = points - clean

        def zeros() -> Rows:
            return np.zeros(count, dtype=np.int64)

        def window(length: int) -> _Window:
            return _Window(np.zeros((count, length), dtype=bool), zeros())

        return cls(
            rows=rows,
            place=np.arange(count),
            clean=clean,
            best=points,
            gap=gap,
            distance=np.sqrt(row_sums(gap * gap)),
            spherical=np.full(count, attack.spherical_step),
            source=np.full(count, attack.source_step),
            step=zeros() + 1,
            tried=zeros(),
            first=counter,
            counter=counter.copy(),
            sideways_won=np.zeros(count, dtype=bool),
            converged_at=np.full(count, np.inf),
            race=Race(kinds, count),
            spherical_window=window(SPHERICAL_WINDOW),
            source_window=window(SOURCE_WINDOW),
        )

    def keep(self, mask: Bools) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, _Window | Race):
                value.keep(mask)
            else:
                setattr(self, field.name, value[at(mask)] if isinstance(value, Tensor) else value[mask])

    def candidates(self, noise: _Directions | RacedNoise, sideways: Bools) -> tuple[Tensor, Floats]:
        """The next candidate of each sample (M, D), without the step to the image for ``sideways``; its distance."""
        points, squares = noise.directions(self.rows, self.counter, self.race.kind)
        # The part of the direction that is orthogonal to the gap, scaled to spherical * distance, then the whole pulled
        # back onto the sphere: clean + along * direction + back * gap.
        overlap = row_sums(points * self.gap) / self.distance**2
        orthogonal = np.sqrt(np.maximum(squares - (overlap * self.distance) ** 2, LEAST_SIDEWAYS * squares))
        shrink = 1 / np.sqrt(1 + self.spherical**2)
        along = shrink * self.spherical * self.distance / orthogonal
        back = shrink - along * overlap
        points.mul_(column(along, points)).add_(self.gap * column(back, points)).add_(self.clean).clamp_(0, 1)
        # Clipping moves a point off its sphere; the step to the image is measured from the sphere.
        inward = self.clean - points
        radius = np.sqrt(row_sums(inward * inward))
        step = np.clip(self.source * self.distance + radius - self.distance, 0, radius)
        share = np.where(sideways | (radius == 0), 0, step / np.maximum(radius, _TINY))
        # A point between two images is an image, but for the last bit.
        points.add_(inward.mul_(column(share, points))).clamp_(0, 1)
        return points, radius * (1 - share)

    def accept(self, who: Bools, points: Tensor) -> None:
        """Make these points (M, D) the best ones of the samples ``who``."""
        if not who.any():
            return
        index = at(who.nonzero()[0])
        best = points[index]
        gap = best - self.clean[index]
        self.best[index] = best
        self.gap[index] = gap
        self.distance[who] = np.sqrt(row_sums(gap * gap))

"""What the decision-based attacks share: asking for decisions within a budget, and a first adversarial image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_plugin.attacks.base import Attack, AttackResult, AttackRun, Rows
from dcn_plugin.attacks.noise import row_sums
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import check_choice, check_count, is_count, plain

__all__ = ["Asker", "Bools", "DecisionAttack", "Floats", "StartSearch", "at", "blend", "column", "row_sums"]

StartSearch = Literal["bisection", "linear"]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
#: The samples of a scout, int64 (M,), and a point of each, (M, D).
_Scout = tuple[Rows, Tensor]
#: (batch, samples, their clean images (M, D)) -> an image of each to look for a start at, (M, D).
_Draw = Callable[[AttackRun, Rows, Tensor], Tensor]

#: The clean image, one draw of noise, the push and the check of the result.
MIN_QUERIES = 4
#: With a smaller budget no scout is sent.
LEAST_FOR_SCOUTS = 4_000
#: Blobs lie on a grid of this many by this many points, whatever the resolution, uniform on ``BLOB_RANGE`` to both
#: sides of 0: enough to bring many pixels to an end of [0, 1].
BLOBS, BLOB_RANGE = 4, 2.0
#: A sample whose walk has ended starts again if it has at least this share of the queries left that the walk took.
WORTH_A_RESTART = 0.5
#: Results are moved away from the clean image, if they stay adversarial: nearer to the boundary the rounding of another
#: batch size or device would decide on them. Each moves by a share of its distance, at least by this much a pixel (root
#: mean square, in units of [0, 1] images), and at most by their distance.
PUSH, LEAST_PUSH = 1e-4, 2e-6
UNLIMITED = np.iinfo(np.int64).max


class Asker:
    """Asks one batch's model "is this adversarial?" and knows what each sample has left to ask.

    Images are flat here: points (M, D), each belonging to a sample named by its row in the batch.

    Args:
        run: the batch.
        max_queries: of each sample, or None; the push and the check of the result, which come last, are set aside.
    """

    def __init__(self, run: AttackRun, max_queries: int | None) -> None:
        self._run = run
        self._limit = np.full(len(run.images), UNLIMITED if max_queries is None else max_queries - 2)
        self._walk_limit = self._limit.copy()
        self._truth = run.labels.cpu().numpy()
        self.clean = run.images.flatten(1)
        #: The samples that found a start; progress is measured on them.
        self.walking: Rows = np.zeros(0, dtype=np.int64)

    def adversarial(self, points: Tensor, rows: Rows, *, last: bool = False) -> Bools:
        """Ask about points (M, D) of the samples ``rows``, int64 (M,): bool (M,), True = not the true class.

        ``last`` marks the question that a query was set aside for.
        """
        shape, step = self._run.images.shape[1:], self._run.max_rows
        classes = [
            self._run.classes(points[i : i + step].view(-1, *shape), rows[i : i + step]).cpu().numpy()
            for i in range(0, len(points), step)
        ]
        assert last or (self._run.queries <= self._walk_limit).all()
        wrong: Bools = (classes[0] if len(classes) == 1 else np.concatenate(classes)) != self._truth[rows]
        return wrong

    def left(self, rows: Rows) -> npt.NDArray[np.int64]:
        """How many queries each of these samples has left: int64, of the shape of ``rows``."""
        return self._walk_limit[rows] - self._run.queries[rows]

    def allow(self, queries: int | None) -> None:
        """Let every sample ask this many more questions until this is called again; None = all of its budget."""
        self._walk_limit = self._limit.copy()
        if queries is not None:
            self._walk_limit = np.minimum(self._walk_limit, self._run.queries + queries)

    def used(self, rows: Rows) -> npt.NDArray[np.int64]:
        """How many queries each of these samples has made: int64, of the shape of ``rows``."""
        return self._run.queries[rows]


class _Closest:
    """The ``keep`` closest points of each sample, the closest first.

    Args:
        keep: >= 1.
        like: (M, D), of the points.
    """

    def __init__(self, keep: int, like: Tensor) -> None:
        self.points = [torch.zeros_like(like) for _ in range(keep)]
        self._lengths = [np.full(len(like), np.inf) for _ in range(keep)]

    def add(self, who: Rows, points: Tensor, lengths: Floats) -> None:
        """Take points (len(who), D) of the samples ``who`` at these distances, where they are closer."""
        for best, best_lengths in zip(self.points, self._lengths, strict=True):
            closer = lengths < best_lengths[who]
            rows = who[closer]
            # What they replace goes on to the next place.
            points[at(closer)], best[at(rows)] = best[at(rows)], points[at(closer)]
            lengths[closer], best_lengths[rows] = best_lengths[rows], lengths[closer]

    def __iter__(self) -> Iterator[_Scout]:
        for points, lengths in zip(self.points, self._lengths, strict=True):
            who = np.isfinite(lengths).nonzero()[0]
            yield who, points[at(who)]


class DecisionAttack(Attack):
    """An attack that sees only which class the model decides on, and walks from an adversarial image to the clean one.

    The model may return logits (N, classes) or labels, integers (N,). A sample that the model gets wrong, or for which
    no adversarial image is found to start from, comes back clean, is flagged, and has no distance.

    Subclasses write :meth:`approach`.

    Args:
        max_queries: budget of each sample, all checks included; None = no limit.
        steps: at most this many steps of each walk, or None.
        scouts: where a walk ends depends on where it starts. This many starts are tried for a part of the budget
            (``scout_rounds``), and the one that comes closest walks on. The first start is uniform noise (or the image
            that was given), as published. Noise may look like few classes to a network, or like one, and walks from it
            tend to end at those. The others are the clean image with blobs upon it, a quarter of an image wide, which
            look like more classes. With fewer than 4,000 queries, or without a limit, there is one start.
        restarts: where a walk ends by itself and leaves a good part of the budget, the sample walks again from other
            blobs, up to this many times. The closest end is the result.
        start_draws: images a sample may try for a start.
        start_grid: the start is blended with the clean image in this many steps.
        start_search: where on that grid: "linear", the first adversarial blend seen from the clean image (up to
            ``start_grid`` queries, as Foolbox 1.x does), or "bisection", a blend that is adversarial while the next one
            towards the clean image is not (ten queries for 1,000 steps).
        seed: of noise and directions.

    Raises:
        SpecError: a setting is out of range, or there is a limit neither on queries nor on steps.
    """

    decision_based: ClassVar[bool] = True
    #: In each round a scout walks for this share of the budget, and this many go on to the next; of the last one, one.
    scout_rounds: ClassVar[tuple[tuple[float, int], ...]] = ((0.05, 1),)

    def __init__(
        self,
        *,
        max_queries: int | None,
        steps: int | None,
        scouts: int,
        restarts: int,
        start_draws: int,
        start_grid: int,
        start_search: StartSearch,
        seed: int,
    ) -> None:
        super().__init__(eps=None, seed=seed)
        max_queries, steps, scouts, restarts = map(plain, (max_queries, steps, scouts, restarts))
        start_draws, start_grid = map(plain, (start_draws, start_grid))
        if max_queries is not None and not is_count(max_queries, least=MIN_QUERIES):
            raise SpecError("The query budget is too small.", max_queries, f"an int >= {MIN_QUERIES}, or None")
        if max_queries is None and steps is None:
            raise SpecError("The attack has no end.", (max_queries, steps), "max_queries, steps, or both")
        steps = None if steps is None else check_count(steps, "number of steps")
        if not (is_count(scouts, least=1) and is_count(restarts, least=0)):
            raise SpecError(
                "The number of walks is not usable.", (scouts, restarts), "scouts >= 1 and restarts >= 0, both ints"
            )
        if not (is_count(start_draws, least=1) and is_count(start_grid, least=1)):
            raise SpecError("The search for a start needs a try.", (start_draws, start_grid), "ints >= 1")
        check_choice("search for a start", start_search, StartSearch)
        self.max_queries, self.steps, self.scouts, self.restarts = max_queries, steps, scouts, restarts
        self.start_draws, self.start_grid, self.start_search = start_draws, start_grid, start_search

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int = 256,
        first_index: int = 0,
        progress: bool = False,
        starting_points: Tensor | None = None,
    ) -> AttackResult:
        """Attack every image.

        Args:
            model: images in [0, 1] -> logits or labels. It comes back as it was, also after an exception. It is asked
                in the dtype that its parameters share, whatever that of the images.
            images: floating point (N, C, H, W) in [0, 1], on the model's device. Images in half precision walk in
                float32, and every point is asked about as it is in half precision.
            labels: integers (N,), the true classes.
            batch_size: images at a time, and images in one forward pass; it decides on memory and speed, not on the
                result.
            first_index: place of the first image in its data set. Random draws are keyed by it, so that a data set
                attacked piece by piece gives the same images as at once.
            progress: show a progress bar on stderr, if that is a terminal.
            starting_points: like ``images``: where each sample starts, in place of noise. One that is not
                adversarial is a failed start.

        Returns:
            The adversarial images and what became of each; ``median_distance`` is the paper's score.

        Raises:
            ImageRangeError: ``images`` or ``starting_points`` are not of that kind.
            LabelError: ``labels`` are not of that kind, or out of the range of the logits.
            ModelOutputError: the model returns neither finite (N, classes) logits nor integers (N,).
            SpecError: ``batch_size`` or ``first_index`` is out of range.
        """
        return self._attack(
            model,
            images,
            labels,
            batch_size=batch_size,
            first_index=first_index,
            progress=progress,
            starting_points=starting_points,
        )

    def perturb(self, run: AttackRun) -> Tensor:
        """Return the adversarial images (N, C, H, W) of one batch."""
        asker = Asker(run, self.max_queries)
        best = asker.clean.clone()
        rows = run.correct.nonzero().flatten().cpu().numpy()
        if run.starting_points is None:
            points, started = self._find_starts(run, asker, rows, _noise)
        else:
            points, started = self._given_starts(run, asker, rows)
        run.started[at(rows[~started])] = False
        rows, points = rows[started], points[at(started)]
        if len(rows):
            asker.walking = rows
            best[at(rows)] = self._push(asker, rows, self._walk(run, asker, rows, points))
        return best.view_as(run.images)

    @abstractmethod
    def approach(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        """Bring adversarial points closer to their clean images.

        Args:
            run: the batch.
            asker: answers questions, and knows the clean images.
            rows: int64 (M,), M >= 1, the samples to work on. ``asker.used(rows)`` is a counter that no direction
                of an earlier walk has reached.
            points: (M, D), an adversarial point of each, which may be overwritten.

        Returns:
            (M, D), the closest adversarial points seen; each was found adversarial by ``asker``.
        """

    def lengths(self, moves: Tensor) -> Floats:
        """Length of each row of (M, D) in the norm that the attack minimises, L2 by default: float64 (M,)."""
        return np.sqrt(row_sums(moves * moves))

    def tell(self, run: AttackRun, asker: Asker, *, steps: int) -> None:
        """Report progress: the share of the budget that is used, or of the steps."""
        if run.on_progress is None:
            return
        used = 0.0 if self.max_queries is None else float(asker.used(asker.walking).mean()) / self.max_queries
        walked = 0.0 if self.steps is None else steps / (self.steps + 1) / (self.restarts + 1)
        run.on_progress(max(used, walked))

    def _walk(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        """Send scouts, walk, and walk again, as far as the budget allows: the closest points (M, D)."""
        best = self._scout(run, asker, rows, points)
        before = asker.used(rows)
        best = self.approach(run, asker, rows, best)
        spent = asker.used(rows) - before
        for _ in range(self.restarts):
            again = (asker.left(rows) >= np.maximum(WORTH_A_RESTART * spent, MIN_QUERIES)).nonzero()[0]
            if not len(again):
                break
            before = asker.used(rows[again])
            self._walk_afresh(run, asker, rows, again, best)
            spent[again] = asker.used(rows[again]) - before
        return best

    def _scout(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        if self.scouts == 1 or self.max_queries is None or self.max_queries < LEAST_FOR_SCOUTS:
            return points
        scouts = self._scout_starts(run, asker, rows, points)
        for share, keep in self.scout_rounds:
            closest = _Closest(keep, points)
            while True:
                asker.allow(int(share * self.max_queries))  # for its start, too
                if (scout := next(scouts, None)) is None:
                    break
                who, start = scout
                if len(who):
                    ends = self.approach(run, asker, rows[who], start)
                    closest.add(who, ends, self.lengths(ends - asker.clean[at(rows[who])]))
            scouts = iter(closest)
        asker.allow(None)
        return closest.points[0]

    def _scout_starts(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Iterator[_Scout]:
        yield np.arange(len(rows)), points
        for _ in range(self.scouts - 1):
            starts, started = self._find_starts(run, asker, rows, _blobs)
            yield started.nonzero()[0], starts[at(started)]

    def _walk_afresh(self, run: AttackRun, asker: Asker, rows: Rows, again: Rows, best: Tensor) -> None:
        """Walk from blobs with the samples ``rows[again]``; ``best`` (len(rows), D) takes what is closer."""
        starts, started = self._find_starts(run, asker, rows[again], _blobs)
        who = again[started]
        if not len(who):
            return
        points, clean = self.approach(run, asker, rows[who], starts[at(started)]), asker.clean[at(rows[who])]
        closer = self.lengths(points - clean) < self.lengths(best[at(who)] - clean)
        best[at(who[closer])] = points[at(closer)]

    def _push(self, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        clean = asker.clean[at(rows)]
        size = np.sqrt(row_sums((points - clean).square()) / clean.shape[1])
        share = np.clip(LEAST_PUSH / np.maximum(size, LEAST_PUSH), PUSH, 1)
        pushed = blend(clean, points, 1 + share)
        won = at(asker.adversarial(pushed, rows, last=True))
        points[won] = pushed[won]
        return points

    def _given_starts(self, run: AttackRun, asker: Asker, rows: Rows) -> tuple[Tensor, Bools]:
        assert run.starting_points is not None
        points = run.starting_points.flatten(1)[at(rows)]
        return points, asker.adversarial(points, rows) if len(rows) else np.zeros(0, dtype=bool)

    def _find_starts(self, run: AttackRun, asker: Asker, rows: Rows, draw: _Draw) -> tuple[Tensor, Bools]:
        """Adversarial points of the samples ``rows``, (M, D), and which of them have one, (M,)."""
        clean = asker.clean[at(rows)]
        far, started = torch.empty_like(clean), np.zeros(len(rows), dtype=bool)
        for _ in range(self.start_draws):
            todo = (~started & (asker.left(rows) > 0)).nonzero()[0]
            if not len(todo):
                break
            drawn = draw(run, rows[todo], clean[at(todo)])
            won = asker.adversarial(drawn, rows[todo])
            far[at(todo[won])] = drawn[at(won)]
            started[todo[won]] = True
        successes = started.nonzero()[0]
        take = at(successes)
        far[take] = self._blend(asker, rows[successes], clean[take], far[take])
        return far, started

    def _blend(self, asker: Asker, rows: Rows, clean: Tensor, far: Tensor) -> Tensor:
        """Move along the grid from far points towards the clean image as far as the samples stay adversarial."""
        low, high = np.zeros(len(rows), dtype=np.int64), np.full(len(rows), self.start_grid)
        while True:
            todo = ((high - low > 1) & (asker.left(rows) > 0)).nonzero()[0]
            if not len(todo):
                break
            middle = (low[todo] + high[todo]) // 2 if self.start_search == "bisection" else low[todo] + 1
            take = at(todo)
            won = asker.adversarial(blend(clean[take], far[take], middle / self.start_grid), rows[todo])
            high[todo[won]] = middle[won]
            low[todo[~won]] = middle[~won]
        return blend(clean, far, high / self.start_grid)


def _noise(run: AttackRun, rows: Rows, clean: Tensor) -> Tensor:
    """Uniform noise, as published."""
    return run.streams.uniform(clean, 0, 1, rows=rows.tolist())


def _blobs(run: AttackRun, rows: Rows, clean: Tensor) -> Tensor:
    """The clean images with blobs of noise upon them."""
    channels, height, width = run.images.shape[1:]
    coarse = clean.new_empty(len(clean), channels, min(height, BLOBS), min(width, BLOBS))
    blobs = run.streams.uniform(coarse, -BLOB_RANGE, BLOB_RANGE, rows=rows.tolist())
    return clean.add(F.interpolate(blobs, size=(height, width), mode="bilinear").flatten(1)).clamp_(0, 1)


def at(rows: Rows | Bools) -> Tensor:
    """Row numbers or a mask as an index into tensors of any device."""
    return torch.from_numpy(rows)


def blend(clean: Tensor, other: Tensor, share: Floats) -> Tensor:
    """(1 - share) * clean + share * other, row by row, clipped to [0, 1]: (M, D) for shares (M,)."""
    part = column(share, other)
    return ((1 - part) * clean).add_(part * other).clamp_(0, 1)


def column(numbers: Floats, like: Tensor) -> Tensor:
    """Numbers (M,) as a column (M, 1) of the dtype and device of ``like``."""
    return torch.from_numpy(numbers).to(device=like.device, dtype=like.dtype).unsqueeze(1)

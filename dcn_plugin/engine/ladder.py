"""Which way batches of each size run: raced on the whole model at few sizes, predicted between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dcn_plugin.engine.clock import CLEAR, MOST_ROUNDS, Compared, compared, steady
from dcn_plugin.engine.plan import Way, pieces

__all__ = ["Ladder", "Rung", "climb", "raced", "rungs"]

Run = Callable[[Tensor], object]

RESERVE = 1.25
"""A batch is cut into pieces only if it is predicted to take so many times less than the model: what the sizes took was
measured at different times, between which a machine may have become faster or slower."""
CHUNK_SHARE = 0.9
"""A batch is not cut where that is predicted to take a larger share of its time than this."""


class Rung(NamedTuple):
    """What was measured at one batch size.

    Args:
        batch_size: images a batch.
        allowed: ways that are not slower than the model as it is, the fastest first; "model" is always the last.
        ms: milliseconds of each way that was raced.
        one_thread: whether these are milliseconds of one thread's CPU; see :class:`~dcn_plugin.engine.clock.Compared`.
    """

    batch_size: int
    allowed: tuple[Way, ...]
    ms: Mapping[Way, float] = {}
    one_thread: bool = False


class Ladder(NamedTuple):
    """What was measured at some batch sizes, and what follows for the others.

    Args:
        rungs: in order of the batch size, from 1 on.
        by_vector: whether rows are computed a vector of images at a time, so that one image more may take as long as a
            vector. Then a batch runs on rows only in pieces that were raced, or that are two, four ... times as large
            as a raced one and clearly faster.
        cut: whether a batch may be cut.
    """

    rungs: list[Rung]
    by_vector: bool
    cut: bool

    @property
    def largest(self) -> Rung:
        """The largest batch."""
        return self.rungs[-1]

    def around(self, count: int) -> tuple[Rung, Rung]:
        """The rungs next to a batch size, itself included."""
        smaller = max((rung for rung in self.rungs if rung.batch_size <= count), key=lambda rung: rung.batch_size)
        return smaller, next(rung for rung in self.rungs if rung.batch_size >= count)

    def ms(self, way: Way, count: int) -> float:
        """Milliseconds of a way; 0: not known.

        Where it was not raced they lie on the line through the rungs around the batch size, or through two below it;
        rows that are computed by the vector take as many times as long as the next smaller rung as there are images.
        """
        known = [rung for rung in self.rungs if way in rung.ms]
        below = [rung for rung in known if rung.batch_size <= count]
        above = known[len(below) :]
        if below and (below[-1].batch_size == count or (way == "compact" and self.by_vector)):
            return below[-1].ms[way] * count / below[-1].batch_size
        two = [*below[-1:], above[0]] if above else below[-2:]
        if len(two) < 2 or not self._is_comparable:
            return 0.0
        smaller, larger = two
        share = (count - smaller.batch_size) / (larger.batch_size - smaller.batch_size)
        return smaller.ms[way] + share * (larger.ms[way] - smaller.ms[way])

    @property
    def chunks(self) -> tuple[int, ...]:
        """Batch sizes that run on rows at once, the largest first; other batches are cut into them. Empty: none is."""
        if not self.cut:
            return ()
        most, whole = self._most_at_once(), self.largest.batch_size
        if not self.by_vector:
            return (most,) if most < whole else ()
        sizes = {rung.batch_size for rung in self.rungs if rung.allowed[0] == "compact"}
        between = [size for size in _powers_of_two(whole) if self._is_between(size, "compact")]
        sizes |= {size for size in between if self.is_clear(size)}
        return tuple(sorted((size for size in sizes if size <= most), reverse=True))

    def _most_at_once(self) -> int:
        """The largest batch, or a smaller one in pieces of which it is clearly faster on rows.

        What a few images leave between two layers stays in the caches, and in memory that the process has already.
        """
        whole, ms = self.largest.batch_size, self.largest.ms
        limit = min(CHUNK_SHARE * ms.get("compact", 0.0), ms.get("model", 0.0) / RESERVE)
        cut_ms = {
            rung.batch_size: rung.ms["compact"] * whole / rung.batch_size
            for rung in reversed(self.rungs)
            if rung.allowed[0] == "compact" and self._is_comparable
        }
        best = min(cut_ms, key=cut_ms.__getitem__, default=whole)
        return best if cut_ms.get(best, limit) < limit else whole

    @property
    def compact_ms(self) -> float | None:
        """Milliseconds of the largest batch as it runs; None: not measured."""
        if not self.largest.ms:
            return None
        if self.largest.allowed[0] != "compact" or not self.chunks:
            return self.largest.ms[self.largest.allowed[0]]
        return self._cut_ms(self.largest.batch_size, self.chunks)

    @property
    def ways(self) -> tuple[tuple[int, Way], ...]:
        """(first batch size, way), in order; neighbours differ."""
        starts: list[tuple[int, Way]] = []
        chunks = self.chunks
        for count in range(1, self.largest.batch_size + 1):
            way = self._way(count, chunks)
            if not starts or starts[-1][1] != way:
                starts.append((count, way))
        return tuple(starts)

    def _way(self, count: int, chunks: Sequence[int]) -> Way:
        smaller, larger = self.around(count)
        if smaller is larger:
            return smaller.allowed[0]
        shared = [way for way in larger.allowed if way in smaller.allowed]
        if not self.by_vector:
            return shared[0]
        cuttable = bool(chunks) and min(chunks) <= count and self._is_comparable
        if cuttable and (count in chunks or self.ms("model", count) >= RESERVE * self._cut_ms(count, chunks)):
            return "compact"
        return next(way for way in shared if way != "compact")

    def _cut_ms(self, count: int, chunks: Sequence[int]) -> float:
        """Milliseconds of a batch that is cut."""
        cut, left = pieces(count, chunks)
        whole = sum(self.ms("compact", size) for size in cut)
        return whole + (self.ms(self._way(left, chunks), left) or self.ms("model", left) if left else 0.0)

    def _is_between(self, count: int, way: Way) -> bool:
        """Whether a way is the fastest on both rungs around a batch size."""
        return all(rung.allowed[0] == way for rung in self.around(count))

    @property
    def _is_comparable(self) -> bool:
        return len({rung.one_thread for rung in self.rungs}) == 1 and all(rung.ms for rung in self.rungs)

    def is_clear(self, count: int) -> bool:
        """Whether it need not be raced what is fastest at a batch size between two rungs."""
        fastest = self.around(count)[1].allowed[0]
        if not self._is_between(count, fastest):
            return False
        return fastest == "model" or (
            self._is_comparable and self.ms("model", count) >= CLEAR * self.ms(fastest, count)
        )


def rungs(batch_size: int) -> list[int]:
    """Batch sizes that are raced in any case, in order: 1, 4, 16 and so on, and the largest.

    Sixteen images are the most that one instruction takes.
    """
    return sorted({batch_size, *_powers_of_two(batch_size)[::2]})


def _powers_of_two(most: int) -> list[int]:
    return [2**at for at in range(most.bit_length())]


def raced(plain: Run, other: Run, images: Tensor, *, most: int = MOST_ROUNDS) -> Compared:
    """Compare two ways of running these images; see :func:`dcn_plugin.engine.clock.compared`."""
    with torch.inference_mode():
        return compared(lambda: plain(images), lambda: other(images), images.device, most=most)


def climb(
    ways: Mapping[Way, Run],
    size: tuple[int, int, int],
    batch_size: int,
    *,
    by_vector: bool,
    cut: bool,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Ladder:
    """Race the ways at few batch sizes, from 1 up, and at the powers of two between them if it is not clear who wins.

    It is clear if the same way is the fastest at both sizes around, and is predicted to be faster than the model by a
    reserve. With the largest batch images are not raced where rows are faster than what is predicted for them, by the
    same reserve.

    Args:
        ways: what runs a batch; "model" is the model as it is.
        size: (C, H, W) of the images.
        batch_size: the largest.
        by_vector: see :class:`Ladder`; ``cut`` too.
        cut: whether a batch may be cut.
        device: that they compute on.
        dtype: of the images.
    """
    ladder = Ladder([], by_vector, cut)

    def measure(count: int) -> None:
        images = torch.rand(count, *size, device=device, dtype=dtype)
        expected_ms = ladder.ms("images", count) if count == batch_size else 0.0
        ladder.rungs.append(_rung(ways, images, expected_ms))
        ladder.rungs.sort(key=lambda rung: rung.batch_size)

    first = rungs(batch_size)
    for count in first:
        measure(count)
    for count in _powers_of_two(batch_size):
        if count not in first and not ladder.is_clear(count):
            measure(count)
    return ladder


def _rung(ways: Mapping[Way, Run], images: Tensor, expected_ms: float) -> Rung:
    """Each way takes the place of the fastest one so far if it is not slower on the whole model.

    Args:
        ways: what runs a batch.
        images: the batch.
        expected_ms: what is predicted for images; 0: nothing is.
    """
    allowed: list[Way] = ["model"]
    ms: dict[Way, float] = {}
    one_thread = False
    for way in [way for way in ("compact", "images") if way in ways]:
        fastest = allowed[0]
        if fastest == "compact" and expected_ms >= CLEAR * ms["compact"]:
            if ms["model"] >= CLEAR * expected_ms:
                allowed.insert(1, way)
            break
        # Of two ways that are faster than the model either will do: a round tells.
        most = MOST_ROUNDS if fastest == "model" else 1
        try:
            run = raced(ways[fastest], ways[way], images, most=most)
        except (RuntimeError, ValueError):
            if _takes(ways["model"], images):
                raise
            return Rung(len(images), ("model",))
        if not ms:
            ms["model"], one_thread = run.plain_ms, run.one_thread
        ms[way] = ms[fastest] * run.other_ms / run.plain_ms
        if run.gain >= 1:
            allowed.insert(0, way)
        elif fastest != "model" and ms["model"] >= CLEAR * ms[way]:
            allowed.insert(1, way)
    return Rung(len(images), tuple(allowed), ms, one_thread)


def _takes(model: Run, images: Tensor) -> bool:
    """Whether the model takes this many images: one that normalises by its batch may refuse a single one."""
    try:
        with torch.inference_mode(), steady(images.device):
            model(images)
    except (RuntimeError, ValueError):
        return False
    return True

"""What compact() decided, layer by layer, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dcn_plugin.support.table import aligned

__all__ = ["LayerPlan", "Plan", "Way", "pieces"]

Way = Literal["compact", "images", "model"]
"""How a batch runs: the layers as planned; all on images, batch norm folded; the model as it is, masks included."""


def pieces(count: int, sizes: Sequence[int]) -> tuple[list[int], int]:
    """Cut a number of images into pieces of these sizes, the largest first, and what is left.

    Example:
        >>> pieces(53, (16, 8, 4))
        ([16, 16, 16, 4], 1)
    """
    cut: list[int] = []
    for size in sizes:
        cut += [size] * (count // size)
        count %= size
    return cut, count


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One convolution (or batch norm of its own).

    Args:
        name: of its module.
        shape: (C, H, W) of its output.
        dense: multiply-adds of one image, without defects.
        live: multiply-adds that have a live input and a live output.
        packed_bytes: memory of its lists of rows; on images that of its weights where they are laid out anew, or 0.
        dense_ms: milliseconds a batch on images, as it would run there, of a large batch by a part of it; None: not
            measured.
        rows_ms: milliseconds a batch on rows; None: not measured.
        backend: what runs it: "reference", "c", "triton", or "dense".
        reason: why.
    """

    name: str
    shape: tuple[int, int, int]
    dense: int
    live: int
    packed_bytes: int
    dense_ms: float | None
    rows_ms: float | None
    backend: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What runs how; ``print(plan)`` shows it as a table.

    Args:
        layers: all convolutions in order.
        backend: of the layers that run on rows.
        batch_size: at which was measured.
        dense_ms: milliseconds a batch of the whole model as it is, masks included; None: not measured.
        compact_ms: the same, as planned.
        least_batch: from this batch size on, up to the measured one, the layers run as planned; one more than the
            measured one if they do not.
        ways: (first batch size, way), in order: how batches of each size run. Empty: as planned from ``least_batch``
            on, smaller ones on images.
        chunks: batches that run as planned are cut into pieces of these sizes, the largest first; what is left runs as
            a batch of its own. Empty: they are not cut.
        raced: batch sizes at which the whole was raced against the model; for the others that is predicted.
        note: what else there is to say, such as why another backend was not taken.
    """

    layers: tuple[LayerPlan, ...]
    backend: str
    batch_size: int
    dense_ms: float | None
    compact_ms: float | None
    least_batch: int
    ways: tuple[tuple[int, Way], ...] = ()
    chunks: tuple[int, ...] = ()
    raced: tuple[int, ...] = ()
    note: str = ""

    def way(self, batch_size: int) -> Way:
        """How a batch of this many images runs."""
        ways = self.ways or ((1, "images"), (self.least_batch, "compact"))
        return next((way for first, way in reversed(ways) if first <= batch_size), ways[0][1])

    def parts(self, batch_size: int) -> list[tuple[int, Way]]:
        """The pieces that a batch of this many images is cut into, and how each of them runs."""
        way = self.way(batch_size)
        if way != "compact" or not self.chunks or not batch_size:
            return [(batch_size, way)]
        cut, left = pieces(batch_size, self.chunks)
        return [*((size, way) for size in cut), *([(left, self.way(left))] if left else [])]

    @property
    def packed_bytes(self) -> int:
        """Memory of all lists of rows, and of weights that are laid out anew."""
        return sum(layer.packed_bytes for layer in self.layers)

    @property
    def ideal(self) -> float:
        """Dense multiply-adds divided by those that the plan leaves: the speed-up if each took the same time."""
        left = sum(layer.dense if layer.backend == "dense" else layer.live for layer in self.layers)
        return sum(layer.dense for layer in self.layers) / max(left, 1)

    def __str__(self) -> str:
        head = (
            "layer",
            "output",
            "dense MMAC",
            "live MMAC",
            "share",
            "packed KiB",
            "dense ms",
            "rows ms",
            "runs on",
            "why",
        )
        cells = [
            (
                layer.name,
                "x".join(map(str, layer.shape)),
                f"{layer.dense / 1e6:.2f}",
                f"{layer.live / 1e6:.2f}",
                f"{layer.live / max(layer.dense, 1):.3f}",
                f"{layer.packed_bytes / 1024:.0f}",
                _ms(layer.dense_ms),
                _ms(layer.rows_ms),
                layer.backend,
                layer.reason,
            )
            for layer in self.layers
        ]
        return "\n".join([*aligned([head, *cells], "llrrrrrrll"), "", *self._summary()])

    def _summary(self) -> list[str]:
        on_images = sum(layer.packed_bytes for layer in self.layers if layer.backend == "dense")
        weights = f"; weights laid out once: {on_images / 2**20:.1f} MiB" if on_images else ""
        lists = f"lists of rows: {(self.packed_bytes - on_images) / 2**20:.1f} MiB"
        chunks = f"; {', '.join(map(str, self.chunks))} images at a time" if self.chunks else ""
        lines = [
            f"backend {self.backend}, batch {self.batch_size}{chunks}; {self._ways()}",
            f"multiply-adds: {self.ideal:.2f} times fewer; {lists}{weights}",
        ]
        if self.dense_ms is not None and self.compact_ms is not None:
            ratio = self.dense_ms / self.compact_ms
            lines.append(
                f"measured: {self.dense_ms:.2f} ms the model as it is, {self.compact_ms:.2f} ms compact: {ratio:.2f}x"
            )
        if self.raced:
            sizes = ", ".join(map(str, self.raced))
            lines.append(f"raced at batches of {sizes}; predicted at the others from what it took there")
        return lines + ([self.note] if self.note else [])

    def _ways(self) -> str:
        if not self.ways:
            return f"smaller batches than {self.least_batch} run on images"
        phrases = {"compact": "as planned", "images": "on images", "model": "as the model is"}
        return "batches run " + ", ".join(f"{phrases[way]} from {first} on" for first, way in self.ways)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

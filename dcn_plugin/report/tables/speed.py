"""The table of speeds: a compact model beside its dense twin."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.engine.sweep import SpeedPoint
from dcn_plugin.support.number_format import DASH, number
from dcn_plugin.support.table import Table

__all__ = ["speed_table"]


def speed_table(points: Sequence[SpeedPoint]) -> Table:
    """A row a measurement, in their order."""
    note = (
        "Speed-up: the time of the same network without masks (batch norm folded, channels_last) over that of the "
        "compact one, median and quartiles over rounds that were timed in turn. Ideal: the live multiply-adds at the "
        "dense kernels' own rate. Runs on: dense where images are faster than rows. Error: of the logits, relative to "
        "the largest."
    )
    return Table(
        "Speed of compact models",
        ("network", "p", "batch", "dense ms", "compact ms", "speed-up", "quartiles", "ideal", "of the ideal", "runs on",
         "lists MiB", "compact() s", "error"),
        tuple(_row(point) for point in points),
        note,
        "lrrrrrrrrlrrr",
    )  # fmt: skip


def _row(point: SpeedPoint) -> tuple[str, ...]:
    speed = point.speed
    low, high = speed.quartiles
    return (
        point.network,
        number(point.p),
        str(speed.batch_size),
        f"{speed.dense_ms:.2f}",
        f"{speed.compact_ms:.2f}",
        f"{speed.speedup:.2f}x",
        f"{low:.2f}{DASH}{high:.2f}",
        f"{speed.ideal:.2f}x",
        f"{100 * speed.share_of_ideal:.0f} %",
        speed.backend,
        f"{speed.packed_bytes / 2**20:.1f}",
        f"{speed.compact_seconds:.1f}",
        f"{speed.relative_error:.0e}",
    )

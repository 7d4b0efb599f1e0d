from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from dcn_plugin.engine.bench import Speed
from dcn_plugin.engine.sweep import SpeedPoint
from dcn_plugin.errors import RecordError
from dcn_plugin.report import speed_png, speed_table

SPEED = Speed(
    batch_size=8,
    backend="c",
    dense_ms=10.0,
    compact_ms=5.0,
    speedup=2.0,
    quartiles=(1.75, 2.25),
    ideal=2.5,
    packed_bytes=3 * 2**20,
    compact_seconds=0.75,
    relative_error=2e-7,
)
POINTS = [
    SpeedPoint(network=network, p=p, speed=dataclasses.replace(SPEED, batch_size=batch, speedup=batch / p))
    for network in ("net", "another network")
    for p in (0.1, 0.5)
    for batch in (1, 8)
]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_row_of_the_table_says_what_was_measured() -> None:
    table = speed_table([SpeedPoint(network="net", p=0.3, speed=SPEED)])
    assert table.rows == (
        ("net", "0.3", "8", "10.00", "5.00", "2.00x", "1.75–2.25", "2.50x", "80 %", "c", "3.0", "0.8", "2e-07"),
    )
    assert "without masks" in table.note


def test_the_table_keeps_the_order_of_the_measurements() -> None:
    rows = [(row[0], row[1], row[2]) for row in speed_table(POINTS).rows]
    assert rows == [(point.network, str(point.p), str(point.speed.batch_size)) for point in POINTS]


@pytest.mark.parametrize("points", [POINTS, POINTS[:1], POINTS[:2] + POINTS[4:5]], ids=["all", "one", "some"])
def test_speeds_are_drawn(points: list[SpeedPoint]) -> None:
    drawn = pixels(speed_png(points))
    assert drawn.shape[0] > 100
    assert len(np.unique(drawn.reshape(-1, drawn.shape[2]), axis=0)) > 20


def test_another_speed_gives_another_picture_and_the_same_one_the_same() -> None:
    faster = [dataclasses.replace(point, speed=dataclasses.replace(point.speed, speedup=40.0)) for point in POINTS[:2]]
    assert speed_png(POINTS[:2]) == speed_png(POINTS[:2])
    assert speed_png(POINTS[:2]) != speed_png(faster)


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(RecordError):
        speed_png([])

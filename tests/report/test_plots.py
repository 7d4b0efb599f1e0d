from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from dcn_plugin.errors import MissingExtraError, RecordError
from dcn_plugin.evaluate import ExampleRow, Examples, Result
from dcn_plugin.report import examples_png, rate_png
from dcn_plugin.report.plots import Rate
from tests.toy_records import noise_record, record

RESULTS = [
    record(seed=seed, target=target, eps=eps, n_correct=45 + 5 * seed)
    for seed in (0, 1)
    for eps in (0.1, 0.2)
    for target in ("standard", "p=0.1")
]


def draw(results: list[Result], protocol: str = "transfer", rate: Rate = "accuracy") -> bytes:
    return rate_png(results, protocol=protocol, rate=rate, xlabel="eps", ylabel="%")


def example_images(count: int = 3, channels: int = 1, masks: bool = True) -> Examples:
    x = np.linspace(0, 1, count * channels * 16, dtype=np.float32).reshape(count, channels, 4, 4)
    rows = tuple(ExampleRow(title, x, {"source": np.zeros(count, np.int64)}) for title in ("clean", "eps 0.2"))
    return Examples("Chosen.", np.arange(count), rows, {"stem": np.eye(4, dtype=np.bool_)} if masks else {})


@pytest.mark.parametrize(
    "png",
    [
        lambda: draw(RESULTS),
        lambda: draw(RESULTS, rate="defense"),
        lambda: draw([record()]),
        lambda: draw([record(target=str(i)) for i in range(9)]),
        lambda: draw([noise_record()], protocol="gaussian"),
        lambda: examples_png(example_images()),
        lambda: examples_png(example_images(count=1, channels=3, masks=False)),
    ],
    ids=["accuracy", "defence", "one point", "more lines than colours", "noise", "examples", "colour, no masks"],
)
def test_a_plot_is_a_png_with_something_on_it(png: object) -> None:
    assert callable(png)
    pixels = np.asarray(Image.open(io.BytesIO(png())).convert("L"))
    assert min(pixels.shape) > 150
    assert 0.005 < (pixels < 128).mean() < 0.6


def test_the_same_records_give_the_same_file() -> None:
    assert draw(RESULTS) == draw(RESULTS)


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(RecordError, match="'gaussian'"):
        draw(RESULTS, protocol="gaussian")


def test_a_plot_of_accuracy_needs_no_defence_rate() -> None:
    nobody = record(n_clean_correct=0, n_counted=0, n_defended=0)
    draw([nobody])
    with pytest.raises(RecordError):
        draw([nobody], rate="defense")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'pip install "dcn-plugin\[report\]"'):
        draw(RESULTS)

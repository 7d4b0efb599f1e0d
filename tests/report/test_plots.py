from __future__ import annotations

import dataclasses
import io
import sys

import numpy as np
import pytest
from PIL import Image

from dcn_plugin.errors import MissingExtraError, RecordError
from dcn_plugin.evaluate import ExampleRow, Examples, Result
from dcn_plugin.report import distance_png, examples_png, heatmap_png, matrices, rate_png
from dcn_plugin.report.plots import Rate
from dcn_plugin.report.plots.canvas import wrapped
from tests.toy_records import distance_record, matrix_records, noise_record, record, shuffle_record

RESULTS = [
    record(seed=seed, target=target, eps=eps, n_correct=45 + 5 * seed)
    for seed in (0, 1)
    for eps in (0.1, 0.2)
    for target in ("standard", "p=0.1")
]


MANY = [result for seed in (0, 1) for eps in (0.1, 0.2) for result in matrix_records(seed=seed, eps=eps)]


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
        lambda: draw(matrix_records()),
        lambda: draw([shuffle_record(k=k) for k in (2, 4, 8)], protocol="shuffle"),
        lambda: heatmap_png(matrices(matrix_records()), rate="defense", label="%"),
        lambda: heatmap_png(matrices(MANY[:-1]), rate="accuracy", label="%"),
        lambda: distance_png([distance_record(), distance_record(2e-2, target="far"), distance_record(None, eps=0.1)]),
        lambda: examples_png(example_images()),
        lambda: examples_png(example_images(count=1, channels=3, masks=False)),
    ],
    ids=[
        "accuracy",
        "defence",
        "one point",
        "more lines than colours",
        "noise",
        "a panel a source",
        "shuffle",
        "matrix",
        "matrices with a gap",
        "distances",
        "examples",
        "colour, no masks",
    ],
)
def test_a_plot_is_a_png_with_something_on_it(png: object) -> None:
    assert callable(png)
    pixels = np.asarray(Image.open(io.BytesIO(png())).convert("L"))
    assert min(pixels.shape) > 50
    assert 0.005 < (pixels < 128).mean() < 0.6


def test_the_same_records_give_the_same_file() -> None:
    assert draw(RESULTS) == draw(RESULTS)


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(RecordError, match="'gaussian'"):
        draw(RESULTS, protocol="gaussian")
    with pytest.raises(RecordError, match="distance"):
        distance_png([*RESULTS, distance_record(None)])


def test_a_plot_of_accuracy_needs_no_defence_rate() -> None:
    nobody = record(n_clean_correct=0, n_counted=0, n_defended=0)
    draw([nobody])
    with pytest.raises(RecordError):
        draw([nobody], rate="defense")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'pip install "dcn-plugin\[report\]"'):
        draw(RESULTS)


def test_a_heat_map_grows_with_its_strengths_and_marks_the_white_box() -> None:
    def size(matrix_count: int) -> tuple[int, int]:
        png = heatmap_png(matrices(MANY)[:matrix_count], rate="defense", label="%")
        return Image.open(io.BytesIO(png)).size

    assert size(2)[1] > 1.5 * size(1)[1]
    plain = [dataclasses.replace(result, relation="other network") for result in matrix_records()]
    marked, unmarked = (
        heatmap_png(matrices(results), rate="defense", label="%") for results in (matrix_records(), plain)
    )
    assert marked != unmarked


@pytest.mark.parametrize("targets", [("vgg",), ("vgg", "standard"), ("vgg", "standard", "p=0.1", "p=0.3")])
@pytest.mark.parametrize("strengths", [1, 2])
def test_no_letter_of_a_heat_map_is_cut(targets: tuple[str, ...], strengths: int) -> None:
    relations = {("vgg", "vgg"): "same network", ("resnet", targets[-1]): "other masks"}
    results = [
        record(source=source, target=target, eps=eps, relation=relations.get((source, target), "other network"))
        for source in ("vgg", "resnet")
        for target in targets
        for eps in (0.1, 0.2)[:strengths]
    ]
    pixels = np.asarray(Image.open(io.BytesIO(heatmap_png(matrices(results), rate="defense", label="%"))).convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() > 200


def test_names_break_where_words_do() -> None:
    assert wrapped("defective_resnet18 p=0.1", 14) == "defective_\nresnet18 p=0.1"
    assert wrapped("short", 14) == "short"
    assert max(map(len, wrapped("x" * 60, 14).split("\n"))) == 28

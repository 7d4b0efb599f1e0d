"""What is drawn of a transfer matrix, read off the figure before it becomes a picture."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.patches import Rectangle

from dcn_plugin.evaluate import Result
from dcn_plugin.report import heatmap_png, matrices
from dcn_plugin.report.plots import matrix
from tests.toy_records import matrix_records


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draw the matrices of records, and give the figure."""
    monkeypatch.setattr(matrix, "to_png", lambda figure: figure)
    return lambda results, rate="defense": heatmap_png(matrices(results), rate=rate, label="%")


def texts(panel: Any) -> list[str]:
    return [text.get_text() for text in panel.texts]


def frames(panel: Any) -> list[str]:
    return [patch.get_linestyle() for patch in panel.patches if isinstance(patch, Rectangle)]


def test_every_cell_says_its_rate(draw: Any) -> None:
    panel, _ = draw(matrix_records()).axes
    assert texts(panel) == ["0.0", "50.0", "50.0", "50.0"]
    panel, _ = draw(matrix_records()[:-1], rate="accuracy").axes
    assert texts(panel) == ["45.0", "45.0", "45.0", "–"]


def test_several_runs_have_a_deviation_below_their_mean(draw: Any) -> None:
    runs: list[Result] = [*matrix_records(), *matrix_records(seed=1)]
    assert texts(draw(runs).axes[0]) == ["0.0", "± 0.0", "50.0", "± 0.0", "50.0", "± 0.0", "50.0", "± 0.0"]


def test_a_frame_marks_the_white_box_and_the_legend_says_what_it_is(draw: Any) -> None:
    figure = draw(matrix_records())
    assert frames(figure.axes[0]) == ["-"]
    (legend,) = figure.legends
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()] == [
        "white-box: the source is or holds the target"
    ]


def test_strengths_stand_one_below_the_other_under_their_eps(draw: Any) -> None:
    figure = draw([*matrix_records(), *matrix_records(eps=8 / 255, attack_settings={})])
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert [title for title in titles if title] == ["eps 0.2", "eps 8/255"]

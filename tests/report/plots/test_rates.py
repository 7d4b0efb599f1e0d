"""What is drawn of a rate over a strength, read off the figure before it becomes a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dcn_plugin.evaluate import Result
from dcn_plugin.report import rate_png
from dcn_plugin.report.plots import Rate, rates
from tests.toy_records import matrix_records, noise_record, record, shuffle_record


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draw records, and give the panels."""
    monkeypatch.setattr(rates, "to_png", lambda figure: figure)

    def draw(results: list[Result], protocol: str = "transfer", rate: Rate = "accuracy") -> list[Any]:
        figure: Any = rate_png(results, protocol=protocol, rate=rate, xlabel="strength", ylabel="%")
        return list(figure.axes)

    return draw


def ticks(panel: Any) -> list[str]:
    return [label.get_text() for label in panel.get_xticklabels()]


def test_grey_levels_are_counted_and_the_clean_accuracy_stands_at_no_change(axes: Any) -> None:
    (panel,) = axes([record(eps=eps / 255, attack_settings={}) for eps in (8, 16)])
    assert ticks(panel) == ["0", "8", "16"]
    assert panel.get_xlabel() == "strength, in 1/255"
    np.testing.assert_allclose(panel.lines[0].get_xydata(), [(0, 90), (8 / 255, 45), (16 / 255, 45)])


def test_other_strengths_say_what_they_are_a_part_of(axes: Any) -> None:
    (panel,) = axes([noise_record()], protocol="gaussian")
    assert ticks(panel) == ["0", "0.2"]
    assert panel.get_xlabel() == "strength (pixels lie in [0, 1])"


def test_a_strength_that_is_a_count_has_no_unit_and_starts_where_an_image_is_as_it_was(axes: Any) -> None:
    (panel,) = axes([shuffle_record(k=k) for k in (2, 8)], protocol="shuffle")
    assert ticks(panel) == ["1", "2", "8"]
    assert panel.get_xlabel() == "strength"
    assert panel.get_xscale() == "log"
    np.testing.assert_allclose(panel.lines[0].get_xydata(), [(1, 90), (2, 45), (8, 45)])


def test_a_defence_rate_has_no_clean_value_and_bars_hold_its_interval(axes: Any) -> None:
    (panel,) = axes([record()], rate="defense")
    np.testing.assert_allclose(panel.lines[0].get_xydata(), [(0.2, 50)])
    (bar,) = (segment for line in panel.collections for segment in line.get_segments())
    np.testing.assert_allclose(bar[:, 1], [39.29, 60.71], atol=0.02)


def test_single_runs_stand_beside_their_mean(axes: Any) -> None:
    (panel,) = axes([record(seed=seed, n_correct=45 + 10 * seed, n_clean_correct=90) for seed in (0, 1)])
    runs = [line.get_ydata() for line in panel.lines if line.get_markerfacecolor() == "white"]
    np.testing.assert_allclose(np.sort(runs), [[90, 90], [45, 55]])


def test_panels_are_named_by_what_sets_them_apart_and_labelled_at_the_edges(axes: Any) -> None:
    results = [*matrix_records(), *matrix_records(attack="FGSM")]
    panels = axes([result for result in results if (result.source, result.attack) != ("resnet", "FGSM")])
    assert [panel.get_title() for panel in panels] == ["PGD, source vgg", "PGD, source resnet", "FGSM, source vgg"]
    assert [bool(panel.get_xlabel()) for panel in panels] == [False, True, True]
    assert [bool(panel.get_ylabel()) for panel in panels] == [True, False, True]

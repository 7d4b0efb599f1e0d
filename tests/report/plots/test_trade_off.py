from __future__ import annotations

import pytest

from dcn_plugin.errors import RecordError
from dcn_plugin.report.plots import trade_off_png

pytest.importorskip("matplotlib")
GROUPS = {"without masks": [("", 0.95, 0.1)], "round 1": [("p=0.5", 0.93, 0.3), ("p=0.3", 0.9, 0.4)]}


def test_a_picture_shows_every_network_and_the_least_clean_accuracy() -> None:
    picture = trade_off_png(GROUPS, least=0.92)
    assert picture.startswith(b"\x89PNG")
    assert picture == trade_off_png(GROUPS, least=0.92), "the same networks give the same file"
    others = [
        trade_off_png(GROUPS),
        trade_off_png(GROUPS, least=0.94),
        trade_off_png({**GROUPS, "round 1": GROUPS["round 1"][:1]}, least=0.92),
    ]
    assert len({picture, *others}) == 4


@pytest.mark.parametrize("groups", [{}, {"round 1": []}])
def test_nothing_to_draw_is_refused_by_name(groups: dict[str, list[tuple[str, float, float]]]) -> None:
    with pytest.raises(RecordError, match="no network"):
        trade_off_png(groups)

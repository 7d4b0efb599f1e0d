"""The house stays as small as it was built: a new arrow, a second way of doing a thing is noticed here."""

from __future__ import annotations

import pytest

from tests import house

MOST = {
    "quoted protocol names in cli, experiments, report": (15, lambda: len(house.quoted_protocol_names())),
    "files that know a protocol's name": (4, lambda: len(house.files_that_know("shuffle"))),
    "rooms": (20, lambda: len(house.rooms())),
    "floors": (11, house.floors),
    "arrows between rooms": (110, lambda: sum(map(len, house.arrows().values()))),
    "modules loose in the root": (4, lambda: len(house.loose_modules())),
}
ONCE = {
    "did you mean": house.DID_YOU_MEAN,
    "derived seeds": house.DERIVED_SEEDS,
    "progress that catches up": house.CATCH_UP,
    "text tables": house.TEXT_TABLES,
}


@pytest.mark.parametrize("name", MOST)
def test_a_measure_keeps_its_bound(name: str) -> None:
    bound, measure = MOST[name]
    assert measure() <= bound


@pytest.mark.parametrize("name", ONCE)
def test_a_thing_is_done_in_one_place(name: str) -> None:
    assert len(house.places(ONCE[name])) == 1


def test_a_word_counts_where_the_code_says_it() -> None:
    assert "shuffle" in house.words_of("from dcn_plugin.evaluate.protocols import shuffle")
    assert "shuffle" in house.words_of('kind == "shuffle"')
    assert "shuffle" not in house.words_of('"""We shuffle."""  # shuffle\nshuffled = 1')
    assert sorted(set(house.imported_rooms("import dcn_plugin.data\nfrom dcn_plugin import defectify, errors"))) == [
        "__init__",
        "data",
        "errors",
    ]

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin.evaluate import ResultFile
from dcn_plugin.experiments.commentary import Finding
from dcn_plugin.experiments.comparison import Number
from dcn_plugin.experiments.paper_tables import CLEAN
from dcn_plugin.experiments.recipe import RecipeSpec, list_recipes, load_recipe, recipes_root
from dcn_plugin.experiments.verdict import FACTOR, Word, headline, judge, judge_claim, verdict_of
from tests.experiments.recipe_files import TINY, write_recipe
from tests.experiments.test_effects import DEFECTIVE, STANDARD, number
from tests.toy_records import distance_record

COMMITTED = [name for name in list_recipes(recipes_root()) if (recipes_root() / name / "record.json").is_file()]


@pytest.mark.parametrize(
    ("ours", "low", "high", "paper", "word"),
    [
        # Rule 1: the whole interval lies within the noise of the paper's effect, 2 points, or just does not.
        (0.0, -1.0, 1.0, 0.5, "agrees"),
        (0.0, -1.5, 1.5, 0.5, "agrees"),
        (0.0, -1.51, 1.5, 0.5, "undecided"),
        # Rule 2: the interval meets the paper's effect; with zero in it nothing is decided.
        (30.0, 25.0, 35.0, 36.9, "agrees"),
        (10.0, 0.1, 20.0, 20.0, "agrees"),
        (10.0, 0.0, 20.0, 20.0, "undecided"),
        (-20.0, -45.0, 10.0, -3.2, "undecided"),
        # Rule 3: the other sign, beyond our noise or not.
        (-5.0, -9.9, -0.1, 30.0, "contradicts"),
        (-5.0, -10.0, 0.0, 30.0, "weaker"),
        (5.0, 3.0, 7.0, -1.0, "contradicts"),
        (5.0, 0.9, 9.0, -1.0, "agrees"),  # within the noise of the paper's
        # Rule 4: within a factor of 1.5, or just not.
        (40.0, 38.0, 42.0, 60.0, "agrees"),
        (39.9, 38.0, 42.0, 60.0, "weaker"),
        (60.0, 58.0, 62.0, 40.0, "agrees"),
        (60.1, 58.0, 62.0, 40.0, "stronger"),
        # Rule 5: none at all is weaker; the paper's effect is excluded, whatever sign ours has.
        (3.0, -3.0, 9.0, 60.0, "weaker"),
        (-3.0, -9.0, 3.0, 60.0, "weaker"),
        (-40.0, -45.0, -35.0, -10.0, "stronger"),
        (5.0, 2.5, 7.5, 0.0, "stronger"),
    ],
)
def test_every_word_on_both_sides_of_its_threshold(
    ours: float, low: float, high: float, paper: float, word: Word
) -> None:
    assert judge(ours, low, high, paper, noise=2.0) == word
    assert judge(-ours, -high, -low, -paper, noise=2.0) == word


@given(st.floats(3, 90), st.floats(1 / FACTOR + 0.01, FACTOR - 0.01), st.sampled_from([-1, 1]))
def test_the_other_sign_turns_agrees_into_contradicts_where_the_noise_is_small(
    size: float, factor: float, sign: int
) -> None:
    paper, ours = sign * size, sign * size * factor
    words = [judge(one, one - 0.1, one + 0.1, paper, noise=2.0) for one in (ours, -ours)]
    assert words == ["agrees", "contradicts"]


@given(st.floats(-100, 100), st.floats(0.01, 50), st.floats(-100, 100), st.floats(0, 5))
def test_a_word_depends_on_the_relation_of_the_signs_only(ours: float, half: float, paper: float, noise: float) -> None:
    one = judge(ours, ours - half, ours + half, paper, noise=noise)
    assert one == judge(-ours, -ours - half, -ours + half, -paper, noise=noise)
    if one == "undecided":
        assert abs(ours) <= half and abs(ours - paper) <= half + noise + 1e-9
    if one == "contradicts":
        assert ours * paper < 0 and abs(ours) > half


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 5.0, "agrees"), (0.0, 5.0, "undecided"), (-5.0, -0.1, "contradicts")]
)
def test_a_claim_in_words_is_held_against_the_sign_beyond_the_noise(low: float, high: float, word: Word) -> None:
    assert judge_claim(low, high, "higher") == word
    assert judge_claim(-high, -low, "lower") == word


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], "not compared"),
        (["undecided"] * 3, "undecided"),
        (["undecided"] * 9 + ["agrees"], "undecided"),
        (["undecided"] * 8 + ["agrees"], "agrees"),
        (["weaker"] * 3 + ["agrees"] * 2 + ["undecided"] * 4, "weaker"),
        (["weaker"] * 2 + ["agrees"] * 2, "mixed"),
        (["weaker", "agrees", "contradicts"], "mixed"),
        (["contradicts"] * 2 + ["agrees"], "contradicts"),
        (["stronger"], "stronger"),
    ],
)
def test_the_word_of_a_record_needs_more_than_half_of_what_is_decided(words: list[Word], found: str) -> None:
    assert headline(words) == found


@pytest.fixture
def spec(tmp_path: Path) -> RecipeSpec:
    text = TINY.replace('"ResNet-18 0.3-Bottom"]', '"ResNet-18 0.3-Bottom", "ResNet-18 0.5-Bottom"]')
    return load_recipe(write_recipe(tmp_path, text))


def column(name: str, paper: float | None, ours: float, **changes: Any) -> list[Number]:
    """The standard row with 20 %, of the paper 10 %, and a defective one with an effect."""
    both = {"column": name, **changes}
    return [
        number(STANDARD, 20.0, paper=None if paper is None else 10.0, difference=10.0, **both),
        number(DEFECTIVE, 20.0 + ours, paper=None if paper is None else 10.0 + paper, difference=1.0, **both),
    ]


def test_the_sentence_counts_the_words_and_says_by_how_much(spec: RecipeSpec) -> None:
    table = [
        *column("a", 60.0, 25.0),
        *column("b", 50.0, 22.0),
        *column("c", 30.0, 29.0),
        *column("d", 20.0, -9.0),
        *column("e", 4.0, 1.0, inferred=True),
        *column(CLEAN, -3.5, -16.0, figure="clean_accuracy"),
    ]
    found = verdict_of(spec, table, ())
    assert [found.words[one] for one in found.effects[:5]] == ["weaker", "weaker", "agrees", "contradicts", "undecided"]
    assert found.headline == "mixed"
    assert found.short == "mixed (weaker 2, agrees 1, contradicts 1, undecided 1)"
    assert found.sentence.startswith(
        "Mixed (width 16, 8 epochs, 1 seed): of 5 effects 2 are weaker, 1 agrees, 1 contradicts and 1 is undecided; "
        "4 of 5 have the paper's sign; median in the paper's direction +22.0 points, the paper's +30.0 points (95 %"
    )
    assert "; 1 of 5 under a label or setting that we inferred." in found.sentence
    assert found.sentence.endswith("Clean accuracy: -16.0 points in the median, the paper's -3.5.")


@pytest.mark.parametrize(("ours", "head"), [(52.0, "Agrees with the paper"), (-12.0, "Contradicts the paper")])
def test_a_finding_against_the_method_is_told_as_plainly_as_one_for_it(
    spec: RecipeSpec, ours: float, head: str
) -> None:
    found = verdict_of(spec, column("a", 50.0, ours), ())
    assert found.sentence.startswith(f"{head} (width 16, 8 epochs, 1 seed): its one effect ")
    assert f"median in the paper's direction {ours:+.1f} points, the paper's +50.0 points" in found.sentence


def test_a_handful_of_images_decides_nothing(spec: RecipeSpec) -> None:
    table = [
        number(STANDARD, 100 * right / 15, column=name, counted=15, paper=80.0) for name, right in (("2", 13), ("8", 6))
    ]
    table += [
        number(DEFECTIVE, 100 * right / 15, column=name, counted=15, paper=60.0)
        for name, right in (("2", 10), ("8", 8))
    ]
    found = verdict_of(spec, table, ())
    assert (found.headline, found.short) == ("undecided", "undecided (undecided 2)")
    assert "another data set" in found.sentence


def test_effects_that_the_paper_does_not_have_are_told_and_not_judged(spec: RecipeSpec) -> None:
    found = verdict_of(spec, [*column("a", 50.0, 52.0), *column("swap", None, -4.0)], ())
    assert len(found.words) == 1
    assert f"Not in the paper's table: swap, {DEFECTIVE} -4.0 points (-" in found.sentence


def test_without_numbers_of_the_paper_our_effects_are_all_there_is(spec: RecipeSpec) -> None:
    found = verdict_of(spec, [*column("a", None, 4.0), *column("b", None, 8.0)], ())
    assert (found.headline, found.words) == ("not compared", {})
    assert "the paper gives no numbers for it; median over the columns: " in found.sentence
    assert f"{DEFECTIVE} +6.0 points (+4.0 to +8.0) (95 % intervals ±" in found.sentence


def test_a_claim_in_words_is_what_is_compared_where_there_are_no_numbers(spec: RecipeSpec) -> None:
    claimed = dataclasses.replace(spec, finding=Finding("Why.", "higher", "noise harms less (A.2)."))
    table = [*column("a", None, 30.0), *column("b", None, 1.0), *column(CLEAN, None, -9.0, figure="clean_accuracy")]
    found = verdict_of(claimed, table, ())
    assert list(found.words.values()) == ["agrees", "undecided"]
    assert (
        "the paper says in words that noise harms less (A.2); of 2 effects 1 agrees and 1 is undecided"
        in found.sentence
    )
    lower = dataclasses.replace(spec, finding=Finding("Why.", "lower", "noise harms more"))
    assert verdict_of(lower, table, ()).headline == "contradicts"
    # Numbers count more than words.
    assert verdict_of(lower, column("a", 30.0, 30.0), ()).headline == "agrees"


def test_a_word_for_few_of_the_effects_says_so(spec: RecipeSpec) -> None:
    table = [*column("a", 50.0, 52.0), *column("b", 3.0, 1.0), *column("c", 3.0, 0.0)]
    found = verdict_of(spec, table, ())
    assert found.short == "agrees (agrees 1, undecided 2)"
    assert found.sentence.startswith("Agrees with the paper in what is decided (width 16, ")


@pytest.mark.parametrize("name", [name for name in list_recipes(recipes_root()) if name.startswith("table")])
def test_the_papers_own_numbers_never_differ_from_the_papers(name: str) -> None:
    spec = load_recipe(name)
    assert spec.numbers is not None
    figures = {"clean": "clean_accuracy", "median_squared_l2_per_element": "median_distance"}
    table = [
        number(row.label, value, column=column, figure=figures.get(column, "defense_rate"), counted=5000, paper=value)
        for row in spec.numbers.rows
        if row.label in spec.rows
        for column, value in row.values.items()
    ]
    found = verdict_of(spec, table, ())
    assert set(found.words.values()) <= {"agrees", "undecided"}
    assert found.headline == {"table06": "undecided", "table11": "not compared"}.get(name, "agrees")


def test_distances_are_told_as_a_factor(spec: RecipeSpec) -> None:
    figure = {"figure": "median_distance", "column": "boundary", "difference": 0.0}
    table = [number(STANDARD, 1e-4, paper=7e-6, **figure), number(DEFECTIVE, 3e-4, paper=3.5e-5, **figure)]
    results = [distance_record(1e-4, target=STANDARD), distance_record(3e-4, target=DEFECTIVE)]
    found = verdict_of(spec, table, results)
    assert found.headline == "agrees"  # ln 3 = 1.10 and ln 5 = 1.61 are less than a factor of 1.5 apart
    assert "median in the paper's direction x 3.00, the paper's x 5.00" in found.sentence
    assert verdict_of(spec, table, ()).headline == "undecided"
    assert math.isinf(verdict_of(spec, table, ()).effects[0].high)


def test_a_smoke_run_and_rows_without_a_standard_one_get_no_verdict(spec: RecipeSpec) -> None:
    smoke = verdict_of(spec, column("a", 50.0, 52.0, scale="smoke"), ())
    assert (smoke.headline, smoke.effects) == ("not compared", ())
    alone = verdict_of(spec, [number(DEFECTIVE, 50.0, paper=78.0)], ())
    assert (alone.headline, alone.short) == ("not compared", "not compared")
    assert "no row has a standard one beside it" in alone.sentence


@pytest.mark.parametrize("name", COMMITTED)
def test_every_committed_record_gets_a_verdict_and_a_handful_of_images_confirms_nothing_in_it(name: str) -> None:
    file = ResultFile.read(recipes_root() / name / "record.json")
    numbers = [Number(**one) for one in file.spec["numbers"]]
    found = verdict_of(load_recipe(name), numbers, file.results)
    assert f"width {file.spec['scale']['width']}" in found.sentence
    assert found.effects or not any(one.paper is not None for one in numbers)
    few = {(one.row, one.column) for one in numbers if one.counted < 30 and one.figure == "defense_rate"}
    for one in found.effects:
        assert one.low <= one.ours <= one.high
        if (one.row, one.column) in few and one.paper is not None and one.low <= one.paper <= one.high:
            # They may exclude a large effect of the paper; they never confirm one by being close to nothing.
            assert one.low > 0 or one.high < 0 or found.words[one] == "undecided"

from __future__ import annotations

from pathlib import Path

import pytest

from dcn_plugin.experiments.comparison import Number, compare, to_markdown
from dcn_plugin.experiments.measurements import Entry
from dcn_plugin.experiments.recipe import RecipeSpec, load_recipe
from tests.experiments.recipe_files import TINY, write_recipe
from tests.toy_records import record

ROW = "ResNet-18 0.3-Bottom"


def numbers(spec: RecipeSpec, *entries: Entry, scale: str = "full") -> dict[tuple[str, str], Number]:
    return {(one.row, one.column): one for one in compare(spec, spec.scale(scale), entries)}


@pytest.fixture
def spec(tmp_path: Path) -> RecipeSpec:
    return load_recipe(write_recipe(tmp_path))


def test_a_rate_is_in_percent_and_its_difference_is_ours_less_the_papers(spec: RecipeSpec) -> None:
    found = numbers(spec, Entry(ROW, "src_resnet18", "defense_rate", record()))
    one = found[ROW, "src_resnet18"]
    assert (one.ours, one.paper, one.counted) == (50.0, 78.23, 80)
    assert one.difference == pytest.approx(-28.23)
    assert (found[ROW, "clean"].ours, found[ROW, "clean"].paper) == (90.0, 91.83)


def test_the_other_denominator_counts_every_image(spec: RecipeSpec) -> None:
    one = numbers(spec, Entry(ROW, "src_resnet18", "accuracy_all", record()))[ROW, "src_resnet18"]
    assert (one.ours, one.counted) == (45.0, 100)


def test_seeds_are_averaged(spec: RecipeSpec) -> None:
    entries = [
        Entry(ROW, "src_resnet18", "defense_rate", record(seed=seed, n_defended=n, n_correct=70))
        for seed, n in ((0, 40), (1, 60))
    ]
    one = numbers(spec, *entries)[ROW, "src_resnet18"]
    assert (one.ours, one.seeds, one.counted) == (62.5, 2, 160)
    assert one.spread == pytest.approx(17.678, abs=1e-3)


def test_a_rate_without_images_is_none_and_no_zero(spec: RecipeSpec) -> None:
    empty = record(n_source_fooled=0, n_counted=0, n_defended=0)
    one = numbers(spec, Entry(ROW, "src_resnet18", "defense_rate", empty))[ROW, "src_resnet18"]
    assert (one.ours, one.difference) == (None, None)


def test_numbers_of_another_data_set_are_not_subtracted(spec: RecipeSpec) -> None:
    one = numbers(spec, Entry(ROW, "src_resnet18", "defense_rate", record()), scale="smoke")[ROW, "src_resnet18"]
    assert (one.ours, one.paper, one.difference) == (50.0, 78.23, None)


def test_the_clean_accuracy_is_that_of_the_cell_with_most_images(spec: RecipeSpec) -> None:
    few = record(n_total=95)
    found = numbers(
        spec,
        Entry(ROW, "src_resnet18", "defense_rate", few),
        Entry(ROW, "src_vgg19", "defense_rate", record()),
    )
    assert (found[ROW, "clean"].counted, found[ROW, "clean"].ours) == (100, 90.0)


def test_a_number_that_only_the_text_states_is_marked(tmp_path: Path) -> None:
    text = TINY.replace("[smoke]", f'[stated]\n"{ROW}" = {{ src_resnet18 = 51.6 }}\n[smoke]')
    spec = load_recipe(write_recipe(tmp_path, text))
    one = numbers(spec, Entry(ROW, "src_resnet18", "defense_rate", record()))[ROW, "src_resnet18"]
    assert (one.paper, one.inferred) == (51.6, True)


def test_the_table_shows_ours_the_papers_the_difference_and_what_it_is_worth(spec: RecipeSpec) -> None:
    found = compare(spec, spec.scale("small"), [Entry(ROW, "src_resnet18", "defense_rate", record())])
    text = to_markdown(spec, spec.scale("small"), found, facts={"Seeds": "0"})
    assert "| ResNet-18 0.3-Bottom | 50.00 (78.23, -28.23) | 90.00 (91.83, -1.83) |" in text
    assert "Scale small: width 16, 8 epochs" in text
    assert "no failure to reproduce" in text
    assert "- Seeds: 0" in text


def test_inferred_rows_and_columns_carry_a_star_and_skipped_rows_their_reason(tmp_path: Path) -> None:
    text = TINY.replace("table04_transfer_architectures", "table12_whitebox")
    text = text.replace('only = ["ResNet-18 standard", "ResNet-18 0.3-Bottom"]', 'only = ["0.3-Bottom"]')
    text = text.replace("[smoke]", '[skip]\n"0.5-Bottom" = "not rerun"\n[smoke]')
    spec = load_recipe(write_recipe(tmp_path, text))
    found = compare(spec, spec.scale("full"), [Entry("0.3-Bottom", "fgsm1", "defense_rate", record())])
    shown = to_markdown(spec, spec.scale("full"), found, facts={})
    assert "fgsm1*" in shown
    assert "| 0.5-Bottom: not rerun | (85.22) | (93.39) |" in shown
    assert "\\* inferred" in shown

from __future__ import annotations

from pathlib import Path

import pytest

from dcn_plugin.errors import SpecError
from dcn_plugin.experiments.commentary import FINDING, Finding, read_finding
from dcn_plugin.experiments.recipe import list_recipes, load_recipe, recipes_root
from tests.experiments.recipe_files import write_recipe


def test_a_finding_holds_the_reason_and_a_claim_with_its_words(tmp_path: Path) -> None:
    path = tmp_path / FINDING
    assert read_finding(path) is None
    path.write_text('reason = " Few images. "\n')
    assert read_finding(path) == Finding("Few images.")
    path.write_text('reason = "Few."\nclaim = "lower"\nwords = "it falls"\n')
    assert read_finding(path) == Finding("Few.", "lower", "it falls")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('raeson = "x"', "did you mean reason"),
        ("", "'reason'"),
        ('reason = "  "', "'reason'"),
        ('reason = "x"\nclaim = "higher"', "'words'"),
        ('reason = "x"\nwords = "y"\nclaim = "highre"', "did you mean higher"),
        ("reason = ", "no TOML"),
    ],
)
def test_a_mistake_in_a_finding_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / FINDING).write_text(text)
    with pytest.raises(SpecError, match=told):
        read_finding(tmp_path / FINDING)


def test_a_recipe_knows_the_finding_beside_it_and_its_raw_toml_does_not(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    assert load_recipe(path).finding is None
    path.with_name(FINDING).write_text('reason = "Small."\n')
    spec = load_recipe(path)
    assert spec.finding == Finding("Small.")
    assert "reason" not in spec.raw
    other = load_recipe(write_recipe(tmp_path, 'like = "tiny"\ntitle = "Other"\n', name="other"))
    assert other.finding is None


@pytest.mark.parametrize("name", list_recipes(recipes_root()))
def test_every_committed_record_has_a_reason_and_no_reason_stands_alone(name: str) -> None:
    folder = recipes_root() / name
    assert (folder / FINDING).exists() == (folder / "record.json").exists()

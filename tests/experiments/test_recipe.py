from __future__ import annotations

from pathlib import Path

import pytest

import dcn_plugin.errors as errors
from dcn_plugin.errors import DataError, DcnError, SpecError
from dcn_plugin.experiments.networks import SOURCE, TARGET
from dcn_plugin.experiments.recipe import further_records, list_recipes, load_recipe, recipes_root
from dcn_plugin.experiments.scales import SCALES
from tests.experiments.recipe_files import TINY, write_recipe


def test_a_recipe_takes_its_rows_from_the_table_of_the_paper(tmp_path: Path) -> None:
    spec = load_recipe(write_recipe(tmp_path))
    assert spec.name == "tiny"
    assert list(spec.rows) == ["ResNet-18 standard", "ResNet-18 0.3-Bottom"]
    assert [row[0].variant.bottom for row in spec.rows.values()] == [None, 0.3]
    assert {row[0].run for row in spec.rows.values()} == {TARGET}
    assert spec.measures[0].sources["resnet18"][0].run == SOURCE


def test_scales_change_what_the_recipe_names_and_nothing_else(tmp_path: Path) -> None:
    spec = load_recipe(write_recipe(tmp_path, TINY + '\n[small]\nepochs = 3\nrows = ["ResNet-18 0.3-Bottom"]\n'))
    assert (spec.scale("smoke").train_images, spec.scale("smoke").width) == (32, 8)
    assert (spec.scale("small").training.epochs, spec.scale("small").width) == (3, 16)
    assert list(spec.rows_at("small")) == ["ResNet-18 0.3-Bottom"]
    full = spec.scale("full")
    assert (full.width, full.training.epochs, full.training.milestones) == (64, 350, (150, 250))
    assert [spec.data_at(scale) for scale in ("smoke", "small", "full")] == ["digits", "cifar10", "cifar10"]


def test_what_a_recipe_changes_at_scale_small_it_changes_at_medium_but_for_the_size(tmp_path: Path) -> None:
    small = '[small]\nepochs = 3\nwidth = 8\nimages = 20\ndata = "mnist"\nrows = ["ResNet-18 0.3-Bottom"]\n'
    spec = load_recipe(write_recipe(tmp_path, f"{TINY}\n{small}"))
    medium = spec.scale("medium")
    assert (medium.width, medium.training.epochs, medium.images, spec.data_at("medium")) == (32, 15, 20, "mnist")
    assert list(spec.rows_at("medium")) == ["ResNet-18 0.3-Bottom"]
    spec = load_recipe(write_recipe(tmp_path, f"{TINY}\n{small}[medium]\nimages = 30\nepochs = 20\n"))
    medium = spec.scale("medium")
    assert (medium.width, medium.training.epochs, medium.images) == (32, 20, 30)


def test_the_records_of_further_scales_lie_below_the_recipe(tmp_path: Path) -> None:
    assert further_records(tmp_path) == []
    for folder in ("", "medium", "full", "elsewhere"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "record.json").write_text("{}")
    assert further_records(tmp_path) == ["medium", "full"]


def test_a_recipe_like_another_has_its_entries_but_for_its_own(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    spec = load_recipe(write_recipe(tmp_path, 'like = "tiny"\ntitle = "Other"\n', name="other"))
    assert (spec.title, spec.reproduces, list(spec.rows)) == (
        "Other",
        "Table 4",
        ["ResNet-18 standard", "ResNet-18 0.3-Bottom"],
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("images = 16", "imgaes = 16", "did you mean images"),
        ("images = 16", 'data = "cifar11"', "did you mean cifar10"),
        ('"src_{source}"', '"src_{sorce}"', "{source}, {attack}"),
        ("columns =", 'figure = "acuracy_all"\ncolumns =', "did you mean accuracy_all"),
        ("columns =", 'rounding = "16bit"\ncolumns =', "did you mean 8bit"),
        ('"src_{source}"', '"src"\nconfidence = 1\nks = 5', "ks and the protocol"),
        ('attacks = ["fgsm(16)"]', "attacks = 5", "of another kind"),
        ("images = 16", "images = 0", "images of a scale"),
        ("title =", "tilte =", "did you mean title"),
        ("fgsm(16)", "fgms(16)", "did you mean fgsm"),
        ("fgsm(16)", "fgsm(1,2)", "fgsm(EPS)"),
        ('"transfer"', '"transfr"', "did you mean transfer"),
        ('["resnet18"]', '["resnet19 Standard"]', "no variant of the paper"),
        ('["resnet18"]', '[{ net = "resnet19" }]', "did you mean resnet18"),
        ('"cifar10"', '"cifar11"', "did you mean cifar10"),
        ("0.3-Bottom", "0.4-Bottom", "did you mean ResNet-18 0."),
        ("sources =", "rows = ['nothing']\nsources =", "Unknown row"),
        ("columns =", "levels = [1]\ncolumns =", "levels and the protocol transfer do not fit"),
        ('attacks = ["fgsm(16)"]', "", "attacks and the protocol transfer do not fit"),
        ('reproduces = "Table 4"', "", "lacks an entry"),
        ("[smoke]", '[stated]\n"no row" = { a = 1.0 }\n[smoke]', "Unknown row"),
        ("[smoke]", '[skip]\n"no row" = "why"\n[smoke]', "Unknown row"),
        ("[smoke]", '[against]\n"no row" = "ResNet-18 standard"\n[smoke]', "Unknown row"),
        ("[smoke]", '[rows]\nx = "Standard + XX"\n[smoke]', "Unknown defence"),
        ("[smoke]", "[smoke", "no TOML"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_the_nearest_names(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in TINY
    text = TINY.replace(old, new)
    if '{ net = "resnet19" }' in text:
        text = text.replace('sources = [{ net = "resnet19" }]', 'sources = { a = { net = "resnet19" } }')
    with pytest.raises(SpecError) as error:
        load_recipe(write_recipe(tmp_path, text))
    assert told in str(error.value)


def test_an_unknown_recipe_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(SpecError, match="did you mean table0"):
        load_recipe("tabel04")


def test_an_unknown_scale_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean small"):
        load_recipe(write_recipe(tmp_path)).scale("smal")


def test_a_path_without_a_file_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such recipe file"):
        load_recipe(tmp_path / "recipe.toml")


def test_a_file_of_numbers_that_is_not_there_is_a_named_error(tmp_path: Path) -> None:
    text = TINY.replace("table04_transfer_architectures", "table04_transfer_architecture")
    with pytest.raises(DataError, match="did you mean table04_transfer_architectures"):
        load_recipe(write_recipe(tmp_path, text))


def test_an_installed_package_says_that_it_has_no_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "dcn_plugin" / "errors.py"))
    with pytest.raises(SpecError, match="--recipes DIR"):
        recipes_root()
    with pytest.raises(DcnError):
        load_recipe("table04")


@pytest.mark.parametrize("name", list_recipes(recipes_root()))
def test_every_committed_recipe_is_valid_at_every_scale(name: str) -> None:
    from dcn_plugin.experiments.measurements import measurements_of

    spec = load_recipe(name)
    for scale in SCALES:
        cells = measurements_of(spec, scale, [0])
        assert {row for cell in cells for row in cell.rows} == set(spec.rows_at(scale))
    if spec.numbers is not None and "only" not in spec.raw:
        assert {row.label for row in spec.numbers.rows} <= set(spec.rows) | set(spec.skip)


def test_every_table_and_figure_has_a_recipe() -> None:
    wanted = {f"table{number:02}" for number in range(1, 19)} | {"figure03", "figure04", "figure05", "appendix_b"}
    assert wanted <= set(list_recipes(recipes_root()))


@pytest.mark.parametrize("name", [name for name in list_recipes(recipes_root()) if name.startswith("table")])
def test_every_number_of_a_table_that_is_rerun_has_a_cell_that_measures_it(name: str) -> None:
    from dcn_plugin.experiments.measurements import measurements_of

    spec = load_recipe(name)
    measured = {
        (row, column.name)
        for measurement in measurements_of(spec, "full", [0])
        for column in measurement.columns()
        for row in measurement.rows
    }
    assert spec.numbers is not None
    for row in spec.numbers.rows:
        if row.label not in spec.skip:
            for column, value in row.values.items():
                if value is not None and column != "clean":
                    assert (row.label, column) in measured, (row.label, column)

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcn_plugin.data import ImageSet
from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import Result, RunDirectory
from dcn_plugin.evaluate.protocols import PROTOCOLS
from dcn_plugin.experiments import measurements as module
from dcn_plugin.experiments.datasets import open_data
from dcn_plugin.experiments.measurements import Measurement, measure, measurements_of
from dcn_plugin.experiments.recipe import MEASURES, PICTURES, RecipeSpec, load_recipe
from tests.experiments.recipe_files import TINY, write_recipe
from tests.toy_records import record
from tests.toys import image_set, linear_model

CPU = torch.device("cpu")
ROWS = ("ResNet-18 standard", "ResNet-18 0.3-Bottom")
ATTACKS = 'attacks = { weak = "fgsm(4)", strong = "fgsm(16)" }'
# measure -> what its entry in a recipe says besides
ENTRIES = {
    "transfer": f'sources = ["resnet18", "vgg19"]\n{ATTACKS}\ncolumns = "{{source}} {{attack}}"',
    "tapm": f'sources = ["resnet18", "vgg19"]\n{ATTACKS}',
    "whitebox": ATTACKS,
    "distance": 'attacks = ["boundary", "hopskipjump"]',
    "curve": 'attacks = ["hopskipjump"]\nlevels = [64, 255]',
    "gaussian": "levels = [8, 16]",
    "shuffle": "ks = [2, 4]",
    "amplitude": "",
    "stylized": "",
    "images": ATTACKS,
    "user-study": ATTACKS,
}
COLUMNS = {
    "transfer": [["resnet18 weak", "resnet18 strong"], ["vgg19 weak", "vgg19 strong"]],
    "tapm": [["tapm"]],
    "whitebox": [["weak", "strong"]],
    "distance": [["boundary", "hopskipjump"]],
    "curve": [["hopskipjump 64", "hopskipjump 255"]],
    "gaussian": [["8", "16"]],
    "shuffle": [["2", "4"]],
    "amplitude": [["amplitude swap"]],
    "stylized": [["amplitude swap"]],
    "images": [["weak", "strong"]],
    "user-study": [["weak", "strong"]],
}


def recipe(folder: Path, name: str, entries: str | None = None, *, smoke: str = "images = 6") -> RecipeSpec:
    head, rest = TINY.split("[[measure]]")
    text = (
        f'{head}[[measure]]\nprotocol = "{name}"\n{ENTRIES[name] if entries is None else entries}\n[smoke]\n{smoke}\n'
    )
    assert rest
    return load_recipe(write_recipe(folder, text))


def planned(folder: Path, name: str, entries: str | None = None, *, scale: str = "smoke", **options: Any) -> Any:
    return measurements_of(recipe(folder, name, entries, **options), scale, [0])


class Networks:
    """In place of trained networks: linear ones, another for every job."""

    def open(self, jobs: Any) -> nn.Module:
        (job,) = jobs
        return linear_model(1024, 10, seed=int.from_bytes(job.name.encode()[-4:], "big")).eval()


def run(measurement: Measurement, folder: Path) -> list[Result]:
    store = RunDirectory(folder / "store")
    data = open_data("digits", None)
    return measure(measurement, Networks(), data, store, pictures=folder / "pictures")  # type: ignore[arg-type]


def test_every_protocol_that_a_table_can_show_can_be_measured() -> None:
    assert set(ENTRIES) == set(MEASURES) == {*PICTURES, *PROTOCOLS} - {"autoattack", "sanity", "cue-conflict"}


@pytest.mark.parametrize("name", MEASURES)
def test_every_number_of_a_table_is_measured_and_finds_its_record_in_any_order(name: str, tmp_path: Path) -> None:
    measurements = planned(tmp_path, name)
    assert [[column.name for column in one.columns()] for one in measurements] == COLUMNS[name]
    for measurement in measurements:
        records = run(measurement, tmp_path)
        entries = measurement.entries(records)
        # In the order in which a protocol gives them, each is a number: the rows of the first column come first.
        assert [entry.result for entry in entries] == records
        names = [column.name for column in measurement.columns()]
        assert {(entry.row, entry.column) for entry in entries} == {(row, name) for row in ROWS for name in names}
        assert all(entry.result.target == entry.row for entry in entries)
        for seed in range(5):
            shuffled = random.Random(seed).sample(records, len(records))
            assert measurement.entries(shuffled) == entries
        with pytest.raises(RecordError, match="no record for a number"):
            measurement.entries(records[1:])


def test_a_record_of_another_source_attack_or_strength_is_not_taken(tmp_path: Path) -> None:
    first, second = planned(tmp_path, "transfer")
    (weak, strong), protocol = first.columns(), first.protocol
    assert weak.attack is not None
    good = record(source="resnet18", attack="PGD", attack_settings=weak.attack.settings)
    assert weak.holds(good, protocol) and not strong.holds(good, protocol)
    assert not second.columns()[0].holds(good, protocol)
    assert not weak.holds(dataclasses.replace(good, attack="CW"), protocol)
    (noise,) = planned(tmp_path, "gaussian")
    assert [column.holds(record(eps=16 / 255), noise.protocol) for column in noise.columns()] == [False, True]


def test_two_columns_of_the_same_attack_share_a_record(tmp_path: Path) -> None:
    # Two steps at scale smoke, however many a recipe names, of twice the radius.
    (measurement,) = planned(tmp_path, "whitebox", 'attacks = { a = "pgd(8,10,8)", b = "pgd(8,20,8)" }')
    records = run(measurement, tmp_path)
    columns: dict[str, list[Result]] = {}
    for entry in measurement.entries(records):
        columns.setdefault(entry.column, []).append(entry.result)
    assert columns["a"] == columns["b"]


@pytest.mark.parametrize(
    ("scale", "settings", "few", "many"),
    [
        ("smoke", "images = 20", 8, 20),
        ("smoke", "images = 20\ncw_images = 5", 5, 20),
        ("smoke", "images = 4", 4, 4),
        ("full", "images = 20", 1056, None),
    ],
)
def test_attacks_that_take_long_run_by_themselves_on_few_images(
    scale: str, settings: str, few: int, many: int | None, tmp_path: Path
) -> None:
    attacks = 'sources = ["resnet18"]\nattacks = ["fgsm(16)", "cw(0)"]'
    fast, slow = planned(tmp_path, "transfer", attacks, scale=scale, smoke=settings)
    assert (list(fast.attacks), fast.images) == (["fgsm(16)"], many)
    assert (list(slow.attacks), slow.images) == (["cw(0)"], few)


def test_rows_that_are_compared_with_each_other_only_are_measured_apart(tmp_path: Path) -> None:
    groups = f'ks = [2]\ngroups = [["{ROWS[0]}"], ["{ROWS[1]}"]]'
    assert [list(one.rows) for one in planned(tmp_path, "shuffle", groups)] == [[ROWS[0]], [ROWS[1]]]
    named = f'ks = [2]\nrows = ["{ROWS[1]}"]'
    assert [list(one.rows) for one in planned(tmp_path, "shuffle", named)] == [[ROWS[1]]]


def test_a_set_of_attacks_fills_a_column_for_each_of_them(tmp_path: Path) -> None:
    pytest.importorskip("torchattacks")
    (measurement,) = planned(tmp_path, "whitebox", 'attacks = ["modern(8)"]')
    names = [column.name for column in measurement.columns()]
    assert names[0].startswith("modern(8) ") and len(set(names)) == len(names) > 1


def test_options_are_those_that_the_protocol_takes(tmp_path: Path) -> None:
    def options(name: str, entries: str, scale: str = "smoke") -> dict[str, Any]:
        return dict(planned(tmp_path, name, entries, scale=scale)[0].options)

    assert options("gaussian", "levels = [51]") == {"levels": [0.2], "noise": "clipped"}
    assert options("shuffle", "ks = [2]\nconfidence = 0.9", "full") == {"ks": (2,), "confidence": 0.9}
    assert options("shuffle", "ks = [2]\nconfidence = 0.9")["confidence"] == 0
    assert options("distance", 'attacks = ["boundary"]') == {"count": 4}
    assert options("whitebox", ATTACKS) == {"rounding": "none"}
    assert options("tapm", ENTRIES["tapm"]) == {"rounding": "8bit"}


def test_stylised_images_are_shown_where_the_data_set_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (measurement,) = planned(tmp_path, "stylized", 'columns = "style"')
    assert [column.name for column in measurement.columns()] == ["amplitude swap"]
    measurement = dataclasses.replace(measurement, data="imagenet")
    assert [column.name for column in measurement.columns()] == ["style"]
    originals, styled = (image_set(6, classes=10, seed=seed, shape=(1, 32, 32)) for seed in (0, 1))
    styled = ImageSet(styled.images, originals.labels, 10, "styled")
    monkeypatch.setattr(module.RecipeData, "stylized", lambda *_: (originals, styled))
    entries = measurement.entries(run(measurement, tmp_path))
    assert {(entry.result.protocol, entry.column) for entry in entries} == {("stylized", "style")}


@pytest.mark.parametrize(("name", "files"), [("images", {".png"}), ("user-study", {".html", ".json"})])
def test_pictures_are_written_for_people_from_the_images_of_white_box_attacks(
    name: str, files: set[str], tmp_path: Path
) -> None:
    (measurement,) = planned(tmp_path, name)
    assert measurement.writes_pictures and {one.protocol for one in run(measurement, tmp_path)} == {"whitebox"}
    assert {path.suffix for path in (tmp_path / "pictures").iterdir()} == files


def test_the_key_tells_measurements_apart_and_knows_the_code_of_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (measurement,) = planned(tmp_path, "shuffle")
    key = measurement.key("stamp", CPU)
    others = [
        measurement.key("other stamp", CPU),
        dataclasses.replace(measurement, seed=1).key("stamp", CPU),
        dataclasses.replace(measurement, images=5).key("stamp", CPU),
        dataclasses.replace(measurement, rows={**measurement.rows, ROWS[1]: ()}).key("stamp", CPU),
        dataclasses.replace(measurement, scale=dataclasses.replace(measurement.scale, count=3)).key("stamp", CPU),
        planned(tmp_path, "shuffle", "ks = [2]")[0].key("stamp", CPU),
        planned(tmp_path, "whitebox")[0].key("stamp", CPU),
    ]
    assert all(other != key for other in others)
    assert measurement.key("stamp", CPU) == key
    monkeypatch.setattr(module, "code_hash", lambda *wings: "new" if "experiments" in wings else "old")
    assert measurement.key("stamp", CPU)["code"] == "new"

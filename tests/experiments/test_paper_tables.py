from __future__ import annotations

from pathlib import Path

import pytest

from dcn_plugin.errors import DataError
from dcn_plugin.experiments.paper_tables import paper_numbers
from tests.experiments.recipe_files import NUMBERS


def write(folder: Path, *lines: str) -> Path:
    (folder / "toy.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_text_columns_make_the_label_and_numbers_the_values(tmp_path: Path) -> None:
    folder = write(tmp_path, "# Toy.", "target,kind,a*,clean", "Net,one*,1.5,90", "Net,two,,91")
    table = paper_numbers("toy", folder)
    assert (table.comment, table.columns, table.inferred_columns) == ("Toy.", ("a", "clean"), frozenset({"a"}))
    assert [(row.label, dict(row.values), row.inferred) for row in table.rows] == [
        ("Net one", {"a": 1.5, "clean": 90.0}, True),
        ("Net two", {"a": None, "clean": 91.0}, False),
    ]


def test_a_row_that_stands_there_twice_is_one_and_another_of_the_same_label_gets_a_number(tmp_path: Path) -> None:
    table = paper_numbers("toy", write(tmp_path, "# Toy.", "model,a", "x,1", "y,2", "x,1", "x,3"))
    assert [(row.label, row.values["a"]) for row in table.rows] == [("x", 1.0), ("y", 2.0), ("x (2)", 3.0)]


def test_a_number_of_the_paper_is_found_under_its_row_and_column() -> None:
    row = paper_numbers("table04_transfer_architectures", NUMBERS).row("VGG-19 0.3-Bottom")
    assert row is not None
    assert row.values["src_densenet121"] == 91.01


@pytest.mark.parametrize("lines", [("model,a", "x,1", "y,2"), ("# Toy.", "model,a", "x,1,2")])
def test_a_file_that_is_no_table_is_a_named_error(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"toy\.csv"):
        paper_numbers("toy", write(tmp_path, *lines))


def test_a_missing_file_is_named_with_the_nearest_names() -> None:
    with pytest.raises(DataError, match="did you mean table05_ablation"):
        paper_numbers("table05_ablatoin", NUMBERS)

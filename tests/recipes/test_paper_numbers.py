"""The number files are those that were taken from the paper's tables, to the byte."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest

from dcn_plugin.experiments.paper_tables import paper_numbers

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "paper_numbers"

# file -> SHA-256 of its bytes, rows, columns
FILES = {
    "table01_shape_texture": ("5437dfb9f70670814f93079bfdd136613be0e5c234e0584da352bcce591b3b83", 2, 5),
    "table02_cifar10_sota": ("5775a834b9191dae50c13988d077e9f58e8f862c94e2fed0dc18aba9aacc7359", 9, 4),
    "table03_tinyimagenet_sota": ("48094d22d1388bbfa30b9ca5ea63d6fad2b379d7fc0621268550c9b943f4138e", 7, 3),
    "table04_transfer_architectures": ("9bc5ee88b48ebda530c98d347d577ec5656bf4c6cdeea0ebbdb54cb55e287ed1", 15, 8),
    "table05_ablation": ("cae49561b975214145661fcff94ebbab22bf31e8937941ac756a61df4d87b5a9", 17, 6),
    "table06_boundary": ("469798125ee789254b23b5ead6fb58839ad1921590fd529c1712a78387b68c13", 5, 2),
    "table07_wrn": ("57ab7fbf970c95416f0bc4d3c987cf63f6c8d72dfd2c9a8349061b0c60666f29", 7, 4),
    "table08_ensemble_sources": ("511c82e071383b6af1f5147dd9f568be896d98fbdac2d414ddfb760ec1c3931d", 15, 8),
    "table09_mnist": ("8162acc0d8a7b415b8639f7c42cd3df68877cf4248a4d2a47c7d79e651481078", 15, 8),
    "table10_graybox": ("0238cff7decb317f14f7113fb4e45cb2174f5147e935b66dbea78aec7ff73d8c", 4, 4),
    "table11_graybox_standard": ("3d6a91961f2b70582801a257255789f38f7fbf781087a68e50e67db1a8ebbc8a", 2, 3),
    "table12_whitebox": ("d0a5e05a97ce1a5a0fb484462451d305c30d5a3abe695af5221121768ffb6277", 3, 8),
    "table13_shape_texture_architectures": ("dccc6473180ea4dae2383df5a702d23f84471175f1b244ffff7df96ad90a8c0d", 10, 5),
    "table14_src_densenet121": ("7682f4e6bbaf8bf90e17cfadd4f4a9da141134428f05a4c2e4cae97ee6a1705c", 31, 9),
    "table15_src_resnet18": ("6b1a5f1c15de905ba63f727ad734cbf1d5ab3aeef1c89cc678702508b93cc2d4", 31, 9),
    "table16_src_resnet50": ("6f67d2806c8ddccebfb9ab76a80488428054cc3d7016a293c2501ece3ffbedb7", 31, 9),
    "table17_src_senet18": ("8cc9f5dfc4c045608d99791e49c7bb8c5027c91830bae509552270b03331a50c", 31, 9),
    "table18_src_vgg19": ("4bed6a0d2815aac96de99deea40b7b8046fabe4ef80f5ecfba2861e917018233", 31, 8),
}


def test_every_table_of_the_paper_has_its_file_and_there_is_no_other() -> None:
    assert {path.stem for path in FOLDER.glob("*.csv")} == set(FILES)
    assert {name[:7] for name in FILES} == {f"table{number:02}" for number in range(1, 19)}


@pytest.mark.parametrize("name", FILES)
def test_a_number_file_is_the_one_taken_from_the_paper(name: str) -> None:
    content = (FOLDER / f"{name}.csv").read_bytes()
    sha256, rows, columns = FILES[name]
    assert hashlib.sha256(content).hexdigest() == sha256
    comment, *lines = content.decode().splitlines()
    assert comment.startswith("# ")
    assert {len(line) for line in csv.reader(lines)} == {columns}
    assert len(lines) - 1 == rows


@pytest.mark.parametrize("name", FILES)
def test_every_rate_is_a_percentage_and_every_row_has_a_label_of_its_own(name: str) -> None:
    table = paper_numbers(name, FOLDER)
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)
    assert len(labels) == FILES[name][1] - (name == "table05_ablation")  # one of its rows stands there twice
    for row in table.rows:
        assert all(value is None or 0 <= value <= 100 for value in row.values.values())

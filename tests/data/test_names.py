from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from dcn_plugin.checkpoint.class_names import name_classes
from dcn_plugin.data import read_class_names
from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.training import save_network
from tests.image_files import write_folder

NAMES = ("dog", "ant", "bee")


def test_names_are_read_from_where_they_are_known(tmp_path: Path) -> None:
    listed = tmp_path / "names.txt"
    listed.write_text("dog\nant\n\n bee \n")
    network = nn.Linear(2, 3)
    name_classes(network, NAMES)
    save_network(network, tmp_path / "net.safetensors", metadata={})
    for given in (
        NAMES,
        list(NAMES),
        listed,
        str(listed),
        tmp_path / "net.safetensors",
        "dog,ant,bee",
        "[dog, ant, bee]",
    ):
        assert read_class_names(given) == NAMES
    folder = write_folder(tmp_path / "train", {"dog": 1, "ant": 1})
    assert read_class_names(folder) == ("ant", "dog")


def test_imagenets_classes_are_timms() -> None:
    names = read_class_names("imagenet-1k")
    assert (len(names), names[0], names[-1]) == (1000, "n01440764", "n15075141")


def test_where_no_names_are_the_error_lists_what_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    save_network(nn.Linear(2, 3), tmp_path / "net.safetensors", metadata={})
    (tmp_path / "image.txt").write_bytes(b"\xff\xd8\xff")
    for given in ("missing.txt", "empty.txt", "net.safetensors", "image.txt"):
        with pytest.raises(DataError, match="a text file with one name a line"):
            read_class_names(tmp_path / given)
    with pytest.raises(SpecError, match="same name"):
        read_class_names("ant,bee,ant")


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfdog\r\nant\r\n")
    assert read_class_names(path) == ("dog", "ant")

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.checkpoint import read_info
from dcn_plugin.checkpoint.class_names import (
    check_class_names,
    check_same_names,
    class_names_in,
    class_names_of,
    name_classes,
)
from dcn_plugin.errors import ClassesError, LabelError, SpecError
from dcn_plugin.models import cifar_resnet
from dcn_plugin.training import load_network, save_network

NAMES = ("ant", "bee", "cat")


def net(p: float | None = None) -> nn.Module:
    model = cifar_resnet((1, 1, 1, 1), num_classes=3, in_chans=1, width=4)
    return model if p is None else dcn.defectify(model, p=p, input_size=(1, 8, 8))


def test_names_go_along_with_the_network_through_wrappers_copies_and_surgery() -> None:
    model = net()
    assert class_names_of(model) is None
    name_classes(dcn.Normalized(model, [0.5], [0.5]), list(NAMES))
    assert class_names_of(model) == NAMES
    made = dcn.defectify(model, p=0.5, input_size=(1, 8, 8))
    compact = dcn.compact(made.eval(), backend="reference")
    for one in (copy.deepcopy(model), nn.DataParallel(model), made, dcn.undefectify(made), compact):
        assert class_names_of(one) == NAMES
    name_classes(compact, ("x", "y", "z"))
    assert class_names_of(compact) == ("x", "y", "z")
    assert class_names_of(made) == NAMES
    name_classes(model, None)
    assert class_names_of(model) is None


def test_an_attribute_of_the_users_own_that_is_no_names_is_left_alone() -> None:
    model = net()
    model.class_names = {0: "ant"}  # type: ignore[assignment]
    assert class_names_of(model) is None


@pytest.mark.parametrize("p", [None, 0.5])
def test_files_keep_the_names_and_give_them_back(tmp_path: Path, p: float | None) -> None:
    model, path = net(p), tmp_path / "net.safetensors"
    save_network(model, path, metadata={"epoch": "0"})
    assert class_names_in(path) is None
    without = path.read_bytes()
    name_classes(model, NAMES)
    save_network(model, path, metadata={"epoch": "0"})
    assert class_names_in(path) == NAMES
    again = net(p)
    load_network(again, path)
    assert class_names_of(again) == NAMES
    name_classes(model, None)
    save_network(model, path, metadata={"epoch": "0"})
    assert path.read_bytes() == without  # a file without names is what it always was
    load_network(again, path)
    assert class_names_of(again) == NAMES  # it tells nothing, so what was known stays


def test_a_checkpoint_tells_the_names_without_loading_it(tmp_path: Path) -> None:
    model, path = net(0.5), tmp_path / "net.safetensors"
    dcn.save_checkpoint(model, path)
    assert read_info(path).class_names is None
    name_classes(model, NAMES)
    dcn.save_checkpoint(model, path)
    assert read_info(path).class_names == NAMES
    assert class_names_of(dcn.load_checkpoint(path, net())) == NAMES


def test_files_of_others_tell_no_names(tmp_path: Path) -> None:
    plain, text = tmp_path / "plain.safetensors", tmp_path / "text.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, plain, {"training": "not JSON"})
    text.write_text("ant")
    assert [class_names_in(path) for path in (plain, text, tmp_path / "missing")] == [None] * 3


@given(names=st.permutations(NAMES), known=st.permutations(NAMES), cut=st.integers(1, 3))
def test_names_fit_exactly_where_every_number_means_the_same(names: list[str], known: list[str], cut: int) -> None:
    if names[:cut] == known:
        check_same_names(names[:cut], known, what="the images", of="the network")
    else:
        with pytest.raises(ClassesError, match=r"not numbered like.*class_names"):
            check_same_names(names[:cut], known, what="the images", of="the network")


def test_numbers_and_unknown_names_are_compared_with_nothing() -> None:
    for names, known in (
        (None, NAMES),
        (NAMES, None),
        (("0", "1", "2"), NAMES),
        (NAMES, ("0", "1")),
    ):
        check_same_names(names, known, what="the images", of="the network")
    with pytest.raises(ClassesError):  # numbers in the order of text are names: label 1 is class 10
        check_same_names(("0", "10", "2"), NAMES, what="the images", of="the network")


def test_strange_names_are_named_and_the_error_is_both_of_label_and_of_option() -> None:
    with pytest.raises(ClassesError, match=r"not among those of the network.*plane.*name_classes") as caught:
        check_same_names(("plane", "bee", "cat"), NAMES, what="the images", of="the network")
    assert isinstance(caught.value, LabelError)
    assert isinstance(caught.value, SpecError)


@pytest.mark.parametrize("names", ["ant", [], ["ant", 3], ["ant", "ant"], ["ant", "bee"]])
def test_names_that_are_none_are_refused(names: list[str]) -> None:
    with pytest.raises(SpecError):
        check_class_names(names, count=3)

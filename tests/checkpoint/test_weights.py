"""Whatever file the weights lie in: the network is the one that was saved, or the error names what does not fit."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import dcn_plugin as dcn
from dcn_plugin.checkpoint.weights import load_weights, read_weights
from dcn_plugin.errors import CheckpointError, MaskStateError
from tests.nets import NoNorm, SmallNet, same, shaken, snapshot

State = dict[str, Any]
IMAGES = torch.linspace(0, 1, 2 * 3 * 16 * 16).sin().abs().view(2, 3, 16, 16)


def net(seed: int = 1, *, p: float | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = shaken(SmallNet())
    return model if p is None else dcn.defectify(model, p=p, input_size=(3, 16, 16), seed=seed)


def equal(model: nn.Module, expected: nn.Module) -> bool:
    ours, theirs = model.state_dict(), expected.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def prefixed(*levels: str) -> Callable[[State], State]:
    return lambda state: {".".join((*levels, key)): value for key, value in state.items()}


def inner(level: str) -> Callable[[State], State]:
    return lambda state: {key.replace("layer1.", f"layer1.{level}."): value for key, value in state.items()}


NAMES = st.sampled_from(
    [
        prefixed(),
        prefixed("module"),
        prefixed("_orig_mod"),
        prefixed("model"),  # Normalized, and what Lightning makes of it
        prefixed("module", "_orig_mod"),
        prefixed("_orig_mod", "module", "model"),
        inner("_orig_mod"),
        inner("module"),
    ]
)
OTHER = prefixed()(net(2).state_dict())
NESTS: list[Callable[[State], State]] = [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    lambda state: {"net": state, "acc": 93.2},
    lambda state: {"model": {"state_dict": state}},
    lambda state: {"state_dict": OTHER, "state_dict_ema": state},
    lambda state: {"model": OTHER, "model_ema": state},
]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rename=NAMES, nest=st.sampled_from(NESTS), p=st.sampled_from([None, 0.5]), old=st.booleans())
def test_every_nest_and_every_prefix_of_a_torch_file_is_opened(
    tmp_path: Path, rename: Callable[[State], State], nest: Callable[[State], State], p: float | None, old: bool
) -> None:
    saved, path = net(p=p), tmp_path / "net.pth"
    torch.save(nest(rename(saved.state_dict())), path, _use_new_zipfile_serialization=not old)
    other = net(3, p=p)
    load_weights(other, path)
    assert equal(other, saved)
    wrapped = net(3, p=p)
    load_weights(nn.DataParallel(wrapped), path)
    assert equal(wrapped, saved)


@pytest.mark.parametrize("average", [AveragedModel, ModelEmaV3])
def test_weight_averages_are_read(tmp_path: Path, average: Callable[[nn.Module], nn.Module]) -> None:
    torch.save(average(net()).state_dict(), tmp_path / "average.pt")
    other = net(3)
    load_weights(other, tmp_path / "average.pt")
    assert equal(other, net())


def test_safetensors_files_are_read_plain_and_packed(tmp_path: Path) -> None:
    safetensors.torch.save_file(prefixed("module")(net().state_dict()), tmp_path / "plain")  # whatever it is called
    dcn.save_checkpoint(net(p=0.5), tmp_path / "packed")
    for name, p in (("plain", None), ("packed", 0.5)):
        other = net(3, p=p)
        load_weights(other, tmp_path / name)
        assert equal(other, net(p=p))


def test_plain_weights_in_a_defective_network_leave_its_masks(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "net.pth")
    other = net(3, p=0.5)
    masks = {key: value.clone() for key, value in other.state_dict().items() if value.dtype == torch.bool}
    load_weights(other, tmp_path / "net.pth")
    assert equal(dcn.undefectify(other), net())
    assert all(torch.equal(other.state_dict()[key], value) for key, value in masks.items())


def test_a_network_whose_own_names_look_like_a_wrappers_keeps_them(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = net()

    torch.save(Model().state_dict(), tmp_path / "net.pth")
    other: Any = Model()
    load_weights(other, tmp_path / "net.pth")
    assert equal(other.model, net())
    assert read_weights(tmp_path / "net.pth", names=other.state_dict()).keys() == other.state_dict().keys()
    assert read_weights(tmp_path / "net.pth").keys() == net().state_dict().keys()


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(name)}


MISFITS: dict[str, tuple[Callable[[State], State], type[Exception], str]] = {
    "missing": (without("layer2"), CheckpointError, "do not fit SmallNet: Missing key.*layer2"),
    "more": (lambda s: {**s, "extra.weight": torch.zeros(2)}, CheckpointError, "Unexpected key.*extra.weight"),
    "classes": (
        lambda s: {**s, "fc.weight": torch.zeros(7, 16), "fc.bias": torch.zeros(7)},
        CheckpointError,
        r"size mismatch for fc.weight: \(7, 16\) in the file, \(5, 16\) in the model.*num_classes",
    ),
    "another network": (lambda s: NoNorm().state_dict(), CheckpointError, "do not fit"),
    "some masks": (without("bn1.drop"), MaskStateError, "1 of 7 are missing"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_named_and_nothing_changes(tmp_path: Path, case: str) -> None:
    spoil, error, message = MISFITS[case]
    model = net(3, p=0.5 if case == "some masks" else None)
    torch.save(spoil(net(p=0.5 if case == "some masks" else None).state_dict()), tmp_path / "net.pth")
    before = snapshot(model)
    with pytest.raises(error, match=message):
        load_weights(model, tmp_path / "net.pth")
    assert same(before, snapshot(model))


NO_WEIGHTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a module": (lambda path: torch.save(net(), path), r"holds Python objects.*Got: '.*SmallNet.*model.state_dict\(\)"),
    "numbers": (lambda path: torch.save({"epoch": 3}, path), "holds no state dict.*'state_dict'"),
    "a tensor": (lambda path: torch.save(torch.zeros(2), path), "holds no state dict"),
    "text": (lambda path: path.write_text("hello"), "no file of weights"),
    "nothing": (lambda path: path.write_bytes(b""), "no file of weights"),
    "half a zip": (lambda path: path.write_bytes(b"PK\x03\x04 and so on"), "no file of weights"),
}


@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_a_file_without_weights_is_refused_by_name(tmp_path: Path, case: str) -> None:
    write, message = NO_WEIGHTS[case]
    write(tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "net.pth")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "nowhere.pth")


def test_weights_stay_tensors(tmp_path: Path) -> None:
    torch.save({"state_dict": {**net().state_dict(), "note": "text"}}, tmp_path / "net.pth")
    assert all(isinstance(value, Tensor) for value in read_weights(tmp_path / "net.pth").values())

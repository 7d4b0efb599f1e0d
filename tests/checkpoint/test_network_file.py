from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.checkpoint.weights import load_network, save_network
from dcn_plugin.errors import CheckpointError
from dcn_plugin.models import cifar_resnet
from dcn_plugin.support.randomness import isolated_rng
from tests.toys import image_set
from tests.training.resume_worker import make

IMAGES = image_set(6, shape=(1, 8, 8)).images


def net(*, seed: int = 0, p: float | None = None, normalized: bool = False) -> nn.Module:
    with isolated_rng(seed):
        model: nn.Module = cifar_resnet((1, 1, 1, 1), num_classes=3, in_chans=1, width=4)
    if p is not None:
        model = dcn.defectify(model, p=p, input_size=(1, 8, 8))
    return dcn.Normalized(model, [0.4], [0.2]) if normalized else model


@pytest.mark.parametrize("p", [None, 0.5])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_network_comes_back_as_it_was_saved(p: float | None, normalized: bool, tmp_path: Path) -> None:
    saved, other = net(p=p, normalized=normalized), net(seed=1, p=p, normalized=normalized)
    path = tmp_path / "net.safetensors"
    save_network(saved, path, metadata={"epoch": "3"})
    load_network(other, path)
    assert torch.equal(saved.eval()(IMAGES), other.eval()(IMAGES))
    first = path.read_bytes()
    with safetensors.safe_open(path, "pt") as file:
        told = file.metadata()
    assert (json.loads(told["training"]) if p is None else told)["epoch"] == "3"
    save_network(saved, path, metadata={"epoch": "3"})
    assert path.read_bytes() == first


def test_a_plain_file_opens_with_safetensors_alone_and_holds_tied_weights_twice(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    save_network(dcn.Normalized(model, [0.5], [0.5]), tmp_path / "net.safetensors", metadata={})
    state = safetensors.torch.load_file(tmp_path / "net.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("p", [None, 0.5])
def test_a_network_of_another_size_is_refused(p: float | None, tmp_path: Path) -> None:
    save_network(net(p=p), tmp_path / "net.safetensors", metadata={})
    with pytest.raises(CheckpointError):
        load_network(make() if p else nn.Linear(2, 2), tmp_path / "net.safetensors")

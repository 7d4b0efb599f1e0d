from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.checkpoint.sealed_file import read_archive
from dcn_plugin.errors import CheckpointError
from dcn_plugin.pretrained import load_half, save_half
from dcn_plugin.training import isolated_rng, save_network
from tests.pretrained.toy_cards import toy_network

IMAGES = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def used(network: nn.Module) -> nn.Module:
    """Running statistics that are not those of a fresh norm."""
    with torch.no_grad():
        network.train()(IMAGES)
    return network.eval()


@pytest.mark.parametrize("p", [None, 0.5])
def test_kernels_become_float16_and_everything_else_stays_as_it_is(tmp_path: Path, p: float | None) -> None:
    net = used(toy_network(p=p))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    save_half(net, tmp_path / "half.safetensors")
    after = load_half(tmp_path / "half.safetensors", toy_network(1)).state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        expected = value.half().float() if value.ndim >= 2 and value.is_floating_point() else value
        assert torch.equal(after[key], expected), key
        assert after[key].dtype == value.dtype
        assert torch.equal(value, net.state_dict()[key]), "saving must not change the network"


@pytest.mark.parametrize("p", [None, 0.5])
def test_the_file_is_about_half_as_large(tmp_path: Path, p: float | None) -> None:
    with isolated_rng(0):
        wide: nn.Module = dcn.models.cifar_resnet((1, 1, 1, 1), in_chans=1, width=32)
    if p is not None:
        wide = dcn.defectify(wide, p=p, input_size=(1, 8, 8))
    save_half(wide, tmp_path / "half.safetensors")
    save_network(wide, tmp_path / "full.safetensors", metadata={})
    half, full = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full"))
    assert 0.5 < half / full < 0.53


def test_equal_networks_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_half(toy_network(p=0.5), tmp_path / name, metadata={"name": "toy"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_archive(tmp_path / "a")[1]["name"] == "toy"


def test_a_loaded_defective_network_has_its_masks_and_they_act(tmp_path: Path) -> None:
    net = used(toy_network(p=0.5))
    save_half(net, tmp_path / "half.safetensors")
    plain = toy_network(1)
    loaded = load_half(tmp_path / "half.safetensors", plain).eval()
    assert dcn.defect_spec(loaded) == dcn.defect_spec(net)
    assert dcn.defect_spec(loaded).mask_origin == "sampled"
    dcn.verify(loaded)
    assert torch.allclose(loaded(IMAGES), net(IMAGES), atol=1e-2)
    assert not torch.allclose(dcn.undefectify(loaded)(IMAGES), net(IMAGES), atol=1e-2)
    assert not dcn.is_defective(plain), "the network that was passed must not change"


@pytest.mark.parametrize("p", [None, 0.5])
def test_files_of_full_precision_are_read_to_the_bit(tmp_path: Path, p: float | None) -> None:
    net = used(toy_network(p=p))
    save_network(net, tmp_path / "full.safetensors", metadata={})
    loaded = load_half(tmp_path / "full.safetensors", toy_network(1)).eval()
    assert torch.equal(loaded(IMAGES), net(IMAGES))


def test_constants_of_the_normalisation_are_held_against_the_file(tmp_path: Path) -> None:
    save_half(dcn.Normalized(toy_network(p=0.5), [0.5], [0.2]), tmp_path / "half.safetensors")
    load_half(tmp_path / "half.safetensors", dcn.Normalized(toy_network(1), [0.5], [0.2]))
    with pytest.raises(CheckpointError, match="other constants"):
        load_half(tmp_path / "half.safetensors", dcn.Normalized(toy_network(1), [0.4], [0.2]))


def test_a_weight_beyond_float16_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    net = toy_network()
    with torch.no_grad():
        net.fc.weight[0, 0] = 1e5  # type: ignore[index, union-attr]
    with pytest.raises(CheckpointError, match=r"fc\.weight.*float16.*100000.*65504"):
        save_half(net, tmp_path / "half.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("p", [None, 0.5])
def test_a_file_of_another_architecture_is_refused(tmp_path: Path, p: float | None) -> None:
    save_half(toy_network(p=p), tmp_path / "half.safetensors")
    with isolated_rng(0):
        other = dcn.models.cifar_resnet((1, 1, 1, 1), in_chans=1, width=8, num_classes=3)
    with pytest.raises(CheckpointError, match="fit"):
        load_half(tmp_path / "half.safetensors", other)


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    save_half(toy_network(), tmp_path / "half.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "half.safetensors")
    assert tensors["conv1.weight"].dtype == torch.float16
    assert tensors["bn1.running_var"].dtype == torch.float32

"""Small networks with cards, in a folder of the test."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from dcn_plugin.models import cifar_resnet
from dcn_plugin.pretrained import PretrainedCard, save_half
from dcn_plugin.surgery import defect_spec, defectify, is_defective
from dcn_plugin.training import TrainConfig, isolated_rng

ARGS = {"layers": [1, 1, 1, 1], "in_chans": 1, "num_classes": 3, "width": 4}
SIZE = (1, 8, 8)


def toy_network(seed: int = 0, *, p: float | None = None) -> nn.Module:
    """Random weights, in eval mode; defective with a p."""
    with isolated_rng(seed):
        net: nn.Module = cifar_resnet(**ARGS)  # type: ignore[arg-type]
    return (net if p is None else defectify(net, p=p, input_size=SIZE, seed=5)).eval()


def toy_card(folder: Path, *, p: float | None = None, **changes: Any) -> PretrainedCard:
    """A card whose weights lie in ``folder``, and which lies there as ``toy.json``."""
    net = toy_network(p=p)
    file = folder / changes.get("file", "toy.safetensors")
    save_half(net, file)
    known: dict[str, Any] = {
        "name": "toy_net.tag",
        "summary": "Random weights.",
        "architecture": "cifar_resnet",
        "model_args": ARGS,
        "input_size": SIZE,
        "num_classes": 3,
        "defects": defect_spec(net) if is_defective(net) else None,
        "data": "nothing/train",
        "data_hash": "0" * 64,
        "training": TrainConfig(epochs=2, seed=7),
        "seed": 0,
        "test_data": "nothing/test",
        "test_data_hash": "1" * 64,
        "n_test": 8,
        "n_correct": 6,
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "precision": "float16",
        "license": "Apache-2.0",
        "command": "python toy.py",
        "versions": {"torch": "2"},
        "hardware": {"processor": "abacus", "threads": 1},
    }
    card = PretrainedCard(**{**known, **changes})
    card.write(folder / "toy.json")
    return card

"""Data of the interactive picture, and the picture of the start page: a trained network looks at real digits."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.data import load_digits
from dcn_plugin.masks import sample_mask
from dcn_plugin.models import cifar_resnet
from dcn_plugin.specs import MaskSpec
from dcn_plugin.training import TrainConfig, isolated_rng, train

__all__ = ["CHANNELS", "SIZE", "STEPS", "draws", "make_picture"]

CHANNELS, SIZE = 8, 16
STEPS = 20  # the slider's p is a multiple of 1 / STEPS
_CLASSES = (0, 3, 7)
_SHAPE = (CHANNELS, SIZE, SIZE)
_ALPHABET = "0123456789abcdefghij"


def draws() -> str:
    """One letter a neuron, in the order of (C, H, W): its place in 0 .. STEPS - 1.

    A neuron is kept at p = j / STEPS exactly if its place is below j; the masks at a smaller p lie inside those at a larger.
    """
    kept = sum(sample_mask(MaskSpec(p=j / STEPS), _SHAPE, site=0).int() for j in range(1, STEPS + 1))
    assert isinstance(kept, Tensor)
    return "".join(_ALPHABET[STEPS - count] for count in kept.flatten().tolist())


def make_picture(out: Path) -> None:
    """Train the network, then write ``mask-data.js`` and ``layer.png`` into the folder ``out``."""
    out.mkdir(parents=True)
    digits = load_digits(size=SIZE)
    with isolated_rng(0):
        net = cifar_resnet((1, 1, 1, 1), in_chans=1, width=CHANNELS)
    train(net, digits.train, TrainConfig(epochs=6, seed=0))
    chosen = torch.stack([digits.test.images[int((digits.test.labels == c).nonzero()[0])] for c in _CLASSES])
    maps = _maps(net, chosen)
    scale = float(maps.abs().max())
    data = {
        "classes": _CLASSES,
        "shape": _SHAPE,
        "steps": STEPS,
        "draws": draws(),
        "images": [_bytes(image * 255) for image in chosen],
        "maps": [_bytes(one / scale * 127 + 128) for one in maps],
    }
    (out / "mask-data.js").write_text(f"window.dcnMaskData = {json.dumps(data)};\n", encoding="utf-8")
    _draw(chosen[1, 0], maps[1], out / "layer.png")


@torch.no_grad()
def _maps(net: nn.Module, images: Tensor) -> Tensor:
    """What arrives at the stem's mask: (N, CHANNELS, SIZE, SIZE), normalised."""
    defective = dcn.defectify(net, blocks=(0,), p=0.3, input_size=(1, SIZE, SIZE)).eval()
    mask = next(module for module in defective.modules() if isinstance(module, dcn.DefectMask2d))
    assert mask.site == 0
    seen: list[Tensor] = []
    handle = mask.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    defective(images)
    handle.remove()
    return seen[0]


def _bytes(values: Tensor) -> str:
    return base64.b64encode(values.round().clamp(0, 255).numpy().astype(np.uint8).tobytes()).decode()


def _draw(image: Tensor, maps: Tensor, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    mask = sample_mask(MaskSpec(p=0.3), _SHAPE, site=0)
    rows = (
        ("norm(conv(x))", maps, {"cmap": "PuOr", "vmin": -float(maps.abs().max()), "vmax": float(maps.abs().max())}),
        ("mask M, p = 0.3", mask, {"cmap": "gray", "vmin": 0, "vmax": 1}),
        ("f(M · norm(conv(x)))", (maps * mask).relu(), {"cmap": "gray", "vmin": 0, "vmax": float(maps.max())}),
    )
    shown = 5
    figure, axes = plt.subplots(3, shown + 1, figsize=(8, 4.1), width_ratios=[1.25, *[1.0] * shown])
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for line, (title, values, options) in enumerate(rows):
        for channel in range(shown):
            axes[line, channel + 1].imshow(values[channel], **options)
        axes[line, 1].set_title(title, loc="left", fontsize=10)
        if line != 1:
            axes[line, 0].axis("off")
    axes[1, 0].imshow(image, cmap="gray", vmin=0, vmax=1)
    axes[1, 0].set_title("image x", loc="left", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120, facecolor="white")
    plt.close(figure)

"""The networks of the demonstration: trained as its settings say, or those that come with the package.

The targets of one run start from the same weights and see the same batches; only their masks differ. The source is
another training run. No target is treated in a way of its own.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from dcn_plugin.data import Splits
from dcn_plugin.errors import SpecError
from dcn_plugin.experiments.demo_spec import DemoSpec
from dcn_plugin.models import cifar_resnet
from dcn_plugin.pretrained import load_pretrained
from dcn_plugin.support.randomness import derived_seed
from dcn_plugin.surgery import defectify
from dcn_plugin.training import TrainConfig, isolated_rng, train

__all__ = [
    "BASELINE",
    "SHIPPED",
    "SHIPPED_KEEP",
    "SHIPPED_SEED",
    "SHIPPED_SPEC",
    "SOURCE",
    "initial_network",
    "network_names",
    "shipped_networks",
    "train_network",
    "training_of",
]

BASELINE = "standard"
SOURCE = "source"

SHIPPED = {
    SOURCE: "digits_resnet.source",
    BASELINE: "digits_resnet.standard",
    "defective p=0.3": "digits_resnet.defective_p0.3",
}
"""Network of the demonstration -> name of the pretrained one; made by ``recipes/pretrained``."""

SHIPPED_KEEP = (0.3,)
SHIPPED_SEED = 0

SHIPPED_SPEC = DemoSpec(keep=SHIPPED_KEEP, steps=10, images=50)
"""What the demonstration does with them by default: few images and steps, for an answer in seconds."""


def network_names(spec: DemoSpec) -> dict[str, float | None]:
    """Name of every net -> its keep probability, None for a standard one."""
    return {SOURCE: None, BASELINE: None, **{f"defective p={p:g}": p for p in spec.keep}}


def initial_network(spec: DemoSpec, seed: int, name: str, splits: Splits) -> nn.Module:
    """A net as it is before its training, with its masks; the global random state is left as it is."""
    channels, height, width = splits.train.shape
    keep = network_names(spec)[name]
    net: nn.Module
    with isolated_rng(_seed_for(seed, name, "weights")):
        net = cifar_resnet(spec.layers, num_classes=splits.train.num_classes, in_chans=channels, width=spec.width)
    if keep is None:
        return net
    masks = _seed_for(seed, name, "masks")
    return defectify(net, spec.blocks, keep, input_size=(channels, height, width), seed=masks)


def training_of(spec: DemoSpec, seed: int, name: str) -> TrainConfig:
    """How a net is trained, the seed of its batches included."""
    return dataclasses.replace(spec.training, seed=_seed_for(seed, name, "order"))


def train_network(spec: DemoSpec, seed: int, name: str, splits: Splits, *, progress: bool = False) -> nn.Module:
    """Train one net from nothing.

    Args:
        spec: the settings.
        seed: of the run.
        name: one of :func:`network_names`.
        splits: the images.
        progress: show a progress bar on stderr, if that is a terminal.
    """
    net = initial_network(spec, seed, name, splits)
    train(net, splits.train, training_of(spec, seed, name), progress=progress, name=name)
    return net


def shipped_networks(spec: DemoSpec) -> dict[str, nn.Module]:
    """The networks that come with the package, under their names in the demonstration.

    Raises:
        SpecError: the settings are of other networks.
    """
    fixed = ("size", "width", "layers", "blocks", "keep", "training")
    shipped_spec = DemoSpec(keep=SHIPPED_KEEP)
    other = {name: getattr(spec, name) for name in fixed if getattr(spec, name) != getattr(shipped_spec, name)}
    if other:
        raise SpecError(
            "The networks that come with the package have other settings.",
            other,
            ", ".join(f"{name}={getattr(shipped_spec, name)!r}" for name in other),
            "leave these out, or train networks of your own: pretrained=False",
        )
    return {name: load_pretrained(shipped) for name, shipped in SHIPPED.items()}


def _seed_for(seed: int, name: str, what: str) -> int:
    # The targets share theirs.
    return derived_seed("demo", seed, SOURCE if name == SOURCE else "target", what)

"""The networks of a recipe in data: what a label says, and what a trained network depends on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.cache_keys import digest
from dcn_plugin.experiments.attack_names import read_attack
from dcn_plugin.experiments.scales import Scale
from dcn_plugin.models.paper_variants import Variant, paper_variant
from dcn_plugin.specs import MASK_OPTIONS
from dcn_plugin.support.arguments import is_count
from dcn_plugin.support.randomness import derived_seed
from dcn_plugin.support.suggestions import check_known
from dcn_plugin.training import NormStatistics

__all__ = ["DEFENCES", "NETS", "ROUNDS", "Job", "Network", "jobs_of", "read_network"]

NETS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
    "senet18": "SENet-18",
    "vgg19": "VGG-19",
    "wrn32_4": "Wide-ResNet-32",
}
"""The paper's networks: name -> title."""

DEFENCES = {
    "SD": "spatial-dropout",
    "DB": "dropblock",
    "LS": "label-smoothing",
    "AT": "madry",
    "PubDef": "pubdef",
}
"""What may follow a variant: its mark in labels -> a name of :data:`dcn_plugin.training.baselines.BASELINES`."""

TARGET, SOURCE, PUBLIC = "target", "source", "public"
_BY_TITLE = {title.lower(): name for name, title in NETS.items()} | {name: name for name in NETS}
_INLINE = ("variant", "net", "run", "masks", "defects", "norm_statistics", "redrawn", "answers_of", "public_attacks")
#: Rounds in which a distilled source asks about the images that it moved; their number doubles from one to the next.
ROUNDS = 4
_DEFECTS = tuple(name for name in ("blocks", *MASK_OPTIONS) if name != "seed")  # a recipe draws its own seeds


@dataclass(frozen=True)
class Network:
    """One row or source of a table: a network, or an ensemble of several.

    Args:
        net: one of :data:`NETS`.
        variant: of the paper; its members make an ensemble.
        defence: one of :data:`DEFENCES`' values, or None.
        run: networks of one run start from the same weights and see the same batches; only their masks and defences
            differ. Targets are one run, sources another.
        masks: the run whose masks it has; its own by default. Other runs draw other masks.
        defects: options of the defective model that the variant does not have: p by block, mode, span, sampling,
            blocks.
        norm_statistics: what batch norms behind masks take their statistics from in training, see
            :class:`dcn_plugin.training.TrainConfig`.
        redrawn: 0, or how many sets of masks drawn anew it is asked under; in training every step draws its own, see
            :class:`dcn_plugin.models.MaskExpectation`.
        answers_of: the network that it is distilled from, see :func:`dcn_plugin.training.distill_source`; None: it is
            trained on labels.
        public_attacks: of PubDef, as recipes write attacks; (): PGD.
    """

    net: str
    variant: Variant = field(default_factory=Variant)
    defence: str | None = None
    run: str = TARGET
    masks: str | None = None
    defects: Mapping[str, Any] = field(default_factory=dict)
    norm_statistics: NormStatistics = "all"
    redrawn: int = 0
    answers_of: Network | None = None
    public_attacks: tuple[str, ...] = ()


def read_network(text: str | Mapping[str, Any], *, net: str, run: str = TARGET) -> Network:
    """Read what a recipe says about a network.

    Args:
        text: "[NET] VARIANT [+ DEFENCE]", as the paper's tables have it: "ResNet-18 standard", "0.3-Bottom SM",
            "Standard CNN + SD (Tompson et al., 2015)", "vgg19". Or a table of such a text as ``variant`` and any of
            ``net``, ``run``, ``masks``, ``defects``, ``norm_statistics``, ``redrawn``, ``public_attacks`` and
            ``answers_of``; the last is a network written like this one, of the run of the targets where it says none.
        net: where the text names none.
        run: where it says none.

    Raises:
        SpecError: it says no network (the nearest names are in the message), or what does not go together.
    """
    more: dict[str, Any] = {}
    if isinstance(text, Mapping):
        for key in text:
            check_known("key of a network", key, _INLINE)
        more = {key: text[key] for key in ("run", "masks", "defects", "norm_statistics", "redrawn") if key in text}
        if "answers_of" in text:
            more["answers_of"] = read_network(text["answers_of"], net=net)
        if "public_attacks" in text:
            more["public_attacks"] = _public_attacks(text["public_attacks"])
        for key in more.get("defects", {}):
            check_known("option of defects", key, _DEFECTS)
        check_known("kind of norm statistics", more.get("norm_statistics", "all"), get_args(NormStatistics))
        net, text = str(text.get("net", net)), str(text.get("variant", "Standard"))
    body, *defences = text.split(" + ")
    named, rest = _split_net(body)
    net = named or net
    check_known("network", net, NETS)
    marks = [re.sub(r"\s*\(.*\)\*?$", "", mark).strip() for mark in defences]
    for mark in marks:
        check_known("defence", mark, DEFENCES)
    if len(marks) > 1:
        raise SpecError("A network has one defence beside its masks.", text, "NET VARIANT + DEFENCE")
    network = Network(
        net=net,
        variant=paper_variant(rest or "Standard"),
        defence=DEFENCES[marks[0]] if marks else None,
        **{"run": run, **more},
    )
    _check_attacker(network)
    if network.public_attacks and network.defence != "pubdef":
        raise SpecError("Attacks on public networks are for PubDef.", network.defence, '"... + PubDef"')
    return network


def _public_attacks(given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not all(isinstance(text, str) for text in given):
        raise SpecError("The attacks on public networks are no list of texts.", given, '["mi-fgsm(8,0.25)"]')
    return tuple(read_attack(text).text for text in given)


def _check_attacker(network: Network) -> None:
    """Refuse what only an attacker's network can be, where it cannot."""
    if not is_count(network.redrawn, least=0):
        raise SpecError("The number of sets of masks drawn anew is not usable.", network.redrawn, "an int >= 0")
    masked = network.variant.masked or bool(network.defects)
    if network.redrawn and (not masked or network.norm_statistics != "all"):
        raise SpecError(
            "Masks are drawn anew in a network that has some and whose norms see all neurons.",
            {"masks": masked, "norm_statistics": network.norm_statistics},
            "a variant with masks, norm_statistics 'all'",
        )
    if network.answers_of is not None and (network.answers_of.answers_of is not None or network.defence is not None):
        raise SpecError(
            "A distilled network is trained on the answers of a target, and on nothing else.",
            {"defence": network.defence, "its target is distilled": network.answers_of.answers_of is not None},
            "no defence, and a target that is trained on labels",
        )


def _split_net(body: str) -> tuple[str | None, str]:
    head, _, rest = body.strip().partition(" ")
    name = _BY_TITLE.get(head.lower())
    return (name, rest.strip()) if name else (None, body.strip())


@dataclass(frozen=True)
class Job:
    """One network to train.

    Args:
        network: what it is; of an ensemble one member.
        member: number of the member, from 0.
        seed: of the replicate.
        scale: the size it is trained at.
        data: name of the data set.
        copy: which copy of it: images that were compressed again train another network.
    """

    network: Network
    member: int
    seed: int
    scale: Scale
    data: str
    copy: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """All that the trained weights depend on, but for machine, versions and code, as JSON values."""
        network, scale = self.network, self.scale
        variant = network.variant
        return {
            "data": [self.data, self.copy],
            "train_images": scale.train_images,
            "net": network.net,
            "width": scale.width,
            "variant": {"bottom": variant.bottom, "top": variant.top, "kind": variant.kind},
            "defects": dict(network.defects),
            "defence": network.defence,
            "defence_steps": scale.max_steps if network.defence in ("madry", "pubdef") else None,
            "training": scale.training_json,
            **({} if network.norm_statistics == "all" else {"norm_statistics": network.norm_statistics}),
            **({"public_attacks": list(network.public_attacks)} if network.public_attacks else {}),
            **({"redrawn": network.redrawn} if network.redrawn else {}),
            **({"answers": [self.scale.answers, ROUNDS, *(job.key for job in self.targets)]} if self.targets else {}),
            "weights_seed": self.weights_seed,
            "masks_seed": self.masks_seed if variant.masked or network.defects else None,
            "order_seed": self.order_seed,
        }

    @property
    def name(self) -> str:
        """Name of its folder: readable, and different where the key is."""
        network = self.network
        parts = [
            network.net,
            _variant_name(network.variant),
            *([network.defence] if network.defence else []),
            digest(self.key)[:12],
        ]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))

    @property
    def title(self) -> str:
        """For people: "ResNet-18 0.3-Bottom (source)"."""
        network = self.network
        defence = next((f" + {mark}" for mark, name in DEFENCES.items() if name == network.defence), "")
        defence += f" by {', '.join(network.public_attacks)}" if network.public_attacks else ""
        member = f", member {self.member + 1}" if network.variant.members > 1 else ""
        run = f" ({network.run})" if network.run != TARGET else ""
        defects = " own defects" if network.defects else ""
        asked = network.answers_of
        redrawn = f", {network.redrawn} masks drawn anew" if network.redrawn else ""
        answers = f", from {self.scale.answers} answers of {self.targets[0].title}" if asked is not None else ""
        norms = "" if network.norm_statistics == "all" else f", statistics of {network.norm_statistics} neurons"
        masks = f"{_variant_name(network.variant)}{defects}{defence}{norms}{redrawn}"
        return f"{NETS[network.net]} {masks}{run}{member}{answers}"

    @property
    def targets(self) -> list[Job]:
        """The networks whose answers it is trained on; none of most."""
        asked = self.network.answers_of
        return (
            [] if asked is None else jobs_of([asked], seed=self.seed, scale=self.scale, data=self.data, copy=self.copy)
        )

    @property
    def weights_seed(self) -> int:
        """Of the initial weights: shared by all variants of a run."""
        return derived_seed("weights", self.seed, self.network.run, self.member)

    @property
    def masks_seed(self) -> int:
        """Of the masks."""
        return derived_seed("masks", self.seed, self.network.masks or self.network.run, self.member)

    @property
    def order_seed(self) -> int:
        """Of order and augmentation."""
        return derived_seed("order", self.seed, self.network.run, self.member)


def jobs_of(networks: Sequence[Network], *, seed: int, scale: Scale, data: str, copy: str = "") -> list[Job]:
    """The networks to train for a row or source: one, or the members of an ensemble.

    Args:
        networks: the networks whose mean logits count.
        seed: of the replicate.
        scale: of the run.
        data: name of the data set.
        copy: see :class:`Job`.
    """
    return [
        Job(network, member, seed, scale, data, copy)
        for network in networks
        for member in range(min(network.variant.members, scale.members))
    ]


def _variant_name(variant: Variant) -> str:
    parts = [f"{p:g}-{where}" for p, where in ((variant.bottom, "Bottom"), (variant.top, "Top")) if p is not None]
    kind = {"neuron": "", "channel": " DC", "shared": " SM", "wide": " x2"}[variant.kind]
    return ", ".join(parts) + kind if parts else "Standard"

"""What users pass by mistake is named at the call; what is meant beyond doubt is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcn_plugin.attacks import PGD, HopSkipJump
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import DataError, DcnError, SpecError
from dcn_plugin.evaluate import (
    AdversarialSet,
    Result,
    amplitude,
    cue_conflict,
    gaussian,
    minimal_distance,
    sanity,
    shuffle,
    stylized,
    tapm,
    transfer,
    whitebox,
)
from tests.toys import ModeNet, image_set

NETS = {"a": ModeNet().eval()}
DATA = image_set(6)
ATTACK = PGD(0.1, steps=1)


def ask(protocol: str, **changes: Any) -> Iterator[Result]:
    """Call a protocol with arguments that are right but for the changes."""
    calls: dict[str, tuple[Callable[..., Iterator[Result]], dict[str, Any]]] = {
        "transfer": (transfer, {"sources": NETS, "targets": NETS, "attacks": [ATTACK], "data": DATA}),
        "tapm": (tapm, {"sources": NETS, "targets": NETS, "attacks": [ATTACK], "data": DATA}),
        "whitebox": (whitebox, {"targets": NETS, "attacks": [ATTACK], "data": DATA}),
        "distance": (minimal_distance, {"targets": NETS, "attack": HopSkipJump(max_queries=30), "data": DATA}),
        "gaussian": (gaussian, {"targets": NETS, "data": DATA, "levels": [0.1]}),
        "shuffle": (shuffle, {"targets": NETS, "data": DATA, "ks": [2]}),
        "amplitude": (amplitude, {"targets": NETS, "data": DATA}),
        "stylized": (stylized, {"targets": NETS, "original": DATA, "changed": DATA}),
        "cue-conflict": (cue_conflict, {"targets": NETS, "data": DATA}),
        "sanity": (sanity, {"model": NETS["a"], "data": DATA, "eps": 0.1, "steps": 2, "queries": 0}),
    }
    function, arguments = calls[protocol]
    return function(**{"seed": 0, **arguments, **changes})


LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(DATA.images, DATA.labels))
IMAGES = ["transfer", "tapm", "whitebox", "distance", "gaussian", "shuffle", "amplitude", "cue-conflict", "sanity"]
TARGETS = ["transfer", "tapm", "whitebox", "distance", "gaussian", "shuffle", "amplitude", "stylized"]


@pytest.mark.parametrize("protocol", IMAGES)
@pytest.mark.parametrize(
    "data", [LOADER, DATA.images, DATA.images.numpy(), (DATA.images, DATA.labels), "digits", ImageSet]
)
def test_what_is_no_set_of_images_is_named_at_the_call(protocol: str, data: object) -> None:
    with pytest.raises(DataError, match=r"labelled images|cue conflict"):
        ask(protocol, data=data)


@pytest.mark.parametrize("protocol", TARGETS)
@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (ModeNet(), "give every model a name"),
        ([ModeNet()], "give every model a name"),
        ({}, "nothing to measure"),
        ({"a": ModeNet}, r"call ModeNet\("),
        ({"a": ModeNet().state_dict()}, "load the weights into a model"),
        ({"a": type("Classifier", (), {"model": ModeNet()})()}, r"pass its \.model"),
        ({"a": lambda x: x}, "no model"),
        ({3: ModeNet()}, "no text"),
    ],
)
def test_what_is_no_model_with_a_name_is_named_at_the_call(protocol: str, targets: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        ask(protocol, targets=targets)
    if protocol in ("transfer", "tapm"):
        with pytest.raises(SpecError, match=words):
            ask(protocol, sources=targets)


def test_models_and_images_of_the_protocols_with_arguments_of_their_own_are_checked_too() -> None:
    with pytest.raises(SpecError, match=r"call ModeNet\("):
        ask("sanity", model=ModeNet)
    with pytest.raises(SpecError, match="name"):
        ask("sanity", sources=[ModeNet()])
    with pytest.raises(DataError, match="labelled images"):
        ask("stylized", changed=LOADER)


@pytest.mark.parametrize(
    ("attacks", "words"),
    [
        ([], "nothing to measure"),
        (PGD, r"call PGD\("),
        (["pgd"], "no attack"),
        ("pgd", "no attack"),
        (None, "no attack"),
        ([ATTACK, 3], "no attack"),
    ],
)
@pytest.mark.parametrize("protocol", ["transfer", "tapm", "whitebox"])
def test_what_is_no_attack_is_named_at_the_call(protocol: str, attacks: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        ask(protocol, attacks=attacks)


@pytest.mark.parametrize(
    ("protocol", "changes"),
    [
        ("gaussian", {"levels": ["0.1"]}),
        ("gaussian", {"levels": "0.1"}),
        ("gaussian", {"levels": []}),
        ("gaussian", {"levels": np.zeros((2, 2))}),
        ("gaussian", {"levels": [0.1, float("nan")]}),
        ("gaussian", {"levels": [True]}),
        ("gaussian", {"levels": [0.1, 0.0]}),
        ("gaussian", {"noise": "loud"}),
        ("gaussian", {"noise_seed": -1}),
        ("shuffle", {"ks": ["2"]}),
        ("shuffle", {"ks": [2.0]}),
        ("shuffle", {"ks": [0]}),
        ("shuffle", {"confidence": "high"}),
        ("sanity", {"eps": "8/255"}),
        ("sanity", {"eps": 2}),
        ("sanity", {"steps": 1}),
        ("sanity", {"queries": -1}),
        ("distance", {"count": 0}),
        ("distance", {"count": 1.5}),
        ("distance", {"attack": ATTACK}),
        ("distance", {"attack": [HopSkipJump(), HopSkipJump()]}),
        ("transfer", {"rounding": "16bit"}),
        *((protocol, {"batch_size": size}) for protocol in TARGETS for size in (0, "32", 2.5)),
        *((protocol, {"seed": seed}) for protocol in TARGETS for seed in (-1, "0", None, True)),
        *((protocol, {"store": "run"}) for protocol in TARGETS),
    ],
)
def test_numbers_and_choices_are_checked_at_the_call(protocol: str, changes: dict[str, Any]) -> None:
    with pytest.raises(DcnError):
        ask(protocol, **changes)


def test_numbers_of_numpy_and_torch_are_taken_and_one_stands_for_a_list_of_one() -> None:
    plain = list(ask("gaussian", levels=[0.25], seed=3, batch_size=4))
    for level in (np.float32(0.25), torch.tensor(0.25), [np.float32(0.25)], np.array([0.25]), torch.tensor([0.25])):
        assert list(ask("gaussian", levels=level, seed=np.int64(3), batch_size=torch.tensor(4))) == plain
    assert type(plain[0].seed) is int
    for ks in (2, np.int64(2), [torch.tensor(2)], np.array([2])):
        assert list(ask("shuffle", ks=ks)) == list(ask("shuffle", ks=[2]))
    assert list(ask("whitebox", attacks=ATTACK)) == list(ask("whitebox", attacks=(ATTACK,)))
    assert list(ask("sanity", eps=np.float32(0.25))) == list(ask("sanity", eps=0.25))


def test_a_foreign_attack_says_how_it_is_run_here() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    with pytest.raises(SpecError, match=r'TorchAttack\("FGSM", \.\.\.\)'):
        AdversarialSet("a", NETS["a"], torchattacks.FGSM(NETS["a"]), DATA)


def test_a_name_for_a_model_that_is_no_module_names_the_source() -> None:
    with pytest.raises(SpecError, match="Source 'x'"):
        AdversarialSet("x", nn.Linear, ATTACK, DATA)  # type: ignore[arg-type]

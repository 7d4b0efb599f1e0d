"""Networks whose answer for an image depends on the others of its batch."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD, Attack, HopSkipJump
from dcn_plugin.attacks import batch_independence as independence
from dcn_plugin.attacks.batch_independence import mixes_batch, warn_if_mixed
from dcn_plugin.errors import MixedBatchWarning
from dcn_plugin.evaluate.predictions import predict


class Net(nn.Module):
    """Logits of five classes, after something was done to features (N, 6)."""

    def __init__(self, then: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features, self.then, self.head = nn.Linear(48, 6), then, nn.Linear(6, 5)
        self.calls: list[int] = []
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        logits: Tensor = self.head(self.then(self.features(x.flatten(1))))
        return logits


class StaysInTraining(nn.BatchNorm1d):
    """Ignores eval()."""

    def train(self, mode: bool = True) -> StaysInTraining:
        return super().train(True)


class OwnNoise(nn.Module):
    """Adds noise from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.own)


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))


MIXED: dict[str, Callable[[], Callable[[Tensor], Tensor] | nn.Module]] = {
    "no running statistics": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "stays in training mode": lambda: StaysInTraining(6),
    "mean": lambda: lambda x: x - x.mean(0),
    "softmax over images": lambda: lambda x: x.softmax(0),
    "deviation": lambda: lambda x: x + x.std(0, correction=0),
    "attention": lambda: lambda x: (0.01 * x @ x.T).softmax(1) @ x,
}
APART: dict[str, Callable[[], Callable[[Tensor], Tensor] | nn.Module]] = {
    "relu": lambda: nn.ReLU(),
    "running statistics": lambda: nn.BatchNorm1d(6),
    "random": lambda: lambda x: x + torch.randn_like(x),
    "random of its own": lambda: OwnNoise(),
}


@pytest.mark.parametrize("name", MIXED)
def test_networks_that_mix_are_found(name: str) -> None:
    net = Net(MIXED[name]())
    assert mixes_batch(net, images()) is not None
    with pytest.warns(MixedBatchWarning, match="Net says about an image depends on the other images"):
        warn_if_mixed(net, images())


@pytest.mark.parametrize("name", APART)
def test_networks_that_do_not_are_not(name: str) -> None:
    assert mixes_batch(Net(APART[name]()), images()) is None


def test_a_network_that_takes_one_image_at_a_time_is_not_probed() -> None:
    def choosy(x: Tensor) -> Tensor:
        if len(x) > 1:
            raise ValueError("one at a time")
        return x

    assert mixes_batch(Net(choosy), images()) is None


def test_a_network_is_probed_once_and_stays_as_it_is() -> None:
    net = Net(nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5))).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = torch.get_rng_state()
    for _ in range(3):
        warn_if_mixed(net, images())
    assert net.calls == []  # a copy was asked
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_wrappers_are_looked_through() -> None:
    net = Net(MIXED["mean"]())
    with pytest.warns(MixedBatchWarning, match="^What target says"):
        warn_if_mixed(nn.DataParallel(dcn.Normalized(net, [0.5] * 3, [0.2] * 3)), images(), name="target")


def test_hooks_of_who_counts_questions_are_not_called() -> None:
    net, counted = Net(nn.ReLU()), []
    net.register_forward_pre_hook(lambda _, args: counted.append(len(args[0])))
    predict(net, images())
    assert counted == [3]


def test_evaluators_warn() -> None:
    with pytest.warns(MixedBatchWarning):
        predict(Net(MIXED["mean"]()), images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(Net(nn.ReLU()), images())


@pytest.mark.parametrize("attack", [PGD(8 / 255, steps=1), HopSkipJump(max_queries=30)])
def test_attacks_warn_and_ask_nothing_that_is_not_counted(attack: Attack) -> None:
    net, labels = Net(nn.ReLU()), torch.tensor([0, 1, 2])
    found = attack(net, images(), labels)
    assert sum(net.calls) == int(found.queries.sum())
    seen = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), net)
    with pytest.warns(MixedBatchWarning, match=r"'0' \(BatchNorm2d\)"):
        attack(seen, images(), labels)
    with pytest.warns(MixedBatchWarning, match="another answer beside another image"):
        attack(Net(MIXED["mean"]()), images(), labels)


def test_a_network_is_asked_by_its_copy_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    real = independence.copy_of

    def kept(*args: Any, **options: Any) -> Any:
        copies.append(real(*args, **options))
        return copies[-1]

    monkeypatch.setattr(independence, "copy_of", kept)
    net = Net(nn.ReLU())
    for _ in range(3):
        warn_if_mixed(net, images())
    (shadow,) = copies
    assert shadow.calls == [2, 2]
    assert all(ours is theirs for ours, theirs in zip(shadow.parameters(), net.parameters(), strict=True))


def test_a_network_that_cannot_be_copied_is_not_probed() -> None:
    net = Net(MIXED["mean"]())
    net.lock = threading.Lock()
    assert mixes_batch(net, images()) is None


def test_an_attack_warns_of_what_an_evaluator_has_seen() -> None:
    net = Net(MIXED["mean"]())
    with pytest.warns(MixedBatchWarning):
        predict(net, images())
    with pytest.warns(MixedBatchWarning):
        PGD(8 / 255, steps=1)(net, images(), torch.tensor([0, 1, 2]))


def test_a_module_that_only_asks_a_model_does_not_give_its_name_to_the_warning() -> None:
    """As the bridges to ART and torchattacks do it."""

    class Bridge(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inside = model

        @property
        def asked_model(self) -> nn.Module:
            return self.inside

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inside(x)
            return logits

    net = Net(nn.BatchNorm1d(6, track_running_stats=False))
    with pytest.warns(MixedBatchWarning, match=r"What Net says .*: 'then' \(BatchNorm1d\)"):
        warn_if_mixed(Bridge(dcn.Normalized(net, [0.5] * 3, [0.5] * 3)), torch.rand(1, 3, 4, 4))

"""Networks that return several outputs in training are trained with the one that evaluation returns, or refused."""

from __future__ import annotations

import logging
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD
from dcn_plugin.errors import ModelOutputError, SpecError
from dcn_plugin.evaluate.predictions import correct_on, predict
from dcn_plugin.training import TrainConfig, isolated_rng, madry, pubdef, train
from dcn_plugin.training.processes import Alone
from tests.nets import same, snapshot
from tests.toys import image_set

SHAPE, CLASSES = (3, 12, 12), 4
DATA = image_set(24, classes=CLASSES, shape=SHAPE)
CONFIG = TrainConfig(epochs=2, batch_size=8, lr=0.05)
Outputs = namedtuple("Outputs", ["logits", "aux"])
Unnamed = namedtuple("Unnamed", ["first", "second"])

TOGETHER: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda main, aux: (main, aux),
    "list": lambda main, aux: [main, aux],
    "main last": lambda main, aux: (aux, main),
    "with a map": lambda main, aux: (aux[:, :, None, None], None, main),
    "named tuple": lambda main, aux: Outputs(main, aux),
    "other names": lambda main, aux: Unnamed(aux, main),
    "dict": lambda main, aux: OrderedDict(out=main, aux=aux),
    "dict of other names": lambda main, aux: {"aux": aux, "probs": main},
}


class Net(nn.Module):
    """Two heads on batch norm and dropout; training returns both."""

    def __init__(self, together: Callable[[Tensor, Tensor], Any] | None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head, self.aux, self.together = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES), together

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).mean((2, 3))
        main = self.head(x)
        if self.training and self.together is not None:
            return self.together(main, self.aux(x))
        return main


def net(together: Callable[[Tensor, Tensor], Any] | None) -> Net:
    with isolated_rng(1):
        return Net(together)


@pytest.mark.parametrize("how", TOGETHER)
def test_the_main_head_is_trained_as_if_it_were_alone(how: str, caplog: pytest.LogCaptureFixture) -> None:
    model, alone = net(TOGETHER[how]), net(None)
    with caplog.at_level(logging.WARNING):
        losses = train(model, DATA, CONFIG).losses
    assert losses == train(alone, DATA, CONFIG).losses
    assert all(torch.equal(value, alone.state_dict()[key]) for key, value in model.state_dict().items())
    assert caplog.text.count("it is trained with") == 1


@pytest.mark.parametrize("hook", [madry(steps=1), pubdef([DATA.images])])
def test_so_it_is_in_adversarial_training(hook: Any) -> None:
    losses = train(net(TOGETHER["main last"]), DATA, CONFIG, step_images=hook).losses
    assert losses == train(net(None), DATA, CONFIG, step_images=hook).losses


def test_wrappers_and_masks_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def wrapped(together: Callable[[Tensor, Tensor], Any] | None) -> nn.Module:
        masked = dcn.defectify(net(together), "all", 0.5, input_size=SHAPE)
        return dcn.Normalized(nn.DataParallel(masked), [0.5] * 3, [0.2] * 3)

    assert train(wrapped(TOGETHER["dict"]), DATA, CONFIG).losses == train(wrapped(None), DATA, CONFIG).losses


def test_a_named_entry_counts_where_training_changes_every_value() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x + torch.rand_like(x) if self.training else x)

    with isolated_rng(1):
        assert train(Noisy(TOGETHER["dict"]), DATA, CONFIG).losses
        model = Noisy(TOGETHER["other names"])
    before = snapshot(model)
    with pytest.raises(ModelOutputError, match=r"none is what.*Unnamed of first: \(2, 4\).*aux_logits"):
        train(model, DATA, CONFIG)
    assert same(before, snapshot(model))


def test_heads_that_are_all_alike_are_told_by_name_or_not_at_all() -> None:
    def zeros(how: str) -> Net:
        model = net(TOGETHER[how])
        for head in (model.head, model.aux):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        return model

    assert train(zeros("dict"), DATA, CONFIG).losses
    with pytest.raises(ModelOutputError, match="more than one is what it returns in evaluation"):
        train(zeros("tuple"), DATA, CONFIG)


def test_a_tensor_of_another_shape_in_training_is_refused() -> None:
    model = net(lambda main, aux: torch.stack([main, aux]))
    with pytest.raises(ModelOutputError, match=r"does not return logits.*\(2, 2, 4\)"):
        train(model, DATA, CONFIG)


def test_looking_for_it_changes_nothing() -> None:
    from dcn_plugin.training.heads import main_head

    model = net(TOGETHER["tuple"])
    model.body[1].eval()
    before = snapshot(model)
    assert main_head(model, SHAPE) is not None and main_head(net(None), SHAPE) is None
    assert same(before, snapshot(model))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Alone, "team", Alone.team._replace(size=2))
    with pytest.raises(SpecError, match=r"auxiliary heads.*one process"):
        train(net(TOGETHER["tuple"]), DATA, CONFIG)


def test_googlenet_is_trained_with_its_logits(caplog: pytest.LogCaptureFixture) -> None:
    with isolated_rng(0):
        model = torchvision.models.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False)
    data = image_set(4, classes=CLASSES, shape=(3, 32, 32))
    with caplog.at_level(logging.WARNING):
        train(model, data, TrainConfig(epochs=1, batch_size=4))
    assert "GoogLeNetOutputs of logits: (2, 4), aux_logits2: (2, 4), aux_logits1: (2, 4)" in caplog.text
    assert "trained with 'logits' alone" in caplog.text


# ----------------------------------------------------------------------------- outputs that are no logits at all


class Says(nn.Module):
    """Returns whatever ``shape`` makes of the logits, in both modes."""

    def __init__(self, shape: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.head, self.shape = nn.Linear(3, 2), shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(self.head(x.mean((2, 3))))


TWO = image_set(8, classes=2, shape=SHAPE)
USES: dict[str, Callable[[nn.Module], object]] = {
    "train": lambda model: train(model, TWO, CONFIG),
    "predict": lambda model: predict(model, TWO.images),
    "correct": lambda model: correct_on(model, TWO),
    "attack": lambda model: PGD(eps=0.1)(model, TWO.images, TWO.labels),
}
NO_LOGITS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "tuple": (lambda z: (z, z), r"tuple of \(\d+, 2\), \(\d+, 2\).*model\(images\)\[0\]"),
    "dict": (lambda z: OrderedDict(out=z, aux=z), r"OrderedDict of out: .*model\(images\)\['out'\]"),
    "named tuple": (lambda z: Outputs(z, None), r"Outputs of logits: .*aux: NoneType.*model\(images\)\.logits"),
    "one logit": (lambda z: z[:, :1], "one number an image.*two logits"),
    "one number": (lambda z: z[:, 0], "one number an image.*two logits"),
    "a map": (lambda z: z[:, :, None, None], r"does not return logits.*\(\d+, 2, 1, 1\)"),
    "nothing": (lambda z: None, "does not return logits alone.*NoneType"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("case", NO_LOGITS)
def test_an_output_that_is_no_logits_is_named_with_what_to_do(use: str, case: str) -> None:
    shape, message = NO_LOGITS[case]
    with pytest.raises(ModelOutputError, match=message):
        USES[use](Says(shape))

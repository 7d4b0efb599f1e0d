from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from dcn_plugin.checkpoint.class_names import class_names_in, class_names_of, name_classes
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import ModelOutputError, NotDefectiveError, SpecError
from dcn_plugin.models import cifar_resnet
from dcn_plugin.surgery import defect_spec, defectify, summary
from dcn_plugin.training import Batch, GradualDefects, TrainConfig, isolated_rng, madry, pubdef, smoothing_for, train
from dcn_plugin.training.checks import masks_hash
from tests.nets import same, snapshot
from tests.toys import ModeNet, image_set, images, linear_model

CONFIG = TrainConfig(epochs=3, batch_size=8, lr=0.05, shift=1, seed=4)


def separable(count: int = 60) -> ImageSet:
    """The class is the brightest of three rows."""
    x = images(count, shape=(1, 3, 4)) * 0.5
    labels = torch.arange(count) % 3
    x[torch.arange(count), 0, labels] += 0.5
    return ImageSet(x, labels, 3, "rows")


def test_training_learns_what_can_be_learned() -> None:
    model, data = linear_model(12, dtype=torch.float32), separable()
    result = train(model, data, TrainConfig(epochs=15, batch_size=10, lr=0.1))
    with torch.no_grad():
        assert (model(data.images).argmax(1) == data.labels).float().mean() > 0.95
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert (result.steps, len(result.losses)) == (90, 15)
    assert result.history.epochs[-1].train_accuracy > 0.95


def test_the_same_seed_gives_bit_equal_weights_and_another_seed_others() -> None:
    found = []
    for seed in (4, 4, 5):
        model = ModeNet()
        train(model, image_set(40), dataclasses.replace(CONFIG, seed=seed))
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_global_generator_is_left_alone_and_has_no_say_not_even_in_dropout() -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model = ModeNet()
        train(model, image_set(40), CONFIG)
        found.append(model.head.weight)
        torch.manual_seed(seed)
        ModeNet()  # its constructor draws
        torch.manual_seed(seed)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0], found[1])


def test_training_itself_draws_nothing_from_the_global_generator() -> None:
    model = ModeNet()
    before = torch.get_rng_state()
    train(model, image_set(40), CONFIG)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_come_back_and_the_model_trains_in_between(fails: bool) -> None:
    model = ModeNet().eval()
    model.norm.train()
    before = [module.training for module in model.modules()]
    during: list[bool] = []

    def watch(module: nn.Module, *_: Any) -> None:
        if torch.is_grad_enabled():  # the check before the first step runs the model in eval mode
            during.append(module.training)
        if fails and len(during) == 3:
            raise KeyboardInterrupt

    model.register_forward_hook(watch)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            train(model, image_set(40), CONFIG)
    else:
        train(model, image_set(40), CONFIG)
    assert all(during)
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_weights_stay_as_they_are() -> None:
    model = ModeNet()
    kept = model.conv.weight.clone()
    train(model, image_set(40), CONFIG)
    assert torch.equal(model.conv.weight, kept)


def test_it_takes_the_steps_of_a_plain_loop_written_out() -> None:
    data = image_set(12, shape=(1, 3, 4))
    config = TrainConfig(epochs=2, batch_size=4, lr=0.1, label_smoothing=0.1, weight_decay=0.01, warmup=0.4, seed=1)
    model, expected = linear_model(12), linear_model(12)
    train(model, data, config)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    # Six steps: the share done is 0, 0.2, 0.4, ..., 1; the top is reached at 0.4.
    shares = [1 / 25, (1 + 1 / 25) / 2, 1, *(_cosine(1, 1 / 250_000, k / 3) for k in (1, 2, 3))]
    step = 0
    for _ in range(2):
        order = torch.randperm(12, generator=generator)
        for start in (0, 4, 8):
            chosen = order[start : start + 4]
            optimizer.param_groups[0]["lr"] = 0.1 * shares[step]
            loss = nn.functional.cross_entropy(expected(data.images[chosen]), data.labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def _cosine(start: float, end: float, part: float) -> float:
    return float(start + (end - start) * (1 - torch.cos(torch.tensor(torch.pi * part))) / 2)


def test_a_loss_that_is_no_number_any_more_stops_the_training_by_name() -> None:
    class Exploding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * self.scale * float("inf")

    with pytest.raises(ModelOutputError, match="lower lr"):
        train(Exploding(), image_set(20), CONFIG)


def test_a_progress_bar_shows_only_when_asked_and_only_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(ModeNet(), image_set(20), CONFIG, progress=True, name="mine")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 3 and "\r" not in err, "a line an epoch, and no bar"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    train(ModeNet(), image_set(20), CONFIG, name="mine")
    assert capsys.readouterr() == ("", "")
    train(ModeNet(), image_set(20), CONFIG, progress=True, name="mine")
    out, err = capsys.readouterr()
    assert out == ""
    assert "mine epoch 3: loss" in err


def plain(*, width: int = 4) -> nn.Module:
    with isolated_rng(0):
        return cifar_resnet((1, 1, 1, 1), num_classes=3, in_chans=1, width=width)


def defective(*, width: int = 4) -> nn.Module:
    return defectify(plain(width=width), p=0.5, input_size=(1, 8, 8), seed=1)


SQUARES = image_set(40, shape=(1, 8, 8))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_steps_and_label_smoothing_reach_the_optimiser() -> None:
    data, model, expected = image_set(8, shape=(1, 3, 4)), linear_model(12), linear_model(12)
    config = TrainConfig(
        epochs=3,
        batch_size=4,
        lr=0.2,
        schedule="steps",
        milestones=(1, 2),
        momentum=0,
        nesterov=False,
        weight_decay=0,
        label_smoothing=smoothing_for(0.9, 3),
    )
    result = train(model, data, config)
    assert [record.lr for record in result.history.epochs] == pytest.approx([0.2, 0.02, 0.002])
    generator = torch.Generator().manual_seed(0)
    for lr in (0.2, 0.02, 0.002):
        for places in torch.randperm(8, generator=generator).split(4):
            targets = torch.full((4, 3), 0.05).scatter_(1, data.labels[places].view(-1, 1), 0.9)
            loss = -(targets * expected(data.images[places]).log_softmax(1)).sum(1).mean()
            for parameter, gradient in zip(
                expected.parameters(), torch.autograd.grad(loss, list(expected.parameters())), strict=True
            ):
                parameter.data -= lr * gradient
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_clipping_bounds_the_gradient_of_every_step() -> None:
    norms: list[float] = []
    step = torch.optim.SGD.step

    def watch(self: Any, *args: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", watch)
        train(plain(), SQUARES, CONFIG)
        free, norms = norms, []
        train(plain(), SQUARES, dataclasses.replace(CONFIG, clip_norm=0.1))
    assert min(free) > 0.2
    assert norms and max(norms) == pytest.approx(0.1, rel=1e-4)


def test_an_average_is_what_is_returned_and_keeps_the_masks() -> None:
    raw, averaged, model = defective(), defective(), defective()
    masks = masks_hash(model)
    config = dataclasses.replace(CONFIG, ema_decay=0.9)
    train(raw, SQUARES, CONFIG)
    train(averaged, SQUARES, config)
    assert masks_hash(averaged) == masks
    assert not equal(weights(raw), weights(averaged))
    # Step by step, with the decay that rises as 1 - (1 + k) ** (-2/3): 0, 0.37, 0.52, ...
    states: list[dict[str, Tensor]] = []
    step = torch.optim.SGD.step

    def watch(self: Any, *args: Any) -> Any:
        done = step(self, *args)
        states.append(weights(model))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", watch)
        train(model, SQUARES, CONFIG)
    assert len(states) == 15
    expected = states[0]["conv1.weight"]
    for k, state in enumerate(states[1:], start=1):
        decay = min(0.9, 1 - (1 + k) ** (-2 / 3))
        expected = decay * expected + (1 - decay) * state["conv1.weight"]
    torch.testing.assert_close(averaged.state_dict()["conv1.weight"], expected, rtol=0, atol=1e-6)


def test_gradual_masks_are_those_of_a_loop_written_out_and_end_at_the_networks_own() -> None:
    model, expected = defective(), defective()
    masks, spec = masks_hash(model), defect_spec(model)
    config = dataclasses.replace(CONFIG, gradual="linear", gradual_share=0.6, shift=0, schedule="steps", nesterov=False)
    seen: list[float] = []

    def watch(_: nn.Module, batch: Batch, __: Generator) -> Batch:
        seen.append(summary(model).kept / summary(model).neurons)
        return batch

    result = train(model, SQUARES, config, step_images=watch)
    assert masks_hash(model) == masks and defect_spec(model) == spec
    assert [record.mask_progress for record in result.history.epochs] == pytest.approx([5 / 9, 1, 1])
    gradual = GradualDefects(expected, 9)
    generator = Generator().manual_seed(config.seed)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    kept = []
    for _ in range(3):
        for places in torch.randperm(40, generator=generator).split(8):
            gradual.step()
            kept.append(summary(expected).kept / summary(expected).neurons)
            loss = nn.functional.cross_entropy(expected(SQUARES.images[places]), SQUARES.labels[places])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert seen == kept, "the masks of a step act before its images are changed"
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"ema_decay": 0.9, "channels_last": True},
        {"gradual_order": "bottom-up", "gradual_start": 0.8},
        {"gradual_share": 1.0},
        {"gradual_share": 1e-9},
    ],
    ids=str,
)
def test_gradual_masks_end_at_the_networks_own_whatever_goes_with_them(change: dict[str, Any]) -> None:
    model = defective(width=16)
    masks = masks_hash(model)
    train(model, SQUARES, dataclasses.replace(CONFIG, gradual="cosine", **change), step_images=madry(0.1, steps=1))
    assert masks_hash(model) == masks


def test_gradual_masks_go_with_images_attacked_beforehand() -> None:
    model = defective()
    masks = masks_hash(model)
    hook = pubdef([(SQUARES.images + 0.02).clamp(0, 1)])
    result = train(model, SQUARES, dataclasses.replace(CONFIG, gradual="linear"), step_images=hook)
    assert masks_hash(model) == masks and [record.mask_progress for record in result.history.epochs][-1] == 1


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: plain(width=16), NotDefectiveError),
        (lambda: defectify(plain(width=16), p=1, input_size=(1, 8, 8)), SpecError),
        (lambda: defectify(plain(width=16), p=0.95, input_size=(1, 8, 8)), SpecError),
    ],
    ids=["no masks", "no neuron to lose", "p would rise"],
)
def test_a_network_whose_masks_cannot_come_gradually_is_refused_unchanged(
    make: Callable[[], nn.Module], error: type[Exception]
) -> None:
    model = make()
    before = snapshot(model)
    with pytest.raises(error):
        train(model, SQUARES, dataclasses.replace(CONFIG, gradual="linear", gradual_start=0.9, channels_last=True))
    assert same(before, snapshot(model))


def test_bfloat16_computes_in_it_and_keeps_weights_and_masks_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcn_plugin.training.precision.has_bfloat16", lambda device: True)
    model, exact = defective(), defective()
    kinds: list[torch.dtype] = []
    model.conv1.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))  # type: ignore[union-attr]
    masks = masks_hash(model)
    config = dataclasses.replace(CONFIG, epochs=1, lr=1e-3)
    result = train(model, SQUARES, dataclasses.replace(config, amp=True))
    close = train(exact, SQUARES, config)
    assert torch.bfloat16 in kinds
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert masks_hash(model) == masks
    assert result.losses == pytest.approx(close.losses, rel=0.02)
    assert result.losses != close.losses
    assert (result.history.precision, close.history.precision) == ("bfloat16", "float32")


def test_amp_trains_in_float32_where_bfloat16_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcn_plugin.training.precision.has_bfloat16", lambda device: False)
    model, plainly = defective(), defective()
    config = dataclasses.replace(CONFIG, epochs=1)
    result = train(model, SQUARES, dataclasses.replace(config, amp=True))
    train(plainly, SQUARES, config)
    assert result.history.precision == "float32"
    for mine, theirs in zip(model.parameters(), plainly.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_channels_last_gives_the_same_weights_but_for_rounding() -> None:
    last, first = defective(width=16), defective(width=16)
    seen: list[bool] = []
    last.conv1.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    train(last, SQUARES, dataclasses.replace(CONFIG, channels_last=True))
    train(first, SQUARES, CONFIG)
    assert any(seen)
    for mine, theirs in zip(last.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


def test_compile_runs_the_step_through_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda model: asked.append(model) or model)
    model, plainly = defective(), defective()
    train(model, SQUARES, dataclasses.replace(CONFIG, compile=True))
    train(plainly, SQUARES, CONFIG)
    assert asked == [model]
    assert equal(weights(model), weights(plainly))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch.compile's own
def test_a_compiled_step_gives_the_same_losses() -> None:
    found = []
    for compiled in (True, False):
        with isolated_rng(0):
            net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        net = defectify(net, ["0"], p=0.5, input_size=(1, 8, 8))
        found.append(train(net, SQUARES, dataclasses.replace(CONFIG, compile=compiled)).losses)
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_the_record_measures_the_validation_set_after_every_epoch() -> None:
    model, val = defective(), image_set(30, seed=5, shape=(1, 8, 8))
    history = train(model, SQUARES, CONFIG, val=val).history
    with torch.no_grad():
        right = (model.eval()(val.images).argmax(1) == val.labels).double().mean()
    assert history.epochs[-1].val_accuracy == pytest.approx(float(right))
    assert [record.epoch for record in history.epochs] == [0, 1, 2]
    assert all(record.test_accuracy is None and record.seconds > 0 for record in history.epochs)
    assert {"torch", "timm"} <= history.sessions[0]["versions"].keys()
    assert history.sessions[0]["hardware"]["threads"] == torch.get_num_threads()


def test_validation_changes_no_weight() -> None:
    measured, alone = defective(), defective()
    train(measured, SQUARES, CONFIG, val=image_set(30, shape=(1, 8, 8)))
    train(alone, SQUARES, CONFIG)
    assert equal(weights(measured), weights(alone))


def named(data: ImageSet, *names: str) -> ImageSet:
    return dataclasses.replace(data, class_names=names)


def test_the_network_and_its_files_know_what_the_classes_are_called(tmp_path: Path) -> None:
    model, data = plain(), named(SQUARES, "ant", "bee", "cat")
    name_classes(model, ["x", "y", "z"])  # of what it was trained on before
    config = dataclasses.replace(CONFIG, epochs=1, ema_decay=0.9)
    result = train(model, data, config, val=data, out=tmp_path)
    assert class_names_of(model) == data.class_names
    assert result.best is not None
    for path in (result.best, tmp_path / "last.safetensors"):
        assert class_names_in(path) == data.class_names
    train(model, SQUARES, config)
    assert class_names_of(model) is None  # nobody knows any more

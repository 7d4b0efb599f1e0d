"""Running statistics that are estimated anew on the activations of the network as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dcn_plugin as dcn
from dcn_plugin.data import ImageSet, load_digits
from dcn_plugin.errors import DataError, DcnError, ImageRangeError, ModelOutputError, SpecError
from dcn_plugin.evaluate.predictions import correct_on
from dcn_plugin.pretrained import load_pretrained
from tests.nets import NoNorm, SmallNet, same, snapshot

IMAGES = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return dcn.defectify(SmallNet(), p=0.4, input_size=(3, 16, 16))


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if "running_" in key}


def test_a_statistic_is_the_mean_over_batches_of_what_reaches_the_norm_behind_the_masks() -> None:
    model, sizes = net(), (32, 20, 8)
    reached: dict[str, list[Tensor]] = {name: [] for name in norms(model)}
    for name, norm in norms(model).items():
        norm.register_forward_pre_hook(lambda _, args, name=name: reached[name].append(args[0]))
    assert dcn.recalibrate(model, IMAGES.split(sizes)) is model
    for name, norm in norms(model).items():
        flat = [x.transpose(0, 1).flatten(1) for x in reached[name]]
        mean = sum(size * x.mean(1) for size, x in zip(sizes, flat, strict=True)) / 60
        var = sum(size * x.var(1) for size, x in zip(sizes, flat, strict=True)) / 60
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "data",
    [
        ImageSet(IMAGES, torch.zeros(60, dtype=torch.int64), 5, "noise"),
        DataLoader(TensorDataset(IMAGES, torch.zeros(60)), batch_size=30),
        (images for images in IMAGES.split(30)),
        [(images, None) for images in IMAGES.split(30)],
    ],
    ids=["image set", "data loader", "generator", "tuples"],
)
def test_images_come_in_any_form(data: Any) -> None:
    model, expected = net(), net()
    dcn.recalibrate(expected, IMAGES, batch_size=30)
    dcn.recalibrate(model, data, batch_size=30)
    for key, value in statistics(expected).items():
        torch.testing.assert_close(model.state_dict()[key], value)


def test_nothing_but_the_statistics_is_changed() -> None:
    model = nn.Sequential(net(), nn.Dropout(0.5)).eval()
    model[0].bn1.momentum = None  # type: ignore[union-attr]
    model[0].layer1.train()  # type: ignore[union-attr]
    before = snapshot(model)
    dcn.recalibrate(model, IMAGES)
    after = snapshot(model)
    state: Any = before["state"]
    changed = {key for key, value in state.items() if not torch.equal(value, model.state_dict()[key])}
    assert changed == {key for key in state if "running_" in key or "num_batches" in key}
    assert [m.momentum for m in norms(model).values()][:2] == [None, 0.1]
    assert same({**before, "state": {}}, {**after, "state": {}})


def test_a_last_batch_of_one_image_is_left_out() -> None:
    model, expected = net(), net()
    dcn.recalibrate(model, [IMAGES[:20], IMAGES[20:21]])
    dcn.recalibrate(expected, IMAGES[:20])
    assert all(torch.equal(statistics(model)[key], value) for key, value in statistics(expected).items())


def test_a_trained_network_whose_neurons_die_gets_back_part_of_what_it_knew() -> None:
    digits = load_digits(size=16)
    masked = dcn.defectify(load_pretrained("digits_resnet.standard"), p=0.5, input_size=(1, 16, 16)).eval()
    before = float(correct_on(masked, digits.test).float().mean())
    dcn.recalibrate(masked, digits.train)
    after = float(correct_on(masked, digits.test).float().mean())
    assert after > before + 0.2


class Nan(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * float("nan"))


REFUSED: dict[str, tuple[Any, Any, type[DcnError], str]] = {
    "no norms": (NoNorm, IMAGES, SpecError, "no running statistics"),
    "group norms": (lambda: nn.Sequential(nn.GroupNorm(1, 3)), IMAGES, SpecError, "GroupNorm"),
    "no network": (lambda: 3, IMAGES, SpecError, "not a network"),
    "no images": (net, IMAGES[:0], DataError, "no images"),
    "no batches": (net, [], DataError, "no images"),
    "whole numbers": (net, (IMAGES * 255).byte(), ImageRangeError, "uint8"),
    "one image": (net, IMAGES[0], ImageRangeError, "wrong type or shape"),
    "labels first": (net, [(torch.zeros(3), IMAGES)], ImageRangeError, "wrong type or shape"),
    "no data": (net, 5, ImageRangeError, "no images"),
    "a failure half way": (net, [IMAGES[:20], IMAGES[:20, :, :8]], DcnError, "16"),
    "not finite": (Nan, IMAGES, ModelOutputError, "not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_estimated_is_refused_by_name_and_changes_nothing(case: str) -> None:
    make, data, error, said = REFUSED[case]
    model = make()
    before = copy.deepcopy(snapshot(model)["state"]) if isinstance(model, nn.Module) else {}
    flags = [m.training for m in model.modules()] if isinstance(model, nn.Module) else []
    with pytest.raises(error, match=said):
        dcn.recalibrate(model, data)
    if isinstance(model, nn.Module):
        assert [m.training for m in model.modules()] == flags
        assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())  # type: ignore[union-attr]
    with pytest.raises(SpecError, match="batch size"):
        dcn.recalibrate(net(), IMAGES, batch_size=0)

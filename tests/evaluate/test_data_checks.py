"""No evaluator compares a network with images of other classes, or of a size that it does not take, in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD, EnsembleSource, HopSkipJump
from dcn_plugin.checkpoint.class_names import name_classes
from dcn_plugin.data import ImageFolder, ImageSet
from dcn_plugin.errors import ClassesError, DcnError, InputSizeError, MaskShapeError
from dcn_plugin.evaluate import (
    AdversarialSet,
    RunDirectory,
    amplitude,
    correct_on,
    gaussian,
    minimal_distance,
    sanity,
    shuffle,
    stylized,
    tapm,
    transfer,
    whitebox,
)
from dcn_plugin.evaluate.data_checks import check_fit
from dcn_plugin.models import cifar_resnet
from tests.evaluate.watched import WatchedImages
from tests.shades import NAMES, Shade, shaded_folder
from tests.toys import image_set, linear_model

PROTOCOLS: dict[str, Callable[[dict[str, nn.Module], Any], Iterable[object]]] = {
    "transfer, as target": lambda nets, data: transfer({"good": good(data)}, nets, [PGD(0.1, steps=1)], data, seed=0),
    "transfer, as source": lambda nets, data: transfer(
        {"good": good(data), **nets}, {"good": good(data)}, [PGD(0.1, steps=1)], data, seed=0
    ),
    "tapm": lambda nets, data: tapm(nets, {"good": good(data)}, [PGD(0.1, steps=1)], data, seed=0),
    "whitebox": lambda nets, data: whitebox(nets, [PGD(0.1, steps=1)], data, seed=0),
    "distance": lambda nets, data: minimal_distance(nets, HopSkipJump(max_queries=20), data, seed=0, count=2),
    "gaussian": lambda nets, data: gaussian(nets, data, [0.1], seed=0),
    "shuffle": lambda nets, data: shuffle(nets, data, [2], seed=0),
    "amplitude": lambda nets, data: amplitude(nets, data, seed=0),
    "stylized": lambda nets, data: stylized(nets, data, data, seed=0),
    "sanity": lambda nets, data: sanity(next(iter(nets.values())), data, eps=0.1, steps=2, queries=0),
    "a set of images": lambda nets, data: AdversarialSet("bad", next(iter(nets.values())), PGD(0.1, steps=1), data),
    "correct_on": lambda nets, data: correct_on(next(iter(nets.values())), data),
}


def good(data: Any) -> nn.Module:
    """A network that fits the data."""
    channels, height, width = data.shape
    return linear_model(channels * height * width, data.num_classes)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("classes", [2, 4])
def test_a_network_of_another_number_of_classes_is_refused(protocol: str, classes: int) -> None:
    data = image_set(12)
    with pytest.raises(ClassesError, match=rf"has {classes} logits.*3 classes.*num_classes={classes}"):
        list(PROTOCOLS[protocol]({"bad": linear_model(16, classes)}, data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_network_that_numbers_its_classes_otherwise_is_refused_by_name(protocol: str) -> None:
    raw = image_set(12)
    data = ImageSet(raw.images, raw.labels, 3, "toy", ("ant", "bee", "cat"))
    model = linear_model(16)
    name_classes(model, ("bee", "ant", "cat"))
    with pytest.raises(ClassesError, match=r"'ant': '0 here, 1 there'"):
        list(PROTOCOLS[protocol]({"bad": model}, data))
    name_classes(model, data.class_names)
    list(PROTOCOLS[protocol]({"fine": model}, data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", [Shade(channels=1, side=9), linear_model(17)], ids=["asserts", "raises"])
def test_images_that_a_network_does_not_take_are_refused_by_its_name(protocol: str, model: nn.Module) -> None:
    data = image_set(12, classes=3 if isinstance(model, nn.Sequential) else 4)
    with pytest.raises(InputSizeError, match=r"does not take the images of this data set .*\(1, 4, 4\).*img_size=4"):
        list(PROTOCOLS[protocol]({"bad": model}, data))


def test_a_finished_record_is_not_reused_once_the_names_are_known_to_differ(tmp_path: Path) -> None:
    raw = image_set(6)
    data = ImageSet(raw.images, raw.labels, 3, "toy", ("ant", "bee", "cat"))
    model, store = linear_model(16), RunDirectory(tmp_path)
    runs: list[Callable[[], list[object]]] = [
        lambda: list(gaussian({"a": model}, data, [0.1], seed=0, store=store)),
        lambda: list(whitebox({"a": model}, [PGD(0.1, steps=1)], data, seed=0, store=store)),
        lambda: list(transfer({"a": model}, {"a": model}, [PGD(0.1, steps=1)], data, seed=0, store=store)),
        lambda: list(tapm({"a": model}, {"a": model}, [PGD(0.1, steps=1)], data, seed=0, store=store)),
        lambda: list(sanity(model, data, eps=0.1, steps=2, queries=0, store=store)),
    ]
    for run in runs:
        run()
    name_classes(model, ("bee", "ant", "cat"))
    for run in runs:
        with pytest.raises(ClassesError):
            run()


def test_nothing_is_attacked_before_all_are_looked_at() -> None:
    data = image_set(12, classes=4)
    first = Shade(channels=1)
    with pytest.raises(ClassesError):
        list(transfer({"a": first, "b": linear_model(16, 3)}, {"c": Shade(channels=1)}, [PGD(0.1)], data, seed=0))
    assert first.asked == [1]
    with pytest.raises(InputSizeError):
        list(whitebox({"a": first, "b": Shade(channels=3)}, [PGD(0.1)], data, seed=0))
    assert first.asked == [1, 1]


def test_members_of_an_ensemble_and_wrapped_networks_are_looked_at_too() -> None:
    raw = image_set(6)
    data = ImageSet(raw.images, raw.labels, 3, "toy", ("ant", "bee", "cat"))
    named = linear_model(16)
    name_classes(named, ("cat", "bee", "ant"))
    for model in (
        EnsembleSource([linear_model(16), named]),
        dcn.Normalized(named, [0.5], [0.5]),
        nn.DataParallel(named),
    ):
        with pytest.raises(ClassesError, match="'net'"):
            check_fit(model, data, name="net")


def test_masks_of_another_size_say_so_themselves() -> None:
    net = dcn.defectify(cifar_resnet((1, 1, 1, 1), num_classes=3, in_chans=1, width=4), p=0.5, input_size=(1, 8, 8))
    with pytest.raises(MaskShapeError):
        list(gaussian({"a": net}, image_set(4), [0.1], seed=0))


def test_grey_images_are_asked_for_where_the_network_takes_one_channel(tmp_path: Path) -> None:
    root = shaded_folder(tmp_path / "test")
    for model in (Shade(channels=1), dcn.Normalized(Shade(channels=1), [0.0], [1.0])):
        for run in (
            lambda model=model: correct_on(model, ImageFolder(root)),
            lambda model=model: next(iter(gaussian({"a": model}, ImageFolder(root), [0.1], seed=0))),
        ):
            with pytest.raises(InputSizeError, match="takes images of 1 channel: open them with channels=1"):
                run()
    assert correct_on(Shade(channels=1), ImageFolder(root, channels=1)).all()
    with pytest.raises(InputSizeError, match=r"takes images of 3 channels: open them with channels=3"):
        correct_on(Shade(channels=3), ImageFolder(root, channels=1))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(side=st.integers(1, 12), channels=st.sampled_from([1, 3]), wanted=st.integers(1, 12))
def test_images_of_any_size_are_measured_or_refused_by_name(side: int, channels: int, wanted: int) -> None:
    data = image_set(4, classes=4, shape=(channels, side, side))  # type: ignore[arg-type]
    model = Shade(channels=3, side=wanted)
    if (channels, side) == (3, wanted):
        assert len(correct_on(model, data)) == 4
        return
    for run in (lambda: correct_on(model, data), lambda: list(gaussian({"a": model}, data, [0.1], seed=0))):
        with pytest.raises(InputSizeError):
            run()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    known=st.permutations(NAMES),
    held=st.sets(st.sampled_from(NAMES), min_size=1),
    told=st.sampled_from(["names", "nothing", "numbers only"]),
)
def test_some_of_the_classes_in_any_order_are_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, known: list[str], held: set[str], told: str
) -> None:
    """The network is right on every image, so that anything but 100 % or a named error is a wrong number."""
    root = shaded_folder(tmp_path_factory.mktemp("part"), sorted(held), count=1)
    model = Shade(known)
    if told == "names":
        assert correct_on(model, ImageFolder(root, class_names=known)).all()
        return
    if told == "nothing":
        name_classes(model, known)
    try:
        share = float(correct_on(model, ImageFolder(root)).double().mean())
    except DcnError as error:
        assert isinstance(error, ClassesError)
        assert "class_names" in str(error)
    else:
        # Without any names only the number can be compared: a network of as many classes in another order is not told.
        assert share == 1.0 or (told == "numbers only" and len(held) == len(NAMES))


def test_a_network_may_know_more_classes_where_the_images_say_so(tmp_path: Path) -> None:
    root = shaded_folder(tmp_path / "part", ["bee", "dog"])
    with pytest.raises(ClassesError, match="4 logits"):
        correct_on(Shade(), ImageFolder(root))
    assert correct_on(Shade(), ImageFolder(root, class_names=NAMES)).all()


def test_a_set_of_the_users_own_without_class_names_is_measured() -> None:
    class Own:
        """What LabelledImages asked for before it knew class names."""

        def __init__(self, inner: ImageSet) -> None:
            self.name, self.num_classes, self.shape = "own", inner.num_classes, inner.shape
            self.content_hash, self._inner = inner.content_hash, inner

        def __len__(self) -> int:
            return len(self._inner)

        def batches(self, batch_size: int) -> Any:
            return self._inner.batches(batch_size)

    model = linear_model(16)
    name_classes(model, ("ant", "bee", "cat"))
    assert len(correct_on(model, Own(image_set(6)))) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16])
def test_a_set_of_the_users_own_may_give_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    class Own(WatchedImages):
        def batches(self, batch_size: int) -> Any:
            return ((images, labels.to(dtype)) for images, labels in super().batches(batch_size))

    model, data = linear_model(16), image_set(12)
    for protocol in ("transfer, as target", "tapm", "whitebox", "distance", "gaussian", "shuffle", "sanity"):
        expected = list(PROTOCOLS[protocol]({"a": model}, data))
        assert list(PROTOCOLS[protocol]({"a": model}, Own(data))) == expected
    assert torch.equal(correct_on(model, Own(data)), correct_on(model, data))


def test_the_check_leaves_modes_and_the_global_generator_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Dropout()).train()
    before = torch.random.get_rng_state()
    model.register_forward_hook(lambda _model, _images, logits: logits + torch.rand(3))
    check_fit(model, image_set(4))
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_that_gives_decisions_alone_has_no_number_of_classes() -> None:
    class Decides(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).sum(1).long()

    check_fit(Decides(), image_set(4))

"""Whether model, masks and data fit together: before the first step, and after the last."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from dcn_plugin.data import ImageSet
from dcn_plugin.errors import ClassesError, InputSizeError, MaskLostError, MaskShapeError, MaskStateError, SpecError
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.models import cifar_resnet
from dcn_plugin.training import Batch, TrainConfig, isolated_rng, train
from dcn_plugin.training.checks import check_arguments, check_fit, check_masks, check_parts, masks_hash, structure
from tests.toys import image_set, linear_model
from tests.training.test_loop import CONFIG, SQUARES, defective, equal, named, plain, weights


def test_one_image_is_too_little() -> None:
    with pytest.raises(SpecError, match="two images"):
        train(linear_model(), image_set(1), CONFIG)


def test_masks_that_training_changes_are_an_error() -> None:
    model = defective()

    def spoil(network: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        next(mask for mask in network.modules() if isinstance(mask, DefectMask2d)).mask.fill_(True)
        return batch

    with pytest.raises(MaskLostError, match="began with"):
        train(model, SQUARES, CONFIG, step_images=spoil)


def test_masks_that_no_longer_act_are_an_error() -> None:
    model = defective()
    mask = next(module for module in model.modules() if isinstance(module, DefectMask2d))
    mask.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(MaskLostError, match="no longer act"):
        train(model, SQUARES, CONFIG)


@pytest.mark.parametrize(
    ("model", "data", "error", "said"),
    [
        (plain(), image_set(40, classes=4, shape=(1, 8, 8)), SpecError, "num_classes=4"),
        (defective(), image_set(40, shape=(1, 12, 12)), MaskShapeError, "12"),
        (plain(), image_set(40, shape=(3, 8, 8)), InputSizeError, "in_chans"),
    ],
    ids=["classes", "size", "channels"],
)
def test_a_model_for_other_data_is_refused_before_it_is_touched(
    model: nn.Module, data: ImageSet, error: type[Exception], said: str
) -> None:
    before = weights(model)
    with pytest.raises(error, match=said):
        train(model, data, CONFIG)
    assert equal(weights(model), before)


@pytest.mark.parametrize(
    "other",
    [
        named(SQUARES, "bee", "ant", "cat"),
        named(SQUARES, "ant", "bee", "wolf"),
        image_set(20, classes=2, shape=(1, 8, 8)),
    ],
    ids=["order", "names", "number"],
)
@pytest.mark.parametrize("part", ["val", "test"])
def test_an_epoch_is_never_chosen_on_images_of_other_classes(other: ImageSet, part: str) -> None:
    model = plain()
    before = weights(model)
    config = dataclasses.replace(CONFIG, select=part)
    with pytest.raises(ClassesError, match=f"The (classes of the )?{part} images"):
        train(model, named(SQUARES, "ant", "bee", "cat"), config, **{part: other})  # type: ignore[arg-type]
    assert equal(weights(model), before)


def test_a_choice_on_the_test_set_needs_one() -> None:
    with pytest.raises(SpecError, match="test set"):
        train(plain(), SQUARES, dataclasses.replace(CONFIG, select="test"))


@pytest.mark.parametrize(
    ("count", "processes", "test", "message"),
    [
        (1, 1, None, "at least two images"),
        (100, 3, None, r"'processes': 3.*a multiple of the number of processes"),
        (100, 8, None, "at least two images for each"),
        (7, 2, None, "batch_size 8 images"),
    ],
)
def test_what_cannot_be_trained_on_or_shared_out_is_refused(
    count: int, processes: int, test: object, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check_arguments(TrainConfig(batch_size=8), count, processes, test)


def test_the_smallest_batches_and_sets_that_can_be_shared_out_pass() -> None:
    check_arguments(TrainConfig(batch_size=8), 2, 1, None)
    check_arguments(TrainConfig(batch_size=8), 8, 4, None)
    check_arguments(TrainConfig(batch_size=8, select="test"), 8, 1, image_set(4))


def test_a_model_that_fits_is_run_once_in_eval_mode_and_comes_back_as_it_was() -> None:
    model, modes = plain().train(), []
    model.bn1.register_forward_hook(lambda module, *_: modes.append(module.training))
    before = [module.training for module in model.modules()], weights(model)
    check_fit(model, (1, 8, 8), 3)
    assert modes == [False]
    assert [module.training for module in model.modules()] == before[0]
    assert equal(weights(model), before[1])
    with pytest.raises(ClassesError, match=r"The model has 3 classes, the data have 5.*num_classes=5"):
        check_fit(model, (1, 8, 8), 5)


def test_parts_of_another_shape_are_refused_and_parts_that_are_not_there_passed_over() -> None:
    train_set = image_set(8, shape=(1, 8, 8))
    check_parts(train_set, val=None, test=image_set(4, shape=(1, 8, 8)))
    with pytest.raises(SpecError, match="The test images are of another kind") as caught:
        check_parts(train_set, val=None, test=image_set(4, shape=(1, 9, 9)))
    assert not isinstance(caught.value, ClassesError)  # the classes are the same
    with pytest.raises(ClassesError, match="class_names="):
        check_parts(train_set, val=image_set(4, classes=4, shape=(1, 8, 8)))


def masks(model: nn.Module) -> list[DefectMask2d]:
    return [module for module in model.modules() if isinstance(module, DefectMask2d)]


def test_the_hash_of_masks_sees_every_bit_and_place_and_no_weight() -> None:
    model = defective()
    known = masks_hash(model)
    assert masks_hash(plain()) == ""
    assert len(known) == 64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert masks_hash(copy.deepcopy(model)) == known
    for mask in masks(model):
        mask.mask[0, 0, 0] ^= True
        assert masks_hash(model) != known
        mask.mask[0, 0, 0] ^= True
    first, second = next(
        (a, b) for a in masks(model) for b in masks(model) if a is not b and a.mask.shape == b.mask.shape
    )
    first.mask, second.mask = second.mask, first.mask
    assert masks_hash(model) != known


def test_masks_that_differ_between_processes_name_the_hashes_and_the_seed() -> None:
    check_masks("a", ["a", "a"])
    with pytest.raises(MaskStateError, match=r"different masks\. Got: \['a', 'b'\].*the same seed"):
        check_masks("a", ["a", "b"])


def test_masks_are_held_against_those_of_the_start_and_must_act() -> None:
    model = defective()
    known = masks_hash(model)
    check_masks(known, [known], model, (1, 8, 8))
    with pytest.raises(MaskLostError, match="began with"):
        check_masks("other", [known], model)
    check_masks("", [""], plain(), (1, 8, 8))  # without masks nothing has to act


def test_the_structure_sees_modules_options_and_shapes_and_no_values() -> None:
    with isolated_rng(3):
        again = cifar_resnet((1, 1, 1, 1), num_classes=3, in_chans=1, width=4)
    assert structure(again) == structure(plain())
    others = [
        defective(), plain(width=5), nn.Sequential(plain()), linear_model(), linear_model(13), plain().double(),
        nn.Dropout(0.1), nn.Dropout(0.2),
    ]  # fmt: skip
    assert len({structure(model) for model in (plain(), *others)}) == 1 + len(others)


def test_an_address_in_the_text_of_a_module_is_no_part_of_its_structure() -> None:
    class Printed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.helper = object()

        def extra_repr(self) -> str:
            return f"helper={self.helper!r}"

    first, second = Printed(), Printed()
    assert repr(first) != repr(second)
    assert structure(first) == structure(second)

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD, EnsembleSource
from dcn_plugin.attacks.distilled import DistilledSource, target_queries
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import ClassesError, DataError, LabelError, ModelOutputError, SpecError
from dcn_plugin.evaluate import model_key, tapm, transfer
from dcn_plugin.training import Distillation, TrainConfig, distill_source
from dcn_plugin.training.distillation import answers_needed
from tests.attack_oracles import Counting, Labels
from tests.nets import SmallNet
from tests.toys import image_set, linear_model

ONE = TrainConfig(epochs=1, batch_size=8)


def student(seed: int = 5) -> nn.Module:
    return linear_model(16, seed=seed)


def distilled(
    target: nn.Module, data: ImageSet, *, budget: int = 100, rounds: int = 3, config: TrainConfig = ONE, seed: int = 0
) -> Distillation:
    return distill_source(student(), target, data, budget=budget, rounds=rounds, config=config, seed=seed)


@pytest.mark.parametrize(
    ("budget", "rounds", "asked", "trained"),
    [(10, 4, 10, 1), (1000, 1, 10, 1), (1000, 3, 40, 3), (40, 5, 40, 3), (25, 3, 25, 3)],
)
def test_the_target_is_asked_as_often_as_is_said_and_never_beyond_the_budget(
    budget: int, rounds: int, asked: int, trained: int
) -> None:
    target = Counting(linear_model(16, seed=1))
    made = distilled(target, image_set(10), budget=budget, rounds=rounds)
    assert target.rows == asked == made.queries == made.source.target_queries
    assert answers_needed(10, rounds=rounds, budget=budget) == asked
    assert len(made.histories) == trained


def test_the_answers_are_the_targets_and_not_the_labels_of_the_data() -> None:
    target, data = linear_model(16, seed=1), image_set(30)
    turned = dataclasses.replace(data, labels=(data.labels + 1) % 3)
    made, other = distilled(target, data), distilled(target, turned)
    assert torch.equal(made.answers.labels, target(made.answers.images).argmax(1))
    assert torch.equal(made.answers.images, other.answers.images)
    assert not torch.equal(made.answers.labels[:30], data.labels)


def test_a_further_round_moves_images_towards_the_targets_class_as_the_student_sees_it() -> None:
    target, data, first = linear_model(16, seed=1), image_set(12), student()
    distill_source(first, target, data, budget=12, rounds=1, config=ONE)  # the student as it moves the images
    leaf = data.images.clone().requires_grad_()
    labels = target(data.images).argmax(1)
    F.log_softmax(first(leaf), dim=1).gather(1, labels[:, None]).sum().backward()
    assert leaf.grad is not None
    expected = (data.images + 0.1 * leaf.grad.sign()).clamp(0, 1)
    made = distilled(target, data, budget=24, rounds=2)
    torch.testing.assert_close(made.answers.images[12:], expected)
    assert not torch.equal(expected, data.images)


def test_the_student_agrees_with_the_target_on_images_it_has_not_seen() -> None:
    target, fresh = linear_model(16, seed=1), image_set(200, seed=7).images
    said = target(fresh).argmax(1)
    made = distilled(target, image_set(100), budget=400, config=TrainConfig(epochs=8, batch_size=16))
    agreement = float((made.source(fresh).argmax(1) == said).double().mean())
    untrained = float((student()(fresh).argmax(1) == said).double().mean())
    assert agreement > 0.8 > untrained + 0.1


def test_a_target_that_tells_its_decision_alone_gives_the_same_source() -> None:
    target, data = linear_model(16, seed=1), image_set(16)
    made, other = distilled(target, data), distilled(Labels(target), data)
    assert torch.equal(made.answers.images, other.answers.images)
    assert all(torch.equal(*pair) for pair in zip(made.source.parameters(), other.source.parameters(), strict=True))


def test_the_seed_decides_which_images_are_asked_about_where_the_budget_ends() -> None:
    target, data = linear_model(16, seed=1), image_set(16)
    first, same, other = (distilled(target, data, budget=20, seed=seed).answers.images for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_target_comes_back_as_it_was_and_a_defective_student_keeps_its_masks() -> None:
    target = SmallNet(3).train()
    target.bn1.eval()
    state = {key: value.clone() for key, value in target.state_dict().items()}
    data = image_set(16, shape=(3, 16, 16))
    net = dcn.defectify(SmallNet(3), p=0.3, seed=4, input_size=data.shape)
    masks = {key: value.clone() for key, value in net.state_dict().items() if key.endswith("mask")}
    made = distill_source(net, target, data, budget=24, config=ONE)
    assert target.training and not target.bn1.training
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())
    assert all(torch.equal(net.state_dict()[key], value) for key, value in masks.items())
    assert dcn.is_defective(made.source) and not made.source.training


def test_records_of_its_images_have_what_it_cost() -> None:
    data, target = image_set(12), linear_model(16, seed=1)
    source = distilled(target, data).source
    (record,) = transfer({"asked": source}, {"target": target}, [PGD(0.1, steps=2)], data, training_seed=0)
    assert record.figures == {"target_queries": 48}
    (other,) = transfer({"plain": student()}, {"target": target}, [PGD(0.1, steps=2)], data, training_seed=0)
    assert not other.figures
    sources = {"asked": source, "plain": student()}
    (joint,) = tapm(sources, {"target": target}, [PGD(0.1, steps=2)], data, training_seed=0)
    assert joint.figures["target_queries"] == 48


def test_an_ensemble_costs_what_its_members_do_and_another_budget_is_another_source() -> None:
    first, second = DistilledSource(student(), target_queries=10), DistilledSource(student(6), target_queries=7)
    assert target_queries(EnsembleSource([first, second, student()])) == 17
    assert target_queries(student()) is None
    assert model_key(first) != model_key(DistilledSource(student(), target_queries=11))
    with pytest.raises(SpecError):
        DistilledSource(student(), target_queries=0)
    with pytest.raises(SpecError):
        DistilledSource("resnet18", target_queries=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"budget": 9}, SpecError),
        ({"budget": 0}, SpecError),
        ({"rounds": 0}, SpecError),
        ({"step": 0}, SpecError),
        ({"step": 1.5}, SpecError),
        ({"seed": -1}, SpecError),
        ({"batch_size": 0}, SpecError),
        ({"student": "resnet18"}, SpecError),
        ({"student": linear_model(16, classes=4)}, ClassesError),
        ({"data": torch.rand(10, 1, 4, 4)}, DataError),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_query(options: dict[str, object], error: type[Exception]) -> None:
    target = Counting(linear_model(16, seed=1))
    arguments = {"student": student(), "target": target, "data": image_set(10), "budget": 20, **options}
    with pytest.raises(error):
        distill_source(**arguments)  # type: ignore[arg-type]
    assert target.rows == 0


def test_a_student_that_holds_the_target_is_refused() -> None:
    target = linear_model(16)
    with pytest.raises(SpecError, match="share a part"):
        distill_source(nn.Sequential(target), target, image_set(10), budget=20)


def test_answers_that_are_none_are_named() -> None:
    class Tuple(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (x,)

    class Ninth(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x),), 9)

    with pytest.raises(ModelOutputError):
        distilled(Tuple(), image_set(10))
    with pytest.raises(LabelError):
        distilled(Ninth(), image_set(10))
    with pytest.raises(ClassesError):
        distilled(linear_model(16, classes=5), image_set(10))

"""What is chosen for training, and what the plan says of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcn_plugin.engine.partition import choose
from dcn_plugin.engine.training.model import traced
from dcn_plugin.engine.training.task import NormStatistics, SkippingCosts, TrainingTask
from dcn_plugin.errors import CompactError, SpecError
from tests.engine.training.training_nets import SIZE, Joined, make


def task_of(model: nn.Module, norm_statistics: NormStatistics = "all") -> TrainingTask:
    return TrainingTask.of(traced(model, SIZE), norm_statistics)


def counted(task: TrainingTask, name: str) -> tuple[int, int]:
    """Multiply-adds of a convolution, and those that are left, by convolving ones."""
    step = next(step for step in task.steps if step.conv is not None and step.nodes[0].meta["title"] == name)
    conv = step.conv
    assert conv is not None
    live = task.live[step.inputs[0]][None].double()
    ones = torch.ones_like(conv.weight, dtype=torch.float64)
    every, left = (F.conv2d(x, ones, None, *conv.geometry)[0] for x in (torch.ones_like(live), live))
    computed = conv.kept if task.norm_statistics == "live" else torch.ones_like(conv.kept)
    return int(every.sum()), int((left * computed).sum())


@pytest.mark.parametrize("norm_statistics", ["all", "live"])
def test_the_plan_counts_the_multiply_adds_that_are_left(norm_statistics: NormStatistics) -> None:
    task = task_of(make(), norm_statistics)
    choice = choose(task.steps, task.live, SkippingCosts(task), budget=2**30)
    plan = task.plan(choice, None, "reference", 8)
    for layer in plan.layers:
        assert (layer.dense, layer.live) == counted(task, layer.name)
    names = ["layer1.conv1", "layer1.conv2", "layer1.shortcut.0"]
    assert list(plan.rows) == (["conv1"] if norm_statistics == "live" else []) + names
    assert plan.packed_bytes > 0 and plan.ideal > 1


def test_a_layer_with_nothing_to_skip_stays_on_images_and_says_so() -> None:
    task = task_of(make())
    plan = task.plan(choose(task.steps, task.live, SkippingCosts(task), budget=2**30), None, "reference", 8)
    reasons = {layer.name: layer.reason for layer in plan.layers}
    assert reasons == {
        "conv1": "nothing to skip",
        "layer1.conv1": "skips dead neurons",
        "layer1.conv2": "skips dead neurons",
        "layer1.shortcut.0": "skips dead neurons",
    }
    assert plan.layers[0].backend == "dense" and plan.layers[0].packed_bytes == 0


def test_named_convolutions_and_no_others_run_on_rows() -> None:
    task = task_of(make())
    for names in ([], ["conv1"], ["conv1", "layer1.conv2"]):
        choice = task.named(names)
        assert list(task.plan(choice, None, "reference", 8).rows) == names
    with pytest.raises(SpecError, match=r"rows names convolutions that the network does not have\..*fc"):
        task.named(["conv1", "fc"])


class NormAlone(Joined):
    """Its norm without a convolution keeps everything."""

    def __init__(self) -> None:
        super().__init__()
        self.mask3.mask.fill_(True)


def test_live_statistics_of_a_norm_without_a_convolution_are_refused_unless_its_mask_keeps_everything() -> None:
    rows = ["conv1", "conv2", "conv3", "conv4"]
    with pytest.raises(CompactError, match="1 masked ones of the model are elsewhere"):
        task_of(make("joined"), "live").named(rows)
    task = task_of(NormAlone().train(), "live")
    assert task.plan(task.named(rows), None, "reference", 8).rows == tuple(rows)


def test_live_statistics_of_a_frozen_norm_need_no_rows() -> None:
    model = make()
    for norm in (model.bn1, model.layer1.bn1, model.layer1.shortcut[1]):
        norm.eval()
    task = task_of(model, "live")
    task.named(["layer1.conv2"])
    with pytest.raises(CompactError, match=r"are not: layer1\.conv2\."):
        task.named(["layer1.conv1"])

"""The graph that trains: which steps it holds, and that it reads the model's own tensors."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from dcn_plugin.engine.training.block import RowsBlock
from dcn_plugin.engine.training.lower import is_norm_in_training, norm_of
from dcn_plugin.engine.training.model import traced
from dcn_plugin.engine.training.task import TrainingTask
from dcn_plugin.support.onednn import narrow_strided_conv
from tests.engine.training.training_nets import SIZE, assert_near, make, pictures, twins


def written(name: str, rows: list[str], *, norm_statistics: str = "all") -> tuple[torch.nn.Module, fx.GraphModule]:
    """A network, and its graph with these convolutions on rows."""
    model = make(name)
    task = TrainingTask.of(traced(model, SIZE), norm_statistics)  # type: ignore[arg-type]
    return model, task.lower(task.named(rows), "reference")


def blocks(graph: fx.GraphModule) -> list[RowsBlock]:
    return [module for module in graph.modules() if isinstance(module, RowsBlock)]


def test_a_block_takes_the_norm_the_mask_the_sum_and_the_relu_of_its_convolution() -> None:
    model, graph = written("one block", ["layer1.conv1", "layer1.conv2", "layer1.shortcut.0"])
    conv1, conv2, shortcut = blocks(graph)
    assert [block.relu for block in (conv1, conv2, shortcut)] == [True, False, True]
    assert [block.residual_index is not None for block in (conv1, conv2, shortcut)] == [False, False, True]
    assert {block.norm.kind for block in blocks(graph)} == {"batch"}
    assert {block.norm.momentum for block in blocks(graph)} == {0.1}
    kept = model.layer1.bn1.drop.mask[0]
    assert torch.equal(conv1.kept, kept)
    assert torch.equal(conv1.out_index >= 0, kept)
    assert torch.equal(shortcut.out_index >= 0, conv2.kept | shortcut.kept)


def test_the_graph_reads_the_tensors_of_the_model_and_holds_none_of_its_weights() -> None:
    model, graph = written("one block", ["layer1.conv1"])
    held = {id(tensor) for tensor in (*graph.buffers(), *graph.parameters())}
    parameters = {id(parameter) for parameter in model.parameters()}
    statistics = {id(buffer) for name, buffer in model.named_buffers() if "running" in name or "tracked" in name}
    assert parameters | statistics <= held
    graph(pictures()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {int(value) for name, value in model.state_dict().items() if "tracked" in name} == {1}


def test_no_narrow_convolution_with_a_stride_is_left_on_images() -> None:
    # oneDNN's gradient of one on channels_last images, as rows become, writes outside its memory: its issue 6035.
    model, graph = written("one block", ["layer1.conv1", "layer1.conv2"])
    assert narrow_strided_conv(model) == "layer1.shortcut.0"
    calls = [node for node in graph.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    assert [(tuple(getattr(graph, node.args[1].target).shape[2:]), node.args[3]) for node in calls] == [
        ((3, 3), [1, 1]),
        ((1, 1), [1, 1]),
    ]


def test_without_rows_the_graph_is_the_model() -> None:
    plain, model = twins("joined")
    task = TrainingTask.of(traced(model, SIZE), "all")
    graph = task.lower(task.named([]), "reference")
    assert not blocks(graph)
    assert_near({"logits": graph(pictures())}, {"logits": plain(pictures())})
    assert_near(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize(
    ("frozen", "live", "kind"), [(False, False, "batch"), (False, True, "live"), (True, True, "running")]
)
def test_a_norm_takes_its_statistics_from_where_it_is_told(frozen: bool, live: bool, kind: str) -> None:
    model = make()
    if frozen:
        model.layer1.bn1.eval()
    model.layer1.bn1.momentum, model.layer1.bn1.eps = 0.25, 1e-3
    task = TrainingTask.of(traced(model, SIZE), "all")
    step = next(step for step in task.steps if step.conv and step.nodes[0].meta["title"] == "layer1.conv1")
    assert step.conv is not None and step.conv.norm is not None
    norm = norm_of(step.conv, live_statistics=live)
    assert (norm.kind, norm.momentum, norm.eps) == (kind, 0.25, 1e-3)
    assert is_norm_in_training(step.conv.norm) is not frozen
    assert not is_norm_in_training(step.nodes[0])


def test_a_convolution_without_a_norm_has_none() -> None:
    _, graph = written("vgg", ["features.0", "features.3"])
    assert {block.norm.kind for block in blocks(graph)} == {"none"}

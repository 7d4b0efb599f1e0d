"""The compact model as a module: a snapshot that copies, compiles and exports, and says what it does not take."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dcn_plugin as dcn
from dcn_plugin.engine.compact_model import without_gradient
from dcn_plugin.engine.constant_cache import derived
from dcn_plugin.errors import CompactError, ImageRangeError, InputSizeError
from tests.engine.cases import BACKENDS, needs_c
from tests.engine.compacted import LIMIT, assert_close, error, images, input_gradient, rows, small, through_pickle

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def compact(model: nn.Module) -> dcn.CompactModel:
    return dcn.compact(model, backend="reference")


def test_no_gradient_is_kept_where_none_is_wanted(compact: dcn.CompactModel) -> None:
    assert not compact(images()).requires_grad
    with torch.no_grad():
        assert not compact(images().requires_grad_()).requires_grad


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "grad": lambda net, x: torch.func.grad(lambda images: net(images).square().sum())(x),
    "jacrev": lambda net, x: torch.func.jacrev(net)(x),
    "jvp": lambda net, x: torch.func.jvp(net, (x,), (x + 1,))[1],
}


# PyTorch's decompositions for forward mode are written in the TorchScript that it has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_torch_func_see_the_model(
    transform: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, compact: dcn.CompactModel
) -> None:
    expected = transform(model, images(2))
    assert_close(transform(compact, images(2)), expected)


def test_the_state_dict_is_that_of_the_defective_model_and_loads_into_it(
    model: nn.Module, compact: dcn.CompactModel
) -> None:
    state, expected = compact.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    other = small(seed=7)
    other.load_state_dict(state)
    assert error(compact, other, images()) < LIMIT
    assert set(nn.Sequential(compact).state_dict()) == {f"0.{name}" for name in expected}


@pytest.mark.parametrize("around", [lambda net: net, nn.Sequential], ids=["alone", "inside another"])
def test_weights_cannot_be_loaded(around: Callable[[nn.Module], nn.Module], compact: dcn.CompactModel) -> None:
    outer = around(compact)
    with pytest.raises(CompactError, match=r"snapshot.*compact that again"):
        outer.load_state_dict(outer.state_dict())


def test_changing_the_model_later_does_not_change_the_snapshot() -> None:
    model = small()
    compacted = dcn.compact(model, backend="reference")
    before, state = compacted(images()), {name: value.clone() for name, value in compacted.state_dict().items()}
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert torch.equal(compacted(images()), before)
    assert all(torch.equal(value, state[name]) for name, value in compacted.state_dict().items())


@pytest.mark.parametrize("move", ["double", "half", "bfloat16"])
def test_another_dtype_is_refused(move: str, compact: dcn.CompactModel) -> None:
    with pytest.raises(CompactError, match="stays where it was made"):
        getattr(compact, move)()
    with pytest.raises(CompactError, match="stays where it was made"):
        compact.to("meta")


def test_moving_it_to_where_it_is_changes_nothing(model: nn.Module, compact: dcn.CompactModel) -> None:
    assert compact.to(torch.float32).cpu().float() is compact
    assert compact.train().requires_grad_(False).eval() is compact
    assert error(compact, model, images()) < LIMIT


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_gives_the_same_and_outlives_its_original(copied: Callable[[Any], Any], backend: Any) -> None:
    compacted = dcn.compact(small(), backend=backend)
    expected = compacted(images())
    other = copied(compacted)
    assert torch.equal(other(images()), expected)
    assert str(other.plan) == str(compacted.plan)
    assert other.state_dict().keys() == compacted.state_dict().keys()
    del compacted
    gc.collect()
    assert torch.equal(other(images()), expected)


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("auto", marks=slow)])
def test_the_lists_are_freed_with_the_model(backend: Any, model: nn.Module, lists: Callable[[], int]) -> None:
    compacted = dcn.compact(model, backend=backend)
    input_gradient(compacted, images(64))
    assert lists() > 0 or compacted.plan.backend == "dense"
    copied = copy.deepcopy(compacted)
    input_gradient(copied, images(64))
    del compacted, copied
    gc.collect()
    assert lists() == 0


@pytest.mark.parametrize(
    "compiler", ["eager", pytest.param("aot_eager", marks=slow), pytest.param("inductor", marks=slow)]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_compact_model_is_the_model(backend: Any, compiler: str, model: nn.Module) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(dcn.compact(model, backend=backend), backend=compiler, fullgraph=True)
    assert error(compiled, model, images()) < LIMIT
    assert_close(input_gradient(compiled, images()), input_gradient(model, images()))
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exported_compact_model_is_the_model_for_any_batch_and_holds_no_lists(
    backend: Any, model: nn.Module
) -> None:
    compacted = dcn.compact(model, backend=backend)
    program = torch.export.export(compacted, (images(2),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    for count in (2, 5):
        assert error(program.module(), model, images(count)) < LIMIT
    assert not program.state_dict
    # What it carries are weights, masks and numbers of rows: one of each kind for a neuron or a weight at most.
    shapes = {tuple(value.shape) for value in compacted.on_rows.buffers()}
    assert {tuple(value.shape) for value in program.constants.values()} <= shapes
    targets = {str(node.target) for node in program.graph.nodes}
    assert "dcn_plugin.rows_conv.default" in targets


# PyTorch saves weights in channels_last memory format with this warning.
@pytest.mark.filterwarnings("ignore:No complete tensor found in the group:UserWarning")
def test_an_exported_compact_model_can_be_saved_and_read(model: nn.Module, compact: dcn.CompactModel) -> None:
    file = io.BytesIO()
    torch.export.save(torch.export.export(compact, (images(2),)), file)
    file.seek(0)
    assert error(torch.export.load(file).module(), model, images(2)) < LIMIT


def test_images_of_another_size_or_dtype_are_refused(compact: dcn.CompactModel) -> None:
    with pytest.raises(InputSizeError, match=r"\(N, 3, 12, 12\)"):
        compact(images(2, (3, 12, 13)))
    with pytest.raises(InputSizeError):
        compact(images(1)[0])
    with pytest.raises(ImageRangeError, match="float64"):
        compact(images().double())


@pytest.fixture
def on_kernel() -> dcn.CompactModel:
    return dcn.compact(small(), backend="c", batch_size=4)


@needs_c
def test_where_no_gradient_is_wanted_rows_run_in_kept_memory(on_kernel: dcn.CompactModel) -> None:
    calls: list[int] = []
    on_kernel.on_rows.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        on_kernel(images(2).requires_grad_())
    on_kernel(images(2))
    assert not calls
    on_kernel(images(2).requires_grad_())
    assert len(calls) == 1


@needs_c
def test_copies_and_pickles_have_memory_of_their_own(on_kernel: dcn.CompactModel) -> None:
    expected = on_kernel(images(2))
    for other in (copy.deepcopy(on_kernel), through_pickle(on_kernel)):
        assert torch.equal(other(images(2)), expected)
        assert other._inference is not on_kernel._inference


@needs_c
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_who_watches_the_operations_sees_them(on_kernel: dcn.CompactModel) -> None:
    expected = on_kernel(images(3))
    with pytest.warns(FutureWarning, match="deprecated"):
        traced = torch.jit.trace(on_kernel, images(3), check_trace=False)
    assert error(traced, on_kernel, images(3, seed=1)) < LIMIT

    class Marked(Tensor):
        pass

    assert type(on_kernel(images(3).as_subclass(Marked))) is Marked
    calls: list[int] = []
    on_kernel.on_rows.register_forward_hook(lambda *_: calls.append(1))
    with FlopCounterMode(display=False):
        assert torch.equal(on_kernel(images(3)), expected)
    assert calls


@pytest.mark.parametrize(
    ("count", "parts"),
    [(11, [4, 4, 2, 1]), (8, [4, 4]), (6, [4, 2]), (4, [4]), (1, [1]), (0, [0])],
)
def test_a_batch_runs_in_the_pieces_of_the_plan_in_their_order(
    count: int, parts: list[int], compact: dcn.CompactModel
) -> None:
    cut = copy.deepcopy(compact)
    cut.plan = replace(cut.plan, ways=((1, "images"), (2, "compact")), chunks=(4, 2))
    sizes: list[int] = []
    for graph in (cut.on_rows, cut.on_images):
        graph.register_forward_hook(lambda _, given, made: sizes.append(len(made)))
    torch.testing.assert_close(cut(images(count)), compact(images(count)), rtol=LIMIT, atol=1e-5)
    assert sizes == parts
    assert_close(input_gradient(cut, images(5)), input_gradient(compact, images(5)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_holds_for_batches_that_are_cut_into_other_pieces(compact: dcn.CompactModel) -> None:
    cut = copy.deepcopy(compact)
    cut.plan = replace(cut.plan, ways=((1, "images"), (2, "compact")), chunks=(4, 2))
    with pytest.warns(FutureWarning, match="deprecated"):
        traced = torch.jit.trace(cut, images(6), check_trace=False)
    assert error(traced, compact, images(11)) < LIMIT


@needs_c
def test_the_lists_of_rows_are_there_before_the_first_batch(model: nn.Module, lists: Callable[[], int]) -> None:
    made = dcn.compact(model, backend="c")
    before, known = lists(), set(derived._entries)
    with torch.no_grad():
        made(images(3))
    assert before > len(rows(made))
    # What is left for the first batch: which row each cell of the images has that follow rows.
    assert {kind for kind, _ in set(derived._entries) - known} == {("cells",)}


def test_a_graph_without_rows_of_the_kernel_runs_as_it_is(compact: dcn.CompactModel) -> None:
    assert without_gradient(compact.on_rows, 4) is compact.on_rows


def test_it_prints_the_model_it_was_made_from_and_its_backend(compact: dcn.CompactModel) -> None:
    assert compact.extra_repr() == "Plain, backend=reference"
    assert compact.asked == "reference"
    assert compact.input_size == (3, 12, 12)

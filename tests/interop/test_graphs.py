"""Rows of the interop matrix: tools that turn a network into a graph."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx.experimental.optimization
from timm.models._features_fx import create_feature_extractor
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import MaskShapeError, NotDefectiveError
from tests.interop.probe import (
    IMAGES,
    NETS,
    assert_dead_channels_learn_nothing,
    assert_glass_is_silent,
    gradients,
    make,
    unmasked,
)

Out = tuple[Tensor, ...]


@pytest.fixture(scope="module")
def glass() -> nn.Module:
    """Shows every masked neuron in its outputs; no test may change it."""
    return make("every slot")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_graph_is_defective(graph: Any, glass: nn.Module, *, atol: float = 0.0) -> None:
    """The graph is silent at every masked neuron, and equal to eager in all it returns."""
    for images in (IMAGES, -IMAGES):
        out, expected = graph(images), glass(images)
        assert_glass_is_silent(glass, out)
        assert all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(out, expected, strict=True))
    # Fails for a network that is only nearly the same.
    other = unmasked(glass)(IMAGES)
    assert not torch.allclose(graph(IMAGES)[1], other[1], atol=1e-3)


def assert_graph_learns_like_eager(convert: Callable[[nn.Module], Any], *, atol: float = 0.0) -> None:
    """Gradients of all parameters equal eager's; those of a dead channel are exactly zero."""
    model = make("every slot", mode="channel").train()
    expected = gradients(copy.deepcopy(model))
    found = {name.removeprefix("_orig_mod."): g for name, g in gradients(convert(model)).items()}
    assert found.keys() == expected.keys()
    assert_dead_channels_learn_nothing(model, found)
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=0, atol=atol), name


# The accelerator side of the compiler asks for a device once, and warns where there is none.
@pytest.mark.filterwarnings("ignore:.*CUDA.*:UserWarning")
# dynamo looks at `.grad` of every tensor it meets; torch hides that warning only from its own filters.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("backend", "atol"),
    [("aot_eager", 0.0), pytest.param("inductor", 1e-5, marks=pytest.mark.slow)],
)
def test_compile(glass: nn.Module, backend: str, atol: float) -> None:
    compiled: Any = torch.compile(copy.deepcopy(glass), fullgraph=True, backend=backend)
    assert_graph_is_defective(compiled, glass, atol=atol)
    dcn.verify(compiled)
    assert dcn.defect_spec(compiled) == dcn.defect_spec(glass)
    assert_graph_learns_like_eager(lambda m: torch.compile(m, fullgraph=True, backend=backend), atol=atol)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", [n if n == "batch norm" else pytest.param(n, marks=pytest.mark.slow) for n in NETS])
def test_compile_of_whole_networks_has_no_graph_break(name: str) -> None:
    model = make(name)
    compiled: Any = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    out, expected = compiled(IMAGES), model(IMAGES)
    pairs = [(out, expected)] if isinstance(out, Tensor) else zip(out, expected, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_export(glass: nn.Module) -> None:
    program = torch.export.export(copy.deepcopy(glass), (IMAGES,))
    assert_graph_is_defective(program.module(), glass)
    masks = {key: value for key, value in program.state_dict.items() if key.endswith(".mask")}
    assert len(masks) == 5 and {value.dtype for value in masks.values()} == {torch.bool}
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_graph_is_defective(torch.export.load(file).module(), glass)
    assert_graph_learns_like_eager(lambda model: torch.export.export(model, (IMAGES,)).module())
    with pytest.raises(NotDefectiveError):
        dcn.verify(program.module())  # a graph has no mask modules


def test_export_for_any_batch_size(glass: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(copy.deepcopy(glass), (IMAGES,), dynamic_shapes=({0: batch},))
    for images in (IMAGES[:1], torch.cat([IMAGES, IMAGES, IMAGES])):
        out = program.module()(images)
        assert_glass_is_silent(glass, out)
        assert all(torch.equal(a, b) for a, b in zip(out, glass(images), strict=True))


# onnxscript and onnx_ir use names that numpy and torch have deprecated; the export does not depend on them.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx(glass: nn.Module, tmp_path: Path) -> None:
    import onnxruntime

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        copy.deepcopy(glass), (IMAGES,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    assert program is not None
    program.save(tmp_path / "glass.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "glass.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Out:
        return tuple(torch.from_numpy(out) for out in session.run(None, {name: images.numpy()}))

    assert_graph_is_defective(run, glass, atol=1e-5)
    assert_glass_is_silent(glass, run(IMAGES[:1]))


def test_fx_trace(glass: nn.Module) -> None:
    graph = torch.fx.symbolic_trace(copy.deepcopy(glass))
    assert_graph_is_defective(graph, glass)
    # The tracer keeps what this mode reads, and in eval mode nobody counts batches.
    assert glass.state_dict().keys() - graph.state_dict().keys() == {
        "norm1.num_batches_tracked",
        "norm5.num_batches_tracked",
    }
    assert_graph_learns_like_eager(torch.fx.symbolic_trace)
    with pytest.raises(NotDefectiveError):
        dcn.verify(graph)


@pytest.mark.parametrize("name", NETS)
def test_fx_trace_of_whole_networks(name: str) -> None:
    model = make(name)
    out, expected = torch.fx.symbolic_trace(model)(IMAGES), model(IMAGES)
    pairs = [(out, expected)] if isinstance(out, Tensor) else zip(out, expected, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_image_of_another_size_is_refused_in_an_fx_graph_too(glass: nn.Module) -> None:
    graph = torch.fx.symbolic_trace(copy.deepcopy(glass))
    with pytest.raises(MaskShapeError):
        graph(torch.rand(1, 3, 48, 48))


def test_fx_fusion_of_convolution_and_norm_keeps_the_mask(glass: nn.Module) -> None:
    fused = torch.fx.experimental.optimization.fuse(copy.deepcopy(glass))
    assert_graph_is_defective(fused, glass, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:FutureWarning")  # of the tool itself
def test_fx_optimisation_for_inference_keeps_the_mask(glass: nn.Module) -> None:
    optimized = torch.fx.experimental.optimization.optimize_for_inference(copy.deepcopy(glass))
    assert_graph_is_defective(optimized, glass, atol=1e-5)


def test_a_graph_without_its_notes_is_traced_again(glass: nn.Module) -> None:
    graph = torch.fx.symbolic_trace(copy.deepcopy(glass))
    again = torch.fx.symbolic_trace(torch.fx.Transformer(graph).transform())
    assert_graph_is_defective(again, glass)


def test_timms_feature_extractor_on_fx_keeps_the_mask() -> None:
    model: Any = make("batch norm")
    extractor = create_feature_extractor(model, ["layer1", "layer2"])
    features = extractor(IMAGES)
    features = list(features.values()) if isinstance(features, dict) else features
    expected: list[Tensor] = []
    for layer in (model.layer1, model.layer2):
        layer.register_forward_hook(lambda _, args, out: expected.append(out))
    model(IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))


# torch 2.15 deprecates TorchScript; it is still how many networks are shipped.
TORCHSCRIPT = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning"
)


@TORCHSCRIPT
def test_jit_script(glass: nn.Module) -> None:
    scripted = torch.jit.script(copy.deepcopy(glass))
    for _ in range(3):  # the profiling executor rewrites the graph in its first runs
        assert_graph_is_defective(scripted, glass, atol=1e-6)
    assert_graph_learns_like_eager(torch.jit.script, atol=1e-6)
    frozen = torch.jit.optimize_for_inference(torch.jit.freeze(scripted))
    for _ in range(3):
        assert_graph_is_defective(frozen, glass, atol=1e-5)
    with pytest.raises(NotDefectiveError):
        dcn.verify(scripted)


@TORCHSCRIPT
@pytest.mark.parametrize("name", NETS)
def test_jit_script_of_whole_networks(name: str) -> None:
    model = make(name)
    out, expected = torch.jit.script(model)(IMAGES), model(IMAGES)
    pairs = [(out, expected)] if isinstance(out, Tensor) else zip(out, expected, strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@TORCHSCRIPT
# The size check of a mask is left out of a trace on purpose; what remains are timm's own shape assertions.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace(glass: nn.Module, tmp_path: Path) -> None:
    traced = torch.jit.trace(copy.deepcopy(glass), IMAGES)
    assert_graph_is_defective(traced, glass)
    torch.jit.save(traced, tmp_path / "glass.pt")
    assert_graph_is_defective(torch.jit.load(tmp_path / "glass.pt"), glass)
    assert_graph_learns_like_eager(lambda model: torch.jit.trace(model, IMAGES, check_trace=False), atol=1e-6)
    with pytest.raises(NotDefectiveError):
        dcn.verify(traced)


@TORCHSCRIPT
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("tool", ["script", "trace", "export"])
def test_an_image_of_another_size_is_an_error_of_torch_in_other_graphs(glass: nn.Module, tool: str) -> None:
    net = copy.deepcopy(glass)
    graph: Any = {
        "script": lambda: torch.jit.script(net),
        "trace": lambda: torch.jit.trace(net, IMAGES),
        "export": lambda: torch.export.export(net, (IMAGES,)).module(),
    }[tool]()
    with pytest.raises((RuntimeError, AssertionError)):
        graph(torch.rand(1, 3, 48, 48))


@pytest.mark.parametrize("tool", ["fx", "export"])
def test_the_check_of_a_graph_notices_a_mask_that_is_gone(glass: nn.Module, tool: str) -> None:
    broken = unmasked(glass)
    graph = torch.fx.symbolic_trace(broken) if tool == "fx" else torch.export.export(broken, (IMAGES,)).module()
    with pytest.raises(AssertionError):
        assert_graph_is_defective(graph, glass, atol=1e-5)

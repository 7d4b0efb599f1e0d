"""The model as a graph of ATen operations: constants computed, batch norm folded in, nothing in place.

``torch.export`` reads it: the engine needs a program that runs, at any batch size and with every constant. The trace of
:mod:`dcn_plugin.surgery.trace` says where tensors flow in one forward, and cannot be run.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dcn_plugin.errors import CompactError, TraceError
from dcn_plugin.support.model_state import device_of

__all__ = ["Constants", "capture", "shape_of", "simplified", "traced"]

_aten = torch.ops.aten

Constants = dict[fx.Node, Tensor]

_CONVS = (_aten.conv2d.default, _aten.conv2d.padding)
_DROPOUTS = (_aten.dropout.default, _aten.feature_dropout.default)
_IDENTITIES = (_aten.clone.default, _aten.alias.default)
_CHECKS = (_aten._assert_tensor_metadata.default, _aten._assert_scalar.default)


def capture(model: nn.Module, input_size: tuple[int, int, int]) -> fx.GraphModule:
    """Trace a model in evaluation mode, for any batch size, and simplify the graph.

    In the result every constant that a node reads is an attribute of the graph module, every convolution is
    ``aten.conv2d.default`` with all seven arguments, and the batch norm behind it is in its weights. Only the rare one
    with padding="same" that pads one side more than the other stays ``aten.conv2d.padding``.

    Args:
        model: images (N, C, H, W) -> a tensor; not changed.
        input_size: (C, H, W).

    Raises:
        TraceError: torch.export cannot follow the model, its graph does not hold for every batch size, or it writes
            into a view of another tensor.
        CompactError: its outputs are neither a tensor nor a tuple of tensors.
    """
    return simplified(traced(model, input_size))


def traced(model: nn.Module, input_size: tuple[int, int, int]) -> fx.GraphModule:
    """The model as torch.export sees it; the graph reads the model's own parameters and buffers.

    Args:
        model: as in :func:`capture`, in evaluation or in training mode.
        input_size: (C, H, W).

    Raises:
        TraceError, CompactError: as in :func:`capture`.
    """
    example = torch.zeros(2, *input_size, dtype=_dtype(model), device=device_of(model))
    shapes = ({0: torch.export.Dim.AUTO},)
    try:
        with _quiet():
            program = torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)
            graph = program.module()
    except Exception as error:  # torch.export raises whatever the model's own code raises under it
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise TraceError(
            f"torch.export cannot follow {type(model).__name__}: {text[0][:200]}",
            fix="use the model as it is; it computes the same",
        ) from error
    _check_batch(program, model)
    _check_outputs(program, model)
    assert isinstance(graph, fx.GraphModule)
    return graph


def simplified(graph: fx.GraphModule, *, training: bool = False) -> fx.GraphModule:
    """A traced graph with its constants computed.

    Args:
        graph: see :func:`traced`.
        training: leave parameters and floating-point buffers what they are, the model's own, and every batch norm
            where it is. Only what follows from masks is a constant then; ``meta["changes"]`` marks the others.
    """
    return _Simplifier(graph, training).run()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the graph that torch.export logs and prints when it fails: our error names the cause."""
    logger, printed = logging.getLogger("torch.fx.experimental.symbolic_shapes"), io.StringIO()
    before, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stderr(printed):
            yield
    finally:
        logger.disabled = before
    sys.stderr.write(printed.getvalue())  # of a success: warnings


def _check_outputs(program: torch.export.ExportedProgram, model: nn.Module) -> None:
    """Refuse outputs whose form the graph does not keep: it knows a tensor, or a tuple of tensors."""
    form = program.call_spec.out_spec
    if form is None or form.is_leaf() or (form.type is tuple and all(part.is_leaf() for part in form.children())):
        return
    raise CompactError(
        f"{type(model).__name__} returns a {form.type.__name__}, whose form a compact model would not keep.",
        str(form)[:200],
        "a tensor, or a tuple of tensors",
        "wrap the model in a module whose forward returns its logits alone",
    )


def _check_batch(program: torch.export.ExportedProgram, model: nn.Module) -> None:
    """Refuse a graph that holds for some batch sizes only: the simplified graph no longer checks the size."""
    (image,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name in _inputs(program))
    size = image.meta["val"].shape[0]
    # Where the number of images decides on what is computed, torch.export fixes it, or keeps to one side of a branch.
    free = isinstance(size, torch.SymInt) and size.node.expr.is_Symbol
    if not free or any(size.upper.is_Integer for size in program.range_constraints.values()):
        raise TraceError(
            f"What {type(model).__name__} computes depends on the number of images in the batch: no graph holds for "
            "every batch size.",
            fix="use the model as it is; it computes the same",
        )


def _inputs(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    return tuple(map(str, program.graph_signature.user_inputs))


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a node's value without the batch; None where it is no tensor with the batch first."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.ndim < 2 or not isinstance(value.shape[0], torch.SymInt):
        return None
    rest = value.shape[1:]
    return tuple(map(int, rest)) if all(isinstance(size, int) for size in rest) else None


def instance_norm(*args: Any, **kwargs: Any) -> Tensor:
    """``aten.instance_norm``, with a gradient that is right for a single image too.

    torch 2.14.1 computes a wrong one on the CPU where the gradient of the output arrives channels last and N is 1
    (findings/torch_instance_norm_single_image_gradient.sh).
    """
    out: Tensor = _aten.instance_norm.default(*args, **kwargs)
    if out.requires_grad:
        out.register_hook(Tensor.contiguous)
    return out


# Whoever reads the graph knows it by its schema.
instance_norm._schema = _aten.instance_norm.default._schema  # type: ignore[attr-defined]


class _Simplifier:
    """Copies a traced graph node by node."""

    def __init__(self, traced: fx.GraphModule, training: bool) -> None:
        self.traced, self.training, self.graph = traced, training, fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.constants: Constants = {}
        self.root = nn.Module()

    def run(self) -> fx.GraphModule:
        for node in self.traced.graph.nodes:
            self._add(node)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)

    def constant(self, value: Tensor) -> fx.Node:
        name = f"constant_{len(self.root._buffers)}"
        self.root.register_buffer(name, value, persistent=False)
        node = self.graph.get_attr(name)
        node.meta["val"] = value
        return node

    def _add(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            value: Any = self.traced
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if self.training and value.dtype != torch.bool:
                self.values[node] = self.constant(value)
                self.values[node].meta |= {"title": node.target, "changes": True}
            else:
                # A snapshot: whoever changes the model's own in place later does not change it.
                self.constants[node] = value.detach().clone()
        elif node.op == "placeholder":
            self.values[node] = self._copied(node)
        elif node.op == "output":
            self.graph.output(fx.map_arg(node.args[0], self._value))
            _unwrap(self.graph)
        elif node.op == "call_module" or node.target in _CHECKS:
            pass  # checks of the input's shape; the model that holds the graph has its own
        elif node.target in _IDENTITIES or (node.target in _DROPOUTS and not node.args[2]):
            self._alias(node, node.all_input_nodes[0])
        elif self._is_constant(node):
            self._compute(node)
        elif self.training or not self._fold_norm(node):
            self._call(node)

    def _alias(self, node: fx.Node, source: fx.Node) -> None:
        if source in self.constants:
            self.constants[node] = self.constants[source]
        else:
            self.values[node] = self.values[source]

    def _is_constant(self, node: fx.Node) -> bool:
        sources = node.all_input_nodes
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        return bool(sources) and all(source in self.constants for source in sources) and not drawn

    def _compute(self, node: fx.Node) -> None:
        def copied(source: fx.Node) -> Any:
            # In-place operations must not change the model's own. An operation with several results has a tuple here.
            value = self.constants[source]
            return value.clone() if isinstance(value, Tensor) else value

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), copied)
        assert callable(node.target)
        with torch.no_grad():
            self.constants[node] = node.target(*args, **kwargs)

    def _call(self, node: fx.Node) -> None:
        target: Any = node.target if self._writes_state(node) else _functional(node)
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._value)
        if target in _CONVS and not _is_lopsided(node):
            args, kwargs = self._conv_arguments(node, args, kwargs), {}
            target = _aten.conv2d.default
        if target is _aten.instance_norm.default:
            target = instance_norm
        call = self.graph.call_function(target, tuple(args), kwargs)
        call.meta["val"] = node.meta.get("val")
        if target is _aten.conv2d.default:
            call.meta["title"] = _title(node.args[1])
        self.values[node] = call

    def _writes_state(self, node: fx.Node) -> bool:
        """Whether a node writes into what the model keeps: a norm counts its batches."""
        first = node.args[0] if node.args else None
        return isinstance(first, fx.Node) and first in self.values and self.values[first].op == "get_attr"

    def _conv_arguments(self, node: fx.Node, args: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The seven arguments of ``conv2d``, with numbers for "same" and "valid"."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given: dict[str, Any] = dict(zip(names, (None, None, None, (1, 1), (0, 0), (1, 1), 1), strict=True))
        given |= dict(zip(names, args, strict=False)) | kwargs
        for name in ("stride", "padding", "dilation"):
            value = given[name]
            if isinstance(value, str):
                kernel = given["weight"].meta["val"].shape[2:]
                dilation = list(given["dilation"]) * (2 // len(given["dilation"]))
                value = [0 if value == "valid" else d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
            given[name] = list(value) * (2 // len(value))
        return tuple(given[name] for name in names)

    def _fold_norm(self, node: fx.Node) -> bool:
        """Fold a batch norm into the convolution before it, if nothing else reads that."""
        if node.target is not _aten.batch_norm.default:
            return False
        conv = node.args[0]
        assert isinstance(conv, fx.Node)
        inputs: list[Any] = [node.args[at] if len(node.args) > at else None for at in (1, 2, 3, 4)]
        if any(arg is not None and arg not in self.constants for arg in inputs) or None in inputs[2:] or node.args[5]:
            return False
        before = self.values.get(conv)
        if before is not None and _has_constant_weight(before) and len(conv.users) == 1:
            x, *parameters = before.args[:3]
            weight, bias = (getattr(parameter, "meta", {}).get("val") for parameter in parameters)
            rest, title = before.args[3:], before.meta["title"]
        else:
            # A norm of something else is a convolution of its own: one weight for each channel.
            value, channels = node.meta["val"], len(self.constants[inputs[2]])
            if value.ndim != 4:
                return False
            weight, bias = torch.ones(channels, 1, 1, 1, dtype=value.dtype, device=value.device), None
            x, rest = self._value(conv), ([1, 1], [0, 0], [1, 1], channels)
            title = _title(inputs[0] or inputs[2])
        norm = [None if arg is None else self.constants[arg].double() for arg in inputs]
        eps: Any = node.args[7]
        args = (x, *map(self.constant, _folded(weight, bias, norm, eps)), *rest)
        call = self.graph.call_function(_aten.conv2d.default, args)
        call.meta |= {"val": node.meta["val"], "title": title}
        self.values[node] = call
        return True

    def _value(self, node: fx.Node) -> fx.Node:
        if node not in self.values:
            self.values[node] = self.constant(self.constants[node])
        return self.values[node]

    def _copied(self, node: fx.Node) -> fx.Node:
        placeholder = self.graph.placeholder("images")
        placeholder.meta["val"] = node.meta["val"]
        return placeholder


def _folded(weight: Any, bias: Any, norm: list[Any], eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias with the norm (gamma, beta, mean, variance) in them, folded in float64.

    The weight comes in the memory format in which PyTorch's own convolutions are fastest.
    """
    gamma, beta, mean, variance = norm
    plain = None if bias is None else bias.double()
    both = fuse_conv_bn_weights(weight.double(), plain, mean, variance, eps, gamma, beta)
    folded, shift = (tensor.detach().to(weight.dtype) for tensor in both)
    return folded.contiguous(memory_format=torch.channels_last), shift


def _has_constant_weight(node: fx.Node) -> bool:
    return node.target is _aten.conv2d.default and all(
        argument is None or (isinstance(argument, fx.Node) and argument.op == "get_attr") for argument in node.args[1:3]
    )


def _is_lopsided(node: fx.Node) -> bool:
    """Whether padding="same" pads one side more than the other, which one number for both cannot express."""
    names = ("stride", "padding", "dilation")
    given = dict(zip(names, node.args[3:], strict=False)) | dict(node.kwargs)
    if given.get("padding") != "same":
        return False
    kernel = node.args[1].meta["val"].shape[2:]  # type: ignore[union-attr]
    dilation: Any = given.get("dilation", (1, 1))
    return any(d * (k - 1) % 2 for d, k in zip(list(dilation) * (2 // len(dilation)), kernel, strict=True))


def _title(parameter: Any) -> str:
    """The name of the module that a parameter belongs to."""
    return str(getattr(parameter, "target", parameter)).rpartition(".")[0]


def _functional(node: fx.Node) -> Any:
    """The same operation without writing into its input.

    Raises:
        TraceError: what it writes into is seen through a view.
    """
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is None or not schema.name.endswith("_") or schema.name.endswith("__"):
        return target
    written = node.args[0]
    assert isinstance(written, fx.Node)
    others = [user for user in written.users if user is not node]
    if _is_view(written) or any(_is_view(user) for user in others):
        raise TraceError(f"The model writes into a view ({schema.name}), which the engine cannot follow.")
    packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::")[:-1])
    return getattr(packet, schema.overload_name or "default")


def _is_view(node: fx.Node) -> bool:
    """Whether the value of a node lies, or may lie, in the memory of another."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_view(node.args[0])
    schema = getattr(node.target, "_schema", None)
    aliases = [] if schema is None else [result.alias_info for result in schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _unwrap(graph: fx.Graph) -> None:
    """Return the tensor itself where torch.export returns a tuple of one."""
    output = graph.output_node()
    (value,) = output.args
    if isinstance(value, tuple | list) and len(value) == 1:
        output.args = (value[0],)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in model.parameters()), torch.float32)

"""Reads the data flow of a network: one forward on a dummy image, every tensor operation recorded.

The result is a graph of calls. Convolutions are recognised by the operation they run, not by their class,
and normalisation modules are folded into one node each, so that the rules in :mod:`dcn_plugin.surgery.sites`
can ask which convolution's output reaches which norm. A convolution with a buffer for its weight (a blur pool)
is a filter like any pooling. A tensor that was overwritten through a view of it (``x[:, :8] = conv(y)``)
depends on what was written.

``torch.export`` would read the network, too, as :mod:`dcn_plugin.engine.capture` does. It has to understand all of the
model's code, control flow included, and takes longer, most of all on networks of many layers. Masks need one forward
that runs, and names of modules instead of a program.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from dcn_plugin.errors import DcnError, InputSizeError, TraceError
from dcn_plugin.support.model_state import dummy_image, eval_mode

__all__ = [
    "NORM_OPS",
    "ExampleInputs",
    "ModelInputs",
    "Node",
    "Trace",
    "explain",
    "trace_model",
]

ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""What a model is called with: one image batch, several positional arguments, or keyword arguments."""

Kind = Literal["conv", "norm", "op"]
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One call in the data flow.

    Args:
        index: place in execution order; parents have smaller ones.
        kind: "conv" (a 2-d convolution), "norm" (a normalisation module or operation), or "op".
        op: name of the aten operation, e.g. "mul"; for a folded norm the class name.
        module: path of the innermost module that ran it.
        parents: indices of the nodes whose results it read; parameters and constants are no nodes.
        shape: of its (first) result.
        in_shape: of the first result it read, () where there is none.
        constants: shapes of the other tensors and numbers it read: parameters, buffers and what is computed from them.
    """

    index: int
    kind: Kind
    op: str
    module: str
    parents: tuple[int, ...]
    shape: _Shape
    in_shape: _Shape
    constants: tuple[_Shape, ...] = ()


@dataclass
class Trace:
    """The data flow of one forward pass.

    Args:
        nodes: in execution order; ``nodes[i].index == i``.
        outputs: indices of the nodes the model returned.
        spans: module path -> [(first node, one past the last node, shape of its result)], one entry a call.
    """

    nodes: list[Node] = field(default_factory=list)
    outputs: tuple[int, ...] = ()
    spans: dict[str, list[tuple[int, int, _Shape]]] = field(default_factory=dict)

    @property
    def convs(self) -> list[Node]:
        """The convolutions in execution order; a site's ordinal is an index into this list."""
        return [node for node in self.nodes if node.kind == "conv"]

    @functools.cached_property
    def readers(self) -> list[list[int]]:
        """For every node the indices of those that read it, once all are recorded."""
        indices: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for parent in node.parents:
                indices[parent].append(node.index)
        return indices


NORM_OPS = ("batch_norm", "group_norm", "layer_norm", "rms_norm", "instance_norm")
"""What the names of operations that normalise contain."""


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._layers = {path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)}
        self._constants = {_address(buffer) for buffer in model.buffers()}
        self.stack: list[str] = [""]
        self.folding = 0  # > 0 inside a norm module: its inner operations are not recorded
        self._node_of: Any = WeakIdKeyDictionary()
        # storage -> the last node that wrote into it; the weak reference keeps its address from being used again
        self._written: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.folding:
            return func(*args, **(kwargs or {}))
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # inference mode hands on conv2d whole, which comes as convolution otherwise
                return func.decompose(*args, **(kwargs or {}))
        op = func.overloadpacket.__name__.rstrip("_")
        # Weights may be computed (weight standardisation): only the first argument of a conv is data.
        read = self.sources(tree_leaves(args[0] if op == "convolution" else (args, kwargs)))
        out = func(*args, **(kwargs or {}))
        kind: Kind = "op"
        if op == "convolution" and args[0].ndim == 4 and not args[6]:
            fixed = _address(args[1]) in self._constants and self.stack[-1] not in self._layers
            kind, op = ("op", "fixed_filter") if fixed else ("conv", op)
        elif any(name in op for name in NORM_OPS):
            kind = "norm"
        node = self.record(kind, op, read, out, self._constants_among(args) if read else ())
        if node is not None and func._schema.is_mutable:
            given = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | (kwargs or {})
            for argument in func._schema.arguments:
                if argument.is_write and isinstance(value := given.get(argument.name), Tensor):
                    self._written[_address(value)] = (StorageWeakRef(value.untyped_storage()), node)
        return out

    def sources(self, values: Sequence[Any]) -> dict[int, _Shape]:
        """Node -> shape, for the tensors among ``values`` that come from the image."""
        shapes: dict[int, _Shape] = {}
        for value in values:
            if isinstance(value, Tensor) and (node := self._source(value)) is not None:
                shapes.setdefault(node, tuple(value.shape))
        return shapes

    def _constants_among(self, args: Sequence[Any]) -> tuple[_Shape, ...]:
        """Shapes of the tensors and numbers in ``args`` that do not come from the image; zero is no constant."""
        values = [v for v in tree_leaves(args) if isinstance(v, Tensor) or (isinstance(v, float | int) and v != 0)]
        tensors = [v for v in values if isinstance(v, Tensor)]
        read = {id(v) for v in tensors if self._source(v) is not None}
        return tuple(tuple(v.shape) if isinstance(v, Tensor) else () for v in values if id(v) not in read)

    def _source(self, value: Tensor) -> int | None:
        node: int | None = self._node_of.get(value)
        if self._written:
            _, written = self._written.get(_address(value), (None, -1))
            if written > (-1 if node is None else node):
                shape = tuple(value.shape)
                node = self.record("op", "overwritten", {n: shape for n in (node, written) if n is not None}, value)
        return node

    def record(
        self, kind: Kind, op: str, read: dict[int, _Shape], out: Any, constants: tuple[_Shape, ...] = ()
    ) -> int | None:
        """Add a node for ``out``, unless it holds no tensor or nothing that comes from the image."""
        results = [v for v in tree_leaves(out) if isinstance(v, Tensor)]
        if not results or not (read or kind == "conv"):
            return None
        index = len(self.trace.nodes)
        shape, in_shape = tuple(results[0].shape), next(iter(read.values()), ())
        self.trace.nodes.append(Node(index, kind, op, self.stack[-1], tuple(read), shape, in_shape, constants))
        for result in results if read else ():  # a convolution of a constant counts, but leads nowhere
            self._node_of[result] = index
        return index

    def start(self, image: Tensor) -> None:
        """Make an input a node; the first one is node 0."""
        index = len(self.trace.nodes)
        self.trace.nodes.append(Node(index, "op", "input", "", (), tuple(image.shape), ()))
        self._node_of[image] = index


@dataclass(frozen=True)
class ModelInputs:
    """The arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: ExampleInputs) -> ModelInputs:
        """Read what a user gave.

        Raises:
            InputSizeError: there is no batch of images in it: no floating-point tensor (N, C, H, W).
        """
        if isinstance(example, Mapping):
            inputs = cls((), dict(example))
        else:
            inputs = cls(tuple(example) if isinstance(example, tuple | list) else (example,))
        if not inputs._images():
            raise InputSizeError(
                "example_inputs holds no batch of images.",
                [tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in inputs.leaves()],
                "a floating-point tensor (N, C, H, W) among them",
                "pass what the model is called with: a tuple of positional arguments, or a dict of keyword arguments",
            )
        return inputs

    def leaves(self) -> list[Any]:
        """Everything in the arguments, in their order."""
        return list(tree_leaves((self.args, dict(self.kwargs))))

    def _images(self) -> list[Tensor]:
        return [v for v in self.leaves() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim == 4]

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image batch."""
        channels, height, width = self._images()[0].shape[1:]
        return channels, height, width

    def on_meta(self) -> ModelInputs:
        """The same shapes without values."""
        args, kwargs = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, (self.args, dict(self.kwargs)))
        return ModelInputs(args, kwargs)

    def feed(self, model: nn.Module) -> Any:
        """Call the model."""
        return model(*self.args, **self.kwargs)


def trace_model(
    model: nn.Module,
    input_size: tuple[int, int, int],
    *,
    is_norm: Callable[[nn.Module], bool],
    inputs: ModelInputs | None = None,
) -> Trace:
    """Run ``model`` once in eval mode and record its data flow.

    Args:
        model: takes (N, C, H, W), or ``inputs``. Its parameters, buffers and training flags are as before afterwards,
            and so is the global random state.
        input_size: (C, H, W) of the image.
        is_norm: whether a module is a normalisation, to be folded into one node.
        inputs: what to call it with; by default a dummy image.

    Raises:
        InputSizeError: the model's forward fails on an image of this size.
        TraceError: it fails for another reason, or it holds parameters that have no size yet.
    """
    image = dummy_image(model, input_size, values=False)
    inputs = ModelInputs((image,)) if inputs is None else inputs
    recorder = _Recorder(model)
    with contextlib.ExitStack() as undo:
        undo.enter_context(eval_mode(model))
        undo.enter_context(torch.no_grad())
        undo.enter_context(torch.random.fork_rng(devices=[]))
        for path, module in model.named_modules():
            for handle in _watch(recorder, path, module, folds=is_norm(module)):
                undo.callback(handle.remove)
        for value in inputs.leaves():
            if isinstance(value, Tensor):
                recorder.start(value)
        try:
            with recorder:
                out = inputs.feed(model)
        except Exception as error:
            raise explain(error, input_size) from error
    recorder.trace.outputs = tuple(recorder.sources(tree_leaves(_plain(out))))
    return recorder.trace


def _address(value: Tensor) -> int:
    """What tensors that share memory have in common."""
    return value.untyped_storage()._cdata if value.layout == torch.strided else -id(value)


def _watch(recorder: _Recorder, path: str, module: nn.Module, *, folds: bool) -> list[Any]:
    trace = recorder.trace
    entered: list[tuple[int, dict[int, _Shape]]] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append((len(trace.nodes), recorder.sources(tree_leaves((args, kwargs))) if folds else {}))
        recorder.stack.append(path)
        recorder.folding += folds

    def after(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        first, read = entered.pop()
        recorder.folding -= folds
        if folds and not recorder.folding:
            recorder.record("norm", type(module).__name__, read, out)
        recorder.stack.pop()
        shapes = [tuple(v.shape) for v in tree_leaves(_plain(out)) if isinstance(v, Tensor)]
        trace.spans.setdefault(path, []).append((first, len(trace.nodes), shapes[0] if len(shapes) == 1 else ()))

    if isinstance(module, torch.jit.ScriptModule):
        return []  # its inside is one operation after another without modules; hooks are not allowed there
    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        # In front of the model's own hooks: those run behind a mask, so they are no part of the module.
        module.register_forward_hook(after, with_kwargs=True, prepend=True),
    ]


def _plain(out: Any) -> Any:
    # torchvision and transformers return dict-likes and named tuples that pytree may not know.
    return dict(out) if hasattr(out, "items") else out


def explain(error: Exception, input_size: tuple[int, ...]) -> Exception:
    """The named error for what a model's forward raised on an image of this size."""
    if isinstance(error, DcnError):
        return error
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if isinstance(error, RuntimeError | ValueError | AssertionError):
        return InputSizeError(
            f"The model's forward fails on an image of this size ({reason}).",
            input_size,
            "a (C, H, W) that the model itself accepts",
            "check the number of channels and the image size",
        )
    fix = None
    if isinstance(error, TypeError) and "argument" in reason:
        fix = "pass example_inputs=, a tuple of what the model takes or a dict of its keyword arguments"
    return TraceError(f"The model's forward failed ({reason}).", fix=fix)

"""Reads the data flow of a network: one forward on a dummy image, every tensor operation recorded.

The result is a graph of calls. Convolutions are recognised by the operation they run, not by their class,
and normalisation modules are folded into one node each, so that the rules in :mod:`dcn_plugin.sites`
can ask which convolution's output reaches which norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from dcn_plugin.errors import InputSizeError, TraceError

__all__ = ["Node", "Trace", "dummy_image", "eval_mode", "trace_model"]

Kind = Literal["conv", "norm", "op"]


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
        in_shape: of its first parent's result, () where there is none.
    """

    index: int
    kind: Kind
    op: str
    module: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    in_shape: tuple[int, ...]


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
    spans: dict[str, list[tuple[int, int, tuple[int, ...]]]] = field(default_factory=dict)

    @property
    def convs(self) -> list[Node]:
        """The convolutions in execution order; a site's ordinal is an index into this list."""
        return [node for node in self.nodes if node.kind == "conv"]


_NORM_OPS = ("batch_norm", "group_norm", "layer_norm", "rms_norm", "instance_norm")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self.stack: list[str] = [""]
        self.folding = 0  # > 0 inside a norm module: its inner operations are not recorded
        self._node_of: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.folding:
            op = func.overloadpacket.__name__.rstrip("_")
            # Weights may be computed (weight standardisation): only the first argument of a conv is data.
            read = tree_leaves(args[0] if op == "convolution" else (args, kwargs))
            kind: Kind = "op"
            if op == "convolution" and args[0].ndim == 4 and not args[6]:
                kind = "conv"
            elif any(name in op for name in _NORM_OPS):
                kind = "norm"
            self.record(kind, op, self.parents(read), out)
        return out

    def parents(self, values: Sequence[Any]) -> tuple[int, ...]:
        found = (self._node_of.get(v) for v in values if isinstance(v, Tensor))
        return tuple(dict.fromkeys(i for i in found if i is not None))

    def record(self, kind: Kind, op: str, parents: tuple[int, ...], out: Any) -> None:
        results = [v for v in tree_leaves(out) if isinstance(v, Tensor)]
        if not results or not parents:
            return
        nodes = self.trace.nodes
        nodes.append(
            Node(
                index=len(nodes),
                kind=kind,
                op=op,
                module=self.stack[-1],
                parents=parents,
                shape=tuple(results[0].shape),
                in_shape=nodes[parents[0]].shape,
            )
        )
        for result in results:
            self._node_of[result] = nodes[-1].index

    def start(self, image: Tensor) -> None:
        self.trace.nodes.append(Node(0, "op", "input", "", (), tuple(image.shape), ()))
        self._node_of[image] = 0


def trace_model(model: nn.Module, input_size: tuple[int, int, int], *, is_norm: Callable[[nn.Module], bool]) -> Trace:
    """Run ``model`` once on a dummy image in eval mode and record its data flow.

    Args:
        model: takes (N, C, H, W). Its parameters, buffers and training flags are as before afterwards.
        input_size: (C, H, W) of the image.
        is_norm: whether a module is a normalisation, to be folded into one node.

    Raises:
        InputSizeError: the model's forward fails on an image of this size.
        TraceError: it fails for another reason, or it holds parameters that are not there yet.
    """
    image = dummy_image(model, input_size)
    recorder = _Recorder()
    with contextlib.ExitStack() as undo:
        undo.enter_context(eval_mode(model))
        undo.enter_context(torch.no_grad())
        for path, module in model.named_modules():
            for handle in _watch(recorder, path, module, folds=is_norm(module)):
                undo.callback(handle.remove)
        recorder.start(image)
        try:
            with recorder:
                out = model(image)
        except Exception as error:
            raise _explain(error, input_size) from error
    recorder.trace.outputs = recorder.parents(tree_leaves(_plain(out)))
    return recorder.trace


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and give every submodule its own training flag back afterwards."""
    # Flag by flag: model.train() would thaw batch norms that their owner has frozen.
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _watch(recorder: _Recorder, path: str, module: nn.Module, *, folds: bool) -> list[Any]:
    trace = recorder.trace
    entered: list[tuple[int, tuple[int, ...]]] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append((len(trace.nodes), recorder.parents(tree_leaves((args, kwargs))) if folds else ()))
        recorder.stack.append(path)
        recorder.folding += folds

    def after(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        first, parents = entered.pop()
        recorder.folding -= folds
        if folds and not recorder.folding:
            recorder.record("norm", type(module).__name__, parents, out)
        recorder.stack.pop()
        shapes = [tuple(v.shape) for v in tree_leaves(_plain(out)) if isinstance(v, Tensor)]
        trace.spans.setdefault(path, []).append((first, len(trace.nodes), shapes[0] if len(shapes) == 1 else ()))

    if isinstance(module, torch.jit.ScriptModule):
        return []  # its inside is one operation after another without modules; hooks are not allowed there
    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]


def _plain(out: Any) -> Any:
    # torchvision and transformers return dict-likes and named tuples that pytree may not know.
    return dict(out) if hasattr(out, "items") else out


def dummy_image(model: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    """A (1, C, H, W) image on the model's device and of its dtype, the same at every call.

    Raises:
        TraceError: the model's parameters are lazy or on the meta device.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(nn.parameter.is_lazy(t) for t in tensors):
        raise TraceError(
            "The model has lazy parameters that have no size yet.", fix="run it once on an image before this call"
        )
    if any(t.is_meta for t in tensors):
        raise TraceError(
            "The model is on the meta device, where masks would have no bits.",
            fix="materialise it (model.to_empty(device=...)) before this call",
        )
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    # Not all equal, so that no branch on the data sees a degenerate image; no generator is touched.
    ramp = torch.linspace(0, 1, steps=input_size[1] * input_size[2], dtype=torch.float32)
    image = ramp.view(1, 1, *input_size[1:]).expand(1, *input_size)
    return image.to(device=like.device, dtype=like.dtype).contiguous()


def _explain(error: Exception, input_size: tuple[int, int, int]) -> Exception:
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if isinstance(error, RuntimeError | ValueError | AssertionError):
        return InputSizeError(
            f"The model's forward fails on an image of this size ({reason}).",
            input_size,
            "a (C, H, W) that the model itself accepts",
            "check the number of channels and the image size",
        )
    return TraceError(f"The model's forward failed while its structure was being read ({reason}).")

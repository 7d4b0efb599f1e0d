"""compact_training(): a defective network that is trained on the neurons that exist."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn

from dcn_plugin.engine import ops
from dcn_plugin.engine.capture import traced
from dcn_plugin.engine.compaction import expected_size, place_of
from dcn_plugin.engine.native import native_problem
from dcn_plugin.engine.ops import Backend
from dcn_plugin.engine.partition import Choice, choose
from dcn_plugin.engine.training.costs import TrainingCosts, forward_and_backward, seconds
from dcn_plugin.engine.training.model_snapshot import MaskSnapshot, ModelSnapshot, has_hooks
from dcn_plugin.engine.training.task import NormStatistics, SkippingCosts, TrainingPlan, TrainingTask
from dcn_plugin.errors import CompactError, ImageRangeError, InputSizeError, NotDefectiveError, SpecError
from dcn_plugin.support.onednn import narrow_strided_conv
from dcn_plugin.surgery import is_defective

__all__ = ["NormStatistics", "TrainingBackend", "TrainingModel", "TrainingPlan", "compact_training"]

TrainingBackend = Literal["auto", "c", "reference"]

WORTH = 0.97
"""What takes a larger share of the time of the plain way is not taken."""


class TrainingModel(nn.Module):
    """What :func:`compact_training` returns: the model itself, whose training steps skip what the masks drop.

    It holds the model as ``model`` and has no weights of its own: its parameters, buffers and state dict are the
    model's, and whatever changes them (an optimiser, ``load_state_dict``, freezing, other masks, another module or
    momentum) is seen at the next step. In evaluation mode it calls the model.

    Shape:
        - Input: (N, C, H, W), float32, of the size that the model had
        - Output: as the model's

    Raises:
        InputSizeError: in ``forward``: another (C, H, W).
        ImageRangeError: in ``forward``: another dtype.
        CompactError: in ``forward``: under autocast, or the images or the model are elsewhere than on the CPU, or the
            model is not in float32 any more or has hooks; in ``backward``: with ``create_graph=True``.

    Example:
        >>> fast = dcn.compact_training(net.train(), backend="reference")
        >>> fast(images).mean().backward()
        >>> next(net.parameters()).grad is not None, fast.state_dict().keys() == net.state_dict().keys()
        (True, True)
    """

    takes_one_size = True
    """Adapters of attacks that resize images ask for it."""

    def __init__(
        self,
        model: nn.Module,
        plan: TrainingPlan,
        input_size: tuple[int, int, int],
        backend: Backend,
        norm_statistics: NormStatistics,
    ) -> None:
        super().__init__()
        self.model, self.plan, self.input_size = model, plan, input_size
        self.backend, self.norm_statistics = backend, norm_statistics
        self._built: _Built | None = None
        self.train(model.training)

    def forward(self, images: Tensor) -> Any:
        """The model's output."""
        if tuple(images.shape[1:]) != self.input_size:
            raise InputSizeError(
                "A network that trains on rows takes images of one size, that of its masks.",
                tuple(images.shape),
                f"(N, {', '.join(map(str, self.input_size))})",
            )
        if not self.model.training or not self.plan.rows:
            return self.model(images)
        return self._step(images)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _step(self, images: Tensor) -> Any:
        if images.device.type != "cpu":
            raise CompactError("The training engine computes on the CPU.", f"images on {images.device}", "cpu")
        if images.dtype != torch.float32:
            raise ImageRangeError("The training engine computes in float32.", str(images.dtype), "torch.float32")
        if torch.is_autocast_enabled("cpu"):
            raise CompactError(
                "The training engine computes in float32, but autocast is on.",
                fix="train the defective model itself, or switch autocast off",
            )
        return self._graph()(images)

    def _graph(self) -> fx.GraphModule:
        """The graph for the model as it is now."""
        built, state = self._built, ModelSnapshot.of(self.model)
        if built is not None and built.state.same(state):
            if built.masks.same():
                return built.graph
            graph: fx.GraphModule | None = built.traced
        else:
            _check_model(self.model)
            graph = None
        # Under inference mode, where the caller may be, tensors would be made that autograd refuses; and whatever
        # collects the tensors that autograd saves, as torch.utils.checkpoint does, must not see those of a trace.
        with torch.inference_mode(False), torch.no_grad():
            graph = traced(self.model, self.input_size) if graph is None else graph
            task = TrainingTask.of(graph, self.norm_statistics)
            lowered = task.lower(task.named(self.plan.rows), self.backend)
            masks = MaskSnapshot.of(self.model)
        if built is not None:
            ops.forget(built.graph.buffers())
        else:
            weakref.finalize(self, _forget, self.__dict__)
        self._built = _Built(graph, lowered, ModelSnapshot.of(self.model), masks)
        return lowered

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """That of the model, under its own names."""
        return self.model.state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Into the model."""
        return self.model.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Of a module that contains this: there too the model's names stand without "model.".
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}model.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """What runs on rows."""
        return f"{len(self.plan.rows)} of {len(self.plan.layers)} convolutions on rows, backend={self.backend}"

    def __getstate__(self) -> dict[str, Any]:
        # A copy reads its own weights: its graph is made at its first step.
        return {**self.__dict__, "_built": None}


@dataclass(frozen=True, eq=False)
class _Built:
    """A graph, and the state of the model that it was made for.

    Args:
        traced: what torch.export saw; it reads the model's own tensors.
        graph: that runs.
        state: of the model.
        masks: whose bits are in the graph.
    """

    traced: fx.GraphModule
    graph: fx.GraphModule
    state: ModelSnapshot
    masks: MaskSnapshot


def _forget(state: dict[str, Any]) -> None:
    if state.get("_built") is not None:
        ops.forget(state["_built"].graph.buffers())


def compact_training(
    model: nn.Module,
    *,
    backend: TrainingBackend = "auto",
    batch_size: int = 128,
    norm_statistics: NormStatistics = "all",
    rows: Collection[str] | None = None,
    max_packed_bytes: int = 2**30,
    input_size: tuple[int, int, int] | None = None,
) -> TrainingModel:
    """Let a defective model train on the neurons that exist: p of the work of each masked layer's neighbours.

    The inputs of a convolution behind a mask are zero at known places, so its output and both of its gradients need
    only the others, exactly. Weights, statistics and gradients are those of the defective model up to rounding: a batch
    norm still sees all neurons of its layer, as in the paper's code. Train what is returned in the model's place, and
    evaluate, save and load either of them.

    Args:
        model: defective, in training mode, on the CPU, float32, images (N, C, H, W) -> a tensor or a tuple of them; it
            is not changed, and shared.
        backend: "auto" measures every convolution, and the whole step, and leaves as they are those that gain nothing.
            "c" and "reference" (plain PyTorch, slow) run every layer that has something to skip, without measuring.
        batch_size: of the steps that are to be fast.
        norm_statistics: "all": of all neurons of a layer. "live": of those that its mask keeps, so that the others need
            not be computed at all. That is another network: see ``docs/concepts/engine.md``.
        rows: names of the convolutions to run on rows (``plan.rows`` of another time), instead of measuring.
        max_packed_bytes: most memory for the lists of rows.
        input_size: (C, H, W) of the images; needed for a network of :class:`DefectiveConv2d` layers, which does not
            know it.

    Returns:
        The model as it trains; ``print(it.plan)`` says what runs how, and why.

    Raises:
        NotDefectiveError: the model has no masks.
        CompactError: it is in evaluation mode, not in float32 on the CPU, has hooks that rows would pass by, the
            backend cannot be used here, or the statistics of a norm cannot be "live".
        SpecError: an argument is out of range.
        InputSizeError: ``input_size`` is needed, or not that of the model.
        TraceError: torch.export cannot follow the model, or its graph does not hold for every batch size.

    Example:
        >>> fast = dcn.compact_training(net.train(), backend="reference")
        >>> fast.plan.rows[:2]
        ('layer1.0.conv1', 'layer1.0.conv2')

    Source: paper, section 1: defective CNNs "can save a lot of computation and storage"; statistics as in the authors'
    code, ``docs/concepts/authors-code.md``.
    """
    _check(model, backend, batch_size, norm_statistics, max_packed_bytes)
    size = expected_size(model, input_size)
    used = _backend_for(backend)
    task = TrainingTask.of(traced(model, size), norm_statistics)
    measured: TrainingCosts | None = None
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        if rows is not None:
            choice = task.named(rows)
        elif backend == "auto":
            measured = TrainingCosts(task.captured, task.live, batch_size, used, norm_statistics == "live")
            choice = choose(task.steps, task.live, measured, budget=max_packed_bytes)
        else:
            choice = choose(task.steps, task.live, SkippingCosts(task), budget=max_packed_bytes)
        task.check_statistics(choice)
        plan = task.plan(choice, measured, used, batch_size)
        fast = TrainingModel(model, plan, size, used, norm_statistics)
        if measured is not None and plan.rows:
            fast.plan = _raced(fast, task, choice, measured, batch_size)
    return fast


def _raced(
    fast: TrainingModel, task: TrainingTask, choice: Choice, measured: TrainingCosts, batch: int
) -> TrainingPlan:
    """The plan if a whole step of it is faster than one of the model, else one without rows."""
    model = fast.model
    images = torch.rand(batch, *fast.input_size, dtype=torch.float32)
    if narrow_strided_conv(model) is None:
        images = images.contiguous(memory_format=torch.channels_last)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(run: Callable[[Tensor], Any]) -> None:
        output = run(images)
        total: Tensor = sum(part.sum() for part in (output if isinstance(output, tuple) else (output,)))
        forward_and_backward(total, parameters)

    with _kept_buffers(model):
        dense = seconds(lambda: step(model))
        compact = seconds(lambda: step(fast))
    dense_ms, compact_ms = 1e3 * dense, 1e3 * compact
    if compact <= WORTH * dense or fast.norm_statistics == "live":
        return task.plan(choice, measured, fast.backend, batch, dense_ms=dense_ms, compact_ms=compact_ms)
    reasons = {step: "the whole step is faster without rows" for step in choice.on_rows}
    without = Choice(frozenset(), choice.reasons | reasons, choice.sizes)
    note = f"Rows would take {compact_ms:.1f} ms a step, the model takes {dense_ms:.1f} ms."
    return task.plan(without, measured, fast.backend, batch, note=note)


@contextlib.contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Give running statistics and counters their values back."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers() if buffer.dtype != torch.bool]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def _check(model: nn.Module, backend: str, batch_size: int, norm_statistics: str, budget: int) -> None:
    options = {"backend": (backend, TrainingBackend), "norm_statistics": (norm_statistics, NormStatistics)}
    for name, (value, allowed) in options.items():
        if value not in get_args(allowed):
            raise SpecError(f"Unknown {name}.", value, ", ".join(map(repr, get_args(allowed))))
    for name, number, least in (("batch_size", batch_size, 1), ("max_packed_bytes", budget, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise SpecError(f"{name} is not usable.", number, f"an int >= {least}")
    if isinstance(model, TrainingModel):
        raise CompactError("The model trains on rows already.", fix="use it, or give its .model")
    if not is_defective(model):
        raise NotDefectiveError(
            f"{type(model).__name__} has no defective neurons to skip.", fix="defectify() it, or train it as it is"
        )
    if not model.training:
        raise CompactError("The model is in evaluation mode.", fix="call model.train() first, or use compact()")
    _check_model(model)


def _check_model(model: nn.Module) -> None:
    """What must hold at every step."""
    device, dtype = place_of(model)
    if device.type != "cpu" or dtype != torch.float32:
        raise CompactError(
            "The training engine computes in float32 on the CPU.",
            f"{dtype} on {device}",
            "torch.float32 on cpu",
            "train the defective model itself",
        )
    hooked = next((name for name, module in model.named_modules() if has_hooks(module)), None)
    if hooked is not None:
        raise CompactError(
            f"The module {hooked or type(model).__name__!r} has hooks, which would not be called on rows.",
            fix="remove them, or train the defective model itself",
        )


def _backend_for(requested: TrainingBackend) -> Backend:
    if requested == "reference":
        return "reference"
    problem = native_problem()
    if problem is not None:
        raise CompactError(
            f"The C kernel cannot be used here: {problem}.", fix="train the defective model itself, or use 'reference'"
        )
    return "c"

"""compact(): finds out what a defective model can skip, and chooses what of it is worth skipping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, fx, nn

from dcn_plugin.engine import ops
from dcn_plugin.engine.capture import capture
from dcn_plugin.engine.clock import steady, sure_gain
from dcn_plugin.engine.compact_model import AskedBackend, CompactModel, in_chunks, without_gradient
from dcn_plugin.engine.decision_cache import Decision, decision_key, read_decision, write_decision
from dcn_plugin.engine.ladder import Rung, climb, raced, ways_of
from dcn_plugin.engine.liveness import Live, live_neurons
from dcn_plugin.engine.lower import lower
from dcn_plugin.engine.measured_costs import WORTH, Measured
from dcn_plugin.engine.mixing import check_graph, first_mixing
from dcn_plugin.engine.native import native_problem
from dcn_plugin.engine.ops import Backend
from dcn_plugin.engine.partition import Choice, Counted, choose, multiply_adds
from dcn_plugin.engine.plan import LayerPlan, Plan, Way
from dcn_plugin.engine.steps import Step, find_steps
from dcn_plugin.errors import CompactError, InputSizeError, NotDefectiveError, SpecError
from dcn_plugin.support.model_state import copy_of
from dcn_plugin.surgery import defect_spec, image_size, is_defective

__all__ = ["compact"]

LARGE_IMAGE = 96
"""From this side on a batch of 16 is measured instead of 64."""


def compact(
    model: nn.Module,
    *,
    backend: AskedBackend = "auto",
    batch_size: int | None = None,
    max_packed_bytes: int = 2**30,
    input_size: tuple[int, int, int] | None = None,
    use_cache: bool = True,
) -> CompactModel:
    """Make a snapshot of a defective model that skips its defective neurons.

    The outputs are those of the model up to rounding (a relative error of the logits below 1e-4 in float32), and it is
    differentiable with respect to its input. Layers from the first defective one to the last are computed on rows, one
    for each neuron that exists; the others run as before, with batch norm folded into the convolutions. Which neurons
    do not exist follows from the masks and the graph of the model, never from observed zeros.

    Under "auto" the whole is raced against the model as it is, at batch sizes from 1 to ``batch_size``, and runs only
    at those where it is not slower; at the others the model runs on images, batch norm folded, or as it is. On a busy
    machine the CPU time of one thread counts, and a small gain is not taken. Batches are cut into chunks only if the
    graph proves that the network keeps the images of a batch apart.

    Args:
        model: defective, in evaluation mode, images (N, C, H, W) -> a tensor; not changed.
        backend: "auto" takes the fastest one at hand, measures every layer that might gain, and leaves on images what
            is faster there. "reference" (plain PyTorch, slow, float64 too), "c" (CPU) and "triton" (GPU) run every
            layer that has something to skip, without measuring.
        batch_size: the largest that is measured; None: 64, or 16 for large images.
        max_packed_bytes: most memory for the lists of rows and for weights that are laid out anew.
        input_size: (C, H, W) of the images; needed for a network of :class:`DefectiveConv2d` layers, which does not
            know it.
        use_cache: under "auto", take what was measured for layers of the same kinds on this machine, and keep what is
            measured now, in a small file: see :mod:`dcn_plugin.engine.decision_cache`.

    Returns:
        The compact model; ``print(it.plan)`` says what runs how, and why.

    Raises:
        NotDefectiveError: the model has no masks.
        CompactError: it is in training mode or compact already, its dtype does not fit the backend, the backend cannot
            be used here, or not even one layer fits into ``max_packed_bytes``.
        SpecError: an argument is out of range.
        InputSizeError: ``input_size`` is needed, or not that of the model.
        TraceError: torch.export cannot follow the model, or its graph does not hold for every batch size.

    Example:
        >>> fast = dcn.compact(net.eval(), batch_size=1)
        >>> torch.allclose(fast(images), net(images), rtol=1e-4, atol=1e-4)
        True

    Source: paper, section 1: defective CNNs "can save a lot of computation and storage".
    """
    _check(model, backend, batch_size, max_packed_bytes)
    size = _input_size(model, input_size)
    device, dtype = _place(model)
    used, note = _backend_for(backend, device, dtype)
    on_gpu = [device] if device.type == "cuda" else []
    # Autograd refuses tensors that were made under inference mode, where the caller may be; what is measured is random.
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=on_gpu):
        return _compacted(model, backend, used, note, size, device, dtype, batch_size, max_packed_bytes, use_cache)


@dataclass(frozen=True, eq=False)
class _Task:
    """A model to compact, with all that is known of it before anything is measured.

    Args:
        captured: the graph of the model.
        steps: of the graph.
        live: of the graph.
        on_images: the graph as it runs on images, batch norm folded.
        as_it_is: a frozen copy of the model.
        backend: of the rows; None: none works here.
        measured: the costs of steps; None: they are not measured.
        size: (C, H, W) of the images.
        batch: images a batch, at most.
        budget: most bytes of lists and of weights that are laid out anew.
        device: of the model.
        dtype: of the model.
        cut: whether a batch may be cut into chunks.
    """

    captured: fx.GraphModule
    steps: list[Step]
    live: Live
    on_images: fx.GraphModule
    as_it_is: nn.Module
    backend: Backend | None
    measured: Measured | None
    size: tuple[int, int, int]
    batch: int
    budget: int
    device: torch.device
    dtype: torch.dtype
    cut: bool

    def write(self, choice: Choice) -> fx.GraphModule:
        """The graph for a choice."""
        if not (choice.on_rows or choice.packed):
            return self.on_images
        backend, packed = self.backend or "reference", choice.packed
        return lower(self.captured, self.steps, self.live, choice.on_rows, backend, device=self.device, packed=packed)

    def choose(self) -> Choice:
        """The cheapest choice, layer by layer.

        Raises:
            CompactError: the budget is below the lists of every layer.
        """
        if self.backend is None:
            return Choice(frozenset(), {}, {})
        with torch.inference_mode(), steady(self.device):
            choice = choose(self.steps, self.live, self.measured or Counted(self.live), budget=self.budget)
        if choice.sizes and min(choice.sizes.values()) > self.budget:
            least = min(choice.sizes.values())
            raise CompactError("No layer fits into the budget.", self.budget, f"max_packed_bytes >= {least}")
        return choice

    def decide(self, *, use_cache: bool) -> tuple[Decision, fx.GraphModule]:
        """The fastest choice for the whole model, and its graph: from this machine's cache, or measured now."""
        if not use_cache:
            return _fastest(self)
        key = decision_key(
            self.steps,
            self.live,
            backend=self.backend or "images",
            batch=self.batch,
            budget=self.budget,
            device=self.device,
            dtype=self.dtype,
            cut=self.cut,
        )
        stored = read_decision(key, self.steps, self.live, self.measured)
        if stored is not None:
            graph = self.write(stored.choice)
            graph(torch.zeros(1, *self.size, dtype=self.dtype, device=self.device))  # makes the lists of rows
            return stored, graph
        decision, graph = _fastest(self)
        write_decision(key, decision, self.steps, self.measured)
        return decision, graph


def _compacted(
    model: nn.Module,
    requested: AskedBackend,
    used: Backend | None,
    note: str,
    size: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int | None,
    max_packed_bytes: int,
    use_cache: bool,
) -> CompactModel:
    batch = batch_size or (16 if max(size[1:]) >= LARGE_IMAGE else 64)
    captured = capture(model, size)
    live, steps = live_neurons(captured.graph), find_steps(captured.graph)
    measured = Measured(live, batch, device, used) if requested == "auto" and used is not None else None
    on_images = lower(captured, steps, live, (), "reference", device=device)
    as_it_is = copy_of(model).requires_grad_(False)
    mixing = first_mixing(captured.graph)
    images = torch.rand(5, *size, dtype=dtype, device=device) * torch.rand(5, 1, 1, 1, dtype=dtype, device=device)
    cut = check_graph(as_it_is, on_images, images, exact=not _draws(captured.graph)) and mixing is None
    if not cut:
        name = "a batch" if mixing is None else str(mixing.target)
        note = f"{note} Batches are not cut: {name} is not proven to keep images apart.".strip()
    task = _Task(
        captured, steps, live, on_images, as_it_is, used, measured, size, batch, max_packed_bytes, device, dtype, cut
    )
    if requested == "auto":
        decision, on_rows = task.decide(use_cache=use_cache)
        busy = "Made on a busy machine: its milliseconds are one thread's." if decision.ladder[-1].one_thread else ""
        note = " ".join(filter(None, (decision.note, busy, note)))
    else:
        decision = Decision(task.choose(), [Rung(batch, ("compact",))], None, "")
        on_rows = task.write(decision.choice)
        on_rows(torch.zeros(1, *size, dtype=dtype, device=device))  # makes the lists of rows
    ways = ways_of(decision.ladder) if requested == "auto" else ()
    plan = Plan(
        layers=_layers(steps, live, decision.choice, measured, used),
        backend=used if used is not None and decision.choice.on_rows else "dense",
        batch_size=batch,
        dense_ms=decision.ladder[-1].model_ms or None,
        compact_ms=decision.ladder[-1].best_ms or None,
        least_batch=_least_batch(ways, batch) if ways else 1,
        ways=ways,
        chunk=decision.chunk,
        note=note,
    )
    original = as_it_is if any(way == "model" for _, way in ways) else None
    return CompactModel(copy_of(model), requested, on_images, on_rows, plan, size, device, dtype, original)


def _least_batch(ways: tuple[tuple[int, Way], ...], batch: int) -> int:
    first, way = ways[-1]
    return first if way == "compact" else batch + 1


def _draws(graph: fx.Graph) -> bool:
    """Whether the graph draws random numbers."""
    return any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph.nodes)


def _check(model: nn.Module, backend: str, batch_size: int | None, budget: int) -> None:
    if backend not in get_args(AskedBackend):
        raise SpecError("Unknown backend.", backend, ", ".join(map(repr, get_args(AskedBackend))))
    for name, value, least in (("batch_size", batch_size, 1), ("max_packed_bytes", budget, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise SpecError(f"{name} is not usable.", value, f"an int >= {least}")
    if isinstance(model, CompactModel):
        raise CompactError("The model is compact already.", fix="use it, or compact its .origin again")
    if not is_defective(model):
        raise NotDefectiveError(
            f"{type(model).__name__} has no defective neurons to skip.", fix="defectify() it, or use it as it is"
        )
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise CompactError(
            "A model is compacted as it is evaluated, but this one is in training mode.",
            training or type(model).__name__,
            fix="call model.eval() first; a module that stays in training mode then cannot be made compact",
        )


def _input_size(model: nn.Module, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
    try:
        expected = defect_spec(model).input_size
    except NotDefectiveError:  # written by hand: its layers know their outputs' sizes only
        return image_size(model, given)
    if given is not None and tuple(given) != expected:
        raise InputSizeError("The masks of the model are for images of another size.", given, str(expected))
    return expected


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    places = {(tensor.device, tensor.dtype) for tensor in tensors}
    if len(places) != 1:
        raise CompactError(
            "The model is on several devices or in several dtypes.", sorted(map(str, places)), "one device, one dtype"
        )
    return places.pop()


def _backend_for(requested: AskedBackend, device: torch.device, dtype: torch.dtype) -> tuple[Backend | None, str]:
    """The backend (None: images only), and a note on it for the plan.

    Raises:
        CompactError: what was asked for cannot be used.
    """
    if dtype == torch.float16 and device.type == "cpu":
        raise CompactError("float16 is for GPUs.", "a float16 model on the CPU", "float32", "model.float()")
    best: Backend = "triton" if device.type == "cuda" else "c"
    wanted = best if requested == "auto" else requested
    problem = _problem(wanted, device, dtype)
    if problem is None:
        return wanted, ""
    if requested != "auto":
        raise CompactError(f"The backend {requested!r} cannot be used here: {problem}.", fix="backend='auto'")
    return None, f"The backend {wanted!r} was not taken: {problem}. The model runs on images."


def _problem(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot be used; None: it can."""
    if backend == "reference":
        return None
    return _c_problem(device, dtype) if backend == "c" else _triton_problem(device, dtype)


def _c_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the model is on {device}"
    return f"it computes in float32, the model in {dtype}" if dtype != torch.float32 else native_problem()


def _triton_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    from dcn_plugin.engine.triton_kernels import triton_problem

    return f"it computes in float32, the model in {dtype}" if dtype != torch.float32 else triton_problem(device)


def _fastest(task: _Task) -> tuple[Decision, fx.GraphModule]:
    """The chosen graph if the whole keeps what its layers promise, else the same without rows, else the plain one.

    At every batch size it takes the place of the model as it is only where it was not slower.
    """
    size, batch, device, note = task.size, task.batch, task.device, ""
    choice = task.choose()
    ways: dict[Way, Callable[[Tensor], Tensor]] = {"model": task.as_it_is, "images": task.on_images}
    for option in (choice, _without_rows(choice)) if choice.on_rows else (choice,):
        if not (option.on_rows or option.packed):
            continue
        graph = task.write(option)
        run = without_gradient(graph, batch)
        race = raced(task.on_images, run, torch.rand(batch, *size, device=device))
        if race.gain >= 1 / WORTH:
            chunk, _ = _best_chunk(run, size, batch, device) if task.cut and device.type == "cpu" else (None, 1.0)
            ways["compact"] = lambda images, run=run, chunk=chunk: in_chunks(run, images, chunk)  # type: ignore[misc]
            ladder = climb(ways, size, batch, device=device, dtype=task.dtype)
            if any("compact" in rung.allowed for rung in ladder):
                return Decision(option, ladder, chunk, note), graph
            del ways["compact"]
        ops.forget(graph.buffers())
        if option.on_rows:
            note = f"Rows would take {race.other_ms:.2f} ms a batch, images take {race.plain_ms:.2f} ms: "
            note += "all runs on images."
    plain = dataclasses.replace(_without_rows(choice), packed=frozenset())
    ladder = climb(ways, size, batch, device=device, dtype=task.dtype)
    return Decision(plain, ladder, None, note), task.on_images


def _best_chunk(
    run: Callable[[Tensor], Tensor], size: tuple[int, int, int], batch: int, device: torch.device
) -> tuple[int | None, float]:
    """How many images at a time are fastest, None: the whole batch; and how many times faster that is.

    What a few images leave between two layers stays in the caches, and in memory that the process has already.
    """
    best, chunk, count = 1 / WORTH, None, batch
    with torch.inference_mode():
        images = torch.rand(batch, *size, device=device)
        while count > 1:
            count //= 2
            gain = sure_gain(
                lambda: run(images),
                lambda count=count: in_chunks(run, images, count),  # type: ignore[misc]
                device,
            )
            if gain < best:
                break
            best, chunk = gain, count
    return chunk, best if chunk is not None else 1.0


def _without_rows(choice: Choice) -> Choice:
    """The same choice with everything on images; packed weights stay packed."""
    reasons = {
        step: "the whole model is faster on images" if step in choice.on_rows else reason
        for step, reason in choice.reasons.items()
    }
    return dataclasses.replace(choice, on_rows=frozenset(), reasons=reasons)


def _layers(
    steps: list[Step], live: Live, choice: Choice, measured: Measured | None, used: Backend | None
) -> tuple[LayerPlan, ...]:
    layers = []
    for step in steps:
        if step.kind != "conv" or step.conv is None:
            continue
        dense, left = multiply_adds(step, live)
        on_rows = step in choice.on_rows
        images_ms, rows_ms = (None, None) if measured is None else measured.times.get(step, (None, None))
        reason, packed_bytes = choice.reasons.get(step, "no backend"), choice.sizes.get(step, 0) if on_rows else 0
        if measured is not None and step in choice.packed:
            images_ms, packed_bytes = measured.packed[step], step.conv.weight.nbytes
            reason += "; weights laid out once"
        channels, height, width = step.conv.kept.shape
        layers.append(
            LayerPlan(
                name=str(step.nodes[0].meta.get("title", step.nodes[0].name)),
                shape=(channels, height, width),
                dense=dense,
                live=left,
                packed_bytes=packed_bytes,
                dense_ms=images_ms,
                rows_ms=rows_ms,
                backend=used if on_rows and used is not None else "dense",
                reason=reason,
            )
        )
    return tuple(layers)

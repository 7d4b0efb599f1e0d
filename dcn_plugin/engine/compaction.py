"""compact(): finds out what a defective model can skip, and chooses what of it is worth skipping."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, fx, nn

from dcn_plugin.engine import ops
from dcn_plugin.engine.capture import capture
from dcn_plugin.engine.clock import steady
from dcn_plugin.engine.compact_model import AskedBackend, CompactModel, without_gradient
from dcn_plugin.engine.decision_cache import Decision, decision_key, read_decision, write_decision
from dcn_plugin.engine.ladder import Ladder, Rung, climb
from dcn_plugin.engine.layer_times import read_layer_times, write_layer_times
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

__all__ = ["compact", "expected_size", "place_of"]

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

    Under "auto" the whole is raced against the model as it is, at few batch sizes from 1 to ``batch_size``. It runs at
    those where it was not slower, and at others where that follows with a reserve; else the model runs on images, batch
    norm folded, or as it is. On a busy machine the CPU time of one thread counts, and a small gain is not taken.
    Batches are cut into pieces of sizes that were raced, if the graph proves that the network keeps the images of a
    batch apart; else they run on rows only as a whole.

    Args:
        model: defective, in evaluation mode, images (N, C, H, W) -> a tensor; not changed.
        backend: "auto" takes the fastest one at hand, measures every layer that might gain, and leaves on images what
            is faster there. "reference" (plain PyTorch, slow, float64 too), "c" (CPU) and "triton" (GPU) run every
            layer that has something to skip, without measuring.
        batch_size: the largest that is measured; None: 64, or 16 for large images.
        max_packed_bytes: most memory for the lists of rows and for weights that are laid out anew.
        input_size: (C, H, W) of the images; needed for a network of :class:`DefectiveConv2d` layers, which does not
            know it.
        use_cache: under "auto", take what was measured on this machine, for a network of the same kinds of layers or
            for layers of these kinds in any network, and keep what is measured now: see
            :mod:`dcn_plugin.support.cache_folder`.

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
    size = expected_size(model, input_size)
    device, dtype = place_of(model)
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
        cut: whether a batch may be cut.
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

    def choose(self, *, use_cache: bool = False) -> Choice:
        """The cheapest choice, layer by layer.

        Args:
            use_cache: take what was measured of layers of the same kinds, and keep what is measured now.

        Raises:
            CompactError: the budget is below the lists of every layer.
        """
        if self.backend is None:
            return Choice(frozenset(), {}, {})
        with torch.inference_mode(), steady(self.device):
            known = read_layer_times(self.device, self.backend) if use_cache and self.measured else {}
            if self.measured is not None:
                self.measured.kinds = dict(known)
            choice = choose(self.steps, self.live, self.measured or Counted(self.live), budget=self.budget)
            if use_cache and self.measured is not None and self.measured.kinds != known:
                write_layer_times(self.device, self.backend, self.measured.kinds)
        if choice.sizes and min(choice.sizes.values()) > self.budget:
            least = min(choice.sizes.values())
            raise CompactError("No layer fits into the budget.", self.budget, f"max_packed_bytes >= {least}")
        return choice

    def climb(self, ways: Mapping[Way, Callable[[Tensor], Tensor]], *, rows: bool) -> Ladder:
        """Race the ways; see :func:`dcn_plugin.engine.ladder.climb`."""
        on_cpu = self.device.type == "cpu"
        options = {"by_vector": rows and on_cpu, "cut": self.cut and on_cpu}
        return climb(ways, self.size, self.batch, **options, device=self.device, dtype=self.dtype)

    def decide(self, *, use_cache: bool) -> tuple[Decision, fx.GraphModule]:
        """The fastest choice for the whole model, and its graph: from this machine's cache, or measured now."""
        if not use_cache:
            return _fastest(self, use_cache=False)
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
            return stored, self.write(stored.choice)
        decision, graph = _fastest(self, use_cache=True)
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
    images = torch.rand(3, *size, dtype=dtype, device=device) * torch.rand(3, 1, 1, 1, dtype=dtype, device=device)
    cut = check_graph(as_it_is, on_images, images, exact=not _draws(captured.graph)) and mixing is None
    if not cut:
        name = "a batch" if mixing is None else str(mixing.target)
        note = f"{note} Batches are not cut: {name} is not proven to keep images apart.".strip()
    task = _Task(
        captured, steps, live, on_images, as_it_is, used, measured, size, batch, max_packed_bytes, device, dtype, cut
    )
    if requested == "auto":
        decision, on_rows = task.decide(use_cache=use_cache)
        ladder = decision.ladder
        one_thread = ladder is not None and any(rung.one_thread for rung in ladder.rungs)
        busy = "Made on a busy machine: its milliseconds are one thread's." if one_thread else ""
        note = " ".join(filter(None, (decision.note, busy, note)))
    else:
        decision, ladder = Decision(task.choose(), None, ""), None
        on_rows = task.write(decision.choice)
    ways = () if ladder is None else ladder.ways
    plan = Plan(
        layers=_layers(steps, live, decision.choice, measured, used),
        backend=used if used is not None and decision.choice.on_rows else "dense",
        batch_size=batch,
        dense_ms=None if ladder is None else ladder.largest.ms.get("model"),
        compact_ms=None if ladder is None else ladder.compact_ms,
        least_batch=_least_batch(ways, batch) if ways else 1,
        ways=ways,
        chunks=() if ladder is None else ladder.chunks,
        raced=() if ladder is None else tuple(rung.batch_size for rung in ladder.rungs),
        note=note,
    )
    original = as_it_is if any(way == "model" for _, way in ways) else None
    compacted = CompactModel(copy_of(model), requested, on_images, on_rows, plan, size, device, dtype, original)
    compacted.make_lists()
    return compacted


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


def expected_size(model: nn.Module, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The (C, H, W) of a model's images, which ``given`` must be where the model knows it.

    Raises:
        InputSizeError: it is another, or nobody knows it.
    """
    try:
        expected = defect_spec(model).input_size
    except NotDefectiveError:  # written by hand: its layers know their outputs' sizes only
        return image_size(model, given)
    if given is not None and tuple(given) != expected:
        raise InputSizeError("The masks of the model are for images of another size.", given, str(expected))
    return expected


def place_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a model.

    Raises:
        CompactError: it has several.
    """
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


def _fastest(task: _Task, *, use_cache: bool) -> tuple[Decision, fx.GraphModule]:
    """The chosen graph if the whole keeps what its layers promise, else the same without rows, else the plain one.

    At every batch size it takes the place of the model as it is only where it was not slower.
    """
    choice, note = task.choose(use_cache=use_cache), ""
    ways: dict[Way, Callable[[Tensor], Tensor]] = {"model": task.as_it_is, "images": task.on_images}
    for option in (choice, _without_rows(choice)) if choice.on_rows else (choice,):
        if not (option.on_rows or option.packed):
            continue
        graph = task.write(option)
        ladder = task.climb({**ways, "compact": without_gradient(graph, task.batch)}, rows=bool(option.on_rows))
        if any(map(_is_worth, ladder.rungs)):
            return Decision(option, ladder, note), graph
        ops.forget(graph.buffers())
        if option.on_rows:
            rows_ms, images_ms = (ladder.largest.ms.get(way, math.nan) for way in ("compact", "images"))
            note = f"Rows would take {rows_ms:.2f} ms a batch, images take {images_ms:.2f} ms: all runs on images."
    plain = dataclasses.replace(_without_rows(choice), packed=frozenset())
    return Decision(plain, task.climb(ways, rows=False), note), task.on_images


def _is_worth(rung: Rung) -> bool:
    """Whether the layers as chosen are the fastest at a batch size, and save enough to be worth their memory."""
    return rung.allowed[0] == "compact" and rung.ms["compact"] <= WORTH * rung.ms.get("images", math.inf)


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

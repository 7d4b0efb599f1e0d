"""What becomes of a mask on its way to the first activation behind it: read off the operations that run.

A masked neuron must be zero in front of the next activation. A scale keeps it zero, and so do dropout and a change of
order. A constant that is added does not, nor does anything that mixes positions; and a norm written by hand (its
statistics are computed from the signal and combined with it again) belongs in front of a mask, not behind it. No class
name has a say: operations are looked at, and those of a module count like those written inline.

Where the signal is added to another one (a residual connection), what comes behind no longer belongs to the mask alone.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from typing import Literal

from dcn_plugin.surgery.trace import Node, Trace

__all__ = ["ACTIVATIONS", "KEEPS", "LINEAR", "Obstacle", "is_output", "obstacle_behind"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEEPS = _words(
    "view _unsafe_view reshape expand permute transpose t clone alias contiguous detach unsqueeze squeeze slice "
    "select split split_with_sizes unsafe_split chunk unbind narrow flip roll _to_copy to dropout native_dropout "
    "alpha_dropout feature_dropout neg cat stack constant_pad_nd reflection_pad2d replication_pad2d pixel_shuffle "
    "pixel_unshuffle channel_shuffle upsample_nearest2d lift_fresh index_select overwritten"
)
"""Operations that only copy or move neurons: what was zero is zero behind them."""

LINEAR = frozenset(("mul", "div", "add", "sub", "rsub", "addcmul", "lerp"))
"""Scales and shifts, neuron by neuron."""

ACTIVATIONS = _words(
    "relu relu6 leaky_relu prelu _prelu_kernel rrelu_with_noise elu celu selu gelu silu mish hardswish hardtanh "
    "hardsigmoid sigmoid tanh softplus softshrink hardshrink threshold log_sigmoid_forward log_sigmoid clamp "
    "clamp_min clamp_max maximum minimum glu sin cos exp max_pool2d max_pool2d_with_indices where"
)
"""Non-linearities, max-pooling included: a larger value wins there, and a ReLU may as well come behind it."""

_BOUNDED = _words(
    "sigmoid hardsigmoid tanh clamp clamp_min clamp_max _softmax _safe_softmax _log_softmax exp where maximum minimum"
)  # also made of logits, behind the last layer
_GATES = _words("sigmoid hardsigmoid tanh _softmax _safe_softmax")
_REORDERS = frozenset(("permute", "transpose", "view", "_unsafe_view", "reshape", "t"))
_REDUCES = _words("mean sum var var_mean std std_mean norm linalg_vector_norm amax amin max min logsumexp median")
_AVERAGES = _words(
    "avg_pool2d avg_pool3d adaptive_avg_pool2d _adaptive_avg_pool2d fixed_filter upsample_bilinear2d "
    "_upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa"
)
_POWERS = frozenset(("pow", "square", "abs"))
_LEARNED = _words("convolution mm addmm bmm baddbmm matmul linear mv dot _trilinear")
_BOXES = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
_DECISIONS = _words("eq ne gt ge lt le nonzero topk sort argmax argmin nms isfinite")


@dataclass(frozen=True)
class Obstacle:
    """Why a mask would not act in front of the activation.

    Args:
        kind: "norm": a normalisation lies behind the mask; "shift": a constant is added; "mix": positions are averaged.
        node: the operation.
    """

    kind: Literal["norm", "shift", "mix"]
    node: Node


@dataclass(frozen=True)
class _Signal:
    """A tensor on the way: the neurons themselves, powers of them, or statistics of them.

    Args:
        kind: which of the three.
        obstacle: what has turned zeros into other values.
        stream: other signals, or position embeddings, have been added.
        reordered: channels may no longer be dimension 1.
    """

    kind: Literal["neurons", "powers", "statistics"] = "neurons"
    obstacle: Obstacle | None = None
    stream: bool = False
    reordered: bool = False


def obstacle_behind(trace: Trace, start: int, gates: frozenset[tuple[int, int]], *, normed: bool) -> Obstacle | None:
    """Find what keeps the mask at a node from acting in front of the first activation behind it.

    Args:
        trace: of the network.
        start: index of the node whose result the mask would multiply.
        gates: edges (reader, read) at which a signal only scales another one.
        normed: the node is a norm: then nothing behind a sum with another signal matters.
    """
    readers = trace.readers
    seen = {start: _Signal()}
    todo = sorted(readers[start])
    while todo:
        index = heapq.heappop(todo)
        node = trace.nodes[index]
        read = {p: seen[p] for p in node.parents if p in seen}
        # A gate scales; but a scale that is a statistic of the signal, with nothing learned in between, is a norm's.
        read = {p: s for p, s in read.items() if s.kind == "statistics" or (index, p) not in gates}
        if index in seen or not read:
            continue
        alone = all(len(readers[p]) == 1 for p in read)
        outcome = _step(node, list(read.values()), others=_others(trace, node, read), normed=normed, alone=alone)
        if isinstance(outcome, Obstacle):
            return outcome
        if outcome is not None:
            seen[index] = outcome
            for reader in readers[index]:
                heapq.heappush(todo, reader)
    return None


def _others(trace: Trace, node: Node, read: dict[int, _Signal]) -> list[Node]:
    return [trace.nodes[p] for p in node.parents if p not in read]


def _step(
    node: Node, read: list[_Signal], *, others: list[Node], normed: bool, alone: bool
) -> _Signal | Obstacle | None:
    """What an operation makes of the signal; None where the way ends."""
    signals = [s for s in read if s.kind == "neurons"]
    powers = [s for s in read if s.kind == "powers"]
    statistics = [s for s in read if s.kind == "statistics"]
    if node.kind == "norm":
        in_front = len(signals) == 1 and alone and not signals[0].stream
        return replace(signals[0], obstacle=Obstacle("norm", node)) if in_front else None
    if node.kind == "conv" or node.op in _LEARNED or node.op.startswith("_scaled_dot_product"):
        return None
    if not signals:
        if not powers:
            return None if node.op in _GATES else statistics[0]
        if node.op in _REDUCES:
            return replace(powers[0], kind="statistics")
        return powers[0] if node.op in KEEPS | LINEAR and not others else None
    signal = _Signal(
        obstacle=next((s.obstacle for s in signals if s.obstacle), None),
        stream=any(s.stream for s in signals),
        reordered=any(s.reordered for s in signals),
    )
    if statistics:
        # Over tokens the stream belongs to the whole network: a norm of it is a norm of no convolution.
        of_the_stream = signal.stream and signal.reordered
        return None if of_the_stream or node.op not in LINEAR else Obstacle("norm", node)
    if node.op in _REDUCES or (node.op in _AVERAGES and math.prod(node.shape[2:]) == 1):
        smaller = math.prod(node.shape) < math.prod(node.in_shape)
        return replace(signal, kind="statistics") if smaller else None
    if node.op in _POWERS or (node.op == "mul" and not others and not node.constants and len(signals) == 1):
        return replace(signal, kind="powers")
    if powers:
        return None  # x times a power of x: an activation like any other
    if node.op in KEEPS:
        return replace(signal, reordered=signal.reordered or node.op in _REORDERS)
    if node.op in _AVERAGES:
        return replace(signal, obstacle=signal.obstacle or Obstacle("mix", node))
    if node.op in ("mul", "div"):
        return signal
    if node.op in LINEAR:
        return _added(node, signal, others, normed=normed)
    return signal.obstacle if node.op in ACTIVATIONS and not signal.stream else None


def _added(node: Node, signal: _Signal, others: list[Node], *, normed: bool) -> _Signal | None:
    positions = slice(2, None) if not signal.reordered and len(node.shape) == 4 else slice(1, -1)
    here = math.prod(node.shape[positions])
    if any(math.prod(o.shape[positions]) == here and len(o.shape) == len(node.shape) for o in others):
        return None if normed else replace(signal, stream=True)
    shift = replace(signal, obstacle=signal.obstacle or Obstacle("shift", node))
    if others:  # one number a channel, computed from something else
        return shift
    if not node.constants:
        return signal
    # A constant of every position is an embedding of positions: tokens become a stream there.
    embedding = signal.reordered and any(_extent(shape, node.shape, positions) > 1 for shape in node.constants)
    return replace(signal, stream=True) if embedding else shift


def _extent(shape: tuple[int, ...], full: tuple[int, ...], positions: slice) -> int:
    return math.prod(((1,) * (len(full) - len(shape)) + shape)[positions])


def is_output(trace: Trace, start: int, gates: frozenset[tuple[int, int]]) -> bool:
    """Whether the network returns the result of a node: no other layer, norm or hidden activation reads it.

    Changes of order and size, sums, and what is made of logits and boxes (sigmoid, softmax, a selection) may lie
    between.
    """
    readers = trace.readers
    seen: set[int] = set()
    todo = [start]
    while todo:
        index = todo.pop()
        if index in seen:
            continue
        seen.add(index)
        for reader in readers[index]:
            node = trace.nodes[reader]
            if (reader, index) in gates:
                return False
            if node.op in _DECISIONS or (node.op in _BOXES and len(trace.nodes[index].shape) != 4):
                continue  # boxes and choices made of them: what they point at is read from other maps
            hidden = node.op in ACTIVATIONS - _BOUNDED or node.op in _LEARNED - {"convolution"}
            if node.kind != "op" or hidden or node.op in _BOXES:
                return False
            todo.append(reader)
    return True

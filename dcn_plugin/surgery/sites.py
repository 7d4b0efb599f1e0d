"""Which convolution feeds which norm, at which resolution: found in the data flow, not guessed from names.

The rules, in the order they apply (docs: concepts):

1. Gates are not sites. An edge of the data flow is a gate where a multiplication reads a 1x1 map or the
   result of a sigmoid or softmax (squeeze-and-excite, spatial attention), and where attention weights are
   made (queries and keys). A convolution all of whose ways to the output lead through gates is skipped.
2. A norm belongs to the last convolution that reaches it through additions, concatenations, activations
   and pooling, before any other norm or convolution. That covers conv -> norm, conv -> act -> norm, and
   pre-activation nets, where the mask acts on the norm of the sum, never on the sum (the paper's SENet-18
   and DenseNet). A norm over tokens or NHWC belongs to a convolution only if nothing but a change of order
   lies between them. Each convolution owns the first norm it reaches. A norm that no convolution owns (it reads
   what another norm has normalised) is no site, but can be asked for: the paper masks one in SENet-18. Such norms
   are numbered after all convolutions, so that the ordinals of sites do not depend on them. Where several norms read
   one convolution with nothing in between, each is a site, and all have the mask of that convolution; an activation
   that reads it beside a norm would see its neurons unmasked, and the place is refused.
3. A convolution that reaches no norm at all carries the mask itself. (One that reaches a norm which belongs
   to a later one carries none: its output is masked there.)
4. Outputs of 1x1 carry none. Transposed, 1-d and 3-d convolutions are no sites, and end the way to a norm.
5. A module that runs several times carries one mask for all its calls, as it carries one set of weights; all
   calls must have one size, and a convolution must be without a norm in all of them.
6. A masked neuron is zero in front of the next activation. Where a norm written by hand, a constant that is added, or
   a mixing of positions lies between, the place is refused (:mod:`dcn_plugin.surgery.reach`).
7. A convolution whose output the network returns, as logits or boxes, is an output: it is chosen only in a network that
   has no other sites.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from dcn_plugin.errors import TraceError
from dcn_plugin.specs import Layout, Slot
from dcn_plugin.surgery.masked_conv import taken_by_conv
from dcn_plugin.surgery.norm_slots import layout_of, slot_of, taken_names
from dcn_plugin.surgery.reach import ACTIVATIONS, Obstacle, is_output, obstacle_behind
from dcn_plugin.surgery.trace import Node, Trace

__all__ = ["Site", "find_sites", "gate_edges"]

_Edges = frozenset[tuple[int, int]]  # (reader, read)

_BOUNDED = ("sigmoid", "hardsigmoid", "_softmax", "_safe_softmax")
_CARRIERS = (
    *("view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "clone", "alias", "contiguous"),
    *("unsqueeze", "squeeze", "slice", "select", "split", "chunk", "unbind", "_to_copy", "dropout", "native_dropout"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"),
)
_REORDERS = ("permute", "transpose", "view", "_unsafe_view", "reshape", "clone", "contiguous", "alias", "unsqueeze")
_UNCHANGED = ("clone", "alias", "contiguous", "_to_copy", "dropout", "native_dropout")
_PRODUCTS = ("bmm", "mm", "matmul", "baddbmm")


@dataclass(frozen=True)
class Site:
    """One place where a mask could go.

    Args:
        owner: module path of the norm, or of the convolution where no norm follows.
        conv: module path of the convolution that feeds it.
        ordinal: of the convolution among all executed ones; a norm that no convolution owns comes after them all.
        node: index in the trace of the call at which the mask acts.
        shape: (C, H, W) of the masked activation.
        slot: see :class:`dcn_plugin.specs.SiteSpec`.
        layout: see :class:`dcn_plugin.specs.SiteSpec`.
        problem: why no mask can go here, or None.
        output: the network returns what the convolution puts out (rule 7).
    """

    owner: str
    conv: str
    ordinal: int
    node: int
    shape: tuple[int, int, int]
    slot: Slot
    layout: Layout
    problem: str | None = None
    output: bool = False


def find_sites(model: nn.Module, trace: Trace, *, unowned: bool = False) -> list[Site]:
    """All sites of a network in execution order, those that must be refused included (``problem``).

    Args:
        model: the network.
        trace: of ``model``.
        unowned: also return the norms that no convolution owns (rule 2), as if they were sites.

    Raises:
        TraceError: the network returns no tensor that comes from its input.
    """
    if not trace.outputs:
        raise TraceError(
            "The model returned no tensor computed from its input.", fix="return tensors, or a tuple or dict of them"
        )
    gates = gate_edges(trace)
    main = _reachable(trace, gates)
    ordinals = {node.index: i for i, node in enumerate(trace.convs)}
    sites: dict[str, Site] = {}
    placed: set[int] = set()  # convolutions that own a norm
    normed: set[int] = set()  # convolutions that reach one
    others: list[tuple[Node, Node]] = []  # norms that no convolution owns, with the one whose signal they read
    for norm in trace.nodes:
        if norm.kind != "norm" or norm.index not in main:
            continue
        module = model.get_submodule(norm.module)
        layout = layout_of(module, len(norm.in_shape))
        convs = _feeding(trace, norm, gates, layout)
        normed.update(convs)
        last = max(convs, default=None)
        if last is not None and (last not in placed or _read_directly(trace, norm) == last):
            placed.add(last)
            sites.setdefault(norm.module, _norm_site(module, norm, trace.nodes[last], ordinals[last], layout))
        elif unowned and (before := _feeding(trace, norm, gates, layout, through_norms=True)):
            others.append((norm, trace.nodes[max(before)]))
    for i, (norm, conv) in enumerate(others):
        module = model.get_submodule(norm.module)
        layout = layout_of(module, len(norm.in_shape))
        sites.setdefault(norm.module, _norm_site(module, norm, conv, len(trace.convs) + i, layout))
    for conv in trace.convs:
        if conv.index in main and conv.index not in normed and conv.shape[2] * conv.shape[3] > 1:
            module = model.get_submodule(conv.module)
            sites.setdefault(conv.module, _conv_site(module, conv, ordinals[conv.index]))
    calls: dict[tuple[str, str], list[Node]] = {}
    for node in trace.nodes:
        calls.setdefault((node.module, node.kind), []).append(node)
    return [
        _with_what_follows(
            model,
            trace,
            _over_all_calls(site, trace.nodes[site.node], calls[site.owner, trace.nodes[site.node].kind], normed),
            gates,
        )
        for site in sorted(sites.values(), key=lambda site: site.node)
    ]


def _with_what_follows(model: nn.Module, trace: Trace, site: Site, gates: _Edges) -> Site:
    """The site with what lies behind it taken into account (rules 6 and 7)."""
    start = _end_of_call(trace, site) if site.slot == "conv" else site.node
    if site.slot == "conv" and is_output(trace, start, gates):
        return replace(site, output=True)
    act = getattr(model.get_submodule(site.owner), "act", None)
    if site.problem is not None or (site.slot == "norm_act" and not isinstance(act, nn.Identity | None)):
        return site
    inside = next((n for n in trace.nodes[site.node : start + 1] if n.op in ACTIVATIONS), None)
    if site.slot == "conv" and inside is not None:
        return replace(
            site, problem=f"{_shown(site.owner)} applies an activation ({inside.op}) itself, in front of the mask"
        )
    conv = None if site.slot == "conv" else _read_directly(trace, trace.nodes[site.node])
    beside = None if conv is None else next((n for n in _direct_readers(trace, conv) if n.op in ACTIVATIONS), None)
    if beside is not None:
        return replace(
            site,
            problem=f"an activation ({beside.op}) reads the convolution {site.conv!r} beside the norm {site.owner!r}, "
            "and would see its neurons unmasked",
        )
    obstacle = obstacle_behind(trace, start, gates, normed=site.slot != "conv")
    return site if obstacle is None else replace(site, problem=_explained(model, site, obstacle))


def _read_directly(trace: Trace, norm: Node) -> int | None:
    """The convolution whose output a norm reads as it is; None where something lies between."""
    node = norm
    while len(node.parents) == 1:
        node = trace.nodes[node.parents[0]]
        if node.kind == "conv":
            return node.index
        if node.kind != "op" or node.op not in _UNCHANGED:
            return None
    return None


def _direct_readers(trace: Trace, index: int) -> list[Node]:
    """What reads the result of a node as it is."""
    readers: list[Node] = []
    for reader in trace.readers[index]:
        node = trace.nodes[reader]
        unchanged = node.kind == "op" and node.op in _UNCHANGED
        readers += _direct_readers(trace, reader) if unchanged else [node]
    return readers


def _end_of_call(trace: Trace, site: Site) -> int:
    """The last node of the call of a convolution's module: a subclass may do more than convolve."""
    calls = trace.spans.get(site.owner, [])
    return next((stop - 1 for first, stop, _ in calls if first <= site.node < stop), site.node)


def _explained(model: nn.Module, site: Site, obstacle: Obstacle) -> str:
    where = _shown(obstacle.node.module)
    if obstacle.node.module:
        where += f" ({type(model.get_submodule(obstacle.node.module)).__name__})"
    does, so = {
        "norm": ("normalises", "and a mask belongs behind the norm"),
        "shift": ("adds a constant", "so that masked neurons would not be zero there"),
        "mix": (f"mixes positions ({obstacle.node.op})", "so that masked neurons would not be zero there"),
    }[obstacle.kind]
    return f"{where} {does} between {site.owner!r} and the next activation, {so}"


def gate_edges(trace: Trace) -> _Edges:
    """The edges (reader, read) of the data flow through which a signal only scales another."""
    edges: set[tuple[int, int]] = set()
    for node in trace.nodes:
        if node.op == "mul" and len(node.parents) == 2:
            edges.update((node.index, p) for p in _gating(trace, node))
        elif node.op in _PRODUCTS and len(node.parents) == 2:
            # Attention weights may pass another convolution on their way ("talking heads").
            bounded = [p for p in node.parents if _is_bounded(trace, p, through_convs=True)]
            if len(bounded) == 1:
                edges.add((node.index, bounded[0]))
        elif node.op.startswith("_scaled_dot_product") and len(node.parents) == 3:
            edges.update((node.index, p) for p in node.parents[:2])
    return frozenset(edges)


def _gating(trace: Trace, node: Node) -> list[int]:
    left, right = (trace.nodes[p].shape for p in node.parents)
    for parent, shape, other in zip(node.parents, (left, right), (right, left), strict=True):
        if len(shape) == len(other) == 4 and shape[2:] == (1, 1) != other[2:]:
            return [parent]
    bounded = [p for p in node.parents if _is_bounded(trace, p)]
    return bounded if len(bounded) == 1 else []


def _is_bounded(trace: Trace, index: int, *, through_convs: bool = False) -> bool:
    node = trace.nodes[index]
    while len(node.parents) == 1 and (node.op in _CARRIERS or (through_convs and node.kind == "conv")):
        node = trace.nodes[node.parents[0]]
    return node.op in _BOUNDED


def _reachable(trace: Trace, gates: _Edges) -> set[int]:
    seen: set[int] = set()
    todo = list(trace.outputs)
    while todo:
        index = todo.pop()
        if index not in seen:
            seen.add(index)
            todo += [p for p in trace.nodes[index].parents if (index, p) not in gates]
    return seen


def _feeding(trace: Trace, norm: Node, gates: _Edges, layout: Layout, *, through_norms: bool = False) -> set[int]:
    """The convolutions whose output reaches ``norm`` before any other convolution, or norm unless asked otherwise."""
    convs: set[int] = set()
    seen: set[int] = set()
    todo = [(norm.index, p) for p in norm.parents]
    while todo:
        reader, index = todo.pop()
        node = trace.nodes[index]
        if index in seen or (reader, index) in gates:
            continue
        seen.add(index)
        if node.kind == "conv":
            if _fits(node, norm, layout):
                convs.add(index)
        elif (node.kind == "op" or through_norms) and _carries(node, layout):
            todo += [(index, p) for p in node.parents]
    return convs


def _carries(node: Node, layout: Layout) -> bool:
    if layout != "NCHW":
        # Tokens: only a change of order. Behind an addition the stream belongs to the whole network.
        return node.op in _REORDERS
    return len(node.shape) == 4 and node.shape[2] * node.shape[3] > 1 and node.op != "convolution"


def _fits(conv: Node, norm: Node, layout: Layout) -> bool:
    _, channels, height, width = conv.shape
    if height * width == 1:
        return False
    if layout == "NCHW":
        return len(norm.in_shape) == 4
    tokens = (height, width, channels) if layout == "NHWC" else (height * width, channels)
    return norm.in_shape[1:] == tokens


def _norm_site(module: nn.Module, norm: Node, conv: Node, ordinal: int, layout: Layout) -> Site:
    slot = slot_of(module)
    problem = None
    if slot is None:
        taken = taken_names(module)
        because = f" (it has a {taken[0]!r} of its own)" if taken else ""
        problem = (
            f"the norm {norm.module!r} is a {type(module).__name__}, which has no place for a mask between "
            f"the norm and its activation{because}"
        )
        if norm.op != type(module).__name__:
            problem = f"a normalisation ({norm.op}) is called as a function inside {_shown(norm.module)}"
    shape = norm.in_shape[1:] if layout == "NCHW" else conv.shape[1:]
    return Site(
        owner=norm.module,
        conv=conv.module,
        ordinal=ordinal,
        node=norm.index,
        shape=(shape[0], shape[1], shape[2]),
        slot=slot or "norm",
        layout=layout,
        problem=problem,
    )


def _conv_site(module: nn.Module, conv: Node, ordinal: int) -> Site:
    problem = None
    if not isinstance(module, nn.Conv2d):
        problem = f"the convolution in {_shown(conv.module)} is called as a function, not through an nn.Conv2d"
    elif taken := taken_by_conv(module):
        problem = (
            f"the convolution {conv.module!r} is a {type(module).__name__}, which has a {taken[0]!r} of its own where "
            "the mask has to go"
        )
    return Site(
        owner=conv.module,
        conv=conv.module,
        ordinal=ordinal,
        node=conv.index,
        shape=(conv.shape[1], conv.shape[2], conv.shape[3]),
        slot="conv",
        layout="NCHW",
        problem=problem,
    )


def _shown(path: str) -> str:
    return repr(path) if path else "the model itself"


def _over_all_calls(site: Site, first: Node, calls: list[Node], normed: set[int]) -> Site:
    """The site with its problem, if the other calls of its owner do not agree with the first one."""
    other = next((node.shape[1:] for node in calls if node.shape[1:] != first.shape[1:]), None)
    if site.problem is None and other is not None:
        here, there = ("x".join(map(str, size)) for size in (first.shape[1:], other))
        return replace(
            site, problem=f"{site.owner!r} runs more than once, at {here} and at {there}; a mask has one size"
        )
    if site.problem is None and site.slot == "conv" and any(node.index in normed for node in calls):
        return replace(site, problem=f"{site.owner!r} runs more than once, with a norm behind it and without")
    return site

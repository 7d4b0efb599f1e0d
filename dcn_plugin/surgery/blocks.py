"""Blocks: the consecutive parts of a network that "bottom" and "top" speak of.

The rules:

1. On a timm model the blocks are the stages of its ``feature_info``, those without a convolution included (a
   vision transformer has one convolution and many stages). Else they are the top-level children of the innermost
   module that holds all convolutions, in the order they run; a child that lowers the resolution starts a new
   block, and a run of children without a convolution (a max-pool) belongs to the next one. A child in which the
   resolution falls more than once (a trunk, a backbone) is opened: its own children count.
2. What runs before the first stage belongs to it, what runs after the last one (the head) to the last; a norm
   that reads a convolution directly stays with it. A mask lies in the block in which its norm runs.
3. A block is named by its first and last part, each the shortest module path that lies within the block:
   "layer1", "blocks.2..blocks.3". The first one is called "stem" if it ends before the first named stage module,
   or is a single convolution.
4. "bottom" is the first half of the blocks, rounded up, and "top" the rest. A network with one block has neither;
   nor has one that goes back up in resolution: one with a convolution finer than something it reads, where only
   what comes from another block counts if the blocks are timm's stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dcn_plugin.surgery.sites import Site, gate_edges
from dcn_plugin.surgery.trace import Node, Trace

__all__ = ["Block", "Blocks", "BlocksArg", "find_blocks"]

BlocksArg = str | int | tuple[str | int, ...] | list[str | int]


@dataclass(frozen=True)
class Block:
    """A run of calls in execution order: nodes ``start`` up to but not including ``stop``."""

    name: str
    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network.

    Args:
        items: in execution order.
        problem: why "bottom" and "top" mean nothing here, or None.
    """

    items: tuple[Block, ...]
    problem: str | None = None

    @property
    def names(self) -> str:
        """The names in one line, for messages."""
        return ", ".join(f"{block.index}: {block.name}" for block in self.items)

    def of(self, site: Site) -> Block:
        """The block in which the mask of ``site`` acts."""
        return next(block for block in self.items if site.node < block.stop)


def find_blocks(model: nn.Module, trace: Trace) -> Blocks:
    """Divide a network into blocks (rules 1 to 3 above)."""
    path = ""
    while not (stages := _stages(model.get_submodule(path), path, trace)):
        inner = _sole_holder(model, path, trace)
        if inner is None:
            break
        path = inner
    named = bool(stages)
    blocks = _cut(stages or _by_resolution(_parts(model, path, trace), trace), trace, named=named)
    problem = None
    finer = _goes_back_up(trace, blocks if named else None)
    if finer is not None:
        problem = f"its resolution goes back up, at {finer.module!r}"
    elif len(blocks) < 2:
        problem = "it has only one block"
    return Blocks(blocks, problem)


def _stages(module: nn.Module, path: str, trace: Trace) -> list[tuple[str, int]]:
    """(module path, end node) of the stages of timm's feature_info, [] where there are none to go by."""
    info: Any = getattr(module, "feature_info", None)
    entries = getattr(info, "info", info)
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) and e.get("module") for e in entries):
        return []
    paths = [f"{path}.{e['module']}" if path else str(e["module"]) for e in entries]
    if not all(p in trace.spans for p in paths):
        return []
    ends = [trace.spans[p][-1][1] for p in paths]
    return list(zip(paths, ends, strict=True)) if ends == sorted(ends) else []


def _sole_holder(model: nn.Module, path: str, trace: Trace) -> str | None:
    """The child of ``path`` that holds all convolutions and has children of its own, if there is one."""
    for child in _children(model, path, trace):
        if all(_inside(conv.module, child) for conv in trace.convs) and _children(model, child, trace):
            return child
    return None


def _children(model: nn.Module, path: str, trace: Trace) -> list[str]:
    """Paths of the children that ran, in execution order; those of a ModuleList, which itself never runs, included."""
    paths: list[str] = []
    for name, _ in model.get_submodule(path).named_children():
        child = f"{path}.{name}" if path else name
        paths += [child] if child in trace.spans else _children(model, child, trace)
    return sorted(paths, key=lambda p: trace.spans[p][0])


def _parts(model: nn.Module, path: str, trace: Trace) -> list[str]:
    """The children of ``path``, those opened in which the resolution falls more than once."""
    parts: list[str] = []
    for child in _children(model, path, trace):
        first, stop, _ = trace.spans[child][0]
        areas = [conv.shape[2] * conv.shape[3] for conv in trace.convs if first <= conv.index < stop]
        areas = [area for area in areas if area > 1]  # 1x1: a gate or the head
        lowest = {min(areas[: i + 1]) for i in range(len(areas))}
        parts += _parts(model, child, trace) if len(lowest) > 2 else [child]
    return parts


def _by_resolution(children: list[str], trace: Trace) -> list[tuple[str, int]]:
    stages: list[tuple[str, int]] = []
    current: int | None = None
    for child in children:
        _, stop, shape = trace.spans[child][-1]
        area = shape[2] * shape[3] if len(shape) == 4 else None
        if stages and (area is None or current is None or area >= current):
            stages[-1] = (stages[-1][0], max(stop, stages[-1][1]))
        else:
            stages.append((child, stop))
        current = area if area is not None else current
    return stages


def _cut(stages: list[tuple[str, int]], trace: Trace, *, named: bool) -> tuple[Block, ...]:
    """Blocks from the (path, end node) of the stages."""
    nodes = trace.nodes
    block_of: dict[int, int] = {}  # convolution -> number of its block
    spans: list[tuple[str, int, int]] = []
    start = 0
    for path, stop in [*stages[:-1], (stages[-1][0] if stages else "", len(nodes))]:
        while stop < len(nodes) and nodes[stop].kind == "norm" and nodes[nodes[stop].parents[0]].kind == "conv":
            stop += 1
        convs = [node.index for node in trace.convs if start <= node.index < stop]
        if convs or (spans and named):
            block_of.update(dict.fromkeys(convs, len(spans)))
            spans.append((path, start, stop))
            start = stop
    if spans:
        spans[-1] = (*spans[-1][:2], len(nodes))
    return tuple(
        Block(_name(i, path, block_of, trace, named=named), i, start, stop)
        for i, (path, start, stop) in enumerate(spans)
    )


def _name(index: int, path: str, block_of: Mapping[int, int], trace: Trace, *, named: bool) -> str:
    convs = [trace.nodes[i] for i, block in block_of.items() if block == index]
    convs = [conv for conv in convs if conv.shape[2] * conv.shape[3] > 1]  # the head may end in 1x1 convolutions
    if not convs:
        return path
    elsewhere = {trace.nodes[i].module for i, block in block_of.items() if block != index}
    ends = []
    for conv in (convs[0].module, convs[-1].module):
        prefixes = [".".join(conv.split(".")[:depth]) for depth in range(1, conv.count(".") + 2)]
        ends.append(next((p for p in prefixes if not any(_inside(m, p) for m in elsewhere)), conv))
    if index == 0 and elsewhere:
        outside = not any(_inside(conv.module, path) for conv in convs)
        if outside if named else len(convs) == 1 and convs[0].module == path:
            return "stem"
    return (ends[0] if ends[0] == ends[1] else f"{ends[0]}..{ends[1]}") or "all"


def _goes_back_up(trace: Trace, blocks: tuple[Block, ...] | None) -> Node | None:
    """The first convolution whose output is finer than something it reads (from another block, if given)."""
    gates = gate_edges(trace)
    block_of = [block.index for block in blocks or () for _ in range(block.start, block.stop)]
    # Tokens and pooled vectors have no resolution to compare.
    area = {n.index: n.shape[2] * n.shape[3] for n in trace.nodes if len(n.shape) == 4 and n.shape[2:] != (1, 1)}
    coarsest: dict[int, int] = {}  # node -> the smallest area on the way to it
    for node in trace.nodes:
        if node.index not in area:
            continue
        read = [p for p in node.parents if (node.index, p) not in gates and p in area]
        before = [coarsest[p] for p in read if p in coarsest]
        before += [area[p] for p in read if blocks and block_of[p] < block_of[node.index]]
        if node.kind == "conv" and before and area[node.index] > min(before):
            return node
        if node.kind == "conv" and not blocks:
            before.append(area[node.index])
        if before:
            coarsest[node.index] = min(before)
    return None


def _inside(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}.") or parent == ""

"""Blocks: the consecutive parts of a network that "bottom" and "top" speak of, and the choice among sites."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dcn_plugin.errors import BlockError, SiteError, SpecError
from dcn_plugin.sites import Site, gate_edges, goes_back_up
from dcn_plugin.specs import MaskSpec, SiteSpec
from dcn_plugin.trace import Trace

__all__ = ["Block", "Blocks", "choose_sites", "find_blocks"]

BlocksArg = str | int | tuple[str | int, ...] | list[str | int]
FilterFn = Callable[[nn.Module, str], bool]

# Where the authors' code puts masks, for the architectures they used (docs: paper map). timm's module names.
_PAPER: dict[str, tuple[str, ...]] = {
    "resnet18": ("bn1", "layer1", "layer2"),
    "resnet50": ("bn1", "layer1.*.bn2", "layer2.*.bn2"),
    "vgg19_bn": ("features.1", "features.4", "features.8", "features.11"),
}


@dataclass(frozen=True)
class Block:
    """A run of calls in execution order: nodes ``start`` up to but not including ``stop``.

    ``is_module``: the name is the path of one module that holds all its convolutions.
    """

    name: str
    index: int
    start: int
    stop: int
    is_module: bool


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
    """Divide a network into blocks.

    On timm models the stages of ``feature_info``; otherwise the top-level children (of the innermost module
    that holds all convolutions), a child that lowers the resolution starting a new block.
    """
    path = ""
    while not (stages := _stages(model.get_submodule(path), path, trace)):
        ran = _children(model.get_submodule(path), path, trace)
        holding = [child for child in ran if any(_inside(conv.module, child) for conv in trace.convs)]
        if len(holding) != 1 or not _children(model.get_submodule(holding[0]), holding[0], trace):
            stages = _by_resolution(ran, trace) or [(path, len(trace.nodes))]
            break
        path = holding[0]
    blocks = _cut(stages, path, trace)
    problem = None
    finer = goes_back_up(trace, gate_edges(trace))
    if finer is not None:
        problem = f"its resolution goes back up, at {finer.module!r}"
    elif len(blocks) < 2:
        problem = "it has only one block"
    return Blocks(blocks, problem)


def choose_sites(
    model: nn.Module,
    sites: list[Site],
    blocks: Blocks,
    *,
    chosen: BlocksArg,
    p: float | tuple[tuple[str | int, float], ...],
    template: MaskSpec,
    filter_fn: FilterFn | None = None,
) -> tuple[SiteSpec, ...]:
    """The sites that ``chosen`` names, each with the keep probability of its block.

    Raises:
        BlockError: ``chosen`` (or a part of it) names nothing, or "bottom" / "top" mean nothing here.
        SiteError: nothing is left, or a chosen place cannot carry a mask.
        SpecError: ``p`` is a mapping that leaves a chosen block without a keep probability.
    """
    name = type(model).__name__
    if not sites:
        raise SiteError(
            f"{name} has no convolution that could carry a mask (none whose output is larger than 1x1).",
            fix="check that the model is a CNN and that the input size is not too small",
        )
    matched = _match(model, sites, blocks, chosen)
    picked = [site for site in sites if site in matched]
    if filter_fn is not None:
        picked = [site for site in picked if filter_fn(model.get_submodule(site.owner), site.owner)]
    if not picked:
        raise SiteError(f"No site is left in {name}.", chosen, fix="widen blocks=, or the filter_fn")
    refused = [f"{site.owner!r}: {site.problem}" for site in picked if site.problem]
    if refused:
        raise SiteError(
            f"{len(refused)} of {len(picked)} chosen places in {name} cannot carry a mask: {'; '.join(refused[:3])}.",
            chosen,
            "norms with a plain or fused batch, group, layer or RMS normalisation, and convolutions without a norm",
            "leave them out with filter_fn=, or choose other blocks",
        )
    return tuple(_specify(site, blocks.of(site), p, template) for site in picked)


def _match(model: nn.Module, sites: list[Site], blocks: Blocks, chosen: BlocksArg) -> list[Site]:
    name = type(model).__name__
    if chosen == "all":
        return sites
    if chosen in ("bottom", "top"):
        if blocks.problem is not None:
            raise BlockError(
                f"blocks={chosen!r} means nothing in {name}: {blocks.problem}.",
                chosen,
                f"block numbers or module-name globs; blocks: {blocks.names}",
                "pass e.g. blocks=(0,) or blocks=('stage1*',)",
            )
        border = (len(blocks.items) + 1) // 2
        return [site for site in sites if (blocks.of(site).index < border) == (chosen == "bottom")]
    if chosen == "paper":
        return _paper(model, sites)
    parts = (chosen,) if isinstance(chosen, str | int) else tuple(chosen)
    if not parts:
        raise BlockError(f"blocks is empty; available in {name}: {blocks.names}.", chosen, "at least one block")
    found: list[Site] = []
    for part in parts:
        matched = [site for site in sites if _is_in(part, site, blocks.of(site))]
        if not matched:
            raise BlockError(
                f"No block matches blocks=({part!r},) in {name}; available: {blocks.names}.",
                chosen,
                "'bottom', 'top', 'all', 'paper', block numbers, block names, or globs over module names",
            )
        found += matched
    return found


def _is_in(part: str | int, site: Site, block: Block) -> bool:
    if isinstance(part, int):
        return not isinstance(part, bool) and part == block.index
    if part == block.name and not block.is_module:
        return True
    # A glob matches a module, and a module stands for everything inside it.
    return any(
        fnmatch.fnmatchcase(".".join(path.split(".")[:depth]), part)
        for path in (site.owner, site.conv)
        for depth in range(1, path.count(".") + 2)
    )


def _paper(model: nn.Module, sites: list[Site]) -> list[Site]:
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    architecture = str(cfg.get("architecture", "")).removeprefix("defective_")
    if architecture not in _PAPER:
        raise BlockError(
            f"Where the paper would place masks in {architecture or type(model).__name__} is not known.",
            "paper",
            f"for blocks='paper' the timm models {', '.join(_PAPER)}",
            "use blocks='bottom'",
        )
    return [
        site
        for site in sites
        for glob in _PAPER[architecture]
        if fnmatch.fnmatchcase(site.owner, glob) or _inside(site.owner, glob)
    ]


def _specify(site: Site, block: Block, p: float | tuple[tuple[str | int, float], ...], spec: MaskSpec) -> SiteSpec:
    if isinstance(p, tuple):
        matching = [value for part, value in p if _is_in(part, site, block)]
        if not matching:
            raise SpecError(
                f"The mapping p gives no keep probability for block {block.name!r} (number {block.index}).",
                dict(p),
                "an entry for every chosen block, by number, name or glob",
            )
        value = matching[0]
    else:
        value = p
    return SiteSpec(
        name=site.owner,
        conv=site.conv,
        ordinal=site.ordinal,
        block=block.name,
        block_index=block.index,
        shape=site.shape,
        slot=site.slot,
        layout=site.layout,
        mask=MaskSpec(value, spec.mode, spec.sampling, spec.seed),
    )


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


def _children(module: nn.Module, path: str, trace: Trace) -> list[str]:
    """Paths of the children that ran, in execution order."""
    paths = [f"{path}.{name}" if path else name for name, _ in module.named_children()]
    return sorted((p for p in paths if p in trace.spans), key=lambda p: trace.spans[p][0])


def _by_resolution(children: list[str], trace: Trace) -> list[tuple[str, int]]:
    stages: list[tuple[str, int]] = []
    current: int | None = None
    for child in children:
        _, stop, shape = trace.spans[child][-1]
        area = shape[2] * shape[3] if len(shape) == 4 else None
        if stages and (area is None or current is None or area >= current):
            stages[-1] = (stages[-1][0], stop)
        else:
            stages.append((child, stop))
        current = area if area is not None else current
    return stages


def _cut(stages: list[tuple[str, int]], root: str, trace: Trace) -> tuple[Block, ...]:
    """Blocks from stage ends. A stage without a convolution joins the next one, the head the last."""
    ends = [stop for _, stop in stages[:-1]] + [len(trace.nodes)]
    blocks: list[Block] = []
    start = 0
    for (path, _), stop in zip(stages, ends, strict=True):
        convs = [node.module for node in trace.convs if start <= node.index < stop]
        if convs:
            blocks.append(_name_block(path, root, convs, len(blocks), start, stop))
            start = stop
    return tuple(blocks)


def _name_block(path: str, root: str, convs: list[str], index: int, start: int, stop: int) -> Block:
    offset = len(root) + 1 if root else 0
    inside = [_inside(conv, path) for conv in convs]
    if all(inside):
        return Block(path[offset:] or "all", index, start, stop, is_module=True)
    if not any(inside) and index == 0:
        return Block("stem", index, start, stop, is_module=False)
    depth = path[offset:].count(".") + 1
    first = ".".join(convs[0][offset:].split(".")[:depth])
    return Block(f"{first}..{path[offset:]}", index, start, stop, is_module=False)


def _inside(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}.") or parent == ""

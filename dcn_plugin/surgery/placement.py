"""The choice among sites: what ``blocks=``, ``p=`` and ``filter_fn=`` mean in one network."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from dcn_plugin.errors import BlockError, SiteError, SpecError
from dcn_plugin.specs import Masks, MaskSpec, SiteSpec, plain_number
from dcn_plugin.surgery.blocks import Blocks
from dcn_plugin.surgery.sites import Site

__all__ = ["FilterFn", "choose_sites", "freeze_blocks"]

FilterFn = Callable[[nn.Module, str], bool]

# Where the authors' code puts masks, for the architectures they used (docs: paper map): globs over the paths of
# norms, in timm's names. The networks of dcn_plugin.models have the names that timm's have, with "_cifar" behind.
_RESNET18 = ("bn1", "layer1.*.bn?", "layer2")  # in layer1 no projection: the paper has one only at double width
_RESNET50 = ("bn1", "layer[12].*.bn2")
_DENSENET121 = ("features.denseblock[12].denselayer*.norm1", "features.transition[12].norm")
_VGG19_BN = ("features.1", "features.4", "features.8", "features.11")
_PAPER: dict[str, tuple[str, ...]] = {
    "resnet18": _RESNET18,
    "resnet50": _RESNET50,
    "densenet121": _DENSENET121,
    "vgg19": ("features.0", "features.2", "features.5", "features.7"),
    "vgg19_bn": _VGG19_BN,
    "resnet18_cifar": _RESNET18,
    "resnet50_cifar": _RESNET50,
    "densenet121_cifar": _DENSENET121,
    "senet18_cifar": ("stages.[01].blocks.*.norm?",),
    "vgg19_cifar": _VGG19_BN,
    "wrn32_4_cifar": ("bn1", "layer1.*.bn?"),
}


def freeze_blocks(blocks: object) -> str | tuple[str | int, ...]:
    """Check what a user gives as ``blocks=``, and make it hashable.

    Returns:
        A word or glob as it is; numbers, names and globs as a tuple.

    Raises:
        BlockError: it is neither a string, a whole number, nor a sequence of these.
    """
    blocks = plain_number(blocks)
    if isinstance(blocks, str):
        return blocks
    parts = [blocks] if isinstance(blocks, int) else blocks
    if isinstance(parts, Iterable) and not isinstance(parts, Mapping | bytes):
        parts = tuple(map(plain_number, parts))
        if all(isinstance(p, str | int) for p in parts):
            return parts
    raise BlockError(
        "blocks is neither words nor numbers.",
        blocks,
        "'bottom', 'top', 'all', 'paper', block numbers, block names, or globs over module names",
        f"write p={blocks!r} if the keep probability is meant"
        if isinstance(blocks, float)
        else "pass e.g. blocks='bottom'",
    )


def choose_sites(
    model: nn.Module,
    sites: list[Site],
    blocks: Blocks,
    *,
    chosen: str | tuple[str | int, ...],
    masks: Masks,
    filter_fn: FilterFn | None = None,
) -> tuple[SiteSpec, ...]:
    """The sites that ``chosen`` names, each with the mask of its block.

    Raises:
        BlockError: ``chosen`` (or a part of it) names nothing, or "bottom" / "top" mean nothing here.
        SiteError: nothing is left, or a chosen place cannot carry a mask.
        SpecError: ``masks`` is a mapping that leaves a chosen block without a keep probability.
    """
    name = type(model).__name__
    # What the network returns are no neurons of its own, unless it has no others (a single layer, a cut-off backbone).
    outputs = [site for site in sites if site.output]
    sites = [site for site in sites if not site.output] or outputs
    if not sites:
        raise SiteError(
            f"{name} has no convolution that could carry a mask (none whose output is larger than 1x1).",
            fix="check that the model is a CNN and that the input size is not too small",
        )
    matched = _match(model, sites, [site for site in outputs if site not in sites], blocks, chosen)
    selection = [site for site in sites if site in matched]
    if filter_fn is not None:
        selection = [site for site in selection if filter_fn(model.get_submodule(site.owner), site.owner)]
    if not selection:
        raise SiteError(f"No site is left in {name}.", chosen, fix="widen blocks=, or the filter_fn")
    problems = [site.problem for site in selection if site.problem]
    if problems:
        raise SiteError(
            f"{len(problems)} of {len(selection)} chosen places in {name} cannot carry a mask: "
            f"{'; '.join(problems[:3])}.",
            chosen,
            "batch, group, layer, RMS, instance norms of torch, timm or torchvision, and convolutions without a norm",
            "use one of these norms there, leave the places out with filter_fn=, or choose other blocks",
        )
    return tuple(_specify(site, blocks, masks) for site in selection)


def _match(
    model: nn.Module, sites: list[Site], outputs: list[Site], blocks: Blocks, chosen: str | tuple[str | int, ...]
) -> list[Site]:
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
    parts = (chosen,) if isinstance(chosen, str) else chosen
    if not parts:
        raise BlockError(f"blocks is empty; available in {name}: {blocks.names}.", chosen, "at least one block")
    places: list[Site] = []
    for part in parts:
        matched = [site for site in sites if _is_in(part, site, blocks)]
        if not matched and any(_is_in(part, site, blocks) for site in outputs):
            raise SiteError(
                f"{name} returns what {_listed(outputs)} puts out: a mask there would silence answers, not neurons.",
                chosen,
                "convolutions with another layer, norm or activation behind them",
                "choose other blocks",
            )
        if not matched:
            raise BlockError(
                f"No block matches blocks=({part!r},) in {name}; available: {blocks.names}.",
                chosen,
                "'bottom', 'top', 'all', 'paper', block numbers, block names, or globs over module names",
            )
        places += matched
    return places


def _listed(sites: list[Site]) -> str:
    first = ", ".join(repr(site.owner) for site in sites[:3])
    return first if len(sites) <= 3 else f"{first} and {len(sites) - 3} more"


def _is_in(part: str | int, site: Site, blocks: Blocks) -> bool:
    block = blocks.of(site)
    if isinstance(part, int):
        return not isinstance(part, bool) and part == block.index
    if any(part == other.name for other in blocks.items):
        return part == block.name
    return _matches(part, site.owner) or _matches(part, site.conv)


def _paper(model: nn.Module, sites: list[Site]) -> list[Site]:
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    architecture = str(cfg.get("architecture", "")).removeprefix("defective_")
    if architecture not in _PAPER:
        raise BlockError(
            f"Where the paper would place masks in {architecture or type(model).__name__} is not known.",
            "paper",
            f"for blocks='paper' the models {', '.join(_PAPER)}",
            "use blocks='bottom'",
        )
    return [site for site in sites if any(_matches(glob, site.owner) for glob in _PAPER[architecture])]


def _matches(glob: str, path: str) -> bool:
    """Whether a glob matches a module or one that it is inside of: a module stands for everything in it."""
    parts = path.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[: i + 1]), glob) for i in range(len(parts)))


def _specify(site: Site, blocks: Blocks, masks: Masks) -> SiteSpec:
    block = blocks.of(site)
    if isinstance(masks, MaskSpec):
        mask = masks
    else:
        matching = [spec for part, spec in masks.items() if _is_in(part, site, blocks)]
        if not matching:
            raise SpecError(
                f"The mapping p gives no keep probability for block {block.name!r} (number {block.index}).",
                {part: spec.p for part, spec in masks.items()},
                "an entry for every chosen block, by number, name or glob",
            )
        mask = matching[0]
    return SiteSpec(
        name=site.owner,
        conv=site.conv,
        ordinal=site.ordinal,
        block=block.name,
        block_index=block.index,
        shape=site.shape,
        slot=site.slot,
        layout=site.layout,
        mask=mask,
    )

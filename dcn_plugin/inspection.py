"""Report on the masks of a network, and prove by running it that they act."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.errors import MaskLostError
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.surgery import defect_spec, expected_sites, image_size, masks_of, owner_path
from dcn_plugin.trace import dummy_image, eval_mode
from dcn_plugin.wrappers import on_bare_network

__all__ = ["Summary", "SummaryRow", "summary", "verify"]


@dataclass(frozen=True)
class SummaryRow:
    """One site: where it is, what was asked for, and the share of neurons it really keeps."""

    name: str
    block: str
    shape: tuple[int, int, int]
    mode: str
    p: float
    kept: float


@dataclass(frozen=True)
class Summary:
    """What :func:`summary` found; ``print`` shows it as a table.

    Args:
        rows: one a site, in execution order.
        neurons: number of neurons at all sites together.
        kept: number of them that are not defective.
    """

    rows: tuple[SummaryRow, ...]
    neurons: int
    kept: int

    def __str__(self) -> str:
        head = ("site", "block", "shape", "mode", "p", "kept")
        cells = [(r.name, r.block, "x".join(map(str, r.shape)), r.mode, f"{r.p:g}", f"{r.kept:.2%}") for r in self.rows]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *cells]
        ]
        share = self.kept / self.neurons if self.neurons else 1.0
        lines.append(f"{len(self.rows)} sites, {self.kept:,} of {self.neurons:,} neurons kept ({share:.2%})")
        return "\n".join(lines)


@on_bare_network
def summary(model: nn.Module) -> Summary:
    """Report every mask of a network, hand-written :class:`DefectiveConv2d` layers included.

    Raises:
        NotDefectiveError: there is none.
    """
    masks = masks_of(model)
    rows = []
    for path, mask in masks.items():
        site = mask.site_spec
        rows.append(
            SummaryRow(
                name=site.name if site else path.removesuffix(".drop"),
                block=f"{site.block_index}: {site.block}" if site else "-",
                shape=mask.shape,
                mode=mask.spec.mode_text,
                p=mask.spec.p,
                kept=float(mask.mask.float().mean()),
            )
        )
    return Summary(
        tuple(rows), sum(m.mask.numel() for m in masks.values()), sum(int(m.mask.sum()) for m in masks.values())
    )


@on_bare_network  # hooks inside a compiled module would not be called
@torch.no_grad()
def verify(model: nn.Module, images: Tensor | None = None) -> None:
    """Run a defective network and raise if a mask is gone or no longer acts.

    A buffer that exists but is never multiplied in counts as lost; so do bits that are not the ones
    that the seed gives, unless a state dict brought them.

    Args:
        model: defective. It is run once in eval mode; all flags are restored.
        images: (N, C, H, W) to run it on; by default one made for the size of the masks.

    Raises:
        MaskLostError: naming the sites whose mask is gone or does not act, and how it was noticed.
        NotDefectiveError: the model carries no masks at all and never did.
        InputSizeError: ``images`` is absent and the network was written by hand.
    """
    expected = expected_sites(model)
    masks = masks_of(model)
    lost = {name: "its mask is gone" for name in expected}
    watch = {path: _Watch(path, model.get_submodule(owner_path(model, path)), mask) for path, mask in masks.items()}
    if images is None:
        images = dummy_image(model, image_size(model, defect_spec(model).input_size if expected else None))
    handles = [handle for w in watch.values() for handle in w.handles()]
    try:
        with eval_mode(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    for path, w in watch.items():
        name = w.mask.site_spec.name if w.mask.site_spec else path.removesuffix(".drop")
        lost.pop(name, None)
        if (reason := w.complaint()) is not None:
            lost[name] = reason
    if lost:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(lost.items())[:3])
        raise MaskLostError(
            f"{len(lost)} of {len(expected) or len(masks)} masks no longer act ({shown}).",
            tuple(lost),
            "every mask is called and zeroes its neurons",
            "undo the conversion that dropped them, or call defectify() after it; for SyncBatchNorm use "
            "timm.layers.convert_sync_batchnorm",
        )


class _Watch:
    """Hooks on a mask and its owner that notice whether the mask acts."""

    def __init__(self, path: str, owner: nn.Module, mask: DefectMask2d) -> None:
        self.owner, self.mask = owner, mask
        self.owner_ran = self.called = False
        self.leaking = 0

    def handles(self) -> list[Any]:
        return [
            self.mask.register_forward_hook(self._on_mask),
            self.owner.register_forward_hook(self._on_owner),
        ]

    def _on_mask(self, *_: Any) -> None:
        self.called = True

    def _on_owner(self, owner: nn.Module, _: Any, out: Tensor) -> None:
        self.owner_ran = True
        zeros = torch.zeros_like(out)
        act = getattr(owner, "act", None)
        silent = act(zeros) if isinstance(act, nn.Module) else zeros
        if out.shape[1:] == self.mask.mask.shape[1:]:
            dead = ~self.mask.mask.expand_as(out)
            self.leaking += int((out[dead] != silent[dead]).sum())

    def complaint(self) -> str | None:
        mask = self.mask
        if not self.owner_ran:
            return "its layer is never run"
        if not self.called:
            return "its layer runs without calling it"
        if self.leaking:
            return f"{self.leaking} defective neurons are not silent"
        if mask.origin == "sampled" and not torch.equal(mask.seeded(), mask.mask.cpu()):
            return "its bits are not those that its seed gives"
        return None

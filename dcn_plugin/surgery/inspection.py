"""Report on the masks of a network, and prove by running it that they act."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.errors import ImageRangeError, InputSizeError, MaskLostError
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.support.model_state import dummy_image, eval_mode
from dcn_plugin.support.table import aligned
from dcn_plugin.surgery.follow import Follower
from dcn_plugin.surgery.queries import check_model, defect_spec, expected_sites, masks_of, owner_path
from dcn_plugin.surgery.trace import ExampleInputs, ModelInputs, explain
from dcn_plugin.surgery.wrappers import on_bare_network

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

    @property
    def kept_text(self) -> str:
        """``kept`` in per cent, or "none"."""
        return f"{self.kept:.2%}" if self.kept else "none"


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
        cells = [(r.name, r.block, "x".join(map(str, r.shape)), r.mode, f"{r.p:g}", r.kept_text) for r in self.rows]
        share = self.kept / self.neurons if self.neurons else 1.0
        last = f"{len(self.rows)} sites, {self.kept:,} of {self.neurons:,} neurons kept ({share:.2%})"
        return "\n".join([*aligned([head, *cells]), last])


@on_bare_network
def summary(model: nn.Module) -> Summary:
    """Report every mask of a network, hand-written :class:`DefectiveConv2d` layers included.

    A site that keeps no neuron shows "none" in the place of a share.

    Raises:
        NotDefectiveError: there is none.

    Example:
        >>> net = timm.create_model("defective_resnet18_cifar", p=0.3, sampling="exact")
        >>> print(dcn.summary(net).rows[0].kept_text)
        30.00%
    """
    check_model(model)
    masks = masks_of(model)
    rows = []
    names = [mask.site_spec.name for mask in masks.values() if mask.site_spec is not None]
    several = len(set(names)) < len(names)  # parts that were made defective by themselves: sites count from each part
    for path, mask in masks.items():
        site = mask.site_spec
        rows.append(
            SummaryRow(
                name=site.name if site and not several else path.removesuffix(".drop"),
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
def verify(model: nn.Module, images: Tensor | None = None, *, example_inputs: ExampleInputs | None = None) -> None:
    """Run a defective network and raise if a mask is gone or no longer acts.

    A buffer that exists but is never multiplied in counts as lost. So does a mask whose neurons are not zero in front
    of the next activation: the network is followed there from the mask, whatever its layers are called. So do bits
    that are not the ones that the seed gives, unless a state dict brought them.

    Args:
        model: defective. It is run once in eval mode; all flags are restored.
        images: (N, C, H, W) to run it on; by default one made for the size of the masks.
        example_inputs: in the place of ``images`` for a network that takes more than images, as in
            :func:`dcn_plugin.defectify`.

    Raises:
        MaskLostError: naming the sites whose mask is gone or does not act, and how it was noticed.
        NotDefectiveError: the model carries no masks at all and never did.
        InputSizeError: the network was written by hand and there are no ``images``; or it does not take these.
        ImageRangeError: ``images`` is not a batch of floating-point images.
        MaskShapeError: ``images`` has another size than the masks.
        TraceError: the network's forward fails for another reason.

    Example:
        >>> net = timm.create_model("defective_resnet18_cifar", p=0.3)
        >>> net.bn1.drop = nn.Identity()
        >>> dcn.verify(net)
        Traceback (most recent call last):
        dcn_plugin.errors.MaskLostError: 1 of 10 masks ...
    """
    check_model(model)
    expected = expected_sites(model)
    masks = masks_of(model)
    lost = {name: "its mask is gone" for name in expected}
    inputs = _inputs_for(model, images, example_inputs)
    follower = Follower()
    watch = {path: _Watch(model.get_submodule(owner_path(model, path)), mask, follower) for path, mask in masks.items()}
    handles = [handle for w in watch.values() for handle in w.handles()]
    try:
        with eval_mode(model), follower:
            inputs.feed(model)
    except Exception as error:
        raise explain(error, inputs.size) from error
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
            "every mask is called, and its neurons are zero in front of the next activation",
            "undo the change that dropped them or came behind them, or call defectify() after it; for SyncBatchNorm "
            "use timm.layers.convert_sync_batchnorm",
        )


def _inputs_for(model: nn.Module, images: Tensor | None, example_inputs: ExampleInputs | None) -> ModelInputs:
    if example_inputs is not None:
        if images is not None:
            raise InputSizeError("There are images and example_inputs.", None, "one of the two")
        return ModelInputs.of(example_inputs)
    if images is None:
        if not expected_sites(model):
            raise InputSizeError(
                f"This {type(model).__name__} was written by hand, so that the size of its images is not known.",
                None,
                "images=, a batch (N, C, H, W)",
                "pass some of your images, e.g. verify(model, torch.rand(1, 3, 224, 224))",
            )
        return ModelInputs((dummy_image(model, defect_spec(model).input_size),))
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise ImageRangeError(
            "verify() runs the network on a batch of images.",
            f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__,
            "a floating-point tensor (N, C, H, W)",
            "leave images out, or pass e.g. torch.rand(1, 3, 224, 224)",
        )
    return ModelInputs((images,))


class _Watch:
    """Hooks on a mask and its owner that notice whether the mask acts."""

    def __init__(self, owner: nn.Module, mask: DefectMask2d, follower: Follower) -> None:
        self.owner, self.mask, self.follower = owner, mask, follower
        self.owner_ran = self.called = False
        self.leaking = 0

    def handles(self) -> list[Any]:
        return [
            self.mask.register_forward_hook(self._on_mask),
            self.owner.register_forward_hook(self._on_owner),
        ]

    def _on_mask(self, _: nn.Module, __: Any, out: Tensor) -> None:
        self.called = True
        self.follower.start(self, out, ~self.mask.mask.expand_as(out))

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
        if self in self.follower.leaks:
            count, activation = self.follower.leaks[self]
            return f"{count} defective neurons are not zero in front of the next activation, {activation}"
        if mask.origin == "sampled" and not torch.equal(mask.seeded(), mask.mask.cpu()):
            return "its bits are not those that its seed gives"
        return None

"""Report on the masks of a network, and prove by running it that they act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dcn_plugin.errors import ImageRangeError, InputSizeError, MaskLostError, SpecError, TraceError
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.support.model_state import check_values, dummy_image, eval_mode, is_offloaded
from dcn_plugin.support.table import aligned
from dcn_plugin.surgery.follow import Follower
from dcn_plugin.surgery.positions import carrier_of, layers_of_masks, stands_at
from dcn_plugin.surgery.queries import (
    check_model,
    defect_spec,
    expected_layers,
    expected_sites,
    masks_in,
    masks_of,
    note_layers,
    specified_layers,
)
from dcn_plugin.surgery.trace import ExampleInputs, ModelInputs, explain
from dcn_plugin.surgery.wrappers import on_bare_network

__all__ = ["Summary", "SummaryRow", "summary", "verify"]

_STRANGE = "its bits are not those that its seed gives"
_AROUND = "that stands around its layer"


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
    expected = expected_layers(model)
    if expected == specified_layers(model):  # nothing is noted yet
        _note(model, layers_of_masks(model, masks, expected).values())
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
def verify(
    model: nn.Module,
    images: Tensor | None = None,
    *,
    example_inputs: ExampleInputs | None = None,
    layers: Sequence[str] | None = None,
) -> None:
    """Run a defective network and raise if a mask is gone or no longer acts.

    A buffer that exists but is never multiplied in counts as lost. So does a mask whose neurons are not zero in front
    of the next activation: the network is followed there from the mask, whatever its layers are called. So does one
    with something around its layer that adds to what comes out of it (an adapter), and one whose bits are not those
    that the seed gives, unless a state dict brought them.

    A network that :func:`dcn_plugin.defectify` made knows where its masks have to be. Of one written by hand that is
    known once this function or :func:`dcn_plugin.summary` has seen it, or ``layers`` says it; it is noted on the
    network. So call one of them before a tool rewrites the network.

    Args:
        model: defective. It is run once in eval mode; all flags are restored.
        images: (N, C, H, W) to run it on; by default one made for the size of the masks.
        example_inputs: in the place of ``images`` for a network that takes more than images, as in
            :func:`dcn_plugin.defectify`.
        layers: of a network written by hand, the names of all layers that have to carry masks, e.g.
            ``("conv1", "conv2")``, from now on; by default those that did when it was first looked at.

    Raises:
        MaskLostError: naming the sites whose mask is gone or does not act, and how it was noticed.
        NotDefectiveError: the model carries no masks at all and never did.
        InputSizeError: the network was written by hand and there are no ``images``; or it does not take these.
        ImageRangeError: ``images`` is not a batch of floating-point images.
        MaskShapeError: ``images`` has another size than the masks.
        SpecError: ``layers`` are no names, or ``model`` has a specification that says where its masks are.
        TraceError: the network's forward fails for another reason, or its weights or masks are not in memory.

    Example:
        >>> net = timm.create_model("defective_resnet18_cifar", p=0.3)
        >>> net.bn1.drop = nn.Identity()
        >>> dcn.verify(net)
        Traceback (most recent call last):
        dcn_plugin.errors.MaskLostError: 1 of 10 masks ...
    """
    check_model(model)
    expected = expected_layers(model) if layers is None else _stated(model, layers)
    masks = masks_of(model) if layers is None else masks_in(model)
    _check_in_memory(model, masks)
    inputs = _inputs_for(model, images, example_inputs)
    layer_of = layers_of_masks(model, masks, expected)
    follower = Follower()
    watches = {path: _Watch(model, path, layer_of[path], mask, follower) for path, mask in masks.items()}
    handles = [handle for watch in watches.values() for handle in watch.handles()]
    try:
        with eval_mode(model), follower:
            inputs.feed(model)
    except Exception as error:
        raise explain(error, inputs.size) from error
    finally:
        for handle in handles:
            handle.remove()
    lost = {name: _gone(model, layer) for layer, name in expected.items() if layer not in layer_of.values()}
    strange = []
    for path, watch in watches.items():
        layer = layer_of[path]
        name = expected.get(layer, layer)
        if (reason := watch.complaint()) is not None:
            lost[name] = reason
        elif not _has_its_bits(masks[path]):
            strange.append(name)
    if lost:
        raise _not_acting(lost | dict.fromkeys(strange, _STRANGE), len(expected) or len(masks))
    if strange:
        raise _other_bits(strange, len(masks))
    _note(model, layer_of.values())


def _note(model: nn.Module, layers: Iterable[str]) -> None:
    specified = specified_layers(model)
    note_layers(model, (layer for layer in layers if layer not in specified))


def _not_acting(lost: dict[str, str], number: int) -> MaskLostError:
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(lost.items())[:3])
    around = any(reason.endswith(_AROUND) for reason in lost.values())
    return MaskLostError(
        f"{len(lost)} of {number} masks no longer act ({shown}).",
        tuple(lost),
        "every mask is called, and its neurons are zero in front of the next activation",
        "adapt layers whose mask comes behind a norm, or adapt the plain network (dcn_plugin.undefectify), merge the "
        "adapters into it, and call defectify() after that"
        if around
        else "undo the change that dropped them or came behind them, or call defectify() after it; for SyncBatchNorm "
        "use timm.layers.convert_sync_batchnorm",
    )


def _other_bits(strange: list[str], number: int) -> MaskLostError:
    shown = "; ".join(f"{name}: {_STRANGE}" for name in strange[:3])
    return MaskLostError(
        f"{len(strange)} of {number} masks act, but are other masks ({shown}), and no state dict brought them.",
        tuple(strange),
        "the masks that the seed gives, or those that model.load_state_dict() brought",
        "if a loader put them there past load_state_dict(), as accelerate's load_checkpoint_and_dispatch does, and you "
        "want them, say so with model.load_state_dict(model.state_dict()); otherwise undo the change",
    )


def _has_its_bits(mask: DefectMask2d) -> bool:
    return mask.origin != "sampled" or torch.equal(mask.seeded(), mask.mask.cpu())


def _gone(model: nn.Module, layer: str) -> str:
    try:
        kind = type(model.get_submodule(layer)).__name__
    except AttributeError:
        return "its mask is gone, and its layer too"
    return f"its mask is gone; its layer is of class {kind} now"


def _stated(model: nn.Module, layers: Sequence[str]) -> dict[str, str]:
    if isinstance(layers, str) or not layers or not all(isinstance(layer, str) for layer in layers):
        raise SpecError(
            "layers are no names of layers.", layers, "a sequence of names, such as ('conv1', 'conv2')", "pass a tuple"
        )
    if expected_sites(model):
        raise SpecError(
            f"The specification of this {type(model).__name__} says which of its layers carry masks.",
            layers,
            "layers= for a network that was written by hand",
            "leave layers out",
        )
    return {layer: layer for layer in layers}


def _check_in_memory(model: nn.Module, masks: Mapping[str, DefectMask2d]) -> None:
    check_values(model)
    away = [path for path, mask in masks.items() if mask.mask.is_meta]
    if away and is_offloaded(model):
        raise TraceError(
            f"{len(away)} masks of this {type(model).__name__} are offloaded: they are in memory during a call only.",
            tuple(away[:3]),
            "masks in memory; the weights may be offloaded",
            "offload without buffers (accelerate's offload_buffers=False, its default), or take the model back first "
            "with accelerate.hooks.remove_hook_from_submodules(model)",
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
    """Hooks on a mask, on its owner, and on what stands around that, which notice whether the mask acts.

    Args:
        model: the network.
        path: of the mask.
        layer: path of the layer that has to carry it: its owner's, or that of what a tool has put around that.
        mask: the mask.
        follower: told about what comes out of the mask.
    """

    def __init__(self, model: nn.Module, path: str, layer: str, mask: DefectMask2d, follower: Follower) -> None:
        owner = carrier_of(model, path)
        self.owner = model.get_submodule(owner)
        around = stands_at(model, layer, owner)
        self.around = None if around is self.owner else around
        self.mask, self.follower = mask, follower
        self.owner_ran = self.called = self.around_looked = False
        self.leaking = self.leaking_around = 0

    def handles(self) -> list[Any]:
        around = [] if self.around is None else [self.around.register_forward_hook(self._on_around)]
        return [
            self.mask.register_forward_hook(self._on_mask),
            self.owner.register_forward_hook(self._on_owner),
            *around,
        ]

    def _on_mask(self, _: nn.Module, __: Any, out: Tensor) -> None:
        self.called = True
        self.follower.start(self, out, ~self.mask.mask.expand_as(out))

    def _on_owner(self, owner: nn.Module, _: Any, out: Tensor) -> None:
        self.owner_ran = True
        self.leaking += self._leaking(out)

    def _on_around(self, _: nn.Module, __: Any, out: Any) -> None:
        outs = [v for v in tree_leaves(out) if isinstance(v, Tensor) and v.shape[1:] == self.mask.mask.shape[1:]]
        self.around_looked |= bool(outs)
        self.leaking_around += sum(map(self._leaking, outs))

    def _leaking(self, out: Tensor) -> int:
        """How many defective neurons are not silent in what a layer puts out, behind its activation if it has any."""
        if out.shape[1:] != self.mask.mask.shape[1:]:
            return 0
        zeros = torch.zeros_like(out)
        act = getattr(self.owner, "act", None)
        silent = act(zeros) if isinstance(act, nn.Module) else zeros
        dead = ~self.mask.mask.expand_as(out)
        return int((out[dead] != silent[dead]).sum())

    def complaint(self) -> str | None:
        if not self.owner_ran:
            return "its layer is never run"
        if not self.called:
            return "its layer runs without calling it"
        if self.leaking:
            return f"{self.leaking} defective neurons are not silent"
        if self.around is not None and (self.leaking_around or not self.around_looked):
            library, _, _ = type(self.around).__module__.partition(".")
            kind = f"{library}.{type(self.around).__name__}"  # several libraries call theirs Conv2d
            if not self.around_looked:
                return f"a {kind} stands around its layer, and puts out nothing of its size"
            return f"{self.leaking_around} defective neurons are not silent behind the {kind} {_AROUND}"
        if self in self.follower.leaks:
            count, activation = self.follower.leaks[self]
            return f"{count} defective neurons are not zero in front of the next activation, {activation}"
        return None

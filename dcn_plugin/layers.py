"""The building blocks: a fixed mask, a convolution that carries one, and normalisation inside the model."""

# No `from __future__ import annotations`: TorchScript reads the annotations of these classes as objects.

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn

from dcn_plugin.errors import ImageRangeError, MaskShapeError, MaskStateError, SpecError
from dcn_plugin.masks import MaskDraws, mask_draws
from dcn_plugin.specs import (
    Layout,
    MaskOrigin,
    MaskSpec,
    Mode,
    Sampling,
    SiteSpec,
    check_chw,
    plain_number,
)

__all__ = ["DefectMask2d", "DefectiveConv2d", "Normalized", "apply_mask", "as_bits", "owns_output"]


@torch.fx.wrap
def apply_mask(x: Tensor, mask: Tensor, inplace: bool = False, layout: str = "NCHW", made_for: str = "") -> Tensor:
    """Zero the defective neurons of ``x``: ``y = M * x``, eq. (4) of the paper.

    Args:
        x: activation, batch first; the rest must have the shape of ``mask`` without its leading 1.
        mask: bool, 1 x the shape of one activation.
        inplace: overwrite ``x`` where autograd allows it. Safe wherever nobody else reads ``x``; behind a norm it saves
            an allocation as large as the activation, which is most of the cost of the mask.
        layout: memory order of ``x``, for messages.
        made_for: size of the images that the mask was made for, for messages.

    Returns:
        The masked activation, with the dtype and memory format of ``x``.

    Raises:
        MaskShapeError: ``x`` has another size than the mask was made for.
        ImageRangeError: ``x`` is not floating point.
    """
    if not torch.jit.is_scripting():
        if isinstance(x, torch.fx.Proxy):
            # fx forgets what it wrapped when it transforms a graph, and traces the result again.
            return x.tracer.create_proxy("call_function", apply_mask, (x, mask, inplace, layout, made_for), {})
        _check_activation(x, mask, layout, made_for)
        inplace = inplace and _may_overwrite(x, mask)
    # Cast once a call, not once a batch element inside the product. The first factor decides the memory format.
    factor = mask.to(x.dtype)
    return x.mul_(factor) if inplace else x * factor


@torch.jit.unused
def _may_overwrite(x: Tensor, mask: Tensor) -> bool:
    """Whether autograd lets ``x`` be overwritten, whoever else reads it.

    A view is left alone: hooks on the backward pass of a module hand its tensors on as views that must not be changed.
    So is every tensor while ``vmap`` gives each network its own mask: at one of the levels of ``grad`` and ``vmap``
    around, all networks may share it.
    """
    if torch.compiler.is_compiling() or x._is_view():
        return False  # a compiler decides for itself what is overwritten
    while torch._C._functorch.is_functorch_wrapped_tensor(mask):
        if torch._C._functorch.is_batchedtensor(mask):
            return False
        mask = torch._C._functorch.get_unwrapped(mask)
    return True


@torch.jit.unused  # TorchScript has no exception classes; there a mismatch is torch's own broadcast error.
def _check_activation(x: Tensor, mask: Tensor, layout: str, made_for: str) -> None:
    if not x.is_floating_point():
        raise ImageRangeError(
            "A defect mask acts on floating-point activations.",
            str(x.dtype),
            "a floating-point dtype",
            "convert the images, e.g. images.float() / 255",
        )
    if torch.jit.is_tracing() or x.shape[1:] == mask.shape[1:]:
        return
    raise MaskShapeError(
        f"The activation is {'x'.join(map(str, x.shape[1:]))} but its defect mask is "
        f"{'x'.join(map(str, mask.shape[1:]))}; {_why_not(x, mask, layout)}.",
        tuple(x.shape),
        f"(batch, {', '.join(map(str, mask.shape[1:]))})",
        _what_to_do(x, mask, layout, made_for),
    )


def _channels_differ(x: Tensor, mask: Tensor, layout: str) -> bool:
    axis = 1 if layout == "NCHW" else -1
    return x.ndim == mask.ndim and x.shape[axis] != mask.shape[axis]


def _why_not(x: Tensor, mask: Tensor, layout: str) -> str:
    if x.ndim != mask.ndim:
        return "a batch dimension is missing" if x.ndim == mask.ndim - 1 else "they differ in their dimensions"
    return "the layer has other channels" if _channels_differ(x, mask, layout) else "masks have a size"


def _what_to_do(x: Tensor, mask: Tensor, layout: str, made_for: str) -> str:
    if x.ndim != mask.ndim:
        return "feed a batch of images, (N, C, H, W)"
    if _channels_differ(x, mask, layout):
        return (
            "undefectify() the network before its channels are removed or added (by pruning, or by hand), and "
            "defectify() it afterwards"
        )
    images = f"images of {made_for}" if made_for else "images of the size the model was made defective for"
    return (
        f"feed {images}, or make masks for the others: input_size=(C, H, W) of defectify(), or img_size= of timm's "
        "defective models, e.g. timm.create_model('defective_resnet18', img_size=32)"
    )


class DefectMask2d(nn.Module):
    """A fixed binary mask over the neurons of one layer, active in training and in test.

    The mask is a persistent bool buffer ``mask`` of shape (1, C, H, W) (or (1, H, W, C), (1, L, C): see
    ``layout``). There is no rescaling by 1 / p.

    Args:
        shape: (C, H, W) of the activation.
        spec: how the mask is drawn.
        site: ordinal of the layer's convolution in the network; layers with different ordinals get independent masks.
        layout: memory order of the activation: "NCHW", "NHWC" or "NLC" with L = H * W.
        inplace: overwrite the input. Only for an input that nobody else reads.

    Shape:
        - Input: (N, C, H, W), or as ``layout`` says
        - Output: the same

    Raises:
        MaskShapeError: ``shape`` is not three integers >= 1; in ``forward``, an input of another size.
        SpecError: ``spec`` is no :class:`MaskSpec`, ``layout`` is unknown, or ``site`` is no whole number >= 0.
        ImageRangeError: in ``forward``, an input that is not floating point.

    Example:
        >>> mask = dcn.DefectMask2d((8, 10, 10), dcn.MaskSpec(p=0.3))
        >>> torch.equal(mask(torch.ones(1, 8, 10, 10))[0] == 1, mask.kept())
        True

    Source: paper, section 3.1, eq. (3)-(5).
    """

    mask: Tensor
    made_for: str = ""  # also of masks that were pickled before there was a note of it

    def __init__(
        self,
        shape: tuple[int, int, int],
        spec: MaskSpec,
        *,
        site: int = 0,
        layout: Layout = "NCHW",
        inplace: bool = False,
    ) -> None:
        super().__init__()
        if layout not in get_args(Layout):
            raise SpecError("Unknown layout.", layout, ", ".join(map(repr, get_args(Layout))))
        self.shape = check_chw(shape, error=MaskShapeError)
        self.spec = spec
        self.site: int = plain_number(site)
        self.layout = layout
        self.inplace = inplace
        self.origin: MaskOrigin = "sampled"
        # Surgery's notes: for which images, which site this is, and which class its owner had before it carried a mask.
        self.made_for = ""
        self.site_spec: SiteSpec | None = None
        self.restores: type[nn.Module] | None = None
        self.register_buffer("mask", self.seeded())

    def seeded(self) -> Tensor:
        """The bits that the seed gives, on the CPU, in the shape of ``mask``."""
        return self.laid_out(self.draws().mask(self.spec.p))

    def draws(self) -> MaskDraws:
        """What decides at which keep probability each neuron is there, whatever that of ``spec`` is."""
        return mask_draws(self.spec, self.shape, site=self.site)

    def laid_out(self, neurons: Tensor) -> Tensor:
        """Values of neurons, (C, H, W), in the shape of ``mask``."""
        return _to_layout(neurons, self.layout)

    def forward(self, x: Tensor) -> Tensor:
        """Zero the defective neurons of ``x``."""
        return apply_mask(x, self.mask, self.inplace, self.layout, self.made_for)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(f"{prefix}mask")
        if given is not None and given.shape == self.mask.shape:
            state_dict[f"{prefix}mask"] = as_bits(given, f"{prefix}mask")
        super()._load_from_state_dict(state_dict, prefix, *args)
        # Against the seed, not the old buffer: tools that read a checkpoint in place have filled that already.
        if f"{prefix}mask" in state_dict:
            self.origin = "sampled" if torch.equal(self.mask.cpu(), self.seeded()) else "loaded"

    def kept(self) -> Tensor:
        """The mask as bool (C, H, W), whatever the layout."""
        channels, height, width = self.shape
        if self.layout == "NCHW":
            return self.mask[0]
        return self.mask[0].reshape(height, width, channels).permute(2, 0, 1)

    def extra_repr(self) -> str:
        """Show what a reader of ``print(model)`` wants to know."""
        size = "x".join(map(str, self.shape))
        return f"{size}, p={self.spec.p:g}, mode={self.spec.mode_text}, site={self.site}, {self.origin}"


def as_bits(given: Tensor, key: str) -> Tensor:
    """A mask of a state dict as bool: tools that average checkpoints leave the numbers 0 and 1 in its place.

    Raises:
        MaskStateError: it holds other numbers.
    """
    if given.dtype == torch.bool or given.is_meta:
        return given
    bits = given.bool()
    if not torch.equal(bits.to(given.dtype), given):
        raise MaskStateError(
            f"{key} holds other numbers than 0 and 1: that is no mask. An average over networks with different masks "
            "gives such numbers.",
            str(given.dtype),
            "bool, or numbers that are 0 or 1",
            "average networks with the same masks (the same seed, blocks and mode), or leave the masks out of the file",
        )
    return bits


def _to_layout(neurons: Tensor, layout: Layout) -> Tensor:
    if layout == "NCHW":
        return neurons.unsqueeze(0)
    nhwc = neurons.permute(1, 2, 0).unsqueeze(0).contiguous()
    return nhwc if layout == "NHWC" else nhwc.flatten(1, 2)


class DefectiveConv2d(nn.Conv2d):
    """The paper's layer for networks written by hand: convolution, optional norm, mask.

    Put the activation behind it: ``relu(DefectiveConv2d(...)(x))``.

    Args:
        in_channels: as in ``nn.Conv2d``, like all arguments up to ``dtype``: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, or (height, width).
        stride: of the kernel, in pixels.
        padding: pixels around the input, "valid" or "same".
        dilation: distance of the kernel's entries, in pixels.
        groups: of channels that are convolved apart from each other.
        bias: add a learned number to every channel.
        padding_mode: what the padding holds.
        device: where the parameters lie.
        dtype: of the parameters.
        output_size: (H, W) of the layer's output, or the side of a square one; masks have a size.
        p: keep probability in (0, 1].
        mode: "neuron", "channel", "shared", "hole" or "nm".
        sampling: "bernoulli" or "exact".
        seed: with ``site`` it fixes every bit of the mask.
        site: number of this layer in your network. Give every layer its own.
        span: pixels on a side of a hole ("hole"), or channels in a group ("nm"); only these modes take it.
        norm: module between the convolution and the mask, e.g. ``nn.BatchNorm2d(out_channels)``.

    Shape:
        - Input: (N, C_in, H_in, W_in)
        - Output: (N, C_out, H, W) with (H, W) = ``output_size``

    Example:
        >>> conv = dcn.DefectiveConv2d(3, 8, 3, padding=1, output_size=32, site=0, p=0.3, norm=nn.BatchNorm2d(8))
        >>> conv(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 8, 32, 32])

    Source: paper, section 3.1, eq. (3)-(5); the norm sits before the mask as in the authors' code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        output_size: int | tuple[int, int],
        site: int,
        p: float = 0.3,
        mode: Mode = "neuron",
        sampling: Sampling = "bernoulli",
        seed: int = 0,
        span: int | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        spec = MaskSpec(p, mode, sampling, seed, span)
        if isinstance(output_size, int):
            output_size = (output_size, output_size)
        if not isinstance(output_size, Sequence) or len(output_size) != 2 or isinstance(output_size, str):
            raise MaskShapeError("output_size is not (H, W).", output_size, "two integers >= 1", "pass e.g. (32, 32)")
        # A norm of another kind may still need what it puts out, for its gradient.
        inplace = norm is None or owns_output(norm)
        drop = DefectMask2d((out_channels, *output_size), spec, site=site, inplace=inplace)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.norm = nn.Identity() if norm is None else norm
        self.drop = drop.to(device)

    def forward(self, input: Tensor) -> Tensor:  # the name is nn.Conv2d's
        """Convolve, normalise, zero the defective neurons."""
        return self.drop(self.norm(self._conv_forward(input, self.weight, self.bias)))  # type: ignore[no-any-return]


class Normalized(nn.Module):
    """A model that takes images in [0, 1] and normalises them itself, as attacks need it.

    Args:
        model: takes normalised images.
        mean: one number a channel, in units of [0, 1] images.
        std: one positive number a channel.

    Shape:
        - Input: (N, C, H, W) in [0, 1], C = len(mean)
        - Output: whatever ``model`` returns

    Raises:
        SpecError: mean and std differ in length, or a std is not positive.
        ImageRangeError: in ``forward``, images that are not floating point or have another number of channels.

    Example:
        >>> model = dcn.Normalized(timm.create_model("resnet18"), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        >>> model(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 1000])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise SpecError("Normalisation needs one mean and one positive std a channel.", (tuple(mean), tuple(std)))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """Normalise, then call the model."""
        if not x.is_floating_point() or x.shape[1] != self.mean.shape[1]:
            raise ImageRangeError(
                "The model normalises its images itself and cannot take these.",
                (str(x.dtype), tuple(x.shape)),
                f"floating-point images (N, {self.mean.shape[1]}, H, W) in [0, 1]",
                "convert the images, e.g. images.float() / 255",
            )
        # The constants may stay in float32 around a network in half precision.
        return self.model(((x - self.mean) / self.std).to(x.dtype))

    def extra_repr(self) -> str:
        """Show the constants."""
        mean, std = ([round(v, 4) for v in constants.flatten().tolist()] for constants in (self.mean, self.std))
        return f"mean={mean}, std={std}"


def owns_output(norm: nn.Module) -> bool:
    """Whether the slot of ``norm`` sees a fresh tensor that may be overwritten without a copy for autograd."""
    return isinstance(norm, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | FrozenBatchNormAct2d)

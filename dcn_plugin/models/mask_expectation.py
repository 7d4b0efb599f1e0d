"""A defective source under many masks: what an attacker who does not know the target's masks averages over."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dcn_plugin.errors import NotDefectiveError, SpecError
from dcn_plugin.specs import plain_number
from dcn_plugin.support.randomness import derived_seed
from dcn_plugin.surgery import check_model, masks_of

__all__ = ["MaskExpectation"]

_MAX_DRAWS = 1000


class MaskExpectation(nn.Module):
    """One set of weights under many masks drawn anew: the mean of its logits over them.

    An attack on it climbs the gradient averaged over masks, in place of that of the one set of masks it was made with.
    In training mode every forward pass draws masks of its own, so that the weights suit all of them: wrap the network,
    then train the wrapper. (A network that was trained under one set of masks does badly under others.) In eval mode
    the masks are ``draws`` sets that follow from ``seed``, the same at every call; a forward pass costs ``draws`` of
    the network. The network's own masks are none of them, and it has them again after every call.

    Args:
        network: a defective network, images in [0, 1] -> logits; it is wrapped, not copied.
        draws: sets of masks in eval mode, 1 .. 1000.
        seed: 0 .. 2**64 - 1; with the specification of each mask it fixes all bits.

    Shape:
        - Input: (N, C, H, W) in [0, 1]
        - Output: logits (N, classes)

    Raises:
        NotDefectiveError: the network has no masks.
        SpecError: it is no network, or a number is out of range.

    Example:
        >>> source = MaskExpectation(net, draws=3).eval()
        >>> source(images).shape
        torch.Size([8, 10])

    Source: Athalye, Engstrom, Ilyas, Kwok 2018, arXiv 1707.07397 (expectation over transformation), with the masks as
    the transformation.
    """

    passes: Tensor

    def __init__(self, network: nn.Module, *, draws: int = 8, seed: int = 0) -> None:
        super().__init__()
        draws, seed = plain_number(draws), plain_number(seed)
        check_model(network)
        if not masks_of(network):
            raise NotDefectiveError(
                f"The masks of {type(network).__name__} were lost.",
                fix="make it defective again, or load its checkpoint",
            )
        if isinstance(draws, bool) or not isinstance(draws, int) or not 1 <= draws <= _MAX_DRAWS:
            raise SpecError("The number of sets of masks is not usable.", draws, f"an int in [1, {_MAX_DRAWS}]")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise SpecError("The seed is not usable.", seed, "an int in [0, 2**64)")
        self.network, self.draws, self.seed = network, draws, seed
        # Forward passes in training mode: which masks come next. A run that goes on must not repeat the first ones.
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._kept: dict[int, dict[str, Tensor]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes): under one set of new masks in training mode, else their mean over all sets."""
        if self.training:
            number = int(self.passes)
            self.passes += 1
            with self._under(self._drawn("training", number)):
                return self._logits(images)
        logits = []
        for draw in range(self.draws):
            if draw not in self._kept:
                self._kept[draw] = self._drawn("eval", draw)
            with self._under(self._kept[draw]):
                logits.append(self._logits(images))
        return torch.stack(logits).mean(dim=0)

    def extra_repr(self) -> str:
        """Show what decides on the masks: other draws are another source."""
        return f"draws={self.draws}, seed={self.seed}"

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def _drawn(self, purpose: str, number: int) -> dict[str, Tensor]:
        """One set of masks: path -> bits in the shape of the mask there."""
        bits = {}
        for path, mask in masks_of(self.network).items():
            seed = derived_seed("mask expectation", self.seed, mask.spec.seed, purpose, number)
            spec = dataclasses.replace(mask.spec, seed=seed)
            bits[path] = type(mask)(mask.shape, spec, site=mask.site, layout=mask.layout).mask
        return bits

    @contextlib.contextmanager
    def _under(self, bits: dict[str, Tensor]) -> Iterator[None]:
        """The network under other masks; afterwards it has its own."""
        masks = masks_of(self.network)
        own = {path: mask.mask for path, mask in masks.items()}
        try:
            for path, mask in masks.items():
                bits[path] = bits[path].to(own[path].device)  # for the next call, too
                mask.mask = bits[path]
            yield
        finally:
            for path, mask in masks.items():
                mask.mask = own[path]

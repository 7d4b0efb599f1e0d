"""Measures on this machine what a step costs on images and on rows, and what a conversion costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dcn_plugin.engine import ops
from dcn_plugin.engine.clock import timed
from dcn_plugin.engine.liveness import Live, pool_window
from dcn_plugin.engine.packed_conv import can_pack, images_conv, scale_of
from dcn_plugin.engine.partition import multiply_adds
from dcn_plugin.engine.row_layout import number_rows
from dcn_plugin.engine.steps import Step

__all__ = ["WORTH", "Measured", "kind_of"]

WORTH = 0.97
"""What takes a larger share of the time of the plain way is not worth its memory."""
FEW_IMAGES = 16
"""What PyTorch runs takes a CPU as long an image from here on; so many are measured for a larger batch."""
OBVIOUS = 2.0
"""Where rows are more times faster than images than this, it is not measured by how much."""
BELIEVED = 4.0
"""A convolution on rows is not believed to be more times faster than its multiply-adds say."""


def kind_of(step: Step, live: Live) -> str:
    """What the time of a step depends on: its operations, its shapes, and which neurons exist.

    Of these count the share, in twentieths, and whether all positions have the same channels, or all or none, or each
    its own: masks of whole channels, shared ones and those of single neurons take different times at the same share.

    Args:
        step: a convolution or a pool.
        live: of the graph.

    Returns:
        A text, the same for steps of one kind in any network.
    """
    values = [live[node] for node in (*step.inputs, step.value)]
    places = [(*value.shape, *_density(value)) for value in values]
    if step.conv is None:
        return repr(("pool", places, pool_window(step.value)))
    conv = step.conv
    shape, geometry, scaled = tuple(conv.weight.shape), tuple(conv.geometry), scale_of(conv) is not None
    return repr(("conv", places, shape, geometry, _density(conv.kept), conv.relu, scaled))


def _density(neurons: Tensor) -> tuple[float, int]:
    """The share of neurons (C, H, W) that exist, in twentieths, and how many kinds of positions: 1, 2, 3 or more."""
    weights = torch.rand(len(neurons), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Positions with the same channels have the same sum of these weights, and practically no others.
    sums = (weights.view(-1, 1, 1) * neurons.cpu()).sum(0)
    return round(20 * float(neurons.float().mean())) / 20, min(sums.unique().numel(), 3)


@dataclass(eq=False)
class Measured:
    """Runs every convolution both ways on this machine; memory-bound steps are computed from its bandwidth.

    Args:
        live: of the graph.
        batch: images a batch. What runs on images is measured with :data:`FEW_IMAGES` at most.
        device: where.
        backend: of the rows.
        times: what was measured, in ms: on images and on rows. Steps of one kind are measured once.
        packed: of convolutions: on images, with weights laid out once; not asked where rows are clearly faster.
        kinds: what was measured of each kind of step, conversion and so on, on this machine at any time.
    """

    live: Live
    batch: int
    device: torch.device
    backend: ops.Backend
    times: dict[Step, tuple[float, float]] = field(default_factory=dict)
    packed: dict[Step, float] = field(default_factory=dict)
    kinds: dict[str, list[float]] = field(default_factory=dict)

    def images(self, step: Step) -> float:
        """Milliseconds."""
        if step.kind in ("conv", "pool"):
            return self._timed(step)[0] - self.saved_by_packing(step)
        return 0.0 if step.kind == "other" else self._moved(2 * self._bytes(step.value, live=False))

    def rows(self, step: Step) -> float | None:
        """Milliseconds."""
        if step.kind == "conv":
            plain, on_rows = self._timed(step)
            dense, live = multiply_adds(step, self.live)
            return max(on_rows, plain * live / max(dense, 1) / BELIEVED)
        if step.kind == "pool":
            return self._timed(step)[1]
        if step.kind in ("other", "mask"):
            return None if step.kind == "other" else 0.0
        # A sum goes row by row through the kernel of the convolutions.
        passes = 4 if step.kind == "sum" else 2
        return self._moved(passes * self._bytes(step.value, live=True))

    def conversion(self, node: fx.Node) -> tuple[float, float]:
        """Milliseconds."""
        if node not in self.live:
            return 0.0, 0.0
        live = self.live[node]

        def measure() -> list[float]:
            index, rows = number_rows(live).to(self.device), int(live.sum())
            x = torch.empty(rows, self.batch, dtype=torch.float32, device=self.device)
            images = ops.rows_to_dense(x, index, self.backend)
            try:
                there = timed(lambda: ops.to_rows(images, index, rows, self.backend), self.device)
                return [there, timed(lambda: ops.rows_to_dense(x, index, self.backend), self.device)]
            finally:
                ops.forget([index])

        there, back = self._once(f"conversion of {(*live.shape, _density(live))}", measure)
        return there, back

    def saved_by_packing(self, step: Step) -> float:
        """Milliseconds; 0 where it is too little to be sure of."""
        conv = step.conv
        if conv is None or scale_of(conv) is not None or not can_pack(self.device, conv.weight.dtype):
            return 0.0
        plain, on_rows = self._timed(step)
        if plain > OBVIOUS * on_rows:
            return 0.0
        if step not in self.packed:
            kind = f"packed {kind_of(step, self.live)}"
            (self.packed[step],) = self._once(kind, lambda: [self._on_images(step, packed=True)], count=1)
        return plain - self.packed[step] if self.packed[step] < WORTH * plain else 0.0

    def _bytes(self, node: fx.Node, *, live: bool) -> int:
        if node not in self.live:
            return 0
        neurons = self.live[node].sum() if live else self.live[node].numel()
        return int(neurons) * self.batch * 4

    def _moved(self, size: int) -> float:
        def measure() -> list[float]:
            values = torch.empty(2**22, dtype=torch.float32, device=self.device)
            return [2 * values.nbytes / timed(values.relu, self.device)]

        (bytes_a_ms,) = self._once("bandwidth", measure, count=1)
        return size / bytes_a_ms

    def _timed(self, step: Step) -> tuple[float, float]:
        if step not in self.times:
            plain, on_rows = self._once(kind_of(step, self.live), lambda: list(self._both(step)))
            self.times[step] = plain, on_rows
        return self.times[step]

    def _once(self, kind: str, measure: Callable[[], list[float]], *, count: int = 2) -> list[float]:
        """``count`` numbers of a kind: those that are known, or measured now."""
        kind = f"{self.batch} images: {kind}"
        if len(self.kinds.get(kind, ())) != count:
            self.kinds[kind] = measure()
        return self.kinds[kind]

    def _both(self, step: Step) -> tuple[float, float]:
        if step.kind == "pool":
            return self._pool(step)
        on_rows = self._on_rows(step)
        return self._on_images(step, enough=OBVIOUS * on_rows), on_rows

    def _pool(self, step: Step) -> tuple[float, float]:
        (source,), window = step.inputs, pool_window(step.value)
        images = torch.ones(self.batch, *self.live[source].shape, dtype=torch.float32, device=self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        indices = [number_rows(self.live[value]).to(self.device) for value in (source, step.value)]
        rows_in, rows_out = (int(self.live[value].sum()) for value in (source, step.value))
        x = torch.ones(rows_in, self.batch, dtype=torch.float32, device=self.device)
        spread = (*map(list, window[:4]), window[4])
        try:
            on_rows = timed(lambda: ops.rows_max_pool(x, *indices, *spread, rows_out, self.backend), self.device)
        finally:
            ops.forget(indices)
        return timed(lambda: F.max_pool2d(images, *window), self.device), on_rows

    def _on_images(self, step: Step, *, packed: bool = False, enough: float = math.inf) -> float:
        conv = step.conv
        assert conv is not None
        batch = min(self.batch, FEW_IMAGES) if self.device.type == "cpu" else self.batch
        x = torch.ones(batch, *self.live[step.inputs[0]].shape, dtype=torch.float32, device=self.device)
        x = x.contiguous(memory_format=torch.channels_last)
        mask = None if bool(conv.kept.all()) else conv.kept.to(x.device, x.dtype)
        other = (
            torch.ones(batch, *conv.kept.shape, dtype=torch.float32, device=self.device)
            if len(step.inputs) > 1
            else None
        )
        other = None if other is None else other.contiguous(memory_format=torch.channels_last)

        stride, padding, dilation, groups = conv.geometry
        geometry = (list(stride), list(padding), list(dilation), groups)
        scale = scale_of(conv)

        def run() -> None:
            if scale is not None:
                y = torch.addcmul(scale[1], x, scale[0])
            else:
                y = (images_conv if packed else F.conv2d)(x, conv.weight, conv.bias, *geometry)
            if mask is not None and scale is None:
                y.mul_(mask)
            if other is not None:
                y.add_(other)
            if conv.relu:
                y.relu_()

        try:
            return self.batch / batch * timed(run, self.device, enough=enough * batch / self.batch)
        finally:
            ops.forget([conv.weight])

    def _on_rows(self, step: Step) -> float:
        conv = step.conv
        assert conv is not None
        indices = [number_rows(self.live[value]) for value in (*step.inputs, step.value)]
        x, *rest, out = (
            torch.ones(int(index.max()) + 1, self.batch, dtype=torch.float32, device=self.device) for index in indices
        )
        residual, residual_index = (rest[0], indices[1]) if rest else (None, None)
        named = (conv.weight, conv.bias, indices[0], indices[-1], conv.kept, residual_index)
        run = ops.conv_runner(*named, conv.geometry, self.backend)
        try:
            return timed(lambda: run(x, out, residual=residual, relu=conv.relu), self.device)
        finally:
            ops.forget(indices)

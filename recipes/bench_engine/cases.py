"""What is measured: one layer, the bottom blocks, whole networks, an attack, and where compact() spends its time."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dcn_plugin as dcn  # registers the defective models, too
from dcn_plugin.attacks import PGD
from dcn_plugin.engine import compact, ops
from dcn_plugin.engine.bench import Speed, alternate, inference, relative_error
from dcn_plugin.engine.capture import capture
from dcn_plugin.engine.dense_twin import dense_twin
from dcn_plugin.engine.native import native_problem
from dcn_plugin.engine.row_layout import Geometry, number_rows
from dcn_plugin.surgery import defect_spec, insert_masks, undefectify
from dcn_plugin.training import isolated_rng

__all__ = ["attack", "bottom_of", "compaction", "compaction_calls", "gpu", "layer", "network", "noise"]

BOTTOM = ("conv1", "bn1", "act1", "layer1", "layer2")
GEOMETRY = Geometry(padding=(1, 1))


def noise(batch: int, *shape: int, seed: int) -> Tensor:
    """Images of uniform noise, channels_last."""
    images = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed))
    return images.contiguous(memory_format=torch.channels_last)


def network(name: str, *, p: float, seed: int, blocks: str = "paper", **options: Any) -> nn.Module:
    """A defective network with random weights, whose batch norms know the statistics of what they get.

    Without that the signal would fade from layer to layer, and the logits would be the biases of the last one.
    """
    with isolated_rng(seed):
        model = timm.create_model(name, p=p, blocks=blocks, **options)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(noise(8, *defect_spec(model).input_size, seed=seed))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def bottom_of(model: nn.Module) -> nn.Module:
    """A ResNet up to the end of layer2, with the weights and the masks that it has in the whole network."""
    plain = undefectify(model)
    parts = nn.Sequential(OrderedDict((name, getattr(plain, name)) for name in BOTTOM))
    return insert_masks(parts, defect_spec(model)).eval()


def layer(p: float, *, batch: int, rounds: int, seed: int, channels: int = 64, size: int = 32) -> dict[str, Any]:
    """One 3x3 convolution between two masks. What it reads is in rows already; the conversions are timed apart."""
    shape, spec = (channels, size, size), dcn.MaskSpec(p, seed=seed)
    live, kept = (dcn.sample_mask(spec, shape, site=site) for site in range(2))
    backend = "c" if native_problem() is None else "reference"
    draw = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(channels, channels, 3, 3, generator=draw), torch.randn(channels, generator=draw)
    weight = weight.contiguous(memory_format=torch.channels_last)
    images = noise(batch, *shape, seed=seed).mul_(live)
    in_index, out_index = number_rows(live), number_rows(kept)
    rows_in, rows_out = int(live.sum()), int(kept.sum())
    named = (weight, bias, in_index, out_index, kept, None)
    spread = (*map(list, GEOMETRY[:3]), GEOMETRY.groups, False, rows_out, backend)
    with torch.inference_mode():
        start = time.perf_counter()
        lists = ops.packed_conv(*named, GEOMETRY)
        packing = time.perf_counter() - start
        x = ops.to_rows(images, in_index, rows_in, backend)
        expected = F.conv2d(images, weight, bias, *GEOMETRY) * kept
        made = ops.rows_conv(x, None, *named, *spread)
        error = relative_error(expected, ops.rows_to_dense(made, out_index, backend))
        timed = alternate(
            {
                "dense": lambda: F.conv2d(images, weight, bias, *GEOMETRY),
                "rows": lambda: ops.rows_conv(x, None, *named, *spread),
            },
            rounds=rounds,
        )
        # Apart: their large results would push what the layer reads out of the caches.
        timed |= alternate(
            {
                "to rows": lambda: ops.to_rows(images, in_index, rows_in, backend),
                "to images": lambda: ops.rows_to_dense(made, out_index, backend),
            },
            rounds=rounds,
        )
    ops.forget((*named, in_index, out_index))
    everything = torch.ones_like(live)
    speed = Speed(
        batch_size=batch,
        backend=backend,
        dense_ms=timed["dense"].median_ms,
        compact_ms=timed["rows"].median_ms,
        speedup=timed["rows"].speedup,
        quartiles=timed["rows"].quartiles,
        ideal=_work(everything, everything) / _work(live, kept),
        packed_bytes=lists.nbytes,
        compact_seconds=packing,
        relative_error=error,
        note=native_problem() or "",
    )
    conversions = {"to_rows_ms": timed["to rows"].median_ms, "to_images_ms": timed["to images"].median_ms}
    return {**speed.to_json(), **conversions}


def _work(live: Tensor, kept: Tensor) -> float:
    """Multiply-adds of a 3x3 convolution that have a live input and a live output."""
    inputs = F.conv2d(live[None].float(), torch.ones(1, len(live), 3, 3), None, *GEOMETRY)[0, 0]
    return float((inputs.double() * kept.sum(0)).sum())


def compaction(model: nn.Module, *, batch: int) -> dict[str, float]:
    """Seconds of compact(): of the whole, and of its parts. The lists of the gradient are made at the first one."""
    size = defect_spec(model).input_size
    start = time.perf_counter()
    fast = compact(model, batch_size=batch, use_cache=False)
    whole = time.perf_counter() - start
    start = time.perf_counter()
    capture(model, size)
    captured = time.perf_counter() - start
    ops.forget(fast.on_rows.buffers())
    image = torch.zeros(1, *size)
    packing, again = (_seconds(inference(fast.on_rows, image)) for _ in range(2))

    def gradient() -> None:
        leaf = image.clone().requires_grad_()
        torch.autograd.grad(fast.on_rows(leaf).sum(), leaf)

    first, second = _seconds(gradient), _seconds(gradient)
    packing = max(packing - again, 0.0)
    return {
        "whole_s": whole,
        "capture_s": captured,
        "packing_s": packing,
        "choosing_s": max(whole - captured - packing, 0.0),
        "packing_gradient_s": max(first - second, 0.0),
    }


def compaction_calls(model: nn.Module, *, batch: int, repeats: int = 3) -> dict[str, float]:
    """Seconds of the first compact() on a machine, and the median of the next ones; in a cache for this alone."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, DCN_ENGINE_CACHE=folder):
        first, *others = (_seconds(lambda: compact(model, batch_size=batch)) for _ in range(1 + repeats))
    return {"first_s": first, "second_s": statistics.median(others)}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def attack(model: nn.Module, *, batch: int, steps: int, rounds: int, seed: int) -> dict[str, Any]:
    """White-box PGD against the dense twin, the compact model and the defective model as it is."""
    images = noise(batch, *defect_spec(model).input_size, seed=seed)
    with torch.no_grad():
        labels = model(images).argmax(1)
    fast = compact(model, batch_size=batch, use_cache=False)
    nets = {"dense": dense_twin(model).module, "compact": fast, "defective": model}
    gradients = {name: _gradient(net, images, labels) for name, net in nets.items()}  # makes the lists of rows, too
    pgd = PGD(8 / 255, steps=steps)
    calls = {name: (lambda net=net: pgd(net, images, labels, batch_size=batch)) for name, net in nets.items()}
    timed = alternate(calls, rounds=rounds, warm_up=0, settle=0)
    return {
        "batch_size": batch,
        "steps": steps,
        "ms": {name: one.median_ms for name, one in timed.items()},
        "speedup": timed["compact"].speedup,
        "quartiles": list(timed["compact"].quartiles),
        "speedup_over_defective": timed["compact"].speedup / timed["defective"].speedup,
        "gradient_relative_error": relative_error(gradients["defective"], gradients["compact"]),
    }


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
    return gradient


def gpu(model: nn.Module, *, batch: int, rounds: int, seed: int) -> dict[str, Any]:
    """The bottom blocks on a GPU, the dense side in bfloat16."""
    device = torch.device("cuda")
    bottom = bottom_of(model).to(device)
    fast = compact(bottom, batch_size=batch)
    dense = dense_twin(bottom.bfloat16()).module
    images = noise(batch, *fast.input_size, seed=seed).to(device)
    calls = {"dense": inference(dense, images.bfloat16()), "compact": inference(fast, images)}
    timed = alternate(calls, rounds=rounds, device=device)
    return {
        "batch_size": batch,
        "backend": fast.plan.backend,
        "ms": {name: one.median_ms for name, one in timed.items()},
        "speedup": timed["compact"].speedup,
        "quartiles": list(timed["compact"].quartiles),
        "packed_bytes": fast.plan.packed_bytes,
        "note": fast.plan.note,
    }

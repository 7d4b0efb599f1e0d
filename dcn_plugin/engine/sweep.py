"""Speed over keep probability, batch size and network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dcn_plugin.engine.bench import Speed, measure_speed
from dcn_plugin.engine.compact_model import AskedBackend
from dcn_plugin.engine.dense_twin import dense_twin
from dcn_plugin.surgery import defect_spec, defectify, image_size, is_defective, undefectify
from dcn_plugin.surgery.blocks import BlocksArg

__all__ = ["SpeedPoint", "sweep_speed"]


@dataclass(frozen=True, kw_only=True)
class SpeedPoint:
    """One measurement of a sweep.

    Args:
        network: its name.
        p: keep probability.
        speed: what was measured.
    """

    network: str
    p: float
    speed: Speed


def sweep_speed(
    models: Mapping[str, nn.Module],
    *,
    keep: Sequence[float],
    batch_sizes: Sequence[int],
    blocks: BlocksArg | None = None,
    size: int | None = None,
    rounds: int = 10,
    backend: AskedBackend = "auto",
    seed: int = 0,
) -> Iterator[SpeedPoint]:
    """Measure every network at every keep probability with every batch size.

    Args:
        models: name -> network. A defective one is made anew for each p, with the blocks, the mode, the sampling and
            the seed that it has; a plain one gets neuron masks. Not changed.
        keep: keep probabilities in (0, 1].
        batch_sizes: images a batch.
        blocks: where the masks are; by default those that a defective model has, or "bottom".
        size: side of the images; by default that of a defective model, or timm's.
        rounds: pairs of runs a measurement, at least 2.
        backend: as in :func:`dcn_plugin.compact`.
        seed: of the images.

    Yields:
        A point a measurement, as soon as it is there.

    Raises:
        SpecError, InputSizeError, BlockError, SiteError: as in :func:`dcn_plugin.defectify`.
        CompactError, TraceError: as in :func:`dcn_plugin.compact`.
    """
    for name, model in models.items():
        twin = None
        for p in keep:
            masked = _with_keep(model, p, blocks, size).eval()
            twin = twin or dense_twin(masked)
            for batch_size in batch_sizes:
                options = {"rounds": rounds, "seed": seed}
                speed = measure_speed(masked, batch_size=batch_size, backend=backend, twin=twin, **options)
                yield SpeedPoint(network=name, p=p, speed=speed)


def _with_keep(model: nn.Module, p: float, blocks: BlocksArg | None, size: int | None) -> nn.Module:
    spec = defect_spec(model) if is_defective(model) else None
    input_size = image_size(model, None) if spec is None else spec.input_size
    options = {} if spec is None else spec.options
    if blocks is not None:
        options["blocks"] = blocks
    if size is not None:
        input_size = (input_size[0], size, size)
    plain = model if spec is None else undefectify(model)
    return defectify(plain, **{**options, "p": p}, input_size=input_size, inplace=plain is not model)

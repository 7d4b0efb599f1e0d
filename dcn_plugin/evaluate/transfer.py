"""Transfer attacks: images made on a source network, shown to other networks.

Both denominators are reported. The paper's counts the images on which the attack fooled the source AND which
the target classifies correctly when clean; ``accuracy_all`` counts every image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.environment import hardware
from dcn_plugin.evaluate.predict import correct, device_of
from dcn_plugin.evaluate.records import Result, Rounding

__all__ = ["AdversarialSet", "adversarial_set", "measure_targets", "transfer"]


@dataclass(frozen=True, eq=False)
class AdversarialSet:
    """What one attack made of one image set on one source.

    Args:
        images: float32 (N, C, H, W) in [0, 1], rounded as ``rounding`` says.
        source: name of the attacked model.
        source_correct: bool (N,), the source was right on the clean image.
        fooled: bool (N,), it was, and no longer is (judged before rounding, as in the authors' code).
        zero_gradient: bool (N,), the loss had a gradient of exactly zero at some step.
        attack: the attack.
        rounding: "none" or "8bit".
        data: the clean images.
    """

    images: Tensor
    source: str
    source_correct: Tensor
    fooled: Tensor
    zero_gradient: Tensor
    attack: Attack
    rounding: Rounding
    data: ImageSet


def adversarial_set(
    name: str,
    source: nn.Module,
    attack: Attack,
    data: ImageSet,
    *,
    rounding: Rounding = "none",
    batch_size: int = 256,
) -> AdversarialSet:
    """Attack a source once, on every image.

    Args:
        name: of the source.
        source: images in [0, 1] -> logits.
        attack: any attack of :mod:`dcn_plugin.attacks`.
        data: the clean images.
        rounding: "8bit" rounds to multiples of 1/255, as images written to files are; it may add up to 0.5/255 to
            the distance.
        batch_size: images at a time.

    Raises:
        SpecError: unknown rounding.
        LabelError, ModelOutputError: as the attack does.
    """
    if rounding not in ("none", "8bit"):
        raise SpecError("Unknown rounding.", rounding, "'none', '8bit'")
    device = device_of(source)
    made = attack(source, data.images.to(device), data.labels.to(device), batch_size=batch_size)
    images = made.images.cpu()
    if rounding == "8bit":
        images = (images * 255).round() / 255
    return AdversarialSet(
        images=images,
        source=name,
        source_correct=made.correct.cpu(),
        fooled=made.fooled.cpu(),
        zero_gradient=made.zero_gradient.cpu(),
        attack=attack,
        rounding=rounding,
        data=data,
    )


def measure_targets(
    made: AdversarialSet,
    targets: Mapping[str, nn.Module],
    *,
    seed: int,
    clean: Mapping[str, Tensor] | None = None,
    batch_size: int = 256,
) -> list[Result]:
    """Show one adversarial set to every target.

    Args:
        made: the images.
        targets: name -> model, images in [0, 1] -> logits.
        seed: of the run that made the models; it goes into the records.
        clean: name -> bool (N,), right on the clean images, where that is known already.
        batch_size: images at a time.

    Returns:
        One record a target, protocol "transfer".
    """
    data, attack = made.data, made.attack
    settings = attack.settings
    steps = settings.get("steps")
    results = []
    for name, target in targets.items():
        known = None if clean is None else clean.get(name)
        right = correct(target, data.images, data.labels, batch_size=batch_size, name=name) if known is None else known
        still = correct(target, made.images, data.labels, batch_size=batch_size, name=name)
        counted = made.fooled & right
        results.append(
            Result(
                protocol="transfer",
                target=name,
                source=made.source,
                data=data.name,
                data_hash=data.content_hash,
                seed=seed,
                attack=attack.name,
                attack_settings=settings,
                eps=attack.eps,
                steps=steps if isinstance(steps, int) else None,
                rounding=made.rounding,
                n_total=len(data),
                n_source_correct=int(made.source_correct.sum()),
                n_source_fooled=int(made.fooled.sum()),
                n_zero_gradient=int(made.zero_gradient.sum()),
                n_clean_correct=int(right.sum()),
                n_counted=int(counted.sum()),
                n_defended=int((counted & still).sum()),
                n_correct=int(still.sum()),
                hardware=hardware(device_of(target)),
            )
        )
    return results


def transfer(
    sources: Mapping[str, nn.Module],
    targets: Mapping[str, nn.Module],
    attacks: Sequence[Attack],
    data: ImageSet,
    *,
    seed: int,
    rounding: Rounding = "none",
    batch_size: int = 256,
) -> Iterator[Result]:
    """Measure every target under every source and attack, one set of images in memory at a time.

    A target of the same name as a source is the source itself: its record is a white-box result.

    Args:
        sources: name -> model to attack.
        targets: name -> model to measure. A standard target must be another training run than the source.
        attacks: each runs once a source.
        data: the clean images.
        seed: of the run that made the models; it goes into the records.
        rounding: see :func:`adversarial_set`.
        batch_size: images at a time.

    Yields:
        Records in the order source, attack, target, each as soon as it is known.

    Source: paper, section 4.1; denominators as in the authors' code.
    """
    clean = {
        name: correct(target, data.images, data.labels, batch_size=batch_size, name=name)
        for name, target in targets.items()
    }
    for name, source in sources.items():
        for attack in attacks:
            made = adversarial_set(name, source, attack, data, rounding=rounding, batch_size=batch_size)
            yield from measure_targets(made, targets, seed=seed, clean=clean, batch_size=batch_size)

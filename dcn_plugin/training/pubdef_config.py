"""Training on images that were attacked beforehand, through public source models (PubDef)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn

from dcn_plugin.errors import ImageRangeError, SpecError
from dcn_plugin.support.arguments import check_rules
from dcn_plugin.training.adversarial import StepImages
from dcn_plugin.training.data import Batch

__all__ = ["PairSampling", "pubdef"]

PairSampling = Literal["random", "random-batch", "all"]


def pubdef(
    adversarial: Iterable[Tensor],
    *,
    weight: float = 1.0,
    sampling: PairSampling = "random",
    eps: float = 8 / 255,
) -> StepImages:
    """Train on clean images together with what public models and attacks have made of them.

    The loss is ``(clean + weight * attacked) / (1 + weight)``, each a mean cross-entropy. Both go through the model in
    one batch, so that batch norm sees both. An attacked image is moved as its clean one is (the same shift and flip).

    ``config.batch_size`` counts the clean images: the model sees twice as many, and with "all" one more batch for every
    pair.

    Args:
        adversarial: one tensor for every pair of a source model and an attack, generated once from the training
            images as they are, e.g. by :func:`dcn_plugin.training.public_images`: uint8, or float in [0, 1],
            (N, C, H, W), in the order of the training images, all N of them. Kept as uint8 where that loses nothing, on
            the device where they lie.
        weight: of the attacked images' loss, > 0, against 1 of the clean images'.
        sampling: which pairs a step uses. "random": one for every image, each equally likely. "random-batch": one for
            the whole batch (of each process). "all": every pair, with equal weights.
        eps: largest change of a pixel, in (0, 1]. It is looked at in the first batch, and tells whether the images
            belong to this training set; 1 looks at nothing.

    Raises:
        SpecError: no images at all, or an option is out of range. In training: images that do not belong to the
            training set, or a training set whose augmentation cannot be repeated (streamed files, shifted colours).
        ImageRangeError: images of another type, shape or range.

    Source: Sitawarin et al. 2024, arXiv 2310.17645, and the code of its authors: one pair an image, equal weights of
    clean and attacked images. (Their "all" weighs every pair like the clean images: ``weight`` = number of pairs.)
    There attacked images are made of augmented ones, in four copies, and not moved again; moving both alike is ours,
    and so is "random-batch". Their losses over the worst pairs are left out.
    """
    return PubDef([_kept(images, number) for number, images in enumerate(adversarial)], weight, sampling, eps)


class PubDef:
    def __init__(self, adversarial: list[Tensor], weight: float, sampling: PairSampling, eps: float) -> None:
        shapes = [tuple(images.shape) for images in adversarial]
        if len(set(shapes)) != 1:
            raise SpecError(
                "PubDef needs images of at least one pair of a source and an attack, all of one shape.",
                shapes,
                "(N, C, H, W) each",
            )
        rules = {
            "weight": (0 < weight < float("inf"), "a number > 0"),
            "sampling": (sampling in get_args(PairSampling), ", ".join(map(repr, get_args(PairSampling)))),
            "eps": (0 < eps <= 1, "a number in (0, 1]"),
        }
        self.weight, self.sampling, self.eps = weight, sampling, eps
        check_rules("The {name} of PubDef is not usable.", vars(self), rules)
        if any(images.dtype != torch.uint8 for images in adversarial):  # one for all, for they are mixed
            adversarial = [images.float() / 255 if images.dtype == torch.uint8 else images for images in adversarial]
        self._adversarial, self._checked = adversarial, False

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all images, in hex: what a run that goes on has to have in common with its start."""
        digest = hashlib.sha256()
        for images in self._adversarial:
            digest.update(f"{images.dtype} {tuple(images.shape)}".encode() + images.cpu().numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        settings = f"weight={self.weight}, sampling={self.sampling!r}, eps={self.eps}"
        return f"PubDef({len(self._adversarial)} pairs, sha256={self.fingerprint[:16]}, {settings})"

    def __call__(self, model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        self._check(batch)
        attacked = [self._moved(images, batch) for images in self._choose(batch, generator)]
        if not self._checked:
            self._check_distance(batch.images, attacked)
            self._checked = True
        copies = 1 + len(attacked)
        # Of mean 1 over the batch, so that the loss is a mean like any other.
        clean, other = (copies / (1 + self.weight) * part for part in (1, self.weight / len(attacked)))
        weights = torch.tensor([clean] + [other] * len(attacked)).repeat_interleave(len(batch.labels))
        return Batch(
            images=torch.cat([batch.images, *attacked]),
            labels=batch.labels.repeat(copies),
            places=batch.places.repeat(copies),
            weights=None if clean == other else weights.to(batch.images.device),
        )

    def _choose(self, batch: Batch, generator: Generator) -> list[Tensor]:
        """The attacked images of this step, as they are kept: one tensor (B, C, H, W) or, with "all", one a pair."""
        pairs = len(self._adversarial)
        if self.sampling == "all":
            return [self._take(pair, batch.places, batch) for pair in range(pairs)]
        if self.sampling == "random-batch":
            return [self._take(int(torch.randint(pairs, (), generator=generator)), batch.places, batch)]
        chosen = torch.randint(pairs, batch.places.shape, generator=generator)
        taken = torch.cat([self._take(pair, batch.places[chosen == pair], batch) for pair in range(pairs)])
        back = chosen.argsort(stable=True).argsort()
        return [taken[back.to(taken.device)]]

    def _take(self, pair: int, places: Tensor, batch: Batch) -> Tensor:
        images = self._adversarial[pair]
        return images[places.to(images.device)].to(batch.images.device)

    def _moved(self, images: Tensor, batch: Batch) -> Tensor:
        assert batch.moves is not None
        moved = batch.moves(images)
        return moved.float().div_(255) if moved.dtype == torch.uint8 else moved

    def _check(self, batch: Batch) -> None:
        count, *shape = self._adversarial[0].shape
        if batch.moves is None:
            raise SpecError(
                "PubDef moves attacked images as the clean ones are moved, and these data do not say how.",
                "Batch.moves is None",
                "images that are held in memory, without random resized crops and with their own colours",
                "train with min_scale=None and pca_color=0",
            )
        if list(batch.images.shape[1:]) != shape or int(batch.places.max()) >= count:
            raise SpecError(
                "The attacked images do not belong to this training set.",
                {"attacked": (count, *shape), "training": (f"> {int(batch.places.max())}", *batch.images.shape[1:])},
                "one attacked image for every training image, in the same order",
                "attack the images that are trained on, without those split off for validation",
            )

    def _check_distance(self, clean: Tensor, attacked: list[Tensor]) -> None:
        change = max(float((images - clean).abs().max()) for images in attacked)
        if change > self.eps + 0.5 / 255 + 1e-6:  # rounding to 8 bits adds up to half a step
            raise SpecError(
                "The attacked images are too far from the training images: they are others, or in another order.",
                round(change, 4),
                f"changes of at most eps={self.eps:.4f}",
                "attack the images that are trained on, in their order, or set eps to what the attack may change",
            )


def _kept(images: Tensor, number: int) -> Tensor:
    """Images as uint8, or as float32 where they are no 8-bit images."""
    if images.ndim != 4 or not len(images) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ImageRangeError(
            f"The attacked images of pair {number} have the wrong type or shape.",
            (str(images.dtype), tuple(images.shape)),
            "uint8, or float in [0, 1], (N, C, H, W)",
        )
    if images.dtype == torch.uint8:
        return images
    pixels = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    exact = True
    for start in range(0, len(images), 1024):
        part = images[start : start + 1024].float()
        if not bool(((part >= 0) & (part <= 1)).all()):  # written so that NaN fails too
            raise ImageRangeError(
                f"The attacked images of pair {number} leave the range of pixels.",
                (float(part.min()), float(part.max())),
                "[0, 1]",
            )
        eight_bit = part.mul(255).round_().byte()
        exact = exact and torch.equal(eight_bit.float().div_(255), part)
        pixels[start : start + 1024] = eight_bit
    return pixels if exact else images.float()

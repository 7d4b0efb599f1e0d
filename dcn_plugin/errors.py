"""Named errors: each says what is wrong, what was got, what is allowed and what to do.

Every error derives from :class:`DcnError` and from the built-in class a caller would have expected
(``ValueError`` for a bad argument, ``RuntimeError`` for a state that broke), so that existing
``except`` clauses keep working.
"""

from __future__ import annotations

import math
import sys
import warnings

__all__ = [
    "AlreadyDefectiveError",
    "BlockError",
    "CheckpointError",
    "ClassesError",
    "CompactError",
    "DataError",
    "DcnError",
    "DcnWarning",
    "DeadSiteWarning",
    "ExportError",
    "ImageRangeError",
    "InputSizeError",
    "LabelError",
    "MaskLostError",
    "MaskShapeError",
    "MaskStateError",
    "MissingExtraError",
    "MixedBatchWarning",
    "ModelChangedError",
    "ModelOutputError",
    "NotDefectiveError",
    "OutputError",
    "OutputPermissionError",
    "PlacementWarning",
    "PretrainedError",
    "RecordError",
    "SiteError",
    "SpecError",
    "TraceError",
    "WeakAttackWarning",
    "warn_caller",
]

_UNSET = "<unset>"


class DcnError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        what: one sentence that names the problem, ending in a full stop.
        got: the offending value, shown as it was given.
        allowed: what would have been accepted.
        fix: what the caller can do about it.
    """

    def __init__(self, what: str, got: object = _UNSET, allowed: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, got, allowed, fix)
        self.what, self.got, self.allowed, self.fix = what, got, allowed, fix

    def __str__(self) -> str:
        parts = [self.what]
        if not (isinstance(self.got, str) and self.got == _UNSET):
            parts.append(f"Got: {_shown(self.got)}.")
        if self.allowed is not None:
            parts.append(f"Allowed: {self.allowed}.")
        if self.fix is not None:
            parts.append(f"Fix: {self.fix}.")
        return " ".join(parts)


def _shown(got: object) -> str:
    """How a value is shown: arrays and tensors that hold more than a few numbers by their type and shape."""
    shape = getattr(got, "shape", None)
    if isinstance(shape, tuple) and math.prod(shape) > 8:
        return f"{type(got).__name__} {tuple(shape)}"
    return repr(got)


class SpecError(DcnError, ValueError):
    """A keep probability, mode, sampling rule, seed or other option is not allowed."""


class MaskShapeError(DcnError, ValueError):
    """A mask and the tensor it should act on do not have the same (C, H, W)."""


class InputSizeError(DcnError, ValueError):
    """The input size of a model is missing or is not (C, H, W)."""


class BlockError(DcnError, ValueError):
    """``blocks`` names nothing in this model, or the model's blocks cannot be told apart."""


class SiteError(DcnError, ValueError):
    """A convolution was selected that cannot carry a mask, or there is none at all."""


class TraceError(DcnError, RuntimeError):
    """The model's own forward failed while its structure was being read."""


class AlreadyDefectiveError(DcnError, ValueError):
    """The model already carries masks."""


class NotDefectiveError(DcnError, ValueError):
    """The model carries no masks."""


class MaskLostError(DcnError, RuntimeError):
    """A mask is gone or no longer acts, although the model says that it is defective."""


class MaskStateError(DcnError, RuntimeError):
    """A state dict holds some masks but not all, or masks of another shape or dtype."""


class CompactError(DcnError, RuntimeError):
    """A model cannot be compacted like this, or a compact model was asked for what a snapshot cannot do."""


class ExportError(DcnError, RuntimeError):
    """A network cannot be written in the form of another tool, or computes something else there."""


class CheckpointError(DcnError, RuntimeError):
    """A checkpoint file is truncated, tampered with, or belongs to another model."""


class PretrainedError(DcnError, ValueError):
    """Pretrained weights do not exist, cannot be had here, or their card is not usable."""


class DataError(DcnError, ValueError):
    """A data set is missing, empty, or not laid out as expected."""


class ImageRangeError(DcnError, ValueError):
    """Images are not floating point, not NCHW, or not within [0, 1]."""


class LabelError(DcnError, ValueError):
    """Labels are not integers, or out of the range of the model's classes."""


class ClassesError(LabelError, SpecError):
    """The classes of a model and of a data set, or of two data sets, are not the same: by number, name or order."""


class ModelChangedError(DcnError, RuntimeError):
    """An attack changed the network that it attacked: its modes, its weights, or the modules that it is made of."""


class ModelOutputError(DcnError, ValueError):
    """A model returned something that is not a finite (N, classes) tensor of logits."""


class RecordError(DcnError, ValueError):
    """A result record is incomplete or does not follow the schema."""


class OutputError(DcnError, OSError):
    """A file or a folder cannot be written; ``errno`` and ``filename`` are those of the system's error."""

    def __init__(self, what: str, got: object = _UNSET, allowed: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, got, allowed, fix)
        self.errno = self.strerror = self.filename = None

    def __reduce__(self) -> tuple[object, ...]:  # OSError's own keeps three arguments
        system = {"errno": self.errno, "strerror": self.strerror, "filename": self.filename}
        return type(self), (self.what, self.got, self.allowed, self.fix), {**self.__dict__, **system}


class OutputPermissionError(OutputError, PermissionError):
    """An :class:`OutputError` for want of permission, which a ``PermissionError`` is expected for."""


class MissingExtraError(DcnError, ImportError):
    """An optional dependency is needed that is not installed."""


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called into this package, however deep inside of it the reason was found.

    Args:
        message: plain sentences: what is the matter, what it means, what to do.
        category: one of the named warnings where there is one.
    """
    level, depth, frame = 2, 1, sys._getframe(1)
    while frame is not None:
        depth += 1
        if frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]:
            level = depth + 1
        frame = frame.f_back  # type: ignore[assignment]
    warnings.warn(message, category, stacklevel=level)


class DcnWarning(UserWarning):
    """Base of the named warnings: something is allowed, and probably not what was meant."""


class DeadSiteWarning(DcnWarning):
    """A site keeps none of its neurons: what lies behind it alone does not see the image."""


class PlacementWarning(DcnWarning):
    """The masks are not placed as the method places them."""


class WeakAttackWarning(DcnWarning):
    """An attack cannot be as strong as its settings say: its steps do not reach the edge of its ball."""


class MixedBatchWarning(DcnWarning):
    """What a network says about an image depends on the other images of its batch."""

"""The attacks of :mod:`dcn_plugin.attacks` as ART evasion attacks, by one bridge."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator
from torch import Tensor, nn

from dcn_plugin.adapters._art_classifier import DefectiveClassifier, dtype_of
from dcn_plugin.attacks import (
    CW,
    MIFGSM,
    PGD,
    TIFGSM,
    Attack,
    AttackResult,
    BestOf,
    BoundaryAttack,
    HopSkipJump,
    LowPassPGD,
    RandomLowPass,
    check_labels,
)
from dcn_plugin.errors import ImageRangeError, LabelError, ModelOutputError, SpecError
from dcn_plugin.support.arguments import check_count

__all__ = [
    "DcnAttack",
    "DcnBestOf",
    "DcnBoundaryAttack",
    "DcnCW",
    "DcnHopSkipJump",
    "DcnLowPassPGD",
    "DcnMIFGSM",
    "DcnPGD",
    "DcnRandomLowPass",
    "DcnTIFGSM",
]

Floats = npt.NDArray[np.float32]


class DcnAttack(EvasionAttack):  # type: ignore[misc]  # ART ships no types
    """Base of the bridges; a subclass only names its ``attack_type``.

    A bridge is called like the attack it stands for, with the estimator in front, and its options are ART's
    ``attack_params``. After :meth:`generate`, ``result`` holds what ART's array cannot say: which images were
    misclassified, fooled or without a start, the distances, and the queries of each image.

    Args:
        estimator: for a decision-based attack any ART classifier, whatever the shape of its samples; otherwise a
            ``PyTorchClassifier``.
        *args: as in the attack's own class.
        batch_size: images at a time; it decides on memory and speed, not on the result.
        verbose: show a progress bar.
        **settings: as in the attack's own class.

    Raises:
        EstimatorError: ART's; the estimator is not of that kind.
        SpecError: a setting is out of range.
        TypeError: a setting is unknown.
    """

    attack_type: ClassVar[type[Attack]]
    result: AttackResult | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        signature = inspect.signature(cls.attack_type)
        cls.attack_params = [*EvasionAttack.attack_params, *cls._settings(), "batch_size", "verbose"]
        cls._estimator_requirements = (
            (BaseEstimator, ClassifierMixin) if cls.attack_type.decision_based else (PyTorchClassifier,)
        )
        head = inspect.Parameter("estimator", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        tail = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in (("batch_size", 256), ("verbose", False))
        ]
        cls.__signature__ = signature.replace(parameters=[head, *signature.parameters.values(), *tail])

    def __init__(
        self, estimator: Any, *args: Any, batch_size: int = 256, verbose: bool = False, **settings: Any
    ) -> None:
        super().__init__(estimator=estimator)
        bound = inspect.signature(self.attack_type).bind(*args, **settings)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            setattr(self, name, value)
        self.batch_size, self.verbose = batch_size, verbose
        self._check_params()

    @classmethod
    def from_attack(cls, estimator: Any, attack: Attack, *, batch_size: int = 256, verbose: bool = False) -> Self:
        """Bridge an existing attack, e.g. ``BoundaryAttack.paper()``.

        Raises:
            SpecError: ``attack`` is not of this bridge's ``attack_type``.
        """
        if not isinstance(attack, cls.attack_type):
            raise SpecError(f"{cls.__name__} cannot run this attack.", attack, f"a {cls.attack_type.__name__}")
        settings = {name: getattr(attack, name) for name in cls._settings()}
        return cls(estimator, batch_size=batch_size, verbose=verbose, **settings)

    @classmethod
    def _settings(cls) -> list[str]:
        # Every attack keeps its options as attributes of the same names.
        return list(inspect.signature(cls.attack_type).parameters)

    @property
    def attack(self) -> Attack:
        """The attack with its current settings."""
        return self.attack_type(**{name: getattr(self, name) for name in self._settings()})

    @property
    def targeted(self) -> bool:
        """False: there is no targeted form."""
        return False

    def _check_params(self) -> None:
        super()._check_params()
        _ = self.attack  # checks the settings
        self.batch_size = check_count(self.batch_size, "batch size")

    def generate(self, x: Any, y: Any = None, *, x_adv_init: Any = None) -> Floats:
        """Attack every sample.

        Args:
            x: (N, ...) within the estimator's ``clip_values``, or within [0, 1] if it has none. Values are scaled to
                [0, 1] and back. An eps is in units of ``x``, so it needs a range of length 1.
            y: the true classes, numbers (N,) or one-hot (N, classes); by default what the estimator predicts.
            x_adv_init: like ``x``: where each sample starts. For decision-based attacks only.

        Returns:
            float32, of the shape of ``x``. A sample without a success comes back as its attack leaves it: clean, or,
            from one in an eps-ball, from the last step.

        Raises:
            ImageRangeError: ``x`` leaves its range.
            LabelError: ``y`` are no labels, or out of range.
            ModelOutputError: the estimator does not predict finite numbers (N, classes).
            SpecError: the estimator's range, or its preprocessing, is none that this attack can work with.
        """
        attack, estimator = self.attack, self.estimator
        samples = np.asarray(x, dtype=np.float32)
        if samples.ndim < 2 or not len(samples):
            raise ImageRangeError("There are no samples to attack.", samples.shape, "(N, ...) with N >= 1")
        scale = _Scale(estimator.clip_values, samples.shape[1:])
        if attack.eps is not None and not np.all(scale.span == 1):
            raise SpecError(
                "An eps needs samples in a range of length 1.",
                tuple(np.asarray(bound).tolist() for bound in estimator.clip_values),
                "clip_values=(0, 1)",
                "scale the images to [0, 1] and let the classifier's preprocessing=(mean, std) scale them back",
            )
        images = scale.to_images(samples, "x")
        labels = torch.from_numpy(_labels(estimator, samples, y, batch_size=self.batch_size))
        starts: dict[str, Any] = {}
        if x_adv_init is not None:
            if not attack.decision_based:
                raise SpecError(f"{type(self).__name__} starts from the clean sample.", "x_adv_init", "None")
            start = np.asarray(x_adv_init, dtype=np.float32)
            if start.shape != samples.shape:
                raise ImageRangeError("The starts do not fit the samples.", start.shape, str(samples.shape))
            starts["starting_points"] = scale.to_images(start, "x_adv_init")
        model = _Decisions(estimator, scale) if attack.decision_based else _Logits(estimator, scale)
        device = torch.device("cpu") if attack.decision_based else estimator.device
        self.result = attack(
            model, images.to(device), labels.to(device), batch_size=self.batch_size, progress=self.verbose, **starts
        )
        adversarial = self.result.images.cpu()
        result = scale.to_samples(adversarial)
        # A sample that has not moved comes back bit for bit, whatever the scaling rounds.
        still = (adversarial == images).flatten(1).all(dim=1).numpy()
        result[still] = samples[still]
        return result


class DcnPGD(DcnAttack):
    """:class:`dcn_plugin.attacks.PGD` on an ART estimator."""

    attack_type = PGD


class DcnCW(DcnAttack):
    """:class:`dcn_plugin.attacks.CW` on an ART estimator."""

    attack_type = CW


class DcnBoundaryAttack(DcnAttack):
    """:class:`dcn_plugin.attacks.BoundaryAttack` on an ART estimator."""

    attack_type = BoundaryAttack


class DcnHopSkipJump(DcnAttack):
    """:class:`dcn_plugin.attacks.HopSkipJump` on an ART estimator."""

    attack_type = HopSkipJump


class DcnLowPassPGD(DcnAttack):
    """:class:`dcn_plugin.attacks.LowPassPGD` on an ART estimator."""

    attack_type = LowPassPGD


class DcnMIFGSM(DcnAttack):
    """:class:`dcn_plugin.attacks.MIFGSM` on an ART estimator."""

    attack_type = MIFGSM


class DcnTIFGSM(DcnAttack):
    """:class:`dcn_plugin.attacks.TIFGSM` on an ART estimator."""

    attack_type = TIFGSM


class DcnRandomLowPass(DcnAttack):
    """:class:`dcn_plugin.attacks.RandomLowPass` on an ART estimator."""

    attack_type = RandomLowPass


class DcnBestOf(DcnAttack):
    """:class:`dcn_plugin.attacks.BestOf` on an ART estimator."""

    attack_type = BestOf


class _Scale:
    """Samples of any shape within ``clip_values`` <-> images (N, C, H, W) within [0, 1]."""

    def __init__(self, clip_values: Any, shape: tuple[int, ...]) -> None:
        self.named = "[0, 1]" if clip_values is None else "clip_values"
        low, high = (0, 1) if clip_values is None else clip_values
        self.low, self.high = (self._bound(bound, shape) for bound in (low, high))
        self.span = np.asarray(self.high - self.low)  # NumPy makes a scalar of two 0-d arrays
        self.shape = shape
        # Attacks take images; other samples are seen as images of one row.
        self.image = shape if len(shape) == 3 else (1, 1, math.prod(shape))

    @staticmethod
    def _bound(bound: Any, shape: tuple[int, ...]) -> Floats:
        array = np.asarray(bound, dtype=np.float32)
        return array.reshape(shape) if array.size == math.prod(shape) else array

    def to_images(self, samples: Floats, name: str) -> Tensor:
        if not (np.all(samples >= self.low) and np.all(samples <= self.high)):  # written so that NaN fails too
            raise ImageRangeError(
                f"{name} leaves the range of the estimator.",
                (float(samples.min()), float(samples.max())),
                self.named,
                "scale the samples, or give the classifier the clip_values=(min, max) of its data",
            )
        return torch.from_numpy((samples - self.low) / self.span).reshape(-1, *self.image)

    def to_samples(self, images: Tensor) -> Floats:
        samples: Floats = images.numpy().reshape(-1, *self.shape) * self.span + self.low
        return np.clip(samples, self.low, self.high)  # rounding may have left the range


class _Logits(nn.Module):
    """A PyTorch classifier with its preprocessing, as a module that gradients flow through."""

    span: Tensor
    low: Tensor

    def __init__(self, estimator: PyTorchClassifier, scale: _Scale) -> None:
        super().__init__()
        if not estimator.all_framework_preprocessing:
            raise SpecError(
                "A gradient attack cannot see through this estimator's preprocessing.",
                [type(step).__name__ for step in estimator.preprocessing_operations],
                "preprocessing in PyTorch, or none",
                "use the PyTorch form of the defence, or a decision-based attack",
            )
        # ART's wrapper of the model: registered, so that its mode is restored as well.
        self.model = estimator._model
        # In a function: the user's model is registered inside ART's wrapper already.
        self._find_user_model: Callable[[], nn.Module] = lambda: estimator.model
        self._ask = estimator._predict_framework
        self._shape = scale.shape
        # As the classifier's own predict: a DefectiveClassifier rounds what its preprocessing made, and not before.
        self.input_dtype = torch.float32 if isinstance(estimator, DefectiveClassifier) else dtype_of(estimator.model)
        self.register_buffer("span", torch.from_numpy(scale.span).to(estimator.device), persistent=False)
        self.register_buffer("low", torch.from_numpy(scale.low).to(estimator.device), persistent=False)

    @property
    def asked_model(self) -> nn.Module:
        """The model of the user, for warnings that name it and its modules."""
        return self._find_user_model()

    def forward(self, images: Tensor) -> Tensor:
        samples = images.reshape(-1, *self._shape) * self.span + self.low
        logits: Tensor = self._ask(samples.to(self.input_dtype))[0]
        return logits


class _Decisions(nn.Module):
    """Any classifier as a module that returns the class of the largest prediction, int64 (N,)."""

    def __init__(self, estimator: Any, scale: _Scale) -> None:
        super().__init__()
        self._estimator, self._scale = estimator, scale

    def forward(self, images: Tensor) -> Tensor:
        samples = self._scale.to_samples(images.cpu())
        return torch.from_numpy(_classes(self._estimator, samples, batch_size=len(samples))).to(images.device)


def _classes(estimator: Any, samples: Floats, *, batch_size: int) -> npt.NDArray[np.int64]:
    scores = np.asarray(estimator.predict(samples, batch_size=batch_size))
    if scores.ndim != 2 or len(scores) != len(samples) or scores.shape[1] < 2 or not np.isfinite(scores).all():
        raise ModelOutputError(
            f"{type(estimator).__name__}.predict does not return one finite score a class.",
            (str(scores.dtype), scores.shape),
            f"finite numbers ({len(samples)}, classes) with two classes or more",
            "give a binary classifier two outputs",
        )
    classes: npt.NDArray[np.int64] = scores.argmax(axis=1)
    return classes


def _labels(estimator: Any, samples: Floats, y: Any, *, batch_size: int) -> npt.NDArray[np.int64]:
    if y is None:
        return _classes(estimator, samples, batch_size=batch_size)
    given = np.asarray(y)
    if given.ndim == 2:
        given = given[:, 0] if given.shape[1] == 1 else given.argmax(axis=1)
    if given.dtype.kind not in "iu":
        raise LabelError("The labels are no class numbers.", str(given.dtype), "integers (N,), or one-hot (N, classes)")
    check_labels(torch.from_numpy(given.astype(np.int64)), count=len(samples), num_classes=estimator.nb_classes)
    return given.astype(np.int64)

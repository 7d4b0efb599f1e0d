"""Making a network defective, as one of ART's transformer defences."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from art.defences.transformer.transformer import Transformer
from art.estimators.classification import PyTorchClassifier

from dcn_plugin.adapters._art_classifier import DefectiveClassifier
from dcn_plugin.errors import InputSizeError, LabelError, SpecError
from dcn_plugin.specs import MASK_OPTIONS, Mode, Sampling, mask_specs
from dcn_plugin.surgery import defectify
from dcn_plugin.surgery.blocks import BlocksArg
from dcn_plugin.surgery.placement import FilterFn

__all__ = ["DefectiveTransformer"]


class DefectiveTransformer(Transformer):  # type: ignore[misc]  # ART ships no types
    """Turn a PyTorch classifier into a defective one.

    ``transformer()`` gives a defective copy with the weights the classifier has; it needs training with its masks. Do
    that with the copy's own ``fit``, or with :meth:`fit` here, after which ``transformer()`` gives the trained copy.
    The paper trains from fresh weights: hand over a classifier that is not trained yet, or its
    ``clone_for_refitting()``.

    Args:
        classifier: ART's ``PyTorchClassifier``; it is left as it is. Masks are made for its ``input_shape``.
        blocks: which blocks to mask. All options mean what they mean to :func:`dcn_plugin.defectify`.
        p: keep probability, or block -> keep probability.
        mode: "neuron", "channel", "shared", "hole" or "nm".
        sampling: "bernoulli" or "exact".
        seed: of the masks.
        span: size of a hole, or of a group of channels.
        filter_fn: ``(module, name) -> bool``, asked for every chosen site.

    Raises:
        SpecError: an option is not allowed, or the classifier is none that can be rebuilt.
        InputSizeError: the model takes its channels last.
    """

    params = ["blocks", "p", "mode", "sampling", "seed", "span", "filter_fn"]  # noqa: RUF012  (ART's own attribute)

    def __init__(
        self,
        classifier: PyTorchClassifier,
        blocks: BlocksArg = "bottom",
        p: float | Mapping[str | int, float] = 0.3,
        mode: Mode = "neuron",
        *,
        sampling: Sampling = "bernoulli",
        seed: int = 0,
        span: int | None = None,
        filter_fn: FilterFn | None = None,
    ) -> None:
        super().__init__(classifier=classifier)
        self.blocks, self.p, self.mode = blocks, p, mode
        self.sampling, self.seed, self.span, self.filter_fn = sampling, seed, span, filter_fn
        self._trained: DefectiveClassifier | None = None
        self._check_params()

    def __call__(
        self, x: npt.NDArray[Any] | None = None, transformed_classifier: PyTorchClassifier | None = None
    ) -> DefectiveClassifier:
        """Return a defective classifier.

        Args:
            x: ART's interface passes a training set here. Masks do not depend on data, so it may be left out.
            transformed_classifier: to make a defective copy of; by default the transformer's own, trained if
                :meth:`fit` has been called.

        Raises:
            As :func:`dcn_plugin.defectify` does.
        """
        if transformed_classifier is not None:
            return self._transform(transformed_classifier)
        return self._transform(self.classifier) if self._trained is None else self._trained

    def fit(self, x: npt.NDArray[Any], y: npt.NDArray[Any] | None = None, **kwargs: Any) -> None:
        """Train a defective copy of the transformer's classifier with ART's own ``fit``.

        Args:
            x: training images.
            y: their labels, numbers or one-hot.
            **kwargs: of ``PyTorchClassifier.fit``: ``batch_size``, ``nb_epochs``, ...

        Raises:
            LabelError: ``y`` is absent.
            ValueError: ART's, if the classifier has no optimiser.
        """
        if y is None:
            raise LabelError("A defective network is trained on labels.", None, "y, one label an image")
        trained = self._transform(self.classifier)
        trained.fit(np.asarray(x), np.asarray(y), **kwargs)
        self._trained, self._is_fitted = trained, True

    def set_params(self, **kwargs: Any) -> None:
        """Set options; what :meth:`fit` has trained under the old ones is forgotten.

        Raises:
            SpecError: an option is unknown or not allowed.
        """
        if unknown := set(kwargs) - set(self.params):
            raise SpecError("This transformer has no such option.", sorted(unknown), ", ".join(self.params))
        super().set_params(**kwargs)
        self._trained, self._is_fitted = None, False

    def _check_params(self) -> None:
        mask_specs(**{name: getattr(self, name) for name in self.params if name in MASK_OPTIONS})
        _check_classifier(self.classifier)

    def _transform(self, classifier: PyTorchClassifier) -> DefectiveClassifier:
        _check_classifier(classifier)
        # Copied together, the optimiser holds the copied parameters; surgery leaves those as they are.
        model, optimizer = copy.deepcopy((classifier.model, classifier.optimizer))
        options = {name: getattr(self, name) for name in self.params}
        defectify(model, **options, input_size=classifier.input_shape, inplace=True)
        if optimizer is not None:
            optimizer.state.clear()  # momentum of another network
        return DefectiveClassifier(**{**classifier.get_params(), "model": model, "optimizer": optimizer})


def _check_classifier(classifier: PyTorchClassifier) -> None:
    # A subclass may do more than classify (smoothing, say), and a rebuilt one would silently do less.
    if type(classifier) not in (PyTorchClassifier, DefectiveClassifier):
        raise SpecError(
            "This classifier cannot be rebuilt around a defective network.",
            type(classifier).__name__,
            "ART's PyTorchClassifier itself, or DefectiveClassifier",
            "make the module defective with dcn_plugin.defectify, and build your classifier around that",
        )
    if not classifier.channels_first:
        raise InputSizeError(
            "The size of the masks cannot be read off a classifier with its channels last.",
            classifier.input_shape,
            "channels_first=True with input_shape (C, H, W)",
            "make the module defective with dcn_plugin.defectify(model, input_size=(C, H, W)) first",
        )

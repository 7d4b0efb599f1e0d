"""Several source models as one: the mean of their logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcn_plugin.attacks.checks import check_logits
from dcn_plugin.attacks.dtypes import as_input, model_dtype, walking_dtype
from dcn_plugin.errors import ModelOutputError, SpecError
from dcn_plugin.support.arguments import is_number, plain

__all__ = ["EnsembleSource"]


class EnsembleSource(nn.Module):
    """The (weighted) mean of the logits of several models, for any attack of any library.

    Each model takes images in [0, 1] and normalises them itself; wrap it in :class:`dcn_plugin.Normalized` where it
    does not. Each is asked in the dtype of its parameters; logits in half precision are averaged in float32. Modes,
    devices and gradients are those of the models: ``eval()``, ``to()`` and ``requires_grad_()`` reach each of them, and
    the gradient with respect to the images runs through all.

    Args:
        models: at least one; a model may stand there twice.
        weights: one number >= 0 a model, not all 0; they are divided by their sum. By default equal.

    Shape:
        - Input: (N, C, H, W) in [0, 1]
        - Output: logits (N, classes)

    Raises:
        SpecError: no model, or weights that are none.
        ModelOutputError: in ``forward``, a model that does not return logits, or not as many as the first.

    Example:
        >>> source = EnsembleSource([net, plain])
        >>> PGD(eps=8 / 255)(source, images, labels).images.shape
        torch.Size([8, 1, 16, 16])

    Source: paper, appendix A.4, table 8 (four of five nets at a time); the mean of logits is our reading of "fusing".
    """

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
            raise SpecError("An ensemble needs models.", type(models).__name__, "a list of nn.Module instances")
        if not models:
            raise SpecError("An ensemble needs models.", list(models), "at least one nn.Module")
        for model in models:
            if not isinstance(model, nn.Module):
                raise SpecError("An ensemble is made of modules.", type(model).__name__, "nn.Module instances")
        given = [1.0] * len(models) if weights is None else [plain(weight) for weight in weights]
        real = len(given) == len(models) and all(is_number(w) and math.isfinite(w) and w >= 0 for w in given)
        if not real or not sum(given) > 0:
            raise SpecError(
                "The weights do not fit the ensemble.", given, f"{len(models)} numbers >= 0 with a sum above 0"
            )
        numbers = [float(weight) for weight in given]
        self.models = nn.ModuleList(models)
        self.weights = tuple(number / sum(numbers) for number in numbers)

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits (N, classes)."""
        outputs = [
            check_logits(model(as_input(images, model_dtype(model))), count=len(images), finite=False)
            for model in self.models
        ]
        widths = [logits.shape[1] for logits in outputs]
        if len(set(widths)) > 1:
            raise ModelOutputError(
                "The models of an ensemble do not know the same classes.",
                [f"{type(m).__name__}: {width}" for m, width in zip(self.models, widths, strict=True)],
                "the same number of logits from each",
                "build each model with the same num_classes",
            )
        terms = [w * logits.to(walking_dtype(logits.dtype)) for w, logits in zip(self.weights, outputs, strict=True)]
        return torch.stack(terms).sum(dim=0)

    def extra_repr(self) -> str:
        """Show the weights in full: they are in no state dict, and other weights are another source."""
        return f"weights={self.weights}"

"""A network, defective or not, as ART's PyTorch classifier."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from dcn_plugin.errors import InputSizeError, MaskLostError
from dcn_plugin.support.model_state import dummy_image
from dcn_plugin.surgery import defect_spec, expected_sites, is_defective
from dcn_plugin.surgery.inspection import verify

__all__ = ["DefectiveClassifier", "dtype_of"]

_NUMPY = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


class DefectiveClassifier(PyTorchClassifier):  # type: ignore[misc]  # ART ships no types
    """ART's ``PyTorchClassifier`` with the same constructor; the masks are the model's own.

    A plain model is welcome too. A defective one is run once, to see that its masks act on images of
    ``input_shape``. What differs from ART's class:

    - Images are cast to the model's dtype wherever they enter. ART's BoundaryAttack and HopSkipJump compute in
      float64 under NumPy 2, and a float32 network refuses that. NumPy has no bfloat16: images for such a network are
      float32 until they reach it, and so are its answers.
    - ``clone_for_refitting`` takes the optimiser along whatever its class (ART's fails on AdamW) and whatever its
      parameter groups. Masks stay, weights are reset; modules without ``reset_parameters`` keep theirs, as in ART.
    - Pickles and deep copies hold everything themselves. ART's write the weights to a file in its data folder at
      every copy, and cannot be read without it.
    - ``set_params`` accepts what ``get_params`` returns, the model included.

    Args:
        model: images -> logits.
        loss: of logits and labels. From here on names, order and meaning are those of ``PyTorchClassifier``.
        input_shape: of one image; (C, H, W), or (H, W, C) for a model that takes its channels last.
        nb_classes: number of logits.
        optimizer: needed to fit.
        use_amp: mixed precision, with NVIDIA's apex.
        opt_level: of apex.
        loss_scale: of apex.
        channels_first: whether images are (C, H, W), not (H, W, C).
        clip_values: smallest and largest value of a pixel; (0, 1) for the images of this package.
        preprocessing_defences: ART's defences that change images.
        postprocessing_defences: ART's defences that change outputs.
        preprocessing: (mean, std) of the images, or a preprocessor of ART's.
        device_type: "gpu" or "cpu".

    Raises:
        InputSizeError: the masks are not made for images of ``input_shape``.
        MaskLostError: a mask is gone or no longer acts.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        input_shape: tuple[int, ...],
        nb_classes: int,
        optimizer: torch.optim.Optimizer | None = None,
        use_amp: bool = False,
        opt_level: str = "O1",
        loss_scale: float | str | None = "dynamic",
        channels_first: bool = True,
        clip_values: Any = None,
        preprocessing_defences: Any = None,
        postprocessing_defences: Any = None,
        preprocessing: Any = (0.0, 1.0),
        device_type: str = "gpu",
    ) -> None:
        _check_masks(model, input_shape)
        super().__init__(
            model=model,
            loss=loss,
            input_shape=input_shape,
            nb_classes=nb_classes,
            optimizer=optimizer,
            use_amp=use_amp,
            opt_level=opt_level,
            loss_scale=loss_scale,
            channels_first=channels_first,
            clip_values=clip_values,
            preprocessing_defences=preprocessing_defences,
            postprocessing_defences=postprocessing_defences,
            preprocessing=preprocessing,
            device_type=device_type,
        )

    def clone_for_refitting(self) -> Self:
        """Copy the classifier with fresh weights and the same masks; the optimiser starts anew."""
        clone = copy.deepcopy(self)
        clone.reset()
        if clone._optimizer is not None:
            clone._optimizer.state.clear()
        return clone

    def set_params(self, **kwargs: Any) -> None:
        """Set parameters of the estimator, the model included.

        Raises:
            InputSizeError, MaskLostError: as the constructor does.
        """
        if "model" in kwargs or "input_shape" in kwargs:
            wanted: dict[str, Any] = {"model": self.model, "input_shape": self.input_shape, **kwargs}
            _check_masks(wanted["model"], wanted["input_shape"])
        if "model" in kwargs:
            # ART would put the bare model where its wrapper belongs.
            kwargs["model"] = self._make_model_wrapper(kwargs["model"]).to(self._device)
            self._layer_names = kwargs["model"].get_layers
        super().set_params(**kwargs)

    def _make_model_wrapper(self, model: nn.Module) -> nn.Module:
        wrapper: nn.Module = super()._make_model_wrapper(model)
        wrapper.register_forward_pre_hook(_to_bfloat16)
        wrapper.register_forward_hook(_from_bfloat16)
        return wrapper

    def _apply_preprocessing(self, x: Any, y: Any, fit: bool = False, no_grad: bool = True) -> tuple[Any, Any]:
        # The one place that everything passes on its way into the model.
        x, y = super()._apply_preprocessing(x, y, fit=fit, no_grad=no_grad)
        return _cast(x, dtype_of(self.model)), y

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # A class made inside a function cannot be pickled; the device is that of the machine.
        for key in ("_model_wrapper", "_model", "_device"):
            del state[key]
        # The optimiser is in the state as well, so that both are copied with the same parameters.
        return {**state, "inner_model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        model = state.pop("inner_model")
        self.__dict__.update(state)
        on_cpu = self._device_type == "cpu" or not torch.cuda.is_available()
        self._device = torch.device("cpu" if on_cpu else f"cuda:{torch.cuda.current_device()}")
        self._model = self._make_model_wrapper(model).to(self._device)
        if self._optimizer is not None:  # moves its state to where the parameters are now
            self._optimizer.load_state_dict(self._optimizer.state_dict())


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype a model computes in: that of its first floating-point parameter or buffer; float32 if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def _to_bfloat16(wrapper: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What ART carries as float32 enters a bfloat16 network as such."""
    if dtype_of(wrapper) != torch.bfloat16:
        return None
    return tuple(arg.bfloat16() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)


def _from_bfloat16(wrapper: nn.Module, args: tuple[Any, ...], outputs: list[Any]) -> list[Any] | None:
    """NumPy has no bfloat16."""
    if dtype_of(wrapper) != torch.bfloat16:
        return None
    return [out.float() if isinstance(out, Tensor) and out.dtype == torch.bfloat16 else out for out in outputs]


def _check_masks(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Run a defective model on an image of ``input_shape``; a plain one is left alone."""
    expected = expected_sites(model)
    if not expected and not is_defective(model):
        return
    shape = tuple(input_shape)
    masks_are_for = defect_spec(model).input_size if expected else None
    try:
        if len(shape) != 3:
            raise ValueError("not the shape of an image")
        verify(model, dummy_image(model, shape))
    except (RuntimeError, ValueError) as error:
        if isinstance(error, MaskLostError) or shape == masks_are_for:
            raise
        raise InputSizeError(
            f"The masks of this {type(model).__name__} do not fit the classifier's input_shape.",
            shape,
            "the size of its masks" if masks_are_for is None else f"{masks_are_for}, the size of its masks",
            "pass input_shape of the images the model was made defective for, or make it defective again",
        ) from error


def _cast(values: Any, dtype: torch.dtype) -> Any:
    if isinstance(values, Tensor):
        return values.to(dtype)
    # NumPy has no bfloat16: float32 is the closest that ART can carry.
    return values.astype(_NUMPY.get(dtype, np.float32), copy=False)

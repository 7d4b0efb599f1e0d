"""Our attacks as ``torchattacks.attack.Attack``: one bridge, and a class for each attack that torchattacks lacks."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchattacks.attack import Attack as TheirAttack

from dcn_plugin import attacks as ours
from dcn_plugin.attacks.arguments import check_types
from dcn_plugin.errors import LabelError, SpecError
from dcn_plugin.support.model_state import eval_mode

__all__ = ["CW", "BoundaryAttack", "DcnAttack", "HopSkipJump"]

#: Images that were normalised and brought back leave [0, 1] by this much; in half precision by the dtype's rounding.
ROUNDING = 1e-5


class DcnAttack(TheirAttack):  # type: ignore[misc]  # torchattacks ships no types
    r"""An attack of ours, called as one of torchattacks': ``atk(images, labels)``.

    ``set_normalization_used``, ``save`` and ``MultiAttack`` work as with any other. Unlike theirs, the model's modes
    and the state of the normalisation come back after an exception too, images outside [0, 1] are an error, and the
    global generators are not touched: the same call gives the same images. The whole batch is attacked at once.

    Args:
        model: images -> logits; for a decision-based attack also labels.
        attack: with its settings, e.g. ``dcn_plugin.attacks.BoundaryAttack.paper()``.

    Shape:
        - images: :math:`(N, C, H, W)` within [0, 1], or normalised if ``set_normalization_used`` was called.
        - labels: :math:`(N)`, integers, :math:`0 \leq y_i <` number of classes.
        - output: :math:`(N, C, H, W)`, in the scale of the input.

    Examples::

        >>> atk = DcnAttack(model, dcn_plugin.attacks.BoundaryAttack.paper())
        >>> adv_images = atk(images, labels)
        >>> atk.result.queries, atk.result.median_distance
    """

    def __init__(self, model: nn.Module, attack: ours.Attack) -> None:
        super().__init__(attack.name, model)
        self.supported_mode = ["default"]
        self._ours = attack
        self._result: ours.AttackResult | None = None
        self._rounding = ROUNDING

    @property
    def result(self) -> ours.AttackResult | None:
        """What became of each image of the last call: queries, distances, flags; its images are within [0, 1]."""
        return self._result

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the adversarial images (N, C, H, W), within [0, 1].

        Args:
            images: (N, C, H, W) within [0, 1].
            labels: integers (N,).
        """
        if labels is None:
            raise LabelError(f"{self.attack} needs the true labels.", labels, "integers (N,)")
        images = images.to(self.device)
        if self.normalization_used is not None:
            inside = images.clamp(0, 1)
            images = inside if (inside - images).abs().max() <= self._rounding else images
        result = self._ours(_Logits(self), images, labels, batch_size=max(1, len(images)))
        self._result = result
        return result.images

    def __call__(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Attack a batch; see the class."""
        check_types(inputs)
        self._rounding = max(ROUNDING, torch.finfo(inputs.dtype).eps) if inputs.is_floating_point() else ROUNDING
        applied = self._normalization_applied
        with eval_mode(self.model):
            try:
                adversarial: Tensor = super().__call__(inputs, labels, *args, **kwargs)
            finally:
                self._set_normalization_applied(applied)
        return adversarial

    def get_logits(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Ask the model; torchattacks' own normalisation turns images in half precision into float32, this does not."""
        if self._normalization_applied is False:
            inputs = self.normalize(inputs).to(inputs.dtype)
        return self.model(inputs)

    def save(self, *args: Any, **kwargs: Any) -> Any:
        """Attack the batches of a loader and save them; arguments and result are torchattacks' own."""
        # It ends with model.train(), which thaws frozen batch norms.
        with eval_mode(self.model):
            return super().save(*args, **kwargs)

    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False, dropout_training: bool = False
    ) -> None:
        """Refuse training mode: a model that answers differently each time has no boundary to walk along.

        Raises:
            SpecError: a flag is True.
        """
        flags = (model_training, batchnorm_training, dropout_training)
        if any(flags):
            raise SpecError(f"{self.attack} attacks the model in eval mode.", flags, "False, False, False")

    def __repr__(self) -> str:
        """Show the settings of the attack and the two of torchattacks."""
        used = self.normalization_used is not None
        return f"{repr(self._ours)[:-1]}, attack_mode={self.attack_mode}, normalization_used={used})"


class _Logits(nn.Module):
    """The model as the attack must ask it: on images in [0, 1], normalised where torchattacks was told to."""

    def __init__(self, owner: DcnAttack) -> None:
        super().__init__()
        self.model = owner.model  # so that its modes and its parameters are found
        self._owner = owner

    @property
    def asked_model(self) -> nn.Module:
        """The model of the user, for warnings that name it and its modules."""
        user_model: nn.Module = self.model
        return user_model

    def forward(self, images: Tensor) -> Any:
        return self._owner.get_logits(images)


class _Named(DcnAttack):
    """A bridge that takes the options of one attack."""

    ours_type: ClassVar[type[ours.Attack]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # help() and inspect.signature() show the options that **settings hands on.
        model = inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="nn.Module")
        signature = inspect.signature(cls.ours_type)
        cls.__signature__ = signature.replace(parameters=[model, *signature.parameters.values()])

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__(model, self.ours_type(**settings))


class BoundaryAttack(_Named):
    r"""The Boundary attack (L2, decision-based); see :class:`dcn_plugin.attacks.BoundaryAttack`.

    Args:
        model (nn.Module): model to attack.
        **settings: as in that class.

    Shape:
        - images: :math:`(N, C, H, W)` within [0, 1], or normalised if ``set_normalization_used`` was called.
        - labels: :math:`(N)`, integers, :math:`0 \leq y_i <` number of classes.
        - output: :math:`(N, C, H, W)`, in the scale of the input.

    Examples::

        >>> attack = BoundaryAttack(model, max_queries=5000)
        >>> adv_images = attack(images, labels)

    """

    ours_type = ours.BoundaryAttack


class HopSkipJump(_Named):
    r"""HopSkipJump (L2 or Linf, decision-based); see :class:`dcn_plugin.attacks.HopSkipJump`.

    Args:
        model (nn.Module): model to attack.
        **settings: as in that class.

    Shape:
        - images: :math:`(N, C, H, W)` within [0, 1], or normalised if ``set_normalization_used`` was called.
        - labels: :math:`(N)`, integers, :math:`0 \leq y_i <` number of classes.
        - output: :math:`(N, C, H, W)`, in the scale of the input.

    Examples::

        >>> attack = HopSkipJump(model, max_queries=5000, norm="l2")
        >>> adv_images = attack(images, labels)

    """

    ours_type = ours.HopSkipJump


class CW(_Named):
    r"""Carlini and Wagner's attack (L2) with a search over c; see :class:`dcn_plugin.attacks.CW`.

    Args:
        model (nn.Module): model to attack.
        **settings: as in that class.

    Shape:
        - images: :math:`(N, C, H, W)` within [0, 1], or normalised if ``set_normalization_used`` was called.
        - labels: :math:`(N)`, integers, :math:`0 \leq y_i <` number of classes.
        - output: :math:`(N, C, H, W)`, in the scale of the input.

    Examples::

        >>> attack = CW(model, confidence=20.0)
        >>> adv_images = attack(images, labels)

    """

    ours_type = ours.CW

"""Arguments of the protocols, checked at the call; what is meant beyond doubt is taken as it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import cast, get_args

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.evaluate.records import Rounding
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.support.arguments import check_count, check_number

__all__ = [
    "check_attack",
    "check_attacks",
    "check_count",
    "check_counts",
    "check_images",
    "check_model",
    "check_models",
    "check_number",
    "check_numbers",
    "check_rounding",
    "check_store",
]

_NAMED = 'name -> model, e.g. {"standard": net}'


def check_model(model: object, *, name: str = "the model") -> nn.Module:
    """A model that can be measured.

    Raises:
        SpecError: it is a class, a checkpoint, or whatever else is no module.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise SpecError(
            f"{name} is a class, not a model.", model.__name__, "an nn.Module", f"call {model.__name__}(...)"
        )
    fix = "load the weights into a model" if isinstance(model, Mapping | str) else None
    if isinstance(getattr(model, "model", None), nn.Module):
        fix = "pass its .model; with a normalisation inside, see dcn_plugin.Normalized"
    raise SpecError(f"{name} is no model.", type(model).__name__, "an nn.Module: images in [0, 1] -> logits", fix)


def check_models(given: object, what: str) -> dict[str, nn.Module]:
    """Models with their names, at least one.

    Args:
        given: what the caller passed.
        what: they are, for the error: "target to measure".

    Raises:
        SpecError: there is none, they have no names, or one is no model.
    """
    if not isinstance(given, Mapping):
        fix = None
        if isinstance(given, nn.Module | list | tuple):
            fix = "give every model a name: records and reports know it by that"
        raise SpecError(f"The {what} has no name.", type(given).__name__, _NAMED, fix)
    if not given:
        raise SpecError(f"There is no {what}: nothing to measure.", dict(given), _NAMED)
    for name, model in given.items():
        if not isinstance(name, str) or not name:
            raise SpecError(f"The {what} has a name that is no text.", name, "a str that is not empty")
        check_model(model, name=f"{what.partition(' ')[0].capitalize()} {name!r}")
    return dict(given)


def check_attacks(given: object, what: str = "attack") -> list[Attack]:
    """Attacks, at least one; a single one is a list of one.

    Args:
        given: what the caller passed.
        what: they are, for the error.

    Raises:
        SpecError: there is none, or one is no attack.
    """
    attacks = list(given) if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else [given]
    if not attacks:
        raise SpecError(f"There is no {what}: nothing to measure.", attacks, "at least one")
    for attack in attacks:
        if not isinstance(attack, Attack):
            fix = None
            if isinstance(attack, type):
                fix = f"call {attack.__name__}(...)"
            elif type(attack).__module__.partition(".")[0] == "torchattacks":
                fix = f'dcn_plugin.adapters.torchattacks.TorchAttack("{type(attack).__name__}", ...)'
            raise SpecError("This is no attack.", attack, "an Attack of dcn_plugin.attacks, e.g. PGD(8 / 255)", fix)
    return cast(list[Attack], attacks)


def check_attack(given: object) -> Attack:
    """A single attack.

    Raises:
        SpecError: it is none, or several.
    """
    (attack, *more) = check_attacks(given)
    if more:
        raise SpecError("One attack at a time.", given, "a single Attack")
    return attack


def check_images(given: object) -> LabelledImages:
    """A set of labelled images.

    Raises:
        DataError: it is a tensor, an array, a data loader, or whatever else is none.
    """
    parts = ("name", "num_classes", "shape", "batches", "content_hash", "__len__")
    # content_hash reads every image: it is looked for, not asked.
    if not isinstance(given, type) and all(inspect.getattr_static(given, part, None) is not None for part in parts):
        return cast(LabelledImages, given)
    raise DataError(
        "These are no labelled images.",
        type(given).__name__,
        "an ImageSet, an ImageFolder, or another LabelledImages of dcn_plugin.data",
        'ImageSet(images, labels, num_classes, "name") for tensors; of a DataLoader, torch.cat its batches first',
    )


def check_numbers(given: object, what: str) -> list[float]:
    """Finite numbers; a single one is a list of one. See :func:`check_number`."""
    return [check_number(number, what) for number in _several(given)]


def check_counts(given: object, what: str, *, least: int = 1) -> list[int]:
    """Integers; a single one is a list of one. See :func:`check_count`."""
    return [check_count(number, what, least=least) for number in _several(given)]


def _several(given: object) -> list[object]:
    # Arrays and tensors without a dimension cannot be gone through.
    single = isinstance(given, str | Mapping) or getattr(given, "ndim", None) == 0
    return [given] if single or not isinstance(given, Iterable) else list(given)


def check_rounding(given: object) -> Rounding:
    """What a set of images may be rounded to.

    Raises:
        SpecError: it is nothing known.
    """
    if given not in get_args(Rounding):
        raise SpecError("Unknown rounding.", given, " or ".join(map(repr, get_args(Rounding))))
    return cast(Rounding, given)


def check_store(given: object) -> RunDirectory | None:
    """Where records are kept, or None.

    Raises:
        SpecError: it is a path.
    """
    if given is None or isinstance(given, RunDirectory):
        return given
    raise SpecError("The store is no run directory.", given, "a RunDirectory, or None", "RunDirectory(path)")

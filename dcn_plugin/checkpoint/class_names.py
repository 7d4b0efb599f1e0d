"""What the classes are called: label k of a data set and logit k of a network mean the same only if their names do.

A network gets the names of its classes from what it was trained on (:func:`dcn_plugin.training.train` notes them, and
the files of a run keep them), from the card of pretrained weights, or from you (:func:`name_classes`). Names that are
nothing but the numbers ("0", "1", ...) tell no more than the numbers, and are compared with nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence

import safetensors
from torch import nn

from dcn_plugin.errors import ClassesError, SpecError
from dcn_plugin.surgery.wrappers import network_in

__all__ = [
    "ClassNames",
    "check_class_names",
    "check_same_names",
    "class_names_in",
    "class_names_of",
    "name_classes",
    "telling",
]

ClassNames = tuple[str, ...]
"""Names of the classes in the order of their labels."""

# Entries of the metadata of a weight file, each a JSON object that may have "class_names": training's and checkpoint's.
_ENTRIES = ("training", "dcn_plugin.record")


def check_class_names(names: Iterable[str], *, count: int | None = None) -> ClassNames:
    """Check that class names are texts of which no two are equal.

    Args:
        names: in the order of the labels.
        count: how many there have to be; None: any number but 0.

    Raises:
        SpecError: they are not.
    """
    listed = None if isinstance(names, str) else tuple(names)
    if not listed or not all(isinstance(name, str) for name in listed):
        raise SpecError("The class names are not usable.", names, "texts in the order of the labels, at least one")
    twice = sorted({name for name in listed if listed.count(name) > 1}) if len(set(listed)) < len(listed) else []
    if twice:
        raise SpecError("Two classes have the same name.", twice[:5], "a name of its own for each class")
    if count is not None and len(listed) != count:
        raise SpecError("There are not as many class names as classes.", len(listed), f"{count} names")
    return listed


def class_names_of(model: nn.Module) -> ClassNames | None:
    """What the classes of a network are called, in the order of its logits; None where that is not known.

    Looked through are the wrappers of :mod:`dcn_plugin.surgery.wrappers` and compact networks.

    Example::

        train(net, ImageFolder("photos/train"))
        field = ImageFolder("photos/field", class_names=class_names_of(net))  # numbered as in training
    """
    names = getattr(_holder(model), "class_names", None)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None  # something of the user's own
    return tuple(names)


def name_classes(model: nn.Module, names: Iterable[str] | None) -> None:
    """Tell a network what its classes are called; evaluators then compare them with those of the images.

    The names are the attribute ``class_names`` of the network inside all wrappers. They go along when it is copied,
    made defective or saved by this package; a state dict alone does not hold them.

    Args:
        model: the network, wrapped or not.
        names: in the order of its logits; None: they are not known any more.

    Raises:
        SpecError: names that are no texts, or of which two are equal.
    """
    holder = _holder(model)
    if names is not None:
        holder.class_names = check_class_names(names)  # type: ignore[assignment]
    elif "class_names" in vars(holder):
        del holder.class_names


def class_names_in(path: str | os.PathLike[str]) -> ClassNames | None:
    """The class names that a weight file of this package tells; None where it tells none, or is no such file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        for entry in _ENTRIES:
            names = json.loads(metadata.get(entry, "{}")).get("class_names")
            if names is not None:
                return check_class_names(names)
    except (OSError, safetensors.SafetensorError, ValueError, AttributeError, TypeError):
        return None
    return None


def check_same_names(
    names: Sequence[str] | None, known: Sequence[str] | None, *, what: str, of: str, fix: str | None = None
) -> None:
    """Check that two things mean the same classes by the same numbers, as far as both tell names.

    Args:
        names: of ``what``, or None.
        known: of ``of``, or None.
        what: whose classes are looked at, e.g. "the images 'val'".
        of: what they are held against, e.g. "the network 'a'".
        fix: what to do; None: what fits.

    Raises:
        ClassesError: label k of the one is another class than label k of the other.
    """
    ours, theirs = telling(names), telling(known)
    if ours is None or theirs is None or ours == theirs:
        return
    number = {name: label for label, name in enumerate(theirs)}
    strange = [name for name in ours if name not in number]
    if strange:
        difference = {f"not among those of {of}": ", ".join(strange[:5])}
        advice = (
            f"use the names of {of}; if only the spelling differs, tell the network: "
            "dcn_plugin.checkpoint.name_classes(model, data.class_names), or MODEL,class_names=... on the command line"
        )
    else:
        moved = [(place, name) for place, name in enumerate(ours) if number[name] != place]
        difference = {name: f"{place} here, {number[name]} there" for place, name in moved[:3]}
        difference = difference or {"classes": f"{len(ours)} here, {len(theirs)} there"}
        advice = (
            f"open the images with class_names= of {of}: class_names_of(model) gives them, and "
            "folder:PATH,class_names=... takes a file of names, the training folder, or the network's file"
        )
    raise ClassesError(
        f"The classes of {what} are not numbered like those of {of}.",
        difference,
        f"{len(theirs)} classes in the order {', '.join(theirs[:5])}{' ...' if len(theirs) > 5 else ''}",
        fix or advice,
    )


def _holder(model: nn.Module) -> nn.Module:
    """The network inside the wrappers; of a compact network, the network it was made from."""
    inner = network_in(model)
    origin = getattr(inner, "origin", None)
    return network_in(origin) if isinstance(origin, nn.Module) else inner


def telling(names: Sequence[str] | None) -> ClassNames | None:
    """The names, if they tell more than the numbers of the classes do; None otherwise."""
    if names is None or all(name.isdecimal() and int(name) == label for label, name in enumerate(names)):
        return None
    return tuple(names)

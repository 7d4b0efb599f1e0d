"""The card of a pretrained network: what it is, what it was trained on, how well it does, and which file holds it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcn_plugin.checkpoint.train_config import TrainConfig
from dcn_plugin.errors import InputSizeError, PretrainedError, SpecError
from dcn_plugin.specs import DefectSpec, check_chw
from dcn_plugin.support.arguments import check_rules, is_count
from dcn_plugin.support.atomic_file import write_atomic

__all__ = ["CARD_SCHEMA", "PretrainedCard"]

CARD_SCHEMA = 1
"""Version of the card's fields. A change of meaning gets a new number."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# A bare name: a card from elsewhere must not reach into other folders.
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCHEMES = ("https://", "http://", "file://")
# With these a builder reads other weights than the card's, from files or from the network.
_NO_ARGS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "init_from")


@dataclass(frozen=True, kw_only=True)
class PretrainedCard:
    """A pretrained network, in data; written to and read from JSON.

    Args:
        name: by convention ``architecture.tag``, as in timm; letters, digits, "_", "." and "-".
        summary: one sentence that says what it is.
        architecture: a builder of :mod:`dcn_plugin.models` ("cifar_resnet", "cifar_vgg", ...), or a name of timm's
            registry, this package's included. A card cannot name other code.
        model_args: arguments of the builder, as JSON values.
        input_size: (C, H, W) of the images.
        num_classes: number of logits.
        normalization: "mean" and "std", one number a channel, that the network is wrapped with
            (:class:`dcn_plugin.Normalized`); None where it takes images in [0, 1] as they are.
        defects: how it was made defective, every mask included; None for a network without masks.
        data: name of the training images.
        data_hash: SHA-256 of their content (``ImageSet.content_hash``).
        training: how it was trained, its seed of order and augmentation included; None for a training that
            :func:`dcn_plugin.training.train` did not do.
        seed: of the run, from which ``command`` derives all others.
        test_data: name of the images it was tested on.
        test_data_hash: as ``data_hash``.
        n_test: number of them.
        n_correct: of these, the ones that the stored network classifies correctly.
        file: bare name of the weight file, ``*.safetensors``: as :func:`dcn_plugin.pretrained.save_half`,
            ``defective train`` or :func:`dcn_plugin.save_checkpoint` write it.
        sha256: of that file, in hex.
        url: where it is downloaded from (https, http, file); None where it lies beside the card.
        precision: number formats in the file, in words.
        license: of the weights, as an SPDX expression.
        command: that made it.
        versions: package -> version.
        hardware: what it was trained on.
        class_names: what the classes are called, in the order of the logits; None where the numbers say it, or it is
            not known.
        schema: version of these fields.

    Raises:
        PretrainedError: a field is not usable.
    """

    name: str
    summary: str
    architecture: str
    model_args: Mapping[str, Any]
    input_size: tuple[int, int, int]
    num_classes: int
    normalization: Mapping[str, Sequence[float]] | None = None
    defects: DefectSpec | None = None
    data: str
    data_hash: str
    training: TrainConfig | None = None
    seed: int
    test_data: str
    test_data_hash: str
    n_test: int
    n_correct: int
    file: str
    sha256: str
    url: str | None = None
    precision: str
    license: str
    command: str
    versions: Mapping[str, Any]
    hardware: Mapping[str, Any]
    class_names: tuple[str, ...] | None = None
    schema: int = CARD_SCHEMA

    def __post_init__(self) -> None:
        if self.schema != CARD_SCHEMA:
            raise PretrainedError(
                f"The card of {self.name!r} follows a schema that this version does not know.",
                self.schema,
                str(CARD_SCHEMA),
                "use the version of dcn-plugin that wrote it",
            )
        what = f"The card of {self.name!r} is not usable: {{name}}."
        check_rules(what, vars(self), _rules(self), error=PretrainedError)
        # The same values as after a trip through JSON, so that equal cards are equal.
        for name in ("model_args", "normalization", "versions", "hardware"):
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name))))
        object.__setattr__(self, "input_size", check_chw(self.input_size))
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(self.class_names))

    @property
    def accuracy(self) -> float:
        """Share of the test images that the stored network classifies correctly."""
        return self.n_correct / self.n_test

    def to_json(self) -> str:
        """Serialise to JSON text; :meth:`from_json` is the exact inverse."""
        raw = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        for name in ("defects", "training"):
            raw[name] = None if raw[name] is None else json.loads(raw[name].to_json())
        if self.class_names is None:
            del raw["class_names"]  # a card without them reads in earlier versions too
        return json.dumps(raw, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PretrainedCard:
        """Read what :meth:`to_json` wrote.

        Raises:
            PretrainedError: it is no such text, or a field is missing, unknown or not usable.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            defects, training = raw.get("defects"), raw.get("training")
            raw["defects"] = None if defects is None else DefectSpec.from_json(json.dumps(defects))
            raw["training"] = None if training is None else TrainConfig.from_json(json.dumps(training))
            return cls(**raw)
        except PretrainedError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            reason = error.what if isinstance(error, SpecError) else error
            raise PretrainedError(
                f"This is no card of a pretrained network ({reason}).", text[:80], "what PretrainedCard.to_json() wrote"
            ) from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the card as a JSON file, atomically."""
        write_atomic(path, self.to_json())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PretrainedCard:
        """Read a card from a JSON file.

        Raises:
            PretrainedError: it holds no usable card.
            OSError: it cannot be read.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise PretrainedError("This file is no card of a pretrained network.", os.fspath(path)) from error


def _rules(card: PretrainedCard) -> dict[str, tuple[bool, str]]:
    """Field -> whether it is fine, and what is allowed."""
    text = {
        name: (_is_text(getattr(card, name)), "text")
        for name in ("summary", "architecture", "data", "test_data", "precision", "license", "command")
    }
    hashes = {
        name: (_matches(_SHA256, getattr(card, name)), "64 lower-case hex digits")
        for name in ("data_hash", "test_data_hash", "sha256")
    }
    counts = {
        name: (is_count(getattr(card, name), least=least), f"an int >= {least}")
        for name, least in (("num_classes", 1), ("seed", 0), ("n_test", 1))
    }
    return {
        "name": (_matches(_NAME, card.name), "letters, digits, '_', '.' and '-'"),
        "file": (_matches(_FILE, card.file), "a bare file name that ends in .safetensors"),
        **text,
        **hashes,
        **counts,
        "n_correct": (
            counts["n_test"][0] and is_count(card.n_correct) and card.n_correct <= card.n_test,
            "an int from 0 to n_test",
        ),
        "url": (
            card.url is None or (isinstance(card.url, str) and card.url.startswith(_SCHEMES)),
            f"None, or text that begins with {', '.join(_SCHEMES)}",
        ),
        "input_size": (_is_size(card.input_size), "(C, H, W)"),
        "model_args": (
            _is_table(card.model_args) and not any(key in _NO_ARGS for key in card.model_args),
            f"JSON values by name, without {', '.join(_NO_ARGS)}",
        ),
        "normalization": (_is_normalization(card.normalization), "None, or lists 'mean' and 'std'"),
        "class_names": (
            card.class_names is None or _are_names(card.class_names, card.num_classes),
            "None, or num_classes different texts",
        ),
        "versions": (_is_table(card.versions), "JSON values by name"),
        "hardware": (_is_table(card.hardware), "JSON values by name"),
    }


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_size(value: object) -> bool:
    try:
        check_chw(value)
    except InputSizeError:
        return False
    return True


def _are_names(value: object, count: int) -> bool:
    texts = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    return texts and isinstance(value, list | tuple) and len(set(value)) == len(value) == count


def _is_table(value: object) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _is_normalization(value: object) -> bool:
    return value is None or (_is_table(value) and isinstance(value, Mapping) and value.keys() == {"mean", "std"})

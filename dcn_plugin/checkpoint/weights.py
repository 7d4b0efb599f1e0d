"""State dicts out of the files that people have, and into a network: whole, or an error that names what does not fit.

Read are files of :func:`dcn_plugin.save_checkpoint`, other safetensors, and what ``torch.save`` wrote, as long as it
holds tensors and plain values: nothing is ever unpickled that could run code.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dcn_plugin.checkpoint.class_names import class_names_in, class_names_of, name_classes
from dcn_plugin.checkpoint.network import load_checkpoint, save_checkpoint
from dcn_plugin.checkpoint.sealed_file import Pathish, is_archive, read_archive
from dcn_plugin.errors import CheckpointError, DcnError
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.surgery import is_defective, masks_of
from dcn_plugin.surgery.wrappers import bare, bare_name

__all__ = ["fitting", "load_network", "load_weights", "read_weights", "save_network"]

# Where training programs keep the state dict; an average comes first, as in timm.
_NESTS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "net", "network", "weights"),
)
_WRAPPERS = ("module", "model")  # DataParallel and DistributedDataParallel; Normalized and Lightning


def load_weights(network: nn.Module, path: Pathish, *, masks: bool = True) -> None:
    """Load the weights of a file into a network, in place, and what its classes are called where the file tells it.

    Args:
        network: of the same architecture, wrapped or not. One that is defective takes masks too: all of them or none.
        path: see :func:`read_weights`.
        masks: False: leave those of the file out, e.g. to train on with others.

    Raises:
        CheckpointError: the file cannot be read, or does not fit; a network that it does not fit is unchanged.
        MaskStateError: it holds some of the masks, or masks of another shape.
        OSError: it cannot be read.
    """
    with bare(network) as inner:
        expected = {key: value for key, value in inner.state_dict().items() if isinstance(value, Tensor)}
        state = read_weights(path, names=expected)
        if not masks:
            # Of a plain network's other buffers none is unexpected, and none of a defective one's is a mask.
            ours = {f"{name}.mask" for name in masks_of(inner)} if is_defective(inner) else set()
            state = {
                key: value
                for key, value in state.items()
                if key not in ours and (value.dtype != torch.bool or key in expected)
            }
        with fitting(type(inner).__name__, path):
            _check_shapes(state, expected)
            inner.load_state_dict(state)
    if (names := class_names_in(path)) is not None:
        name_classes(network, names)


def save_network(network: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str]) -> None:
    """Save a trained network: a defective one with :func:`dcn_plugin.save_checkpoint`, a plain one as safetensors.

    Both hold the network inside a :class:`dcn_plugin.Normalized`, not the wrapper. Equal content gives equal bytes.

    Args:
        network: on any device.
        path: of the file; it is replaced as a whole.
        metadata: text to text.
    """
    if is_defective(network):
        save_checkpoint(network, path, metadata=metadata)
        return
    with bare(network) as inner:
        state_dict = inner.state_dict()
    names = class_names_of(network)
    entry = dict(metadata) if names is None else {**metadata, "class_names": list(names)}
    # Copies, for safetensors refuses tensors that share memory.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in state_dict.items()}
    # One entry, for safetensors writes several in a new order each time.
    write_atomic(path, safetensors.torch.save(state, {"training": json.dumps(entry, sort_keys=True)}))


def load_network(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load what :func:`save_network` wrote, or weights from elsewhere, in place.

    Args:
        network: of the same architecture, wrapped or not; one that is to be defective already is.
        path: of the file; see :func:`dcn_plugin.checkpoint.read_weights` for the kinds of files. Nothing in it is
            unpickled that could run code.

    Raises:
        CheckpointError: the file is damaged or does not fit.
        OSError: it cannot be read.
    """
    if is_defective(network) and is_archive(path):
        load_checkpoint(path, network, inplace=True)
    else:
        load_weights(network, path)


def read_weights(path: Pathish, *, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Read a state dict, on the CPU.

    Nests (``{"state_dict": ...}``, ``{"model": ...}``; of several the averaged weights, as timm does it) are opened,
    and the levels that wrappers add to names (``module.``, ``_orig_mod.``, ``model.``) taken away.

    Args:
        path: a file of ``save_checkpoint``, another safetensors file, or one of ``torch.save``.
        names: state-dict keys of the network that it is for, where it is known; they say which levels are a wrapper's.

    Raises:
        CheckpointError: it is no such file, or holds no state dict.
        OSError: it cannot be read.
    """
    state = _tensors(path, read_archive(path)[0] if is_archive(path) else _read(path))
    return dict(_renamed(state, None if names is None else set(names)))


@contextlib.contextmanager
def fitting(name: str, path: Pathish | None = None) -> Iterator[None]:
    """Add the model's name to torch's error about weights that do not fit.

    Raises:
        CheckpointError: they do not.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DcnError) or "state_dict" not in str(error):
            raise
        reasons = [line.strip().rstrip(".") for line in str(error).splitlines()]
        raise CheckpointError(
            f"The weights{'' if path is None else f' in {os.fspath(path)}'} do not fit {name}: "
            f"{'; '.join(reasons[1:4]) or reasons[0]}.",
            f"{max(len(reasons) - 1, 1)} complaints of torch",
            "the weights of this architecture, built with the same options",
            "create the model with the options that the weights were trained with, such as num_classes",
        ) from error


def _read(path: Pathish) -> Any:
    with open(path, "rb") as file:
        start = file.read(2)
    try:
        if start != b"PK" and start[:1] != b"\x80":  # neither a zip archive nor a pickle: torch writes nothing else
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options of timm's training script
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{os.fspath(path)} holds Python objects beside its tensors, and they are not unpickled: that would run "
            "whatever code the file names.",
            _classes(path),
            "tensors, numbers and text alone",
            "where you trust it, open it in a process of its own and save "
            "torch.save(model.state_dict(), 'weights.pth')",
        ) from error
    except Exception as error:  # whatever a stranger's bytes set off, it is the file that is wrong
        raise CheckpointError(
            f"{os.fspath(path)} is no file of weights ({(str(error) or type(error).__name__).splitlines()[0]}).",
            f"{os.path.getsize(path)} bytes",
            "safetensors, or what torch.save(model.state_dict(), path) writes",
            "save or download it again",
        ) from error


def _classes(path: Pathish) -> str:
    """Names of the classes in a file of torch.save that cannot be loaded safely."""
    try:
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(os.fspath(path)))[:3])
    except Exception:  # it is only for the message, and a stranger's file may set off anything
        return "classes or functions"


def _tensors(path: Pathish, content: Any) -> dict[str, Tensor]:
    """The state dict in a file's content, taken out of nested dicts."""
    while isinstance(content, Mapping):
        nest = next((key for key in _NESTS if isinstance(content.get(key), Mapping)), None)
        if nest is None:
            break
        content = content[nest]
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise CheckpointError(
            f"{os.fspath(path)} holds no state dict.",
            list(map(str, content))[:5] if isinstance(content, Mapping) else type(content).__name__,
            f"name -> tensor, or such a dict under {', '.join(map(repr, _NESTS))}",
            "save model.state_dict()",
        )
    return state


def _renamed(state: Mapping[str, Tensor], names: set[str] | None) -> Mapping[str, Tensor]:
    """The state dict with as many levels of wrappers taken away as ``names`` lack; all that are plain without them."""
    forms = [state, {bare_name(key): value for key, value in state.items()}]
    while len(levels := {key.partition(".")[0] for key in forms[-1] if key != "n_averaged"}) == 1:
        (level,) = levels
        if level not in _WRAPPERS:
            break
        # A weight average of torch counts its steps beside the network.
        forms.append({k.removeprefix(f"{level}."): v for k, v in forms[-1].items() if k != "n_averaged"})
    if names is None:
        return forms[-1]
    # Parallel wrappers around modules inside.
    forms.append({".".join(p for p in key.split(".") if p != "module"): value for key, value in forms[-1].items()})
    return max(forms, key=lambda form: len(form.keys() & names))  # the first of equals: as little as possible


def _check_shapes(state: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> None:
    """Raise torch's error about shapes before torch copies the entries that fit."""
    wrong = [
        f"size mismatch for {key}: {tuple(value.shape)} in the file, {tuple(entries[key].shape)} in the model"
        for key, value in state.items()
        if key in entries and entries[key].dtype != torch.bool and value.shape != entries[key].shape
    ]
    missing = sorted(key for key in entries.keys() - state.keys() if entries[key].dtype != torch.bool)
    unexpected = sorted(state.keys() - entries.keys())
    lines = [
        *([f"Missing key(s): {', '.join(missing[:3])}"] if missing else []),
        *([f"Unexpected key(s): {', '.join(unexpected[:3])}"] if unexpected else []),
        *wrong,
    ]
    if lines:
        raise RuntimeError("\n".join(["Error(s) in loading state_dict:", *lines]))

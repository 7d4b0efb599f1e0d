"""A state dict and text in one sealed file, read back whole or not at all.

The file is a safetensors file; its metadata holds a SHA-256 over everything else in it. The seal notices damage;
it proves nothing about who wrote the file. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from dcn_plugin.errors import CheckpointError
from dcn_plugin.support.atomic_file import write_atomic

__all__ = ["RESERVED", "Pathish", "is_archive", "read_archive", "ties", "write_archive"]

Pathish = str | os.PathLike[str]

RESERVED = "dcn_plugin"
"""How the metadata keys begin that belong to this package."""

_FORMAT = f"{RESERVED}.format"
_LAYOUT = f"{RESERVED}.layout"
_SEAL = f"{RESERVED}.sha256"
_VERSION = "1"
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_LENGTH = struct.Struct("<Q")  # a safetensors file starts with the length of its JSON header


def write_archive(path: Pathish, state: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write a state dict and text to ``path``, which holds either its old content or all of the new one.

    Equal content gives equal bytes. Boolean tensors are stored as packed bits, and tensors that are the same
    memory (tied weights) once.

    Args:
        path: of the file; its folder is made if need be.
        state: name -> tensor on any device.
        metadata: text to text, without the keys of this module.

    Raises:
        CheckpointError: an entry is no plain dense tensor, or of a dtype that safetensors does not know.
        OSError: the file cannot be written; what was there before stays.
    """
    tied = ties(_check_storable(state))
    stored = {name: tensor for name, tensor in state.items() if name not in tied}
    packed = {name: list(tensor.shape) for name, tensor in stored.items() if tensor.dtype == torch.bool}
    text = {
        "format": "pt",
        **metadata,
        _FORMAT: _VERSION,
        _LAYOUT: json.dumps({"packed": packed, "tied": tied}, sort_keys=True),
    }
    # A copy of each, because safetensors refuses views of one storage.
    tensors = {
        name: _pack(tensor)
        if name in packed
        else tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in stored.items()
    }
    try:
        blob = safetensors.torch.save(tensors, text)
    except (safetensors.SafetensorError, KeyError, RuntimeError, ValueError) as error:
        dtypes = sorted({str(tensor.dtype) for tensor in tensors.values()})
        raise CheckpointError(f"safetensors cannot store this state dict ({_said(error)}).", dtypes) from error
    header, data = _split(blob)
    header["__metadata__"][_SEAL] = _seal(header, data)
    # safetensors writes the metadata in a new order each time; sorted, equal content is equal bytes.
    head = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)  # the tensors stay aligned
    # realpath: through a link the file is replaced, not the link
    write_atomic(os.path.realpath(path), _LENGTH.pack(len(head)), head, data)


def read_archive(path: Pathish) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict (on the CPU) and the text that :func:`write_archive` wrote.

    Raises:
        CheckpointError: the file is no such file, is truncated or altered, or of another format.
        OSError: the file cannot be read.
    """
    blob = Path(path).read_bytes()
    try:
        header, data = _split(blob)
        metadata = header.get("__metadata__", {})
        ours = any(key.startswith(RESERVED) for key in metadata)
        state = {} if ours else safetensors.torch.load(blob)
    except Exception as error:  # whatever a stranger's bytes set off, it is the file that is wrong
        raise _broken(path, blob, _said(error)) from error
    if not ours:
        raise CheckpointError(
            f"{os.fspath(path)} is a safetensors file of plain weights; it holds no defective network.",
            sorted(state)[:3],
            "a file that dcn_plugin.save_checkpoint wrote",
            "make the model defective and load these weights into it with "
            "model.load_state_dict(safetensors.torch.load_file(path))",
        )
    if metadata.get(_FORMAT) != _VERSION:
        raise CheckpointError(
            f"{os.fspath(path)} has a format that this version does not know.",
            metadata.get(_FORMAT),
            f"format {_VERSION}",
            "use the version of dcn-plugin that wrote it",
        )
    if metadata.get(_SEAL) != _seal(header, data):
        raise _broken(path, blob, "its content is not what it was sealed with")
    try:
        state = safetensors.torch.load(blob)
        layout = json.loads(metadata[_LAYOUT])
        state |= {name: _unpack(state[name], shape) for name, shape in layout["packed"].items()}
        state |= {name: state[first] for name, first in layout["tied"].items()}
    except Exception as error:
        raise _broken(path, blob, _said(error)) from error
    return state, {key: value for key, value in metadata.items() if key not in (_FORMAT, _LAYOUT, _SEAL, "format")}


def is_archive(path: Pathish) -> bool:
    """Whether the file says that :func:`write_archive` wrote it; what is in it may still be damaged.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(_LENGTH.size)
        length = min(_LENGTH.unpack(start)[0], _MAX_HEADER) if len(start) == _LENGTH.size else 0
        return f'"{_SEAL}"'.encode() in file.read(length)


def ties(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Entry -> the earlier entry that is the same memory, seen in the same way."""
    first: dict[object, str] = {}
    tied = {}
    for name, tensor in state.items():
        view = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(view, name) != name:
            tied[name] = first[view]
    return tied


def _check_storable(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    for name, value in state.items():
        if type(value) is not Tensor or value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(
                f"The state dict entry {name!r} cannot be stored.",
                f"{type(value).__name__} on {value.device}" if isinstance(value, Tensor) else type(value).__name__,
                "plain dense tensors that have content",
                "gather sharded tensors, dequantise, leave the meta device, or drop that entry before saving",
            )
    return state


def _pack(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(bits.detach().cpu().reshape(-1).numpy(), bitorder="little"))


def _unpack(packed: Tensor, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != ((count + 7) // 8,):
        raise ValueError(f"{tuple(packed.shape)} {packed.dtype} are not the packed bits of {shape}")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count, bitorder="little").view(np.bool_)).view(shape)


def _split(blob: bytes) -> tuple[dict[str, Any], memoryview]:
    if len(blob) < _LENGTH.size:
        raise ValueError("it is too short to have a header")
    (length,) = _LENGTH.unpack_from(blob)
    if length > len(blob) - _LENGTH.size:
        raise ValueError(f"its header should have {length} bytes")
    header = json.loads(blob[_LENGTH.size : _LENGTH.size + length])
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is no table of tensors")
    return header, memoryview(blob)[_LENGTH.size + length :]


def _seal(header: Mapping[str, Any], data: memoryview) -> str:
    rest = {key: value for key, value in header["__metadata__"].items() if key != _SEAL}
    digest = hashlib.sha256(json.dumps({**header, "__metadata__": rest}, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()


def _broken(path: Pathish, blob: bytes, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{os.fspath(path)} is damaged or no checkpoint: {reason}.",
        f"{len(blob)} bytes",
        "an unaltered file that dcn_plugin.save_checkpoint wrote",
        "copy or download it again, or save the model again",
    )


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(".: ")

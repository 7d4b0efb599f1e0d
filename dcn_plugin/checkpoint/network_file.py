"""A network in a file, with masks or without: the weights, and what its classes are called."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import safetensors.torch
from torch import nn

from dcn_plugin.checkpoint.class_names import class_names_of
from dcn_plugin.checkpoint.network import load_checkpoint, save_checkpoint
from dcn_plugin.checkpoint.sealed_file import is_archive
from dcn_plugin.checkpoint.weights import load_weights
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.surgery import is_defective
from dcn_plugin.surgery.wrappers import bare

__all__ = ["load_network", "save_network"]


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

"""Weights in half the bytes: matrices and kernels in float16, vectors as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dcn_plugin.checkpoint import load_checkpoint
from dcn_plugin.checkpoint.sealed_file import is_archive, read_archive
from dcn_plugin.checkpoint.weights import load_network, save_network
from dcn_plugin.errors import CheckpointError
from dcn_plugin.support.model_state import copy_of
from dcn_plugin.surgery.wrappers import bare

__all__ = ["load_half", "save_half"]


def save_half(network: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Save a network with float16 weights: about half the size.

    Kernels and matrices become float16. Biases, the norms' scales and their running statistics stay float32: they are
    a few bytes, and a running variance may leave float16's range. Masks are stored as packed bits, as in every
    checkpoint of a defective network. Equal content gives equal bytes.

    Args:
        network: float32; it is not changed.
        path: of the file, by convention ``*.safetensors``; it is replaced as a whole.
        metadata: entries of your own, text to text.

    Raises:
        CheckpointError: a weight has no finite float16 value, or the network cannot be stored.
        OSError: the file cannot be written.
    """
    small = copy_of(network)
    for key, tensor in small.state_dict(keep_vars=True).items():
        if tensor.dtype == torch.float32 and tensor.ndim >= 2:
            half = tensor.detach().half()
            if not half.isfinite().all():
                raise CheckpointError(
                    f"The weight {key!r} cannot be stored as float16.",
                    f"largest {float(tensor.detach().abs().max()):g}",
                    f"finite values up to {torch.finfo(torch.float16).max:g}",
                    "store this network with dcn_plugin.training.save_network, which keeps its dtypes",
                )
            tensor.data = half
    save_network(small, path, metadata=metadata or {})


def load_half(path: str | os.PathLike[str], network: nn.Module) -> nn.Module:
    """Load what :func:`save_half` wrote, or any file of ``defective train``, as float32.

    Args:
        path: of the file. Nothing in it is unpickled.
        network: the same architecture, without masks; a defective file brings its own.

    Returns:
        A float32 copy with the weights of the file, and its masks.

    Raises:
        CheckpointError: the file is damaged or does not fit.
        OSError: it cannot be read.
    """
    loaded = copy_of(network)
    if not is_archive(path):
        load_network(loaded, path)
        return loaded.float()
    with bare(loaded) as inner:
        _take_dtypes(inner, read_archive(path)[0])
    return load_checkpoint(path, loaded).float()


def _take_dtypes(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every tensor the number format it has in ``state``: ``load_checkpoint`` wants equal ones."""
    for key, tensor in network.state_dict(keep_vars=True).items():
        if key in state:
            tensor.data = tensor.detach().to(state[key].dtype)

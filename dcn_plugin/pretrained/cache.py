"""Weight files from elsewhere: downloaded once, kept in a folder, and never used unless their SHA-256 is right."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
from pathlib import Path

import torch.hub

from dcn_plugin.errors import CheckpointError, PretrainedError
from dcn_plugin.pretrained.card import PretrainedCard

__all__ = ["cache_path", "find_weights", "sha256_of"]

_log = logging.getLogger(__name__)


def cache_path(card: PretrainedCard, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the cache keeps a card's file: ``NAME-HASH.safetensors``, the first eight digits of its hash.

    Args:
        card: names the file.
        cache_dir: the folder; by default ``checkpoints/dcn_plugin`` in :func:`torch.hub.get_dir`, which
            ``TORCH_HOME`` moves, as it does for torch's and timm's own files.
    """
    folder = Path(torch.hub.get_dir(), "checkpoints", "dcn_plugin") if cache_dir is None else Path(cache_dir)
    file = Path(card.file)
    return folder.expanduser().absolute() / f"{file.stem}-{card.sha256[:8]}{file.suffix}"


def find_weights(
    card: PretrainedCard,
    *,
    folder: Path | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Path:
    """A card's weight file, with the right SHA-256: beside the card, in the cache, or downloaded into it.

    Args:
        card: says which file.
        folder: where the card lies.
        cache_dir: see :func:`cache_path`.
        progress: show a progress bar of the download.

    Raises:
        PretrainedError: the file is nowhere, or cannot be downloaded; the error says where to put it by hand.
        CheckpointError: what lies beside the card, or was downloaded, is another file than the card describes.
    """
    beside = None if folder is None else folder / card.file
    if beside is not None and beside.is_file():
        if (digest := sha256_of(beside)) != card.sha256:
            raise _wrong_content(card, str(beside), digest, "install the package, or copy the file, again")
        return beside
    if card.url is None:
        raise PretrainedError(
            f"The weights of {card.name} are not there.",
            str(beside or card.file),
            f"a file with SHA-256 {card.sha256}",
            f"put {card.file} beside its card, or give the card a url",
        )
    path = cache_path(card, cache_dir)
    if path.is_file():
        if sha256_of(path) == card.sha256:
            return path
        _log.warning("%s is damaged: its SHA-256 is not that of its card. It is downloaded again.", path)
    return _download(card, card.url, path, progress=progress)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(card: PretrainedCard, url: str, path: Path, *, progress: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Writes beside its place and renames, once the hash is right.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=card.sha256, progress=progress)
    except RuntimeError as error:  # torch's word for another hash
        raise _wrong_content(card, url, str(error), "tell whoever publishes it, or correct the card") from error
    except (OSError, http.client.HTTPException) as error:
        raise PretrainedError(
            f"The weights of {card.name} could not be downloaded ({type(error).__name__}: {error}).",
            url,
            f"a file with SHA-256 {card.sha256}",
            f"where there is no network, download it elsewhere and put it at {path}",
        ) from error
    return path


def _wrong_content(card: PretrainedCard, place: str, digest: str, fix: str) -> CheckpointError:
    return CheckpointError(
        f"{place} is not the file that the card of {card.name} describes.", digest, f"SHA-256 {card.sha256}", fix
    )

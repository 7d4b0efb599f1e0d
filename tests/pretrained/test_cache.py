from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_plugin.errors import CheckpointError, PretrainedError
from dcn_plugin.pretrained import PretrainedCard, cache
from dcn_plugin.pretrained.cache import cache_path, find_weights, sha256_of
from tests.pretrained.toy_cards import toy_card


@pytest.fixture
def published(tmp_path: Path) -> PretrainedCard:
    """A card whose file lies behind a URL, which needs no network."""
    server = tmp_path / "server"
    server.mkdir()
    card = toy_card(server)
    return dataclasses.replace(card, url=(server / card.file).as_uri())


def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that are downloaded from now on."""
    seen: list[str] = []
    real = torch.hub.download_url_to_file

    def counted(url: str, *args: Any, **options: Any) -> None:
        seen.append(url)
        real(url, *args, **options)

    monkeypatch.setattr(torch.hub, "download_url_to_file", counted)
    return seen


def test_a_file_is_downloaded_once(published: PretrainedCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = downloads(monkeypatch)
    path = find_weights(published, cache_dir=tmp_path / "cache")
    assert sha256_of(path) == published.sha256
    assert find_weights(published, cache_dir=tmp_path / "cache") == path
    assert seen == [published.url]
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [f"toy-{published.sha256[:8]}.safetensors"]


def test_the_cache_is_torchs_and_moves_with_torch_home(
    published: PretrainedCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    expected = tmp_path / "home" / "hub" / "checkpoints" / "dcn_plugin" / f"toy-{published.sha256[:8]}.safetensors"
    assert cache_path(published) == expected
    assert find_weights(published) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_path(published, "~/mine").parent == tmp_path / "mine"


@pytest.mark.parametrize("content", [b"", b"half of it"], ids=["empty", "truncated"])
def test_a_damaged_file_in_the_cache_is_downloaded_again(
    published: PretrainedCard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: bytes,
) -> None:
    path = cache_path(published, tmp_path)
    path.write_bytes(content)
    seen = downloads(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert find_weights(published, cache_dir=tmp_path) == path
    assert sha256_of(path) == published.sha256
    assert seen == [published.url]
    assert "is damaged" in caplog.text


def test_a_download_of_another_content_is_refused_and_not_kept(published: PretrainedCard, tmp_path: Path) -> None:
    other = dataclasses.replace(published, sha256="0" * 64)
    with pytest.raises(CheckpointError, match="not the file that the card") as caught:
        find_weights(other, cache_dir=tmp_path / "cache")
    assert published.sha256 in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_network_the_error_says_what_to_put_where(published: PretrainedCard, tmp_path: Path) -> None:
    gone = dataclasses.replace(published, url=(tmp_path / "nowhere.safetensors").as_uri())
    with pytest.raises(PretrainedError, match="could not be downloaded") as caught:
        find_weights(gone, cache_dir=tmp_path / "cache")
    path = cache_path(gone, tmp_path / "cache")
    for needed in (gone.url, str(path), gone.sha256):
        assert str(needed) in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())
    # What the error asks for helps.
    path.write_bytes((tmp_path / "server" / "toy.safetensors").read_bytes())
    assert find_weights(gone, cache_dir=tmp_path / "cache") == path


def test_a_wrong_file_put_there_by_hand_is_not_used(published: PretrainedCard, tmp_path: Path) -> None:
    gone = dataclasses.replace(published, url=(tmp_path / "nowhere.safetensors").as_uri())
    cache_path(gone, tmp_path).write_bytes(b"something else")
    with pytest.raises(PretrainedError, match="could not be downloaded"):
        find_weights(gone, cache_dir=tmp_path)


def test_a_file_beside_the_card_comes_first_and_has_to_be_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = toy_card(tmp_path, url="https://example.invalid/toy.safetensors")
    seen = downloads(monkeypatch)
    assert find_weights(card, folder=tmp_path) == tmp_path / "toy.safetensors"
    (tmp_path / "toy.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="is not the file"):
        find_weights(card, folder=tmp_path)
    assert seen == []


def test_a_card_with_neither_file_nor_url_says_what_is_missing(tmp_path: Path) -> None:
    card = toy_card(tmp_path)
    (tmp_path / "toy.safetensors").unlink()
    with pytest.raises(PretrainedError, match=r"are not there.*toy\.safetensors"):
        find_weights(card, folder=tmp_path)


def test_the_hash_is_sha_256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea")
    assert cache.sha256_of(tmp_path / "abc").endswith("f20015ad")

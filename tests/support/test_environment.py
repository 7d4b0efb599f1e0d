from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dcn_plugin.evaluate import code_hash, hardware, package_versions
from dcn_plugin.support import environment


def test_versions_and_machine_are_those_of_this_process() -> None:
    assert package_versions()["python"] == platform.python_version()
    assert package_versions()["torch"].startswith(torch.__version__.partition("+")[0])
    assert hardware()["threads"] == torch.get_num_threads()
    assert hardware()["device"] == "cpu"
    assert hardware()["instructions"] == torch.backends.cpu.get_cpu_capability()


def test_asking_for_the_machine_does_not_touch_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched() -> None:
        raise AssertionError("CUDA was initialised")

    monkeypatch.setattr(torch.cuda, "_lazy_init", touched)
    hardware()
    hardware(torch.device("cpu"))


def test_the_code_has_one_hash_in_hex() -> None:
    assert len(bytes.fromhex(code_hash())) == 32
    assert code_hash() == code_hash()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of one file a folder, in place of this one."""
    root = Path(environment.__file__).resolve().parents[1]
    for folder in ("", *(child.name for child in root.iterdir() if (child / "__init__.py").is_file())):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "file.py").write_text("old")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "support" / "environment.py"))
    code_hash.cache_clear()
    yield tmp_path
    code_hash.cache_clear()


def changed(package: Path, folder: str, *wings: str) -> bool:
    """Whether another word in a folder's file makes another hash."""
    before = code_hash(*wings)
    (package / folder / "file.py").write_text("new")
    code_hash.cache_clear()
    return code_hash(*wings) != before


@pytest.mark.parametrize("folder", ["cli", "experiments", "pretrained", "report"])
def test_a_word_in_code_that_shows_and_chooses_keeps_what_was_computed(folder: str, package: Path) -> None:
    assert not changed(package, folder)


def test_a_word_in_any_other_code_makes_another_hash(package: Path) -> None:
    folders = ["", *(child.name for child in package.iterdir() if child.is_dir())]
    computing = [folder for folder in folders if folder not in environment.NOT_HASHED]
    assert {"", "attacks", "data", "engine", "evaluate", "models", "support", "surgery", "training"} <= set(computing)
    assert all(changed(package, folder) for folder in computing)


def test_a_folder_that_is_named_counts_too(package: Path) -> None:
    assert changed(package, "experiments", "experiments")
    assert not changed(package, "cli", "experiments")

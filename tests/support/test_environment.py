from __future__ import annotations

import platform

import pytest
import torch

from dcn_plugin.evaluate import code_hash, hardware, package_versions


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

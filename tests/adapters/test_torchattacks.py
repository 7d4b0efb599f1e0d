"""The module itself: what it does where torchattacks is absent."""

from __future__ import annotations

import importlib
import sys

import pytest

from dcn_plugin.errors import MissingExtraError


def test_without_torchattacks_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    monkeypatch.delitem(sys.modules, "dcn_plugin.adapters.torchattacks")
    with pytest.raises(MissingExtraError, match=r'pip install "dcn-plugin\[attacks\]"'):
        importlib.import_module("dcn_plugin.adapters.torchattacks")

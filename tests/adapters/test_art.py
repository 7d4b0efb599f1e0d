"""The module itself: what it offers, and what importing it does, with ART and without."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest

import dcn_plugin.adapters
import dcn_plugin.attacks
from dcn_plugin.adapters import art as adapter
from dcn_plugin.errors import MissingExtraError


def test_the_folder_of_the_adapters_imports_nothing() -> None:
    tree = ast.parse(Path(dcn_plugin.adapters.__file__).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) and len(tree.body) == 1


def test_without_art_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "art.estimators.classification", None)
    monkeypatch.delitem(sys.modules, "dcn_plugin.adapters.art")
    with pytest.raises(MissingExtraError, match=r'pip install "dcn-plugin\[art\]"'):
        importlib.import_module("dcn_plugin.adapters.art")


def test_every_attack_of_the_package_has_its_bridge() -> None:
    public = [getattr(dcn_plugin.attacks, name) for name in dcn_plugin.attacks.__all__]
    classes = [c for c in public if inspect.isclass(c) and issubclass(c, dcn_plugin.attacks.Attack)]
    attacks = {c for c in classes if not inspect.isabstract(c)}
    bridges = [getattr(adapter, name) for name in adapter.__all__ if name.startswith("Dcn") and name != "DcnAttack"]
    assert attacks and {bridge.attack_type for bridge in bridges} == attacks
    assert len(bridges) == len(attacks)

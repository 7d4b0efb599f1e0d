"""Where the generators of the documentation read and write."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CACHE", "DOCS", "OUT", "PACKAGE", "PAGES", "RECIPES", "ROOT", "SNIPPETS"]

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "dcn_plugin"
RECIPES = ROOT / "recipes"

OUT = ROOT / "build" / "docs"
PAGES = OUT / "pages"  # pages and their files; hooks.py lays them over docs/
SNIPPETS = OUT / "snippets"  # text that pages of docs/ include with --8<--
CACHE = OUT / "cache"  # results of what takes long, see cache.py

"""recipes/art_evaluation: the script runs, and what is committed is what it made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.art_evaluation import evaluate

ROOT = Path(__file__).resolve().parents[2]
ATTACKS = ["FGM", "PGD", "AutoPGD", "Square", "DeepFool", "HopSkipJump", "Boundary"]


def check(record: dict[str, Any]) -> None:
    """Both networks under every attack, and counts that can be."""
    targets = {r["target"] for r in record["results"]}
    assert len(targets) == 2 and "standard" in targets
    expected = {("none", "clean"), ("transfer", "PGD"), ("adaptive", "PGD"), *(("direct", name) for name in ATTACKS)}
    found = [(r["threat"], r["attack"], r["target"]) for r in record["results"]]
    assert sorted(found) == sorted((*pair, target) for pair in expected for target in targets)
    for r in record["results"]:
        assert 0 <= r["n_correct"] <= r["n_total"] and r["n_total"] > 0
        low, high = r["accuracy_interval"]
        assert low - 1e-4 <= r["n_correct"] / r["n_total"] <= high + 1e-4
        if r["threat"] == "direct":  # images that an attack repairs do not count
            assert r["n_correct"] + r["n_fooled"] == r["n_clean_correct"]
        if r["threat"] in ("transfer", "adaptive"):
            assert r["n_defended"] <= r["n_counted"] <= min(r["n_source_fooled"], r["n_clean_correct"])
    assert {"art", "torch", "numpy", "dcn-plugin"} <= set(record["versions"])


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((evaluate.HERE / "record.json").read_text(encoding="utf-8"))


def test_the_record_is_complete_and_made_by_the_settings_of_today(record: dict[str, Any]) -> None:
    check(record)
    assert record["settings"] == json.loads(json.dumps(evaluate.asdict(evaluate.Settings())))


def test_the_page_is_the_one_that_the_record_gives(record: dict[str, Any]) -> None:
    assert (evaluate.HERE / "README.md").read_text(encoding="utf-8") == evaluate.markdown(record)


def test_the_record_shows_what_the_page_says(record: dict[str, Any]) -> None:
    rows = {(r["threat"], r["attack"], r["target"].split()[0]): r for r in record["results"]}
    for net in ("standard", "defective"):
        assert rows["none", "clean", net]["n_correct"] > 0.95 * rows["none", "clean", net]["n_total"]
        assert rows["direct", "PGD", net]["n_correct"] < 0.05 * rows["direct", "PGD", net]["n_total"]


@pytest.mark.slow
def test_the_quick_run_goes_through_every_attack(tmp_path: Path) -> None:
    # In a process of its own: the script seeds the global generators, and ART draws from them.
    command = [sys.executable, str(ROOT / "recipes/art_evaluation/evaluate.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    check(json.loads((tmp_path / "record.json").read_text(encoding="utf-8")))
    assert (tmp_path / "README.md").read_text(encoding="utf-8") in done.stdout

"""Recipes that run in a second or two."""

from __future__ import annotations

from pathlib import Path

TINY = """
reproduces = "Table 4"
title = "Tiny"
numbers = "table04_transfer_architectures"
only = ["ResNet-18 standard", "ResNet-18 0.3-Bottom"]
data = "cifar10"

[[measure]]
protocol = "transfer"
sources = ["resnet18"]
attacks = ["fgsm(16)"]
columns = "src_{source}"

[smoke]
train_images = 32
images = 16
"""
NUMBERS = Path(__file__).resolve().parents[2] / "recipes" / "paper_numbers"


def write_recipe(folder: Path, text: str = TINY, *, name: str = "tiny") -> Path:
    """Write a recipe file into a recipes folder of its own, beside the real paper numbers."""
    path = folder / name / "recipe.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if not (folder / "paper_numbers").exists():
        (folder / "paper_numbers").symlink_to(NUMBERS)
    return path

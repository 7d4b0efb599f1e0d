"""Adversarial images for people: a sheet of them side by side, and a page that runs a user study."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import ImageFiles, ImageSet
from dcn_plugin.evaluate import AdversarialSet, RunDirectory, predict
from dcn_plugin.experiments.recipe import Measure
from dcn_plugin.experiments.scales import Scale
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.randomness import raw_draws

__all__ = ["write_pictures"]

SIDE = 96  # pixels of an image on a sheet
_LEFT, _GAP, _TEXT = 150, 6, 16


def write_pictures(
    measure: Measure,
    targets: Mapping[str, nn.Module],
    attacks: Sequence[Attack],
    images: ImageSet | ImageFiles,
    store: RunDirectory,
    folder: Path,
    scale: Scale,
    *,
    seed: int,
) -> list[Path]:
    """Write what each attack makes of the same images on each network.

    Images that fool every network come first. For "images": one PNG an attack, a row a network, what it says below each
    image. For "user-study": a page that shows pairs, and their key in a file of its own.

    Args:
        measure: its protocol and its number of images.
        targets: label -> network; of a user study the first is the standard one.
        attacks: one sheet each.
        images: the clean ones.
        store: has the adversarial images.
        folder: where to.
        scale: of the run.
        seed: of the replicate, and of the sides on which the pairs stand.

    Returns:
        The files.
    """
    written = []
    for number, attack in enumerate(attacks):
        sets = {
            label: AdversarialSet(label, net, attack, images, measure.rounding, scale.batch_size, store).loaded
            for label, net in targets.items()
        }
        fooled = torch.stack([adversarial.fooled for adversarial in sets.values()]).sum(dim=0)
        chosen = fooled.argsort(descending=True, stable=True)[: measure.count]
        predictions = {label: predict(net, sets[label].images[chosen])[0].tolist() for label, net in targets.items()}
        names = _class_names(images)
        shown = {label: adversarial.images[chosen] for label, adversarial in sets.items()}
        stem = f"{attack.name.lower()}-{number}-seed{seed}"
        if measure.protocol == "images":
            truth = [names[label] for label in images.labels[chosen].tolist()]
            rows = [("clean", images.take(chosen), truth)]
            rows += [(label, shown[label], [names[c] for c in predictions[label]]) for label in targets]
            path = folder / f"{stem}.png"
            write_atomic(path, sheet_png(rows))
            written.append(path)
        else:
            written += _study(shown, predictions, names, folder, stem, seed)
    return written


def sheet_png(rows: Sequence[tuple[str, Tensor, Sequence[str]]]) -> bytes:
    """Draw a sheet as PNG.

    Args:
        rows: title, images (K, C, H, W) in [0, 1], and a text below each.
    """
    count = len(rows[0][1])
    width = _LEFT + count * (SIDE + _GAP)
    height = len(rows) * (SIDE + _TEXT + _GAP)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for line, (title, images, texts) in enumerate(rows):
        top = line * (SIDE + _TEXT + _GAP)
        draw.text((4, top + SIDE // 2), title, fill="black")
        for place, (image, text) in enumerate(zip(images, texts, strict=True)):
            left = _LEFT + place * (SIDE + _GAP)
            canvas.paste(_picture(image), (left, top))
            draw.text((left, top + SIDE + 1), text, fill="black")
    content = io.BytesIO()
    canvas.save(content, format="PNG")
    return content.getvalue()


def _picture(image: Tensor) -> Image.Image:
    pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def _class_names(images: ImageSet | ImageFiles) -> list[str]:
    return list(images.class_names or map(str, range(images.num_classes)))


def _study(
    shown: Mapping[str, Tensor],
    predictions: Mapping[str, Sequence[int]],
    names: Sequence[str],
    folder: Path,
    stem: str,
    seed: int,
) -> list[Path]:
    """A page of pairs (standard, defective), sides and order drawn, and the key that tells which is which."""
    standard, *others = shown
    pairs = [(place, other) for other in others for place in range(len(shown[other]))]
    draws = raw_draws("user study", seed, 0, 2 * len(pairs)).tolist()
    order = sorted(range(len(pairs)), key=lambda number: draws[number])
    blocks, key = [], []
    for question, number in enumerate(order, 1):
        place, other = pairs[number]
        sides = [standard, other] if draws[len(pairs) + number] % 2 else [other, standard]
        key.append({"question": question, "left": sides[0], "right": sides[1], "image": place})
        cells = "".join(
            f'<label><img src="{_inline(shown[label][place])}" alt="{side}"><br>'
            f'<input type="radio" name="q{question}" value="{side}" required> '
            f"{html.escape(names[predictions[label][place]])}</label>"
            for side, label in zip(("left", "right"), sides, strict=True)
        )
        blocks.append(f"<fieldset><legend>Pair {question}</legend>{cells}</fieldset>")
    page, answers = folder / f"{stem}.html", folder / f"{stem}-key.json"
    write_atomic(page, _PAGE.replace("@PAIRS@", "\n".join(blocks)).replace("@STEM@", stem))
    write_atomic(answers, json.dumps(key, indent=1) + "\n")
    return [page, answers]


def _inline(image: Tensor) -> str:
    content = io.BytesIO()
    _picture(image).save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Which image looks more like its label?</title>
<style>body{font:16px sans-serif;max-width:44rem;margin:2rem auto}fieldset{margin:1rem 0;display:flex;gap:2rem}
img{width:192px;image-rendering:pixelated}label{text-align:center}</style>
<h1>Which image looks more like its label?</h1>
<p>Below each image stands a label. In every pair, choose the image that looks more like the label below it.</p>
<form id="study">
@PAIRS@
<button>Save my answers</button></form>
<script>
document.getElementById("study").addEventListener("submit", event => {
  event.preventDefault();
  const answers = Object.fromEntries(new FormData(event.target));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(answers, null, 1)], {type: "application/json"}));
  link.download = "@STEM@-answers.json";
  link.click();
});
</script></html>
"""

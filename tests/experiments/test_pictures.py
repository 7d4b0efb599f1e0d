from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet
from dcn_plugin.evaluate import AdversarialSet, RunDirectory
from dcn_plugin.experiments.pictures import SIDE, sheet_png, write_pictures
from dcn_plugin.experiments.recipe import Measure
from dcn_plugin.experiments.scales import scale_for
from tests.toys import image_set, linear_model

NAMES = ("cat", "dog", "a <b> &")
ATTACKS = [PGD(0.3, steps=2), PGD(0.5, steps=2)]
SCALE = scale_for("smoke", "cifar10")
TARGETS: dict[str, nn.Module] = {
    "standard": linear_model(16).eval(),
    "p < 1": linear_model(16, seed=1).eval(),
    "p = 0.1": linear_model(16, seed=2).eval(),
}


def written(folder: Path, what: str, *, seed: int = 0, count: int = 3) -> dict[str, bytes]:
    plain = image_set(20)
    images = ImageSet(plain.images, plain.labels, 3, "noise", NAMES)
    files = write_pictures(
        Measure(protocol=what, columns="", rounding="none", count=count),
        TARGETS,
        ATTACKS,
        images,
        RunDirectory(folder / "store"),
        folder / "pictures",
        SCALE,
        seed=seed,
    )
    assert sorted(files) == sorted((folder / "pictures").iterdir())
    return {file.name: file.read_bytes() for file in files}


def test_an_attack_has_a_sheet_with_a_row_for_the_clean_images_and_for_every_network(tmp_path: Path) -> None:
    files = written(tmp_path, "images")
    assert set(files) == {"pgd-0-seed0.png", "pgd-1-seed0.png"}
    single = Image.open(io.BytesIO(sheet_png([("a", torch.zeros(3, 1, 4, 4), ["x"] * 3)])))
    for content in files.values():
        sheet = Image.open(io.BytesIO(content))
        assert (sheet.width, sheet.height) == (single.width, single.height * (1 + len(TARGETS)))


def test_a_sheet_shows_the_pixels_of_grey_and_of_colour_images() -> None:
    grey, colour = torch.full((1, 1, 2, 2), 0.2), torch.tensor([1.0, 0.0, 0.6]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    sheet = Image.open(io.BytesIO(sheet_png([("grey", grey, [""]), ("colour", colour, [""])])))
    left, line = sheet.width - SIDE // 2, sheet.height // 2
    assert sheet.getpixel((left, SIDE // 2)) == (51, 51, 51)
    assert sheet.getpixel((left, line + SIDE // 2)) == (255, 0, 153)


def test_images_that_fool_every_network_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[torch.Tensor] = []

    def keep(rows: list[tuple[str, torch.Tensor, list[str]]]) -> bytes:
        shown.append(rows[0][1])
        return b""

    monkeypatch.setattr("dcn_plugin.experiments.pictures.sheet_png", keep)
    written(tmp_path, "images", count=4)
    data = image_set(20)
    for attack, images in zip(ATTACKS, shown, strict=True):
        sets = [AdversarialSet("x", net, attack, data).loaded.fooled for net in TARGETS.values()]
        fooled = torch.stack(sets).sum(dim=0)
        places = [int((data.images == image).flatten(1).all(dim=1).nonzero()) for image in images]
        assert sorted(fooled[places].tolist(), reverse=True) == sorted(fooled.tolist(), reverse=True)[:4]
        assert places == sorted(range(20), key=lambda place: (-int(fooled[place]), place))[:4]


def test_a_user_study_pairs_the_standard_network_with_every_other_and_tells_which_is_which(tmp_path: Path) -> None:
    files = written(tmp_path, "user-study")
    assert set(files) == {f"pgd-{number}-seed0{end}" for number in (0, 1) for end in (".html", "-key.json")}
    page, key = files["pgd-0-seed0.html"].decode(), json.loads(files["pgd-0-seed0-key.json"])
    assert [answer["question"] for answer in key] == list(range(1, 7))
    pairs = [{answer["left"], answer["right"]} for answer in key]
    assert sorted(map(sorted, pairs)) == sorted([["p < 1", "standard"], ["p = 0.1", "standard"]] * 3, key=sorted)
    assert {(answer["image"], *sorted({answer["left"], answer["right"]})) for answer in key} == {
        (image, *sorted(("standard", other))) for image in range(3) for other in ("p < 1", "p = 0.1")
    }
    assert {answer["left"] == "standard" for answer in key} == {True, False}, "sides are drawn"
    assert page.count("<fieldset>") == 6 and page.count("data:image/png;base64,") == 12
    assert "@" not in re.sub(r"base64,[^\"]*", "", page), "nothing is left to fill in"
    assert "a &lt;b&gt; &amp;" in page and "a <b> &" not in page
    assert "standard" not in page, "the page does not tell which network it is"


def test_another_seed_draws_other_sides_and_the_same_seed_the_same_page(tmp_path: Path) -> None:
    first, again = (written(tmp_path / name, "user-study") for name in ("first", "again"))
    assert first == again
    other = written(tmp_path / "other", "user-study", seed=1)
    assert first["pgd-0-seed0-key.json"] != other["pgd-0-seed1-key.json"]

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from dcn_plugin.data.decode import EvalTransform, decode, image_size
from dcn_plugin.errors import DataError, SpecError
from tests.image_files import pixels, write_image


@pytest.mark.parametrize(("height", "width"), [(40, 30), (30, 40), (17, 63), (28, 28)])
@pytest.mark.parametrize(("size", "resize"), [(24, 28), (24, 24), (20, 28)])
def test_resizing_and_cutting_are_those_of_torchvision(
    tmp_path: Path, height: int, width: int, size: int, resize: int
) -> None:
    path = write_image(tmp_path / "image.png", pixels(height, width))
    theirs = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size), transforms.ToTensor()])
    with Image.open(path) as image:
        expected = theirs(image)
    assert torch.equal(decode(path, EvalTransform(size, resize)).float() / 255, expected)


def test_without_resize_the_longer_side_of_the_size_decides(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.png", pixels(40, 30))
    assert torch.equal(decode(path, EvalTransform((12, 20))), decode(path, EvalTransform((12, 20), 20)))
    exact = write_image(tmp_path / "exact.png", pixels(16, 16))
    assert torch.equal(decode(exact, EvalTransform(16)), decode(exact, EvalTransform()))


def test_bicubic_is_another_image_than_bilinear(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.png", pixels(40, 30))
    cubic = decode(path, EvalTransform(20, interpolation="bicubic"))
    assert not torch.equal(cubic, decode(path, EvalTransform(20)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_eight_bits_becomes_grey_or_colour(tmp_path: Path, mode: str, channels: Literal[1, 3]) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(pixels(6, 5)).convert(mode).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(6, 5, channels)
    assert np.array_equal(decode(path, EvalTransform(channels=channels)).permute(1, 2, 0).numpy(), expected)
    assert image_size(path) == (6, 5)


def test_more_than_eight_bits_are_refused_and_not_cut_off(tmp_path: Path) -> None:
    path = write_image(tmp_path / "deep.png", np.full((4, 4), 30000, dtype=np.uint16))
    with pytest.raises(DataError, match=r"deep\.png does not have 8 bits"):
        decode(path, EvalTransform())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(ending=st.sampled_from(["png", "jpg", "bmp", "webp", "tif", "ppm"]), cut=st.floats(0, 0.95))
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow may complain before it gives up
def test_a_file_that_breaks_off_is_named(tmp_path: Path, ending: str, cut: float) -> None:
    whole = write_image(tmp_path / f"whole.{ending}", pixels(16, 16)).read_bytes()
    broken = tmp_path / f"broken.{ending}"
    broken.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(DataError, match=rf"broken\.{ending} cannot be read"):
        decode(broken, EvalTransform())


def test_a_missing_file_and_a_text_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path in (text, tmp_path / "missing.png"):
        with pytest.raises(DataError, match=f"{path.name} cannot be read"):
            decode(path, EvalTransform())
        with pytest.raises(DataError, match=f"{path.name} cannot be read"):
            image_size(path)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": (4, 0)},
        {"size": (4, 4, 3)},
        {"size": 32, "resize": 31},
        {"size": (8, 32), "resize": 16},
        {"resize": 32},
        {"channels": 4},
        {"interpolation": "nearest"},
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        EvalTransform(**options)  # type: ignore[arg-type]

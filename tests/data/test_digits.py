from __future__ import annotations

import sys

import pytest
import torch

from dcn_plugin.data import Splits, load_digits
from dcn_plugin.errors import MissingExtraError, SpecError


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_digits()


def test_the_digits_are_the_1797_real_images_in_three_disjoint_parts(digits: Splits) -> None:
    from sklearn.datasets import load_digits as embedded

    original = load_digits(size=8)
    parts = torch.cat([part.images for part in (original.train, original.val, original.test)])
    ours = sorted(map(tuple, (parts.flatten(1) * 16).tolist()))
    assert ours == sorted(map(tuple, embedded().data.tolist()))
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1168, 179, 450)


def test_every_part_holds_every_class_in_like_shares(digits: Splits) -> None:
    whole = sum(part.labels.bincount(minlength=10) for part in (digits.train, digits.val, digits.test))
    for part, share in ((digits.train, 0.65), (digits.val, 0.10), (digits.test, 0.25)):
        assert ((part.labels.bincount(minlength=10) - share * whole).abs() <= 1).all()


def test_images_are_float32_nchw_within_zero_and_one(digits: Splits) -> None:
    assert digits.test.images.dtype == torch.float32
    assert digits.test.shape == (1, 16, 16)
    assert digits.test.images.min() == 0
    assert 0.9 < digits.test.images.max() <= 1


def test_the_split_and_the_pixels_are_the_same_for_ever(digits: Splits) -> None:
    assert digits.test.content_hash.startswith("ab692cc1")
    assert load_digits().test.content_hash == digits.test.content_hash


def test_another_seed_gives_another_split(digits: Splits) -> None:
    assert load_digits(seed=1).test.content_hash != digits.test.content_hash


def test_the_global_generators_are_left_alone(digits: Splits) -> None:
    before = torch.get_rng_state()
    load_digits(seed=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r'pip install "dcn-plugin\[demo\]"'):
        load_digits()


def test_a_scikit_learn_that_keeps_its_file_elsewhere_is_asked_itself(
    digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcn_plugin.data.digits._FILE", "nowhere")
    assert load_digits().test.content_hash == digits.test.content_hash


def test_a_size_below_the_original_is_refused() -> None:
    with pytest.raises(SpecError, match="smaller"):
        load_digits(size=4)

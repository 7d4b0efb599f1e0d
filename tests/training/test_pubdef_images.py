from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dcn_plugin.attacks import PGD
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import AdversarialSet, RunDirectory
from dcn_plugin.training import public_images
from tests.evaluate.teams import together
from tests.evaluate.watched import count_calls
from tests.toys import image_set, linear_model

DATA = image_set(20)
ATTACKS = [PGD(0.1, steps=1), PGD(0.2, steps=2)]


def sources() -> dict[str, torch.nn.Module]:
    return {"a": linear_model(16), "b": linear_model(16, seed=1)}


def test_there_is_one_tensor_for_every_source_and_attack_in_that_order() -> None:
    made = public_images(sources(), ATTACKS, DATA, batch_size=8)
    expected = [AdversarialSet("", source, attack, DATA, "8bit") for source in sources().values() for attack in ATTACKS]
    assert len(made) == 4
    for images, one in zip(made, expected, strict=True):
        assert images.dtype == torch.uint8
        assert torch.equal(images.float() / 255, one.loaded.images)
        assert not torch.equal(images.float() / 255, DATA.images)


def test_images_are_kept_and_not_made_again(tmp_path: Path) -> None:
    first = public_images(sources(), ATTACKS, DATA, store=RunDirectory(tmp_path))
    again = sources()
    calls = [count_calls(source) for source in again.values()]
    second = public_images(again, ATTACKS, DATA, store=RunDirectory(tmp_path))
    assert calls == [[], []]
    assert all(map(torch.equal, first, second))


def test_several_processes_share_the_work_and_all_get_all_images() -> None:
    alone = public_images(sources(), ATTACKS, DATA, batch_size=8)
    for made in together(2, lambda team: public_images(sources(), ATTACKS, DATA, batch_size=8, accelerator=team)):
        assert len(made) == len(alone)
        assert all(map(torch.equal, made, alone))


def test_no_public_model_or_no_attack_is_refused() -> None:
    with pytest.raises(SpecError, match="public models"):
        public_images({}, ATTACKS, DATA)
    with pytest.raises(SpecError, match="public models"):
        public_images(sources(), [], DATA)

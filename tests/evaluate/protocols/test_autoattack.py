from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.adapters.attack_registry import open_attacks
from dcn_plugin.attacks import PGD, Attack
from dcn_plugin.data import ImageSet, load_digits
from dcn_plugin.errors import DcnError, ImageRangeError, ModelOutputError, SpecError
from dcn_plugin.evaluate import RunDirectory, autoattack, whitebox
from dcn_plugin.evaluate.protocols.autoattack import PROTOCOL
from tests.attack_oracles import Counting
from tests.toys import image_set, linear_model

torchattacks = pytest.importorskip("dcn_plugin.adapters.torchattacks")


def attack(norm: str = "Linf", eps: float = 0.2, **options: Any) -> Attack:
    made: Attack = torchattacks.TorchAttack("AutoAttack", norm=norm, eps=eps, batch=4, **{"steps": 3, **options})
    return made


def digits(count: int = 8, *, size: int = 10) -> tuple[nn.Module, ImageSet]:
    """A network, and images of which it has all but one right."""
    data = load_digits(size=size).test
    model, images = linear_model(size * size, 10), data.images[:count]
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    return model, ImageSet(images, labels, 10, "digits")


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.3), ("L2", 3.0)])
def test_the_counts_are_those_of_a_white_box_attack_and_the_record_is_of_its_own(norm: str, eps: float) -> None:
    model, data = digits()
    (record,) = autoattack({"net": model}, attack(norm, eps), data, training_seed=0, batch_size=8)
    (other,) = whitebox({"net": model}, [attack(norm, eps)], data, training_seed=0, batch_size=8)
    assert (record.protocol, record.attack, record.relation) == ("autoattack", "AutoAttack", "same network")
    assert record.n_clean_correct == 7
    assert record.n_correct == other.n_correct == 0  # nothing holds in so large a ball
    assert record.n_forward_passes == other.n_forward_passes
    assert record.largest_change is not None and 0.05 < record.largest_change <= eps + 1e-5
    assert {"norm": norm, "version": "standard", "eps": eps}.items() <= dict(record.attack_settings).items()


@pytest.mark.slow  # Square asks 5,000 times about what holds
def test_an_image_that_no_change_in_the_ball_turns_is_held() -> None:
    # The margin of a linear network over the steepest direction tells what can be turned.
    model, data = digits(4)
    eps = 1e-5
    (record,) = autoattack({"net": model}, attack(eps=eps), data, training_seed=0, batch_size=4)
    weight, held = model[1].weight, 0  # type: ignore[index]
    for logits, label in zip(model(data.images), data.labels, strict=True):
        margins = (logits[label] - logits) - eps * (weight[label] - weight).abs().sum(1)
        held += bool((margins[torch.arange(10) != label] > 0).all())
    assert record.n_correct == held == 3


class Asked(Exception):
    pass


class Never(nn.Module):
    """Must not be asked."""

    def forward(self, x: Tensor) -> Tensor:
        raise Asked


@pytest.mark.parametrize(
    ("given", "data", "error"),
    [
        (PGD(0.1), image_set(4, classes=5, shape=(1, 10, 10)), SpecError),
        (attack(version="rand"), image_set(4, classes=5, shape=(1, 10, 10)), SpecError),
        ([attack(), attack()], image_set(4, classes=5, shape=(1, 10, 10)), SpecError),
        (attack(), image_set(4, classes=3, shape=(1, 10, 10)), ModelOutputError),
        (attack("L2", 0.5), image_set(4, classes=5, shape=(1, 4, 4)), ImageRangeError),
    ],
)
def test_what_it_cannot_judge_is_refused_when_it_is_called(given: Any, data: ImageSet, error: type[DcnError]) -> None:
    with pytest.raises(error):
        autoattack({"net": Never()}, given, data, training_seed=0)


def test_other_protocols_refuse_such_images_and_classes_at_the_call_too() -> None:
    with pytest.raises(ModelOutputError, match="several logits"):
        whitebox({"net": Never()}, [attack()], image_set(4, classes=3), training_seed=0)


def test_a_network_that_draws_is_refused_before_it_is_attacked_and_the_generator_is_left_alone() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear_model(100, 5)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner(x + 0.1 * torch.randn(x.shape))
            return logits

    model, data = Counting(Noisy()), image_set(40, classes=5, shape=(1, 10, 10))
    state = torch.get_rng_state()
    with pytest.raises(ModelOutputError, match=r"differently.*version=rand"):
        list(autoattack({"noisy": model}, attack(), data, training_seed=0))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.rows < 40  # the black image of the check, and a few twice


def test_a_second_call_reads_what_the_first_one_left(tmp_path: Any) -> None:
    model, data = digits()
    store = RunDirectory(tmp_path)
    first = list(autoattack({"net": model}, attack(eps=0.3), data, training_seed=0, batch_size=8, store=store))
    again = RunDirectory(tmp_path)
    assert list(autoattack({"net": model}, attack(eps=0.3), data, training_seed=0, batch_size=8, store=again)) == first
    assert again.reused == 1


def test_the_command_line_writes_the_attack_and_l2_needs_a_radius_of_its_own() -> None:
    assert PROTOCOL.attack is not None
    written = PROTOCOL.attack({"norm": "L2", "eps": 0.5, "batch": 4})
    (made,) = open_attacks([written])
    assert made.settings.items() >= {"norm": "L2", "eps": 0.5, "batch": 4, "version": "standard", "steps": 100}.items()
    with pytest.raises(SpecError, match=r"--eps 0\.5"):
        PROTOCOL.attack({"norm": "L2", "eps": 8 / 255, "batch": 4})

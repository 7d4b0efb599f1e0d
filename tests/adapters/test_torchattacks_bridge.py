"""Our attacks as torchattacks': the same images, the same normalisation, and modes that come back."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchattacks.attack import Attack as TheirAttack

from dcn_plugin import attacks as ours
from dcn_plugin.adapters.torchattacks import CW, BoundaryAttack, DcnAttack, HopSkipJump
from dcn_plugin.errors import ImageRangeError, LabelError, SpecError
from dcn_plugin.layers import Normalized
from tests.adapters.toy_rgb import RgbNet, examples
from tests.support.test_randomness import states

MEAN, STD = [0.48, 0.46, 0.41], [0.25, 0.24, 0.26]

BRIDGES: list[tuple[type[Any], type[ours.Attack], dict[str, Any]]] = [
    (BoundaryAttack, ours.BoundaryAttack, {"max_queries": 120}),
    (HopSkipJump, ours.HopSkipJump, {"max_queries": 250}),
    (CW, ours.CW, {"steps": 40, "bisections": 1, "c_start": 1.0}),
]

every_bridge = pytest.mark.parametrize(("theirs", "own", "settings"), BRIDGES, ids=[b[0].__name__ for b in BRIDGES])


@pytest.fixture
def model() -> Iterator[RgbNet]:
    """A network in training mode with a frozen batch norm, which must come back so."""
    net = RgbNet().train()
    net.frozen.eval()
    before = [module.training for module in net.modules()], [p.requires_grad for p in net.parameters()], states()
    yield net
    assert (
        [module.training for module in net.modules()],
        [p.requires_grad for p in net.parameters()],
        states(),
    ) == before


@every_bridge
def test_a_bridge_is_a_torchattack_and_gives_what_ours_gives(
    theirs: type[Any], own: type[ours.Attack], settings: dict[str, Any], model: RgbNet
) -> None:
    clean, labels = examples()
    attack = theirs(model, **settings)
    assert isinstance(attack, TheirAttack)
    assert attack.result is None
    found = attack(clean, labels)
    # The bridge asks about all of them at once, and float32 rounds otherwise at another batch size.
    expected = own(**settings)(model, clean, labels, batch_size=len(clean))
    assert torch.equal(found, expected.images)
    assert torch.equal(attack.result.queries, expected.queries)
    assert int(attack.result.fooled.sum()) > 5
    assert not torch.equal(found, clean)


@every_bridge
def test_normalised_images_give_the_same_attack_in_their_own_scale(
    theirs: type[Any], own: type[ours.Attack], settings: dict[str, Any], model: RgbNet
) -> None:
    # float64: inverting the normalisation rounds, and an attack may take another path from there.
    model.double()
    clean, labels = examples(dtype=torch.float64)
    mean, std = (torch.tensor(numbers, dtype=torch.float64).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    attack = theirs(model, **settings)
    attack.set_normalization_used(MEAN, STD)
    with torch.no_grad():
        labels = model.eval()((clean - mean) / std).argmax(dim=1)
        model.train()
        model.frozen.eval()
    found = attack((clean - mean) / std, labels) * std + mean
    expected = own(**settings)(Normalized(model, MEAN, STD).double(), clean, labels)
    assert int(attack.result.fooled.sum()) == int(expected.fooled.sum()) > 5
    assert attack.result.images.min() >= 0
    assert attack.result.images.max() <= 1
    torch.testing.assert_close(found, attack.result.images, rtol=0, atol=1e-6)
    ratio = attack.result.median_distance / expected.median_distance
    assert 0.8 < ratio < 1.25


@pytest.mark.parametrize("fail_at", [1, 3, 20])
def test_modes_and_the_normalisation_come_back_after_an_exception(fail_at: int, model: RgbNet) -> None:
    clean, labels = examples()
    model.fail_at = fail_at
    attack = BoundaryAttack(model, max_queries=60)
    attack.set_normalization_used(MEAN, STD)
    with pytest.raises(RuntimeError, match="injected"):
        attack((clean - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1), labels)
    assert attack._normalization_applied is True


def test_multi_attack_runs_a_bridge_on_what_is_left(model: RgbNet) -> None:
    clean, labels = examples()
    model.eval()  # MultiAttack itself would thaw the frozen norm
    weak = torchattacks.FGSM(model, eps=1e-4)
    bridge = BoundaryAttack(model, max_queries=60)
    found = torchattacks.MultiAttack([weak, bridge])(clean, labels)
    with torch.no_grad():
        assert (model(found).argmax(dim=1) != labels).all()
    assert bridge.result is not None
    assert len(bridge.result.images) == 11
    model.train()
    model.frozen.eval()


def test_save_writes_what_torchattacks_loads(model: RgbNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean, labels = examples()
    attack = HopSkipJump(model, max_queries=100)
    loader = DataLoader(TensorDataset(clean, labels), batch_size=6, generator=torch.Generator())
    accuracy, l2, _ = attack.save(loader, save_path=str(tmp_path / "adv.pt"), return_verbose=True)
    assert accuracy == 0
    assert l2 > 0
    assert "Robust accuracy" in capsys.readouterr().out
    saved = torch.load(tmp_path / "adv.pt", weights_only=True)
    assert saved["adv_inputs"].shape == clean.shape
    assert torch.equal(saved["labels"], labels)
    assert torch.equal(saved["adv_inputs"][6:], attack.result.images)  # type: ignore[union-attr]


def test_any_attack_of_ours_can_be_bridged_and_shows_its_settings(model: RgbNet) -> None:
    attack = DcnAttack(model, ours.CW.paper(confidence=20))
    assert str(attack).startswith("CW(bisections=5, ")
    assert "confidence=20" in str(attack)
    assert str(attack).endswith(", attack_mode=default, normalization_used=False)")
    assert attack.attack == "CW"
    assert attack.supported_mode == ["default"]


@every_bridge
def test_help_shows_the_options_of_our_class_and_the_shapes(
    theirs: type[Any], own: type[ours.Attack], settings: dict[str, Any]
) -> None:
    assert list(inspect.signature(theirs).parameters) == ["model", *inspect.signature(own).parameters]
    assert "Shape:" in str(theirs.__doc__)


def test_wrong_use_is_refused(model: RgbNet) -> None:
    clean, labels = examples()
    with pytest.raises(TypeError, match="max_querys"):
        BoundaryAttack(model, max_querys=100)
    with pytest.raises(SpecError, match="budget"):
        BoundaryAttack(model, max_queries=1)
    attack = BoundaryAttack(model, max_queries=60)
    with pytest.raises(ValueError, match="Targeted mode is not supported"):
        attack.set_mode_targeted_random()
    with pytest.raises(SpecError, match="eval mode"):
        attack.set_model_training_mode(model_training=True)
    attack.set_model_training_mode()
    with pytest.raises(LabelError, match="true labels"):
        attack(clean)
    with pytest.raises(ImageRangeError):
        attack(clean * 255, labels)
    attack.set_normalization_used(MEAN, STD)
    with pytest.raises(ImageRangeError):
        attack(clean * 255, labels)


def test_a_decision_based_bridge_takes_a_model_that_tells_its_decision_alone() -> None:
    class Decision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = RgbNet()

        def forward(self, x: Tensor) -> Tensor:
            decision: Tensor = self.net(x).argmax(dim=1)
            return decision

    clean, labels = examples()
    attack = BoundaryAttack(Decision(), max_queries=60)
    attack(clean, labels)
    assert attack.result is not None
    assert int(attack.result.fooled.sum()) > 5


@every_bridge
@pytest.mark.parametrize("normalised", [False, True])
def test_a_bridge_takes_a_bfloat16_network(
    theirs: type[Any], own: type[ours.Attack], settings: dict[str, Any], normalised: bool
) -> None:
    clean, _ = examples()
    model = RgbNet(dtype=torch.bfloat16).eval()
    attack = theirs(model, **settings)
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    images = (clean - mean) / std if normalised else clean
    if normalised:
        attack.set_normalization_used(MEAN, STD)
    with torch.no_grad():
        labels = model(images.bfloat16()).argmax(dim=1)
    for given in (images, images.bfloat16()):
        attack(given, labels)
        assert int(attack.result.fooled.sum()) > 2


def test_a_bridge_names_images_that_are_no_tensor() -> None:
    with pytest.raises(ImageRangeError, match=r"torch\.from_numpy"):
        BoundaryAttack(RgbNet())(examples()[0].numpy(), examples()[1])

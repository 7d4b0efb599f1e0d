from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor

from dcn_plugin.adapters.torchattacks import TorchAttack, modern_transfer_attacks, paper_attacks
from dcn_plugin.attacks import PGD
from dcn_plugin.errors import SpecError
from tests.adapters.toy_rgb import RgbNet, examples


def loop(
    clean: Tensor, labels: Tensor, *, eps: float, step: float, steps: int, direction: Callable[[Tensor], Tensor]
) -> Tensor:
    """Signed steps from the clean image; ``direction`` turns the loss gradient of each into the step's direction."""
    model = RgbNet(dtype=clean.dtype).eval()
    found = clean.clone()
    for _ in range(steps):
        leaf = found.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
        moved = found + step * direction(gradient).sign()
        found = (clean + (moved - clean).clamp(-eps, eps)).clamp(0, 1)
    return found


def l1_momentum() -> Callable[[Tensor], Tensor]:
    """The paper's: g_{t+1} = g_t + gradient / ||gradient||_1."""
    momentum = torch.zeros(())

    def direction(gradient: Tensor) -> Tensor:
        nonlocal momentum
        momentum = momentum + gradient / gradient.abs().flatten(1).sum(dim=1)[:, None, None, None]
        return momentum

    return direction


def test_the_papers_attacks_have_the_papers_settings() -> None:
    attacks = paper_attacks()
    assert list(attacks) == [
        "FGSM 8",
        "FGSM 16",
        "FGSM 32",
        "PGD (1,20,16)",
        "PGD (2,10,16)",
        "PGD (1,40,32)",
        "MI-FGSM (1,20,16)",
        "MI-FGSM (1,40,32)",
    ]
    assert [round(255 * float(attack.eps or 0), 6) for attack in attacks.values()] == [8, 16, 32, 16, 16, 32, 16, 32]
    assert not any(attack.settings.get("random_start") for attack in attacks.values())


@pytest.mark.parametrize("name", ["FGSM 16", "PGD (2,10,16)", "MI-FGSM (1,20,16)", "MI-FGSM (1,40,32)"])
def test_the_papers_attacks_are_plain_loops_written_from_the_paper(name: str) -> None:
    clean, labels = examples(dtype=torch.float64)
    kind, numbers = name.split(" ", 1)
    step, steps, eps = (16, 1, 16) if kind == "FGSM" else map(int, numbers.strip("()").split(","))
    direction = l1_momentum() if kind == "MI-FGSM" else lambda gradient: gradient
    expected = loop(clean, labels, eps=eps / 255, step=step / 255, steps=steps, direction=direction)
    result = paper_attacks()[name](RgbNet(dtype=torch.float64), clean, labels)
    torch.testing.assert_close(result.images, expected, rtol=0, atol=1e-12)
    assert int(result.fooled.sum()) > 0


@pytest.mark.parametrize(("steps", "step", "eps"), [(1, 8, 8), (20, 1, 16), (10, 2, 16)])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-15), (torch.float32, 1e-7)])
def test_our_pgd_without_a_random_start_is_that_of_torchattacks(
    steps: int, step: int, eps: int, dtype: torch.dtype, atol: float
) -> None:
    clean, labels = examples(dtype=dtype)
    ours = PGD(eps / 255, steps=steps, step_size=step / 255)(RgbNet(dtype=dtype), clean, labels).images
    theirs = torchattacks.PGD(
        RgbNet(dtype=dtype).eval(), eps=eps / 255, alpha=step / 255, steps=steps, random_start=False
    )(clean, labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_modern_transfer_attacks_fool_the_network_each_in_its_own_way() -> None:
    clean, labels = examples()
    attacks = modern_transfer_attacks(0.15, steps=5, kernel=3, neighbours=3)
    assert list(attacks) == ["DI-FGSM", "TI-FGSM", "SI-NI-FGSM", "VMI-FGSM", "VNI-FGSM"]
    results = [attack(RgbNet(), clean, labels) for attack in attacks.values()]
    assert all(int(result.fooled.sum()) > 5 for result in results)
    assert all(not torch.equal(a.images, b.images) for i, a in enumerate(results) for b in results[:i])
    assert all(attack.settings["alpha"] == pytest.approx(0.03) for attack in attacks.values())
    assert all(attack.settings["decay"] == 1.0 for attack in attacks.values())


def test_without_three_channels_there_is_no_ti_fgsm() -> None:
    assert "TI-FGSM" not in modern_transfer_attacks(0.1, channels=1)


def test_the_seed_and_the_batch_reach_every_attack_that_draws() -> None:
    for attack in modern_transfer_attacks(0.1, seed=9, batch=32).values():
        assert isinstance(attack, TorchAttack)
        assert attack.seed == 9
        assert attack.batch in (None, 32)


@pytest.mark.parametrize("settings", [{"eps": 2.0}, {"eps": 0.1, "steps": 0}, {"eps": 0.1, "neighbours": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        modern_transfer_attacks(**settings)  # type: ignore[arg-type]

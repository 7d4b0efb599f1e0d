from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor

from dcn_plugin.adapters.torchattacks import MODERN, modern_transfer_attacks, paper_attacks
from dcn_plugin.attacks import PGD
from dcn_plugin.errors import SpecError
from tests.adapters.toy_rgb import RgbNet, examples
from tests.toys import images, linear_model


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
    attacks = modern_transfer_attacks(0.2, steps=5, kernel=3, neighbours=3, cutoff=0.5, batch=12)
    assert list(attacks) == list(MODERN)
    results = {name: attack(RgbNet(), clean, labels, batch_size=12) for name, attack in attacks.items()}
    assert all(int(result.fooled.sum()) > 2 for result in results.values())
    found = [result.images for result in results.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])
    for name, attack in attacks.items():
        step = attack.settings.get("alpha", attack.settings.get("step_size"))
        assert step == pytest.approx(0.04), name
        assert attack.settings["decay"] == 1.0, name
        # What the table says of its cost is what it asks for.
        assert results[name].backward_passes.tolist() == [5 * MODERN[name].gradients(3)] * 12, name


def test_the_set_names_year_and_source_and_can_begin_later() -> None:
    years = [entry.year for entry in MODERN.values()]
    assert years == sorted(years) and (years[0], years[-1]) == (2019, 2024)
    assert all(entry.source for entry in MODERN.values())
    young = modern_transfer_attacks(0.1, since=2023)
    assert list(young) == ["GRA", "BSR", "DeCoWA"]


def test_grey_images_meet_all_of_them() -> None:
    model = linear_model(64).eval()
    clean = images(4, shape=(1, 8, 8))
    labels = model(clean).argmax(1)
    for attack in modern_transfer_attacks(0.1, steps=2, kernel=3, neighbours=2, batch=4).values():
        assert attack(model, clean, labels, batch_size=4).images.shape == clean.shape


def test_the_seed_and_the_batch_reach_every_attack_that_draws() -> None:
    for name, attack in modern_transfer_attacks(0.1, seed=9, batch=32).items():
        if MODERN[name].library != "dcn_plugin":
            assert attack.seed == 9
            assert attack.batch in (None, 32)


@pytest.mark.parametrize(
    "settings", [{"eps": 2.0}, {"eps": 0.1, "steps": 0}, {"eps": 0.1, "neighbours": 0}, {"eps": 0.1, "since": 2030}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        modern_transfer_attacks(**settings)  # type: ignore[arg-type]

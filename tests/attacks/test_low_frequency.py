from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_plugin.attacks import MIFGSM, PGD, TIFGSM, Attack, LowPassPGD, RandomLowPass
from dcn_plugin.attacks.frequencies import cosines, frequencies_kept
from dcn_plugin.errors import SpecError
from tests.attack_oracles import RowNet, grey, right
from tests.toys import DoNothing, images

SHAPE = (3, 12, 12)


def energy_share(moves: Tensor, cutoff: float) -> Tensor:
    """Share of each change's energy in the lowest frequencies, by the whole transform."""
    basis = torch.from_numpy(cosines(moves.shape[-1]))
    coefficients = basis @ moves.double() @ basis.T
    kept = frequencies_kept(moves.shape[-1], cutoff)
    low = coefficients[..., :kept, :kept].square().flatten(1).sum(1)
    return low / coefficients.square().flatten(1).sum(1)


def case(count: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    model, clean = RowNet(SHAPE), grey(count, shape=SHAPE)
    return model, clean, right(model, clean)


@pytest.mark.parametrize(("cutoff", "decay"), [(1.0, 1.0), (1.0, 0.5), (0.34, 1.0)])
def test_mi_fgsm_agrees_with_a_plain_loop_written_from_the_paper(cutoff: float, decay: float) -> None:
    model, clean, labels = case(6)
    basis = torch.from_numpy(cosines(12)[: frequencies_kept(12, cutoff)])
    project = basis.T @ basis
    expected = []
    for x, y in zip(clean, labels, strict=True):
        adversarial, momentum = x[None].clone(), torch.zeros_like(x[None])
        for _ in range(5):
            leaf = adversarial.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y[None]), leaf)
            gradient = project @ gradient @ project
            momentum = decay * momentum + gradient / gradient.abs().mean()
            adversarial = (x + (adversarial + 0.02 * momentum.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1)
        expected.append(adversarial)
    found = MIFGSM(0.1, steps=5, cutoff=cutoff, decay=decay)(model, clean, labels).images
    # The sign of what is zero but for rounding may differ.
    assert ((found - torch.cat(expected)).abs() < 1e-9).double().mean() > 0.999


def test_mi_fgsm_and_ti_fgsm_are_those_of_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, clean, labels = case()
    model, clean = RowNet(SHAPE, dtype=torch.float32).eval(), clean.float()
    theirs = torchattacks.MIFGSM(model, eps=0.1, alpha=0.02, steps=5, decay=1.0)(clean, labels)
    ours = MIFGSM(0.1, steps=5)(model, clean, labels).images
    assert ((ours - theirs).abs() < 1e-6).double().mean() > 0.999
    options = {"len_kernel": 5, "diversity_prob": 0.0, "nsig": 3}
    theirs = torchattacks.TIFGSM(model, eps=0.1, alpha=0.02, steps=5, decay=1.0, **options)(clean, labels)
    ours = TIFGSM(0.1, steps=5, kernel=5)(model, clean, labels).images
    assert ((ours - theirs).abs() < 1e-6).double().mean() > 0.99


def test_a_cut_off_of_one_is_pgd() -> None:
    model, clean, labels = case()
    low, plain = LowPassPGD(0.1, cutoff=1.0, steps=4), PGD(0.1, steps=4)
    found, expected = (attack(model, clean, labels).images for attack in (low, plain))
    assert ((found - expected).abs() < 1e-9).double().mean() > 0.999


@pytest.mark.parametrize(
    "make",
    [
        lambda cutoff: LowPassPGD(0.1, cutoff=cutoff, steps=4),
        lambda cutoff: MIFGSM(0.1, steps=4, cutoff=cutoff),
        lambda cutoff: RandomLowPass(0.1, cutoff=cutoff),
    ],
    ids=["pgd", "mi-fgsm", "noise"],
)
def test_a_lower_cut_off_moves_images_along_lower_frequencies(make: Any) -> None:
    model, clean, labels = case()
    shares = [
        float(energy_share(make(cutoff)(model, clean, labels).images - clean, 0.34).mean())
        for cutoff in (1.0, 0.34, 0.1)
    ]
    assert shares[0] < 0.3
    assert shares[1] > shares[0] + 0.2
    assert shares[2] > 0.7


def test_a_wider_kernel_moves_images_along_lower_frequencies() -> None:
    model, clean, labels = case()
    shares = [
        float(energy_share(TIFGSM(0.1, kernel=kernel)(model, clean, labels).images - clean, 0.34).mean())
        for kernel in (1, 5, 11)
    ]
    assert shares[0] < shares[1] < shares[2]


class Stripes(nn.Module):
    """Right about an image by fine stripes, which a low-passed gradient does not see, and by its mean, which it "
    "does."""

    def forward(self, x: Tensor) -> Tensor:
        fine = (x[..., ::2] - x[..., 1::2]).flatten(1).mean(1)
        coarse = x.flatten(1).mean(1) - 0.5
        return torch.stack([20 * fine + coarse, torch.zeros_like(fine)], dim=1)


def test_low_pass_attacks_find_what_is_weak_against_low_frequencies_alone() -> None:
    clean = torch.full((4, 3, 12, 12), 0.55, dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64)
    for attack in (LowPassPGD(0.06, cutoff=1e-3), MIFGSM(0.06, cutoff=1e-3)):
        moves = attack(Stripes(), clean, labels).images - clean
        assert (moves < 0).all()  # down as a whole, no stripes
    stripes = PGD(0.06)(Stripes(), clean, labels).images - clean
    assert (stripes[..., ::2] < 0).all() and (stripes[..., 1::2] > 0).all()


def test_noise_is_the_same_at_every_batch_size_and_moves_every_pixel_by_eps() -> None:
    model, clean, labels = case()
    attack = RandomLowPass(0.1, cutoff=0.3, seed=3)
    whole, parts = attack(model, clean, labels), attack(model, clean, labels, batch_size=5)
    assert torch.equal(whole.images, parts.images)
    torch.testing.assert_close((whole.images - clean).abs(), torch.full_like(clean, 0.1))
    assert not torch.equal(whole.images, RandomLowPass(0.1, cutoff=0.3, seed=4)(model, clean, labels).images)
    assert whole.backward_passes.sum() == 0 and whole.queries.max() == 2


def test_an_image_without_a_gradient_stays_where_it_is() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).sum(1).clamp(max=8), torch.zeros(len(x))], dim=1)

    clean = torch.full((2, 1, 4, 4), 0.9)
    for attack in (MIFGSM(0.1, steps=3), MIFGSM(0.1, steps=3, cutoff=0.5), TIFGSM(0.1, steps=3, kernel=3)):
        result = attack(Flat(), clean, torch.zeros(2, dtype=torch.int64))
        assert torch.equal(result.images, clean)
        assert result.zero_gradient.all()


def test_settings_name_the_cut_off_or_the_kernel() -> None:
    assert LowPassPGD(0.1, cutoff=0.5).settings["cutoff"] == 0.5
    assert MIFGSM(0.1, cutoff=0.5).settings == {"cutoff": 0.5, "decay": 1.0, "eps": 0.1, "seed": 0, "step_size": 0.01,
                                                "steps": 10}  # fmt: skip
    assert "cutoff" not in TIFGSM(0.1).settings and TIFGSM(0.1, kernel=5).settings["kernel"] == 5


def test_an_attack_that_does_nothing_moves_along_no_frequency() -> None:
    model, clean, labels = case(3)
    assert not (DoNothing(eps=0.1)(model, clean, labels).images - clean).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LowPassPGD(0.1, cutoff=0.0),
        lambda: LowPassPGD(0.1, cutoff=1.5),
        lambda: MIFGSM(0.1, cutoff=float("nan")),
        lambda: MIFGSM(0.1, decay=-1.0),
        lambda: MIFGSM(0.1, steps=0),
        lambda: MIFGSM(0.1, step_size=3.0),
        lambda: MIFGSM("8"),  # type: ignore[arg-type]
        lambda: TIFGSM(0.1, kernel=4),
        lambda: RandomLowPass(8.0),
        lambda: RandomLowPass("8"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(SpecError):
        make()


def test_the_attacks_are_attacks() -> None:
    for attack in (LowPassPGD(0.1, cutoff=0.5), MIFGSM(0.1), TIFGSM(0.1), RandomLowPass(0.1)):
        assert isinstance(attack, Attack)
        assert attack(RowNet(SHAPE), images(2, shape=SHAPE, dtype=torch.float64), torch.tensor([0, 1])).images.shape

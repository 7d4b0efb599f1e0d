"""Options, sizes, layouts and dtypes on which torchattacks is weak, fails half-way, or does nothing."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.adapters._torchattacks_sizes import square_l2_fits
from dcn_plugin.adapters._torchattacks_table import KNOWN
from dcn_plugin.adapters.torchattacks import TorchAttack, modern_transfer_attacks, paper_attacks
from dcn_plugin.attacks import AttackRun
from dcn_plugin.cli.attacks import open_attacks
from dcn_plugin.errors import ImageRangeError, SpecError, WeakAttackWarning
from dcn_plugin.models import cifar_resnet
from tests.adapters.test_torchattacks_table import SHARES
from tests.adapters.toy_rgb import RgbNet, examples
from tests.attack_oracles import Counting

# APGD sums losses that still carry their graph; torch says so once a process.
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")


class Pooled(nn.Module):
    """Takes images of every size."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(channels, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 20 * self.head(torch.tanh(self.conv(x)).mean(dim=(2, 3)))
        return logits


def said_by(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(images).argmax(dim=1)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(SHARES))
def test_the_images_move_as_far_as_eps_says(name: str) -> None:
    clean, labels = examples()
    eps = 2.0 if KNOWN[name].norm == "L2" else 0.2
    attack = TorchAttack(name, eps=eps)
    result = attack(RgbNet(), clean, labels)
    assert attack.changes(clean, result.images).max() > 0.9 * eps


def test_a_run_whose_steps_do_not_reach_eps_says_so_before_it_asks_anything() -> None:
    clean, labels = examples()
    for attack in (
        TorchAttack("MIFGSM", eps=0.2, alpha=2 / 255),
        TorchAttack("PGDL2", eps=3.0, alpha=0.2),
        TorchAttack("FFGSM", eps=0.2, alpha=0.1),
        *open_attacks(["BIM,eps=0.2,alpha=1/255", "pgd,eps=0.2,steps=10,step_size=1/255"]),
    ):
        model = Counting(RgbNet(), fail_at=0)
        with pytest.raises(RuntimeError, match="injected"), pytest.warns(WeakAttackWarning, match=r"alpha\) = 0|= 2"):
            attack(model, clean, labels)


def test_sets_recipes_and_the_command_line_reach_their_eps() -> None:
    made = [
        *paper_attacks().values(),
        *modern_transfer_attacks(0.2, steps=3).values(),
        *open_attacks(["MIFGSM,eps=0.2,steps=2", "PGDL2,eps=3", "fgsm,eps=0.2", "pgd,eps=0.2", "modern,eps=0.2"]),
    ]
    for attack in made:
        attack._warn_if_weak()


def test_autoattack_takes_as_many_steps_as_published() -> None:
    clean, labels = examples()
    attack = TorchAttack("AutoAttack", eps=0.1)
    assert attack.settings["steps"] == 100
    seen: list[dict[str, int]] = []

    class Spy(TorchAttack):
        def _build(self, probe: nn.Module, seed: int, run: AttackRun) -> Any:
            built = super()._build(probe, seed, run)
            seen.append({part.attack: part.steps for part in built._autoattack.attacks if hasattr(part, "steps")})
            return built

    for steps in (7, 3):
        Spy("AutoAttack", eps=0.15, steps=steps)(RgbNet(), clean[:3], labels[:3])
    assert seen == [dict.fromkeys(("APGD", "APGDT", "FAB"), steps) for steps in (7, 3)]


@pytest.mark.parametrize("p_init", [0.8, 1.0])
def test_square_in_l2_runs_on_exactly_the_sizes_that_are_not_refused(p_init: float) -> None:
    model = Pooled(1).eval()
    sizes = (1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 16)
    agree = set()
    for height, width in itertools.product(sizes, sizes):
        images = noise(1, 1, height, width)
        theirs = torchattacks.Square(model, norm="L2", eps=1e-4, n_queries=2, p_init=p_init)
        with torch.random.fork_rng(devices=[]):
            try:
                theirs(images, said_by(model, images))
                runs = True
            except (RuntimeError, ZeroDivisionError):
                runs = False
        assert square_l2_fits(height, width, p_init=p_init) == runs, (height, width)
        agree.add(runs)
    assert agree == {True, False}


@pytest.mark.parametrize("name", ["Square", "AutoAttack"])
@pytest.mark.parametrize("size", [(12, 15), (3, 3)])
def test_a_size_that_does_not_fit_is_refused_before_the_run(name: str, size: tuple[int, int]) -> None:
    images = noise(2, 3, *size)
    model = Counting(Pooled())
    with pytest.raises(ImageRangeError, match=rf"L2 do not fit.*Got: \({size[0]}, {size[1]}\).* x ") as error:
        TorchAttack(name, norm="L2", eps=0.5)(model, images, said_by(model.model, images))
    assert model.rows == 2  # the clean images
    assert "Linf" in str(error.value)
    if name == "AutoAttack":  # without Square in it there is nothing to refuse
        TorchAttack(name, norm="L2", eps=0.5, version="rand", steps=1)(model, images, said_by(model.model, images))


@pytest.mark.parametrize("name", ["Square", "APGD", "APGDT"])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.07), ("Linf", 8 / 255), ("L2", 0.7)])
def test_float64_images_do_not_leave_the_ball_by_the_rounding_of_float32(name: str, norm: str, eps: float) -> None:
    images = noise(4, 3, 8, 8).double()
    model = Pooled().double()
    options = {"n_queries": 20} if name == "Square" else {"steps": 3}
    result = TorchAttack(name, norm=norm, eps=eps, **options)(model, images, said_by(model, images))
    assert result.images.dtype == torch.float64


@pytest.mark.parametrize("name", KNOWN)
def test_channels_may_lie_last_in_images_and_in_weights(name: str) -> None:
    clean, labels = examples()
    for norm in ("Linf", "L2") if KNOWN[name].norm is None else (KNOWN[name].norm,):
        options: dict[str, Any] = {"eps": 0.1 if norm == "Linf" else 1.0, "steps": 3, "n_queries": 20, "norm": norm}
        known = {*inspect.signature(getattr(torchattacks, name).__init__).parameters}
        if name == "AutoAttack":  # a large ball: an image that resists takes 5,000 queries
            known, options["eps"] = {*known, "steps"}, 0.6 if norm == "Linf" else 6.0
        attack = TorchAttack(name, **{key: value for key, value in options.items() if key in known})
        expected = attack(RgbNet(), clean, labels)
        last = clean.contiguous(memory_format=torch.channels_last)
        for images, model in ((last, RgbNet()), (clean, RgbNet().to(memory_format=torch.channels_last))):
            found = attack(model, images, labels)
            assert found.images.shape == clean.shape
            assert int((found.fooled != expected.fooled).sum()) <= 1  # another order of additions


@pytest.mark.parametrize("name", ["FGSM", "MIFGSM", "PGDL2", "APGD", "Square"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_attacked_in_float32_and_stays_in_the_ball(name: str, dtype: torch.dtype) -> None:
    clean, labels = examples()
    eps = 3.0 if KNOWN[name].norm == "L2" else 0.15
    attack = TorchAttack(name, eps=eps, **({"n_queries": 150} if name == "Square" else {}))
    for images in (clean.to(dtype), clean):
        result = attack(RgbNet(dtype=dtype), images, labels)
        assert result.images.dtype == images.dtype
        assert int(result.fooled.sum()) > 1  # Square sees no progress below the rounding of logits
        assert 0.5 * eps < attack.changes(images, result.images).max() <= eps * (1 + 1e-6)


@pytest.mark.parametrize(("rate", "size"), [(0.9, 1), (0.05, 16), (1.05, 16)])
def test_input_diversity_that_leaves_no_other_size_is_refused(rate: float, size: int) -> None:
    images = noise(2, 3, size, size)
    for name in ("DIFGSM", "TIFGSM"):
        with pytest.raises(SpecError, match=f"resize_rate .* images of {size} pixels"):
            TorchAttack(name, eps=0.1, resize_rate=rate)(Pooled(), images, said_by(Pooled(), images))


def test_images_are_not_enlarged_for_a_network_whose_masks_have_one_size() -> None:
    with torch.random.fork_rng(devices=[]):
        plain = cifar_resnet((1, 1, 1, 1), width=4)
    net = dcn.defectify(plain, p=0.5, input_size=(3, 16, 16)).eval()
    images = noise(2, 3, 16, 16)
    larger = TorchAttack("DIFGSM", eps=0.1, resize_rate=1.2, diversity_prob=1.0, steps=2)
    for model in (net, dcn.Normalized(net, [0.5] * 3, [0.5] * 3), dcn.compact(net, backend="reference")):
        with pytest.raises(SpecError, match="masks of this network have one size"):
            larger(model, images, said_by(model, images))
    assert larger(plain.eval(), images, said_by(plain, images))
    smaller = TorchAttack("DIFGSM", eps=0.1, diversity_prob=1.0, steps=2)
    assert smaller(net, images, said_by(net, images))


def test_numpys_numbers_are_plain_settings() -> None:
    attack = TorchAttack("MIFGSM", eps=np.float32(0.5), steps=np.int64(4), batch=np.int32(8))  # type: ignore[arg-type]
    assert attack.settings == TorchAttack("MIFGSM", eps=0.5, steps=4, batch=8).settings
    assert attack.unkeyed == ()
    clean, labels = examples()
    assert attack(RgbNet(), clean, labels, batch_size=np.int64(8))  # type: ignore[arg-type]
    for wrong in ({"batch": "8"}, {"eps": None}, {"steps": "4"}):
        with pytest.raises(SpecError):
            TorchAttack("MIFGSM", **wrong)

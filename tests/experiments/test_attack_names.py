from __future__ import annotations

import pytest

from dcn_plugin.attacks import CW, PGD
from dcn_plugin.errors import SpecError
from dcn_plugin.experiments.attack_names import read_attack
from dcn_plugin.experiments.scales import scale_for

FULL, SMOKE = scale_for("full", "cifar10"), scale_for("smoke", "cifar10")


def test_pgd_is_written_as_step_steps_and_eps_in_grey_levels() -> None:
    (attack,) = read_attack("pgd(1, 20, 16)").make(FULL)
    assert isinstance(attack, PGD)
    assert (attack.eps, attack.steps) == (16 / 255, 20)
    assert attack.step_size == pytest.approx(1 / 255)


def test_the_mnist_setting_is_40_steps_of_a_hundredth() -> None:
    (attack,) = read_attack("pgd(2.55,40,76.5)").make(FULL)
    assert isinstance(attack, PGD)
    assert attack.eps == pytest.approx(0.3)
    assert attack.step_size == pytest.approx(0.01)


def test_fewer_steps_go_as_far_in_all() -> None:
    (attack,) = read_attack("pgd(1,20,16)").make(SMOKE)
    assert isinstance(attack, PGD)
    assert attack.steps == 2
    assert attack.steps * attack.step_size == pytest.approx(20 / 255)


def test_cw_has_the_papers_settings_at_full_scale_only() -> None:
    (full,), (smoke,) = (read_attack("cw(20)").make(scale) for scale in (FULL, SMOKE))
    assert isinstance(full, CW)
    assert isinstance(smoke, CW)
    assert repr(full) == repr(CW.paper(confidence=20.0))
    assert (smoke.confidence, smoke.steps) == (20.0, SMOKE.cw_steps)


@pytest.mark.parametrize("text", ["pgd(1,20)", "fgsm", "fgsm(a)", "fgsm(8", "boundary(1)"])
def test_an_attack_that_is_written_otherwise_shows_the_form(text: str) -> None:
    with pytest.raises(SpecError, match=r"\(STEP|\(EPS|boundary"):
        read_attack(text)

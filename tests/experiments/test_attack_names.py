from __future__ import annotations

import pytest

from dcn_plugin.attacks import CW, MIFGSM, PGD, LowPassPGD
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


def test_any_attack_of_the_registry_is_written_as_on_the_command_line_and_cut_down_to_a_scale() -> None:
    (full,), (smoke,) = (
        read_attack("low-pass-pgd,eps=8/255,cutoff=0.5,steps=20,step_size=1/255").make(s) for s in (FULL, SMOKE)
    )
    assert isinstance(full, LowPassPGD) and isinstance(smoke, LowPassPGD)
    assert (full.steps, smoke.steps, smoke.cutoff) == (20, 2, 0.5)
    assert smoke.reach == pytest.approx(full.reach)
    (short,) = read_attack("mi-fgsm(8,0.25)").make(SMOKE)
    assert isinstance(short, MIFGSM)
    assert (short.eps, short.cutoff, short.steps) == (8 / 255, 0.25, 2)
    assert read_attack("mi-fgsm(8,0.25)").gradients(FULL) == 10
    (walk,) = read_attack("boundary-paper,max_queries=50000").make(SMOKE)
    assert walk.settings["max_queries"] == SMOKE.queries


def test_an_attack_of_another_library_draws_for_the_batches_of_the_scale() -> None:
    pytest.importorskip("torchattack")
    spec = read_attack("BSR,eps=8/255,num_scale=3")
    (attack,) = spec.make(FULL)
    assert attack.batch == FULL.batch_size
    assert spec.gradients(FULL) == 30


def test_the_cost_of_the_modern_set_is_that_of_its_table() -> None:
    pytest.importorskip("torchattacks")
    from dcn_plugin.adapters.torchattacks import MODERN

    assert read_attack("modern(8)").gradients(FULL) == 10 * sum(entry.gradients(20) for entry in MODERN.values())


@pytest.mark.parametrize("text", ["pgd(1,20)", "fgsm", "fgsm(a)", "fgsm(8", "boundary(1)"])
def test_an_attack_that_is_written_otherwise_shows_the_form(text: str) -> None:
    with pytest.raises(SpecError, match=r"\(STEP|\(EPS|boundary|NAME"):
        read_attack(text)


@pytest.mark.parametrize(("text", "few"), [("cw(20)", True), ("cw,confidence=3", True), ("pgd(1,20,16)", False)])
def test_carlini_and_wagner_runs_on_few_images_however_it_is_written(text: str, few: bool) -> None:
    assert read_attack(text).few_images is few

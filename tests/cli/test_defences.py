from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dcn_plugin as dcn
from dcn_plugin import cli
from dcn_plugin.attacks import PGD, AttackRun
from dcn_plugin.cli.models import open_model
from tests.cli.test_train import LINEAR, history, run

SMALL = "tests.cli.test_train:small"
PUBDEF = ["--baseline", "pubdef", "--public", LINEAR]


@pytest.mark.parametrize("model", [SMALL, f"{SMALL},p=0.5"])
def test_a_baseline_regularises_any_network_which_then_opens_without_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, tmp_path / "with", "--baseline", "spatial-dropout") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "--target" in line)
    assert run(model, tmp_path / "without") == 0
    kept = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("with", "without")]
    assert kept[0] != kept[1]
    assert run(model, tmp_path / "with") == 2
    assert "about.baseline" in capsys.readouterr().err
    opened = open_model(line.partition("NAME=")[2], tell=lambda _: None)
    assert dcn.is_defective(opened) == ("p=" in model)


def test_a_baseline_brings_its_loss_and_its_images(tmp_path: Path) -> None:
    def plan(name: str, *options: str) -> dict[str, Any]:
        assert run(LINEAR, tmp_path / name, *options) == 0
        found: dict[str, Any] = history(tmp_path / name)["plan"]  # type: ignore[assignment]
        return found

    smoothed = plan("a", "--baseline", "label-smoothing", "--adversarial", "eps=0.1,steps=1")
    assert smoothed["config"]["label_smoothing"] == pytest.approx(1 / 9)
    assert smoothed["step_images"].startswith("Madry(eps=0.1, steps=1")
    assert plan("b", "--baseline", "madry,steps=2")["step_images"].startswith(f"Madry(eps={8 / 255}, steps=2")
    standard = plan("c", "--baseline", "standard")
    assert (standard["config"]["label_smoothing"], standard["step_images"]) == (0, None)


def test_pubdef_attacks_public_models_once_and_trains_on_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attacked: list[int] = []
    perturb = PGD.perturb

    def watch(self: PGD, run: AttackRun) -> torch.Tensor:
        attacked.append(len(run.images))
        return perturb(self, run)

    monkeypatch.setattr(PGD, "perturb", watch)
    public = ["--public", f"one={LINEAR},seed=1", "--public", f"two={LINEAR},seed=2"]
    shared = ["--public-images", str(tmp_path / "images")]
    options = ["--baseline", "pubdef,eps=0.2,sampling=all", *public, *shared]
    assert run(LINEAR, tmp_path / "a", *options) == 0
    assert attacked == [80, 80]
    hook = history(tmp_path / "a")["plan"]["step_images"]  # type: ignore[index]
    assert hook.startswith("PubDef(2 pairs") and "eps=0.2" in hook
    # Another network is trained on the same images.
    assert run(f"{LINEAR},seed=3", tmp_path / "b", *options) == 0
    assert attacked == [80, 80]
    assert history(tmp_path / "b")["plan"]["step_images"] == hook  # type: ignore[index]
    assert run(LINEAR, tmp_path / "c", *options, "--public-attack", "pgd,eps=0.1,steps=1") == 0
    assert attacked == [80] * 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([LINEAR, "--baseline", "label_smoothing"], "did you mean label-smoothing"),
        ([LINEAR, "--baseline", "madry,epsilon=1"], "no such setting"),
        ([LINEAR, "--baseline", "madry", "--adversarial"], "one of the two"),
        ([LINEAR, "--baseline", "label-smoothing", "--label-smoothing", "0.1"], "one of the two"),
        ([LINEAR, "--size", "8", "--baseline", "dropblock"], "ResNet"),
        ([LINEAR, "--baseline", "pubdef"], "--public NAME=MODEL"),
        ([LINEAR, "--public", LINEAR], "for --baseline pubdef"),
        ([LINEAR, *PUBDEF, "--public-attack", "pgd,eps=0.5"], "more than PubDef allows"),
        ([LINEAR, "--baseline", "pubdef,weight=0", "--public", LINEAR], "weight of PubDef"),
        ([LINEAR, *PUBDEF, "--min-scale", "0.5"], "held in memory"),
        ([SMALL, *PUBDEF], "does not take the images"),
    ],
)
def test_a_defence_that_does_not_fit_is_one_line_before_anything_is_written(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["train", *arguments, "--data", "digits", "--out", str(out), "--no-progress"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("defective: ") and said in error
    assert not out.exists()


def test_settings_of_another_type_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for baseline in ("madry,eps=abc", "madry,steps=many"):
        line = ["train", LINEAR, "--data", "digits", "--size", "8", "--baseline", baseline, "--out", str(tmp_path)]
        assert cli.main(line) == 2
        assert "does not take these settings" in capsys.readouterr().err

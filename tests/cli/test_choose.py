"""``defective choose``: its table, its files, and a last line that makes what was chosen."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from torch import nn

import dcn_plugin as dcn
from dcn_plugin import cli
from dcn_plugin.pretrained import load_pretrained, save_half
from tests.image_files import write_folder

HERE = "tests.cli.test_choose"
FAST = ["--data", "digits", "--size", "16", "--limit", "240", "--batch-size", "12", "--lr", "0.02"]
TRIAL = ["--lose", "10", "--p", "0.8", "0.6", "--epochs", "2", "--attack", "pgd,eps=0.2,steps=2", "--set", "flip=false"]


def trained() -> nn.Module:
    """A network that somebody has."""
    return load_pretrained("digits_resnet.standard")


def source() -> nn.Module:
    """The network of an attacker."""
    return load_pretrained("digits_resnet.source")


def masked() -> nn.Module:
    """A network that has masks."""
    return load_pretrained("digits_resnet.defective_p0.3")


def untrained() -> nn.Module:
    """A network that knows nothing."""
    net = trained()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def run(out: Path, *more: str, model: str = f"{HERE}:trained") -> int:
    return cli.main(["choose", model, *FAST, *TRIAL, "--out", str(out), "--no-progress", *more])


def test_the_table_ends_with_a_command_that_makes_the_chosen_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "choice"
    assert run(out, "--source", f"other={HERE}:source", "--blocks", "bottom", "0") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("4 candidates for 1 epochs, 2 candidates for 2 epochs: about")
    record = json.loads((out / "choice.json").read_text())
    chosen = record["chosen"]["candidate"]
    assert (out / "choice.png").read_bytes().startswith(b"\x89PNG")
    marked = next(line for line in printed if " * " in line)
    assert f"p={chosen['p']:g} " in marked and f"{record['chosen']['clean']:.2%}" in marked
    assert record["settings"]["sources"] == ["other"] and record["settings"]["lose"] == 0.1
    command = shlex.split(next(line for line in printed if "defective train" in line))
    assert cli.main([*command[1:], "--no-progress"]) == 0
    spec = dcn.checkpoint.read_spec(out / "chosen" / "last.safetensors")
    blocks = tuple(chosen["blocks"]) if isinstance(chosen["blocks"], list) else chosen["blocks"]
    assert (spec.p, spec.blocks) == (chosen["p"], blocks)
    history = json.loads((out / "chosen" / "history.json").read_text())
    trial = next(path for path in (out / "trials").iterdir() if re.search(rf"p={chosen['p']:g}-.*-2-epochs", path.name))
    kept = json.loads((trial / "history.json").read_text())
    assert [epoch["loss"] for epoch in history["epochs"]][-1] == pytest.approx(kept["epochs"][-1]["loss"]), (
        "the trial of the last round, trained again"
    )


def test_the_network_itself_is_attacked_where_no_source_is_named_and_weights_come_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_half(trained(), tmp_path / "net.safetensors")
    options = ["--init-from", str(tmp_path / "net.safetensors")]
    assert run(tmp_path / "choice", *options, model=f"{HERE}:untrained") == 0
    printed = capsys.readouterr().out
    assert f"--init-from {tmp_path / 'net.safetensors'}" in printed
    assert json.loads((tmp_path / "choice" / "choice.json").read_text())["settings"]["sources"] == ["itself"]
    assert run(tmp_path / "choice", *options, model=f"{HERE}:untrained") == 0
    assert capsys.readouterr().out.splitlines()[1:] == printed.splitlines()[1:], "all but the expected time"


def test_a_choice_that_nothing_meets_says_what_comes_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--lose", "0", "--p", "0.05", "0.02") == 0
    printed = capsys.readouterr().out
    assert "No candidate of the last round stays above it" in printed and "defective train" in printed


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("untrained", [], "hardly more than chance"),
        ("masked", [], "without masks"),
        ("trained", ["--lose", "120"], "out of range"),
        ("trained", ["--blocks", "layer9"], "No block matches"),
        ("trained", ["--data", "folder:PHOTOS", "--val-share", "0"], "needs validation images"),
        ("trained", ["--attack", "pdg"], "no attack of this name"),
        ("trained", ["--set", "epoch=3"], "did you mean epochs"),
        ("trained", ["--init-from", "base"], "Only a model of timm's has a base"),
        ("trained", ["--source", f"{HERE}:nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(
    model: str, options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_folder(tmp_path / "photos", {"ant": 3, "bee": 3}, height=16, width=16)
    options = [option.replace("PHOTOS", str(photos)) for option in options]
    assert run(tmp_path / "out", *options, model=f"{HERE}:{model}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("defective: ") and said in error
    assert not (tmp_path / "out" / "trials").exists()

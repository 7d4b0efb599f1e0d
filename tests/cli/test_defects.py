"""``defective train --init-from FILE --defects gradual``: from the network you have to a defective one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin import cli
from dcn_plugin.cli.models import open_model
from dcn_plugin.models import cifar_resnet
from dcn_plugin.training import isolated_rng, save_network
from tests.cli.test_train import FAST, history

HERE = "tests.cli.test_train"
TIMM = "resnet18_cifar.mnist,num_classes=10,in_chans=1,width=4"
MASKED = f"defective_{TIMM},img_size=8,p=0.4"


def run(model: str, out: Path, *more: str) -> int:
    return cli.main(["train", model, "--data", "digits", "--out", str(out), *FAST, "--no-progress", *more])


def weights_of(path: Path, seed: int = 7) -> Path:
    """A file of trained weights, as far as anybody can tell."""
    with isolated_rng(seed):
        torch.save({"state_dict": cifar_resnet((1, 1, 1, 1), in_chans=1, width=4).state_dict()}, path)
    return path


def test_a_trained_network_becomes_a_defective_one_gradually(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = weights_of(tmp_path / "net.pth")
    defects = "gradual,schedule=cosine,share=0.9,order=bottom-up,start=0.95,p=0.4,sampling=exact"
    assert run(f"{HERE}:small,normalized=true", tmp_path / "run", "--init-from", str(file), "--defects", defects) == 0
    config: Any = history(tmp_path / "run")["plan"]["config"]  # type: ignore[index]
    assert {key: config[key] for key in config if key.startswith("gradual")} == {
        "gradual": "cosine",
        "gradual_share": 0.9,
        "gradual_order": "bottom-up",
        "gradual_start": 0.95,
    }
    line = next(line for line in capsys.readouterr().out.splitlines() if "--target" in line)
    again = open_model(line.partition("NAME=")[2], tell=lambda _: None)
    spec = dcn.defect_spec(again)
    assert (spec.p, spec.sampling, spec.mask_origin) == (0.4, "exact", "sampled")


def first_loss(out: Path) -> float:
    return float(history(out)["epochs"][0]["loss"])  # type: ignore[index]


def test_training_starts_from_the_weights_of_the_file_and_leaves_its_masks_out(tmp_path: Path) -> None:
    file = weights_of(tmp_path / "net.pth")
    with isolated_rng(7):
        net: nn.Module = cifar_resnet((1, 1, 1, 1), in_chans=1, width=4)
    save_network(dcn.defectify(net, p=0.9, seed=5, input_size=(1, 8, 8)), tmp_path / "masked.safetensors", metadata={})
    safetensors.torch.save_file(net.state_dict(), tmp_path / "plain.safetensors")
    losses = {}
    for name, path in {"pth": file, "masked": "masked.safetensors", "plain": "plain.safetensors"}.items():
        out = tmp_path / name
        more = ["--init-from", str(tmp_path / path), "--lr", "1e-9", "--defects", "sudden,p=0.5"]
        assert run(f"{HERE}:small", out, *more) == 0
        losses[name] = first_loss(out)
    assert run(f"{HERE}:small,p=0.5", tmp_path / "own masks", *more[:4], "--defects", "sudden") == 0
    losses["own masks"] = first_loss(tmp_path / "own masks")
    assert len(set(losses.values())) == 1
    assert run(f"{HERE}:small,p=0.5", tmp_path / "no file", "--lr", "1e-9") == 0
    assert first_loss(tmp_path / "no file") != losses["pth"]


def test_a_run_goes_on_with_the_same_file_and_is_refused_with_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = weights_of(tmp_path / "net.pth"), weights_of(tmp_path / "other.pth", seed=8)
    options = ["--defects", "gradual"]
    model = f"{HERE}:small,p=0.5"
    assert run(model, tmp_path / "run", "--init-from", str(file), *options) == 0
    file.rename(tmp_path / "moved.pth")
    assert run(model, tmp_path / "run", "--init-from", str(tmp_path / "moved.pth"), *options) == 0
    assert len(history(tmp_path / "run")["sessions"]) == 1  # type: ignore[arg-type]
    capsys.readouterr()
    assert run(model, tmp_path / "run", "--init-from", str(other), *options) == 2
    assert "about.init_from" in capsys.readouterr().err
    assert run(f"{HERE}:small", tmp_path / "run", "--init-from", str(other), "--defects", "gradual,p=0.6") == 2
    assert "about.defects" in capsys.readouterr().err


def test_base_asks_timm_for_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def watch(text: str, **_: Any) -> nn.Module:
        asked.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr("dcn_plugin.cli.train.open_model", watch)
    for model in ("defective_resnet18,p=0.5", "resnet18"):
        assert run(model, tmp_path, "--init-from", "base", "--defects", "gradual") == 130
    assert asked == ["defective_resnet18,p=0.5,init_from=base", "resnet18,pretrained=true"]


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (f"{HERE}:small", ["--defects", "graduall"], "did you mean gradual"),
        (f"{HERE}:small", ["--defects", "gradual,shares=0.5"], "did you mean share"),
        (f"{HERE}:small", ["--defects", "sudden,share=0.5"], "option of sudden defects"),
        (f"{HERE}:small", ["--defects", "gradual,share=1.5"], "gradual_share"),
        (f"{HERE}:small", ["--defects", "gradual,share=half"], "gradual_share"),
        (f"{HERE}:small", ["--defects", "gradual,schedule=cubic"], "training option gradual"),
        (f"{HERE}:small", ["--defects", "gradual,p=1.5"], "keep probability"),
        (f"{HERE}:small", ["--defects", "gradual,p=1"], "at the goal"),
        (f"{HERE}:small", ["--defects", "gradual,p=0.5,start=0.4"], "would rise"),
        (f"{HERE}:small", ["--defects", "gradual,blocks=layer9"], "No block matches"),
        (f"{HERE}:small,p=0.5", ["--defects", "gradual,p=0.3"], "has masks already"),
        (f"{HERE}:small", ["--init-from", "base"], "Only a model of timm's has a base"),
        (f"{HERE}:small", ["--init-from", "/nowhere.pth"], "/nowhere.pth"),
        (f"{HERE}:small,normalized=true", ["--init-from", "WIDE"], "do not fit"),
    ],
)
def test_what_does_not_go_together_is_one_line_before_anything_is_written(
    model: str, options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(cifar_resnet((1, 1, 1, 1), in_chans=1, width=8).state_dict(), tmp_path / "wide.pth")
    options = [str(tmp_path / "wide.pth") if option == "WIDE" else option for option in options]
    assert run(model, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("defective: ") and said in error
    assert not (tmp_path / "out").exists()


def test_a_timm_name_with_or_without_masks_of_its_own_gives_the_same_network(tmp_path: Path) -> None:
    with isolated_rng(3):
        save_network(open_model(TIMM, tell=lambda _: None), tmp_path / "net.safetensors", metadata={})
    start = ["--init-from", str(tmp_path / "net.safetensors"), "--defects"]
    assert run(MASKED, tmp_path / "masked", *start, "gradual") == 0
    assert run(TIMM, tmp_path / "plain", *start, "gradual,p=0.4") == 0
    losses = [[epoch["loss"] for epoch in history(tmp_path / name)["epochs"]] for name in ("masked", "plain")]  # type: ignore[attr-defined]
    assert losses[0] == losses[1]
    assert json.loads((tmp_path / "plain" / "history.json").read_text())["epochs"][0]["mask_progress"] == 1

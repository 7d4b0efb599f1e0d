from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
from torch import nn

import dcn_plugin as dcn
from dcn_plugin import cli
from dcn_plugin.surgery.wrappers import network_in
from tests.cli import factory

FACTORY = "tests.cli.factory"


def one_logit() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1))
    return dcn.defectify(net, blocks=["0"], p=0.5, input_size=(1, 8, 8))


def normalized() -> nn.Module:
    return dcn.Normalized(factory.defective(), [0.5], [0.5])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and weights, in the folder the user stands in."""
    net = timm.create_model("defective_resnet18", p=0.4, num_classes=3, img_size=32)
    dcn.save_checkpoint(net, tmp_path / "timm.safetensors")
    dcn.save_checkpoint(factory.defective(seed=5), tmp_path / "own.safetensors")
    weights = network_in(one_logit()).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("defective_resnet18,p=0.5,img_size=32", ["bn1", "64x16x16", "0.5"]),
        ("defective_resnet18,img_size=32,normalize=false", ["bn1"]),
        ("timm.safetensors", ["bn1", "64x16x16", "0.4"]),
        (f"own.safetensors,model={FACTORY}:defective", ["8x8x8", "8x4x4", "0.3"]),
        (f"{FACTORY}:defective,seed=3", ["8x8x8", "2 sites"]),
        ("tests.cli.test_summary:normalized", ["8x8x8", "2 sites"]),
        ("tests.cli.test_summary:one_logit", ["4x6x6", "1 sites"]),
        ("tests.cli.test_summary:one_logit,weights=weights.safetensors", ["4x6x6"]),
    ],
)
def test_it_takes_whatever_evaluate_takes(spec: str, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", spec]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for text in shown:
        assert text in printed.out


def test_the_numbers_are_those_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", "tests.cli.test_summary:normalized"]) == 0
    assert capsys.readouterr().out == f"{dcn.summary(factory.defective())}\n"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("resnet81", "did you mean resnet18"),
        ("resnet81", "timm.list_models('defective_*')"),
        ("zzzzzzzz", "timm.list_models()"),
        ("defective_hrnet_w18", "defectify(timm.create_model('hrnet_w18'), ...)"),
        ("defective_resnet18,blocks=9", "layer4"),
        (":make", "names no function"),
        ("nowhere:", "names no function"),
        ("nowhere.safetensors", "nowhere.safetensors"),
        (f"{FACTORY}:__name__", "is no function"),
        ("tests.cli.factory:linear", "carries no defect masks"),
        ("defective_resnet18,mean=three,std=3", "mean=[...],std=[...]"),
    ],
)
def test_what_it_cannot_open_is_told_with_the_way_on(spec: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", spec]) == 2
    assert told in capsys.readouterr().err


def test_a_file_that_is_no_python_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_models.py").write_text("def make(:\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["summary", "broken_models:make"]) == 2
    assert "broken_models" in capsys.readouterr().err

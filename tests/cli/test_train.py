from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin import cli, training
from dcn_plugin.cli.models import open_model
from dcn_plugin.models import cifar_resnet
from tests.image_files import write_folder

LINEAR = "tests.cli.factory:linear"
HERE = "tests.cli.test_train"
FAST = ["--size", "8", "--limit", "80", "--batch-size", "16", "--epochs", "2"]


def small(p: float | None = None, normalized: bool = False) -> nn.Module:
    """A network that a user might have written, without a seed of its own."""
    net: nn.Module = cifar_resnet((1, 1, 1, 1), in_chans=1, width=4)
    if p is not None:
        net = dcn.defectify(net, p=p, input_size=(1, 8, 8))
    return dcn.Normalized(net, [0.4], [0.2]) if normalized else net


def run(model: str, out: Path, *more: str, data: str = "digits") -> int:
    return cli.main(["train", model, "--data", data, "--out", str(out), *FAST, "--no-progress", *more])


def history(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "history.json").read_text())
    return found


def test_training_prints_a_table_and_leaves_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{HERE}:small,p=0.5", tmp_path) == 0
    printed = capsys.readouterr()
    assert "takes images in [0, 1] as they are" in printed.err
    head, last, best, chosen, *_ = printed.out.splitlines()
    assert head.split() == ["network", "epoch", "loss", "train", "val", "test"]
    assert last.split()[:2] == ["last", "2"]
    assert best.split()[0] == "best"
    assert "validation" in chosen
    assert all(cell.endswith("%") for line in (last, best) for cell in line.split()[3:])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best.safetensors", "last.safetensors", "state.safetensors", "history.json"}


@pytest.mark.parametrize(
    "model",
    [
        f"{HERE}:small,p=0.5",
        f"{HERE}:small",
        f"{HERE}:small,normalized=true",
        f"{HERE}:small,p=0.5,normalized=true",
        LINEAR,
        "test_resnet,num_classes=10,in_chans=1,mean=[0.3],std=[0.3]",
    ],
)
def test_the_network_opens_as_the_last_lines_say(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[nn.Module] = []
    original = training.train

    def watch(net: nn.Module, *args: object, **options: object) -> object:
        trained.append(net)
        return original(net, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train", watch)
    assert run(model, tmp_path, "--select", "last") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "--target" in line)
    again = open_model(line.partition("NAME=")[2], tell=lambda _: None)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again.eval()(images), trained[0].eval()(images))


def test_the_same_command_goes_on_and_another_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(LINEAR, tmp_path / "alone") == 0
    write = training.run_folder.write_archive

    def interrupted(*args: object) -> None:
        write(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(training.run_folder, "write_archive", interrupted)
    assert run(LINEAR, tmp_path / "killed") == 130
    assert "goes on from there" in capsys.readouterr().err
    monkeypatch.setattr(training.run_folder, "write_archive", write)
    assert run(LINEAR, tmp_path / "killed") == 0
    kept = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("alone", "killed")]
    assert kept[0] == kept[1]
    capsys.readouterr()
    assert run(LINEAR, tmp_path / "killed", "--lr", "0.7") == 2
    assert "config.lr" in capsys.readouterr().err
    assert run(f"{LINEAR},seed=1", tmp_path / "killed") == 2
    assert "about.model" in capsys.readouterr().err


def test_weights_come_from_the_seed_and_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        torch.rand(1)
        before = torch.get_rng_state()
        assert run(f"{HERE}:small", tmp_path / name, "--seed", seed) == 0
        assert torch.equal(torch.get_rng_state(), before)
    kept = [(tmp_path / name / "last.safetensors").read_bytes() for name in "abc"]
    assert kept[0] == kept[1] != kept[2]


def test_options_reach_the_configuration(tmp_path: Path) -> None:
    options = ["--preset", "paper-cifar", "--epochs", "7", "--label-smoothing", "0.1", "--ema", "0.9", "--clip", "1"]
    switches = ["--amp", "--channels-last", "--select", "test", "--seed", "5"]
    others = ["--set", "nesterov=true,flip=false", "--set", "shift=1"]
    adversarial = ["--adversarial", "eps=0.1,steps=1"]
    assert run(LINEAR, tmp_path, *options, *switches, *others, *adversarial) == 0
    plan = history(tmp_path)["plan"]
    assert isinstance(plan, dict)
    config = plan["config"]
    assert (
        config.items()
        >= {
            "epochs": 7,
            "milestones": [3, 5],
            "label_smoothing": 0.1,
            "ema_decay": 0.9,
            "clip_norm": 1,
            "amp": True,
            "channels_last": True,
            "select": "test",
            "nesterov": True,
            "seed": 5,
            "shift": 1,
            "flip": False,
            "batch_size": 16,
        }.items()
    )
    assert plan["step_images"].startswith("Madry(eps=0.1, steps=1")
    assert history(tmp_path)["selected_by"] == "test"


def test_a_choice_on_the_test_set_is_said_to_be_too_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(LINEAR, tmp_path, "--select", "test") == 0
    assert "too good" in capsys.readouterr().out


def test_a_folder_is_split_and_can_be_streamed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "photos", {"ant": 20, "bee": 20}, height=12, width=12)
    model = "test_resnet,num_classes=2"
    options = ["--min-scale", "0.3", "--workers", "0", "--test", f"folder:{root}"]
    assert run(model, tmp_path / "out", *options, data=f"folder:{root}") == 0
    plan = history(tmp_path / "out")["plan"]
    assert isinstance(plan, dict)
    assert (plan["data"]["images"], plan["val"]["images"]) == (36, 4)
    assert "images are normalised inside" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resnet81", "--data", "digits"], "This is no model"),
        ([LINEAR, "--data", "folder:/nowhere"], "/nowhere/<class>/<image>.png"),
        ([LINEAR, "--data", "cifar10:/nowhere"], "cifar-10-batches-py"),
        ([LINEAR, "--data", "digits", "--set", "epoch=3"], "did you mean epochs"),
        ([LINEAR, "--data", "digits", "--lr", "-1"], "training option lr"),
        ([LINEAR, "--data", "digits", "--lr", "nan"], "training option lr"),
        ([LINEAR, "--data", "digits", "--label-smoothing", "9/1"], "training option label_smoothing"),
        ([LINEAR, "--data", "digits", "--val-share", "2"], "validation share"),
        ([LINEAR, "--data", "digits", "--val-share", "nan"], "validation share"),
        ([LINEAR, "--data", "digits", "--preset", "paper-cifar", "--epochs", "2"], "milestones"),
        ([LINEAR, "--data", "digits", "--adversarial", "epsilon=1"], "no option 'epsilon'"),
        ([LINEAR, "--data", "digits", "--val-share", "2", "--val", "nothing"], "nothing"),
        ([LINEAR, "--data", "digits", "--device", "cuda:99"], "device"),
        ([LINEAR, "--data", "digits", "--track", "tensorboard"], "pip install tensorboard"),
        ([f"{HERE}:small,p=0.5", "--data", "digits"], "8"),
        ([LINEAR, "--data", "digits"], "in_chans="),
        (["test_resnet", "--data", "digits"], "channels"),
        (["test_resnet,in_chans=1,mean=[0.5],std=[0.5]", "--data", "digits"], "num_classes=10"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "tensorboard" in arguments:
        tracking = pytest.importorskip("accelerate.tracking")
        if "tensorboard" in map(str, tracking.get_available_trackers()):
            pytest.skip("tensorboard is installed")
    assert cli.main(["train", *arguments, "--out", str(tmp_path / "out"), "--no-progress"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("defective: ") and said in error
    assert not (tmp_path / "out").exists()

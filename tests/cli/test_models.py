from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.checkpoint.class_names import class_names_of
from dcn_plugin.cli.models import open_model, open_models
from dcn_plugin.errors import CheckpointError, SpecError
from tests.cli import factory

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
GREY = IMAGES[:, :1, :16, :16]


@torch.no_grad()
def says(model: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(images)
    return logits


def test_a_timm_model_normalises_inside_and_says_so() -> None:
    told: list[str] = []
    torch.manual_seed(0)
    model = open_model("test_resnet,num_classes=3", name="net", tell=told.append)
    assert isinstance(model, dcn.Normalized)
    cfg = timm.create_model("test_resnet").pretrained_cfg
    assert model.mean.flatten().tolist() == pytest.approx(cfg["mean"])
    assert told == [f"net: images are normalised inside, mean {list(cfg['mean'])}, std {list(cfg['std'])}"]
    assert says(model).shape == (2, 3)


def test_normalisation_can_be_changed_and_left_out() -> None:
    model = open_model("test_resnet,mean=[0.1,0.2,0.3],std=[1,1,1]")
    assert isinstance(model, dcn.Normalized)
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert not isinstance(open_model("test_resnet,normalize=false"), dcn.Normalized)
    with pytest.raises(SpecError, match="mean and std"):
        open_model("tests.cli.factory:linear,mean=[0.5]")


@pytest.mark.parametrize(
    ("spec", "mean", "std"),
    [
        ("defective_resnet18,p=0.5,num_classes=2,img_size=32,in_chans=1", [0.449], [0.226]),  # the mean of each three
        ("test_resnet,in_chans=5", [0.5] * 5, [0.5] * 5),
        ("test_resnet,in_chans=1,mean=0.1,std=2", [0.1], [2.0]),
        ("test_resnet,mean=0.1,std=2", [0.1] * 3, [2.0] * 3),
        ("test_resnet,mean=0.1", [0.1] * 3, [0.5] * 3),
        ("tests.cli.factory:linear,mean=0.1,std=2", [0.1], [2.0]),
    ],
)
def test_constants_are_those_of_the_channels(spec: str, mean: list[float], std: list[float]) -> None:
    model = open_model(spec)
    assert isinstance(model, dcn.Normalized)
    assert model.mean.flatten().tolist() == pytest.approx(mean)
    assert model.std.flatten().tolist() == pytest.approx(std)


def test_a_defective_name_carries_masks() -> None:
    assert dcn.is_defective(open_model("defective_resnet18,p=0.5,num_classes=2,img_size=64,normalize=false"))


def test_a_checkpoint_of_a_timm_model_needs_no_other_word(tmp_path: Path) -> None:
    net = timm.create_model("defective_resnet18", p=0.5, num_classes=2, img_size=64)
    dcn.save_checkpoint(net, tmp_path / "net.safetensors")
    model = open_model(str(tmp_path / "net.safetensors"))
    cfg = net.pretrained_cfg
    assert torch.equal(says(model), says(dcn.Normalized(net, cfg["mean"], cfg["std"])))


def test_the_normalisation_in_a_checkpoint_wins(tmp_path: Path) -> None:
    net = dcn.Normalized(
        timm.create_model("defective_resnet18", p=0.5, num_classes=2, img_size=64), [0.4] * 3, [0.3] * 3
    )
    dcn.save_checkpoint(net, tmp_path / "net.safetensors")
    assert torch.equal(says(open_model(str(tmp_path / "net.safetensors"))), says(net))


def test_a_checkpoint_of_a_model_of_ones_own_is_told_its_architecture(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    net = dcn.defectify(factory.resnet(), p=0.5, input_size=(1, 16, 16))
    dcn.save_checkpoint(net, path)
    assert torch.equal(says(open_model(f"{path},model=tests.cli.factory:resnet"), GREY), says(net, GREY))
    with pytest.raises(CheckpointError, match="which architecture"):
        open_model(str(path))
    with pytest.raises(SpecError, match="own options"):
        open_model(f"{path},p=0.3")


def test_a_function_gets_its_options_and_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    other = factory.resnet(width=8)
    safetensors.torch.save_file({key: value + 0.01 for key, value in other.state_dict().items()}, path)
    model = open_model(f"tests.cli.factory:resnet,width=8,weights={path}")
    assert torch.equal(model.conv1.weight, other.conv1.weight + 0.01)  # type: ignore[union-attr, operator]
    with pytest.raises(CheckpointError, match="do not fit"):
        open_model(f"tests.cli.factory:resnet,width=4,weights={path}")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("resnet81", "did you mean resnet18"),
        ("resnet18,num_clases=3", "does not take these options"),
        ("resnet18,global_pool=nothing", "does not take these options"),
        ("resnet18,in_chans=-3", "does not take these options"),
        ("resnet18,output_stride=5", "does not take these options"),
        ("resnet18,block=wide", "does not take these options"),
        ("tests.cli.factory:nothing", "There is no 'nothing'"),
        ("nowhere:net", "There is no 'net'"),
        ("tests.cli.factory:linear,widht=3", "has no option 'widht'"),
        ("tests.cli.factory:no_module", "does not return a module"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(spec: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        open_model(spec)


def test_a_broken_file_of_weights_is_told_by_name(tmp_path: Path) -> None:
    for name in ("net.safetensors", "net.pth"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises((SpecError, CheckpointError), match=name):
            open_model(f"test_resnet,checkpoint_path={tmp_path / name}")


def test_several_models_are_opened_in_eval_mode() -> None:
    found = open_models(
        ["a=tests.cli.factory:linear", "b=tests.cli.factory:linear,seed=1"],
        "targets",
        device=torch.device("cpu"),
        tell=lambda _: None,
    )
    assert list(found) == ["a", "b"]
    assert not any(model.training for model in found.values())


def test_class_names_are_those_that_are_written_or_of_imagenets_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: make(name, **options))
    assert class_names_of(open_model("resnet18")) is None
    assert class_names_of(open_model("resnet18,pretrained=true,num_classes=10")) is None
    names = class_names_of(open_model("resnet18,pretrained=true"))
    assert names is not None
    assert (len(names), names[0]) == (1000, "n01440764")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    assert class_names_of(open_model(f"resnet18,num_classes=2,class_names={tmp_path / 'names.txt'}")) == ("ant", "bee")
    assert class_names_of(open_model("resnet18,num_classes=2,class_names=['ant','bee']")) == ("ant", "bee")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": {f"module.{key}": v for key, v in s.items()}}])
def test_a_torch_file_is_taken_like_a_safetensors_one(tmp_path: Path, wrap) -> None:
    path, other = tmp_path / "net.pth", factory.resnet(width=8)
    torch.save(wrap(other.state_dict()), path)
    for spec in (
        f"tests.cli.factory:resnet,width=8,weights={path}",
        f"{path},model='tests.cli.factory:resnet,width=8'",
    ):
        assert torch.equal(says(open_model(spec), GREY), says(other, GREY))
    with pytest.raises(CheckpointError, match="name it: 'resnet18,num_classes=10,checkpoint_path="):
        open_model(str(path))
    plain = timm.create_model("test_resnet", num_classes=3)
    torch.save(wrap(plain.state_dict()), path)
    model = open_model(f"test_resnet,num_classes=3,checkpoint_path={path},normalize=false")
    assert torch.equal(says(model), says(plain))
    with pytest.raises(CheckpointError, match=r"size mismatch for .*\(3, .*\(4, "):
        open_model(f"test_resnet,num_classes=4,checkpoint_path={path}")


def test_a_file_of_save_checkpoint_is_taken_by_either_option(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    net = timm.create_model("defective_resnet18", p=0.5, num_classes=2, img_size=64, seed=3)
    dcn.save_checkpoint(net, path)
    for head in ("defective_resnet18,img_size=64", "defective_resnet18,img_size=64,seed=3,p=0.5", "resnet18"):
        model = open_model(f"{head},num_classes=2,checkpoint_path={path},normalize=false")
        assert torch.equal(says(model), says(net))
    model = open_model(f"timm:create_model,model_name=defective_resnet18,img_size=64,num_classes=2,weights={path}")
    assert torch.equal(says(model), says(net))


def test_a_folder_that_timm_saved_for_the_hub_is_opened(tmp_path: Path) -> None:
    saved = timm.create_model("defective_resnet10t", num_classes=3, img_size=32, p=0.5, seed=3)
    save_for_hf(saved, str(tmp_path / "net"))
    model = open_model(f"local-dir:{tmp_path / 'net'},pretrained=true,normalize=false")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), saved.eval()(images))

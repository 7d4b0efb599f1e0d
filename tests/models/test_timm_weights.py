"""Weights of your own arrive whole by every route of timm's, or the error says both numbers of classes and the fix."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.errors import CheckpointError, MaskStateError, PretrainedError
from tests.models.test_defective import BASE, NAME, create, same_state

PAPER = "resnet18_cifar"


def archive(model: nn.Module, path: Path) -> None:
    dcn.save_checkpoint(model, path)


def safetensors_file(model: nn.Module, path: Path) -> None:
    save_file(model.state_dict(), path)


def torch_file(model: nn.Module, path: Path) -> None:
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, path)


FILES = {"archive.safetensors": archive, "plain.safetensors": safetensors_file, "net.pth": torch_file}


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[nn.Module, str]:
    """A defective network of 5 classes and its file, where timm's description of the architecture says 1000."""
    model = create(weights_seed=9, num_classes=5)
    FILES[request.param](model, tmp_path / request.param)
    return model, str(tmp_path / request.param)


def own(path: str, **overlay: Any) -> dict[str, Any]:
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": path, **overlay}}


def test_weights_arrive_whole_whatever_timms_description_says(file: tuple[nn.Module, str]) -> None:
    saved, path = file
    assert same_state(create(num_classes=5, **own(path)), saved)
    assert same_state(create(num_classes=5, **own(path, num_classes=7)), saved)


@pytest.mark.parametrize("options", [{}, {"num_classes": 7}])
def test_another_number_of_classes_is_an_error_whose_fix_works(
    file: tuple[nn.Module, str], options: dict[str, int]
) -> None:
    saved, path = file
    asked = options.get("num_classes", 1000)
    with pytest.raises(PretrainedError, match=f"have 5 classes, and {NAME} is asked for with {asked}") as caught:
        create(**options, **own(path))
    fix = str(caught.value.fix)
    whole, asked_for, described = re.findall(r"num_classes=\d+", fix)
    assert same_state(create(**eval(f"dict({whole})"), **own(path)), saved)
    fresh = create(**eval(f"dict({asked_for})"), **own(path, **eval(f"dict({described})")))
    assert fresh.num_classes == asked


def test_a_new_classifier_is_made_where_the_description_is_right_and_the_log_says_so(
    file: tuple[nn.Module, str], caplog: pytest.LogCaptureFixture
) -> None:
    saved, path = file
    with caplog.at_level(logging.WARNING):
        tuned = create(num_classes=7, **own(path, num_classes=5))
    assert "have 5 classes" in caplog.text and "has 7: its classifier starts from random numbers" in caplog.text
    ours, theirs = tuned.state_dict(), saved.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if not key.startswith("fc."))
    assert ours["fc.weight"].shape[0] == 7


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"features_only": True}])
def test_a_model_without_a_classifier_takes_the_rest(file: tuple[nn.Module, str], options: dict[str, Any]) -> None:
    saved, path = file
    body = create(**options, **own(path))
    assert torch.equal(body.state_dict()["layer1.0.conv1.weight"], saved.state_dict()["layer1.0.conv1.weight"])


@pytest.mark.parametrize("classes", [5, 7, 0])
def test_nothing_else_may_be_missing_where_the_classifier_is(
    file: tuple[nn.Module, str], tmp_path: Path, classes: int
) -> None:
    part = {key: value for key, value in file[0].state_dict().items() if not key.startswith("layer3")}
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=rf"do not fit {NAME}: Missing key.*layer3"):
        create(num_classes=classes, **own(str(tmp_path / "part.safetensors"), num_classes=5))


def test_init_from_base_follows_the_same_rule(tmp_path: Path) -> None:
    plain, path = create(BASE, weights_seed=8, num_classes=5), tmp_path / "plain.safetensors"
    save_file(plain.state_dict(), path)
    overlay = {"init_from": "base", "pretrained_cfg_overlay": {"file": str(path)}}
    found = create(num_classes=5, **overlay).state_dict()
    assert all(torch.equal(found[key], value) for key, value in plain.state_dict().items())
    with pytest.raises(PretrainedError, match="have 5 classes"):
        create(num_classes=7, **overlay)


@pytest.mark.parametrize("safe", [False, True])
def test_what_timm_saved_for_the_hub_comes_back_whole_even_beside_a_wrong_description(
    tmp_path: Path, safe: bool
) -> None:
    model = create(num_classes=5)
    save_for_hf(model, tmp_path, safe_serialization=safe)
    config = tmp_path / "config.json"
    text = config.read_text()
    for wrong in (text, re.sub(r'"num_classes": 5', '"num_classes": 1000', text)):
        config.write_text(wrong)
        back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5)
        assert same_state(back, model)
    with pytest.raises(PretrainedError, match="have 5 classes"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7)
    config.write_text(text)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7).num_classes == 7


def test_checkpoint_path_takes_what_timm_can_read_and_names_the_two_ways_for_the_rest(
    file: tuple[nn.Module, str],
) -> None:
    saved, path = file
    if not path.endswith("archive.safetensors"):
        assert same_state(create(num_classes=5, checkpoint_path=path), saved)
        with pytest.raises(RuntimeError, match=r"size mismatch for fc.weight.*\[5, 512\].*\[7, 512\]"):
            create(num_classes=7, checkpoint_path=path)
        return
    with pytest.raises(MaskStateError, match="masks are packed") as caught:
        create(num_classes=5, checkpoint_path=path)
    model = create(num_classes=5)
    ways = r"(dcn_plugin\.load_checkpoint\(.*?\)), or .* with (pretrained=True,.*\)), not"
    first, second = re.findall(ways, str(caught.value.fix))[0]
    assert same_state(eval(first, {"dcn_plugin": dcn, "path": path, "model": model}), saved)
    assert same_state(create(num_classes=5, **eval(f"dict({second})", {"path": path})), saved)


def test_a_file_of_ours_in_a_local_folder_is_refused_with_the_way_to_load_it(tmp_path: Path) -> None:
    model = create(num_classes=5)
    save_for_hf(model, tmp_path, safe_serialization=True)
    dcn.save_checkpoint(model, tmp_path / "model.safetensors")
    with pytest.raises(MaskStateError, match="masks are packed"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_the_papers_networks_follow_the_same_rule(tmp_path: Path) -> None:
    path = str(tmp_path / "net.safetensors")
    plain = timm.create_model(PAPER, width=4, num_classes=5)
    save_file(plain.state_dict(), path)
    back = timm.create_model(PAPER, width=4, num_classes=5, **own(path))
    assert same_state(back, plain) and back.pretrained_cfg["file"] == path
    with pytest.raises(PretrainedError, match=f"have 5 classes, and {PAPER} is asked for with 10"):
        timm.create_model(PAPER, width=4, **own(path))
    tuned = timm.create_model(PAPER, width=4, num_classes=7, **own(path, num_classes=5))
    assert torch.equal(tuned.conv1.weight, plain.conv1.weight) and tuned.fc.out_features == 7
    with pytest.raises(CheckpointError, match="do not fit"):
        timm.create_model(PAPER, width=8, num_classes=7, **own(path, num_classes=5))
    dcn.save_checkpoint(timm.create_model(f"defective_{PAPER}", width=4, num_classes=5), path)
    with pytest.raises(PretrainedError, match=f"create defective_{PAPER}"):
        timm.create_model(PAPER, width=4, num_classes=5, **own(path))


def test_weights_that_are_named_and_not_asked_for_are_noticed(
    file: tuple[nn.Module, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        create(num_classes=5, pretrained_cfg_overlay={"file": file[1]})
    assert "pass pretrained=True too" in caplog.text
    caplog.clear()
    create(num_classes=5, pretrained_cfg_overlay={"mean": (0.5, 0.5, 0.5)})
    assert not caplog.text


def test_the_ways_on_that_the_error_of_a_missing_file_names_work(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = create(num_classes=5)
    dcn.save_checkpoint(model, "weights.safetensors")
    with pytest.raises(PretrainedError) as caught:
        create(num_classes=5, pretrained=True)
    (named,) = re.findall(r"pass (pretrained_cfg_overlay=dict\(file='weights.safetensors'\))", str(caught.value))
    assert same_state(create(num_classes=5, pretrained=True, **eval(f"dict({named})")), model)

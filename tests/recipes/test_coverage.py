"""The record of the coverage sweep: complete, quoted correctly, and what the sweep still finds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.models.timm_table import NAMED, UNNAMED
from recipes.coverage import names, report, sweep

ROOT = Path(__file__).resolve().parents[2]
QUOTED = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
AIM = 0.9
KEYS = {
    "equal": {"family", "outcome", "input_size", "sites", "convs", "params_m", "seconds"},
    "refused": {"family", "outcome", "input_size", "error", "reason", "params_m", "seconds"},
    "not built": {"family", "outcome", "reason", "seconds"},
    "no 2-d convolution": {"family", "outcome", "params_m", "seconds"},
}
TINY = ["timm/test_resnet", "timm/test_vit", "timm/test_convnext", "timm/test_byobnet"]
MORE = [
    *("timm/resnetv2_18", "timm/densenet121", "timm/mobilenetv3_small_100", "timm/levit_128", "timm/hrnet_w18_small"),
    *("timm/efficientnet_blur_b0", "timm/convnextv2_atto", "timm/caformer_s18", "timm/ese_vovnet39b_evos"),
    *("torchvision/regnet_y_400mf", "torchvision/googlenet", "torchvision/r3d_18", "torchvision/fcn_resnet50"),
]


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(report.RECORD.read_text(encoding="utf-8"))


def test_the_record_says_how_it_was_made(record: dict[str, Any]) -> None:
    assert set(record) == {"what", "command", "options", "versions", "hardware", "models", "not_run"}
    assert {"torch", "timm", "torchvision", "dcn_plugin", "python"} == set(record["versions"])
    assert record["options"]["blocks"] == "bottom"
    assert isinstance(record["options"]["seed"], int)


def test_every_model_has_an_outcome_with_its_reason_and_there_is_no_third_one(record: dict[str, Any]) -> None:
    for name, model in record["models"].items():
        assert set(model) - {"dtype"} == KEYS[model["outcome"]], name
        assert model.get("dtype", "bfloat16") == "bfloat16", name  # named only where float32 did not fit
        if model["outcome"] == "refused":
            assert issubclass(getattr(dcn.errors, model["error"]), dcn.errors.DcnError)
        if model["outcome"] == "equal":
            assert model["sites"] > 0, name


def test_the_table_of_names_is_what_the_record_leads_to(record: dict[str, Any]) -> None:
    if record["versions"]["timm"] != timm.__version__:
        pytest.skip("another timm is installed than the record was made with")
    named, unnamed = names.sort_out(record)
    assert ({k: list(v) for k, v in NAMED.items()}, {k: list(v) for k, v in UNNAMED.items()}) == (named, unnamed)
    assert names.TABLE.read_text(encoding="utf-8") == names.render(record)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"outcome": "equal", "sites": 3}, None),
        ({"outcome": "equal", "sites": 2}, "no CNN"),
        ({"outcome": "no 2-d convolution"}, "no 2-D convolution"),
        ({"outcome": "refused", "reason": "its resolution goes back up"}, "goes back up"),
    ],
)
def test_a_model_gets_a_name_or_a_reason(model: dict[str, Any], reason: str | None) -> None:
    got = names.reason_against("resnet18", model)
    assert got is None if reason is None else reason in str(got)
    assert "tests" in str(names.reason_against("test_resnet", model))


def test_a_model_that_the_sweep_found_wrong_stops_the_table() -> None:
    with pytest.raises(SystemExit, match="run the sweep again"):
        names.reason_against("resnet18", {"outcome": "bug"})


def test_every_model_of_the_recorded_libraries_has_an_outcome_or_is_named_as_not_run(record: dict[str, Any]) -> None:
    if record["versions"] | {"dcn_plugin": ""} != sweep.header()["versions"] | {"dcn_plugin": ""}:
        pytest.skip("other versions are installed than the record was made with")
    assert sorted([*record["models"], *record["not_run"]]) == sorted(sweep.model_names())


def test_at_least_nine_in_ten_models_are_equal(record: dict[str, Any]) -> None:
    found = report.counts(record)
    assert found["equal"] >= AIM * found["in scope"]


def test_the_page_is_the_one_that_the_record_gives(record: dict[str, Any]) -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.render(record)


def test_what_the_documents_quote_is_what_the_record_says(record: dict[str, Any]) -> None:
    found = report.counts(record)
    for path in QUOTED:
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            if "recipes/coverage" in paragraph:
                for equal, total in re.findall(r"([\d,]+) of ([\d,]+)", paragraph):
                    assert (equal, total) == (f"{found['equal']:,}", f"{found['in scope']:,}"), path
                for quoted in re.findall(r"[\d.]+ %", paragraph):
                    assert quoted == report.share(record), path


@pytest.mark.parametrize("name", [*TINY, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
@pytest.mark.filterwarnings("ignore")  # the models' own
def test_the_sweep_finds_today_what_the_record_says(name: str, record: dict[str, Any]) -> None:
    before, now = record["models"][name], sweep.run_model(name)
    for key in ("outcome", "input_size", "sites", "error", "reason"):
        assert now.get(key) == before.get(key), now


def test_the_sweep_notices_a_network_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = sweep.runnable("timm/test_resnet")
    assert sweep.check(model, images)["outcome"] == "equal"
    plain_defectify = dcn.defectify

    def defectify(*args: Any, **options: Any) -> nn.Module:
        net = plain_defectify(*args, **options)
        owner = net.get_submodule(net.defect_spec.sites[0].name)
        owner.register_forward_hook(lambda module, args, out: out / 2)
        return net

    monkeypatch.setattr(sweep.dcn, "defectify", defectify)
    found = sweep.check(model, images)
    assert found["outcome"] == "bug" and "differs from the oracle" in found["reason"]


def test_the_sweep_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ran = tmp_path / "record.json", []

    def run_model(name: str) -> dict[str, Any]:
        ran.append(name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return {"outcome": "equal", "seconds": 0}

    monkeypatch.setattr(sweep, "run_model", run_model)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(["a", "b", "c"], path, lambda line: None)
    done = sweep.sweep(["a", "b", "c"], path, lambda line: None)
    assert ran == ["a", "b", "b", "c"]
    assert json.loads(path.read_text(encoding="utf-8")) == done
    assert list(done["models"]) == ["a", "b", "c"]

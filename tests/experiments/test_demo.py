from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.evaluate import ResultFile, code_hash
from dcn_plugin.experiments import BASELINE, DemoOutcome, run_demo
from dcn_plugin.experiments import demo as module
from dcn_plugin.experiments.demo_networks import SHIPPED
from dcn_plugin.pretrained import pretrained_card
from tests.cli.test_main import TINY


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoOutcome]:
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, seeds=[0, 1], spec=TINY)


def without_run(path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(path.read_text())
    del raw["run"]
    return raw


def test_every_target_meets_every_attack_and_every_noise_in_every_run(two_seeds: tuple[Path, DemoOutcome]) -> None:
    results = two_seeds[1].file.results
    assert [(r.seed, r.protocol, r.eps, r.target) for r in results] == [
        (seed, protocol, eps, target)
        for seed in (0, 1)
        for protocol, eps in (("transfer", 0.2), ("gaussian", 0.3))
        for target in (BASELINE, "defective p=0.5")
    ]
    assert ResultFile.read(two_seeds[0] / "results.json") == two_seeds[1].file
    assert all(r.n_total == 450 for r in results)


def test_source_standard_and_defective_are_different_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nets: dict[str, torch.nn.Module] = {}
    examples_of = module._examples
    monkeypatch.setattr(module, "_examples", lambda found, made: nets.update(found) or examples_of(found, made))
    run_demo(tmp_path, seeds=[0], spec=TINY)
    weights = {name: net.conv1.weight for name, net in nets.items()}  # type: ignore[union-attr]
    assert list(weights) == ["source", BASELINE, "defective p=0.5"]
    values = list(weights.values())
    assert not any(torch.equal(values[i], values[j]) for i in range(3) for j in range(i))  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_results_to_the_bit(two_seeds: tuple[Path, DemoOutcome], tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    run_demo(tmp_path, seeds=[0, 1], spec=TINY)
    assert without_run(tmp_path / "results.json") == without_run(two_seeds[0] / "results.json")
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ(two_seeds: tuple[Path, DemoOutcome]) -> None:
    results = two_seeds[1].file.results
    assert [r.n_correct for r in results[:4]] != [r.n_correct for r in results[4:]]


def test_finished_seeds_are_reused_and_the_file_is_the_same(
    two_seeds: tuple[Path, DemoOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_seed = module._run_seed

    def interrupted(spec: Any, seed: int, *args: Any) -> Any:
        if seed == 1:
            raise KeyboardInterrupt
        return run_seed(spec, seed, *args)

    monkeypatch.setattr(module, "_run_seed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, seeds=[0, 1], spec=TINY)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(module, "_run_seed", run_seed)
    outcome = run_demo(tmp_path, seeds=[0, 1], spec=TINY)
    assert outcome.reused == (0,)
    assert without_run(tmp_path / "results.json") == without_run(two_seeds[0] / "results.json")


# The hash of the code is passed on, so that a file saved meanwhile does not fail the test.
KILLED = """
import sys
from dcn_plugin.experiments import demo_spec, run_demo
from tests.cli.test_main import TINY
demo_spec.code_hash = lambda *_: sys.argv[2]
run_demo(sys.argv[1], seeds=range(50), spec=TINY)
"""


def test_a_run_that_is_killed_loses_no_finished_seed(two_seeds: tuple[Path, DemoOutcome], tmp_path: Path) -> None:
    done = tmp_path / "seeds" / "seed-0.json"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), code_hash("experiments")], cwd=Path(__file__).parents[2]
    )
    try:
        deadline = time.monotonic() + 100
        while not done.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    outcome = run_demo(tmp_path, seeds=[0, 1], spec=TINY)
    assert 0 in outcome.reused
    assert without_run(tmp_path / "results.json") == without_run(two_seeds[0] / "results.json")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "seed-0.json").write_text("{"),
        lambda folder: (folder / "seed-0.npz").unlink(),
        lambda folder: (folder / "seed-0.npz").write_bytes(b"PK"),
        lambda folder: (folder / "seed-0.json").write_text(
            (folder / "seed-0.json").read_text().replace('"steps": 2', '"steps": 3')
        ),
        lambda folder: (folder / "seed-0.json").write_text(
            (folder / "seed-0.json").read_text().replace('"cores": ', '"cores": 1')
        ),
    ],
    ids=["truncated", "no images", "broken images", "other settings", "other machine"],
)
def test_results_that_are_spoiled_or_of_other_settings_are_made_again(
    two_seeds: tuple[Path, DemoOutcome], tmp_path: Path, spoil: Any
) -> None:
    shutil.copytree(two_seeds[0], tmp_path, dirs_exist_ok=True)
    spoil(tmp_path / "seeds")
    assert run_demo(tmp_path, seeds=[0, 1], spec=TINY).reused == (1,)
    assert without_run(tmp_path / "results.json") == without_run(two_seeds[0] / "results.json")


def test_another_spec_or_the_wish_for_a_fresh_run_reuses_nothing(
    two_seeds: tuple[Path, DemoOutcome], tmp_path: Path
) -> None:
    shutil.copytree(two_seeds[0], tmp_path, dirs_exist_ok=True)
    outcome = run_demo(tmp_path, seeds=[0], spec=TINY)
    assert outcome.reused == (0,)
    # The records of the other seed stay.
    assert {result.seed for result in outcome.file.results} == {0}
    assert ResultFile.read(tmp_path / "results.json").results == two_seeds[1].file.results
    assert run_demo(tmp_path, seeds=[0], spec=TINY, fresh=True).reused == ()
    other = dataclasses.replace(TINY, training=dataclasses.replace(TINY.training, batch_size=128))
    assert run_demo(tmp_path, seeds=[0], spec=other).reused == ()


def test_one_thread_computes_and_the_number_comes_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outcome = run_demo(tmp_path, seeds=[0], spec=TINY)
        assert {result.hardware["threads"] for result in outcome.file.results} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_examples_show_every_state_network_and_mask(two_seeds: tuple[Path, DemoOutcome]) -> None:
    examples = two_seeds[1].examples
    assert [row.title for row in examples.rows] == ["clean", "eps 0.2"]
    assert list(examples.rows[0].predictions) == ["source", BASELINE, "defective p=0.5"]
    assert list(examples.masks) == ["defective p=0.5\nfirst mask, channel 0"]
    assert "eps 0.2 fooled the source" in examples.chosen


def test_words_and_facts_come_from_the_records(two_seeds: tuple[Path, DemoOutcome]) -> None:
    outcome = two_seeds[1]
    assert "2 steps) from the 450 test images" in " ".join(outcome.intro)
    assert outcome.facts["Seeds"] == "0, 1"
    assert outcome.facts["Training"] == "epochs 1"
    shifted = dataclasses.replace(TINY.training, epochs=12, shift=1)
    spec = {**outcome.file.spec, "training": json.loads(shifted.to_json())}
    other = dataclasses.replace(outcome, file=dataclasses.replace(outcome.file, spec=spec))
    assert other.facts["Training"] == "epochs 12, shift 1"


@pytest.mark.parametrize("seeds", [(), (0, 0), (-1,)])
def test_seeds_that_make_no_sense_are_refused(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="seeds"):
        run_demo(tmp_path, seeds=seeds, spec=TINY)


def test_results_do_not_go_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match="folder"):
        run_demo(tmp_path / "out", seeds=[0], spec=TINY)


def test_the_defaults_are_those_the_issue_asks_for() -> None:
    spec = module.DemoSpec()
    assert (spec.keep, spec.eps, spec.steps) == ((0.5, 0.3, 0.1), (0.1, 0.2, 0.3), 20)
    assert (spec.sigmas, spec.size, spec.blocks) == ((0.1, 0.2, 0.3, 0.4, 0.5), 16, "bottom")


QUICK = module.DemoSpec(keep=(0.3,), eps=(0.2,), steps=2, sigmas=(0.3,))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoOutcome]:
    out = tmp_path_factory.mktemp("shipped")
    (out / "seeds").mkdir()
    (out / "seeds" / "seed-0.json").write_text("of a run that trained")
    return out, run_demo(out, spec=QUICK, pretrained=True)


def test_the_networks_of_the_package_are_attacked_without_training(
    shipped: tuple[Path, DemoOutcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(module, "train_network", refuse)
    outcome = run_demo(tmp_path, spec=QUICK, pretrained=True, seeds=[0])
    assert [(r.seed, r.protocol, r.target) for r in outcome.file.results] == [
        (0, protocol, target) for protocol in ("transfer", "gaussian") for target in (BASELINE, "defective p=0.3")
    ]
    assert all((r.n_clean_correct or 0) > 400 for r in outcome.file.results), "they are trained"
    assert without_run(tmp_path / "results.json") == without_run(shipped[0] / "results.json")


def test_without_training_it_is_quick_unless_other_settings_are_asked_for(
    tmp_path: Path, shipped: tuple[Path, DemoOutcome]
) -> None:
    outcome = run_demo(tmp_path, pretrained=True)
    assert {(r.n_total, r.steps) for r in outcome.file.results if r.protocol == "transfer"} == {(50, 10)}
    assert {(r.eps, r.protocol) for r in outcome.file.results} == {
        *((eps, "transfer") for eps in module.DemoSpec().eps),
        *((sigma, "gaussian") for sigma in module.DemoSpec().sigmas),
    }
    assert "10 steps) from the first 50 test images" in " ".join(outcome.intro)
    assert all(r.n_total == 450 for r in shipped[1].file.results)


def test_without_training_the_results_of_trained_seeds_stay_as_they_are(shipped: tuple[Path, DemoOutcome]) -> None:
    assert (shipped[0] / "seeds" / "seed-0.json").read_text() == "of a run that trained"
    assert shipped[1].reused == ()


def test_the_record_names_the_files_of_networks_that_were_not_trained(
    shipped: tuple[Path, DemoOutcome], two_seeds: tuple[Path, DemoOutcome]
) -> None:
    spec, facts = shipped[1].file.spec, shipped[1].facts
    assert spec["pretrained"] == {name: pretrained_card(name).sha256 for name in SHIPPED.values()}
    assert spec["pretrained"]["digits_resnet.source"][:16] in facts["Not trained in this run"]
    assert "pretrained" not in two_seeds[1].file.spec
    assert "Not trained in this run" not in two_seeds[1].facts


@pytest.mark.parametrize("seeds", [(1,), (0, 1), ()])
def test_the_networks_of_the_package_have_one_seed(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="one seed"):
        run_demo(tmp_path, seeds=seeds, spec=QUICK, pretrained=True)


def test_settings_of_other_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"other settings.*'keep': \(0\.5,\).*keep=\(0\.3,\)"):
        run_demo(tmp_path, spec=dataclasses.replace(QUICK, keep=(0.5,)), pretrained=True)
    with pytest.raises(SpecError, match="width"):
        run_demo(tmp_path, spec=dataclasses.replace(QUICK, width=8), pretrained=True)

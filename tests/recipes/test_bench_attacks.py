"""The benchmark of the decision-based attacks: it counts fairly, and it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("foolbox")
pytest.importorskip("art")

from recipes.bench_attacks import bench, distances
from recipes.bench_attacks.nets import _OnlyStart
from recipes.bench_attacks.page import figures, markdown
from recipes.bench_attacks.rivals import RIVALS, BudgetSpentError, Watch
from tests.attack_oracles import Counting, grey, right
from tests.image_files import pixels, write_image
from tests.toys import linear_model


def setting(count: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model, images it gets right, their labels, and adversarial images."""
    model = linear_model(16)
    clean = grey(count, dtype=torch.float32)
    truth = right(model, clean)
    starts = _OnlyStart(seed=0)(model, clean, truth).images
    return model, clean, truth, starts


def test_a_watch_notes_the_closest_adversarial_image_asked_about_so_far() -> None:
    model, clean, truth, starts = setting(3)
    watch = Watch(model, clean, truth, [1, 2, 4])
    far = (starts - clean).double().square().mean((1, 2, 3))
    watch(clean)
    watch(starts)
    watch(clean)
    with pytest.raises(BudgetSpentError):
        watch(clean + (starts - clean) * 1.01)
    assert watch.distances[1].isinf().all()
    assert torch.equal(watch.distances[2], far)
    assert torch.equal(watch.distances[4], far)


def test_a_watch_on_one_image_takes_several_questions_at_once() -> None:
    model, clean, truth, starts = setting(1)
    watch = Watch(model, clean, truth, [2, 10])
    watch(torch.cat([clean, clean, starts]))
    assert watch.asked == 3
    assert watch.distances[2].isinf().all()
    assert watch.distances[10].isfinite().all()


@pytest.mark.parametrize("attack", list(RIVALS))
@pytest.mark.parametrize("tool", ["foolbox", "art"])
def test_a_rival_asks_as_much_as_the_budget_says_and_gets_closer(attack: str, tool: str) -> None:
    model, clean, truth, starts = setting(3)
    counting = Counting(model)
    rng = torch.get_rng_state()
    found = RIVALS[attack][tool](counting, clean, truth, starts, [50, 300], seed=0)
    assert torch.equal(torch.get_rng_state(), rng)
    assert 0 <= counting.rows - 3 * 300 <= 3 * 64  # a forward pass of ART holds several questions
    assert (found[300] <= found[50]).all()
    assert (found[300] < (starts - clean).double().square().mean((1, 2, 3))).any()


@pytest.mark.slow
def test_the_benchmark_runs_and_names_every_limit(tmp_path: Path) -> None:
    times = bench.run(replace(bench.QUICK, tiny_images=2, cifar_images=2, timed_queries=40), "smoke test")
    small = replace(distances.QUICK, tiny_images=2, cifar_images=2, budgets=(40, 80, 120))
    records = {"record": times, "distances": distances.run(small, "smoke test", parts=tmp_path)}
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(kept) == len(distances.parts_of(small)) == 4 * 2 * 5
    lost = next(iter(kept))
    lost.unlink()
    again = distances.run(small, "smoke test", parts=tmp_path)
    assert {file for file, time in kept.items() if file.stat().st_mtime_ns != time} == {lost}
    assert [net[attack]["image_by_image"] for net in again["nets"].values() for attack in distances.OURS] == [
        net[attack]["image_by_image"] for net in records["distances"]["nets"].values() for attack in distances.OURS
    ]
    lines = figures(records)
    assert len(lines) == 2 * 3 + 1 + 4 * (4 + 5)
    assert all(value > 0 for _, value, _ in lines)
    text = markdown(records)
    for what, _, _ in lines:
        assert what in text
    assert text.count("| BoundaryAttack, `coarse=1` | 120 |") == 4
    assert text.count("| HopSkipJump, `coarse=1` | 80 |") == 4
    assert "bandwidths compete for the queries of each sample" in text
    assert text.count("| attack | queries | bandwidths compete |") == 4
    assert "CIFAR ResNet-18 0.3-Bottom, width 8, input 1x16x16" in text
    # Each alone makes a page, too.
    assert [len(figures({name: record})) for name, record in records.items()] == [7, 4 * (4 + 5)]
    assert "distances.json" not in markdown({"record": times})


@pytest.mark.slow
def test_networks_of_natural_images_are_attacked_where_there_are_some(tmp_path: Path) -> None:
    root = tmp_path / "cifar"
    for part, count in (("train", 30), ("test", 4)):
        for label in range(10):
            for number in range(count):
                # Classes of another grey each, so that a network has some of them right.
                shade = pixels(32, 32, seed=number) // 8 + 22 * label
                write_image(root / part / f"class{label}" / f"{number}.png", shade)
    options = replace(distances.QUICK, tiny_images=2, cifar_images=0, natural_images=2, natural_width=8)
    options = replace(options, natural_art_images=1, natural_train_images=300, natural_epochs=20, budgets=(40, 80, 120))
    assert distances.kinds(options) == ["tiny", "tiny-defective", "natural", "natural-defective"]
    with pytest.raises(SystemExit, match="--data"):
        distances.run(options, "smoke test")
    record = distances.run(options, "smoke test", data=root)
    names = [net["network"] for net in record["nets"].values()]
    assert [name.endswith("input 3x32x32, CIFAR-10 (image folder)") for name in names] == [False, False, True, True]
    assert "0.3-Bottom" in names[3] and names[3] in markdown({"distances": record})


def test_the_committed_page_is_that_of_the_committed_records() -> None:
    folder = Path(bench.__file__).parent
    files = {name: folder / f"{name}.json" for name in ("record", "distances")}
    records = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}
    assert (folder / "README.md").read_text("utf-8") == markdown(records)

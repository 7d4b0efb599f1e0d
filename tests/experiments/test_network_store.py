from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import dcn_plugin as dcn
from dcn_plugin.attacks import MIFGSM, PGD, TIFGSM, DistilledSource, EnsembleSource
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import RunDirectory
from dcn_plugin.evaluate.relations import relation
from dcn_plugin.experiments.datasets import open_data
from dcn_plugin.experiments.measurements import measurements_of
from dcn_plugin.experiments.network_store import (
    TrainedNetworks,
    at_hand,
    build,
    public_attacks,
    public_jobs,
    training_of,
)
from dcn_plugin.experiments.networks import PUBLIC, Job, jobs_of, read_network
from dcn_plugin.experiments.recipe import list_recipes, load_recipe, recipes_root
from dcn_plugin.experiments.scales import scale_for
from dcn_plugin.models import MaskExpectation
from dcn_plugin.support.onednn import check_channels_last, narrow_strided_conv

TINY = dataclasses.replace(scale_for("smoke", "cifar10"), train_images=32)


def jobs(text: object, *, data: str = "digits", full: bool = False) -> list[Job]:
    scale = scale_for("full", data) if full else TINY
    network = read_network(text, net="resnet18")  # type: ignore[arg-type]
    return jobs_of([network], seed=0, scale=scale, data=data)


CPU = torch.device("cpu")


@pytest.fixture
def networks(tmp_path: Path) -> TrainedNetworks:
    store = RunDirectory(tmp_path / "store")
    return TrainedNetworks(tmp_path / "nets", open_data("digits", None), device=torch.device("cpu"), store=store)


def test_networks_of_one_run_differ_in_their_masks_only() -> None:
    (standard,), (masked,) = jobs("Standard"), jobs("0.3-Bottom")
    plain, defective = build(standard), build(masked)
    assert dcn.is_defective(defective)
    weights = dict(defective.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in plain.named_parameters())


def test_gray_box_sources_are_what_their_names_say() -> None:
    target = build(jobs("0.3-Bottom")[0])
    same = build(jobs({"variant": "0.3-Bottom", "run": "gray-box", "masks": "target"})[0])
    other = build(jobs({"variant": "0.3-Bottom", "run": "gray-box"})[0])
    assert relation(same, target) == "other weights"
    assert relation(other, target) == "other masks"


def test_options_that_no_variant_has_reach_the_network() -> None:
    defects = {"blocks": "bottom", "p": {"0": 0.1, "1": 0.3, "2": 0.5}, "sampling": "exact"}
    rows = dcn.summary(build(jobs({"variant": "0.3-Bottom", "defects": defects})[0])).rows
    kept = {row.block: round(row.kept, 2) for row in rows}
    assert sorted(set(kept.values())) == [0.1, 0.3, 0.5]


def test_a_mode_with_a_span_reaches_the_network() -> None:
    defects = {"mode": "nm", "span": 10}
    rows = dcn.summary(build(jobs({"variant": "0.3-Bottom", "defects": defects})[0])).rows
    assert {row.mode for row in rows} == {"nm 3:10"}


def test_a_trained_network_is_opened_as_it_was_trained(networks: TrainedNetworks) -> None:
    (job,) = jobs("0.3-Bottom")
    assert not networks.has(job)
    networks.train(job)
    assert networks.has(job)
    assert networks.missing([job]) == []
    (epoch,) = networks.history(job).epochs
    assert epoch.loss > 0
    before, after = build(job), networks.open([job])
    assert not any(module.training for module in after.modules())
    assert relation(before, after) == "other weights"
    assert {path.name for path in networks.path(job).iterdir()} == {
        "network.json",
        "history.json",
        "last.safetensors",
    }


def test_an_ensemble_is_opened_as_one_network(networks: TrainedNetworks) -> None:
    members = jobs("0.3-Bottom EN")
    for job in members:
        networks.train(job)
    assert isinstance(networks.open(members), EnsembleSource)
    assert len(networks.missing([*members, *jobs("0.3-Bottom")])) == 0


def test_pubdef_trains_its_public_networks_first(networks: TrainedNetworks) -> None:
    (job,) = jobs("0.3-Bottom + PubDef")
    order = networks.missing([job])
    assert [one.network.run for one in order] == [PUBLIC, PUBLIC, "target"]
    assert order[:2] == public_jobs(job)
    for one in order:
        networks.train(one)
    assert networks.missing([job]) == []


def test_other_code_keeps_trained_networks_and_whatever_decides_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = jobs("0.3-Bottom + AT")
    name = job.name
    network, scale = job.network, job.scale
    training = dataclasses.replace(scale.training, lr=0.01)
    others = [
        dataclasses.replace(job, network=dataclasses.replace(network, **{field: value}))
        for field, value in (
            ("net", "vgg19"),
            ("variant", dataclasses.replace(network.variant, bottom=0.5)),
            ("defence", None),
            ("run", "source"),
            ("masks", "source"),
            ("defects", {"mode": "nm"}),
        )
    ]
    others += [
        dataclasses.replace(job, scale=dataclasses.replace(scale, **{field: value}))
        for field, value in (("width", 16), ("train_images", 33), ("max_steps", 1), ("training", training))
    ]
    others += [
        dataclasses.replace(job, **{field: value})  # type: ignore[arg-type]
        for field, value in (("member", 1), ("seed", 1), ("data", "cifar10"), ("copy", "JPEG"))
    ]
    assert len({name, *(other.name for other in others)}) == 1 + len(others)
    monkeypatch.setattr("dcn_plugin.support.environment.code_hash", lambda *_: "another")
    monkeypatch.setattr("dcn_plugin.evaluate.cache_keys.code_hash", lambda *_: "another")
    assert job.name == name


@pytest.mark.slow
@pytest.mark.parametrize("net", ["resnet18", "resnet50", "densenet121", "senet18", "vgg19"])
def test_networks_for_imagenet_are_timms_with_masks_at_224_pixels(net: str) -> None:
    model = build(jobs(f"{net} 0.1-Bottom", data="imagenet", full=True)[0]).eval()
    assert dcn.is_defective(model)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert not dcn.is_defective(build(jobs(net, data="imagenet", full=True)[0]))


def test_resnet18_for_imagenet_has_the_authors_stem_where_it_is_defective() -> None:
    defective = build(jobs("0.1-Bottom", data="imagenet", full=True)[0])
    standard = build(jobs("Standard", data="imagenet", full=True)[0])
    found = {name: module for name, module in defective.named_modules() if name == "model.conv1"}
    assert [(one.kernel_size, one.stride) for one in found.values()] == [((3, 3), (2, 2))]
    assert standard.get_submodule("model.conv1").kernel_size == (7, 7)
    assert [row.shape for row in dcn.summary(defective).rows][:2] == [(64, 112, 112), (64, 56, 56)]
    # Both start as timm starts: the last norm of a block at zero, convolutions from a normal distribution.
    for net in (defective, standard):
        assert not net.get_submodule("model.layer1.0.bn2").weight.any()
        weight = net.get_submodule("model.layer3.0.conv1").weight
        assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)


def test_a_variant_without_a_version_for_imagenet_is_refused() -> None:
    with pytest.raises(SpecError, match="ImageNet"):
        build(jobs("0.3-Top", data="imagenet", full=True)[0])


@pytest.mark.parametrize(("norm_statistics", "engine"), [("all", "auto"), ("live", "dense")])
def test_the_history_of_a_network_says_what_computed_its_steps(
    norm_statistics: str, engine: str, tmp_path: Path
) -> None:
    store, data = RunDirectory(tmp_path / "store"), open_data("digits", None)
    networks = TrainedNetworks(tmp_path / "nets", data, device=torch.device("cpu"), store=store, engine=engine)  # type: ignore[arg-type]
    (job,) = jobs({"variant": "0.3-Bottom", "norm_statistics": norm_statistics})
    networks.train(job)
    told = networks.history(job).engine
    assert told is not None and told.startswith("c: " if norm_statistics == "live" else ("c: ", "dense: "))


def test_a_distilled_network_trains_its_target_first_and_says_what_it_cost(networks: TrainedNetworks) -> None:
    (job,) = jobs({"variant": "0.3-Bottom", "answers_of": "0.5-Bottom", "run": "source"})
    job = dataclasses.replace(job, scale=dataclasses.replace(job.scale, answers=64))
    assert networks.missing([job]) == [*job.targets, job]
    for needed in networks.missing([job]):
        networks.train(needed)
    assert networks.missing([job]) == []
    source, target = networks.open([job]), networks.open(job.targets)
    assert isinstance(source, DistilledSource)
    assert source.target_queries == job.scale.answers == 8 * at_hand(job)
    assert dcn.is_defective(source) and relation(source, target) == "other network"
    assert networks.history(job).epochs[0].loss > 0
    assert {path.name for path in networks.path(job).iterdir()} == {
        "network.json",
        "history.json",
        "last.safetensors",
    }


def test_a_network_under_masks_drawn_anew_is_trained_and_opened_as_such(networks: TrainedNetworks) -> None:
    (job,) = jobs({"variant": "0.3-Bottom", "redrawn": 2})
    networks.train(job)
    opened = networks.open([job])
    (source,) = (module for module in opened.modules() if isinstance(module, MaskExpectation))
    assert source.draws == 2
    assert int(source.passes) > 0  # it was trained under masks of its own
    (plain,) = jobs("0.3-Bottom")
    masks = {name: bits for name, bits in build(plain).state_dict().items() if name.endswith(".mask")}
    mine = {name: bits for name, bits in opened.state_dict().items() if name.endswith(".mask")}
    assert all(torch.equal(bits, mine[name.replace("model.", "model.network.", 1)]) for name, bits in masks.items())


def test_pubdef_attacks_its_public_networks_as_the_recipe_says() -> None:
    (plain,) = jobs("0.3-Bottom + PubDef")
    (low,) = jobs({"variant": "0.3-Bottom + PubDef", "public_attacks": ["mi-fgsm(8,0.25)", "ti-fgsm(8,5)"]})
    assert [type(attack) for attack in public_attacks(plain)] == [PGD]
    assert [type(attack) for attack in public_attacks(low)] == [MIFGSM, TIFGSM]
    assert {attack.settings["steps"] for attack in public_attacks(low)} == {low.scale.max_steps}
    assert plain.name != low.name
    assert "by mi-fgsm(8,0.25), ti-fgsm(8,5)" in low.title
    assert public_jobs(plain) == public_jobs(low)  # the public networks are the same


def test_a_network_of_few_channels_is_trained_in_the_memory_format_that_is_right(networks: TrainedNetworks) -> None:
    """ResNet-18 of width 16 has 5 channels under the ablation DC at p = 0.3: too few for oneDNN in channels_last."""
    training = dataclasses.replace(TINY.training, channels_last=True)
    scale = dataclasses.replace(TINY, width=16, training=training)
    jobs = [Job(read_network(text, net="resnet18"), 0, 0, scale, "digits") for text in ("0.3-Bottom DC", "0.3-Bottom")]
    assert [training_of(job, build(job), CPU).channels_last for job in jobs] == [False, True]
    assert training_of(jobs[0], build(jobs[0]), torch.device("meta")).channels_last, "the fault is the CPU's"
    networks.train(jobs[0])
    assert networks.has(jobs[0])


def test_every_network_of_every_recipe_can_be_trained_on_a_cpu() -> None:
    specs = [load_recipe(name) for name in list_recipes(recipes_root())]
    kinds = {
        (job.network.net, job.network.variant, job.data): job
        for spec in specs
        for cell in measurements_of(spec, "small", [0])
        for job in cell.jobs
    }
    narrow = []
    for job in kinds.values():
        net = build(job)
        narrow += [job.title] if narrow_strided_conv(net) else []
        if (config := training_of(job, net, CPU)).channels_last:
            check_channels_last(net, CPU)
        assert config == dataclasses.replace(
            job.scale.training, seed=job.order_seed, channels_last=config.channels_last
        )
    assert any("DC" in title for title in narrow), "the recipes have networks for which this matters"

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import dcn_plugin as dcn
from dcn_plugin.attacks import EnsembleSource
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import RunDirectory
from dcn_plugin.evaluate.relations import relation
from dcn_plugin.experiments.datasets import open_data
from dcn_plugin.experiments.network_store import TrainedNetworks, build, public_jobs
from dcn_plugin.experiments.networks import PUBLIC, Job, jobs_of, read_network
from dcn_plugin.experiments.scales import scale_for

TINY = dataclasses.replace(scale_for("smoke", "cifar10"), train_images=32)


def jobs(text: object, *, data: str = "digits", full: bool = False) -> list[Job]:
    scale = scale_for("full", data) if full else TINY
    network = read_network(text, net="resnet18")  # type: ignore[arg-type]
    return jobs_of([network], seed=0, scale=scale, data=data)


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

from __future__ import annotations

import dataclasses

import pytest

from dcn_plugin.errors import SpecError
from dcn_plugin.experiments.networks import Job, jobs_of, read_network
from dcn_plugin.experiments.scales import scale_for

SMOKE = scale_for("smoke", "cifar10")


def job(text: str, *, seed: int = 0, run: str = "target", **network: str) -> Job:
    given = {"variant": text, "run": run, **network} if network else text
    (made, *_) = jobs_of([read_network(given, net="resnet18", run=run)], seed=seed, scale=SMOKE, data="digits")
    return made


@pytest.mark.parametrize(
    ("text", "net", "bottom", "kind", "defence"),
    [
        ("ResNet-18", "resnet18", None, "neuron", None),
        ("VGG-19 standard", "vgg19", None, "neuron", None),
        ("DenseNet-121 0.5-Bottom", "densenet121", 0.5, "neuron", None),
        ("0.5-Bottom channel (DC)", "resnet50", 0.5, "channel", None),
        ("0.3-Bottom x2 width", "resnet50", 0.3, "wide", None),
        ("Standard CNN", "resnet50", None, "neuron", None),
        ("Standard CNN + DB (Ghiasi et al., 2018)", "resnet50", None, "neuron", "dropblock"),
        ("0.3-Bottom + AT", "resnet50", 0.3, "neuron", "madry"),
    ],
)
def test_labels_of_the_papers_tables_are_read_as_they_stand(
    text: str, net: str, bottom: float | None, kind: str, defence: str | None
) -> None:
    network = read_network(text, net="resnet50")
    assert (network.net, network.variant.bottom, network.variant.kind, network.defence) == (net, bottom, kind, defence)


def test_all_variants_of_a_run_start_from_the_same_weights_and_see_the_same_batches() -> None:
    one, other = job("Standard"), job("0.3-Bottom")
    assert (one.weights_seed, one.order_seed) == (other.weights_seed, other.order_seed)
    assert one.name != other.name


def test_another_run_has_other_weights_order_and_masks() -> None:
    one, other = job("0.3-Bottom"), job("0.3-Bottom", run="source")
    assert one.weights_seed != other.weights_seed
    assert one.order_seed != other.order_seed
    assert one.masks_seed != other.masks_seed


def test_a_run_may_have_the_masks_of_another_with_weights_of_its_own() -> None:
    one, other = job("0.3-Bottom"), job("0.3-Bottom", run="gray-box", masks="target")
    assert one.masks_seed == other.masks_seed
    assert one.weights_seed != other.weights_seed


def test_other_seeds_are_other_networks() -> None:
    assert job("Standard").name != job("Standard", seed=1).name


def test_a_networks_key_does_not_depend_on_what_it_is_measured_with() -> None:
    one = job("0.3-Bottom")
    measured = dataclasses.replace(one, scale=dataclasses.replace(SMOKE, images=5, cw_steps=7, count=9))
    trained = dataclasses.replace(one, scale=dataclasses.replace(SMOKE, train_images=5))
    assert measured.key == one.key
    assert trained.key != one.key


def test_an_ensemble_has_members_with_different_masks_and_weights() -> None:
    network = read_network("0.3-Bottom EN", net="resnet18")
    jobs = jobs_of([network], seed=0, scale=scale_for("full", "cifar10"), data="cifar10")
    assert len(jobs) == len({one.masks_seed for one in jobs}) == len({one.weights_seed for one in jobs}) == 5
    # The first member is the network of the row without EN: it is not trained twice.
    (single,) = jobs_of(
        [read_network("0.3-Bottom", net="resnet18")], seed=0, scale=scale_for("full", "cifar10"), data="cifar10"
    )
    assert jobs[0].name == single.name


def test_two_defences_or_an_unknown_key_are_refused() -> None:
    with pytest.raises(SpecError, match="one defence"):
        read_network("Standard + AT + LS", net="resnet18")
    with pytest.raises(SpecError, match="did you mean variant"):
        read_network({"varient": "Standard"}, net="resnet18")


def test_statistics_of_live_neurons_are_another_network_of_the_same_run() -> None:
    plain, live = job("0.3-Bottom"), job("0.3-Bottom", norm_statistics="live")
    assert plain.key == {key: value for key, value in live.key.items() if key != "norm_statistics"}
    assert plain.name != live.name and live.title.endswith("statistics of live neurons")
    with pytest.raises(SpecError, match="norm statistics"):
        job("0.3-Bottom", norm_statistics="some")


def test_a_distilled_network_depends_on_its_target_and_on_how_often_that_is_asked() -> None:
    def asked(target: object, answers: int = 256) -> Job:
        given = {"variant": "0.3-Bottom", "answers_of": target}
        scale = dataclasses.replace(SMOKE, answers=answers)
        return jobs_of([read_network(given, net="resnet18", run="source")], seed=0, scale=scale, data="digits")[0]

    names = [asked("Standard").name, asked("0.3-Bottom").name, asked("0.3-Bottom", 128).name, job("0.3-Bottom").name]
    assert len(set(names)) == 4
    assert asked("0.3-Bottom").targets == [job("0.3-Bottom")]
    assert "from 256 answers of ResNet-18 Standard" in asked("Standard").title
    assert len(asked("0.3-Bottom EN").targets) == SMOKE.members


def test_a_network_under_masks_drawn_anew_is_another_one() -> None:
    redrawn = [job("0.3-Bottom", redrawn=count) for count in (0, 4, 8)]  # type: ignore[arg-type]
    assert len({item.name for item in redrawn}) == 3
    assert redrawn[0].name == job("0.3-Bottom").name
    assert "4 masks drawn anew" in redrawn[1].title


@pytest.mark.parametrize(
    "text",
    [
        {"variant": "Standard", "redrawn": 4},
        {"variant": "0.3-Bottom", "redrawn": -1},
        {"variant": "0.3-Bottom", "redrawn": "four"},
        {"variant": "0.3-Bottom", "redrawn": 4, "norm_statistics": "live"},
        {"variant": "0.3-Bottom + AT", "answers_of": "Standard"},
        {"variant": "0.3-Bottom + AT", "public_attacks": ["fgsm(8)"]},
        {"variant": "0.3-Bottom + PubDef", "public_attacks": "fgsm(8)"},
        {"variant": "0.3-Bottom + PubDef", "public_attacks": ["fgms(8)"]},
        {"variant": "0.3-Bottom", "answers_of": {"variant": "Standard", "answers_of": "Standard"}},
        {"variant": "0.3-Bottom", "answers_of": "0.3-Botom"},
    ],
)
def test_attackers_networks_that_cannot_be_are_refused_when_they_are_read(text: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        read_network(text, net="resnet18")

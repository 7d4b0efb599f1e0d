from __future__ import annotations

import dataclasses

import pytest

from dcn_plugin.errors import SpecError
from dcn_plugin.experiments.networks import Job, jobs_of, read_network
from dcn_plugin.experiments.scales import scale_for


def job(text: str, *, scale: str = "small", data: str = "cifar10", copy: str = "") -> Job:
    (made,) = jobs_of([read_network(text, net="resnet18")], seed=0, scale=scale_for(scale, data), data=data, copy=copy)
    return made


@pytest.mark.parametrize(
    ("text", "name"),
    [("0.3-Bottom", "resnet18-0.3-Bottom-82489081dd29"), ("Standard", "resnet18-Standard-28a5db176834")],
)
def test_networks_that_were_trained_before_there_were_more_options_keep_their_names(text: str, name: str) -> None:
    assert job(text, copy="CIFAR-10 (JPEG copy)").name == name


def test_an_option_that_is_younger_than_the_names_counts_where_it_is_used() -> None:
    assert "pca_color" not in scale_for("full", "cifar10").training_json
    assert scale_for("full", "imagenet").training_json["pca_color"] == 0.1


def test_the_full_scale_trains_on_imagenet_as_the_authors_did() -> None:
    training = scale_for("full", "imagenet").training
    assert (training.epochs, training.min_scale, training.flip, training.pca_color) == (100, 0.08, True, 0.1)


def test_the_medium_scale_is_small_but_twice_as_wide_with_about_twice_the_epochs_and_images() -> None:
    small, medium = (scale_for(name, "cifar10") for name in ("small", "medium"))
    assert (medium.width, medium.training.epochs, medium.images) == (32, 15, 2000)
    size = {"name": "small", "width": small.width, "images": small.images}
    assert dataclasses.replace(medium, training=medium.training.lasting(small.training.epochs), **size) == small  # type: ignore[arg-type]
    assert job("Standard").name != job("Standard", scale="medium").name


def test_an_unknown_scale_or_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="did you mean small"):
        scale_for("smal", "cifar10")
    with pytest.raises(SpecError, match="did you mean width"):
        scale_for("small", "cifar10", {"widht": 8})

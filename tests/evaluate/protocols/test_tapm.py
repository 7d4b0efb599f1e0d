from __future__ import annotations

import pytest
import torch
from torch import nn

from dcn_plugin.attacks import CW, PGD, EnsembleSource
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import AdversarialSet, RunDirectory, tapm, transfer
from tests.evaluate.conftest import Asked

ATTACKS = [PGD(0.1, steps=1), PGD(0.1, steps=4)]


def test_an_image_holds_only_if_it_holds_under_every_source_and_attack(
    models: dict[str, Asked], data: ImageSet
) -> None:
    (result,) = tapm(models, {"b": models["b"]}, ATTACKS, data, seed=3, batch_size=33)
    sets = [AdversarialSet(name, model, attack, data).loaded for name, model in models.items() for attack in ATTACKS]
    held = accurate = 0
    for i, label in enumerate(data.labels.tolist()):
        views = [data.images[i], *(made.images[i] for made in sets)]
        with torch.no_grad():
            said = [int(models["b"](view[None]).argmax()) for view in views]
        accurate += said[0] == label
        held += all(one == label for one in said)
    assert (result.n_counted, result.n_defended, result.n_correct) == (accurate, held, held)
    assert 0 < held < accurate
    assert (result.protocol, result.seed, result.eps) == ("tapm", 3, 0.1)


def test_the_worst_single_source_and_attack_is_that_of_the_transfer_matrix(
    models: dict[str, Asked], data: ImageSet
) -> None:
    (result,) = tapm(models, {"b": models["b"]}, ATTACKS, data, seed=0)
    singles = {f"{r.source} / {r.attack_settings['steps']}": r.accuracy_all for r in transfer(
        models, {"b": models["b"]}, ATTACKS, data, seed=0)}  # fmt: skip
    assert result.figures["worst_single_accuracy"] == min(singles.values())  # type: ignore[type-var]
    assert result.accuracy_all <= min(singles.values())  # type: ignore[operator, type-var]
    assert str(result.figures["worst_single"]).startswith("b / PGD(")  # the target attacked on itself


def test_it_shares_its_images_with_the_transfer_matrix(
    models: dict[str, Asked], data: ImageSet, tmp_path: object
) -> None:
    store = RunDirectory(str(tmp_path))
    source = {"a": models["a"]}
    list(transfer(source, models, ATTACKS, data, seed=0, store=store))
    rows = models["a"].rows
    list(tapm(source, {"b": models["b"]}, ATTACKS, data, seed=0, store=store))
    assert models["a"].rows == rows + 1  # one black image shows whether a model takes the data


def test_the_record_says_how_close_the_closest_source_is(models: dict[str, Asked], data: ImageSet) -> None:
    far = {"far": nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))}

    def said(sources: dict[str, nn.Module]) -> list[str | None]:
        return [result.relation for result in tapm(sources, models, [PGD(0.1, steps=1)], data, seed=0)]

    assert said(far) == ["other network", "other network"]
    assert said({**far, "a": models["a"]}) == ["same network", "other weights"]
    assert said({"both": EnsembleSource([*far.values(), models["b"]])}) == ["other weights", "same network"]


def test_attacks_of_several_radii_have_no_common_eps(models: dict[str, Asked], data: ImageSet) -> None:
    (result,) = tapm(models, {"b": models["b"]}, [PGD(0.1, steps=1), PGD(0.2, steps=1)], data, seed=0)
    assert result.eps is None


def test_the_largest_change_is_that_of_all_attacks_if_they_share_a_norm(
    models: dict[str, Asked], data: ImageSet
) -> None:
    target, cw = {"b": models["b"]}, CW(steps=3, bisections=0)
    both, weak, mixed = (
        next(tapm(models, target, attacks, data, seed=0, batch_size=33)).largest_change
        for attacks in ([PGD(0.1, steps=1), PGD(0.2, steps=2)], [PGD(0.1, steps=1)], [PGD(0.1, steps=1), cw])
    )
    assert (both, weak, mixed) == (pytest.approx(0.2), pytest.approx(0.1), None)


def test_nothing_to_attack_is_an_error(models: dict[str, Asked], data: ImageSet) -> None:
    with pytest.raises(SpecError, match="TAPM"):
        next(tapm(models, models, [], data, seed=0))

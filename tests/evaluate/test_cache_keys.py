from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD, EnsembleSource
from dcn_plugin.engine import native
from dcn_plugin.evaluate import attack_key, model_key, relation
from dcn_plugin.evaluate.cache_keys import digest
from dcn_plugin.models import cifar_resnet
from tests.toys import ModeNet


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return cifar_resnet((1, 1, 1, 1), in_chans=1, width=4)


def defective(model: nn.Module, *, seed: int = 0, p: float = 0.5) -> nn.Module:
    return dcn.defectify(model, p=p, seed=seed, input_size=(1, 8, 8))


def test_a_copy_has_the_key_of_its_original() -> None:
    assert model_key(ModeNet()) == model_key(ModeNet())
    assert model_key(defective(net())) == model_key(copy.deepcopy(defective(net())))


@torch.no_grad()
def change_a_weight(model: nn.Module) -> None:
    next(model.parameters()).view(-1)[0] += 1e-6


def change_a_statistic(model: nn.Module) -> None:
    next(b for name, b in model.named_buffers() if "running_var" in name)[0] += 1e-3


def change_a_mask(model: nn.Module) -> None:
    mask = next(module.mask for module in model.modules() if isinstance(module, dcn.DefectMask2d))
    mask.view(-1)[0] ^= True


def change_the_activation(model: nn.Module) -> None:
    model.act1 = nn.GELU()  # type: ignore[assignment]


@pytest.mark.parametrize("change", [change_a_weight, change_a_statistic, change_a_mask, change_the_activation])
def test_whatever_changes_the_outputs_changes_the_key(change: object) -> None:
    model = defective(net())
    before = model_key(model)
    change(model)  # type: ignore[operator]
    assert before is not None
    assert model_key(model) != before


def test_normalisation_that_no_state_dict_holds_is_part_of_the_key() -> None:
    one, other = (dcn.Normalized(ModeNet(), [0.5], [std]) for std in (0.25, 0.25001))
    assert one.state_dict().keys() == ModeNet().state_dict().keys() or model_key(one) != model_key(other)
    assert model_key(one) != model_key(other)


@pytest.mark.parametrize("change", [{"__module__": "another"}, {"__qualname__": "Another.Net"}], ids=str)
def test_networks_that_print_alike_and_are_of_different_classes_have_different_keys(change: dict[str, str]) -> None:
    keys = []
    for names in ({}, {}, change):
        module = type("Net", (nn.Linear,), {"__module__": "a_module", **names})(2, 2)
        nn.init.ones_(module.weight)
        nn.init.ones_(module.bias)
        keys.append(model_key(module))
    assert keys[0] == keys[1] != keys[2]


def test_a_model_that_prints_an_address_or_has_no_weights_yet_has_no_key() -> None:
    class Secret(nn.Module):
        def extra_repr(self) -> str:
            return f"helper={object()}"

    assert model_key(Secret()) is None
    assert model_key(nn.LazyLinear(3)) is None
    with torch.device("meta"):
        assert model_key(nn.Linear(2, 2)) is None


def test_networks_that_a_module_keeps_in_a_list_are_part_of_its_key() -> None:
    class Committee(nn.Module):
        def __init__(self, *members: nn.Module) -> None:
            super().__init__()
            self.members = list(members)

    members, others = (net(0), net(1)), (net(0), net(2))
    assert model_key(Committee(*members)) == model_key(Committee(*map(copy.deepcopy, members))) is not None
    assert model_key(Committee(*members)) != model_key(Committee(*others))
    assert model_key(Committee(nn.LazyLinear(3))) is None
    back = net(0)
    committee = Committee(back)
    before = model_key(committee)
    back.owner = [committee]  # type: ignore[assignment]
    committee.forward = functools.partial(Committee.forward, committee)  # type: ignore[method-assign]
    assert model_key(committee) == before
    assert relation(committee, net(0)) == relation(net(0), committee) == "same network"


def test_every_setting_of_an_attack_is_in_its_key() -> None:
    base = attack_key(PGD(0.1, steps=3))
    others = [PGD(0.2, steps=3), PGD(0.1, steps=4), PGD(0.1, steps=3, step_size=0.02), PGD(0.1, steps=3, seed=1)]
    assert base is not None
    assert len({digest(key) for key in (base, *map(attack_key, others))}) == 5


def test_an_attack_with_a_setting_that_is_no_plain_value_has_no_key() -> None:
    attack = PGD(0.1)
    attack.weights = torch.ones(3)  # type: ignore[attr-defined]
    assert attack_key(attack) is None


def test_a_compact_model_has_a_key_that_its_plan_does_not_change_and_that_is_not_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "_library", lambda: "it was not compiled")  # auto measures nothing then
    model = defective(net()).eval()
    reference = dcn.compact(model, backend="reference")
    without = dcn.compact(model, backend="reference", max_packed_bytes=reference.plan.packed_bytes - 1)
    assert without.plan.packed_bytes < reference.plan.packed_bytes
    assert model_key(without) == model_key(reference)
    auto = dcn.compact(model)
    keys = [model_key(one) for one in (model, reference, auto)]
    assert None not in keys
    assert len({digest(key) for key in keys}) == 3
    other = defective(net(), seed=1).eval()
    assert model_key(dcn.compact(other, backend="reference")) != model_key(reference)
    inside = [model_key(EnsembleSource([one, one])) for one in (model, reference, without)]
    assert inside[0] != inside[1] == inside[2]

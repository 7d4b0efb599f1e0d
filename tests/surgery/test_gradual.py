"""Gradual defects: nested masks that fall to exactly what defectify makes, in any training loop."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import (
    CheckpointError,
    DcnError,
    MaskLostError,
    MaskStateError,
    NotDefectiveError,
    SpecError,
)
from dcn_plugin.surgery import masks_of
from dcn_plugin.training import GradualDefects
from tests.nets import NoNorm, SmallNet, same, snapshot

SIZE = (3, 16, 16)
MODES: dict[str, dict[str, Any]] = {
    "neuron": {},
    "exact": {"sampling": "exact"},
    "channel": {"mode": "channel"},
    "exact channels": {"mode": "channel", "sampling": "exact"},
    "shared": {"mode": "shared"},
    "hole": {"mode": "hole", "span": 3},
    "nm": {"mode": "nm", "span": 4, "p": 0.25},
}


def net(**options: Any) -> nn.Module:
    """A small network with weights of one seed."""
    torch.manual_seed(0)
    return dcn.defectify(SmallNet(), **{"p": 0.3, "input_size": SIZE, **options})


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {path: mask.mask.clone() for path, mask in masks_of(model).items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def kept(model: nn.Module) -> float:
    return dcn.summary(model).kept / dcn.summary(model).neurons


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("order", ["together", "bottom-up"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_masks_fall_from_all_neurons_to_those_of_defectify_and_no_dead_one_comes_back(
    name: str, order: Any, schedule: Any
) -> None:
    model = net(**MODES[name])
    goal, spec = bits(model), dcn.defect_spec(model)
    gradual = GradualDefects(model, 7, order=order, schedule=schedule)
    assert all(bool(mask.all()) for mask in bits(model).values())
    before = bits(model)
    for step in range(1, 8):
        assert not gradual.done
        gradual.step()
        now = bits(model)
        assert not any(bool((now[path] & ~before[path]).any()) for path in now)
        dcn.verify(model)
        assert all(torch.equal(mask.seeded(), mask.mask) for mask in masks_of(model).values())
        assert gradual.share == pytest.approx(step / 7)
        before = now
    assert gradual.done
    assert equal(now, goal) and dcn.defect_spec(model) == spec
    gradual.step()
    assert equal(bits(model), goal)


@given(
    p=st.floats(0.02, 0.98),
    start=st.floats(0.02, 1),
    seed=st.integers(0, 2**64 - 1),
    sampling=st.sampled_from(["bernoulli", "exact"]),
    mode=st.sampled_from(["neuron", "channel", "shared"]),
    shares=st.lists(st.floats(0, 1), max_size=4),
    order=st.sampled_from(["together", "bottom-up"]),
)
@settings(max_examples=30)
def test_wherever_it_stands_every_mask_is_the_one_its_seed_gives_at_the_p_it_says(
    p: float, start: float, seed: int, sampling: Any, mode: Any, shares: list[float], order: Any
) -> None:
    low, high = sorted([p, start])
    if low == high:
        return
    layers = nn.Sequential(
        *(
            dcn.DefectiveConv2d(3, 3, 1, output_size=6, site=site, p=low, seed=seed, sampling=sampling, mode=mode)
            for site in range(2)
        )
    )
    goal = bits(layers)
    gradual = GradualDefects(layers, 3, start=high, order=order)
    for share in [*shares, 1.0]:
        gradual.set(share)
        for mask in masks_of(layers).values():
            assert low <= mask.spec.p <= high
            assert torch.equal(mask.mask[0], dcn.sample_mask(mask.spec, mask.shape, site=mask.site))
    assert equal(bits(layers), goal)


def test_a_linear_schedule_falls_evenly_and_a_cosine_slowly_at_both_ends() -> None:
    falls = {}
    for schedule in ("linear", "cosine"):
        model = net(p=0.2, sampling="exact")
        gradual = GradualDefects(model, 4, schedule=schedule)  # type: ignore[arg-type]
        falls[schedule] = []
        for _ in range(4):
            gradual.step()
            falls[schedule].append(dcn.defect_spec(model).p)
            assert kept(model) == pytest.approx(falls[schedule][-1], abs=0.002)
    assert falls["linear"] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert falls["cosine"] == pytest.approx([1 - 0.8 * part for part in (0.146447, 0.5, 0.853553, 1)], abs=1e-6)


def test_from_the_bottom_up_a_block_falls_when_the_one_before_it_has_fallen() -> None:
    model = net(blocks="all")
    blocks = [site.block for site in dcn.defect_spec(model).sites]
    names = list(dict.fromkeys(blocks))
    gradual = GradualDefects(model, 2 * len(names), order="bottom-up")
    for turn in range(len(names)):
        gradual.step()
        at = {site.block: site.mask.p for site in dcn.defect_spec(model).sites}
        assert [at[name] for name in names[:turn]] == [0.3] * turn
        assert at[names[turn]] == pytest.approx(0.65)
        assert [at[name] for name in names[turn + 1 :]] == [1.0] * (len(names) - turn - 1)
        gradual.step()
    assert gradual.done and dcn.defect_spec(model).p == 0.3


def test_a_block_that_loses_no_neuron_takes_no_turn() -> None:
    model = net(blocks=(0, 1), p={0: 1.0, 1: 0.2})
    gradual = GradualDefects(model, 2, order="bottom-up")
    gradual.step()
    assert [site.mask.p for site in dcn.defect_spec(model).sites][-1] == pytest.approx(0.6)


def test_a_pattern_waits_for_the_next_whole_one() -> None:
    model = net(**MODES["nm"])
    gradual = GradualDefects(model, 6)
    seen = []
    for _ in range(6):
        gradual.step()
        seen.append(masks_of(model)["bn1.drop"].spec.mode_text)
    assert seen == ["nm 4:4", "nm 3:4", "nm 3:4", "nm 2:4", "nm 2:4", "nm 1:4"]


def test_each_block_falls_to_its_own_p() -> None:
    model = net(blocks=(0, 1), p={0: 0.8, 1: 0.2})
    spec, goal = dcn.defect_spec(model), bits(model)
    gradual = GradualDefects(model, 2)
    gradual.step()
    assert dict(dcn.defect_spec(model).p) == pytest.approx(  # type: ignore[arg-type]
        {spec.sites[0].block: 0.9, spec.sites[-1].block: 0.6}
    )
    gradual.step()
    assert equal(bits(model), goal) and dcn.defect_spec(model) == spec


@pytest.mark.parametrize("as_spec", [False, True])
def test_a_network_with_masks_goes_on_to_a_smaller_p(as_spec: bool) -> None:
    model, smaller = net(p=0.6), net(p=0.2)
    before = bits(model)
    gradual = GradualDefects(model, 3, goal=dcn.defect_spec(smaller) if as_spec else 0.2)
    assert equal(bits(model), before), "nothing comes back"
    for _ in range(3):
        gradual.step()
    assert equal(bits(model), bits(smaller))
    assert dcn.defect_spec(model).sites == dcn.defect_spec(smaller).sites and dcn.defect_spec(model).p == 0.2


def test_masks_are_changed_in_place_and_nothing_else_is() -> None:
    model = net()
    buffers = {path: mask.mask for path, mask in masks_of(model).items()}
    versions = {path: mask._version for path, mask in buffers.items()}
    others = {key: value.clone() for key, value in model.state_dict().items() if not key.endswith(".mask")}
    rng = torch.get_rng_state()
    gradual = GradualDefects(model, 5)
    gradual.step()
    assert all(mask.mask is buffers[path] for path, mask in masks_of(model).items())
    assert all(buffers[path]._version > versions[path] for path in buffers)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in others.items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_it_works_where_torch_allows_deterministic_algorithms_alone() -> None:
    model = net()
    goal = bits(model)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        gradual = GradualDefects(model, 3)
        for _ in range(3):
            gradual.step()
    finally:
        torch.use_deterministic_algorithms(before)
    assert equal(bits(model), goal)


def test_a_step_that_kills_no_neuron_touches_no_mask() -> None:
    model = net()
    gradual = GradualDefects(model, 10**9)
    versions = [mask.mask._version for mask in masks_of(model).values()]
    gradual.step()
    assert [mask.mask._version for mask in masks_of(model).values()] == versions


@pytest.mark.parametrize("model", ["convnext_atto", "resnet18"])
def test_every_layout_and_memory_format_of_timm_falls_to_the_same_bits(model: str) -> None:
    plain = timm.create_model(model, num_classes=3)
    masked = dcn.defectify(plain, p=0.4, input_size=(3, 64, 64)).to(memory_format=torch.channels_last)
    goal = bits(masked)
    gradual = GradualDefects(dcn.Normalized(masked, (0.5,) * 3, (0.5,) * 3), 3)
    for _ in range(3):
        gradual.step()
        dcn.verify(masked)
    assert equal(bits(masked), goal)


def test_a_checkpoint_on_the_way_says_its_p_and_opens_as_it_was(tmp_path: Path) -> None:
    model = net().eval()
    gradual = GradualDefects(model, 4)
    gradual.step()
    dcn.save_checkpoint(model, tmp_path / "net.safetensors")
    assert dcn.checkpoint.read_spec(tmp_path / "net.safetensors").p == pytest.approx(0.825)
    again = dcn.load_checkpoint(tmp_path / "net.safetensors", SmallNet()).eval()
    images = torch.rand(2, *SIZE)
    assert torch.equal(again(images), model(images))
    assert dcn.defect_spec(again).mask_origin == "sampled"
    on = GradualDefects(again, 3, goal=0.3)
    for _ in range(3):
        on.step()
    assert equal(bits(again), bits(net()))


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.rand(4, *SIZE, generator=torch.Generator().manual_seed(seed))
    loss = nn.functional.cross_entropy(model(images), torch.arange(4))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("network_first", [True, False])
def test_a_plain_loop_goes_on_bit_equal_from_its_own_checkpoint(network_first: bool) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, GradualDefects]:
        model = net()
        return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), GradualDefects(model, 6)

    model, optimizer, gradual = start()
    state: dict[str, Any] = {}
    for step in range(9):
        if step == 4:
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state = copy.deepcopy({**parts, "gradual": json.loads(json.dumps(gradual.state_dict()))})
        gradual.step()
        training_step(model, optimizer, step)
    again, optimizer, gradual = start()
    if not network_first:
        gradual.load_state_dict(state["gradual"])
    again.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if network_first:
        gradual.load_state_dict(state["gradual"])
    assert gradual.share == pytest.approx(4 / 6)
    for step in range(4, 9):
        gradual.step()
        training_step(again, optimizer, step)
    assert equal(again.state_dict(), model.state_dict())
    assert dcn.defect_spec(again) == dcn.defect_spec(model) and dcn.defect_spec(again).mask_origin == "sampled"


def test_a_jump_stands_where_as_many_steps_lead_also_backwards() -> None:
    model, other = net(), net()
    stepped, jumped = GradualDefects(model, 5), GradualDefects(other, 5)
    for _ in range(2):
        stepped.step()
    for taken in (9, 2):
        jumped.jump(taken)
    assert equal(bits(model), bits(other)) and jumped.state_dict() == stepped.state_dict()


def test_an_average_of_the_weights_follows_and_can_be_saved(tmp_path: Path) -> None:
    model = net()
    gradual = GradualDefects(model, 3)
    ema = ModelEmaV3(model, decay=0.5)
    gradual.follow(ema.module)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        gradual.step()
        training_step(model, optimizer, step)
        ema.update(model)
        assert equal(bits(ema.module), bits(model))
        assert dcn.defect_spec(ema.module) == dcn.defect_spec(model)
        dcn.save_checkpoint(ema.module, tmp_path / "ema.safetensors")
    late = copy.deepcopy(ema.module)
    gradual.set(0.5)
    gradual.follow(late)
    assert equal(bits(late), bits(model))


def test_a_compiled_step_sees_the_masks_of_now() -> None:
    model = net().eval()
    gradual = GradualDefects(model, 2)
    compiled = torch.compile(model, backend="eager")
    images = torch.rand(2, *SIZE)
    for _ in range(2):
        assert torch.equal(compiled(images), model(images))
        gradual.step()
    assert torch.equal(compiled(images), net().eval()(images))


def test_masks_placed_by_hand_fall_too_each_in_its_turn() -> None:
    layers = [dcn.DefectiveConv2d(3, 3, 1, output_size=9, site=site, p=0.5) for site in (1, 0)]
    gradual = GradualDefects(nn.Sequential(*layers), 2, order="bottom-up")
    gradual.step()
    assert [layer.drop.spec.p for layer in layers] == [1.0, 0.5], "the order is that of the sites"
    gradual.step()
    assert [layer.drop.spec.p for layer in layers] == [0.5, 0.5]


def loaded() -> nn.Module:
    model = net()
    model.load_state_dict(net(seed=1).state_dict())
    return model


def changed() -> nn.Module:
    model = net()
    masks_of(model)["bn1.drop"].mask.fill_(True)
    return model


def lost() -> nn.Module:
    model = net()
    model.bn1.drop = nn.Identity()
    return model


REFUSED: dict[str, tuple[Any, dict[str, Any], type[DcnError], str]] = {
    "p rises": (net, {"goal": 0.5}, SpecError, "would rise"),
    "p rises from the start": (net, {"start": 0.2}, SpecError, "would rise"),
    "a goal above 1": (net, {"goal": 1.2}, SpecError, "keep probability"),
    "a goal of 0": (net, {"goal": 0}, SpecError, "keep probability"),
    "a start above 1": (net, {"start": 1.5}, SpecError, "keep probability"),
    "at its goal": (net, {"goal": 0.3}, SpecError, "goal of its gradual defects already"),
    "at its goal of 1": (lambda: net(p=1), {}, SpecError, "goal of its gradual defects already"),
    "longer than the run": (net, {"steps": 9, "total_steps": 8}, SpecError, "longer than the training"),
    "no steps": (net, {"steps": 0}, SpecError, "number of steps"),
    "an unknown schedule": (net, {"schedule": "cubic"}, SpecError, "schedule"),
    "an unknown order": (net, {"order": "top-down"}, SpecError, "order"),
    "no masks": (SmallNet, {}, NotDefectiveError, "defectify"),
    "no network": (lambda: "resnet18", {}, SpecError, "not a network"),
    "a lost mask": (lost, {}, MaskLostError, "1 sites"),
    "masks of a state dict": (loaded, {}, MaskStateError, "gradually"),
    "masks changed by hand": (changed, {}, MaskStateError, "gradually"),
    "no whole pattern": (lambda: net(**{**MODES["nm"], "p": 0.5}), {"goal": 0.3}, SpecError, "whole number"),
    "another seed's goal": (net, {"goal": dcn.defect_spec(net(p=0.1, seed=1))}, SpecError, "other masks"),
    "another mode's goal": (net, {"goal": dcn.defect_spec(net(p=0.1, mode="shared"))}, SpecError, "other masks"),
    "a goal with fewer sites": (net, {"goal": dcn.defect_spec(net(p=0.1, blocks=(0,)))}, SpecError, "other masks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_come_gradually_is_refused_by_name_and_changes_nothing(case: str) -> None:
    make, options, error, said = REFUSED[case]
    model = make()
    before = snapshot(model) if isinstance(model, nn.Module) else None
    with pytest.raises(error, match=said):
        GradualDefects(model, **{"steps": 5, **options})
    assert before is None or same(before, snapshot(model))


def test_a_state_of_another_schedule_is_refused_and_changes_nothing() -> None:
    model = net()
    gradual = GradualDefects(model, 5)
    other = GradualDefects(net(), 6)
    other.step()
    gradual.step()
    strangers = [net(seed=1), dcn.defectify(NoNorm(), "all", input_size=SIZE)]
    before = snapshot(model)
    for state in (other.state_dict(), {}, {"taken": 3}):
        with pytest.raises(CheckpointError):
            gradual.load_state_dict(state)
    with pytest.raises(SpecError, match="out of range"):
        gradual.set(1.5)
    with pytest.raises(SpecError, match="steps taken"):
        gradual.jump(-1)
    for stranger in strangers:
        with pytest.raises(MaskStateError, match="no copy"):
            gradual.follow(stranger)
    assert same(before, snapshot(model))
    assert dcn.defect_spec(model).p == pytest.approx(0.86)

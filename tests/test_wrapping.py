"""Wrapping a network, making it defective and saving it give the same in every order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.checkpoint import read_info
from dcn_plugin.checkpoint.sealed_file import read_archive, write_archive
from dcn_plugin.errors import MaskLostError, MaskStateError
from dcn_plugin.surgery import expected_sites
from dcn_plugin.surgery.wrappers import bare, network_in
from dcn_plugin.training import load_network, save_network
from tests.nets import SmallNet, same, shaken, snapshot

SIZE = (3, 16, 16)
IMAGES = torch.linspace(0, 1, 2 * 3 * 16 * 16).sin().abs().view(2, *SIZE)
HOW: dict[str, Any] = {"blocks": "bottom", "p": 0.4, "input_size": SIZE, "seed": 5}


@pytest.fixture(autouse=True, scope="module")
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with torch.no_grad():
        yield
    torch.distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def compile_in_place(module: nn.Module) -> None:
    module.compile(backend="eager")


def inside(wrap: Callable[[nn.Module], nn.Module], name: str) -> Callable[[nn.Module], nn.Module]:
    """Wrap a module of the network, as ``model.features = DataParallel(model.features)`` does."""

    def step(model: nn.Module) -> nn.Module:
        network = network_in(model)
        setattr(network, name, wrap(getattr(network, name)))
        return model

    return step


def defectify(model: nn.Module) -> nn.Module:
    return dcn.defectify(model, **HOW)


def defectify_inplace(model: nn.Module) -> nn.Module:
    return dcn.defectify(model, inplace=True, **HOW)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "Normalized": lambda model: dcn.Normalized(model, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]),
    "compiled": compiled,
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
    "inner compiled": inside(compiled, "layer1"),
    "compiled in place": lambda model: compile_in_place(network_in(model)) or model,
    "inner compiled in place": lambda model: compile_in_place(network_in(model).layer2) or model,  # type: ignore
    "inner norm compiled": inside(compiled, "bn1"),
    "inner DataParallel": inside(nn.DataParallel, "layer2"),
    "inner both": inside(lambda module: nn.DataParallel(compiled(module)), "layer3"),
}


def bare_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return shaken(SmallNet())


def wrapped(orders: list[str], at: int, how: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The network in these wrappers, made defective after ``at`` of them."""
    model = bare_net()
    for place in range(len(orders) + 1):
        if place == at:
            model = how(model)
        if place < len(orders):
            model = WRAPPERS[orders[place]](model)
    return model.eval()


# DDP inside DataParallel, say, is nothing that anybody does, but its order counts for nothing either.
ORDERS = st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=3, unique=True)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(orders=ORDERS, at=st.integers(0, 3), how=st.sampled_from([defectify, defectify_inplace]), data=st.data())
def test_every_order_is_equal_to_the_bare_network(
    tmp_path: Path, orders: list[str], at: int, how: Callable[[nn.Module], nn.Module], data: st.DataObject
) -> None:
    expected = defectify(bare_net())
    model = wrapped(orders, min(at, len(orders)), how)
    assert dcn.is_defective(model)
    assert dcn.defect_spec(model) == dcn.defect_spec(expected)
    assert expected_sites(model) == expected_sites(expected)
    assert str(dcn.summary(model)) == str(dcn.summary(expected))
    dcn.verify(model)
    dcn.verify(model, IMAGES)
    with bare(model) as network:
        assert network.state_dict().keys() == expected.state_dict().keys()
        assert torch.equal(network(IMAGES), expected(IMAGES))

    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    dcn.save_checkpoint(model, ours)
    dcn.save_checkpoint(expected, theirs)
    assert read_info(ours).parts == read_info(theirs).parts and read_info(ours).masks == read_info(theirs).masks
    assert "Normalized" in orders or ours.read_bytes() == theirs.read_bytes()
    assert torch.equal(dcn.load_checkpoint(ours, SmallNet()).eval()(IMAGES), expected(IMAGES))
    other = wrapped(data.draw(ORDERS), 0, data.draw(st.sampled_from([defectify, lambda model: model])))
    for inplace in (False, True):
        loaded = dcn.load_checkpoint(theirs, other, inplace=inplace)
        with bare(loaded) as network:
            assert torch.equal(network.eval()(IMAGES), expected(IMAGES))

    plain = dcn.undefectify(model)
    assert not dcn.is_defective(plain)
    with bare(plain) as network:
        assert torch.equal(network(IMAGES), bare_net()(IMAGES))

    mask = next(m for m in model.modules() if isinstance(m, dcn.DefectMask2d))
    mask.mask.logical_not_()
    with pytest.raises(MaskStateError, match="other bits than their seed gives"):
        dcn.save_checkpoint(model, ours)
    with pytest.raises(MaskLostError, match="bits are not those that its seed gives"):
        dcn.verify(model)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_plain_network_behind_a_wrapper_gives_the_file_of_the_bare_one(tmp_path: Path, wrapper: str) -> None:
    model = WRAPPERS[wrapper](bare_net())
    save_network(model, tmp_path / "ours", metadata={})
    save_network(bare_net(), tmp_path / "theirs", metadata={})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for target in (SmallNet(), WRAPPERS[wrapper](SmallNet())):
        load_network(target, tmp_path / "ours")
        with bare(target) as network:
            assert torch.equal(network.eval()(IMAGES), bare_net()(IMAGES))


def test_the_wrappers_inside_are_back_afterwards_also_after_an_error() -> None:
    model: Any = SmallNet()
    model.layer1, model.layer2 = nn.DataParallel(model.layer1), compiled(nn.DataParallel(model.layer2))
    plain = [path for path, _ in SmallNet().named_modules()]
    before, paths = snapshot(model), [path for path, _ in model.named_modules()]
    with contextlib.suppress(ValueError), bare(nn.DataParallel(model)) as network:
        assert network is model
        assert [path for path, _ in network.named_modules()] == plain
        raise ValueError
    assert same(before, snapshot(model)) and paths == [path for path, _ in model.named_modules()]


def test_files_that_name_an_inner_parallel_wrapper_are_still_read(tmp_path: Path) -> None:
    """Those of earlier versions do."""
    expected = defectify(bare_net())
    dcn.save_checkpoint(expected, tmp_path / "new")
    state, text = read_archive(tmp_path / "new")

    def earlier(text: str) -> str:
        return text.replace("layer1.", "layer1.module.")

    record = text["dcn_plugin.record"]
    write_archive(
        tmp_path / "old",
        {earlier(key): value for key, value in state.items()},
        {**text, "dcn_plugin.record": earlier(record)},
    )
    model: Any = SmallNet()
    model.layer1 = nn.DataParallel(model.layer1)
    loaded = dcn.load_checkpoint(tmp_path / "old", model).eval()
    assert torch.equal(loaded(IMAGES), expected(IMAGES))


@pytest.mark.parametrize("in_place", [False, True])
def test_masks_act_in_a_module_that_was_compiled_and_run_before(in_place: bool) -> None:
    model: Any = bare_net()
    if in_place:
        compile_in_place(model.layer1)
    else:
        model.layer1 = compiled(model.layer1)
    model(IMAGES)
    dcn.defectify(model, inplace=True, **HOW)
    assert torch.equal(model(IMAGES), defectify(bare_net())(IMAGES))
    dcn.verify(model)

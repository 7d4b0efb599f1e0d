"""Rows of the interop matrix: tools that copy, store, move or cast a network."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
)

import dcn_plugin as dcn
from dcn_plugin.errors import MaskLostError, MaskStateError, TraceError
from tests.interop.probe import IMAGES, NETS, assert_masks_act, make


def assert_equal_and_acting(one: nn.Module, other: nn.Module) -> None:
    """Bit-equal outputs and gradients in eval and train, the same specification, and masks that act."""
    assert dcn.defect_spec(one) == dcn.defect_spec(other)
    dcn.verify(one)
    for training in (False, True):
        assert torch.equal(assert_masks_act(one.train(training)), assert_masks_act(other.train(training)))
        for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            assert p.grad is None or torch.equal(p.grad, q.grad), name  # type: ignore[arg-type]
    one.eval(), other.eval()


@pytest.mark.parametrize("name", NETS)
def test_deepcopy(name: str) -> None:
    model = make(name)
    twin = copy.deepcopy(model)
    assert_equal_and_acting(twin, model)
    assert not {t.data_ptr() for t in model.state_dict().values()} & {t.data_ptr() for t in twin.state_dict().values()}
    assert dcn.undefectify(twin).state_dict().keys() == NETS[name]().state_dict().keys()


@pytest.mark.parametrize("name", NETS)
def test_deepcopies_watch_their_own_masks_when_a_state_dict_is_loaded(name: str) -> None:
    model = make(name)
    twin = copy.deepcopy(model)
    twin.load_state_dict(make(name, seed=4).state_dict())
    assert (dcn.defect_spec(model).mask_origin, dcn.defect_spec(twin).mask_origin) == ("sampled", "loaded")
    dcn.verify(model)
    dcn.verify(twin)


@pytest.mark.parametrize("name", NETS)
def test_pickle(name: str) -> None:
    model = make(name)
    assert_equal_and_acting(pickle.loads(pickle.dumps(model)), model)


def test_torch_save_of_the_whole_model() -> None:
    model = make("every slot")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_equal_and_acting(torch.load(file, weights_only=False), model)


UNPICKLE = """
import pickle, sys, torch
model, images, out = pickle.load(open(sys.argv[1], "rb"))
import dcn_plugin as dcn
dcn.verify(model)
assert torch.equal(model(images), out)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["batch norm", "no norm"])
def test_pickle_in_a_fresh_process(tmp_path: Path, name: str) -> None:
    model = make(name)
    (tmp_path / "model").write_bytes(pickle.dumps((model, IMAGES, model(IMAGES).detach())))
    done = subprocess.run(
        [sys.executable, "-c", UNPICKLE, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("name", NETS)
def test_state_dict(name: str) -> None:
    model = make(name)
    other = make(name, seed=4)
    standard = {key: value for key, value in model.state_dict().items() if value.dtype != torch.bool}
    other.load_state_dict(standard)  # standard weights: strict, and the masks stay
    assert dcn.defect_spec(other) == dcn.defect_spec(make(name, seed=4))
    assert_masks_act(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IMAGES)[0], model(IMAGES)[0])
    dcn.verify(other)
    some = {key: value for key, value in model.state_dict().items() if not key.startswith(masked_names(model)[0])}
    with pytest.raises(MaskStateError if len(masked_names(model)) > 1 else RuntimeError):
        other.load_state_dict(some)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        NETS[name]().load_state_dict(model.state_dict())


def masked_names(model: nn.Module) -> list[str]:
    return [key for key, value in model.state_dict().items() if value.dtype == torch.bool]


def test_load_state_dict_with_assign() -> None:
    model, other = make(), make(seed=4)
    other.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert torch.equal(other(IMAGES), model(IMAGES))
    dcn.verify(other)


@pytest.mark.parametrize("name", ["batch norm", "every slot"])
# One process is what this test is about; the tool says that it noticed.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_distributed_checkpoint(name: str, tmp_path: Path) -> None:
    model, other = make(name), make(name, seed=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    assert_masks_act(model)
    optimizer.step()
    state, _ = get_state_dict(model, optimizer)
    assert state.keys() == model.state_dict().keys()
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    target = get_model_state_dict(other)
    dcp.load(target, checkpoint_id=tmp_path, no_dist=True)
    set_model_state_dict(other, target, options=StateDictOptions(strict=True))
    assert torch.equal(assert_masks_act_of(other, model), assert_masks_act(model))
    dcn.verify(other)


def assert_masks_act_of(model: nn.Module, origin: nn.Module) -> torch.Tensor:
    """Like ``assert_masks_act``, for a model that took over the masks of another one."""
    taken = copy.deepcopy(model)
    taken.defect_spec = dcn.defect_spec(origin)  # type: ignore[assignment]
    return assert_masks_act(taken)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NETS)
def test_half_bfloat16_and_double(name: str, dtype: torch.dtype) -> None:
    model = make(name).to(dtype)
    assert {m.mask.dtype for m in model.modules() if isinstance(m, dcn.DefectMask2d)} == {torch.bool}
    out = assert_masks_act(model, IMAGES.to(dtype))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    dcn.verify(model)


@pytest.mark.parametrize("name", NETS)
def test_channels_last(name: str) -> None:
    model = make(name)
    expected = assert_masks_act(model)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    out = assert_masks_act(last, IMAGES.to(memory_format=torch.channels_last))
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-4)
    dcn.verify(last)


@pytest.mark.parametrize("before", [True, False])
def test_channels_last_stays_channels_last_behind_every_mask(before: bool) -> None:
    torch.manual_seed(0)
    plain = NETS["batch norm"]()
    if before:
        plain = plain.to(memory_format=torch.channels_last)
    model = dcn.defectify(plain, "all", input_size=(3, 32, 32)).eval()
    if not before:
        model = model.to(memory_format=torch.channels_last)
    formats = []
    masks = [m for m in model.modules() if isinstance(m, dcn.DefectMask2d)]
    for mask in masks:
        assert mask.mask.is_contiguous(memory_format=torch.channels_last)
        mask.register_forward_hook(
            lambda _, args, out: formats.append(
                (args[0].is_contiguous(memory_format=torch.channels_last), out.stride() == args[0].stride())
            )
        )
    model(IMAGES.to(memory_format=torch.channels_last))
    assert len(formats) == len(masks) and all(last and kept for last, kept in formats)


def test_the_meta_device_forgets_masks_until_a_state_dict_brings_them_back() -> None:
    model = make()
    state = copy.deepcopy(model.state_dict())
    expected = model(IMAGES)
    ghost = model.to("meta")
    with pytest.raises(TraceError, match="meta device"):
        dcn.verify(ghost)
    there = ghost.to_empty(device="cpu")
    for value in there.state_dict().values():
        value.zero_()  # what to_empty() leaves behind is anybody's guess
    with pytest.raises(MaskLostError, match="its bits are not those that its seed gives"):
        dcn.verify(there)
    there.load_state_dict(state)
    assert torch.equal(there(IMAGES), expected)
    dcn.verify(there)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETS)
def test_a_gpu_gives_the_same_masks(name: str) -> None:
    model = make(name)
    expected = assert_masks_act(model)
    moved = copy.deepcopy(model).cuda()
    assert torch.allclose(assert_masks_act(moved, IMAGES.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    dcn.verify(moved)
    assert torch.equal(assert_masks_act(moved.cpu()), expected)

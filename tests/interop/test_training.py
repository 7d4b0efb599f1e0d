"""Rows of the interop matrix: what happens to a network while it trains."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import dcn_plugin as dcn
from tests.interop.probe import IMAGES, NETS, SIZE, assert_masks_act, gradients, loss_of, make, unmasked
from tests.nets import SmallNet


def logits(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    out = model(images)
    return out if isinstance(out, Tensor) else out[0]  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [False, True])
def test_autocast_bfloat16(name: str, training: bool) -> None:
    model = make(name).train(training)
    kinds: list[tuple[torch.dtype, torch.dtype]] = []
    for mask in model.modules():
        if isinstance(mask, dcn.DefectMask2d):
            mask.register_forward_hook(lambda _, args, out: kinds.append((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = assert_masks_act(model)
    assert kinds and all(before == after for before, after in kinds)
    assert name == "layer norm" or any(before == torch.bfloat16 for before, _ in kinds)
    if not training:
        assert torch.allclose(out.float(), logits(model), atol=0.05)


# ------------------------------------------------------------------------------- gradient checkpointing


@pytest.mark.parametrize("name", ["batch norm", "fused norm", "layer norm"])
def test_gradient_checkpointing_of_timm(name: str) -> None:
    model: Any = make(name).train()
    expected = gradients(copy.deepcopy(model))
    model.set_grad_checkpointing(True)
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert_masks_act(model)
    dcn.verify(model)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [n for n in NETS if n != "batch norm"])  # that one adds in place: `x += shortcut`
def test_full_backward_hooks_on_every_module(name: str, training: bool) -> None:
    model = make(name).train(training)

    def call(images: Tensor) -> Any:
        return model(images.detach().requires_grad_())

    expected = gradients(model, call=call)
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
        if not isinstance(module, dcn.DefectMask2d) and hasattr(module, "inplace"):
            module.inplace = False  # torch refuses these hooks around what works in place, masks or not
    found = gradients(model, call=call)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert_masks_act(model, call=call)
    dcn.verify(model)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_gradient_checkpointing_of_torch(name: str, reentrant: bool) -> None:
    model = make(name)
    expected = gradients(model)

    def call(images: Tensor) -> Any:
        return checkpoint(model, images.detach().requires_grad_(), use_reentrant=reentrant)

    found = gradients(model, call=call)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert_masks_act(model, call=call)


# -------------------------------------------------------------------------------------------------- DDP


def run_two_processes(folder: Path) -> list[dict[str, Any]]:
    """What the two processes of the DDP row report."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.interop.ddp_worker", str(rank), str(folder)],
            cwd=Path(__file__).parents[2],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [worker.communicate(timeout=110)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"report{rank}.pt") for rank in (0, 1)]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# One test, because its two processes import everything anew.
def test_ddp_on_two_processes(tmp_path: Path) -> None:
    first, second = run_two_processes(tmp_path)

    # Identical masks, and the gradients of a single process.
    model = make("batch norm")
    assert equal(first["masks"], {key: value for key, value in model.state_dict().items() if value.dtype == torch.bool})
    assert equal(first["masks"], second["masks"])
    assert equal(first["gradients"], second["gradients"])
    expected, other = gradients(model), gradients(unmasked(model))
    close = [
        [torch.allclose(first["gradients"][name], grads[name], rtol=1e-4, atol=1e-6) for name in grads]
        for grads in (expected, other)
    ]
    assert all(close[0]) and not all(close[1])

    # After training the ranks agree, and the masks are the old ones.
    assert equal(first["masks"], {key: first["trained"][key] for key in first["masks"]})
    own = [key for key in first["trained"] if "running" not in key]  # each rank has statistics of its own images
    assert all(torch.equal(first["trained"][key], second["trained"][key]) for key in own)

    # A checkpoint looks through the wrapper.
    assert equal(first["loaded"], first["trained"]) and equal(second["loaded"], first["trained"])

    # A rank with another seed gets rank 0's masks like every buffer, and verify says so.
    rank0 = dcn.defectify(SmallNet(), "all", input_size=SIZE, seed=3).state_dict()
    assert all(torch.equal(rank0[key], report["other"][key]) for report in (first, second) for key in report["other"])
    assert first["complaint"] == ""
    assert "its bits are not those that its seed gives" in second["complaint"]


# --------------------------------------------------------------------------------------------- optimiser


def groups_by_name(model: nn.Module, groups: list[dict[str, Any]]) -> list[tuple[float, float, list[str]]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [(g["weight_decay"], g.get("lr_scale", 1.0), [names[id(p)] for p in g["params"]]) for g in groups]


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.7}], ids=["weight decay", "layer decay"])
@pytest.mark.parametrize("name", ["batch norm", "fused norm", "layer norm"])
def test_optimiser_groups_are_those_of_the_plain_network(name: str, options: dict[str, Any]) -> None:
    model = make(name)
    plain = dcn.undefectify(model)
    both = []
    for network in (model, plain):
        optimizer = timm.optim.create_optimizer_v2(network, "sgd", lr=0.1, weight_decay=0.01, **options)
        both.append(groups_by_name(network, optimizer.param_groups))
    assert both[0] == both[1]
    decayed = {n for decay, _, names in both[0] for n in names if decay}
    norms = {site.name for site in dcn.defect_spec(model).sites}
    assert decayed and not {n for n in decayed if n.rpartition(".")[0] in norms}
    assert not {n for _, _, names in both[0] for n in names if "mask" in n}


# ----------------------------------------------------------------------------------------- functional


@pytest.mark.parametrize("name", NETS)
def test_functional_call(name: str) -> None:
    model = make(name)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert torch.equal(assert_masks_act(model, call=lambda x: functional_call(model, state, (x,))), logits(model))
    mask = next(key for key, value in state.items() if value.dtype == torch.bool)
    alive = functional_call(model, {mask: torch.ones_like(state[mask])}, (IMAGES,))
    assert torch.equal(logits_of(alive), logits(unmasked(model)))
    assert not torch.equal(logits(unmasked(model)), logits(model))
    weight = next(key for key, value in state.items() if value.is_floating_point())
    assert not torch.equal(logits_of(functional_call(model, {weight: state[weight] * 2}, (IMAGES,))), logits(model))


def logits_of(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NETS)
def test_vmap_over_grad_gives_the_gradient_of_each_image(name: str) -> None:
    model = make(name)
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return loss_of(functional_call(model, weights, (image.unsqueeze(0),)))

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, IMAGES)
    for number in range(len(IMAGES)):
        expected = gradients(model, IMAGES[number : number + 1])
        for key, value in expected.items():
            assert torch.allclose(found[key][number], value, rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("name", NETS)
def test_vmap_over_networks_with_masks_of_their_own(name: str) -> None:
    models = [make(name, seed=seed) for seed in (3, 4)]
    state = stack_module_state(models)  # type: ignore[arg-type]
    shell = copy.deepcopy(models[0])

    def call(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return logits_of(functional_call(shell, (weights, buffers), (IMAGES,)))

    out = vmap(call)(*state)
    assert all(torch.allclose(out[i], logits(model), atol=1e-5) for i, model in enumerate(models))


@pytest.mark.parametrize("name", NETS)
def test_vmap_over_masks_alone(name: str) -> None:
    models = [make(name, seed=seed) for seed in (3, 4)]
    shared = {key: value.detach() for key, value in models[0].state_dict().items()}
    for model in models:
        model.load_state_dict({key: value for key, value in shared.items() if value.dtype != torch.bool})
    masks = {
        key: torch.stack([m.state_dict()[key] for m in models]) for key in shared if shared[key].dtype == torch.bool
    }

    def call(bits: dict[str, Tensor], images: Tensor) -> Tensor:
        return logits_of(functional_call(models[0], {**shared, **bits}, (images,)))

    def gradient(bits: dict[str, Tensor]) -> Tensor:
        return grad(lambda images: call(bits, images).square().sum())(IMAGES)

    expected = torch.stack([logits(model) for model in models])
    of_each_image = vmap(lambda bits: vmap(lambda image: call(bits, image[None])[0])(IMAGES))
    assert torch.allclose(vmap(call, in_dims=(0, None))(masks, IMAGES), expected, atol=1e-5)
    assert torch.allclose(of_each_image(masks), expected, atol=1e-5)
    gradients_of = [
        torch.autograd.grad(logits(m, x).square().sum(), x)[0]
        for m in models
        for x in [IMAGES.clone().requires_grad_()]
    ]
    assert torch.allclose(vmap(gradient)(masks), torch.stack(gradients_of), rtol=1e-4, atol=1e-5)


# torch builds its forward-mode rules with the torch.jit.script that it deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("name", NETS)
def test_forward_mode_derivative_equals_the_backward_one(name: str) -> None:
    model = make(name).double()
    images, direction = IMAGES.double(), IMAGES.double().flip(0).cos()

    def loss(x: Tensor) -> Tensor:
        return logits(model, x).square().sum()

    _, forward = jvp(loss, (images,), (direction,))
    assert torch.allclose(forward, (grad(loss)(images) * direction).sum(), rtol=1e-8)


@pytest.mark.parametrize("name", NETS)
def test_inference_mode(name: str) -> None:
    model = make(name)
    with torch.inference_mode():
        assert torch.equal(logits(model), logits(copy.deepcopy(model)))
        dcn.verify(model)

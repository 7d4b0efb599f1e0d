"""What timm's own model tests ask of a model, in our words: each check runs on base and defective model alike.

A check builds the model as often as it likes, fails by an exception, and returns what it computed, so that
a defective model with p = 1 can be held against its base bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format, get_channel_dim, get_spatial_dim, set_scriptable
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules, group_parameters
from torch import Tensor, nn
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor, get_graph_node_names

CLASSES = 7


@dataclass(frozen=True)
class Subject:
    """A timm model under test: its name, the side of its images, options for every build."""

    name: str
    size: int
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, **more: Any) -> nn.Module:
        """The same weights at every call, whatever the global generator holds."""
        with seeded():
            return timm.create_model(self.name, **{"num_classes": CLASSES, **self.options, **more})

    def images(self, count: int = 1, channels: int = 3) -> Tensor:
        return torch.randn(count, channels, self.size, self.size, generator=torch.Generator().manual_seed(5))


@dataclass(frozen=True)
class Gradients:
    """Sums of many terms: a mask between two operations may change the order in which autograd adds them up."""

    of: list[Tensor]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Gradients)
            and len(self.of) == len(other.of)
            and all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(self.of, other.of, strict=True))
        )


@contextmanager
def seeded(seed: int = 1) -> Iterator[None]:
    """Fixed random numbers inside, the generator as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def legacy_executor() -> Iterator[None]:
    """TorchScript without the profiling that optimises for later calls: a test makes one."""
    executor = torch._C._jit_set_profiling_executor(True)
    mode = torch._C._jit_set_profiling_mode(False)
    try:
        yield
    finally:
        torch._C._jit_set_profiling_executor(executor)
        torch._C._jit_set_profiling_mode(mode)


def tensors(out: Any) -> list[Tensor]:
    """All tensors of an output, finite ones."""
    if isinstance(out, Tensor):
        found = [out]
    else:
        found = [t for part in (out.values() if isinstance(out, dict) else out) for t in tensors(part)]
    assert found and all(t.isfinite().all() for t in found)
    return found


def forward(subject: Subject) -> list[Tensor]:
    """One image gives one row of logits; gradient checkpointing, where there is any, changes nothing."""
    model, image = subject.build().eval(), subject.images()
    out = tensors(model(image))
    assert out[0].shape == (1, CLASSES)
    if can_checkpoint(model):
        for ours, theirs in zip(out, tensors(model(image)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    return out


def backward(subject: Subject) -> list[Any]:
    """In training every parameter gets a gradient."""
    model = subject.build().train()
    with seeded():
        out = tensors(model(subject.images(2)))
    assert out[0].shape == (2, CLASSES)
    sum(o.mean() for o in out).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing, missing
    buffers = without_masks(dict(model.named_buffers()))
    return [*out, *buffers.values(), Gradients([p.grad for p in model.parameters()])]


def checkpointed_backward(subject: Subject) -> list[Any]:
    """With gradient checkpointing the gradients are those without it."""
    grads = []
    for checkpointing in (False, True):
        model = subject.build().eval()
        if checkpointing and not can_checkpoint(model):
            return []
        sum(o.mean() for o in tensors(model(subject.images()))).backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    return [Gradients(grads[1])]


def head(subject: Subject) -> list[Any]:
    """Features, pre-logits, and the model without classifier and without pooling have the sizes it states."""
    model, image = subject.build().eval(), subject.images()
    assert model.num_classes == CLASSES
    channels = get_channel_dim(getattr(model, "output_fmt", "NCHW"))
    features = model.forward_features(image)
    before = model.forward_head(features, pre_logits=True)
    assert features.shape[channels] == model.num_features
    assert before.shape == (1, model.head_hidden_size)
    assert model.get_classifier() is not None
    model.reset_classifier(3)
    assert model(image).shape == (1, 3)
    model.reset_classifier(0)
    assert model.num_classes == 0
    pooled = model(image)
    assert pooled.shape == before.shape
    return [features, before, pooled, model.num_features, model.head_hidden_size]


def unpooled(subject: Subject) -> list[Any]:
    """Classifier and pooling can be taken away, afterwards or from the start, and then a map comes out."""
    after, image = subject.build().eval(), subject.images()
    after.reset_classifier(0, "")
    start = subject.build(num_classes=0, global_pool="").eval()
    outs = [after(image), start(image)]
    assert all(out.ndim == 4 for out in outs)
    assert outs[0].shape == outs[1].shape
    return outs


def names(subject: Subject) -> list[Any]:
    """The layers that the configuration calls classifier and first convolution exist."""
    model = subject.build()
    cfg = model.default_cfg
    assert cfg == model.pretrained_cfg
    for role in ("classifier", "first_conv"):
        layers = (cfg[role],) if isinstance(cfg[role], str) else tuple(cfg[role])
        assert layers and all(f"{layer}.weight" in model.state_dict() for layer in layers)
    return [cfg["classifier"], cfg["first_conv"], cfg["mean"], cfg["std"], cfg["num_classes"]]


def groups(subject: Subject) -> list[Any]:
    """The model tells optimisers which parameters belong together and which are not decayed."""
    model = subject.build()
    found: list[Any] = [sorted(model.no_weight_decay())] if hasattr(model, "no_weight_decay") else []
    for coarse in (False, True):
        by_layer = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(n for layer in by_layer.values() for n in layer) == sorted(n for n, _ in model.named_parameters())
        found.append(by_layer)
    return found


def feature_list(subject: Subject) -> list[Any]:
    """``features_only`` gives maps of the channels and reductions it states."""
    return _features(subject, features_only=True)


def feature_getter(subject: Subject) -> list[Any]:
    """So does its variant that calls ``forward_intermediates``."""
    return _features(subject, features_only=True, feature_cls="getter")


def feature_dict(subject: Subject) -> list[Any]:
    """So does the one that returns a dict."""
    return _features(subject, features_only=True, feature_cls="dict")


def feature_hook(subject: Subject) -> list[Any]:
    """So does the one with hooks."""
    return _features(subject, features_only=True, feature_cls="hook")


def feature_graph(subject: Subject) -> list[Any]:
    """So does the one that is traced by fx."""
    return _features(subject, features_only=True, feature_cls="fx")


def intermediates(subject: Subject) -> list[Any]:
    """``forward_intermediates`` gives the maps that feature_info states, and ends in ``forward_features``."""
    model, image = subject.build().eval(), subject.images()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    last, maps = model.forward_intermediates(image, output_fmt="NCHW")
    _check_maps(maps, info, Format.NCHW, subject.size)
    torch.testing.assert_close(last, model.forward_features(image))
    if can_checkpoint(model):
        again, _ = model.forward_intermediates(image, output_fmt="NCHW")
        torch.testing.assert_close(last, again, rtol=1e-4, atol=1e-5)
    return [last, *maps]


def fx_forward(subject: Subject) -> list[Tensor]:
    """The model can be traced by fx, and the graph computes the same bits."""
    model, image = subject.build().eval(), subject.images()
    with torch.inference_mode():
        out = tensors(model(image))
        traced = tensors(_trace(model)(image))
    assert len(out) == len(traced) and all(torch.equal(a, b) for a, b in zip(out, traced, strict=True))
    return out


def fx_backward(subject: Subject) -> list[Tensor]:
    """In training the traced graph gives every parameter a gradient."""
    model = _trace(subject.build().train(), train=True)
    with seeded():
        out = tensors(model(subject.images(2)))
    sum(o.mean() for o in out).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing, missing
    return out


def script(subject: Subject) -> list[Tensor]:
    """The model can be compiled by TorchScript, and computes the same."""
    with set_scriptable(True):
        model = subject.build().eval()
    return _script(model, model(subject.images()), subject)


def fx_script(subject: Subject) -> list[Tensor]:
    """So can its fx graph."""
    with set_scriptable(True):
        model = subject.build().eval()
    return _script(_trace(model), model(subject.images()), subject)


def feature_graph_script(subject: Subject) -> list[Tensor]:
    """So can the fx variant of ``features_only``."""
    with set_scriptable(True):
        model = subject.build(features_only=True, feature_cls="fx").eval()
    return _script(model, model(subject.images()), subject)


Check = Callable[[Subject], list[Any]]
# What every model must pass; what one a family stands for; and the same for what takes seconds to compile.
CORE: dict[str, Check] = {
    check.__name__: check for check in (forward, backward, head, unpooled, names, feature_list, intermediates)
}
MORE: dict[str, Check] = {
    check.__name__: check for check in (checkpointed_backward, groups, feature_getter, feature_dict, feature_hook)
}
HEAVY: dict[str, Check] = {
    check.__name__: check for check in (fx_forward, fx_backward, feature_graph, script, fx_script, feature_graph_script)
}


def pretrained_adapts(subject: Subject, weights: Path) -> list[Any]:
    """Weights for 3 channels and 1000 classes load into a model with other numbers, and into a truncated one."""
    overlay: dict[str, Any] = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(weights), num_classes=1000))
    found: list[Any] = [subject.build(in_chans=1, num_classes=n, **overlay).state_dict() for n in (5, 0)]
    return [*found, subject.build(features_only=True, **overlay).state_dict()]


def equal(ours: Any, theirs: Any) -> bool:
    """Whether two results of a check are the same, tensors bit by bit; masks count for nothing."""
    if isinstance(ours, Tensor):
        return isinstance(theirs, Tensor) and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return without_masks(ours).keys() == without_masks(theirs).keys() and all(
            equal(value, theirs[key]) for key, value in without_masks(ours).items()
        )
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


def without_masks(state: dict[Any, Any]) -> dict[Any, Any]:
    """A state dict as the base model has it."""
    return {key: value for key, value in state.items() if not str(key).endswith("drop.mask")}


def can_checkpoint(model: nn.Module) -> bool:
    """Switch gradient checkpointing on; False where the model has none."""
    try:
        model.set_grad_checkpointing()
    except (AssertionError, AttributeError):  # what timm's models say when they cannot
        return False
    return True


def _features(subject: Subject, **options: Any) -> list[Any]:
    model = subject.build(**options).eval()
    info, maps = model.feature_info, model(subject.images())
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    _check_maps(maps, info, getattr(model, "output_fmt", Format.NCHW), subject.size)
    return [*maps, info.channels(), info.reduction()]


def _check_maps(maps: list[Tensor], info: FeatureInfo, output_fmt: Any, size: int) -> None:
    assert len(maps) == len(info.channels()) >= 3
    height, width = get_spatial_dim(output_fmt)
    for found, channels, reduction in zip(maps, info.channels(), info.reduction(), strict=True):
        assert found.isfinite().all()
        assert found.shape[get_channel_dim(output_fmt)] == channels
        assert max(found.shape[height], found.shape[width]) <= math.ceil(size / reduction) + 1


def _trace(model: nn.Module, *, train: bool = False) -> nn.Module:
    options = dict(
        leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions(), param_shapes_constant=True
    )
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=options)
    returned = [train_nodes[-1]]
    if train:  # some models return several tensors in training
        graph = list(NodePathTracer(**options).trace(model).nodes)
        from_end = {node: place - len(graph) + 1 for place, node in enumerate(graph)}
        returned = [train_nodes[from_end[node]] for node in graph[-1].all_input_nodes]
    return create_feature_extractor(
        model, train_return_nodes=returned, eval_return_nodes=[eval_nodes[-1]], tracer_kwargs=options
    )


def _script(model: nn.Module, expected: Any, subject: Subject) -> list[Tensor]:
    with legacy_executor(), torch.inference_mode():
        out = tensors(torch.jit.script(model)(subject.images()))
    for ours, theirs in zip(out, tensors(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    return out

"""Models by name: a timm name, a checkpoint of ours, or a function of the user's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcn_plugin.errors import CheckpointError, DcnError, SpecError
from dcn_plugin.support.named_options import Spec, named, parse_spec
from dcn_plugin.support.suggestions import closest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from torch import nn

__all__ = ["MODELS", "WEIGHT_FILES", "open_model", "open_models"]

MODELS = (
    "a timm name (defective_resnet18,p=0.3,num_classes=10,checkpoint_path=FILE), a checkpoint of save_checkpoint "
    "(net.safetensors, with model=SPEC where the architecture is not timm's), or a function of yours "
    "(module:function,option=1,weights=FILE); class_names=FILE says what its classes are called"
)
"""What :func:`open_model` understands, for help texts."""

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".pth.tar", ".bin")
"""How the names of files end that are taken for files, without a folder in front of them."""


def open_models(
    texts: Iterable[str], what: str, *, device: torch.device, tell: Callable[[str], None]
) -> dict[str, nn.Module]:
    """Open every ``NAME=SPEC`` as :func:`open_model` does, in eval mode on ``device``."""
    return {name: open_model(spec, name=name, tell=tell).to(device).eval() for name, spec in named(texts, what).items()}


_REMOTE = ("local-dir:", "hf-hub:", "hf_hub:")  # what timm opens beside the names of its registry


def open_model(text: str, *, name: str = "", tell: Callable[[str], None] = print) -> nn.Module:
    """Make a model that takes images in [0, 1].

    A timm model gets the normalisation of its ``pretrained_cfg`` inside, and ``tell`` says so;
    ``normalize=false`` leaves it out, and ``mean=`` and ``std=`` change it (one number is that of every channel). Where
    ``in_chans`` is not three, each channel gets the mean of timm's constants, as in timm's own loaders. A function's
    model is taken as it is.

    What the classes are called is read off the file that the weights come from, where that tells it, and is known of
    timm's ImageNet weights; ``class_names=`` says it, as :func:`dcn_plugin.data.read_class_names` takes it.

    Args:
        text: see :data:`MODELS`.
        name: what to call it in messages.
        tell: gets one line on how images are normalised.

    Raises:
        SpecError: the name or an option is unknown, or a function cannot be found.
        CheckpointError: a file does not fit.
    """
    spec = parse_spec(text)
    options = dict(spec.options)
    normalize = options.pop("normalize", True)
    constants: dict[str, Any] = {key: options.pop(key) for key in ("mean", "std") if key in options}
    names = options.pop("class_names", None)
    if (spec.head.endswith(WEIGHT_FILES) or os.path.sep in spec.head) and not spec.head.startswith(_REMOTE):
        model, normalisation = _from_checkpoint(Path(spec.head), options)
    elif ":" in spec.head and not spec.head.startswith(_REMOTE):
        model, normalisation = _from_function(Spec(spec.head, options)), None
    else:
        model, normalisation = _from_timm(Spec(spec.head, options))
    _name_classes(model, names, options)
    channels = len(normalisation["mean"]) if normalisation else 1
    normalisation = {**(normalisation or {}), **constants} if normalisation or constants else None
    if not normalize or normalisation is None:
        tell(f"{name or text}: takes images in [0, 1] as they are")
        return model
    normalisation = {key: _per_channel(value, channels) for key, value in normalisation.items()}
    if normalisation.keys() != {"mean", "std"} or not all(
        isinstance(normalisation[key], list | tuple) for key in normalisation
    ):
        raise SpecError("Normalisation needs mean and std.", constants, "mean=[...],std=[...]")
    from dcn_plugin.layers import Normalized

    mean, std = normalisation["mean"], normalisation["std"]
    tell(f"{name or text}: images are normalised inside, mean {list(mean)}, std {list(std)}")
    return Normalized(model, mean, std)


def _per_channel(value: Any, channels: int) -> Any:
    """A number once for every channel; anything else as it is."""
    return [value] * channels if isinstance(value, int | float) and not isinstance(value, bool) else value


def _name_classes(model: nn.Module, names: Any, options: Mapping[str, Any]) -> None:
    """Tell a model what its classes are called: as it was written, or as its file says."""
    from dcn_plugin.checkpoint.class_names import class_names_in, name_classes
    from dcn_plugin.data import read_class_names

    if names is not None:
        name_classes(model, read_class_names(names if isinstance(names, list | tuple) else str(names)))
    elif (path := options.get("checkpoint_path")) and (told := class_names_in(str(path))):
        name_classes(model, told)
    elif options.get("pretrained") and _knows_imagenet(model):
        name_classes(model, read_class_names("imagenet-1k"))


def _knows_imagenet(model: nn.Module) -> bool:
    """Whether timm loaded weights that end in ImageNet's 1,000 classes, and their head."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    return "in1k" in (cfg.get("tag") or "") and cfg.get("num_classes") == getattr(model, "num_classes", None) == 1000


def _from_timm(spec: Spec) -> tuple[nn.Module, Mapping[str, Any] | None]:
    import timm

    import dcn_plugin.models  # noqa: F401  registers the defective models

    if not timm.is_model(spec.head) and not spec.head.startswith(_REMOTE):
        raise SpecError("This is no model.", spec.head, MODELS, _instead_of(spec.head, timm.list_models()))
    options = dict(spec.options)
    # timm reads it too, but neither masks that are packed nor all the nests that state dicts lie in.
    weights = options.pop("checkpoint_path", None)
    try:
        model = timm.create_model(spec.head, **options)
    except DcnError:
        raise
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if not spec.options or isinstance(error, OSError):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise SpecError(f"{spec.head} does not take these options ({reason}).", dict(spec.options)) from error
    cfg: Any = model.pretrained_cfg
    if weights:
        model = _with_weights(model, Path(str(weights)))
    if not (cfg.get("mean") and cfg.get("std")):
        return model, None
    return model, {key: _for_channels(cfg[key], options.get("in_chans", 3)) for key in ("mean", "std")}


def _for_channels(constants: Sequence[float], channels: int) -> list[float]:
    """Constants of another number of channels: their mean for each, as timm's loaders do it."""
    return list(constants) if len(constants) == channels else [sum(constants) / len(constants)] * channels


def _instead_of(name: str, names: list[str]) -> str:
    """What to write in place of a name that timm does not know."""
    base = name.removeprefix("defective_")
    if base != name and base in names:
        return (
            f"timm has {base}, but no defective version comes with this package: if it is a CNN, write a function that "
            f"returns dcn_plugin.defectify(timm.create_model({base!r}), ...), and name it module:function"
        )
    listed = "all names: import dcn_plugin, timm; timm.list_models(), or timm.list_models('defective_*')"
    near = closest(name, names)
    return f"{near} {listed}" if near else listed


def _from_checkpoint(path: Path, options: dict[str, Any]) -> tuple[nn.Module, Mapping[str, Any] | None]:
    from dcn_plugin.checkpoint import load_checkpoint, read_info
    from dcn_plugin.checkpoint.sealed_file import is_archive
    from dcn_plugin.surgery.wrappers import unwrap

    base = options.pop("model", None)
    if options:
        raise SpecError("A checkpoint brings its own options.", options, "model=SPEC, normalize=, mean=, std=")
    if not is_archive(path):
        if base is None:
            raise CheckpointError(
                f"{path} is no file of save_checkpoint, and does not say which architecture it holds.",
                None,
                "a file of save_checkpoint, or one of weights beside the name of its architecture",
                f"name it: 'resnet18,num_classes=10,checkpoint_path={path}' or 'module:function,weights={path}'",
            )
        model, constants = unwrap(open_model(str(base), tell=lambda _: None))
        return _with_weights(model, path), constants
    info = read_info(path)
    inside: Mapping[str, Any] | None = info.normalization
    if base is not None:
        model = open_model(str(base), tell=lambda _: None)
        model, constants = unwrap(model)
        inside = inside or constants
    elif info.architecture and info.model_args is not None:
        model, cfg = _from_timm(Spec(info.architecture, {**info.model_args, "pretrained": False}))
        inside = inside or cfg
    else:
        raise CheckpointError(
            f"{path} does not say which architecture it holds.",
            fix=f"name it: {path},model=module:function or {path},model='resnet18,num_classes=10'",
        )
    return load_checkpoint(path, model), inside


def _from_function(spec: Spec) -> nn.Module:
    from torch import nn

    module_name, _, function = spec.head.partition(":")
    if not module_name or not function:
        raise SpecError("This names no function.", spec.head, MODELS)
    options = dict(spec.options)
    weights = options.pop("weights", None)
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own file in the folder they stand in
    try:
        make = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise SpecError(f"There is no {function!r} in {module_name!r} ({error}).", spec.head, MODELS) from error
    model = Spec(spec.head, options).call(make)
    if not isinstance(model, nn.Module):
        raise SpecError(f"{spec.head} does not return a module.", type(model).__name__, "torch.nn.Module")
    return model if weights is None else _with_weights(model, Path(str(weights)))


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    from dcn_plugin.checkpoint import load_checkpoint
    from dcn_plugin.checkpoint.sealed_file import is_archive
    from dcn_plugin.checkpoint.weights import load_weights

    if is_archive(path):
        return load_checkpoint(path, model)
    load_weights(model, path)
    return model

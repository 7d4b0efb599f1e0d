"""Make every CNN of timm and torchvision defective, and hold each against an independent oracle.

    python -m recipes.coverage.sweep                 # resumes: models in the record are not run again
    python -m recipes.coverage.sweep --only '^timm/resnet'
    python -m recipes.coverage.sweep --redo refused  # run again what had this outcome
    python -m recipes.coverage.sweep --shard 1/2     # one of two processes that fill one record

Outcomes: "equal" (the defective network computes what the oracle computes, bit for bit, and something
else than the plain network), "refused" (a named error with its reason), "not built" (the plain network
cannot be had on this machine), "no 2-d convolution" (nothing with a kernel > 1: out of scope). Anything
else is recorded as "bug"; what the sweep has not come to yet stands under "not_run".
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import json
import os
import platform
import re
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.surgery import plan_defects
from recipes.coverage.oracle import observe, oracle_output

RECORD = Path(__file__).resolve().parent / "record.json"
SEED, P, BATCH = 0, 0.3, 2
SIZES = (64, 112, 128, 96, 160, 192, 224, 256, 288, 320, 384, 448, 512)  # tried in this order
MEMORY_GIB = 20


def model_names() -> list[str]:
    """Every model of timm and torchvision, without our own."""
    own = timm.list_models("defective_*") + timm.list_models(module="paper_nets")
    names = [f"timm/{name}" for name in timm.list_models() if name not in own]
    return names + [f"torchvision/{name}" for name in torchvision.models.list_models()]


def family_of(name: str) -> str:
    library, _, short = name.partition("/")
    entrypoint = timm.model_entrypoint(short) if library == "timm" else torchvision.models.get_model_builder(short)
    return f"{library}/{entrypoint.__module__.split('.')[-1]}"


def build(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(SEED)
    library, _, short = name.partition("/")
    if library == "timm":
        return timm.create_model(short, pretrained=False, **options)
    backbone = {"weights_backbone": None} if family_of(name).split("/")[1].startswith(_WITH_BACKBONE) else {}
    return torchvision.models.get_model(short, weights=None, **backbone, **options)


_WITH_BACKBONE = ("deeplabv3", "fcn", "lraspp", "faster_rcnn", "fcos", "keypoint_rcnn", "mask_rcnn", "retinanet", "ssd")


def candidates(name: str) -> Iterator[tuple[nn.Module, int]]:
    """The model, and image sizes to try it at: small ones first."""
    model: nn.Module | None = None
    for size in SIZES:
        try:
            yield build(name, img_size=size), size
            continue
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            break
        except (AssertionError, ValueError, RuntimeError) as error:
            if "allocate memory" in str(error):
                raise
            continue
    model = build(name)
    for size in (*SIZES, input_size(model)[-1]):
        yield model, size


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """The size the model was made for."""
    return (getattr(model, "default_cfg", None) or {}).get("input_size", (3, 224, 224))


def runnable(name: str) -> tuple[nn.Module, Tensor]:
    """The plain model, perturbed, and a batch of a small image size it accepts."""
    for model, size in candidates(name):
        model.eval()
        if not has_convolution(model):
            return model, torch.empty(0)
        shape = (BATCH, input_size(model)[0], size, size)
        images = torch.rand(shape, generator=torch.Generator().manual_seed(SEED))
        try:
            with torch.no_grad():
                model(images)
        except Exception:
            continue
        perturb(model, images)
        return model, images
    return model, torch.zeros(BATCH, *input_size(model))  # it takes no image batch: defectify has to say so


def has_convolution(model: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in model.modules())


@torch.no_grad()
def perturb(model: nn.Module, images: Tensor) -> None:
    """Make the comparison mean something: no parameter keeps a constant value, no norm is the identity.

    Initial norms have weight 1, bias 0, mean 0 and variance 1, and many residual branches are multiplied
    by zero; both would hide a mask in the wrong place. Statistics are first set to those of the images,
    so that deep networks neither explode nor die.
    """
    draw = torch.Generator().manual_seed(SEED)

    def near_one(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=draw, dtype=torch.float32).add_(0.5).to(like.dtype)

    for param in model.parameters():
        if not param.is_floating_point() or not param.numel():
            continue
        value = param.flatten()[0].item()
        if param.numel() == 1 or bool((param == value).all()):
            scale = 0.1 if abs(value) < 0.05 else value
            sign = torch.randint(0, 2, param.shape, generator=draw) * 2 - 1 if value == 0 else 1
            param.copy_(near_one(param) * scale * sign)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        zeroed = (
            isinstance(weight, nn.Parameter) and "norm" in type(module).__name__.lower() and weight.abs().max() < 0.2
        )
        if zeroed:  # the last norm of a residual branch, as many networks initialise it
            weight.copy_(near_one(weight))

    def set_statistics(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        x, dims = args[0], [d for d in range(args[0].ndim) if d != 1]
        var, mean = torch.var_mean(x, dims, correction=0)
        noise = torch.randn(mean.shape, generator=draw)
        norm.running_mean.copy_(mean + 0.3 * noise * var.sqrt())
        norm.running_var.copy_((var + 1e-3) * near_one(var))

    norms = [m for m in model.modules() if isinstance(getattr(m, "running_var", None), Tensor)]
    handles = [norm.register_forward_pre_hook(set_statistics) for norm in norms]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    model.train()
    model.eval()  # models that cache what they compute from parameters forget it here


@torch.no_grad()
def check(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """The outcome for one model, in eval mode."""
    size: Any = tuple(images.shape[1:])
    found: dict[str, Any] = {"input_size": list(size)}
    try:
        plain = observe(model, images)
    except Exception:
        plain = []
    # No room for a copy, and for what its forward pass takes.
    giant = sum(p.numel() * p.element_size() for p in model.parameters()) * 9 / 4 > MEMORY_GIB * 2**30
    options: dict[str, Any] = {"blocks": "bottom", "p": P, "input_size": size, "seed": SEED}
    try:
        if giant:
            spec = plan_defects(model, "bottom", dcn.MaskSpec(P, seed=SEED), input_size=size)
            oracle = oracle_output(model, list(spec.sites), images)
            net = dcn.defectify(model, **options, inplace=True)
        else:
            net = dcn.defectify(model, **options)
            spec = dcn.defect_spec(net)
            oracle = oracle_output(model, list(spec.sites), images)
    except dcn.errors.DcnError as error:
        unchanged = not plain or _same(observe(model, images), plain)
        found |= {"outcome": "refused", "error": type(error).__name__, "reason": error.what}
        return found if unchanged else found | {"outcome": "bug", "reason": "refused, but the model is changed"}
    out = observe(net, images)
    found |= {"sites": len(spec.sites), "convs": sum(isinstance(m, nn.Conv2d) for m in model.modules())}
    dcn.verify(net)
    complaints = {
        "the plain output is not finite": all(bool(v.isfinite().all()) for v in plain),
        "it differs from the oracle": bool(plain) and _same(out, oracle),
        "it does not differ from the plain model": not _same(out, plain),
        "undefectify does not restore the outputs": _same(observe(dcn.undefectify(net, inplace=True), images), plain),
        "defectify changed the model": _same(observe(model, images), plain),
    }
    wrong = [complaint for complaint, fine in complaints.items() if not fine]
    return found | ({"outcome": "bug", "reason": "; ".join(wrong)} if wrong else {"outcome": "equal"})


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def run_model(name: str) -> dict[str, Any]:
    """Build, check and time one model; in half the memory where float32 does not fit."""
    found = _run_model(name)
    if found["outcome"] == "not built" and "GiB" in found["reason"]:
        torch.set_default_dtype(torch.bfloat16)
        try:
            found = {**_run_model(name), "dtype": "bfloat16"}
        finally:
            torch.set_default_dtype(torch.float32)
    return found


def _run_model(name: str) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        model, images = runnable(name)
    except Exception as error:
        found = {"outcome": "not built", "reason": why_not_built(name, error)}
    else:
        found = {"params_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 1)}
        if not images.numel():
            found |= {"outcome": "no 2-d convolution"}
        else:
            try:
                found |= check(model, images)
            except Exception as error:
                found |= {"outcome": "bug", "reason": f"{type(error).__name__}: {error}"[:400]}
    return {"family": family_of(name), **found, "seconds": round(time.perf_counter() - started, 1)}


def why_not_built(name: str, error: Exception) -> str:
    if "allocate memory" in str(error):
        with torch.device("meta"):
            weights = sum(p.numel() * p.element_size() for p in build(name).parameters())
        return f"needs {weights / 2**30:.0f} GiB for its weights, {MEMORY_GIB} GiB were allowed"
    return f"{type(error).__name__}: {str(error)[:200]}"


def header() -> dict[str, Any]:
    return {
        "what": "defectify(blocks='bottom') on every model, against hooks on the plain model",
        "command": "python -m recipes.coverage.sweep",
        "options": {"blocks": "bottom", "p": P, "mode": "neuron", "seed": SEED, "batch": BATCH, "dtype": "float32"},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "dcn_plugin": dcn.__version__,
        },
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} thread, {MEMORY_GIB} GiB allowed",
    }


def write(record: dict[str, Any], path: Path) -> None:
    """One line a model, so that a diff shows which outcomes changed; atomic."""
    models = ",\n".join(f"    {json.dumps(n)}: {json.dumps(m)}" for n, m in sorted(record["models"].items()))
    record["not_run"] = sorted(set(model_names()) - record["models"].keys())
    head = json.dumps({k: v for k, v in record.items() if k != "models"}, indent=2)[:-2]
    draft = path.with_suffix(".tmp")
    draft.write_text(f'{head},\n  "models": {{\n{models}\n  }}\n}}\n', encoding="utf-8")
    os.replace(draft, path)


def read(path: Path) -> dict[str, Any]:
    """The record so far."""
    record: dict[str, Any] = {**header(), "models": {}}
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["versions"] != record["versions"]:
            raise SystemExit(f"{path} was made with other versions; remove it to start afresh")
        record["models"] = old["models"]
    return record


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep the other processes that fill the same record waiting."""
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep(names: list[str], path: Path, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the models that are not in the record yet, and write it after each."""
    record = read(path)
    todo = [name for name in names if name not in record["models"]]
    for i, name in enumerate(todo, 1):
        result = run_model(name)
        with alone(path):
            record = read(path)
            record["models"][name] = result
            write(record, path)
        gc.collect()
        report(f"[{i}/{len(todo)}] {name}: {result['outcome']} {result.get('reason', '')} {result['seconds']} s")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression over names such as timm/resnet18")
    parser.add_argument("--skip", default="^$", help="regular expression of names to leave out")
    parser.add_argument("--redo", default=None, help="run models with this outcome again")
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="run every N-th of these models, from the I-th on"
    )
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the models' own, not ours
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_GIB * 2**30,) * 2)
    if args.redo and args.record.exists():
        record = json.loads(args.record.read_text(encoding="utf-8"))
        record["models"] = {n: m for n, m in record["models"].items() if m["outcome"] != args.redo}
        write(record, args.record)
    names = [n for n in model_names() if re.search(args.only, n) and not re.search(args.skip, n)]
    shard, shards = map(int, args.shard.split("/"))
    sweep(names[shard - 1 :: shards], args.record, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()

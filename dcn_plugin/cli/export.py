"""``defective export MODEL --to FORMAT --out FILE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcn_plugin.cli.arguments import Commands, positive
from dcn_plugin.cli.models import MODELS, open_model
from dcn_plugin.errors import SpecError

__all__ = ["add"]

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "executorch": ".pte", "litert": ".tflite"}
"""Format -> how its file ends."""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "export",
        help="write a defective model for another runtime",
        description="Write a defective model in the form of another runtime. Before anything is written it runs there: "
        "masked neurons are counted behind every site and must be exactly zero, and the outputs are compared with "
        "torch's. A timm model takes images in [0, 1]: its normalisation goes inside.",
    )
    parser.add_argument("model", metavar="MODEL", help=f"written like a target of evaluate: {MODELS}")
    parser.add_argument("--to", choices=FORMATS, required=True, help="the runtime's format")
    endings = ", ".join(f"{suffix} for {name}" for name, suffix in FORMATS.items())
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"the file: {endings}")
    parser.add_argument(
        "--opset", type=positive, metavar="N", help="version of ONNX's operators (default: the exporter's; onnx alone)"
    )
    parser.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        help="images a call (default: any number for onnx and openvino, which otherwise take 1; 1 for the others)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.out.suffix != FORMATS[args.to]:
        raise SpecError("The file needs another name.", str(args.out), f"a name that ends in {FORMATS[args.to]}")
    if args.opset is not None and args.to != "onnx":
        raise SpecError("--opset is for onnx alone.", f"--to {args.to}", fix="leave it out")
    any_number = args.to in ("onnx", "openvino")
    if any_number and args.batch not in (None, 1):
        raise SpecError(f"{args.to} takes any number of images, or one.", args.batch, "--batch 1, or none at all")
    from dcn_plugin.engine import export

    model = open_model(args.model, tell=print)
    if args.to == "onnx":
        export.to_onnx(model, args.out, opset=args.opset, dynamic_batch=args.batch is None)
    elif args.to == "openvino":
        export.to_openvino(model, args.out, dynamic_batch=args.batch is None)
    elif args.to == "executorch":
        export.to_executorch(model, args.out, batch=args.batch or 1)
    else:
        export.to_litert(model, args.out, batch=args.batch or 1)
    print(f"{args.out}: every masked neuron is exactly zero, the outputs are torch's")
    return 0

"""``defective recipe list`` and ``defective recipe run``: the paper's tables and figures again, at several sizes."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcn_plugin.cli.arguments import Commands, add_no_progress, folder, natural, positive
from dcn_plugin.cli.processes import launched, open_accelerator
from dcn_plugin.errors import DataError, DcnError

if TYPE_CHECKING:
    from dcn_plugin.experiments.datasets import RecipeData
    from dcn_plugin.experiments.recipe import RecipeSpec
    from dcn_plugin.experiments.run import Plan

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "recipe",
        help="rerun a table or figure of the paper",
        description="A recipe trains the networks of a table, measures them and puts the paper's numbers beside them.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_list(actions)
    _add_run(actions)


def _add_list(actions: Commands) -> None:
    parser = actions.add_parser("list", help="show all recipes, what they need, and what is committed of them")
    _add_root(parser)
    parser.set_defaults(run=_list)


def _add_run(actions: Commands) -> None:
    parser = actions.add_parser(
        "run",
        help="train and measure what recipes need",
        description="Train the networks that are missing, measure, print table and verdict; writes record.json and "
        "table.md into OUT/RECIPE/SCALE. Finished networks and cells are kept as they come and shared by all recipes "
        "of OUT: a run that was stopped goes on with the same command. Several processes, started with accelerate "
        "launch -m dcn_plugin.cli recipe run ... or torchrun -m dcn_plugin.cli recipe run ..., train and measure "
        "together.",
    )
    parser.add_argument(
        "recipe",
        nargs="+",
        metavar="RECIPE",
        help="name (see 'recipe list'), or path of a recipe.toml; several run one after the other",
    )
    parser.add_argument(
        "--scale",
        default="smoke",
        metavar="SCALE",
        help="smoke (embedded digits, seconds; default), small (two CPU cores, hours), medium (twice as wide, a day) "
        "or full (the paper's)",
    )
    parser.add_argument("--data", metavar="ROOT", help="folder of the data set; 'recipe list' shows which")
    parser.add_argument(
        "--out", type=folder, default="recipe-runs", metavar="DIR", help="output folder (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="number of replicates (default: 1)")
    parser.add_argument("--seed", type=natural, default=0, metavar="S", help="seed of the first (default: 0)")
    parser.add_argument(
        "--engine",
        choices=("dense", "auto", "c"),
        default="dense",
        help="what computes the training steps of defective networks, as in 'defective train' (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what is missing and how long it takes, then stop")
    _add_root(parser)
    add_no_progress(parser)
    parser.set_defaults(run=_run)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipes", metavar="DIR", help="recipes folder (default: that of the repository)")


def _run(args: argparse.Namespace) -> int:
    from dcn_plugin.experiments.recipe import load_recipe

    accelerator = open_accelerator(None) if launched() else None
    first = accelerator is None or accelerator.is_main_process
    # All are planned before the first is run: what is misspelt or not there shows now, and not after hours.
    specs = [load_recipe(name, args.recipes) for name in dict.fromkeys(args.recipe)]
    opened: dict[str, RecipeData] = {}
    plans = [_plan(args, spec, accelerator, opened) for spec in specs]
    if first:
        _tell_plans(plans)
    if args.dry_run and first:
        _show_missing(plans)
    for number, plan in enumerate(plans if not args.dry_run else []):
        # What recipes share, an earlier one has trained by now.
        _run_one(args, _plan(args, plan.spec, accelerator, opened) if number else plan, show=first)
    if accelerator is not None:
        accelerator.end_training()
    return 0


def _plan(args: argparse.Namespace, spec: RecipeSpec, accelerator: Any, opened: dict[str, RecipeData]) -> Plan:
    """What a recipe needs; its data set is opened once for all recipes."""
    from dcn_plugin.experiments.datasets import open_data
    from dcn_plugin.experiments.run import plan_recipe

    seeds, name = range(args.seed, args.seed + args.seeds), spec.data_at(args.scale)
    if name not in opened:
        opened[name] = open_data(name, args.data)
    return plan_recipe(
        spec, args.scale, data=opened[name], out=args.out, seeds=seeds, accelerator=accelerator, engine=args.engine
    )


def _tell_plans(plans: Sequence[Plan]) -> None:
    """What each needs, and the time of all together: a network that several need is trained once."""
    from dcn_plugin.experiments.time_estimate import estimate

    for plan in plans:
        _tell(str(plan))
    cells = [cell for plan in plans for cell in plan.missing]
    if cells:
        jobs = {job.name: job for plan in plans for job in plan.train}
        _tell(f"expected time on this machine: {estimate(list(jobs.values()), cells, plans[0].device)}")


def _show_missing(plans: Sequence[Plan]) -> None:
    for title in dict.fromkeys(f"train {job.title}, seed {job.seed}" for plan in plans for job in plan.train):
        print(title)
    for plan in plans:
        for cell in plan.missing:
            print(f"measure {cell.title}")


def _run_one(args: argparse.Namespace, plan: Plan, *, show: bool) -> None:
    from dcn_plugin.experiments.run import run_recipe

    progress, command = not args.no_progress, _command(args, plan.spec.name)
    outcome = run_recipe(plan, command=command, progress=progress, tell=_tell if progress else None)
    if not show:
        return
    print(outcome.markdown)
    for file in outcome.files:
        print(f"Wrote {file}")


def _tell(line: str) -> None:
    print(f"defective: {line}", file=sys.stderr, flush=True)


def _command(args: argparse.Namespace, name: str) -> str:
    """The command for one recipe, without paths of this machine."""
    parts = ["defective", "recipe", "run", name, "--scale", args.scale]
    parts += ["--data", "ROOT"] if args.data is not None else []
    parts += ["--seeds", str(args.seeds)] if args.seeds != 1 else []
    parts += ["--seed", str(args.seed)] if args.seed else []
    parts += ["--engine", args.engine] if args.engine != "dense" else []
    return shlex.join(parts)


def _list(args: argparse.Namespace) -> int:
    from dcn_plugin.experiments.recipe import further_records, list_recipes, load_recipe, recipes_root

    root = Path(args.recipes) if args.recipes is not None else recipes_root()
    names = list_recipes(root)
    if not names:
        raise DataError(f"{root} holds no recipe.", str(root), "a folder with NAME/recipe.toml in it")
    width = max(map(len, names), default=0)
    for name in names:
        spec = load_recipe(name, root)
        print(f"{name:<{width}}  {spec.reproduces}: {spec.title}")
        print(f"{'':<{width}}  scales: {_scales(spec)}; record: {_state(spec, root / name)}")
        for scale in further_records(root / name):
            print(f"{'':<{width}}  record of scale {scale}: {_state(spec, root / name / scale)}")
    print()
    for line in _layouts():
        print(line)
    return 0


def _scales(spec: RecipeSpec) -> str:
    from dcn_plugin.experiments.scales import SCALES

    return ", ".join(f"{scale} ({spec.data_at(scale)})" for scale in SCALES)


def _state(spec: RecipeSpec, folder: Path) -> str:
    """What the committed record of a recipe holds."""
    from dcn_plugin.evaluate import ResultFile
    from dcn_plugin.experiments.comparison import Number
    from dcn_plugin.experiments.verdict import verdict_of

    try:
        file = ResultFile.read(folder / "record.json")
        numbers, scale = [Number(**number) for number in file.spec["numbers"]], file.spec["scale"]
        filled = sum(number.ours is not None for number in numbers)
        date = str(file.run.get("finished", ""))[:10]
        return (
            f"{scale['name']}, width {scale['width']}, {scale['training']['epochs']} epochs, {filled} of "
            f"{len(numbers)} numbers, {len(file.spec['seeds'])} seed(s), {date}; "
            f"verdict: {verdict_of(spec, numbers, file.results).short}"
        )
    except FileNotFoundError:
        return "none"
    except (DcnError, KeyError, TypeError) as error:
        return f"cannot be read ({error})"


def _layouts() -> list[str]:
    from dcn_plugin.experiments.datasets import DATA

    return ["Data (--data ROOT):", *(f"  {name}: {info.layout or 'comes along'}" for name, info in DATA.items())]

"""The command reads its arguments before torch and timm are loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dcn_plugin.support.startup import is_command

PYTHON = "/env/bin/python"
SCRIPT = "/env/bin/defective"


@pytest.mark.parametrize(
    ("argv", "whole"),
    [
        ([SCRIPT, "--help"], [PYTHON, SCRIPT, "--help"]),
        ([SCRIPT], [PYTHON, "-X", "dev", SCRIPT]),
        (["/env/bin/defective.exe"], ["defective.exe", "/env/bin/defective.exe"]),
        (["-m", "--version"], [PYTHON, "-m", "dcn_plugin.cli", "--version"]),
        (["-m", "train"], [PYTHON, "-u", "-m", "dcn_plugin.cli", "train"]),
        (["-m"], [PYTHON, "-mdcn_plugin.cli"]),
    ],
)
def test_the_command_is_told_by_its_script_or_by_its_module(argv: list[str], whole: list[str]) -> None:
    assert is_command(argv, whole, PYTHON)


@pytest.mark.parametrize(
    ("argv", "whole"),
    [
        ([""], [PYTHON]),
        ([], []),
        (["-c"], [PYTHON, "-c", "import dcn_plugin"]),
        (["defective"], [PYTHON, "defective"]),
        (["/home/me/defective.py"], [PYTHON, "/home/me/defective.py"]),
        (["/env/bin/pytest", "defective"], [PYTHON, "/env/bin/pytest", "defective"]),
        (["-m", "dcn_plugin.cli"], [PYTHON, "-m", "my_tool", "dcn_plugin.cli"]),
        (["/env/dcn_plugin/cli/__main__.py"], [PYTHON, "-m", "dcn_plugin.cli"]),
        ([SCRIPT], [PYTHON, "-c", "from multiprocessing.spawn import spawn_main; spawn_main()"]),
    ],
)
def test_every_other_process_loads_the_whole_package(argv: list[str], whole: list[str]) -> None:
    assert not is_command(argv, whole, PYTHON)


# Runs the module as `python -m dcn_plugin.cli` does, for several command lines, then looks what was loaded.
PROBE = """
import contextlib, io, json, runpy, sys
sys.argv = ["-m"]
sys.orig_argv = [sys.executable, "-m", "dcn_plugin.cli"]
import dcn_plugin.cli, dcn_plugin
told = {}
for line in json.loads(sys.stdin.read()):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            dcn_plugin.cli.main(line)
        except SystemExit as stop:
            code = stop.code
    told[" ".join(line)] = [code, out.getvalue() + err.getvalue()]
light = sorted({"torch", "timm", "numpy", "torchvision"} & sys.modules.keys())
early = hasattr(dcn_plugin, "defectify")
code = dcn_plugin.cli.main(["summary", "defective_resnet18_cifar"])
import timm
print(json.dumps({
    "told": told, "loaded": light, "early": early, "late": hasattr(dcn_plugin, "defectify"),
    "registered": timm.is_model("defective_resnet18"), "code": code,
}))
"""


def leaves() -> list[list[str]]:
    """Every subcommand and the subcommands of these."""
    import argparse

    from dcn_plugin.cli import _parser

    def below(parser: argparse.ArgumentParser, path: list[str]) -> list[list[str]]:
        found = [path]
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    found += below(child, [*path, name])
        return found

    return below(_parser(), [])


def test_help_version_and_a_wrong_argument_load_neither_torch_nor_timm_and_a_command_loads_all() -> None:
    asked = [
        ["--version"],
        ["trian", "net"],
        ["train", "--epohs", "3"],
        # The protocols say themselves what they take: "evaluate" alone loads torch for its help.
        *([*path, "--help"] for path in leaves() if path[:1] != ["evaluate"]),
    ]
    assert len(asked) > 10
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert {code for code, _ in report["told"].values()} == {0, 2}
    assert report["told"]["--version"][1].startswith("dcn-plugin ")
    assert (report["loaded"], report["early"]) == ([], False)
    assert (report["late"], report["registered"], report["code"]) == (True, True, 0)

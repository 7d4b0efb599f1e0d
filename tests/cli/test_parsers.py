from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin import cli
from dcn_plugin.cli.arguments import size
from dcn_plugin.cli.evaluate import _default_text
from dcn_plugin.cli.parsers import Parser, wrapped
from dcn_plugin.evaluate.protocols import PROTOCOLS


def below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all parsers of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from below(child)


PARSERS = {parser.prog: parser for parser in below(cli._parser())}


def test_the_protocols_wait_until_their_command_is_named() -> None:
    def protocols(argv: list[str]) -> set[str]:
        return {parser.prog for parser in below(cli._parser(argv)) if parser.prog.startswith("defective evaluate ")}

    assert protocols(["--help"]) == protocols(["train", "--help"]) == set()
    assert {f"defective evaluate {name}" for name in PROTOCOLS if not PROTOCOLS[name].commands} < protocols(
        ["evaluate"]
    )


@pytest.mark.parametrize(
    ("value", "text"), [(8 / 255, "8/255"), (0.99, "0.99"), (500, "500"), ((2, 4, 8), "2, 4, 8"), ("none", "none")]
)
def test_a_default_is_shown_as_it_would_be_written(value: object, text: str) -> None:
    assert _default_text(value) == text


texts = st.lists(st.text("abc-_=/;().,", min_size=1, max_size=30), min_size=1).map(" ".join)


@given(texts, st.integers(10, 60))
def test_lines_hold_whole_words_in_order_and_break_a_long_one_behind_commas(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split()), "nothing is lost"
    for word in text.split():
        if len(word) <= width:
            assert any(word in line for line in lines)
    for line in lines:
        assert len(line) <= width or not re.search(r"[ ]|,(?=.)", line), "only what cannot be broken stands out"


def test_lines_are_filled() -> None:
    assert wrapped("aa bb cc dd", 5) == ["aa bb", "cc dd"]
    assert wrapped("see name,a=1,b=22 it", 9) == ["see name,", "a=1,b=22", "it"]


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("prog", PARSERS)
def test_no_help_breaks_a_word(prog: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = PARSERS[prog].format_help().splitlines()
    for action in PARSERS[prog]._actions:
        for word in ((action.help or "") % vars(action)).split():
            parts = [word] if len(word) <= columns - 30 else re.findall(r"[^,]*,|[^,]+", word)
            assert all(any(part in line for line in lines) for part in parts), word


@pytest.mark.parametrize("prog", PARSERS)
def test_every_default_that_is_not_empty_is_told(prog: str) -> None:
    for action in PARSERS[prog]._actions:
        if action.option_strings and action.default not in (None, False, [], "", argparse.SUPPRESS):
            assert "default" in (action.help or ""), action.option_strings


def test_an_option_means_the_same_in_every_protocol() -> None:
    shared: dict[str, set[tuple[str, str | None]]] = {}
    for prog, parser in PARSERS.items():
        if re.fullmatch(r"defective evaluate \S+", prog):
            for action in parser._actions:
                for name in action.option_strings:
                    shared.setdefault(name, set()).add((repr(action.default), action.help))
    differ = {name for name, kinds in shared.items() if len(kinds) > 1}
    assert differ <= {"--attack", "--source", "--data"}, "their help says what is taken"
    assert {default for default, _ in shared["--source"]} == {"[]"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("trian", "did you mean train?"),
        ("evaluate gausian", "did you mean gaussian?"),
        ("evaluate cue_conflict", "did you mean cue-conflict?"),
        ("recipe rnu", "did you mean run?"),
        ("train net --data digits --out o --epohs 3", "--epohs: did you mean --epochs"),
        ("train net --data digits --out o --epohs=3", "--epohs: did you mean --epochs"),
        ("train net --dtaa digits --out o", "--dtaa: did you mean --data"),
        ("train net --data digits --out o --preset paper_cifar", "did you mean paper-cifar"),
        ("train net --data digits --out o --select vall", "did you mean val?"),
        ("evaluate whitebox --target a=b --data digits --out o --rounding 8-bit", "did you mean 8bit?"),
        ("bench engine --model m --out o --backend tritn", "did you mean triton?"),
    ],
)
def test_a_misspelt_word_gets_the_nearest_one(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(shlex.split(line))
    assert told in capsys.readouterr().err


def test_the_usage_beside_an_unknown_option_is_that_of_its_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", "--oud", "x"])
    assert capsys.readouterr().err.startswith("usage: defective demo")


def test_a_word_like_none_gets_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="x")
    parser.add_argument("--mode", choices=("a", "b"))
    for line in (["--zzzz"], ["--mode", "qq"], ["more"]):
        with pytest.raises(SystemExit):
            parser.parse_args(line)
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "train net --data digits --out o --clip x",
        "bench engine --model m --out o --p 0",
        *(f"evaluate gaussian --target a=b --data digits --out o {option}" for option in ("--level nan", "--sigma 0")),
        *(f"evaluate gaussian --target a=b --data digits --out o --level {text}" for text in ("inf", "1/0", "-1", "/")),
        *(f"evaluate sanity --target a=b --data digits --out o --eps={text}" for text in ("nan", "0", "8", "-8/255")),
        "evaluate shuffle --target a=b --data digits --out o --confidence 1.1",
    ],
)
def test_a_number_out_of_range_is_told_with_what_is_allowed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(shlex.split(line))
    assert re.search(r"error: argument --[a-z-]+: '.*' is no", capsys.readouterr().err)


@pytest.mark.parametrize(
    "line",
    [
        "train net --data digits",
        "evaluate amplitude --target a=b --data digits",
        "bench engine --model m",
        "demo",
        "recipe run table05",
        "report run",
    ],
)
def test_an_empty_name_of_a_folder_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([*shlex.split(line), "--out", ""])
    assert "no folder" in capsys.readouterr().err


def test_fractions_are_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = cli._parser().parse_args(
        shlex.split("train net --data digits --out o --label-smoothing 1/9 --lr 0.1 --ema 0.999")
    )
    assert (args.label_smoothing, args.lr, args.ema) == (1 / 9, 0.1, 0.999)


@pytest.mark.parametrize(("text", "expected"), [("24", 24), ("24x40", (24, 40)), ("24,40", (24, 40))])
def test_a_size_is_a_side_or_two(text: str, expected: object) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["0", "24x", "1x2x3", "wide"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        size(text)

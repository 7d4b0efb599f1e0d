from __future__ import annotations

import sys

import pytest

from dcn_plugin.attacks import PGD
from dcn_plugin.evaluate import Team, gaussian, progress_bar, sanity, tapm, transfer, whitebox
from dcn_plugin.support.processes import ALONE
from tests.toys import ModeNet, image_set

NETS = {"a": ModeNet().eval(), "b": ModeNet().eval()}
DATA = image_set(6)


def test_a_log_gets_a_line_a_finished_cell(capsys: pytest.CaptureFixture[str]) -> None:
    attacks = [PGD(0.1, steps=1)]
    list(transfer(NETS, NETS, attacks, DATA, seed=0, progress=True))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("transfer 1/2: PGD on a, ")
    assert second.startswith("transfer 2/2: PGD on b, ")
    assert second.endswith(" s")
    for results, count in (
        (tapm(NETS, NETS, attacks, DATA, seed=0, progress=True), 2),
        (whitebox(NETS, attacks, DATA, seed=0, progress=True), 2),
        (gaussian(NETS, DATA, [0.1, 0.2, 0.3], seed=0, progress=True), 3),
        (sanity(NETS["a"], DATA, eps=0.1, steps=2, queries=0, progress=True), 6),
    ):
        list(results)
        assert len(capsys.readouterr().err.splitlines()) == count


def test_without_progress_and_on_other_processes_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    list(gaussian(NETS, DATA, [0.1], seed=0))
    for team, show in ((ALONE, False), (Team(rank=1, size=2), True)):
        with progress_bar(3, "work", show=show, team=team) as bar:
            bar.update(3)
            bar.cell("a cell", 1, 1)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_its_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(2, "work", show=True) as bar:
        bar.update(1)
        bar.cell("a cell", 1, 2)
    said = capsys.readouterr().err
    assert "a cell" not in said
    assert "work:" in said

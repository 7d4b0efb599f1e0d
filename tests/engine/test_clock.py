"""What is faster, told by clocks that lie: one that other programs disturb, and one that they do not."""

from __future__ import annotations

import pytest
import torch

from dcn_plugin.engine import clock
from dcn_plugin.engine.clock import DOUBT, LEAST_ROUNDS, MOST_ROUNDS, compared, sure_gain, timed

CPU = torch.device("cpu")


class Machine:
    """Calls that take fixed times, in seconds: of one thread's CPU, and on the clock, where others may interfere."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, quiet: bool | list[bool] = True) -> None:
        self.threads, self.cpu, self.wall = 2, 0.0, 0.0
        self.calls: list[tuple[str, int]] = []
        answers = iter(quiet) if isinstance(quiet, list) else None
        monkeypatch.setattr(clock, "is_quiet", lambda: quiet if answers is None else next(answers))
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: setattr(self, "threads", count))
        monkeypatch.setattr(clock, "now", lambda device: self.cpu if self.threads == 1 else self.wall)

    def call(self, name: str, cpu: float, *walls: float) -> object:
        def run() -> None:
            number = sum(one == name for one, _ in self.calls)
            self.calls.append((name, self.threads))
            self.cpu += cpu
            self.wall += walls[number % len(walls)] if walls else cpu

        return run


def test_on_a_quiet_machine_the_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    found = compared(machine.call("plain", 9.0, 4.0), machine.call("other", 1.0, 2.0), CPU)  # type: ignore[arg-type]
    assert found == (2.0, 4000.0, 2000.0, False)
    assert {threads for _, threads in machine.calls} == {2}


def test_calls_take_turns_and_a_clear_case_takes_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for other, rounds in ((1.3, LEAST_ROUNDS), (0.95, MOST_ROUNDS), (0.8, LEAST_ROUNDS)):
        machine = Machine(monkeypatch)
        call = machine.call("other", other / 100)
        assert sure_gain(machine.call("plain", 0.01), call, CPU) == pytest.approx(1 / other)  # type: ignore[arg-type]
        # The second of the first calls of each side is a round.
        assert [name for name, _ in machine.calls[:4]] == ["plain", "other"] * 2
        counted = [name for name, _ in machine.calls[4:]]
        assert counted == (["other", "plain", "plain", "other"] * MOST_ROUNDS)[: 2 * (rounds - 1)]


@pytest.mark.parametrize("other", [2.0, 0.5])
@pytest.mark.parametrize(("seconds", "calls"), [(0.02, 2), (1.0, 1)])
def test_an_obvious_case_takes_one_round_and_the_first_calls_alone_if_they_are_long(
    other: float, seconds: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    gain = sure_gain(machine.call("plain", seconds), machine.call("other", other * seconds), CPU)  # type: ignore[arg-type]
    assert gain == pytest.approx(1 / other)
    assert [name for name, _ in machine.calls] == ["plain", "other"] * calls


def test_long_calls_that_are_close_take_the_least_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    sure_gain(machine.call("plain", 1.0), machine.call("other", 0.95), CPU)  # type: ignore[arg-type]
    assert len(machine.calls) == 2 + 2 * LEAST_ROUNDS


def test_a_first_call_that_takes_enough_is_the_only_one_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for enough, calls in ((2.0, 2), (4.0, 4)):
        machine = Machine(monkeypatch)
        run = machine.call("run", 0.003)
        assert timed(run, CPU, least_calls=3, enough=enough) == pytest.approx(3.0)  # type: ignore[arg-type]
        assert len(machine.calls) == calls


def test_a_gain_is_sure_only_if_three_rounds_in_four_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    # Two first calls each, then the rounds: twice as fast in a few of them alone.
    other = machine.call("other", 1.0, 4.0, 4.0, 2.0, 4.0, 2.0, 4.0, 2.0, 4.0, 2.0)
    assert sure_gain(machine.call("plain", 1.0, 4.0), other, CPU) == 1.0  # type: ignore[arg-type]


def test_on_a_busy_machine_one_threads_own_time_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, quiet=False)
    # The clock says now this, now that; the CPU time that the other one is slower.
    wild = (9.0, 1.0, 30.0, 2.0, 0.5, 7.0, 1.0)
    found = compared(machine.call("plain", 1.0, *wild), machine.call("other", 2.0, *wild[::-1]), CPU)  # type: ignore[arg-type]
    assert found.gain <= 0.5
    assert found[1:] == (1000.0, 2000.0, True)
    assert machine.threads == 2


def test_on_a_busy_machine_a_small_gain_is_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    for gain in (1.1, 2.0):
        machine = Machine(monkeypatch, quiet=False)
        found = compared(machine.call("plain", gain, 5.0), machine.call("other", 1.0, 2.0), CPU)  # type: ignore[arg-type]
        assert found.gain == pytest.approx(gain / DOUBT)
        assert (found.gain >= 1) is (gain == 2.0)


@pytest.mark.parametrize("gain", [1.5, 3.0])
def test_on_a_busy_machine_threads_that_share_the_work_badly_are_a_veto_of_a_small_gain(
    gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, quiet=False)
    found = compared(machine.call("plain", gain, 1.0), machine.call("other", 1.0, 2.0), CPU)  # type: ignore[arg-type]
    assert found.gain == (0.5 if gain == 1.5 else pytest.approx(3 / DOUBT))


def test_programs_that_came_during_the_measurement_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, quiet=[True, False])
    found = compared(machine.call("plain", 1.0, 9.0), machine.call("other", 2.0, 1.0), CPU)  # type: ignore[arg-type]
    assert found.gain <= 0.5


def test_a_busy_machine_is_one_on_which_a_program_does_not_get_the_time_it_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for share, expected in ((1.0, True), (0.5, False)):
        ticks = [0.0]

        def tick(ticks: list[float] = ticks) -> float:
            ticks[0] += 0.001
            return ticks[0]

        monkeypatch.setattr(clock.time, "perf_counter", tick)
        monkeypatch.setattr(clock.time, "process_time", lambda share=share, ticks=ticks: 2 * share * ticks[0])
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        assert clock.is_quiet() is expected


def test_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), clock.alone():
        assert torch.get_num_threads() == 1
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == before


def test_the_time_of_a_call_is_the_least_of_some_after_a_first_that_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    durations, ticks, calls = iter([100.0, 3.0, 2.0, 4.0]), [0.0], []

    def run() -> None:
        calls.append(1)
        ticks[0] += next(durations)

    monkeypatch.setattr(clock, "now", lambda device: ticks[0])
    assert timed(run, torch.device("cpu"), least_calls=3) == 2000.0
    assert len(calls) == 4


def test_a_short_call_is_repeated_until_it_took_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, calls = [0.0], []

    def run() -> None:
        calls.append(1)
        ticks[0] += 0.125

    monkeypatch.setattr(clock, "now", lambda device: ticks[0])
    assert timed(run, torch.device("cpu"), least_calls=3, least_ms=1000.0) == 125.0
    assert len(calls) == 9

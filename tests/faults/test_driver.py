"""The driver of torture: what it counts when the processes that it watches go wrong, and what it says."""

from __future__ import annotations

import json
import os
import signal
from functools import partial

import pytest

from dataflow.cli import main
from dataflow.torture import Budget, Plan, Result, Row, Tally, processes
from dataflow.torture.processes import Channel, WarmParent, run_lanes

PLAN = Plan(seed=1, lanes=1)


def run(function: str) -> Tally:
    return run_lanes(PLAN, Budget(PLAN, 100), f"tests.faults.broken_lanes:{function}")


def test_a_trial_that_kills_its_process_is_counted_and_the_others_go_on() -> None:
    tally = run("dies_at_the_third")
    assert (tally.trials, tally.faults, tally.signals) == (6, 5, 1)
    assert tally.says("trial 2 of lane 0, seed 1: died of SIGSEGV")


def test_a_trial_that_hangs_is_ended_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SILENCE_SECONDS_MAX", 2.0)
    tally = run("falls_silent")
    assert (tally.trials, tally.hung, tally.signals) == (2, 1, 0)


def test_a_rig_that_fails_is_never_taken_for_a_pass(capfd: pytest.CaptureFixture[str]) -> None:
    tally = run("raises")
    assert tally.wrong == 1
    assert "a bug of the rig" in capfd.readouterr().err


@pytest.mark.parametrize(("trials", "lanes"), [(1, 2), (5, 2), (7, 3)])
def test_as_many_trials_are_made_as_were_asked_for(trials: int, lanes: int) -> None:
    plan = Plan(seed=1, lanes=lanes, trials=trials)
    tally = run_lanes(plan, Budget(plan, 100), "tests.faults.broken_lanes:dies_at_its_second")
    assert tally.trials == trials


def say_and_wait(channel: Channel) -> None:
    channel.send("acknowledged")
    signal.pause()


def test_what_was_said_before_a_kill_arrives() -> None:
    with WarmParent() as warm:
        victim = warm.start("tests.faults.test_driver:say_and_wait")
        assert victim.channel.receive(10) == "acknowledged"
        assert victim.end() == ([], -signal.SIGKILL)


def stop_and_wait(channel: Channel) -> None:
    channel.send(os.getpid())
    signal.raise_signal(signal.SIGSTOP)


def test_nothing_stays_behind_the_driver_not_even_what_is_stopped() -> None:
    with WarmParent() as warm:
        victim = warm.start("tests.faults.test_driver:stop_and_wait")
        assert victim.channel.receive(10) > 0
    assert victim.channel.receive(10) is None, "its end of the channel is closed: it has ended"
    victim.channel.close()


# ── results ──


def result_of(**counts: int) -> Result:
    return Result(1, "a promise", seed=5, tally=tally_of(counts), seconds=1.0)


def tally_of(counts: dict[str, int]) -> Tally:
    tally = Tally()
    for name, count in counts.items():
        setattr(tally, name, count)
    return tally


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({"trials": 300, "faults": 300}, "ok"),
        ({"trials": 300, "faults": 0}, "BAD"),
        ({"trials": 300, "faults": 300, "lost": 1}, "BAD"),
        ({"trials": 300, "faults": 300, "hung": 1}, "BAD"),
        ({"trials": 300, "faults": 300, "limits": 2}, "LIMIT"),
    ],
)
def test_a_row_is_bad_after_any_damage_and_when_no_fault_fired(counts: dict[str, int], status: str) -> None:
    assert result_of(**counts).status == status


def test_no_failure_in_300_trials_bounds_the_rate_at_one_percent() -> None:
    assert result_of(trials=300, faults=300).bound == pytest.approx(0.01)
    assert result_of(trials=300, faults=300, wrong=1).bound is None


def test_few_findings_of_one_kind_are_told_and_all_are_counted() -> None:
    tally = Tally()
    for number in range(50):
        tally.find("lost", f"row {number}")
    tally.find("wrong", "something else")
    assert (tally.lost, len(tally.findings)) == (50, 3)


# ── the command ──


def fill(counts: dict[str, int], plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = tally_of({"trials": budget.trials, **counts})


def use_rows(monkeypatch: pytest.MonkeyPatch, *rows: Row) -> None:
    by_number = {row.number: row for row in rows}
    monkeypatch.setattr("dataflow.torture.MODULES", dict.fromkeys(by_number, ""))
    monkeypatch.setattr("dataflow.torture.row", by_number.__getitem__)


GOOD = Row(number=1, promise="holds", trials_ci=10, run_plan=partial(fill, {"faults": 1}))
BAD = Row(number=2, promise="breaks", trials_ci=10, run_plan=partial(fill, {"faults": 1, "lost": 3}))
ABSENT = Row(number=3, promise="needs root", trials_ci=10, run_plan=partial(fill, {}), skip_reason=lambda: "no root")


def test_the_seed_comes_first_and_a_bad_row_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_rows(monkeypatch, GOOD, BAD, ABSENT)
    assert main(["torture", "--seed", "9"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "seed 9"
    assert "row  2  BAD" in "\n".join(lines)
    assert lines[-1] == "1 of 3 rows hold; row 2 BAD, row 3 SKIPPED"
    assert main(["torture", "--row", "1"]) == 0


def test_a_report_is_a_table_and_tells_what_was_not_proven(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_rows(monkeypatch, GOOD, ABSENT)
    assert main(["torture", "--report", "--trials", "600"]) == 0
    said = capsys.readouterr().out
    assert "| 1 | holds | ok | 600 | 1 | 0 |" in said
    assert "0.50%" in said
    assert "| 3 | needs root | not proven: no root |" in said
    widths = {line.count("|") for line in said.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "every line of the table has as many cells"


def fill_and_measure(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = tally_of({"trials": 3, "faults": 3})
    for seconds in (0.5, 0.1, 0.25):
        result.tally.measure("to leave", seconds)


def test_a_report_tells_what_was_measured_behind_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_rows(monkeypatch, Row(number=12, promise="leaves", trials_ci=3, run_plan=fill_and_measure), GOOD)
    assert main(["torture", "--report"]) == 0
    assert capsys.readouterr().out.endswith("\n\nRow 12, to leave: p50 0.25 s, p99 0.50 s (3).\n")


def test_json_is_one_object_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use_rows(monkeypatch, GOOD, BAD)
    assert main(["torture", "--json", "--seed", "3"]) == 1
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["row"], one["status"], one["seed"]) for one in results] == [(1, "ok", 3), (2, "BAD", 3)]


def test_a_row_that_does_not_exist_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["torture", "--row", "999"]) == 2
    assert "there is no row 999" in capsys.readouterr().err
    assert main(["torture", "--trials", "0"]) == 2

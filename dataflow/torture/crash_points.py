"""Row 3: every change of the disk is a safe place to be killed at.

A forked process works until its k-th write, fsync, rename, truncate or unlink, SQLite's included, and kills itself
there: before the change, and for a write also when half of it is done. For every k.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import apsw

from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.images import Check
from dataflow.torture.processes import Channel, Reporter, fork, run_lanes
from dataflow.torture.seam import Change, Fault, FaultySystem, Kind, QuickSystem, Refusal
from dataflow.torture.workload import log_and_check, log_workload

ALL_POINTS = 10_000
"""More than one run of the workload has."""


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    is_once = plan.trials is None and plan.minutes is None
    result.tally = run_lanes(plan, budget, "dataflow.torture.crash_points:lane", is_once=is_once)


ROW = Row(number=3, promise="each change of the disk is a safe crash point", trials_ci=ALL_POINTS, run_plan=run_plan)


@dataclass(frozen=True)
class Point:
    """The `number`-th change of a run, which is of a kind; `is_half`: when half of it is done."""

    number: int
    kind: Kind
    is_half: bool


class CountChanges:
    """No fault: writes down what could be broken."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def before(self, change: Change) -> Refusal | None:
        self.changes.append(change)
        return None


class KillAt:
    """Ends the process at a change."""

    def __init__(self, point: Point) -> None:
        self._point, self._number = point, 0

    def before(self, change: Change) -> Refusal | None:
        self._number += 1
        if self._number - 1 != self._point.number:
            return None
        if not self._point.is_half:
            kill_own_group()
        return KillAfterPart(errno.EIO, change.size // 2)


class KillAfterPart(Refusal):
    """When the part of the write is done, there is nobody left to hear of an error."""

    def os_error(self, path: str) -> OSError:
        kill_own_group()

    def sqlite_error(self, kind: Kind) -> apsw.Error:
        kill_own_group()


def kill_own_group() -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("a process went on after SIGKILL")


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int, is_once: bool) -> None:
    """This lane's share of the points, of one run after another with other rows; without those before `first`."""
    done, number, this_seed = 0, 0, seed
    with scratch() as folder:
        while reporter.goes_on(done) and not (is_once and this_seed > seed):
            _, check = log_and_check(this_seed)
            points = points_of(this_seed, folder)
            for point in points[lane::lanes]:
                number += 1
                if number > first and reporter.goes_on(done):
                    done += 1
                    with reporter.trial(number - 1) as tally:
                        try_point(point, this_seed, folder, check, tally)
            this_seed += 1


def points_of(seed: int, folder: Path) -> list[Point]:
    """All places of a run to be killed at: found by a run of which nobody is killed."""
    root = folder / "counted"
    root.mkdir()
    victim = fork(partial(_work_and_count, root, seed))
    said, code = victim.rest()
    shutil.rmtree(root)
    assert code == 0, "the workload fails without a fault"
    kinds = [(kind, size) for part in said for kind, size in part]
    points = [Point(number, kind, False) for number, (kind, _) in enumerate(kinds)]
    halves = [Point(number, kind, True) for number, (kind, size) in enumerate(kinds) if kind == "write" and size > 1]
    points += halves
    random.Random(seed).shuffle(points)  # so that a run that ends early has seen all parts of the work
    return points


def _work_and_count(root: Path, seed: int, channel: Channel) -> None:
    counting = CountChanges()
    _work(root, seed, counting, None)
    kinds = [(change.kind, change.size) for change in counting.changes]
    for start in range(0, len(kinds), 1000):
        channel.send(kinds[start : start + 1000])


def _work(root: Path, seed: int, fault: Fault, channel: Channel | None) -> None:
    def note(kind: str, lane: str, commit: int) -> None:
        if channel is not None:
            channel.send((kind, lane, commit))

    log_workload(FaultySystem(QuickSystem(seed), fault), root, seed, note)


def try_point(point: Point, seed: int, folder: Path, check: Check, tally: Tally) -> None:
    """Kill a process there, and look at what it left."""
    root = folder / "killed"
    root.mkdir()
    victim = fork(lambda channel: _work(root, seed, KillAt(point), channel))
    said, code = victim.rest()
    where = f"killed {'half-way through' if point.is_half else 'before'} change {point.number} ({point.kind})"
    if code == -signal.SIGKILL:
        tally.faults += 1
        tally.count(f"killed at: {point.kind}")
    elif code:
        tally.find("wrong", f"{where}: ended with {code} instead")
    check(root, [tuple(note) for note in said], tally, where)
    shutil.rmtree(root)

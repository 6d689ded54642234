"""Row 7: a full disk is a pause, not a loss.

From the k-th write on (or the k-th new file: then only the inodes are used up) the disk has no room; the first write
that does not fit is done in part. Whoever works is told by an error with a code, readers go on meanwhile, and once
there is room again the work does, with the same store or with a new one. Pipelines into files, SQLite and topics
go on by themselves (`full_targets.py`). Where a tmpfs can be mounted, also on one that is full.
"""

from __future__ import annotations

import errno
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Literal

from dataflow.torture.crash_points import CountChanges
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.full_targets import try_full_targets, try_real_full_targets
from dataflow.torture.mounts import in_own_mounts, run, why_no_tmpfs
from dataflow.torture.processes import Reporter, run_lanes
from dataflow.torture.seam import Change, FaultySystem, QuickSystem, Refusal, closing_quietly
from dataflow.torture.truth import judge_and_go_on
from dataflow.torture.workload import GivenUpError, StubbornRun, opened

Resource = Literal["bytes", "inodes"]
NEEDS: dict[Resource, frozenset[str]] = {
    "bytes": frozenset({"write", "create", "make_dirs"}),
    "inodes": frozenset({"create", "make_dirs"}),
}
"""The changes that take of it."""
COMMITS_BEFORE_REOPEN, COMMITS_AFTER = 3, 2
ERRORS_MAX = 5
"""So often at most a full disk is tried again before there is room."""
TMPFS_BYTES = 2 << 20
TMPFS_TRIALS_SHARE = 4
"""One in so many trials is done on a real one."""
PIPELINE_TRIALS_SHARE = 3
"""One in so many trials, on a real one or not, is a pipeline's."""


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.full_disk:lane")
    why = why_no_tmpfs()
    if why is not None:
        result.skipped_parts.append(f"a real tmpfs that is full ({why})")


ROW = Row(number=7, promise="a full disk is a pause, not a loss", trials_ci=40, run_plan=run_plan)


class FullDisk:
    """Has no room from the k-th change that needs some, until it is freed."""

    def __init__(self, resource: Resource, full_at: int, chance: random.Random) -> None:
        self._needs, self._left, self._chance = NEEDS[resource], full_at, chance
        self.is_full = False
        self.refused = 0

    def before(self, change: Change) -> Refusal | None:
        if change.kind not in self._needs:
            return None
        self._left -= 1
        if self._left == 0:
            self.is_full = True
        if not self.is_full:
            return None
        self.refused += 1
        is_first_write = self.refused == 1 and change.kind == "write" and change.size > 0
        return Refusal(errno.ENOSPC, self._chance.randrange(change.size) if is_first_write else 0)

    def free(self) -> None:
        self.is_full = False


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    done, number = 0, 0
    can_be_real = why_no_tmpfs() is None
    with scratch() as folder, closing_quietly():
        while reporter.goes_on(done):
            this_seed = seed + number
            for resource, full_at in points_of(folder, this_seed)[lane::lanes]:
                number += 1
                if number > first and reporter.goes_on(done):
                    done += 1
                    with reporter.trial(number - 1) as tally:
                        is_real = can_be_real and done % TMPFS_TRIALS_SHARE == 0
                        if done % PIPELINE_TRIALS_SHARE == 0:
                            try_pipeline = try_real_full_targets if is_real else try_full_targets
                            try_pipeline(folder, this_seed + number, tally)
                        elif is_real:
                            try_real_full_disk(folder, this_seed + number, tally)
                        else:
                            try_full_disk(folder, this_seed, resource, full_at, tally)


def points_of(folder: Path, seed: int) -> list[tuple[Resource, int]]:
    """All changes at which the room could end, in an order of chance."""
    counting = CountChanges()
    root = folder / "counted"
    root.mkdir()
    run = StubbornRun(FaultySystem(QuickSystem(seed), counting), root, seed, Tally(), "without a fault")
    _work(run, lambda _: None)
    shutil.rmtree(root)
    kinds = [change.kind for change in counting.changes]
    points = [
        (resource, number)
        for resource, needs in NEEDS.items()
        for number in range(1, sum(kind in needs for kind in kinds) + 1)
    ]
    random.Random(seed).shuffle(points)
    return points


def _work(run: StubbornRun, on_error: object) -> None:
    run.run(COMMITS_BEFORE_REOPEN, on_error)  # type: ignore[arg-type]
    run.close()
    run.run(COMMITS_AFTER, on_error)  # type: ignore[arg-type]
    run.close()


def try_full_disk(folder: Path, seed: int, resource: Resource, full_at: int, tally: Tally) -> None:
    root = folder / "full"
    root.mkdir()
    chance = random.Random(f"{seed}/{resource}/{full_at}")
    fault, frees_at = FullDisk(resource, full_at, chance), chance.randint(1, ERRORS_MAX)
    where = f"seed {seed}, no {resource} left from need {full_at} on, for {frees_at} errors"
    run = StubbornRun(FaultySystem(QuickSystem(seed), fault), root, seed, tally, where)

    def on_error(error: Exception) -> None:
        if len(run.errors) >= frees_at:
            fault.free()

    _judge_run(run, on_error, fault.free, root, seed, tally, where)
    if fault.refused:
        tally.faults += 1
        tally.count(f"no {resource} left")
    shutil.rmtree(root)


def _judge_run(
    run: StubbornRun, on_error: object, free: object, root: Path, seed: int, tally: Tally, where: str
) -> None:
    try:
        _work(run, on_error)
    except GivenUpError as error:
        tally.find("wrong", f"{where}: it does not go on, though there is room: {error.args[0]!r}")
    free()  # type: ignore[operator]
    store = opened(root, QuickSystem(seed), run.marks, tally, where)
    if store is not None:
        with store:
            judge_and_go_on(store, seed, run.marks, tally, f"{where}, with room again")


# ── on a real one ──


def try_real_full_disk(folder: Path, seed: int, tally: Tally) -> None:
    """The same on a tmpfs that another file fills."""
    where = f"seed {seed}, on a tmpfs"
    in_own_mounts(lambda part: _fill_tmpfs(folder / "tmpfs", seed, part, where), tally, where)


def _fill_tmpfs(root: Path, seed: int, tally: Tally, where: str) -> None:
    root.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(root))
    chance = random.Random(seed)
    left = chance.randrange(0, 400_000)
    filler = root / "filler"
    where = f"{where} with room for {left:,} bytes"
    filler.write_bytes(bytes(TMPFS_BYTES - left - (64 << 10)))
    worker = StubbornRun(QuickSystem(seed), root, seed, tally, where)
    frees_at = chance.randint(1, ERRORS_MAX)

    def on_error(error: Exception) -> None:
        if len(worker.errors) >= frees_at:
            filler.unlink(missing_ok=True)

    _judge_run(worker, on_error, partial(filler.unlink, missing_ok=True), root, seed, tally, where)
    if worker.errors:
        tally.faults += 1
        tally.count("a real tmpfs was full")

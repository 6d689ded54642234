"""Row 12: a stop is a commit. SIGTERM at any moment loses nothing, and nothing is read twice.

`dataflow run` runs in a process of its own, over a bounded source or an endless one, with one worker or two. It is told
to stop at a random moment, has to leave in time with the exit code that is documented, and the next one goes on in the
same store. The source tells the driver of each batch that it hands out and of where it is opened, so what is read
again shows, even where results would hide it. The hard part: a reader may be in the middle of a batch when the stop
comes. No step sees that one, so it comes again; the ledger has to say of each row that it was worked on once.
"""

from __future__ import annotations

import random
import signal
import socket
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import dataflow as flow
from dataflow.system import RealSystem
from dataflow.torture.books import check_store
from dataflow.torture.end_to_end import (
    compare,
    lacking,
    late_rows,
    parquet_rows,
    run_to_end,
    sqlite_rows,
    topic_rows,
)
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally
from dataflow.torture.mutants import planted
from dataflow.torture.pipelines import NAME, Numbers, pipeline
from dataflow.torture.processes import Channel, Reporter, Victim, die_with_parent, run_lanes, spawn

ROWS_PER_SECOND = 400_000
ROWS_PER_STORE = 1_200_000
INTERVAL, ROLL = "100ms", "100KB"
STOP_SECONDS_MAX = 0.5
"""After a run has begun to read; by then it listens to signals."""
START_SECONDS_MAX = 60.0
"""Of a fresh interpreter on a machine that has other work."""
EXIT_ENDLESS, EXIT_BOUNDED = 0, 3
"""After SIGTERM, as the README tells."""
GRACE_SECONDS = 5.0
"""Within which a stopped run has left, as the README promises."""
PROGRAM = """\
from dataflow.torture.stops import program

pipeline = program({descriptor}, {root!r}, {rows_per_second}, is_endless={is_endless}, mutant={mutant!r})
"""


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.stops:lane", mutant=plan.mutant)


ROW = Row(number=12, promise="SIGTERM drains: a stop is a commit", trials_ci=20, run_plan=run_plan)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int, mutant: str | None) -> None:
    done, number, stores = 0, first, 0
    with tempfile.TemporaryDirectory(prefix="dataflow-torture-", ignore_cleanup_errors=True) as name:
        while reporter.goes_on(done):
            runs = Runs.in_new_folder(Path(name) / str(stores), is_endless=(lane + stores) % 2 == 1, mutant=mutant)
            stores += 1
            has_ended = False
            while reporter.goes_on(done) and not has_ended:
                chance = random.Random(f"{seed}/{lane}/{number}")
                with reporter.trial(number) as tally:
                    has_ended = stop_once(runs, chance, tally, f"seed {seed}, lane {lane}, stop {number}")
                done, number = done + tally.faults, number + 1
            with reporter.trial(number) as tally:
                tally.trials = 0
                judge(runs, tally, f"seed {seed}, lane {lane}, before stop {number}")


@dataclass
class Runs:
    """Runs of one pipeline in one store, one after the other, and what its source has handed out in all of them."""

    root: Path
    is_endless: bool
    mutant: str | None
    handed: dict[str, int] = field(default_factory=dict)
    """By partition, the number of its next row."""
    last_batch: dict[str, int] = field(default_factory=dict)
    """By partition, the number of the first row of the last batch."""

    @classmethod
    def in_new_folder(cls, root: Path, *, is_endless: bool, mutant: str | None) -> Runs:
        root.mkdir()
        return cls(root, is_endless, mutant)

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def rows_handed(self) -> int:
        return sum(self.handed.values())

    def last_words(self) -> str:
        return " ".join(self.output.read_text().splitlines()[-5:])

    def start(self, workers: int, rows_per_second: int) -> Victim:
        return spawn(lambda descriptor: self._command(descriptor, workers, rows_per_second), self.output)

    def _command(self, descriptor: int, workers: int, rows_per_second: int) -> list[str]:
        file = self.root / "program.py"
        options = {"is_endless": self.is_endless, "mutant": self.mutant, "rows_per_second": rows_per_second}
        file.write_text(PROGRAM.format(descriptor=descriptor, root=str(self.root), **options))
        command = [sys.executable, "-m", "dataflow", "run", str(file), "--store", str(self.store)]
        return [*command, "--workers", str(workers), "--checkpoint-interval", INTERVAL]

    def hear(self, message: tuple[str, int, int], tally: Tally, where: str) -> None:
        """Of a batch that is handed out, or (without rows) of where a partition is opened.

        A run begins where the one before it has ended, or with its last batch, which no step may have seen.
        """
        partition, first, rows = message
        known, again_from = self.handed.get(partition, 0), self.last_batch.get(partition, 0)
        where = f"{where}: partition {partition}"
        if first < again_from or (rows and first < known):
            tally.find("duplicated", f"{where}: rows {first} to {known} are read again", known - first)
        elif first < known:
            tally.count("batches that no step had seen, read again")
        elif first > known:
            tally.find("lost", f"{where}: rows {known} to {first} are left out", first - known)
        self.handed[partition], self.last_batch[partition] = first + rows, first


_planted: list[AbstractContextManager[None]] = []
"""Bugs that stay for as long as the process lives."""


def program(descriptor: int, root: str, rows_per_second: int, *, is_endless: bool, mutant: str | None) -> flow.Pipeline:
    """The pipeline of a run, in its own process."""
    die_with_parent()
    _planted.append(planted(mutant))
    _planted[-1].__enter__()
    channel = Channel(socket.socket(fileno=descriptor))

    def tell(partition: str, first: int, rows: int) -> None:
        channel.send((partition, first, rows))

    source = Numbers(ROWS_PER_STORE, rows_per_second, bounded=not is_endless, tell=tell)
    return pipeline(Path(root), source, roll=ROLL)


def stop_once(runs: Runs, chance: random.Random, tally: Tally, where: str) -> bool:
    """Let the pipeline go on and stop it; whether its input has ended."""
    workers = chance.choice((1, 2))
    where = f"{where} ({'endless' if runs.is_endless else 'bounded'} input, {workers} workers)"
    victim = runs.start(workers, ROWS_PER_SECOND)
    _hear(victim, runs, START_SECONDS_MAX, tally, where, only_first=True)
    _hear(victim, runs, chance.uniform(0, STOP_SECONDS_MAX), tally, where)
    code = stop(victim, runs, tally, where)
    has_ended = runs.rows_handed >= ROWS_PER_STORE
    if code == 0 and has_ended and not runs.is_endless:
        tally.trials = 0  # it came to its end by itself
        tally.seconds.clear()
        return True
    tally.faults += 1
    tally.count(f"stopped, {'endless' if runs.is_endless else 'bounded'} input, workers: {workers}")
    expected = EXIT_ENDLESS if runs.is_endless else EXIT_BOUNDED
    if code != expected:
        tally.find("wrong", f"{where}: exit code {code} instead of {expected}: {runs.last_words()}")
    _check_ledger(runs, None, tally, where)
    return has_ended


def _hear(victim: Victim, runs: Runs, seconds: float, tally: Tally, where: str, *, only_first: bool = False) -> bool:
    """Hear of what is handed out, for so long (or until the first word); whether the process is still there."""
    clock = RealSystem().clock
    until = clock.monotonic() + seconds
    while (left := until - clock.monotonic()) > 0:
        try:
            message = victim.channel.receive(left)
        except TimeoutError:
            break
        if message is None:
            return False
        runs.hear(message, tally, where)
        if only_first:
            break
    return True


def stop(victim: Victim, runs: Runs, tally: Tally, where: str) -> int:
    """Send SIGTERM, and wait until the process has left. One that stays too long hangs, and is killed."""
    clock = RealSystem().clock
    told_at = clock.monotonic()
    victim.send_signal(signal.SIGTERM)
    if _hear(victim, runs, GRACE_SECONDS, tally, where):
        tally.find("hung", f"{where}: it has not left {GRACE_SECONDS:g} s after SIGTERM")
        victim.send_signal(signal.SIGKILL)
    _, code = victim.rest()
    tally.measure("from SIGTERM to the end of the process", clock.monotonic() - told_at)
    return code


def _check_ledger(runs: Runs, read: dict[str, int] | None, tally: Tally, where: str) -> None:
    """Each row that the checkpoint says was read has been worked on, once."""
    nodes = pipeline(runs.root, Numbers(ROWS_PER_STORE)).nodes
    check_store(runs.store, nodes, NAME, read, tally, where)


def judge(runs: Runs, tally: Tally, where: str) -> None:
    """Let the pipeline go on to the end of its rows, and compare all that came out with an undisturbed run."""
    to_end(runs, tally, where)
    _check_ledger(runs, {"numbers": ROWS_PER_STORE}, tally, where)
    expected = Runs.in_new_folder(runs.root / "undisturbed", is_endless=runs.is_endless, mutant=None)
    if runs.is_endless:
        to_end(expected, tally, f"{where}, undisturbed")
    else:
        run_to_end(expected.root, ROWS_PER_STORE)
    for what, read in (("topic", topic_rows), ("SQLite", sqlite_rows), ("late rows", late_rows)):
        compare(read(runs.root), read(expected.root), what, tally, where)
    tally.count("rows in Parquet", len(parquet_rows(runs.root)))
    if not runs.is_endless:
        compare(parquet_rows(runs.root), parquet_rows(expected.root), "Parquet", tally, where)
    elif extra := lacking(parquet_rows(runs.root), topic_rows(expected.root)):  # the last part is not complete
        tally.find("duplicated", f"{where}: Parquet has too many: {extra[:2]}", len(extra))


def to_end(runs: Runs, tally: Tally, where: str) -> None:
    """Run as fast as it goes until all rows were handed out; then an endless source has to be stopped."""
    victim = runs.start(2, 0)
    while runs.rows_handed < ROWS_PER_STORE or not runs.is_endless:
        if not _hear(victim, runs, START_SECONDS_MAX, tally, where, only_first=True):
            break
    code = stop(victim, runs, tally, where) if runs.is_endless else victim.rest()[1]
    tally.seconds.clear()  # nothing was in flight
    if code != 0:
        tally.find("wrong", f"{where}: exit code {code} at the end: {runs.last_words()}")

"""Row 11: a killed run with much state is back soon, with all of it, and reads little again.

A process opens a window of some hundred megabytes and is killed while rows trickle in. The next one is timed from the
start of its interpreter until a new row is committed. How long that takes is told, and depends on the machine; what is
judged is that no more was read again than since the last commit, and that nothing is missing or there twice. The hard
part is to see the state that was restored: rows behind the kill come two hours later, so that the window closes.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa

import dataflow as flow
from dataflow import col, count
from dataflow.errors import StoreError
from dataflow.state.records import PipelineState
from dataflow.state.store import Store
from dataflow.system import RealSystem
from dataflow.torture.books import check_store
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.processes import Channel, Reporter, Victim, die_with_parent, run_lanes, spawn

SCHEMA = pa.schema({"at": pa.timestamp("us"), "key": pa.int64(), "value": pa.float64()})
NAME, SOURCE = "recovery", "numbers"
GROUPS = 900_000
"""Of the open window: a bit more than 100 MB of state."""
BATCH_ROWS = 131_072
TRICKLE_ROWS, TRICKLE_SECONDS = 1_000, 0.01
COPY_EVERY = 1_000
"""One in so many rows is also copied as it is: there new rows are seen."""
LATER_US = 2 * 3_600_000_000
INTERVAL, INTERVAL_SECONDS = "100ms", 0.1
REPLAY_SECONDS_MAX = INTERVAL_SECONDS + 2.0
"""Of input that is read again: an interval, and what the commit takes that was under way, on a busy machine."""
WAIT_SECONDS_MAX = 60.0
LOOK_SECONDS = 0.005
KILL_SECONDS_MAX = 0.5
"""After all groups are in a checkpoint."""
TIME_TO_ROW = "from the start of the process to a new committed row"
STATE_BYTES = "bytes of state restored"
BOOT = """
import sys
from dataflow.torture.fast_recovery import work
work(int(sys.argv[1]), sys.argv[2], sys.argv[3] or None)
"""


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    function = "dataflow.torture.fast_recovery:lane"
    result.tally = run_lanes(replace(plan, lanes=1), budget, function, mutant=plan.mutant)


ROW = Row(number=11, promise="a killed run is back soon, with all its state", trials_ci=2, run_plan=run_plan)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int, mutant: str | None) -> None:
    done, number = 0, first
    with scratch() as folder:
        while reporter.goes_on(done):
            with reporter.trial(number) as tally:
                root = folder / str(number)
                root.mkdir()
                Trial(root, mutant, tally, f"seed {seed}, kill {number}").run(random.Random(f"{seed}/{number}"))
                shutil.rmtree(root)
            done, number = done + 1, number + 1


# ── the process that is killed ──


class Numbers:
    """Rows of one hour until a run goes on from a position; from there on, rows of two hours later."""

    name, schema, bounded = SOURCE, SCHEMA, False

    def __init__(self, tell: Callable[[int, int, float], None] = lambda first, rows, time: None) -> None:
        self.tell, self.clock = tell, RealSystem().clock

    def partitions(self) -> Sequence[str]:
        return ["0"]

    def open(self, partition: str, position: object | None) -> _Reader:
        first = position if isinstance(position, int) else 0
        self.tell(first, 0, self.clock.monotonic())
        return _Reader(self, first)


class _Reader:
    def __init__(self, source: Numbers, first: int) -> None:
        self.source, self.next, self.due = source, first, 0.0
        self.at_us = LATER_US if first else 0

    def read(self, rows_max: int) -> pa.RecordBatch | flow.Idle:
        now = self.source.clock.monotonic()
        left = GROUPS - self.next
        if left <= 0 and now < self.due:
            return flow.Idle()
        self.due = now + TRICKLE_SECONDS
        rows = min(rows_max, min(left, BATCH_ROWS) if left > 0 else TRICKLE_ROWS)
        self.source.tell(self.next, rows, now)
        n = np.arange(self.next, self.next + rows)
        at = pa.array(np.full(rows, self.at_us)).cast(pa.timestamp("us"))
        self.next += rows
        return pa.RecordBatch.from_arrays([at, pa.array(n % GROUPS), pa.array(n * 0.5)], schema=SCHEMA)

    def position(self) -> object:
        return self.next


def pipeline(source: Numbers) -> flow.Pipeline:
    rows = flow.read(source)
    windows = (
        rows.watermark("at")
        .window(flow.tumbling("1h"), by="key")
        .agg(n=count(), total=col.value.sum(), least=col.value.min(), most=col.value.max())
    )
    copied = rows.filter(col.key % COPY_EVERY == 0)
    return flow.Pipeline(NAME, windows.write_topic("windows"), copied.write_topic("copy"))


def work(descriptor: int, store: str, mutant: str | None) -> None:
    """Run until a signal comes."""
    die_with_parent()
    channel = Channel(socket.socket(fileno=descriptor))
    source = Numbers(lambda first, rows, time: channel.send((first, rows, time)))
    if mutant is None:
        pipeline(source).run(store=store, checkpoint_interval=INTERVAL)
        return
    from dataflow.torture.mutants import planted  # only here, since what is imported is part of what is timed

    with planted(mutant):
        pipeline(source).run(store=store, checkpoint_interval=INTERVAL)


# ── the driver ──


@dataclass
class Trial:
    """One kill and what comes after it."""

    root: Path
    mutant: str | None
    tally: Tally
    where: str
    handed: list[tuple[int, int, float]] = field(default_factory=list)
    """By the process that runs: the first row, how many, and when. The first one tells where it was opened."""

    @property
    def store(self) -> Path:
        return self.root / "store"

    def run(self, chance: random.Random) -> None:
        clock = RealSystem().clock
        victim = self._start()
        if not self._until(victim, lambda: _position(self._state()) >= GROUPS):
            self.tally.find("hung", f"{self.where}: no commit of all groups: {self._last_words()}")
            victim.end()
            return
        self._until(victim, lambda: False, chance.uniform(0, KILL_SECONDS_MAX))
        killed_at = clock.monotonic()
        said, _ = victim.end()
        self.handed += [tuple(one) for one in said]
        self.tally.faults += 1
        position = self._judge_replay(killed_at)
        if self._until_new_row():
            self._judge(position)

    def _until_new_row(self) -> bool:
        """Start it again, and stop it once there is a new row; whether there was one."""
        clock = RealSystem().clock
        with Store(self.store) as store:
            before = store.topic("copy").rows
            began = clock.monotonic()
            victim = self._start()
            has_row = self._until(victim, lambda: store.topic("copy").rows > before)
        if not has_row:
            self.tally.find("hung", f"{self.where}: no new row after the restart: {self._last_words()}")
            victim.end()
            return False
        self.tally.measure(TIME_TO_ROW, clock.monotonic() - began)
        self._stop(victim)
        return True

    def _start(self) -> Victim:
        self.handed = []
        options = [str(self.store), self.mutant or ""]
        return spawn(lambda descriptor: [sys.executable, "-c", BOOT, str(descriptor), *options], self.root / "output")

    def _until(self, victim: Victim, is_so: Callable[[], bool], seconds: float = WAIT_SECONDS_MAX) -> bool:
        """Hear of what is handed out until something is so; whether it is so in time, and while the process lives."""
        clock = RealSystem().clock
        until = clock.monotonic() + seconds
        while clock.monotonic() < until:
            try:
                message = victim.channel.receive(LOOK_SECONDS)
            except TimeoutError:
                message = ()
            if message is None:
                return False
            if message:
                self.handed.append(tuple(message))
            if is_so():
                return True
        return False

    def _state(self) -> PipelineState | None:
        try:
            with Store(self.store) as store:
                return store.pipeline(NAME)
        except StoreError as error:
            if error.code != "DF0601":  # it is being made
                raise
            return None

    def _judge_replay(self, killed_at: float) -> int:
        """How much of the input will be read again? The position from which."""
        state = self._state()
        assert state is not None
        position = _position(state)
        again = [time for first, rows, time in self.handed if first + rows > position and rows]
        seconds = killed_at - min(again, default=killed_at)
        self.tally.measure("of input to be read again", seconds)
        self.tally.count(STATE_BYTES, sum(frame.length for frame in state.frames))
        if seconds > REPLAY_SECONDS_MAX:
            what = f"{seconds:.2f} s of input are read again, with commits every {INTERVAL_SECONDS:g} s"
            self.tally.find("wrong", f"{self.where}: {what}")
        return position

    def _stop(self, victim: Victim) -> None:
        victim.send_signal(signal.SIGTERM)
        said, code = victim.rest()
        self.handed += [tuple(one) for one in said]
        if code != 0:
            self.tally.find("wrong", f"{self.where}: exit code {code} after SIGTERM: {self._last_words()}")

    def _judge(self, position: int) -> None:
        """All rows up to the position are in the window, all from there on behind it, and copies of all are there."""
        opened_at = self.handed[0][0]
        if opened_at != position:
            kind = "duplicated" if opened_at < position else "lost"
            self.tally.find(kind, f"{self.where}: it goes on at row {opened_at} instead of {position}")
        end = _position(self._state())
        with Store(self.store) as store:
            windows, copied = store.read("windows"), store.read("copy", columns=["value"])
        copies = (copied["value"].to_numpy() * 2).astype(np.int64)
        self._compare("copy", copies, np.arange(0, end, COPY_EVERY))
        order = np.argsort(windows["key"].to_numpy(), kind="stable")
        keys = np.arange(GROUPS)
        twice = np.where(keys < position - GROUPS, 1, 0)
        assert position <= 2 * GROUPS, position
        self._compare("windows", windows["key"].to_numpy()[order], keys)
        if len(order) == GROUPS:
            self._compare("counts", windows["n"].to_numpy()[order], 1 + twice)
            self._compare("totals", windows["total"].to_numpy()[order], keys * 0.5 + twice * (keys + GROUPS) * 0.5)
        check_store(self.store, pipeline(Numbers()).nodes, NAME, {SOURCE: end}, self.tally, self.where)

    def _compare(self, what: str, found: np.ndarray, expected: np.ndarray) -> None:
        if np.array_equal(found, expected):
            self.tally.count(f"rows compared, {what}", len(found))
            return
        missing = len(np.setdiff1d(expected, found))
        if missing:
            self.tally.find("lost", f"{self.where}: {what}: {missing} of {len(expected)} are missing", missing)
        if len(found) > len(np.unique(found)) and len(found) > len(expected):
            more = len(found) - len(np.unique(found))
            self.tally.find("duplicated", f"{self.where}: {what}: {more} are there twice", more)
        elif not missing:
            self.tally.find("wrong", f"{self.where}: {what}: {found[:5]} instead of {expected[:5]}")

    def _last_words(self) -> str:
        return " ".join((self.root / "output").read_text().splitlines()[-5:])


def _position(state: PipelineState | None) -> int:
    """How many rows were read, says the checkpoint."""
    if state is None:
        return 0
    partitions = cast(dict[str, dict[str, list[int] | None]], state.checkpoint["sources"])
    position = partitions.get(SOURCE, {}).get("0")
    return 0 if position is None else position[0] or 0

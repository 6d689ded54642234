"""Pipelines on a disk that gets full: each sink waits, tells so, goes on, and gives what it gives on another disk.

From some change on behind the first row (before it, a run has not begun, and fails at once) the disk below the store,
or below the targets, has no room for some seconds. On a tmpfs another file takes the room, until the run tells that
it waits.
"""

from __future__ import annotations

import errno
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq

import dataflow as flow
from dataflow.errors import DataflowError
from dataflow.system import Clock, System
from dataflow.torture import pipelines
from dataflow.torture.frame import Tally
from dataflow.torture.mounts import in_own_mounts, run
from dataflow.torture.pipeline_mutants import replaced
from dataflow.torture.pipelines import Numbers
from dataflow.torture.seam import Change, FaultySystem, QuickSystem, Refusal

NEEDS = frozenset({"write", "create", "make_dirs"})
ROWS, BATCH_ROWS = 6_000, 250
SECONDS_MAX = 5
"""Until there is room, on the run's clock."""
TMPFS_BYTES = 4 << 20
Content = dict[str, list[tuple[object, ...]]]


class FullForSeconds:
    """Below `root`, once armed: no room from the k-th change that needs some, and room again some seconds later."""

    def __init__(self, root: Path, full_at: int, seconds: int, clock: Clock, chance: random.Random) -> None:
        self._root, self._full_at, self._seconds, self._clock, self._chance = str(root), full_at, seconds, clock, chance
        self._frees_at: float | None = None
        self.is_armed = False
        self.asked = self.refused = 0

    def before(self, change: Change) -> Refusal | None:
        if not self.is_armed or change.kind not in NEEDS or not change.path.startswith(self._root):
            return None
        self.asked += 1
        if self.asked < self._full_at:
            return None
        if self._frees_at is None:
            self._frees_at = self._clock.monotonic() + self._seconds
        if self._clock.monotonic() >= self._frees_at:
            return None
        self.refused += 1
        return Refusal(errno.ENOSPC, self._chance.randrange(change.size) if self.refused == 1 and change.size else 0)


def try_full_targets(folder: Path, seed: int, tally: Tally) -> None:
    """One trial: the pipeline without a fault, and with one at a change drawn by lot."""
    chance = random.Random(f"{seed}/targets")
    has_store, where_full = chance.random() < 0.7, chance.choice(("targets", "targets", "store"))
    where = f"seed {seed}, {where_full if has_store else 'targets'} full, {'a' if has_store else 'no'} store"
    expected, changes = _run(folder / "free", seed, has_store, where_full, 0, 0)
    full_at, seconds = chance.randint(1, max(changes, 1)), chance.randint(1, SECONDS_MAX)
    try:
        found, _ = _run(folder / "full", seed, has_store, where_full, full_at, seconds, tally)
    except DataflowError as error:
        tally.find("wrong", f"{where}, from need {full_at} on for {seconds} s: it did not wait: {error}")
    else:
        compare(found, expected, tally, f"{where}, from need {full_at} on for {seconds} s")
    for name in ("free", "full"):
        shutil.rmtree(folder / name)


def _run(
    root: Path, seed: int, has_store: bool, where_full: str, full_at: int, seconds: int, tally: Tally | None = None
) -> tuple[Content, int]:
    """What came out, and how many changes needed room."""
    root.mkdir()
    system = QuickSystem(seed)
    full_root = root / where_full if has_store else root / "targets"
    fault = FullForSeconds(full_root, full_at or sys.maxsize, seconds, system.clock, random.Random(seed))

    def arm() -> None:
        fault.is_armed = True

    told: list[str] = []
    content = outcome(root, FaultySystem(system, fault), has_store, arm, told.append)
    if tally is not None and fault.refused:
        tally.faults += 1
        tally.count(
            f"{full_root.name} of a pipeline were full" if where_full != "store" else "a pipeline's store was full"
        )
        if where_full != "store" and not any("waiting for room" in one for one in told):
            tally.find("wrong", f"seed {seed}: nobody was told that the disk was full")
    return content, fault.asked


def outcome(
    root: Path, system: System, has_store: bool, on_first_row: Callable[[], None], tell: Callable[[str], object]
) -> Content:
    """Run a pipeline of a sink of each kind below `root`, and read what it wrote."""
    targets = root / "targets"
    targets.mkdir()

    def hear(partition: str, first: int, rows: int) -> None:
        if rows and not first:
            on_first_row()

    rows = flow.read(Numbers(ROWS, clock=system.clock, tell=hear))
    database = targets / "rows.sqlite"
    sinks = [
        rows.write_csv(f"{targets}/parts/", roll="20KB", name="csv"),
        rows.write_parquet(targets / "rows.parquet", name="parquet"),
        rows.write_sqlite(database, "rows", name="sqlite"),
    ]
    if has_store:
        sinks.append(rows.write_topic("rows"))
    with replaced(pipelines, "BATCH_ROWS", BATCH_ROWS), _heard(tell):
        flow.Pipeline("full", *sinks).run(
            store=root / "store" if has_store else None, system=system, workers=1, checkpoint_interval="20ms"
        )
    with closing(sqlite3.connect(database)) as connection:
        content: Content = {"sqlite": connection.execute("SELECT * FROM rows").fetchall()}
    parts = [path.read_text().splitlines()[1:] for path in targets.glob("parts/[!.]*")]
    content["csv"] = [(line,) for lines in parts for line in lines]
    content["parquet"] = _tuples(pq.read_table(targets / "rows.parquet").to_pylist())
    if has_store:
        with flow.Store(root / "store") as store:
            content["topic"] = _tuples(store.read("rows").to_pylist())
    return {name: sorted(found) for name, found in content.items()}


def _tuples(rows: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in rows]


def compare(found: Content, expected: Content, tally: Tally, where: str) -> None:
    for name, wants in expected.items():
        has = found[name]
        if has == wants:
            continue
        kind = "lost" if len(has) < len(wants) else "duplicated" if len(has) > len(wants) else "wrong"
        tally.find(kind, f"{where}: {name} has {len(has):,} rows for {len(wants):,}")


class _Reader(StringIO):
    """Somebody who reads what a run says."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__()
        self._tell = tell

    def write(self, text: str) -> int:
        self._tell(text)
        return len(text)


@contextmanager
def _heard(tell: Callable[[str], object]) -> Iterator[None]:
    with replaced(sys, "stderr", _Reader(tell)):
        yield


# ── on a real one ──


def try_real_full_targets(folder: Path, seed: int, tally: Tally) -> None:
    """The same on a tmpfs that another file fills."""
    where = f"seed {seed}, a pipeline on a tmpfs"
    in_own_mounts(lambda part: _fill_tmpfs(folder / "tmpfs", seed, part, where), tally, where)


def _fill_tmpfs(root: Path, seed: int, tally: Tally, where: str) -> None:
    root.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(root))
    chance, filler, told = random.Random(seed), root / "filler", 0
    left, has_store = chance.randrange(0, 400_000), chance.random() < 0.7

    def fill() -> None:
        free = shutil.disk_usage(root).free
        if not filler.exists():
            filler.write_bytes(bytes(max(0, free - left)))

    def hear(text: str) -> None:
        nonlocal told
        if "waiting for room" in text:
            told += 1
            filler.unlink(missing_ok=True)

    (root / "free").mkdir()
    expected = outcome(root / "free", QuickSystem(seed), has_store, lambda: None, lambda text: None)
    shutil.rmtree(root / "free")
    (root / "full").mkdir()
    where = f"{where} with room for {left:,} bytes, {'a' if has_store else 'no'} store"
    try:
        found = outcome(root / "full", QuickSystem(seed), has_store, fill, hear)
    except DataflowError as error:
        tally.find("wrong", f"{where}: it did not wait: {error}")
        return
    compare(found, expected, tally, where)
    if told:
        tally.faults += 1
        tally.count("a real tmpfs was full below a pipeline")

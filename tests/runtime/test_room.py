"""A full disk is a pause for sinks: they wait, tell so, go on, and nothing is written twice."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import pytest

import dataflow as flow
from dataflow.errors import ConnectorError, DataflowError, TargetFullError
from dataflow.runtime import coordinator
from dataflow.runtime.room import FULL_SECONDS_MAX, BlockingRoom
from dataflow.system import RealSystem, SimulatedSystem
from dataflow.torture.seam import Change, FaultySystem, QuickSystem, Refusal, closing_quietly

ROWS = 30_000
TABLE = pa.table({"n": range(ROWS), "word": [f"word {n}" for n in range(ROWS)]})
FULL, RESUMED = "the disk is full: ", "there is room on the disk again: going on"
STORES = pytest.mark.parametrize("has_store", [True, False], ids=["store", "no store"])
TARGETS = ["out.csv", "out.jsonl", "out.parquet", "out.arrow", "parts/", "out.sqlite"]


@dataclass
class Full:
    """Changes of some kinds fail, of files whose path says so; the `at`-th one and those behind it, `times` at all."""

    where: str
    kinds: tuple[str, ...] = ("write",)
    at: int = 1
    times: int = 3
    number: int = errno.ENOSPC
    stops: bool = False
    """Whether the first one comes with a SIGTERM."""
    asked: int = 0
    refused: int = 0

    def before(self, change: Change) -> Refusal | None:
        if change.kind not in self.kinds or self.where not in change.path:
            return None
        self.asked += 1
        if self.asked < self.at or self.refused == self.times:
            return None
        self.refused += 1
        if self.stops and self.refused == 1:
            signal.raise_signal(signal.SIGTERM)
        return Refusal(self.number, change.size // 3)


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    with closing_quietly():
        yield


def run(folder: Path, target: str, fault: Full, *, has_store: bool, system: Any = None) -> None:
    rows = flow.from_arrow(TABLE, name="rows")
    suffix = os.path.splitext(target)[1]
    if suffix == ".sqlite":
        sink = rows.write_sqlite(folder / target, "t", name="out")
    else:
        sink = getattr(rows, f"write_{suffix.removeprefix('.') or 'csv'}")(f"{folder}/{target}", name="out")
    disk = FaultySystem(system or QuickSystem(), fault)
    flow.Pipeline("p", sink).run(store=folder / "store" if has_store else None, workers=1, system=disk)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".sqlite":
        with closing(sqlite3.connect(path)) as database:
            return [{"n": n, "word": word} for n, word in database.execute("SELECT n, word FROM t ORDER BY n")]
    readers: dict[str, Callable[[Any], pa.Table]] = {
        ".csv": pa.csv.read_csv,
        ".jsonl": pa.json.read_json,
        ".parquet": pq.read_table,
        ".arrow": lambda one: pa.ipc.open_file(one).read_all(),
    }
    files = [path] if path.suffix else sorted(path.glob("[!.]*"))
    tables = [readers[file.suffix](file) for file in files]
    return list(pa.concat_tables(tables).to_pylist())


@STORES
@pytest.mark.parametrize("target", TARGETS)
def test_a_sink_waits_for_room_and_goes_on(
    tmp_path: Path, target: str, has_store: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = Full("out.sqlite" if "sqlite" in target else ".inprogress")
    run(tmp_path, target, fault, has_store=has_store)
    assert read(tmp_path / target) == TABLE.to_pylist()
    told = capsys.readouterr().err
    assert (fault.refused, told.count(FULL), told.count(RESUMED)) == (3, 1, 1), told


@STORES
@pytest.mark.parametrize("kind", ["create", "make_dirs", "rename"])
def test_a_sink_waits_for_inodes_and_names(tmp_path: Path, kind: str, has_store: bool) -> None:
    (tmp_path / "out").mkdir()
    at = 2 if kind == "create" else 1  # the first file tells whether any can be made
    fault = Full("out/", (kind,), at=at, number=errno.EDQUOT)
    rows = flow.from_arrow(TABLE.slice(0, 10), name="rows").write_csv(f"{tmp_path}/out/", partition_by="n")
    store = tmp_path / "store" if has_store else None
    flow.Pipeline("p", rows).run(store=store, workers=1, system=FaultySystem(QuickSystem(), fault))
    assert len(list((tmp_path / "out").glob("n=*/*.csv"))) == 10
    assert fault.refused == 3


@STORES
def test_a_database_waits_for_the_inode_of_its_journal(tmp_path: Path, has_store: bool) -> None:
    fault = Full("out.sqlite-", ("create",), times=4)  # the journal, and the file that tells why, twice
    run(tmp_path, "out.sqlite", fault, has_store=has_store)
    assert read(tmp_path / "out.sqlite") == TABLE.to_pylist()
    assert fault.refused == 4


@pytest.mark.parametrize("target", TARGETS)
def test_rows_that_wait_in_the_store_wait_for_room_there(tmp_path: Path, target: str) -> None:
    fault = Full(".state")
    run(tmp_path, target, fault, has_store=True)
    assert read(tmp_path / target) == TABLE.to_pylist()
    assert fault.refused == 3


@pytest.mark.parametrize("from_the_last", range(8))
def test_the_store_waits_for_room_to_its_last_commit(tmp_path: Path, from_the_last: int) -> None:
    counted = Full("store/", times=0)
    for name, fault in (("free", counted), ("full", Full("store/", times=1))):
        (tmp_path / name).mkdir()
        fault.at = counted.asked - from_the_last
        run(tmp_path / name, "out.csv", fault, has_store=True)
        assert read(tmp_path / name / "out.csv") == TABLE.to_pylist()
        assert fault.refused == fault.times


@STORES
@pytest.mark.parametrize("kind", ["segment", "catalog"])
def test_another_store_is_waited_for(tmp_path: Path, kind: str, has_store: bool) -> None:
    with flow.Store(tmp_path / "other") as other:
        other.append("other", TABLE.slice(0, 1))
    where, at = ("other/topics", 1) if kind == "segment" else ("other/catalog.db-wal", 4)  # behind what its lock writes
    fault = Full(where, at=at)
    sink = flow.from_arrow(TABLE, name="rows").write_topic("other", store=tmp_path / "other")
    store = tmp_path / "store" if has_store else None
    flow.Pipeline("p", sink).run(store=store, workers=1, system=FaultySystem(QuickSystem(), fault))
    with flow.Store(tmp_path / "other") as other:
        assert other.read("other")["n"].to_pylist() == [0, *range(ROWS)]
    assert fault.refused == 3


@STORES
@pytest.mark.parametrize("target", TARGETS)
def test_after_ten_minutes_the_run_fails_and_the_next_one_goes_on(tmp_path: Path, target: str, has_store: bool) -> None:
    fault = Full("out.sqlite" if "sqlite" in target else ".inprogress", times=-1)
    system = QuickSystem()
    with pytest.raises(ConnectorError, match="the disk is full") as caught:
        run(tmp_path, target, fault, has_store=has_store, system=system)
    assert (caught.value.code, caught.value.help) == ("DF0512", "make room, then run again")
    assert FULL_SECONDS_MAX < system.clock.monotonic() < FULL_SECONDS_MAX + 60
    assert not list(tmp_path.rglob("*.inprogress"))
    run(tmp_path, target, Full("nowhere"), has_store=has_store)
    assert read(tmp_path / target) == TABLE.to_pylist()


@pytest.mark.parametrize("kind", ["sync", "sync_dir"])
def test_a_sync_that_finds_no_room_is_not_repeated(tmp_path: Path, kind: str) -> None:
    (tmp_path / "parts").mkdir()
    fault = Full("parts", (kind,), times=-1)
    with pytest.raises(ConnectorError, match="the disk is full"):
        run(tmp_path, "parts/", fault, has_store=False)
    assert fault.refused == 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_stop_is_heard_while_a_sink_waits(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "STOP_SECONDS_MAX", 0.0)
    where = "out.sqlite" if "sqlite" in target else ".inprogress"
    fault = Full(where, times=-1, stops=True)
    with pytest.raises(DataflowError, match="the disk is full"):
        run(tmp_path, target, fault, has_store=True, system=RealSystem())
    run(tmp_path, target, Full("nowhere"), has_store=True)
    assert read(tmp_path / target) == TABLE.to_pylist()


def test_nobody_waits_for_a_disk_that_is_full_when_the_run_begins(tmp_path: Path) -> None:
    system = QuickSystem()
    with pytest.raises(ConnectorError, match=r"the disk is full; nothing was changed"):
        run(tmp_path, "out.csv", Full(".inprogress", ("create",), times=-1), has_store=False, system=system)
    assert system.clock.monotonic() == 0


def test_what_may_be_tried_again_is_tried_until_the_job_is_over() -> None:
    system = SimulatedSystem(1)
    over = system.scheduler.event()
    room = BlockingRoom(system.clock, over)
    tries: list[float] = []

    def write() -> int:
        tries.append(system.clock.monotonic())
        if len(tries) < 4:
            raise TargetFullError("no room")
        return len(tries)

    assert room.attempt(write) == 4
    assert tries == [0, 1, 2, 3]
    tries.clear()
    over.set()
    with pytest.raises(TargetFullError):
        room.attempt(write)
    assert len(tries) == 1


def test_what_is_no_lack_of_room_is_raised_at_once() -> None:
    system = SimulatedSystem(1)
    room = BlockingRoom(system.clock, system.scheduler.event())

    def fail() -> None:
        raise OSError(errno.EIO, "broken", "file")

    with pytest.raises(OSError, match="broken"):
        room.attempt(fail)
    assert system.clock.monotonic() == 0

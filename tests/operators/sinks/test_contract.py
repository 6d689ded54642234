"""What every sink with a store promises: exactly the committed rows are seen, once, wherever the process dies."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import apsw
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import pytest

from dataflow.errors import DataflowError
from dataflow.operators.base import Sink, SinkContext
from dataflow.operators.sinks.callback import CallbackSink
from dataflow.operators.sinks.files import FORMATS, FileSink, FileTarget, Roll
from dataflow.operators.sinks.sqlite import SqliteSink, SqliteTarget
from dataflow.operators.sinks.topic import topic_sink
from dataflow.state.store import Store
from dataflow.system import SimulatedSystem
from tests.operators.sinks.driving import HOME, SCHEMA, Death, Epoch, Pipeline, dying, kill, rows

Rows = list[dict[str, Any]]
EPOCHS: list[Epoch] = [[rows(1, 2), rows(3)], [], [rows(5)], [rows(), rows(6, 7, 8)]]


@dataclass
class Target:
    """A sink, and how to see what it has written."""

    make: Callable[[SinkContext], Sink]
    seen: Callable[[SimulatedSystem], Rows]
    in_order: bool = True
    at_end: bool = False
    """Whether rows are seen at the end only."""


def files(format: str, path: str, **options: Any) -> Target:
    target = FileTarget(path=path, format=FORMATS[format], schema=SCHEMA, bounded=True, **options)
    partitioned = bool(target.partition_by)
    return Target(
        lambda context: FileSink(target, context),
        lambda system: read_files(system, format, path),
        in_order=not partitioned,
        at_end=target.waits_for_the_end,
    )


def read_files(system: SimulatedSystem, format: str, path: str) -> Rows:
    found: Rows = []
    for name in visible(system, path):
        partition: dict[str, object] = {}
        for part in name.split("/"):
            column, is_partition, value = part.partition("=")
            if is_partition:
                partition[column] = None if value.startswith("__HIVE") else value
        found += [partition | row for row in READERS[format](system.disk.read_bytes(name)).to_pylist()]
    return [{name: row[name] for name in SCHEMA.names} for row in found]


def visible(system: SimulatedSystem, path: str) -> list[str]:
    """The files in a directory and below, or the one file; hidden ones are not seen."""
    below = path if path.endswith("/") else path + "\0"
    entries = [name for name, file in system.disk._entries.items() if file is not None]
    return sorted(
        name for name in entries if (name == path or name.startswith(below)) and not name.split("/")[-1].startswith(".")
    )


READERS: dict[str, Callable[[bytes], pa.Table]] = {
    "csv": lambda data: pa.csv.read_csv(
        io.BytesIO(data), convert_options=pa.csv.ConvertOptions(column_types=SCHEMA, strings_can_be_null=True)
    ),
    "jsonl": lambda data: (
        pa.json.read_json(io.BytesIO(data), parse_options=pa.json.ParseOptions(explicit_schema=SCHEMA))
        if data
        else SCHEMA.empty_table()
    ),
    "parquet": lambda data: pq.read_table(io.BytesIO(data)),
    "arrow": lambda data: pa.ipc.open_file(data).read_all(),
}


def sqlite(**options: Any) -> Target:
    target = SqliteTarget(path=f"{HOME}/out.db", table="t", schema=SCHEMA, **options)

    def seen(system: SimulatedSystem) -> Rows:
        if not system.disk.exists(target.path):
            return []
        with closing(apsw.Connection(target.path, vfs=system.disk.vfs_name())) as connection:
            if not list(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 't'")):
                return []
            return [dict(zip(SCHEMA.names, row, strict=True)) for row in connection.execute("SELECT n, word FROM t")]

    return Target(lambda context: SqliteSink(target, context), seen)


def callback() -> Target:
    calls: dict[int, Rows] = {}

    def call(batch: pa.RecordBatch, epoch: int) -> None:
        assert calls.setdefault(epoch, batch.to_pylist()) == batch.to_pylist(), "the same epoch with other rows"

    return Target(
        lambda context: CallbackSink(call, context), lambda system: [row for one in calls.values() for row in one]
    )


def topic() -> Target:
    def seen(system: SimulatedSystem) -> Rows:
        with Store(f"{HOME}/other", system=system) as store:
            try:
                return store.read("t").to_pylist()  # type: ignore[no-any-return]
            except DataflowError:  # not made yet
                return []

    return Target(lambda context: topic_sink("t", context, f"{HOME}/other"), seen)


EVERY_EPOCH = Roll(bytes=1)
TARGETS: dict[str, Callable[[], Target]] = {
    "csv file": lambda: files("csv", f"{HOME}/out.csv"),
    "jsonl file, replaced": lambda: files("jsonl", f"{HOME}/out.jsonl", mode="replace"),
    "csv parts, one each epoch": lambda: files("csv", f"{HOME}/out/", roll=EVERY_EPOCH),
    "jsonl parts, some epochs": lambda: files("jsonl", f"{HOME}/out/", roll=Roll(seconds=0.15)),
    "parquet parts at the end": lambda: files("parquet", f"{HOME}/out/"),
    "arrow parts": lambda: files("arrow", f"{HOME}/out/", roll=EVERY_EPOCH),
    "parquet by partition": lambda: files("parquet", f"{HOME}/out/", roll=EVERY_EPOCH, partition_by=("word",)),
    "csv by partition, replaced": lambda: files(
        "csv", f"{HOME}/out/", partition_by=("word",), mode="replace_partitions"
    ),
    "sqlite": sqlite,
    "sqlite with a key": lambda: sqlite(key=("n",)),
    "callback": callback,
    "topic of another store": topic,
}
EVERY_TARGET = pytest.mark.parametrize("name", TARGETS)


@dataclass
class Case:
    """A target and a pipeline that writes into it."""

    target: Target
    pipeline: Pipeline = field(init=False)
    epochs: list[Epoch] = field(default_factory=lambda: list(EPOCHS))

    def __post_init__(self) -> None:
        self.pipeline = Pipeline(self.target.make, self.epochs)

    def seen(self) -> Rows:
        found = self.target.seen(self.pipeline.system)
        return found if self.target.in_order else sorted(found, key=lambda row: int(row["n"]))

    def check(self) -> None:
        assert self.seen() == self.pipeline.committed_rows
        assert self.pipeline.committed == len(self.epochs)

    def check_nothing_uncommitted(self) -> None:
        """What is seen is a beginning of what is committed; parts of several directories come one by one."""
        seen, committed = self.seen(), self.pipeline.committed_rows
        if not self.target.in_order:
            committed = [row for row in committed if row in seen]
        assert seen == committed[: len(seen)]

    def dies(self, at: int | None, *, power: bool) -> bool:
        """Live until that step; false when there is no such step."""
        machine = self.pipeline.system
        try:
            self.pipeline.life(at)
        except (Death, Exception) as error:
            corpse = getattr(machine.disk, "corpse", None)
            if not isinstance(error, Death) and corpse is None:
                raise  # SQLite may make an error of its own of a death; this is none
            self.pipeline.system = kill(corpse or machine, power=power)
            return True
        return False


@EVERY_TARGET
def test_every_row_is_seen_once(name: str) -> None:
    case = Case(TARGETS[name]())
    case.pipeline.life()
    case.check()


@EVERY_TARGET
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_a_death_between_any_two_calls_loses_nothing_and_repeats_nothing(name: str, power: bool) -> None:
    step = 0
    while (case := Case(TARGETS[name]())).dies(step, power=power):
        case.check_nothing_uncommitted()
        case.pipeline.life()
        case.check()
        step += 1
    assert step > 20


@EVERY_TARGET
def test_a_death_in_the_life_after_a_death_changes_nothing(name: str) -> None:
    for first in range(0, 27, 4):
        second = 0
        while True:
            case = Case(TARGETS[name]())
            assert case.dies(first, power=False)
            if not case.dies(second, power=True):
                break
            case.check_nothing_uncommitted()
            case.pipeline.life()
            case.check()
            second += 3


@EVERY_TARGET
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # SQLite closes what is dead
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_a_death_at_any_change_of_the_disk_loses_nothing_and_repeats_nothing(name: str, power: bool) -> None:
    change = 0
    while True:
        case = Case(TARGETS[name]())
        case.pipeline.system = dying(case.pipeline.system, change)
        if not case.dies(None, power=power):
            break
        case.check_nothing_uncommitted()
        case.pipeline.life()
        case.check()
        change += 1
    assert change > 3


@EVERY_TARGET
def test_a_run_that_has_finished_can_be_started_again(name: str) -> None:
    case = Case(TARGETS[name]())
    case.pipeline.life()
    case.pipeline.system = kill(case.pipeline.system)
    case.pipeline.life()
    case.check()


@EVERY_TARGET
def test_no_rows_at_all_are_no_rows(name: str) -> None:
    case = Case(TARGETS[name](), epochs=[[], [rows()], []])
    case.pipeline.life()
    case.check()
    if name == "csv file":
        assert case.pipeline.system.disk.read_bytes(f"{HOME}/out.csv") == b"n,word\n"


@EVERY_TARGET
def test_abort_takes_back_what_was_written_and_what_was_prepared(name: str) -> None:
    for prepared in (False, True):
        case = Case(TARGETS[name]())
        context = SinkContext(SCHEMA, case.pipeline.system, None, "my pipe", "sink", "x", staging=staging(case))
        sink: Any = case.target.make(context)
        sink.recover(None)
        sink.open(1)
        sink.write(rows(1, 2))
        if prepared and hasattr(sink, "end"):
            sink.end()
        sink.abort(sink.prepare(1) if prepared else None)
        getattr(sink, "close", lambda: None)()
        assert case.seen() == []
        case.pipeline.system = kill(case.pipeline.system)
        case.pipeline.life()
        case.check()


def staging(case: Case) -> Any:
    from dataflow.state.frames import FrameFiles, Staging

    return Staging(FrameFiles(case.pipeline.system, HOME, f"{HOME}/frames", 1), "sink", SCHEMA)


@EVERY_TARGET
def test_a_life_leaves_no_hidden_files(name: str) -> None:
    case = Case(TARGETS[name]())
    case.dies(9, power=False)
    case.pipeline.life()
    hidden = [path for path in case.pipeline.system.disk._entries if path.split("/")[-1].startswith(".")]
    assert hidden == []


def test_a_table_that_was_dropped_while_all_its_rows_wait_yet_is_written_anew() -> None:
    case = Case(TARGETS["sqlite"](), epochs=[[], [rows(1, 2)]])
    case.pipeline.life()
    with closing(apsw.Connection(f"{HOME}/out.db", vfs=case.pipeline.system.disk.vfs_name())) as connection:
        connection.execute("DROP TABLE t")
    case.pipeline.life()
    case.check()


@pytest.mark.parametrize("name", ["sqlite", "topic of another store"])
def test_a_pipeline_that_begins_anew_in_another_store_is_not_taken_for_the_old_one(name: str) -> None:
    target = TARGETS[name]()
    first = Case(target)
    first.pipeline.life()
    second = Pipeline(target.make, EPOCHS, system=first.pipeline.system)
    second.life()
    assert target.seen(second.system) == first.pipeline.committed_rows + second.committed_rows

"""Row 14: whole pipelines on a simulated machine: random graphs, random faults, and the same answer as without them.

One thread, a clock that only moves when somebody waits, a disk in memory: all order comes from the seed, so a failure
is a number, and the same number fails again (`dataflow torture --row 14 --seed S --trials 1`). A trial builds a
pipeline by lot, runs it undisturbed, then with kills, power cuts, stops, failing syncs, full disks and broken readers,
each at a moment drawn by lot, until it has come to its end in spite of them. What came out must be what the first run
gave; and the undisturbed run is made twice, which must give one and the same trace.
"""

from __future__ import annotations

import errno
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from io import StringIO
from typing import cast

import apsw
import pyarrow as pa
import pyarrow.parquet as pq

import dataflow as flow
from dataflow import api, col, count
from dataflow.errors import DataflowError
from dataflow.runtime import channel, room
from dataflow.state.layout import make_durable_dirs
from dataflow.state.store import Store
from dataflow.system import SimulatedSystem
from dataflow.torture.books import Books, Steps, rows_read
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally
from dataflow.torture.pipeline_mutants import replaced
from dataflow.torture.processes import Reporter, run_lanes
from dataflow.torture.seam import Change, FaultySystem, Refusal, closing_quietly

STORE, INPUT, FILES, DATABASE = "/home/store", "/home/input", "/home/files", "/home/tables.sqlite"
TABLES = {"table": "windows", "other table": "rows_read"}
"""In the database, by the names of their sinks."""
NAME = "simulated"
FAULTS_MAX = 4
RUNS_MAX = 12
CHANGES_MAX = 250
"""Of the disk, within which a fault comes."""
ROWS_MAX = 400
SLOW_SECONDS, FAST_SECONDS = 0.05, 0.000_01
"""What a sink takes for a row, now and then: units that began while it was fast are cut while it is slow."""
FULL_SECONDS = 30.0
"""Until a run gives up that waits for room. Ten minutes of a machine with many tasks take longer than a trial may."""
HELPING_ROWS = 16
"""The first helping of a receiver where a sink is slow, so that units of a few hundred rows are cut too."""
SCHEMA = pa.schema({"at": pa.timestamp("us"), "key": pa.int64(), "name": pa.string(), "value": pa.float64()})


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.simulation:lane")


ROW = Row(
    number=14, promise="the same answer under any order and any faults (simulated)", trials_ci=500, run_plan=run_plan
)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    done, number = 0, first
    while reporter.goes_on(done):
        with reporter.trial(number) as tally:
            one = seed + number * lanes + lane
            try_once(one, tally)
        done, number = done + 1, number + 1


def try_once(seed: int, tally: Tally) -> None:
    """One trial: a pipeline, with and without faults."""
    where = f"seed {seed}"
    job = Job(random.Random(seed))
    with machine_of(job):
        trace, expected = undisturbed(job, seed)
        if undisturbed(job, seed) != (trace, expected):
            tally.find("wrong", f"{where}: two runs of it left two traces")
        system = disturbed(job, seed, tally, where)
        if system is not None:
            _compare(content(system), expected, tally, where)
            check_ledger(system, job, tally, where, has_ended=True)


@contextmanager
def machine_of(job: Job) -> Iterator[None]:
    """What has to be so while a job runs on a simulated machine."""
    helping = HELPING_ROWS if job.is_slow else channel.ROWS_BEFORE_MEASURED
    # A stop that comes before a run listens, or after, finds nobody.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with (
        closing_quietly(),
        silent(),
        replaced(channel, "ROWS_BEFORE_MEASURED", helping),
        replaced(room, "FULL_SECONDS_MAX", FULL_SECONDS),
    ):
        yield


Content = dict[str, list[tuple[object, ...]]]


def undisturbed(job: Job, seed: int) -> tuple[str, Content]:
    """One run without faults, with one worker."""
    system = SimulatedSystem(seed)
    job.move_to(system)
    job.pipeline().run(store=STORE, system=system, workers=1)
    return system.trace, content(system)


def disturbed(
    job: Job,
    seed: int,
    tally: Tally,
    where: str,
    *,
    after_run: Callable[[SimulatedSystem, int], None] = lambda system, number: None,
) -> SimulatedSystem | None:
    """Runs with faults, until one comes to its end: the machine then, and None when none does."""
    chance, system = random.Random(seed + 1), SimulatedSystem(seed + 1)
    job.move_to(system)
    faults = [Fault.drawn(chance, job.is_slow) for _ in range(chance.randint(1, FAULTS_MAX))]
    for number in range(RUNS_MAX):
        fault = faults.pop(0) if faults else Fault("none")
        workers, interval = chance.randint(1, 4), f"{chance.choice((1, 3, 10, 50))}ms"
        job.batch_rows, job.reads_left = chance.choice((1, 7, 40, 1_000)), fault.reads_left
        try:
            result = job.pipeline().run(
                store=STORE, system=FaultySystem(system, fault), workers=workers, checkpoint_interval=interval
            )
            has_ended = result.stopped is None
        except KilledError:
            has_ended = False
        except DataflowError as error:
            has_ended = False
            if not fault.has_fired and job.reads_left is None:
                tally.find("wrong", f"{where}, run {number}: nothing was in its way, and it failed: {error}")
                return None
        if fault.has_fired or (fault.reads_left is not None and not has_ended):
            tally.faults += 1
            tally.count(f"faults: {fault.kind}")
        _leave(system, fault)
        after_run(system, number)
        if has_ended and not fault.is_dead:
            return system
    tally.find("hung", f"{where}: it has not come to its end in {RUNS_MAX} runs")
    return None


def _leave(system: SimulatedSystem, fault: Fault) -> None:
    """The machine after a run: without processes, or without power for a moment."""
    if fault.kind == "power" and fault.has_fired:
        system.disk.lose_power()
    system.disk.kill_processes()
    system.scheduler.forget_threads()


def content(system: SimulatedSystem) -> Content:
    """All rows of all topics, files and tables; where partitions interleave by chance, in the order of their text."""
    with Store(STORE, system) as store:
        found = {}
        for info in store.topics():
            table = store.read(info.name)
            rows = [tuple(row.values()) for row in table.to_pylist()]
            found[info.name] = rows if info.name == "windows" else sorted(rows, key=repr)
    disk = system.disk
    if disk.exists(FILES):
        parts = [disk.read_bytes(path).decode().splitlines()[1:] for path in disk.glob(f"{FILES}/*.csv")]
        found["(files)"] = sorted((line,) for part in parts for line in part)
    if disk.exists(DATABASE):
        with closing(apsw.Connection(DATABASE, vfs=disk.vfs_name())) as connection:
            for name, table in TABLES.items():
                if connection.table_exists(None, table):
                    found[f"({name})"] = sorted(connection.execute(f"SELECT * FROM {table}"), key=repr)
    return found


def _compare(found: Content, expected: Content, tally: Tally, where: str) -> None:
    for topic in sorted(found.keys() | expected.keys()):
        has, wants = found.get(topic, []), expected.get(topic, [])
        if has == wants:
            continue
        lacks, extra = [row for row in wants if row not in has], [row for row in has if row not in wants]
        if lacks:
            tally.find("lost", f"{where}: topic {topic} lacks {lacks[:2]}", len(lacks))
        if extra:
            tally.find("wrong", f"{where}: topic {topic} has {extra[:2]}", len(extra))
        if not lacks and not extra:
            kind = "out_of_order" if len(has) == len(wants) else "duplicated"
            tally.find(kind, f"{where}: topic {topic} has {len(has)} rows for {len(wants)}")


def check_ledger(system: SimulatedSystem, job: Job, tally: Tally, where: str, *, has_ended: bool = False) -> None:
    """The ledger against the sources, topics, files and tables."""
    with Store(STORE, system) as store:
        state = store.pipeline(NAME) if store.exists else None
        if state is None:
            return  # killed before its first commit: nothing was read, as far as anybody knows
        epochs, positions = store.ledger(NAME), state.checkpoint["sources"]
        topics = {info.name: info.rows for info in store.topics()}
    nodes = job.pipeline().nodes
    books = Books(nodes, NAME, cast(Mapping[int, Steps], epochs), tally, where)
    books.check(has_ended=has_ended)
    books.check_sources(rows_read(positions))
    if has_ended:
        books.check_sources(job.rows_by_source)
        contents = content(system)
        topics |= {place: len(rows) for place, rows in contents.items()}
    books.check_sinks(topics)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────


class KilledError(BaseException):
    """The process is gone: nothing that it does from here on reaches the disk."""


@dataclass
class Fault:
    """What goes wrong, and when."""

    kind: str
    changes_left: int = CHANGES_MAX
    """Of the disk, before it happens."""
    reads_left: int | None = None
    has_fired: bool = False
    heals_after: int = 0
    """A full disk has room again after so many refusals; 0: not in this run."""

    @classmethod
    def drawn(cls, chance: random.Random, is_slow: bool) -> Fault:
        kinds = ("kill", "power", "kill", "power", "sync", "full", "reader", "stop", "stop")
        kind = chance.choice((*kinds, *("stop",) * len(kinds)) if is_slow else kinds)
        reads = chance.randint(0, 30) if kind == "reader" else None
        return cls(kind, chance.randint(0, CHANGES_MAX), reads, heals_after=chance.choice((0, 1, 3)))

    @property
    def is_dead(self) -> bool:
        return self.has_fired and self.kind in ("kill", "power")

    def before(self, change: Change) -> Refusal | None:
        if self.is_dead:
            raise KilledError
        if self.kind in ("none", "reader"):
            return None
        self.changes_left -= 1
        if self.changes_left > 0:
            return None
        if self.kind == "sync" and change.kind in ("sync", "sync_dir") and not self.has_fired:
            self.has_fired = True
            return Refusal(errno.EIO)
        if self.kind == "full" and change.kind in ("write", "create"):
            self.has_fired = True
            self.heals_after -= 1
            if self.heals_after == 0:
                self.kind = "full, for a moment"
            return Refusal(errno.ENOSPC, written=change.size // 2)
        if self.kind in ("kill", "power"):
            self.has_fired = True
            raise KilledError
        if self.kind == "stop" and not self.has_fired:
            self.has_fired = True
            signal.raise_signal(signal.SIGTERM)
        return None


# ── pipelines ────────────────────────────────────────────────────────────────────────────────────────────


class BrokenOffError(Exception):
    """The reader's network is gone."""


@dataclass
class Job:
    """A pipeline drawn by lot; it can be built again and again, with other batches."""

    chance: random.Random
    batch_rows: int = 50
    reads_left: int | None = None
    system: SimulatedSystem = field(default_factory=lambda: SimulatedSystem(0))
    tables: list[dict[str, pa.RecordBatch]] = field(default_factory=list)
    steps: list[Callable[[flow.Stream], flow.Stream]] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = self.chance
        self.is_slow, self.turn_rows = chance.random() < 0.25, chance.choice((50, 200))
        self.tables = [_tables(chance) for _ in range(chance.choice((1, 1, 2)))]
        sizes = (60, 300) if self.is_slow else (None, None, None, 60, 300)
        self.group_rows = [chance.choice(sizes) for _ in self.tables]
        self.delay_ms = chance.choice((0, 20, 200))
        self.window = _window(chance)
        self.then = _window(chance) if chance.random() < 0.3 else None
        self.filters = chance.random() < 0.5
        self.keeps_late = chance.random() < 0.5
        self.copies_rows = chance.random() < 0.5
        self.blocks = chance.random() < 0.3
        self.writes_files, self.writes_table = chance.random() < 0.4, chance.random() < 0.3

    @property
    def rows_by_source(self) -> dict[str, int]:
        rows = [sum(batch.num_rows for batch in tables.values()) for tables in self.tables]
        return {f"source{number}": count for number, count in enumerate(rows)}

    def move_to(self, system: SimulatedSystem) -> None:
        """Run on this machine from now on: its clock, and input files on its disk."""
        self.system, disk = system, system.disk
        make_durable_dirs(disk, INPUT)
        for number, rows in enumerate(self.group_rows):
            if rows is not None:
                disk.write_bytes(self._file(number), _parquet(self.tables[number], rows))
        disk.sync_dir(INPUT)

    def _file(self, number: int) -> str:
        return f"{INPUT}/source{number}.parquet"

    def _source(self, number: int) -> flow.Stream:
        """A reader of batches of any size; or a file, whose row groups are taken whole, or cut where a sink is slow."""
        if self.group_rows[number] is None:
            return flow.read(_Source(f"source{number}", self.tables[number], self))
        with replaced(api, "RealSystem", lambda: self.system):
            return flow.read_parquet(self._file(number))

    def pipeline(self) -> flow.Pipeline:
        """Each step has a name of its own, so that its counts are."""
        sinks = []
        streams = []
        for number in range(len(self.tables)):
            rows = self._source(number).filter(col.key >= 0).named(f"first{number}")
            streams.append(rows.derive(value=col.value * 2).named(f"doubled{number}"))
        rows = streams[0] if len(streams) == 1 else streams[0].union(*streams[1:])
        if self.is_slow:
            sinks.append(rows.to(_Slow(self), name="slow"))
        if self.copies_rows:
            sinks.append(rows.write_topic("rows"))
        if self.filters:
            rows = rows.filter(col.value > -50)
        made = self.window(rows.watermark("at", delay=f"{self.delay_ms}ms"))
        if self.keeps_late:
            sinks.append(made.late.write_topic("late"))
        if self.then is not None:
            again = made.derive(key=col.n, name=flow.lit("x"), value=flow.lit(1.5)).named("again")
            made = self.then(again).named("windows of windows")
        sinks.append(made.write_topic("windows"))
        if self.writes_files:
            sinks.append(made.write_csv(f"{FILES}/", roll="2KB").named("files"))
        if self.writes_table:
            sinks.append(made.write_sqlite(DATABASE, TABLES["table"]).named("table"))
            sinks.append(rows.write_sqlite(DATABASE, TABLES["other table"]).named("other table"))
        return flow.Pipeline(NAME, *sinks)


class _Slow:
    """Slow for some hundred rows, fast for others, and slow to commit: epochs end inside of units."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rows = 0

    def open(self, epoch: int) -> None:
        pass

    def write(self, batch: pa.RecordBatch) -> None:
        is_slow = self.rows // self.job.turn_rows % 2
        self.rows += batch.num_rows
        self._take(batch.num_rows * (SLOW_SECONDS if is_slow else FAST_SECONDS))

    def prepare(self, epoch: int) -> object:
        return epoch

    def commit(self, handle: object) -> None:
        self._take(2 * SLOW_SECONDS)

    def abort(self, handle: object) -> None:
        pass

    def _take(self, seconds: float) -> None:
        self.job.system.clock.advance(seconds)


def _window(chance: random.Random) -> Callable[[flow.Stream], flow.Stream]:
    size, lateness = f"{chance.choice((50, 300, 1_000))}ms", f"{chance.choice((0, 0, 100))}ms"
    by = chance.choice(([], ["key"], ["name"], ["key", "name"]))
    exact = chance.random() < 0.3
    ordered = chance.random() < 0.4

    def windowed(rows: flow.Stream) -> flow.Stream:
        more = {"half": col.value.quantile(0.5, exact=True)} if exact else {"total": col.value.sum()}
        if ordered:
            more |= {"first": col.value.first(), "best": col.key.max_by(col.value)}
        return rows.window(flow.tumbling(size), by=by, lateness=lateness).agg(
            count().alias("n"), col.value.min().alias("least"), *(one.alias(name) for name, one in more.items())
        )

    return windowed


def _tables(chance: random.Random) -> dict[str, pa.RecordBatch]:
    """The partitions of one source."""
    return {f"p{number}": _rows(chance, chance.randint(0, ROWS_MAX)) for number in range(chance.choice((1, 1, 2, 3)))}


def _parquet(tables: Mapping[str, pa.RecordBatch], group_rows: int) -> bytes:
    content = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches(tables.values(), SCHEMA), content, row_group_size=group_rows)
    return bytes(content.getvalue())


def _rows(chance: random.Random, rows: int) -> pa.RecordBatch:
    step_us, jitter_us = chance.choice((1_000, 20_000)), chance.choice((0, 30_000, 300_000))
    times = [None if chance.random() < 0.01 else n * step_us + chance.randint(0, jitter_us) for n in range(rows)]
    keys = [chance.choice((None, 0, 1, 2, 7, 2**40)) for _ in range(rows)]
    arrays = [
        pa.array(times, pa.timestamp("us")),
        pa.array(keys, pa.int64()),
        pa.array([chance.choice(("a", "b", None)) for _ in range(rows)], pa.string()),
        pa.array([round(chance.uniform(-100, 100), 2) for _ in range(rows)], pa.float64()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


class _Source:
    """Partitions that are read in batches of a size, and break off after so many reads."""

    schema, bounded = SCHEMA, True

    def __init__(self, name: str, tables: Mapping[str, pa.RecordBatch], job: Job) -> None:
        self.name, self.tables, self.job = name, tables, job
        self.blocking = job.blocks

    def partitions(self) -> Sequence[str]:
        return list(self.tables)

    def open(self, partition: str, position: object | None) -> _Reader:
        return _Reader(self, self.tables[partition], position if isinstance(position, int) else 0)


class _Reader:
    def __init__(self, source: _Source, rows: pa.RecordBatch, at: int) -> None:
        self.job, self.rows, self.at = source.job, rows, at

    def read(self, rows_max: int) -> pa.RecordBatch | flow.EndOfInput:
        if self.at >= self.rows.num_rows:
            return flow.EndOfInput()
        if self.job.reads_left is not None:
            self.job.reads_left -= 1
            if self.job.reads_left < 0:
                raise BrokenOffError("the network is gone")
        found = self.rows.slice(self.at, min(self.job.batch_rows, rows_max))
        self.at += found.num_rows
        return found

    def position(self) -> object:
        return self.at


@contextmanager
def silent() -> Iterator[None]:
    """Runs tell of late rows and restarts; here nobody reads it. What fails behind a kill is no news either."""
    usual, hook = sys.stderr, sys.unraisablehook
    sys.stderr, sys.unraisablehook = StringIO(), lambda _: None
    try:
        with suppress(KilledError):
            yield
    finally:
        sys.stderr, sys.unraisablehook = usual, hook

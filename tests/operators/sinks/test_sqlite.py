"""SQLite as users see it: types, keys, tables that are there already, and databases that say no."""

from __future__ import annotations

import datetime as dt
import gc
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa
import pytest

import dataflow as flow
from dataflow.errors import ConnectorError, DataflowError, ProgramError
from dataflow.operators.sinks import sqlite
from dataflow.system import SimulatedSystem
from dataflow.torture.seam import FaultySystem, closing_quietly
from dataflow.torture.simulation import Fault, silent

ROOT = Path(__file__).parents[3]
TABLE = pa.table({"id": [1, 2, 1], "word": ["a", None, "c"]})


def write(path: Path, table: pa.Table = TABLE, store: Path | None = None, name: str = "t", **options: Any) -> Any:
    sink = flow.from_arrow(table, name="rows").write_sqlite(path, name, name="out", **options)
    return flow.Pipeline("p", sink).run(store=store, workers=1)


def ask(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        found = database.execute(sql).fetchall()
        database.commit()
        return found


STORES = pytest.mark.parametrize("store", [True, False], ids=["store", "no store"])


@STORES
def test_rows_are_appended_without_a_key_and_replaced_with_one(tmp_path: Path, store: bool) -> None:
    for number in range(2):
        write(tmp_path / "all.db", store=tmp_path / f"a{number}" if store else None)
        write(tmp_path / "last.db", store=tmp_path / f"b{number}" if store else None, key="id")
    assert ask(tmp_path / "all.db", "SELECT * FROM t") == [(1, "a"), (2, None), (1, "c")] * 2
    assert ask(tmp_path / "last.db", "SELECT * FROM t") == [(1, "c"), (2, None)]
    tables = [name for (name,) in ask(tmp_path / "all.db", "SELECT name FROM sqlite_schema WHERE type = 'table'")]
    assert tables == (["t", "_dataflow_epochs"] if store else ["t"])


def test_every_type_has_its_form(tmp_path: Path) -> None:
    table = pa.table(
        {
            "b": [True, None],
            "i": pa.array([-5, 2**31], pa.int64()),
            "u": pa.array([2**32 - 1, None], pa.uint32()),
            "f": [0.5, float("nan")],
            "h": pa.array([1.5, None], pa.float32()),
            "d": [Decimal("1.50"), None],
            "s": ['say "hi"', ""],
            "x": [b"\x00\xff", None],
            "at": pa.array([dt.datetime(2024, 5, 1, 12), None], pa.timestamp("ms", "Asia/Tokyo")),
            "day": [dt.date(2024, 5, 1), None],
            "took": pa.array([dt.timedelta(seconds=90), None], pa.duration("s")),
            "nothing": pa.nulls(2),
        }
    )
    write(tmp_path / "t.db", table)
    first, second = ask(tmp_path / "t.db", "SELECT * FROM t")
    at, day = "2024-05-01T12:00:00.000Z", "2024-05-01"
    assert first == (1, -5, 2**32 - 1, 0.5, 1.5, "1.50", 'say "hi"', b"\x00\xff", at, day, "PT90S", None)
    assert second == (None, 2**31, None, None, None, None, "", None, None, None, None, None)
    assert ask(tmp_path / "t.db", "SELECT date(at, '+1 day') FROM t LIMIT 1") == [("2024-05-02",)]


def test_a_run_that_fails_writes_nothing_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflow.operators.sinks.output.SPOOL_BYTES_MAX", 1000)
    monkeypatch.setattr("dataflow.operators.sinks.staged.STAGED_BYTES_MAX", 100)

    def some(fails: bool) -> Iterator[dict[str, int]]:
        yield from ({"n": number} for number in range(50_000))
        if fails:
            raise OSError("the line is cut")

    with pytest.raises(DataflowError, match="the line is cut"):
        flow.from_rows(some(True), {"n": "int"}).write_sqlite(tmp_path / "t.db", "t").run(checkpoint_interval="5ms")
    assert list(tmp_path.iterdir()) == []
    flow.from_rows(some(False), {"n": "int"}).write_sqlite(tmp_path / "t.db", "t").run(checkpoint_interval="5ms")
    assert ask(tmp_path / "t.db", "SELECT count(*), count(DISTINCT n) FROM t") == [(50_000, 50_000)]
    assert [one.name for one in tmp_path.iterdir()] == ["t.db"]


def test_a_table_that_is_there_is_used_if_it_fits(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    ask(path, "CREATE TABLE t (ID INTEGER PRIMARY KEY, word VARCHAR(10), seen DATETIME DEFAULT CURRENT_TIMESTAMP)")
    write(path, key="id")
    assert ask(path, "SELECT id, word, seen IS NULL FROM t") == [(1, "c", 0), (2, None, 0)]


@STORES
@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("CREATE TABLE t (id INTEGER PRIMARY KEY)", "has no column `word`"),
        ("CREATE TABLE t (id TEXT PRIMARY KEY, word TEXT)", "has `id` as TEXT"),
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, word INT)", "has `word` as INT"),
        ("CREATE TABLE t (id INTEGER, word TEXT)", "has no primary key or unique index"),
        ("CREATE TABLE t (id INTEGER, word TEXT, PRIMARY KEY (id, word))", "has no primary key or unique index"),
        ("CREATE TABLE t (id INTEGER, word TEXT); CREATE UNIQUE INDEX i ON t (id) WHERE id > 0", "has no primary key"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, made: str, message: str, store: bool
) -> None:
    with closing(sqlite3.connect(tmp_path / "t.db")) as database:
        database.executescript(made)
    with pytest.raises(ConnectorError, match=message) as caught:
        write(tmp_path / "t.db", key="id", store=tmp_path / "store" if store else None)
    assert caught.value.origin is not None and caught.value.help
    assert ask(tmp_path / "t.db", "SELECT * FROM t") == []


@STORES
def test_a_database_that_says_no_is_told(tmp_path: Path, store: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 50)
    path, stores = tmp_path / "t.db", tmp_path / "store" if store else None
    ask(path, "CREATE TABLE t (id INTEGER CHECK (id < 2), word TEXT)")
    with closing(apsw.Connection(str(path))) as other:  # the locks of two SQLites in one process do not meet
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConnectorError, match="is locked by another program"):
            write(path, store=stores)
        other.execute("ROLLBACK")
    if store:
        with pytest.raises(ConnectorError, match="refused a row"):
            write(path, store=stores)
        ask(path, "DROP TABLE t")
        write(path, store=stores)
        assert ask(path, "SELECT * FROM t") == [(1, "a"), (2, None), (1, "c")]


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but long enough to look at")
    (tmp_path / "dir.db").mkdir()
    for name, message in (
        ("text.db", "is not an SQLite database"),
        ("dir.db", "is a directory"),
        ("missing/t.db", "there is no directory"),
    ):
        with pytest.raises(ConnectorError, match=message):
            write(tmp_path / name)


def test_a_database_that_is_moved_away_is_not_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.db"

    def some() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        path.rename(tmp_path / "moved.db")
        yield {"n": 2}

    ask(path, "CREATE TABLE t (n INTEGER)")
    with pytest.raises(ConnectorError, match="was moved away"):
        flow.from_rows(some(), {"n": "int"}).write_sqlite(path, "t").run()
    assert not path.exists()


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"a": "list[int]"}, {}, "SQLite has no nested values"),
        ({"a": "uint64"}, {}, "beyond 64 bits"),
        ({"a": "int", "A": "int"}, {}, "duplicate column"),
        ({"a": "float"}, {"key": "a"}, "NaN has no place"),
        ({"a": "int"}, {"key": "b"}, "there is no column `b`"),
        ({"a": "int"}, {"key": ("a", "a")}, "names a column twice"),
        ({"a": "int"}, {"table": "sqlite_t"}, "reserved"),
        ({"a": "int"}, {"table": "_dataflow_epochs"}, "dataflow's own"),
        (
            {f"c{number}": "int" for number in range(3000)},
            {},
            r"too many columns(.|\n)*2000 columns at most: `\.select`",
        ),
        ({"a": "int"}, {"path": ":memory:"}, "is not a file"),
        ({"a": "int"}, {"table": ""}, "'' is not the name of a table"),
    ],
)
def test_wrong_wishes_fail_when_the_pipeline_is_built(
    fields: dict[str, str], options: dict[str, Any], message: str
) -> None:
    path, table = options.pop("path", "t.db"), options.pop("table", "t")
    with pytest.raises(ProgramError, match=message) as caught:
        flow.from_rows([], fields).write_sqlite(path, table, **options)
    assert caught.value.origin is not None


@STORES
def test_a_row_without_its_key_fails_the_run_before_it_is_committed(tmp_path: Path, store: bool) -> None:
    table = pa.table({"id": [1, None], "word": ["a", "b"]})
    with pytest.raises(ConnectorError, match="a row has no `id`"):
        write(tmp_path / "t.db", table, key="id", store=tmp_path / "store" if store else None)
    assert not (tmp_path / "t.db").exists()


def test_awkward_names_of_tables_and_columns(tmp_path: Path) -> None:
    table = pa.table({'a"; DROP TABLE x; --': [1], "select": [2], "é ": [3]})
    write(tmp_path / "t.db", table, name='my "table"; é', key="select")
    assert ask(tmp_path / "t.db", 'SELECT * FROM "my ""table""; é"') == [(1, 2, 3)]


def test_a_table_without_rows_is_made_too(tmp_path: Path) -> None:
    write(tmp_path / "t.db", TABLE.slice(0, 0))
    assert ask(tmp_path / "t.db", "SELECT * FROM t") == []


# ── two tables of one database ──


class Numbers:
    """Rows in order, from any one on."""

    schema, name = pa.schema({"n": pa.int64()}), "numbers"

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def partitions(self) -> list[str]:
        return ["0"]

    def open(self, partition: str, position: object | None) -> Reader:
        return Reader(self.rows, position if isinstance(position, int) else 0)


class Reader:
    def __init__(self, rows: int, at: int) -> None:
        self.rows, self.at = rows, at

    def read(self, rows_max: int) -> pa.RecordBatch | flow.EndOfInput:
        if self.at >= self.rows:
            return flow.EndOfInput()
        first, self.at = self.at, min(self.at + 7, self.rows)
        return pa.record_batch({"n": pa.array(range(first, self.at), pa.int64())})

    def position(self) -> object:
        return self.at


def two_tables(path: str | Path, rows: int) -> flow.Pipeline:
    """All numbers into one table, and how many of each remainder there are, as they come, into the other."""
    numbers = flow.read(Numbers(rows))
    even = numbers.filter(flow.col.n % 2 == 0).derive(half=flow.col.n / 2)
    return flow.Pipeline("p", numbers.write_sqlite(path, "every"), even.write_sqlite(path, "even", key="n"))


def check_two_tables(path: Path, rows: int) -> None:
    assert ask(path, "SELECT n FROM every ORDER BY rowid") == [(n,) for n in range(rows)]
    assert ask(path, "SELECT n, half FROM even ORDER BY n") == [(n, n / 2) for n in range(0, rows, 2)]


@STORES
@pytest.mark.parametrize("workers", [1, 2])
def test_two_tables_of_one_database_take_turns(
    tmp_path: Path, store: bool, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataflow.operators.sinks.output.SPOOL_BYTES_MAX", 1000)
    monkeypatch.setattr("dataflow.operators.sinks.staged.STAGED_BYTES_MAX", 100)
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 0)
    threads: set[int] = set()
    transaction = sqlite.SqliteSink._transaction

    def told(self: sqlite.SqliteSink) -> Any:
        threads.add(threading.get_ident())
        return transaction(self)

    monkeypatch.setattr(sqlite.SqliteSink, "_transaction", told)
    pipeline = two_tables(tmp_path / "t.db", 5_000)
    assert pipeline.explain().count("1 task, own thread for t.db\n") == 2
    pipeline.run(store=tmp_path / "store" if store else None, workers=workers, checkpoint_interval="5ms")
    check_two_tables(tmp_path / "t.db", 5_000)
    assert len(threads) == 1
    assert sorted(one.name for one in tmp_path.iterdir() if one.name != "store") == ["t.db"]


KILLED = """
import os, signal, sys
from dataflow.operators.sinks.sqlite import SqliteSink
from tests.operators.sinks.test_sqlite import two_tables
path, store, rows, workers, kill_at = sys.argv[1:]
left, usual = int(kill_at), SqliteSink._insert
def insert_and_die(self, connection, batches):
    global left
    usual(self, connection, batches)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
SqliteSink._insert = insert_and_die
two_tables(path, int(rows)).run(store=store, workers=int(workers), checkpoint_interval="3ms")
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_two_tables_have_each_row_once_though_runs_are_killed_inside_of_transactions(
    tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "t.db"
    codes: list[int] = []
    while not codes or codes[-1] == -signal.SIGKILL:
        kill_at = len(codes) + 1 if len(codes) < 6 else 0
        arguments = [str(path), str(tmp_path / "store"), "3000", str(workers), str(kill_at)]
        run = subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=100, check=False, cwd=ROOT)
        codes.append(run.returncode)
    assert codes[-1] == 0
    assert len(codes) > 3, "some were killed"
    check_two_tables(path, 3000)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # SQLite closes what is dead
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_two_tables_have_each_row_once_wherever_a_simulated_run_dies(workers: int, power: bool) -> None:
    expected = [(n,) for n in range(60)], [(n, n / 2) for n in range(0, 60, 2)]
    dies_at, deaths = 1, 0
    while True:
        system, fault = SimulatedSystem(seed=dies_at), Fault("kill", dies_at)
        system.disk.make_dirs("/home")
        with closing_quietly(), silent():
            two_tables("/home/t.db", 60).run(
                store="/home/store", system=FaultySystem(system, fault), workers=workers, checkpoint_interval="1ms"
            )
        if not fault.has_fired:
            break
        deaths += 1
        if power:
            system.disk.lose_power()
        system.disk.kill_processes()
        system.scheduler.forget_threads()
        two_tables("/home/t.db", 60).run(store="/home/store", system=system, workers=workers)
        with closing(apsw.Connection("/home/t.db", vfs=system.disk.vfs_name())) as database:
            every, even = (list(database.execute(f"SELECT * FROM {name} ORDER BY n")) for name in ("every", "even"))
        assert (every, even) == expected, dies_at
        dies_at += 3
    assert deaths > 20
    gc.collect()  # what the dead have left open is closed here, not in another test

"""Files as users see them: what is there when, what is refused, what readers of other tools find."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dataflow as flow
from dataflow import col
from dataflow.errors import ConnectorError, DataflowError, PlanError, ProgramError, RunError, TypeMismatchError
from dataflow.operators.base import SinkContext
from dataflow.operators.sinks import parts
from dataflow.operators.sinks.files import FORMATS, FileSink, FileTarget, Roll
from dataflow.operators.sinks.parts import PartNames
from dataflow.state.frames import FrameFiles, Staging
from dataflow.system import RealSystem, SimulatedSystem
from dataflow.torture.seam import QuickSystem
from tests.operators.sinks.driving import HOME, SCHEMA, Pipeline, rows

TABLE = pa.table({"n": [1, 2, 3], "word": ["a", None, "b, c"]})
WRITERS = ["write_csv", "write_jsonl", "write_parquet", "write_arrow"]


def write(verb: str, path: object, table: pa.Table = TABLE, store: Path | None = None, **options: Any) -> Any:
    sink = getattr(flow.from_arrow(table, name="t"), verb)(path, name="out", **options)
    return flow.Pipeline("p", sink).run(store=store, workers=1)


def visible(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.rglob("*") if one.is_file() and one.name[0] != ".")


def sql(query: str) -> list[Any]:
    found = duckdb.sql(query)
    assert found is not None
    return found.fetchall()


def hidden(path: Path) -> list[str]:
    return sorted(one.name for one in path.rglob(".*"))


# ── what other tools read ──


@pytest.mark.parametrize("suffix", list(FORMATS))
def test_duckdb_and_polars_read_what_was_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    write(f"write_{suffix}", path)
    if suffix != "arrow":  # DuckDB reads it with an extension
        reader = {"csv": "read_csv", "jsonl": "read_json", "parquet": "read_parquet"}[suffix]
        found = sql(f"SELECT * FROM {reader}('{path}')")
        assert found == [(1, "a"), (2, None), (3, "b, c")]
    polars: Any = {"csv": pl.read_csv, "jsonl": pl.read_ndjson, "parquet": pl.read_parquet, "arrow": pl.read_ipc}
    assert polars[suffix](path).to_dict(as_series=False) == TABLE.to_pydict()


TIMES = pa.table(
    {
        "at": pa.array([dt.datetime(2024, 5, 1, 12, 30)], pa.timestamp("us", "Europe/Berlin")),
        "local": pa.array([dt.datetime(2024, 5, 1, 12, 30, 1, 5)], pa.timestamp("us")),
        "day": [dt.date(2024, 5, 1)],
        "took": pa.array([dt.timedelta(seconds=-1, milliseconds=500)], pa.duration("ms")),
        "x": [float("nan")],
        "y": [float("inf")],
    }
)


def test_times_are_iso_8601_in_text(tmp_path: Path) -> None:
    write("write_csv", tmp_path / "t.csv", TIMES)
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines == [
        "at,local,day,took,x,y",
        "2024-05-01T12:30:00.000000Z,2024-05-01T12:30:01.000005,2024-05-01,-PT0.500S,nan,inf",
    ]
    write("write_jsonl", tmp_path / "t.jsonl", TIMES)
    assert (tmp_path / "t.jsonl").read_text() == (
        '{"at":"2024-05-01T12:30:00.000000Z","local":"2024-05-01T12:30:01.000005","day":"2024-05-01",'
        '"took":"-PT0.500S","x":null,"y":null}\n'
    )


def test_csv_comes_back_as_it_was(tmp_path: Path) -> None:
    awkward = pa.table({"s": ['"', "", None, "a\nb", "x,y", " é "], "n": [1, None, -3, 0, 2**62, 5]})
    write("write_csv", tmp_path / "t.csv", awkward)
    back = pa.csv.read_csv(
        tmp_path / "t.csv",
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False),
    )
    assert back.to_pydict() == awkward.to_pydict()


WORDS = st.none() | st.text(alphabet=st.sampled_from('a",\n\r é'), max_size=3)
"""None of them is inferred to be a number or a time."""
WORDS_SCHEMA = pa.schema({"a": pa.string(), "b": pa.string(), "n": pa.int64()})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(WORDS, WORDS, st.none() | st.integers(0, 9)), min_size=1, max_size=6),
    is_given=st.booleans(),
)
def test_texts_come_back_with_their_nulls_and_empty_ones(
    tmp_path: Path, rows: list[tuple[str | None, str | None, int | None]], is_given: bool
) -> None:
    table = pa.table(dict(zip("abn", map(list, zip(*rows, strict=True)), strict=True)), WORDS_SCHEMA)
    for path, names in ((tmp_path / "3.csv", ["a", "b", "n"]), (tmp_path / "2.csv", ["b", "a"])):
        part = table.select(names)
        path.unlink(missing_ok=True)
        write("write_csv", path, part)
        found = flow.read_csv(path, schema=part.schema if is_given else None).collect(workers=1)
        assert found.to_pydict() == part.to_pydict()


@pytest.mark.parametrize("column", [pa.array([None, 1, None]), pa.array(["", "x", ""]), pa.array([""])])
def test_a_row_of_one_empty_value_is_a_line(tmp_path: Path, column: pa.Array) -> None:
    write("write_csv", tmp_path / "t.csv", pa.table({"a": column}))
    assert sql(f"SELECT count(*) FROM read_csv('{tmp_path}/t.csv', header=true)") == [(len(column),)]
    assert flow.read_csv(tmp_path / "t.csv").collect()["a"].to_pylist() == column.to_pylist()


def test_a_null_that_would_be_read_as_an_empty_text_is_refused(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", None], "k": [1, 1]})
    for path, columns, by in ((tmp_path / "t.csv", ["a"], ()), (f"{tmp_path}/t/", ["a", "k"], "k")):
        with pytest.raises(ConnectorError, match="column `a` is the only one and has a null") as caught:
            write("write_csv", path, table.select(columns), partition_by=by)
        assert caught.value.code == "DF0502" and "write_jsonl" in (caught.value.help or "")
    assert visible(tmp_path) == []


def test_partitions_are_found_by_other_tools(tmp_path: Path) -> None:
    table = pa.table({"n": [1, 2, 3, 4], "k": ["a/b", None, "../x y", "é"], "day": [dt.date(2024, 5, 1)] * 4})
    write("write_parquet", f"{tmp_path}/out/", table, partition_by=["k", "day"])
    found = sql(f"SELECT n, k, day FROM read_parquet('{tmp_path}/out/**/*.parquet') ORDER BY n")
    assert found == [(n, k, dt.date(2024, 5, 1)) for n, k in zip([1, 2, 3, 4], table["k"].to_pylist(), strict=True)]
    frame = pl.read_parquet(f"{tmp_path}/out/**/*.parquet", hive_partitioning=True).sort("n")
    assert frame["k"].to_list() == table["k"].to_pylist()
    dictionary = pq.read_table(tmp_path / "out", partitioning="hive")["k"]
    assert sorted(dictionary.to_pylist(), key=str) == sorted(table["k"].to_pylist(), key=str)
    assert {path.parent.parent.parent for path in (tmp_path / "out").rglob("*.parquet")} == {tmp_path / "out"}


def test_a_value_that_looks_like_null_stays_a_text() -> None:
    assert parts.directory_name("k", parts.NULL_DIRECTORY) != parts.directory_name("k", None)
    names = {parts.directory_name("k", value) for value in ("A", "a", "%41", "..", ".", "", "a=b", "a/b")}
    assert len(names) == 8
    assert not any("/" in name for name in names)


# ── what is there when ──


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("verb", WRITERS)
def test_a_directory_has_one_part_of_a_short_run(tmp_path: Path, verb: str, store: bool) -> None:
    out = tmp_path / "out"
    write(verb, out, store=tmp_path / "store" if store else None)
    assert len(visible(out)) == 1
    assert hidden(out) == []


def test_a_run_that_fails_shows_nothing_without_a_store(tmp_path: Path) -> None:
    def some() -> Iterator[dict[str, int]]:
        yield from ({"n": number} for number in range(100_000))
        raise OSError("the line is cut")

    for path in (tmp_path / "out.csv", tmp_path / "out"):
        sink = flow.from_rows(some(), {"n": "int"}).write_csv(path, roll="10KB" if path.suffix == "" else None)
        with pytest.raises(DataflowError, match="the line is cut"):
            sink.run(checkpoint_interval="10ms")
        assert visible(tmp_path) == []
        assert hidden(tmp_path) == []


def test_a_killed_run_goes_on_and_its_file_has_every_row_once(tmp_path: Path) -> None:
    program = f"""
import os, dataflow as flow
class Numbers:
    schema = flow.from_rows([{{"n": 1}}], {{"n": "int"}}).schema
    name = "numbers"
    def partitions(self): return ["0"]
    def open(self, partition, position): return Reader(position or 0)
class Reader:
    def __init__(self, at): self.at, self.begin = at, at
    def read(self, rows_max):
        import pyarrow as pa
        if self.at >= 300: return flow.EndOfInput()
        if self.at >= self.begin + 120 and self.begin < 200: os._exit(9)
        self.at += 1
        return pa.record_batch({{"n": [self.at - 1]}})
    def position(self): return self.at
flow.Pipeline("p", flow.read(Numbers()).write_csv({str(tmp_path / "out.csv")!r}, name="a"),
    flow.read(Numbers(), name="again").write_jsonl({str(tmp_path / "out")!r}, roll="200B", name="b"),
    flow.read(Numbers(), name="more").write_sqlite({str(tmp_path / "out.db")!r}, "t", name="c"),
).run(store={str(tmp_path / "store")!r}, checkpoint_interval="2ms", workers=1)
"""
    codes = []
    for _ in range(60):
        codes.append(subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode)
        if codes[-1] != 9:
            break
    assert codes[-1] == 0 and len(codes) > 1, codes
    expected = list(range(300))
    assert pa.csv.read_csv(tmp_path / "out.csv")["n"].to_pylist() == expected
    found = sql(f"SELECT n FROM read_json('{tmp_path}/out/*.jsonl') ORDER BY n")
    assert [n for (n,) in found] == expected
    import sqlite3

    with sqlite3.connect(tmp_path / "out.db") as database:
        assert [n for (n,) in database.execute("SELECT n FROM t ORDER BY rowid")] == expected
    database.close()


def test_many_short_epochs_make_few_files() -> None:
    target = FileTarget(path=f"{HOME}/out/", format=FORMATS["csv"], schema=SCHEMA, bounded=False)
    epochs = [[rows(number)] for number in range(150)]
    pipeline = Pipeline(lambda context: FileSink(target, context), epochs, bounded=False, seconds_between=9.0)
    pipeline.life()
    names = [name for name in pipeline.system.disk.list_dir(f"{HOME}/out") if name.endswith(".csv")]
    assert len(names) == 1  # 150 × 9 s are one and a half times 15 minutes; the rows of the half wait
    pipeline.seconds_between = 1000.0
    pipeline.epochs = [*epochs, [rows(150)]]
    pipeline.life()
    names = [name for name in pipeline.system.disk.list_dir(f"{HOME}/out") if name.endswith(".csv")]
    lines = [line for name in names for line in pipeline.system.disk.read_bytes(f"{HOME}/out/{name}").splitlines()]
    assert len(names) == 2
    assert sorted(int(line.split(b",")[0]) for line in lines if line != b"n,word") == list(range(151))


def without_store(bounded: bool, **options: Any) -> tuple[SimulatedSystem, FileSink]:
    system = SimulatedSystem(seed=1)
    system.disk.make_dirs(HOME)
    target = FileTarget(path=f"{HOME}/out/", format=FORMATS["csv"], schema=SCHEMA, bounded=bounded, **options)
    return system, FileSink(target, SinkContext(SCHEMA, system, None, "p", "s", "r1", bounded))


def parts_of(system: SimulatedSystem) -> list[str]:
    return [name for name in system.disk.list_dir(f"{HOME}/out") if not name.startswith(".")]


def epoch(sink: FileSink, number: int, *batches: pa.RecordBatch) -> None:
    sink.open(number)
    for batch in batches:
        sink.write(batch)
    sink.commit(sink.prepare(number))


def test_endless_input_without_a_store_shows_parts_as_they_roll_and_the_rest_when_it_is_stopped() -> None:
    system, sink = without_store(bounded=False, roll=Roll(seconds=10.0))
    epoch(sink, 1, rows(1))
    assert parts_of(system) == []
    system.clock.advance(11.0)
    epoch(sink, 2, rows(2))
    assert len(parts_of(system)) == 1
    epoch(sink, 3, rows(3))
    sink.close()
    assert len(parts_of(system)) == 2
    assert len(system.disk.list_dir(f"{HOME}/out")) == 2


def test_bounded_input_without_a_store_that_was_stopped_shows_nothing() -> None:
    system, sink = without_store(bounded=True, roll=Roll(bytes=1))
    epoch(sink, 1, rows(1))
    sink.close()
    assert system.disk.list_dir(f"{HOME}/out") == []


def test_parts_of_a_size() -> None:
    system, sink = without_store(bounded=True, roll=Roll(bytes=100))
    for number in range(10):
        sink.write(rows(*range(number * 20, number * 20 + 20)))
    sink.end()
    sink.commit(sink.prepare(1))
    sizes = [system.disk.size(f"{HOME}/out/{name}") for name in parts_of(system)]
    assert len(sizes) == 10
    assert all(100 <= size < 300 for size in sizes)


def test_recovery_removes_the_hidden_files_of_its_own_sink_and_store_only() -> None:
    target = FileTarget(path=f"{HOME}/out/", format=FORMATS["csv"], schema=SCHEMA, bounded=True, mode="append")
    pipeline = Pipeline(lambda context: FileSink(target, context), [[rows(1)]])
    disk = pipeline.system.disk
    disk.make_dirs(f"{HOME}/out")
    own = PartNames.of("my pipe", "sink", "store", "earlier", "csv", None)
    foreign = [
        PartNames.of("my pipe", "other", "store", "earlier", "csv", None).hidden(1),
        PartNames.of("my", "sink", "store", "earlier", "csv", None).hidden(1),
        PartNames.of("my pipe", "sink", "elsewhere", "earlier", "csv", None).hidden(1),
        ".mine.csv.inprogress",
    ]
    for name in (own.hidden(1), own.hidden(12), *foreign):
        disk.write_bytes(f"{HOME}/out/{name}", b"")
    pipeline.life()
    assert [name for name in disk.list_dir(f"{HOME}/out") if name.startswith(".")] == sorted(foreign)


def test_names_of_hidden_files_fit_into_255_bytes() -> None:
    run = f"{1:012}-{1:012x}"
    for text in ("x" * 200, "Ü" * 100):
        names = PartNames.of(text, "sink", "store", run, "parquet", f"{text}.parquet")
        assert len(names.hidden(99_999).encode()) <= 255
        assert len(PartNames.of(text, "sink", "store", run, "parquet", None).visible(99_999)) <= 255


# ── runs of several stores ──


def sink_of(system: SimulatedSystem, home: str, mode: str) -> FileSink:
    """Of one run of the same pipeline, each in a store of its own."""
    disk = system.disk
    if not disk.exists(HOME):
        disk.make_dirs(HOME)
    target = FileTarget(path=f"{HOME}/out/", format=FORMATS["csv"], schema=SCHEMA, bounded=True, mode=mode)
    kept = Staging(FrameFiles(system, HOME, f"{HOME}/{home}", 1), "s", SCHEMA)
    sink = FileSink(target, SinkContext(SCHEMA, system, None, "p", "s", f"run-{home}", staging=kept, home=home))
    sink.recover(None)
    return sink


def prepared(sink: FileSink, batch: pa.RecordBatch) -> dict[str, object]:
    sink.open(1)
    sink.write(batch)
    sink.end()
    return sink.prepare(1)


def test_runs_of_two_stores_append_to_one_directory_at_a_time() -> None:
    system = SimulatedSystem(seed=1)
    one = sink_of(system, "one", "append")
    handle = prepared(one, rows(1))
    other = sink_of(system, "two", "append")
    other.commit(prepared(other, rows(2)))
    one.commit(handle)
    assert len(parts_of(system)) == len(system.disk.list_dir(f"{HOME}/out")) == 2


def test_of_two_runs_at_a_time_that_allow_nothing_to_be_there_the_later_one_is_refused() -> None:
    system = SimulatedSystem(seed=1)
    one, other = sink_of(system, "one", "error"), sink_of(system, "two", "error")
    handle = prepared(other, rows(2))
    other.commit(handle)
    with pytest.raises(ConnectorError, match=r"DF0511.*of another store.*nothing was changed"):
        prepared(one, rows(1))
    other.commit(handle)
    assert len(parts_of(system)) == len(system.disk.list_dir(f"{HOME}/out")) == 1


@pytest.mark.parametrize("store", [True, False])
def test_rows_that_waited_while_a_run_of_another_store_wrote_are_not_put_beside_its_own(
    tmp_path: Path, store: bool
) -> None:
    def run(store: str | None, *, fails: bool = False) -> None:
        def notify(batch: pa.RecordBatch, epoch: int) -> None:
            if fails:
                raise OSError("cut off")

        rows = flow.from_arrow(pa.table({"n": range(500_000)}), name="t")
        sinks = rows.write_csv(tmp_path / "out/"), rows.write_callback(notify, name="n")
        flow.Pipeline("p", *sinks).run(store=store and tmp_path / store, checkpoint_interval="1ms")

    with pytest.raises(RunError, match="cut off"):
        run("one", fails=True)
    assert visible(tmp_path / "out") == []
    run("two" if store else None)
    [theirs] = visible(tmp_path / "out")
    with pytest.raises(ConnectorError, match="DF0511") as caught:
        run("one")
    assert theirs in str(caught.value)
    assert visible(tmp_path / "out") == [theirs]
    (tmp_path / "out" / theirs).rename(tmp_path / "theirs.csv")
    run("one")
    assert len(visible(tmp_path / "out")) == 1
    run("one")


@pytest.mark.parametrize("roll", [None, "1h"])
def test_what_a_run_up_to_the_head_has_read_is_in_files_when_it_ends(tmp_path: Path, roll: str | None) -> None:
    source = tmp_path / "in.csv"
    source.write_text("n\n")
    for number in range(3):
        with source.open("a") as file:
            file.write(f"{number}\n")
        rows = flow.read_csv(source, schema={"n": "int"}).write_csv(tmp_path / "out/", roll=roll)
        flow.Pipeline("p", rows).run(store=tmp_path / "store", until="head")
        assert len(visible(tmp_path / "out")) == number + 1
    assert sorted(flow.read_csv(f"{tmp_path}/out/*").collect()["n"].to_pylist()) == [0, 1, 2]


# ── modes ──


@pytest.mark.parametrize("store", [True, False])
def test_what_exists_is_refused_before_anything_is_read(tmp_path: Path, store: bool) -> None:
    (tmp_path / "out.csv").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.csv").write_text("mine")
    read = []

    def some() -> Iterator[dict[str, int]]:
        read.append(1)
        yield {"n": 1}

    for path in (tmp_path / "out.csv", tmp_path / "out"):
        sink = flow.from_rows(some(), {"n": "int"}).write_csv(path)
        with pytest.raises(ConnectorError, match="already") as caught:
            sink.run(store=tmp_path / "store" if store else None)
        assert caught.value.origin is not None
        assert not read
    assert visible(tmp_path / "out") == ["mine.csv"]


def test_a_pipeline_that_begins_again_writes_its_rows_behind_those_that_are_there(tmp_path: Path) -> None:
    sinks = flow.from_arrow(TABLE, name="t").write_csv(tmp_path / "out", name="o")
    pipeline = flow.Pipeline("p", sinks)
    pipeline.run(store=tmp_path / "store")
    pipeline.run(store=tmp_path / "store", restart=True)
    found = sql(f"SELECT n FROM read_csv('{tmp_path}/out/*.csv') ORDER BY n")
    assert [n for (n,) in found] == [1, 1, 2, 2, 3, 3]


def test_a_single_file_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    pipeline = flow.Pipeline("p", flow.from_arrow(TABLE, name="t").write_csv(tmp_path / "out.csv", name="o"))
    pipeline.run(store=tmp_path / "store")
    with pytest.raises(ConnectorError, match="has written before"):
        pipeline.run(store=tmp_path / "store", restart=True)
    assert (tmp_path / "out.csv").read_text() == 'n,word\n1,a\n2,\n3,"b, c"\n'


def test_a_second_pipeline_of_the_same_name_in_another_store_is_refused_too(tmp_path: Path) -> None:
    write("write_csv", tmp_path / "out", store=tmp_path / "one")
    with pytest.raises(ConnectorError, match="already"):
        write("write_csv", tmp_path / "out", store=tmp_path / "two")


@pytest.mark.parametrize("store", [True, False])
def test_append_adds_to_what_is_there(tmp_path: Path, store: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "foreign.csv").write_text("n,word\n")
    for number in range(2):
        write("write_csv", out, mode="append", store=tmp_path / f"store{number}" if store else None)
    assert len(visible(out)) == 3


@pytest.mark.parametrize("store", [True, False])
def test_replace_takes_the_place_of_the_old_file_at_the_end(tmp_path: Path, store: bool) -> None:
    for number, table in enumerate((TABLE, TABLE.slice(1))):
        stores = tmp_path / f"store{number}" if store else None
        write("write_csv", tmp_path / "out.csv", table, mode="replace", store=stores)
        write("write_csv", tmp_path / "out", table, mode="replace", store=tmp_path / f"more{number}" if store else None)
    assert (tmp_path / "out.csv").read_text() == 'n,word\n2,\n3,"b, c"\n'
    assert [(tmp_path / "out" / name).read_text() for name in visible(tmp_path / "out")] == ['n,word\n2,\n3,"b, c"\n']


def test_replace_leaves_what_others_wrote_and_refuses_to_mix_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write("write_csv", out, mode="replace")
    before = visible(out)
    (out / "foreign.csv").write_text("mine")
    with pytest.raises(ConnectorError, match="has not written"):
        write("write_csv", out, mode="replace")
    assert visible(out) == sorted([*before, "foreign.csv"])


def test_a_replacing_run_that_fails_leaves_the_old_files(tmp_path: Path) -> None:
    write("write_csv", tmp_path / "out.csv", mode="replace")

    def some() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise OSError("no more")

    with pytest.raises(DataflowError):
        flow.from_rows(some(), {"n": "int"}).write_csv(tmp_path / "out.csv", mode="replace").run()
    assert (tmp_path / "out.csv").read_text().startswith("n,word\n1,a\n")
    assert hidden(tmp_path) == []


def test_replace_partitions_replaces_those_that_the_run_writes_and_can_be_run_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    days = pa.table({"day": ["mon", "mon", "tue"], "n": [1, 2, 3]})
    options: dict[str, Any] = {"partition_by": "day", "mode": "replace_partitions"}
    write("write_parquet", f"{out}/", days, **options)
    for number in range(2):
        write(
            "write_parquet", f"{out}/", pa.table({"day": ["tue"], "n": [30]}), store=tmp_path / str(number), **options
        )
    assert pq.read_table(out).sort_by("n")["n"].to_pylist() == [1, 2, 30]
    (out / "day=tue" / "foreign.parquet").write_bytes(b"")
    with pytest.raises(ConnectorError, match="day=tue has a file that this pipeline has not written"):
        write("write_parquet", f"{out}/", days, **options)
    assert len(visible(out)) == 3
    assert hidden(out) == []


def by_day() -> tuple[SimulatedSystem, FileSink, Callable[[str], pa.RecordBatch]]:
    """A sink that replaces the directories of days, and what makes a row for one."""
    schema, system = pa.schema([("day", pa.string()), ("n", pa.int64())]), SimulatedSystem(seed=1)
    target = FileTarget(
        path=f"{HOME}/out/",
        format=FORMATS["csv"],
        schema=schema,
        bounded=True,
        mode="replace_partitions",
        partition_by=("day",),
    )
    system.disk.make_dirs(f"{HOME}/out/day=tue")
    sink = FileSink(target, SinkContext(schema, system, None, "p", "s", "r1", True))
    return system, sink, lambda day: pa.record_batch({"day": [day], "n": [1]}, schema=schema)


def test_a_foreign_file_in_a_partition_is_refused_with_the_first_row_for_it() -> None:
    system, sink, row = by_day()
    system.disk.write_bytes(f"{HOME}/out/day=tue/foreign.csv", b"mine")
    sink.write(row("mon"))
    with pytest.raises(ConnectorError, match=r"day=tue has a file .* not written \(day=tue/foreign.csv\)"):
        sink.write(row("tue"))
    sink.abort(None)
    assert system.disk.glob(f"{HOME}/out/**/*.csv*") == [f"{HOME}/out/day=tue/foreign.csv"]


def test_a_foreign_file_that_comes_while_the_run_goes_on_is_refused_before_the_commit() -> None:
    system, sink, row = by_day()
    sink.write(row("tue"))
    system.disk.write_bytes(f"{HOME}/out/day=tue/foreign.csv", b"mine")
    sink.end()
    with pytest.raises(ConnectorError, match="has not written"):
        sink.prepare(1)
    assert system.disk.glob(f"{HOME}/out/**/*.csv*") == [f"{HOME}/out/day=tue/foreign.csv"]


def test_a_file_that_came_meanwhile_is_not_touched() -> None:
    system, sink = without_store(bounded=True)
    target = FileTarget(path=f"{HOME}/one.csv", format=FORMATS["csv"], schema=SCHEMA, bounded=True)
    sink = FileSink(target, SinkContext(SCHEMA, system, None, "p", "s", "r1", True))
    sink.write(rows(1))
    sink.end()
    handle = sink.prepare(1)
    system.disk.write_bytes(target.path, b"mine")
    with pytest.raises(ConnectorError, match="came to be while the run wrote its own"):
        sink.commit(handle)
    assert system.disk.read_bytes(target.path) == b"mine"
    system.disk.rename(target.path, f"{HOME}/moved.csv")
    sink.commit(handle)
    assert system.disk.read_bytes(target.path) == b"n,word\n1,w1\n"


def test_a_committed_part_that_is_gone_is_told() -> None:
    system, sink = without_store(bounded=True)
    sink.write(rows(1))
    sink.end()
    handle = sink.prepare(1)
    sink.commit(handle)
    (name,) = parts_of(system)
    system.disk.rename(f"{HOME}/out/{name}", f"{HOME}/{name}")
    with pytest.raises(ConnectorError, match="was committed, but it is not there"):
        sink.commit(handle)


# ── what is refused ──


def stream(kind: Any = "int") -> flow.Stream:
    return flow.from_rows([], {"n": kind, "k": "string"})


class Endless:
    """A source that would never end."""

    schema = pa.schema({"n": pa.int64()})
    name, bounded = "endless", False

    def partitions(self) -> list[str]:
        return ["0"]

    def open(self, partition: str, position: object) -> Any:
        raise AssertionError("nothing is read")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "out.csv", "roll": "15m"}, "`roll` makes several"),
        ({"path": "out.csv", "partition_by": "n"}, "`partition_by` makes several"),
        ({"path": "out.csv", "mode": "append"}, "single file"),
        ({"path": "out.csv.gz"}, "does not compress"),
        ({"path": ""}, "is not a path"),
        ({"path": "out/", "mode": "overwrite"}, "there is no mode 'overwrite'"),
        ({"path": "out/", "mode": "replace_partitions"}, "needs partition_by"),
        ({"path": "out/", "partition_by": "m"}, "there is no column `m`"),
        ({"path": "out/", "partition_by": ("n", "k")}, "nothing to write"),
        ({"path": "out/", "partition_by": ("n", "n")}, "names a column twice"),
        ({"path": "out/", "roll": "15 parsecs"}, "neither a duration nor a size"),
        ({"path": "out/", "roll": "0MB"}, "neither a duration nor a size"),
        ({"path": "out/", "roll": "0s"}, "longer than 0s"),
        ({"path": "out/", "delivery": "twice"}, "there is no delivery 'twice'"),
    ],
)
def test_wrong_wishes_fail_when_the_pipeline_is_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProgramError, match=message) as caught:
        stream().write_csv(options.pop("path"), **options)
    assert caught.value.origin is not None and caught.value.origin.file == __file__


def test_endless_input_needs_a_directory_and_replaces_nothing() -> None:
    for path, options, message in (
        ("out.csv", {}, "appears when the input ends; this input is endless"),
        ("out/", {"mode": "replace"}, "this input is endless"),
    ):
        with pytest.raises(PlanError, match=message):
            flow.read(Endless()).write_csv(path, **options)


def test_sizes_and_durations_of_roll() -> None:
    assert [Roll.of(text).bytes for text in ("1B", "2KB", "3 MiB", "1.5gb")] == [1, 2_000, 3 << 20, 1_500_000_000]
    assert Roll.of("1h30m") == Roll.of(dt.timedelta(minutes=90)) == Roll(seconds=5400.0)


@pytest.mark.parametrize(
    ("verb", "kind", "fix"),
    [
        ("write_csv", "bytes", "write_parquet"),
        ("write_csv", "list[int]", "write_jsonl"),
        ("write_csv", "struct[a: int]", "write_jsonl"),
        ("write_jsonl", "bytes", "write_parquet"),
        ("write_jsonl", "list[struct[a: bytes]]", "write_parquet"),
        ("write_jsonl", "map[int, int]", "write_parquet"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_fix(verb: str, kind: str, fix: str) -> None:
    with pytest.raises(TypeMismatchError, match="column `n`") as caught:
        getattr(stream(kind), verb)("out/")
    assert fix in (caught.value.help or "")


def test_floats_make_no_directories() -> None:
    with pytest.raises(PlanError, match="makes no names"):
        stream("float").write_parquet("out/", partition_by="n")


def test_times_that_text_cannot_tell_fail_the_run(tmp_path: Path) -> None:
    far = pa.table({"t": pa.array([2**61], pa.timestamp("us"))})
    with pytest.raises(ConnectorError, match="years 1 to 9999"):
        write("write_csv", tmp_path / "t.csv", far)
    assert visible(tmp_path) == []
    write("write_parquet", tmp_path / "t.parquet", far)


def test_places_where_nothing_can_be_written_fail_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dir.csv").mkdir()
    for path, message in (
        (tmp_path / "dir.csv", "is a directory"),
        (f"{tmp_path}/file/", "is a file"),
        (tmp_path / "missing" / "out.csv", "there is no directory"),
        (tmp_path / f"{'x' * 300}", "too long"),
        (tmp_path / "file" / "deeper", "cannot be written|Not a directory|is a file"),
    ):
        with pytest.raises(ConnectorError, match=message):
            write("write_csv", path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ConnectorError, match="not permitted"):
        write("write_csv", tmp_path / "closed" / "out.csv")


class FullDisk:
    """A disk that takes so many bytes."""

    def __init__(self, room: int) -> None:
        self.disk = RealSystem().disk
        inner, self.room = self.disk.open_append, room

        def open_append(path: Any, **options: Any) -> Any:
            file = inner(path, **options)
            write = file.write

            def limited(data: Any) -> int:
                self.room -= memoryview(data).nbytes
                if self.room < 0:
                    raise OSError(28, "No space left on device")
                return write(data)

            file.write = limited  # type: ignore[method-assign]
            return file

        self.disk.open_append = open_append  # type: ignore[method-assign]


@pytest.mark.parametrize("suffix", list(FORMATS))
def test_a_full_disk_leaves_nothing_half_done(tmp_path: Path, suffix: str) -> None:
    table = pa.table({"n": range(50_000)})
    sink = getattr(flow.from_arrow(table), f"write_{suffix}")(tmp_path / f"out.{suffix}")
    with pytest.raises(ConnectorError, match="the disk is full") as caught:
        flow.Pipeline("p", sink).run(system=QuickSystem(disk=FullDisk(1000).disk))
    assert "make room" in (caught.value.help or "")
    assert list(tmp_path.iterdir()) == []


def test_a_million_directories_are_refused_before_their_rows_are_taken(tmp_path: Path) -> None:
    table = pa.table({"id": range(1_000_000), "n": range(1_000_000)})
    with pytest.raises(ConnectorError, match="more than 10,000 directories"):
        write("write_parquet", f"{tmp_path}/out/", table, partition_by="id")
    assert visible(tmp_path) == []


def test_many_directories_need_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "OPEN_FILES_MAX", 4)
    monkeypatch.setattr(parts, "GATHERED_BYTES_MAX", 1000)
    table = pa.table({"k": [number % 50 for number in range(5_000)], "n": range(5_000)})
    write("write_parquet", f"{tmp_path}/out/", table, partition_by="k")
    assert sorted(pq.read_table(tmp_path / "out")["n"].to_pylist()) == list(range(5_000))
    assert len(os.listdir("/proc/self/fd")) < 100


def test_awkward_names(tmp_path: Path) -> None:
    (tmp_path / "a b é").mkdir()
    os.symlink(tmp_path / "a b é", tmp_path / "link")
    sink = flow.from_arrow(TABLE, name="t").write_csv(tmp_path / "link" / "ö ü.csv")
    flow.Pipeline("../My/pipe" * 60, sink).run()
    assert visible(tmp_path / "a b é") == ["ö ü.csv"]
    again = flow.from_arrow(TABLE, name="t").write_csv(f"{tmp_path}/link/sub/")
    flow.Pipeline("../My/pipe" * 60, again).run()
    assert len(visible(tmp_path / "a b é" / "sub")) == 1


def test_a_dangling_link_is_not_replaced(tmp_path: Path) -> None:
    os.symlink(tmp_path / "gone", tmp_path / "out.csv")
    with pytest.raises(ConnectorError, match="came to be"):
        write("write_csv", tmp_path / "out.csv")
    assert os.path.islink(tmp_path / "out.csv")


def test_the_target_vanishes_during_the_run(tmp_path: Path) -> None:
    def some() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        for one in out.iterdir():
            one.unlink()
        out.rmdir()
        yield {"n": 2}

    out = tmp_path / "out"
    with pytest.raises(ConnectorError, match=r"is gone|cannot be written"):
        flow.from_rows(some(), {"n": "int"}).write_csv(out).run()


def test_two_sinks_into_one_directory_do_not_meet(tmp_path: Path) -> None:
    numbers = flow.from_arrow(TABLE, name="t")
    sinks = [numbers.filter(col.n == one).write_csv(tmp_path / "out", mode="append", name=f"s{one}") for one in (1, 2)]
    flow.Pipeline("p", *sinks).run()
    assert len(visible(tmp_path / "out")) == 2


def test_columns_whose_names_differ_in_case_or_after_escaping_stay_apart(tmp_path: Path) -> None:
    table = pa.table({"A": ["x"], "a": ["y"], "a/b": ["z"], "n": [1]})
    write("write_csv", f"{tmp_path}/out/", table, partition_by=["A", "a", "a/b"])
    (name,) = visible(tmp_path / "out")
    assert name.startswith("A=x/a=y/a%2Fb=z/")


# ── delivery ──


def test_delivery_is_told_and_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    sink = flow.from_arrow(TABLE, name="t").write_csv(tmp_path / "out", name="out")
    told = flow.Pipeline("p", sink).explain()
    assert "delivery\n  csv out: exactly once with a store; without one all rows or none" in told
    live = flow.read(Endless()).write_csv(tmp_path / "out", delivery="exactly_once", name="live")
    with pytest.raises(PlanError, match=r"csv live: .*without a store"):
        flow.Pipeline("p", live).run()
    with pytest.raises(PlanError, match="at least once") as caught:
        stream().write_callback(print, delivery="exactly_once")
    assert caught.value.code == "DF0506"
    callback = stream().write_callback(print, delivery="at_least_once")
    with pytest.raises(PlanError, match=r"callback print: .*without a store"):
        flow.Pipeline("p", callback).run()


def test_a_delivery_of_the_run_is_asked_of_each_sink_and_of_the_sources(tmp_path: Path) -> None:
    def job(rows: flow.Stream, **options: Any) -> flow.Pipeline:
        return flow.Pipeline("p", rows.write_csv(tmp_path / "out.csv", name="out", **options))

    generator = flow.from_rows(({"n": n} for n in range(3)), {"n": "int"}, name="gen")
    with pytest.raises(PlanError, match="`gen` is a generator, and its rows behind the last commit are lost") as caught:
        job(generator).run(store=tmp_path / "s", delivery="at_least_once")
    assert caught.value.code == "DF0506"
    with pytest.raises(PlanError, match="`gen` is a generator"):
        job(generator, delivery="exactly_once").run(store=tmp_path / "s")
    assert "  rows of `gen` that a killed run has not committed are lost" in job(generator).explain()
    with pytest.raises(PlanError, match="nobody knows what this sink does"):
        flow.Pipeline("p", stream().print()).run(store=tmp_path / "s", delivery="exactly_once")
    with pytest.raises(DataflowError, match="there is no delivery 'exactly-once'") as caught_name:
        job(stream()).run(delivery="exactly-once")
    assert "did you mean 'exactly_once'?" in str(caught_name.value)
    job(stream()).run(store=tmp_path / "s", delivery="exactly_once")
    (tmp_path / "out.csv").unlink()
    job(generator, delivery="exactly_once").run()  # all rows or none
    assert (tmp_path / "out.csv").read_text() == "n\n0\n1\n2\n"


def test_parts_of_later_runs_are_read_behind_those_of_earlier_ones(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"in{number:02}.csv").write_text("n\n" + "".join(f"{number * 100 + n}\n" for n in range(100)))
        rows = flow.read_csv(f"{tmp_path}/in*.csv", schema={"n": "int64"})
        job = flow.Pipeline("job", rows.write_csv(f"{tmp_path}/out/", roll="256B"))
        job.run(store=tmp_path / "s", until="head", workers=1 + number % 2)
    read = flow.read_csv(f"{tmp_path}/out/*.csv", schema={"n": "int64"}).collect()
    assert read["n"].to_pylist() == list(range(1_200))

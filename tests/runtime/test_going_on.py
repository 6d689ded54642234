"""What a second run of a pipeline does: go on, refuse, say that it is done, or begin again."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dataflow as flow
from dataflow import col, count
from dataflow.errors import ConnectorError, PlanError, ProgramError, RunError
from dataflow.operators.base import ReadRequest
from dataflow.operators.sources.parquet import ParquetSource
from dataflow.system import RealSystem

MINUTE_US = 60_000_000
EPOCH = datetime(1970, 1, 1)


def write_csv(path: Path, minutes: Sequence[float], *, more: bool = False) -> None:
    lines = [f"{(EPOCH + timedelta(minutes=minute)).isoformat()},{n}" for n, minute in enumerate(minutes)]
    with path.open("a" if more else "w") as file:
        file.write("" if more else "at,n\n")
        file.write("".join(f"{line}\n" for line in lines))


def counted(path: Path, **options: Any) -> flow.Pipeline:
    rows = flow.read_csv(path, schema={"at": "timestamp[us]", "n": "int64"}, **options)
    made = rows.watermark("at").window(flow.tumbling("1m")).agg(n=count())
    return flow.Pipeline("job", made.write_topic("minutes"))


def minutes_in(store: Path) -> list[tuple[int, int]]:
    with flow.Store(store) as opened:
        if "minutes" not in [info.name for info in opened.topics()]:
            return []
        rows = opened.read("minutes").to_pylist()
    return [(round((row["window_start"] - EPOCH).total_seconds() / 60), row["n"]) for row in rows]


def test_until_head_leaves_windows_open_and_goes_on_with_what_has_come_since(tmp_path: Path) -> None:
    path, store = tmp_path / "in.csv", tmp_path / "store"
    write_csv(path, [0, 0.5, 1.5])
    first = counted(path).run(store=store, until="head")
    assert (first.rows_in, first.stopped, minutes_in(store)) == (3, None, [(0, 2)])
    assert counted(path).run(store=store, until="head").rows_in == 0
    write_csv(path, [1.7, 2.1], more=True)
    assert counted(path).run(store=store, until="head", workers=1).rows_in == 2
    assert minutes_in(store) == [(0, 2), (1, 2)]
    write_csv(path, [2.5], more=True)
    assert counted(path).run(store=store).rows_in == 1  # to the end
    assert minutes_in(store) == [(0, 2), (1, 2), (2, 2)]
    assert counted(path).run(store=store).already_finished


def test_a_line_that_is_half_written_waits_for_its_end(tmp_path: Path) -> None:
    path, store = tmp_path / "in.csv", tmp_path / "store"
    path.write_text("at,n\n1970-01-01T00:00:00,1\n1970-01-01T00:00:01,1")
    assert counted(path).run(store=store, until="head").rows_in == 1
    assert counted(path).run(store=store, until="head").rows_in == 0
    path.write_text("at,n\n1970-01-01T00:00:00,1\n1970-01-01T00:00:01,12\n1970-01-01T00:00:02,1\n")
    assert counted(path).run(store=store, until="head").rows_in == 2


@pytest.mark.parametrize(
    ("line_end", "given"),
    [("\n", {}), *((one, {"schema": {"n": "int64", "s": "string"}}) for one in ("\n", "\r\n", "\r"))],
)
def test_a_quoted_field_that_is_half_written_waits_for_its_end(
    tmp_path: Path, line_end: str, given: dict[str, Any]
) -> None:
    path, store = tmp_path / "in.csv", tmp_path / "store"
    whole = f'n,s{line_end}1,"a{line_end}b"{line_end}2,"c{line_end}d ""quoted"""{line_end}3,"e"{line_end}'
    rest = len(line_end) - 1  # a carriage return ends a row, whatever comes then
    ends = (whole.index("2,") - rest, whole.index("3,") - rest, len(whole) - rest)
    total = 0
    for size in range(len(f"n,s{line_end}1,"), len(whole) + 1):
        path.write_bytes(whole[:size].encode())
        expected = sum(end <= size for end in ends)
        if given or total:  # types cannot be told before there is a row
            pipeline = flow.Pipeline("job", flow.read_csv(path, **given).write_topic("t"))
            total += pipeline.run(store=store, until="head", workers=1).rows_in
            assert total == expected, whole[:size]
        elif expected:
            total = flow.Pipeline("job", flow.read_csv(path).write_topic("t")).run(store=store, until="head").rows_in
    with flow.Store(store) as opened:
        assert opened.read("t")["s"].to_pylist() == [f"a{line_end}b", f'c{line_end}d "quoted"', "e"]


def test_a_row_that_went_on_after_it_was_read_is_refused(tmp_path: Path) -> None:
    path, store = tmp_path / "in.csv", tmp_path / "store"
    path.write_text("at,n\n1970-01-01T00:00:00,1\n1970-01-01T00:00:01,1")
    with pytest.raises(RunError, match="no network"):
        rows = flow.read_csv(path, schema={"at": "timestamp[us]", "n": "int64"})
        flow.Pipeline("job", rows.to(Unsteady(), name="sink")).run(store=store)
    with path.open("a") as file:
        file.write("2\n")
    with pytest.raises(flow.DataflowError, match="in the middle of a row"):
        flow.Pipeline("job", rows.to(FailingSink(failures=0), name="sink")).run(store=store)


def test_a_finished_run_is_done_and_more_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, store = tmp_path / "in.csv", tmp_path / "store"
    write_csv(path, [0, 1])
    counted(path).run(store=store)
    assert counted(path).run(store=store).already_finished
    assert "has finished in this store before" in capsys.readouterr().err
    write_csv(path, [2], more=True)
    with pytest.raises(PlanError, match=r"DF0407.*has more rows now"):
        counted(path).run(store=store)
    assert minutes_in(store) == [(0, 1), (1, 1)]
    counted(path).run(store=store, restart=True)
    assert minutes_in(store) == [(0, 1), (1, 1), (0, 1), (1, 1), (2, 1)]


def sums(path: object, read: Any = flow.read_csv) -> flow.Pipeline:
    total = read(path).watermark("at").window(flow.tumbling("1m")).agg(total=col.n.sum())
    return flow.Pipeline("job", total.write_topic("sums"))


@pytest.mark.parametrize("until", ["head", None])
@pytest.mark.parametrize("name", ["1", "2"])
def test_a_row_that_was_edited_after_it_was_read_is_noticed(tmp_path: Path, name: str, until: str | None) -> None:
    store = tmp_path / "store"
    for number in ("1", "2"):
        write_csv(tmp_path / f"{number}.csv", [minute / 100 for minute in range(9_000)])
    path = tmp_path / f"{name}.csv"
    sums(f"{tmp_path}/?.csv").run(store=store, until=until)
    before = path.read_text()
    path.write_text(before.replace(",8888\n", ",8889\n"))  # behind its first 64 KiB
    with pytest.raises(PlanError, match=rf"(?s)DF0407.*{path} has changed where it was read.*`restart`") as refused:
        sums(f"{tmp_path}/?.csv").run(store=store, until=until, restarts=1)
    assert refused.value.origin is not None
    path.write_text(before)
    again = sums(f"{tmp_path}/?.csv").run(store=store, until=until)
    assert (again.rows_in, again.already_finished) == (0, until is None)
    path.write_text(before.replace(",8888\n", ",8889\n"))
    assert sums(f"{tmp_path}/?.csv").run(store=store, until=until, restart=True).rows_in == 18_000


def test_row_groups_that_were_read_may_not_change(tmp_path: Path) -> None:
    path, store = tmp_path / "in.parquet", tmp_path / "store"

    def run(value: int) -> int:
        at = pa.array(range(0, 10_000_000_000, 1_000_000), pa.timestamp("us"))
        values = [number * 12_347 % 10_007 for number in range(10_000)]
        values[5_000] = value
        pq.write_table(pa.table({"at": at, "n": values}), path, row_group_size=3_000)
        return sums(path, flow.read_parquet).run(store=store, until="head").rows_in

    assert (run(1), run(1)) == (10_000, 0)  # written anew, with the same bytes
    with pytest.raises(PlanError, match=r"DF0407.*has changed where it was read"):
        run(2)


def test_steps_without_state_may_change_and_others_may_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"t": pa.array([1, 2, 3], pa.timestamp("us")), "x": [1, 2, 3]})

    def run(
        factor: float, size: str = "1m", more: str | None = None, made: flow.Aggregate | None = None
    ) -> flow.RunResult:
        rows = flow.from_arrow(table, name="rows").derive(y=col.x * factor).watermark("t")
        sinks = [
            rows.window(flow.tumbling(size)).agg(total=col.y.sum() if made is None else made).write_topic("out")
        ] + ([rows.write_topic(more)] if more else [])
        return flow.Pipeline("job", *sinks).run(store=tmp_path, until="head")

    run(1)
    assert capsys.readouterr().err == ""
    assert run(2).rows_in == 0
    assert "has changed since epoch" in capsys.readouterr().err
    changes: list[tuple[Callable[[], object], str]] = [
        (lambda: run(2, "2m"), r"`agg rows/tumbling 1m` \(.*\) is gone, `agg rows/tumbling 2m` \(.*\) is new; nothing"),
        (lambda: run(2, more="copy"), ": `to topic copy` is new; nothing"),
        (lambda: run(2, made=col.y.max()), "`agg rows/tumbling 1m` was `.*sum.*`, and is `.*max.*` now"),
        (lambda: run(1.5), "column `y` of `agg rows/tumbling 1m` is double now, and was int64"),
    ]
    for change, told in changes:
        with pytest.raises(PlanError, match=f"DF0406.*{told}"):
            change()
    table = table.set_column(1, "x", pa.array([1.0, 2.0, 3.0]))
    with pytest.raises(PlanError, match="column `x` of `read rows` is double now, and was int64"):
        run(2)


def test_targets_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = tmp_path / "in.csv"
    numbers.write_text("n\n")

    def run(number: int, home: Path, store: Path, *, other: str = "other") -> int:
        with numbers.open("a") as file:
            file.write(f"{number}\n")
        home.mkdir(exist_ok=True)
        monkeypatch.chdir(home)
        rows = flow.read_csv(numbers, schema={"n": "int"})
        sinks = rows.write_sqlite("o.db", "t"), rows.write_jsonl("j/"), rows.write_topic("t", store=other)
        return flow.Pipeline("job", *sinks).run(store=store, until="head").rows_in

    assert run(1, tmp_path / "a", tmp_path / "store") == 1
    for store in (tmp_path / "store", tmp_path / "link"):
        if store.name == "link":
            store.symlink_to(tmp_path / "store")
        with pytest.raises(PlanError, match=r"DF0406.*has written .*/a/o\.db, and would write .*/b/o\.db now"):
            run(2, tmp_path / "b", store)
        assert not any((tmp_path / "b").iterdir())
        assert run(2, tmp_path / "a", store) > 0
    (tmp_path / "moved").mkdir()
    for name in ("a", "store"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert run(3, tmp_path / "moved" / "a", tmp_path / "moved" / "store") > 0
    with pytest.raises(PlanError, match="would write into the store"):
        run(4, tmp_path / "moved" / "a", tmp_path / "moved" / "store", other="../store")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "arrow"])
def test_a_program_may_change_its_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    rows = flow.from_arrow(pa.table({"n": range(300_000)}))
    files = getattr(rows, f"write_{kind}")("out/", roll="10kB")
    moves = rows.write_callback(lambda batch, epoch: os.chdir(tmp_path / "elsewhere"))
    flow.Pipeline("job", moves, files).run(store="store", checkpoint_interval="10ms")
    assert not any((tmp_path / "elsewhere").iterdir())
    read = {"csv": flow.read_csv, "parquet": flow.read_parquet}.get(kind)
    if read is not None:
        assert read(f"{tmp_path}/out/*").collect().num_rows == 300_000


def test_types_that_new_rows_would_change_are_kept_by_a_schema(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("a,b\n1,x\n")

    def run(schema: Any = None) -> int:
        rows = flow.read_csv(source, schema=schema)
        return flow.Pipeline("job", rows.write_topic("t")).run(store=tmp_path / "store", until="head").rows_in

    assert run() == 1
    with source.open("a") as file:
        file.write("2.5,y\n")
    with pytest.raises(
        PlanError, match=r"DF0406.*`a` of `read in` is double now, and was int64, which its rows have told"
    ):
        run()
    source.write_text("a,b\n1,x\n2,y\n")
    assert run({"a": "int64", "b": "string"}) == run() + 1 == 1


def test_each_of_two_steps_of_one_name_is_known(tmp_path: Path) -> None:
    table = pa.table({"t": pa.array([1, 2, 3], pa.timestamp("us"))})

    def run(*delays: str) -> None:
        rows = flow.from_arrow(table, name="rows")
        sinks = [rows.watermark("t", delay=one).write_topic(f"out{number}") for number, one in enumerate(delays)]
        flow.Pipeline("job", *sinks).run(store=tmp_path, until="head")

    run("1s", "2s")
    for changed in (("3s", "2s"), ("1s", "3s")):
        with pytest.raises(PlanError, match=r"DF0406.*`watermark rows.*` was `t, delay=.s`, and is"):
            run(*changed)


def test_two_sources_of_one_name_are_refused_only_where_something_is_kept(tmp_path: Path) -> None:
    def made() -> flow.Stream:
        one, two = (flow.from_rows([{"n": n}], {"n": "int64"}) for n in (1, 2))
        return one.union(two)

    assert made().collect().num_rows == 2
    with pytest.raises(PlanError, match="two sources have the name `rows`"):
        flow.Pipeline("job", made().write_topic("t")).run(store=tmp_path)


def test_late_and_error_rows_that_nobody_reads_are_kept_in_topics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = pa.array([0, 5 * MINUTE_US, 1, None, 6 * MINUTE_US], pa.timestamp("us"))
    rows = flow.from_arrow(pa.table({"t": times, "n": [1, 2, 3, 4, 5], "k": list("abcde")}), name="rows")
    made = rows.watermark("t").window(flow.tumbling("1m"), by="k").agg(n=col.n.sum())
    flow.Pipeline("my job", made.write_topic("out")).run(store=tmp_path)
    told = capsys.readouterr().err
    assert "the topic `my_job-c022bf51.late`" in told
    assert "the topic `my_job-c022bf51.errors`" in told
    with flow.Store(tmp_path) as store:
        (late,) = store.read("my_job-c022bf51.late").to_pylist()
        (wrong,) = store.read("my_job-c022bf51.errors").to_pylist()
    assert (late["n"], late["k"], late["late_reason"]) == (3, "c", "window_final")
    assert "tumbling" in late["late_step"]
    assert (wrong["n"], wrong["error_code"]) == (4, "DF0404")


def test_pipelines_of_other_names_do_not_share_the_topics_of_their_unread_rows(tmp_path: Path) -> None:
    times = pa.array([0, 5 * MINUTE_US, 1], pa.timestamp("us"))
    names = ["a/b", "a_b", "a b", "x" * 200, "x" * 201, "x" * 180]
    for number, name in enumerate(names):
        rows = flow.from_arrow(pa.table({"t": times, "n": [number] * 3})).watermark("t")
        made = rows.window(flow.tumbling("1m"), by="n").agg(rows=count())
        flow.Pipeline(name, made.write_topic("out")).run(store=tmp_path)
    with flow.Store(tmp_path) as store:
        late = [topic.name for topic in store.topics() if topic.name.endswith(".late")]
        assert sorted(store.read(name)["n"].to_pylist() for name in late) == [[n] for n in range(len(names))]
    assert {"a_b.late", f"{'x' * 180}.late"} < set(late)


def test_unread_rows_of_steps_with_other_columns_share_a_topic(tmp_path: Path) -> None:
    times = pa.array([0, 5 * MINUTE_US, 1], pa.timestamp("us"))
    one = flow.from_arrow(pa.table({"t": times, "n": [1, 2, 3]}), name="ints").watermark("t")
    two = flow.from_arrow(pa.table({"t": times, "n": ["a", "b", "c"]}), name="texts").watermark("t")
    sinks = [
        stream.window(flow.tumbling("1m"), by="n").agg(c=count()).write_topic(name)
        for name, stream in (("one", one), ("two", two))
    ]
    flow.Pipeline("job", *sinks).run(store=tmp_path)
    with flow.Store(tmp_path) as store:
        table = store.read("job.late")
    values = {(row["late_step"].split("/")[0], row.get("n"), row.get("n_string"), row.get("n_int64")) for row in
              table.to_pylist()}  # fmt: skip
    assert {(step, str(next(v for v in rest if v is not None))) for step, *rest in values} == {
        ("ints", "3"),
        ("texts", "c"),
    }


@dataclass
class FailingSink:
    """Fails the first times that it is to write."""

    failures: int
    rows: int = 0
    written: int = 0

    def open(self, epoch: int) -> None:
        self.written = 0

    def write(self, batch: pa.RecordBatch) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("no network")
        self.written += batch.num_rows

    def prepare(self, epoch: int) -> object:
        return epoch

    def commit(self, handle: object) -> None:
        self.rows += self.written
        self.written = 0

    def abort(self, handle: object) -> None:
        self.written = 0


class Unsteady(FailingSink):
    """Fails once the store has committed the last epoch."""

    def __init__(self) -> None:
        super().__init__(failures=0)

    def commit(self, handle: object) -> None:
        raise OSError("no network")


@pytest.mark.parametrize("rows", [1_000, 400_000])
def test_the_result_counts_what_all_attempts_have_done(tmp_path: Path, rows: int) -> None:
    failures = [OSError("no network"), OSError("no network")]

    def notify(batch: pa.RecordBatch, epoch: int) -> None:
        if failures:
            raise failures.pop()

    table = pa.table({"n": range(rows), "at": pa.array(range(rows), pa.timestamp("us"))})
    numbers = flow.from_arrow(table, name="rows").filter(col.n % 4 != 0)
    sums = numbers.watermark("at").window(flow.tumbling("1ms")).agg(n=flow.count())
    sinks = numbers.write_topic("t"), sums.write_topic("sums"), numbers.write_callback(notify)
    result = flow.Pipeline("job", *sinks).run(store=tmp_path, checkpoint_interval="10ms", restarts=3)
    with flow.Store(tmp_path) as store:
        totals = dict.fromkeys(result.ledger, 0)
        for counts in store.ledger("job").values():
            for step, numbers_of in counts.items():
                totals[step] += numbers_of.get("passed", 0)  # type: ignore[attr-defined]
        assert store.read("t").num_rows == rows * 3 // 4
        assert sum(store.read("sums")["n"].to_pylist()) == rows * 3 // 4
    assert 1 <= result.restarts <= 2
    assert result.rows_in == rows
    assert result.rows_out == 2 * (rows * 3 // 4) + store.topic("sums").rows
    assert {step: counts["passed"] for step, counts in result.ledger.items()} == totals


def test_a_restart_that_fails_before_it_has_committed_is_still_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Shaky(FailingSink):
        def write(self, batch: pa.RecordBatch) -> None:
            if self.failures:
                self.failures -= 1
                raise OSError("shaky")

    rows = flow.from_arrow(pa.table({"n": [1, 2]}), name="rows")
    sink = Shaky(failures=0)
    pipeline = flow.Pipeline("job", rows.to(sink, name="shaky"), rows.write_topic("t"))
    pipeline.run(store=tmp_path)
    sink.failures = 1
    capsys.readouterr()
    assert pipeline.run(store=tmp_path, restart=True, restarts=1).rows_in == 2
    assert "rows that it has written up to epoch 2 stay where they are, and come once more" in capsys.readouterr().err
    with flow.Store(tmp_path) as store:
        assert store.read("t")["n"].to_pylist() == [1, 2, 1, 2]


def test_a_run_begins_again_as_often_as_it_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = FailingSink(failures=1)
    rows = flow.from_arrow(pa.table({"n": range(1_000)}), name="rows")
    result = flow.Pipeline("job", rows.to(sink, name="flaky")).run(store=tmp_path / "a", restarts=2)
    assert (sink.rows, result.restarts) == (1_000, 1)
    assert "beginning again from the last commit in 1 s (1 of 2)" in capsys.readouterr().err
    with pytest.raises(RunError, match="no network"):
        flow.Pipeline("job", rows.to(FailingSink(failures=9), name="flaky")).run(store=tmp_path / "b", restarts=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"until": "tail"}, '`until="head"` reads what is there now'),
        ({"restarts": -1}, "is a number from 0 on"),
        ({"restart": "no"}, "`restart` is True or False, got 'no'"),
        ({"store": 3}, "a store is a directory, got 3"),
        ({"restarts": 1, "store": None}, "needs a store"),
        ({"restart": True, "store": None}, "needs a store"),
    ],
)
def test_wrong_options_are_told(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    rows = flow.from_rows([{"n": 1}], {"n": "int64"})
    with pytest.raises(ProgramError) as refused:
        flow.Pipeline("job", rows.print()).run(**{"store": tmp_path, **options})
    assert said in str(refused.value) and refused.value.origin is not None


def test_a_sink_is_given_once() -> None:
    sink = flow.from_rows([{"n": 1}], {"n": "int64"}).print()
    with pytest.raises(PlanError, match="given a sink twice"):
        flow.Pipeline("job", sink, sink)


def test_a_parquet_file_is_read_on_from_any_row(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"n": range(10_000)}), path, row_group_size=900)
    asked = ReadRequest(("n",), frozenset(), RealSystem())
    splits = list(ParquetSource(path).splits(0, asked))
    for split in splits:
        for rows in (1, 450, split.rows - 1):
            on = ParquetSource(path).splits(0, asked, split.position(rows))
            read = [(part.first_position, part.columns["n"].to_pylist()) for one in on for part in one.read()]
            first = split.first + rows
            assert [n for _, values in read for n in values] == list(range(first, 10_000))
            assert next(n for n, _ in read) == first
    assert not list(ParquetSource(path).splits(0, asked, splits[-1].end))


def test_a_followed_topic_gives_what_is_appended_later(tmp_path: Path) -> None:
    store = flow.Store(tmp_path)
    store.append("in", pa.table({"n": [1]}))
    seen = threading.Event()

    class Watching(FailingSink):
        def commit(self, handle: object) -> None:
            super().commit(handle)
            if self.rows == 1 and not seen.is_set():
                seen.set()
                with flow.Store(tmp_path) as other:
                    other.append("in", pa.table({"n": [2, 3]}))
            if self.rows == 3:
                raise OSError("enough")

    sink = Watching(failures=0)
    with pytest.raises(RunError, match="enough"):
        flow.Pipeline("job", flow.read_topic("in", store=store, follow=True).to(sink, name="w")).run(
            checkpoint_interval="10ms"
        )
    assert sink.rows == 3
    with pytest.raises(PlanError, match="exclude each other"):
        flow.read_topic("in", store=store, follow=True, until=3)
    followed = flow.read_topic("in", store=store, follow=True)
    copied = flow.Pipeline("copy", followed.write_topic("out")).run(store=store, until="head")
    assert (copied.rows_in, store.read("out").num_rows) == (3, 3)


def test_until_head_without_a_store_writes_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    flow.Pipeline("job", flow.from_rows([{"n": 1}, {"n": 2}]).write_csv(path)).run(until="head")
    assert path.read_text().split() == ["n", "1", "2"]


class SlowToCommit(FailingSink):
    """Takes longer for a commit than the time between two epochs, and has the run stopped after some rows."""

    def __init__(self, stops_after: int | None) -> None:
        super().__init__(failures=0)
        self.stops_after = stops_after

    def write(self, batch: pa.RecordBatch) -> None:
        super().write(batch)
        time.sleep(4e-5 * batch.num_rows)
        if self.stops_after is not None and self.rows + self.written > self.stops_after:
            self.stops_after = None
            os.kill(os.getpid(), signal.SIGTERM)

    def commit(self, handle: object) -> None:
        time.sleep(0.2)
        super().commit(handle)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_in_the_middle_of_a_unit_keeps_the_rest_for_the_next_run(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"n": range(100_000)}), path)

    def run(stops_after: int | None) -> flow.RunResult:
        rows = flow.read_parquet(path)
        sinks = rows.write_topic("t"), rows.to(SlowToCommit(stops_after), name="slow")
        return flow.Pipeline("job", *sinks).run(store=tmp_path / "s", checkpoint_interval="50ms", workers=workers)

    assert run(20_000).stopped == "SIGTERM"
    assert run(None).stopped is None
    assert flow.Store(tmp_path / "s").read("t")["n"].to_pylist() == list(range(100_000))


def test_a_sink_that_fails_to_recover_is_told_and_tried_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def notify(batch: pa.RecordBatch, epoch: int) -> None:
        calls.append(epoch)
        if len(calls) <= 4:
            raise OSError("server is down")

    def run(restarts: int) -> flow.RunResult:
        rows = flow.from_arrow(pa.table({"n": [1]}), name="rows")
        return flow.Pipeline("job", rows.write_callback(notify)).run(store=tmp_path, restarts=restarts)

    for _ in range(2):
        with pytest.raises(RunError, match="server is down"):
            run(0)
    assert len(calls) >= 2
    assert run(2).restarts <= 2


def test_two_sinks_on_one_file_or_one_table_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    rows = flow.from_rows([{"n": 1}], {"n": "int64"})
    path = str(tmp_path / "x.csv")
    twice = [rows.write_csv(path, name="one"), rows.write_csv(f"{tmp_path}/./x.csv", name="two")]
    one, same, other = (rows.write_sqlite(tmp_path / "x.db", name) for name in ("Prices", "pRICES", "other"))
    text = rows.write_csv(tmp_path / "x.db")
    for sinks, place in (
        (twice, path),
        ((one, other, same), f"the table `prices` of {tmp_path}/x.db"),
        ((one, text), f"{tmp_path}/x.db"),
        ((text, other), f"{tmp_path}/x.db"),
    ):
        with pytest.raises(PlanError, match=f"DF0405.*two sinks write {place}: here"):
            flow.Pipeline("job", *sinks).run(store=tmp_path / "s")
    parts = [rows.write_csv(f"{tmp_path}/out/", name=name) for name in ("one", "two")]
    flow.Pipeline("parts", *parts).run(store=tmp_path / "s")
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_signal_that_comes_while_the_coordinator_looks_is_not_overwritten() -> None:
    from types import SimpleNamespace
    from typing import cast

    from dataflow.runtime.coordinator import Coordinator
    from dataflow.runtime.job import Job

    def interrupted() -> bool:
        coordinator.stop()  # as a signal's handler would, between the look and what follows from it
        return False

    committer = SimpleNamespace(stage=lambda acks: None, commit=lambda commit: None)
    coordinator = Coordinator(RealSystem(), committer, 60.0, interrupted)
    job = SimpleNamespace(tasks=[], sinks=[], over=True, at_head=False)
    coordinator.begin(cast(Job, job))
    coordinator.turn(cast(Job, job))
    assert coordinator.stop_asked


@pytest.mark.parametrize("target", ["table", "topic"])
def test_an_older_copy_of_the_store_is_refused_by_what_is_ahead_of_it(tmp_path: Path, target: str) -> None:
    """Its next epochs have numbers that the target knows already: their rows would pass for those that it has."""
    inputs, store, copy = tmp_path / "in", tmp_path / "store", tmp_path / "copy"
    inputs.mkdir()

    def run(first: int, until: int) -> None:
        text = "".join(f"{n}\n" for n in range(first, until))
        (inputs / f"{first:04}.csv").write_text(f"n\n{text}")
        rows = flow.read_csv(f"{inputs}/*.csv", schema={"n": "int64"})
        sink = (
            rows.write_sqlite(tmp_path / "o.db", "t")
            if target == "table"
            else rows.write_topic("t", store=tmp_path / "o")
        )
        flow.Pipeline("job", sink).run(store=store, until="head")

    run(0, 10)
    shutil.copytree(store, copy)
    run(10, 20)
    shutil.rmtree(store)
    copy.rename(store)
    with pytest.raises(ConnectorError, match="older copy") as caught:
        run(20, 30)
    assert caught.value.code == "DF0516"


class Written:
    """A pipeline that writes ten rows more with each run, into a table or into a topic of another store."""

    def __init__(self, home: Path, target: str) -> None:
        self.home, self.target, self.rows = home, target, 0
        (home / "in").mkdir()

    def run(self, rows: int = 10, *, restart: bool = False) -> None:
        first, self.rows = self.rows, self.rows + rows
        text = "".join(f"{n}\n" for n in range(first, self.rows))
        (self.home / "in" / f"{first:04}-{rows}.csv").write_text(f"n\n{text}")
        self.go_on(restart=restart)

    def go_on(self, *, restart: bool = False) -> None:
        stream = flow.read_csv(f"{self.home}/in/*.csv", schema={"n": "int64"})
        sink = (
            stream.write_topic("t", store=self.home / "o")
            if self.target == "topic"
            else stream.write_sqlite(self.home / "o", "t")
        )
        flow.Pipeline("job", sink).run(store=self.home / "store", until="head", restart=restart)

    def seen(self) -> list[int]:
        if self.target == "topic":
            with flow.Store(self.home / "o") as store:
                return store.read("t")["n"].to_pylist()  # type: ignore[no-any-return]
        with closing(sqlite3.connect(self.home / "o")) as connection:
            return [n for (n,) in connection.execute("SELECT n FROM t")]

    def lose(self) -> None:
        path = self.home / "o"
        if self.target == "dropped table":
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("DROP TABLE t")
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.parametrize("target", ["table", "dropped table", "topic"])
def test_a_target_that_is_gone_is_refused_and_written_anew_by_a_restart(tmp_path: Path, target: str) -> None:
    """The rows of all epochs but the last are nowhere else: what is made anew would have the others only."""
    written = Written(tmp_path, target)
    written.run()
    written.run()
    written.lose()
    for _ in range(2):
        with pytest.raises(
            ConnectorError, match=r"up to epoch \d, .* has none of its rows.*nothing was changed"
        ) as caught:
            written.go_on()
        assert caught.value.code == "DF0517"
        assert (tmp_path / "o").exists() is (target == "dropped table")
    written.run(restart=True)
    written.run()
    assert written.seen() == list(range(40))


@pytest.mark.parametrize("target", ["table", "topic"])
def test_an_older_copy_of_a_target_is_refused(tmp_path: Path, target: str) -> None:
    written = Written(tmp_path, target)
    written.run()
    copy = shutil.copy if target == "table" else shutil.copytree
    copy(tmp_path / "o", tmp_path / "copy")
    written.run()
    written.run(0)
    written.lose()
    copy(tmp_path / "copy", tmp_path / "o")
    with pytest.raises(ConnectorError, match=r"DF0517.*up to epoch \d, .* has its rows up to epoch 1 only"):
        written.run()


def test_epochs_without_rows_need_no_target(tmp_path: Path) -> None:
    written = Written(tmp_path, "table")
    written.run(0)
    written.run(0)
    written.run()
    assert written.seen() == list(range(10))

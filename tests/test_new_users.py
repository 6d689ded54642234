"""What a new user found: errors of columns that nobody reads, watermarks declared again, event time renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dataflow as flow
from dataflow import col, count
from dataflow.errors import DataflowError, StoreError
from dataflow.operators.sources import parquet

ROWS = pa.table({"t": pa.array([0, 1, 120_000_000, 2], pa.timestamp("us")), "k": list("abab"), "v": [1, 2, 3, 4]})


@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_that_cannot_be_computed_is_an_error_row_though_nobody_reads_the_column(workers: int) -> None:
    derived = flow.from_arrow(ROWS).derive(x=1 // (col.v - 1))
    selected = flow.from_arrow(ROWS).select("v", x=1 // (col.v - 1))
    for made in (derived, selected):
        assert made.collect(workers=workers).num_rows == 3
        assert made.select("v").collect(workers=workers)["v"].to_pylist() == [2, 3, 4]
        assert made.drop("x").collect(workers=workers).num_rows == 3
        assert made.errors.collect(workers=workers)["v"].to_pylist() == [1]


def test_a_second_watermark_judges_anew() -> None:
    watched = flow.from_arrow(ROWS).watermark("t", delay="0s")
    again = watched.watermark("t", delay="1h").window(flow.tumbling("1m"), by="k").agg(n=count())
    assert again.late.collect().num_rows == 0
    assert again.collect()["n"].to_pylist() == [1, 2, 1]
    late = watched.window(flow.tumbling("1m"), by="k").agg(n=count()).late
    counted = late.watermark("t", delay="1d").window(flow.tumbling("1m"), by="k").agg(n=count())
    assert counted.collect()["n"].to_pylist() == [1]


def test_event_time_follows_its_column_through_a_rename() -> None:
    watched = flow.from_arrow(ROWS).watermark("t", delay="1h")
    for renamed in (watched.rename(u="t"), watched.rename(t="v", v="t")):
        windows = renamed.window(flow.tumbling("1m")).agg(n=count())
        assert windows.collect()["n"].to_pylist() == [3, 1]


def test_a_sum_beyond_all_floats_is_infinite() -> None:
    rows = pa.table({"t": ROWS["t"], "v": [1e308, 1e308, 1.0, 1e308]})
    sums = flow.from_arrow(rows).watermark("t", delay="1h").window(flow.tumbling("1h")).agg(s=col.v.sum())
    assert {sums.collect(workers=workers)["s"][0].as_py() for workers in (1, 2)} == {float("inf")}


def test_a_row_at_one_end_of_time_is_late_by_as_much_as_can_be_said() -> None:
    rows = pa.table({"t": pa.array([2**63 - 1, -(2**63)], pa.timestamp("us"))})
    late = flow.from_arrow(rows).watermark("t", delay="0s").window(flow.tumbling("1m")).agg(n=count()).late
    assert late.collect()["late_by"].cast("int64").to_pylist() == [2**63 - 1]


def test_a_catalog_that_was_cut_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    with flow.Store(tmp_path / "store") as store:
        store.append("x", ROWS)
    catalog = tmp_path / "store" / "catalog.db"
    os.truncate(catalog, catalog.stat().st_size // 2)
    kept = catalog.read_bytes()
    with pytest.raises(StoreError, match="is damaged"):
        flow.Store(tmp_path / "store").read("x")
    assert catalog.read_bytes() == kept


def test_views_are_read_as_plain_text() -> None:
    views = pa.table({"k": pa.array(["a", "b", None], pa.string_view()), "v": [1, 2, 3]})
    assert flow.from_arrow(views).filter(col.k == "a").collect()["k"].to_pylist() == ["a"]


def test_views_in_a_dictionary_are_read_as_plain_text() -> None:
    names = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["x", "y"], pa.string_view()))
    read = flow.from_arrow(pa.table({"k": names})).collect()
    assert read["k"].type == pa.string() and read["k"].to_pylist() == ["x", "y", None]


def test_a_sum_that_does_not_fit_says_in_which_window() -> None:
    times = pa.array([60_000_000, 60_000_001, 7_200_000_000], pa.timestamp("us"))
    rows = flow.from_arrow(pa.table({"t": times, "v": [2**62, 2**62, 1]}))
    (wrong,) = rows.watermark("t").window(flow.tumbling("1m")).agg(s=col.v.sum()).errors.collect().to_pylist()
    assert (wrong["t"].minute, wrong["v"], wrong["error_code"]) == (1, None, "DF0310")


@pytest.mark.parametrize(
    ("make", "told", "help"),
    [
        (lambda s: s.window(flow.tumbling("1m"), by=["k", "k"]).agg(n=count()), "`k` is there twice", "each key once"),
        (
            lambda s: s.rename(window_end="k").window(flow.tumbling("1m"), by="window_end").agg(n=count()),
            "a key cannot be called `window_end`",
            "rename it before the window",
        ),
        (
            lambda s: s.window(flow.tumbling("1m"), by="k").agg(k=count()),
            "agg makes a second column `k`",
            "and the keys",
        ),
        (lambda s: s.rename(x="k", y="k"), "rename gives `k` two names", "derive(y=col.k)"),
        (lambda s: s.window(flow.tumbling("1m"), by=col.v + 1), "by: `col.v + 1` has no name", '`.alias("name")`'),
        (lambda s: s.window(flow.tumbling("1m"), lateness="-1s"), "lateness cannot be negative", "10s"),
        (lambda s: s.watermark("t", delay="-1s"), "delay cannot be negative", "10s"),
        (lambda s: s.watermark("t", delay=timedelta.max), "longer than 64 bits", ""),
        (
            lambda s: s.derive(u=col.v.cast("uint64")).window(flow.tumbling("1m")).agg(s=col.u.sum()),
            "cannot hold every uint64",
            '.cast("int64")',
        ),
    ],
)
def test_wrong_use_is_told_with_the_users_line_and_a_way_out(
    make: Callable[[flow.Stream], object], told: str, help: str
) -> None:
    with pytest.raises(DataflowError) as caught:
        make(flow.from_arrow(ROWS).watermark("t"))
    assert told in caught.value.message and help in (caught.value.help or "")
    assert caught.value.origin is not None and caught.value.origin.file == __file__


def test_a_file_that_is_gone_when_the_run_starts_is_told_with_the_line_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    rows = flow.read_csv(tmp_path / "x.csv")
    (tmp_path / "x.csv").unlink()
    with pytest.raises(DataflowError, match="there is no file") as caught:
        rows.collect()
    assert caught.value.origin is not None and caught.value.origin.file == __file__


def test_what_is_told_of_late_rows_does_not_show_which_times_were_decoded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "SMALL_ROWS", 1)
    at = pa.array([60_000_000, 59_999_999, 119_999_999, 180_000_000, 60_000_000, 60_000_001], pa.timestamp("us"))
    pq.write_table(pa.table({"at": at, "k": [1] * 6}), tmp_path / "x.parquet", row_group_size=2)
    rows = flow.read_parquet(tmp_path / "x.parquet").watermark("at")
    rows.window(flow.tumbling("1m"), by="k").agg(n=count()).collect(workers=1)
    told = capfd.readouterr().err.splitlines()
    assert told[0].endswith("3 late rows left the pipeline unread (`.late` reads them):")
    assert [line.strip().partition("=")[0] for line in told[1:]] == ["at"] * 3


def test_rows_of_a_window_whose_keys_were_replaced_are_ordered_by_what_is_left() -> None:
    times = pa.array([0, 0, 0, 0, 1], pa.timestamp("us"))
    rows = flow.from_arrow(pa.table({"t": times, "k": list("abcab"), "v": [3, 1, 2, 5, 4]}))
    windows = rows.watermark("t").window(flow.tumbling("1s"), by="k").agg(n=col.v.sum(), count=count())
    same = windows.derive(k=flow.lit("x")).window(flow.tumbling("1m"), by="k")
    answers = {
        str(same.agg(first=col.n.first(), last=col.n.last()).collect(workers=workers).to_pylist())
        for workers in (1, 2, 3, 4)
        for _ in range(3)
    }
    assert len(answers) == 1
    both = windows.union(windows.derive(n=col.n * 10)).window(flow.tumbling("1m")).agg(first=col.n.first())
    assert len({str(both.collect(workers=workers).to_pylist()) for workers in (1, 2, 4)}) == 1


NO_TEXT = "\ud800"
"""Half of a character: Python takes it for text, and nothing else does."""
NUMBERS = flow.from_rows([{"n": 1}], {"n": "int64"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: flow.from_rows([{NO_TEXT: 1}]),
        lambda: flow.from_rows([], {NO_TEXT: "int64"}),
        lambda: flow.read_csv("nowhere.csv", schema={NO_TEXT: "int64"}),
        lambda: NUMBERS.derive(**{NO_TEXT: col.n}),
        lambda: NUMBERS.rename(**{NO_TEXT: "n"}),
        lambda: flow.from_arrow(ROWS).watermark("t").window(flow.tumbling("1m")).agg(count().alias(NO_TEXT)),
        lambda: flow.from_rows([{1: 1}]),
        lambda: NUMBERS.derive(n=flow.lit(NO_TEXT)),
    ],
)
def test_a_name_or_a_value_that_is_no_text_is_refused_where_it_is_written(make: Callable[[], object]) -> None:
    with pytest.raises(DataflowError, match="text that UTF-8 can hold") as caught:
        make()
    assert caught.value.code in ("DF0203", "DF0301")
    assert caught.value.origin is not None and caught.value.origin.file == __file__


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (NO_TEXT, "a name is text that UTF-8 can hold"),
        ("x" * 242, "too long for a file in the store: 242 characters"),
        ("ß" * 41, "too long for a file in the store: 246 characters"),
    ],
)
def test_a_pipeline_after_which_no_file_can_be_named_is_refused_before_there_is_a_store(
    tmp_path: Path, name: str, told: str
) -> None:
    pipeline = flow.Pipeline(name, NUMBERS.write_csv(tmp_path / "out.csv"))
    with pytest.raises(DataflowError, match=told) as caught:
        pipeline.run(store=tmp_path / "store")
    assert caught.value.code == "DF0203"
    assert list(tmp_path.iterdir()) == []
    flow.Pipeline("x" * 241, NUMBERS.write_csv(tmp_path / "out.csv")).run(store=tmp_path / "store")

"""What a new user found: errors of columns that nobody reads, watermarks declared again, event time renamed."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

import dataflow as flow
from dataflow import col, count
from dataflow.errors import StoreError

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

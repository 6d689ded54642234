"""Where the input is cut, and how many workers there are, never shows: neither in the windows nor in the late rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dataflow as flow
from dataflow import col, count
from tests import generator, oracle
from tests.harness import WindowRun, run_windows

FLOATS = tuple(x for x in generator.VALUES if x is None or abs(x) < 1e10)
"""Without the values that cancel out: sums can then be told to the last bit or so."""
KEYS = ("window_start", "window_end", "key")
SUM_TOLERANCE = {"total": 1e-9, "mean": 1e-9, "p90": 1e-9}


def windows_of(source: flow.Stream, by: str | Sequence[str] = "key") -> flow.Stream:
    value = col.value
    return (
        source.watermark("at", delay="5s")
        .window(flow.tumbling("10s"), by=by)
        .agg(
            n=count(),
            n_values=count(value),
            total=value.sum(),
            mean=value.mean(),
            low=value.min(),
            high=value.max(),
            small=col.small.sum(),
            extreme_low=col.extreme.min(),
            extreme_high=col.extreme.max(),
            first=col.ordinal.first(),
            last=col.label.last(),
            top=col.ordinal.max_by(col.small),
            bottom=col.label.min_by(col.value),
            p90=value.quantile(0.9, exact=True),
        )
    )


def answer_of(tables: Mapping[str, pa.Table], by: Sequence[str] = ("key",)) -> oracle.Answer:
    return oracle.tumbling(
        tables,
        {
            "n": oracle.count(),
            "n_values": oracle.count("value"),
            "total": oracle.total("value"),
            "mean": oracle.mean("value"),
            "low": oracle.least("value"),
            "high": oracle.greatest("value"),
            "small": oracle.total("small"),
            "extreme_low": oracle.least("extreme"),
            "extreme_high": oracle.greatest("extreme"),
            "first": oracle.first("ordinal"),
            "last": oracle.last("label"),
            "top": oracle.max_by("ordinal", "small"),
            "bottom": oracle.min_by("label", "value"),
            "p90": oracle.quantile("value", 0.9),
        },
        time="at",
        by=by,
        size_us=generator.WINDOW_US,
        delay_us=generator.DELAY_US,
    )


def check(run: WindowRun, answer: oracle.Answer, by: Sequence[str] = ("key",)) -> None:
    oracle.assert_same_rows(run.final, answer.final, by=("window_start", "window_end", *by), tolerance=SUM_TOLERANCE)
    late = [row.values for row in answer.late]
    oracle.assert_same_rows(run.late, late, by=("ordinal",))
    assert sum(row["n"] for row in run.final) + len(run.late) == run.result.rows_in


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    return generator.tables(20, rows=1500, floats=FLOATS)


@pytest.fixture(scope="module")
def answer(tables: dict[str, pa.Table]) -> oracle.Answer:
    return answer_of(tables)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 7, 1000, 65_536])
def test_batch_size_and_workers_do_not_show(
    tables: dict[str, pa.Table], answer: oracle.Answer, size: int, workers: int
) -> None:
    source = generator.ReplaySource({name: generator.cut(table, [size]) for name, table in tables.items()})
    check(run_windows(windows_of(flow.read(source)), workers), answer)


@given(seed=st.integers(0, 10_000), workers=st.sampled_from([1, 2, 4]), hesitant=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_cut_gives_the_same_rows(seed: int, workers: int, hesitant: bool) -> None:
    tables = generator.tables(seed, rows=120, floats=FLOATS)
    batches = {name: generator.random_cut(table, seed) for name, table in tables.items()}
    source = generator.ReplaySource(batches, hesitant=hesitant)
    check(run_windows(windows_of(flow.read(source)), workers), answer_of(tables))


@pytest.mark.parametrize(
    "by", [["number"], ["ratio"], ["flag"], ["key", "number"], ["ratio", "flag", "key"], ["small"]]
)
def test_any_key_gives_the_same_rows(by: list[str]) -> None:
    tables = generator.tables(5, rows=400, floats=FLOATS)
    source = generator.ReplaySource({name: generator.random_cut(table, 5) for name, table in tables.items()})
    check(run_windows(windows_of(flow.read(source), by), workers=2), answer_of(tables, by), by)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("row_group_rows", [1, 7, 1000])
def test_row_groups_and_files_of_one_partition_do_not_show(tmp_path: Path, row_group_rows: int, workers: int) -> None:
    table = generator.tables(3, rows=600, floats=FLOATS)["p0"]
    for number, start in enumerate((0, 1, 250, 400)):
        end = (1, 250, 400, table.num_rows)[number]
        pq.write_table(table.slice(start, end - start), tmp_path / f"{number}.parquet", row_group_size=row_group_rows)
    windows = windows_of(flow.read_parquet(tmp_path / "*.parquet"))
    check(run_windows(windows, workers), answer_of({"p0": table}))


def test_every_run_gives_the_same_bits() -> None:
    tables = generator.tables(11, rows=500)
    runs = []
    for size, workers in ((1, 1), (13, 4), (500, 2)):
        source = generator.ReplaySource({name: generator.cut(table, [size]) for name, table in tables.items()})
        final = run_windows(windows_of(flow.read(source)), workers).final
        runs.append(sorted(map(_bits, final)))
    assert runs[0] == runs[1] == runs[2]


def _bits(row: Mapping[str, Any]) -> str:
    return repr([value.hex() if isinstance(value, float) else value for value in row.values()])

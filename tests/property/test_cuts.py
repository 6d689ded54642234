"""Where the input is cut, and how many workers there are, never shows: neither in the windows nor in the late rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dataflow as flow
from dataflow import Aggregate, col, count
from dataflow.operators.sources import parquet
from dataflow.operators.windows import partial
from tests import generator, oracle
from tests.harness import KeepingSink, WindowRun, run_windows

FLOATS = tuple(x for x in generator.VALUES if x is None or abs(x) < 1e10)
"""Without the values that cancel out: sums can then be told to the last bit or so."""
TOLERANCE = {"total": 1e-9, "mean": 1e-9, "p90": 1e-9}

AGGREGATES: Mapping[str, tuple[Aggregate, oracle.Aggregate]] = {
    "n": (count(), oracle.count()),
    "n_values": (count(col.value), oracle.count("value")),
    "total": (col.value.sum(), oracle.total("value")),
    "mean": (col.value.mean(), oracle.mean("value")),
    "low": (col.value.min(), oracle.least("value")),
    "high": (col.value.max(), oracle.greatest("value")),
    "small_total": (col.small.sum(), oracle.total("small")),
    "small_mean": (col.small.mean(), oracle.mean("small")),
    "extreme_low": (col.extreme.min(), oracle.least("extreme")),
    "extreme_high": (col.extreme.max(), oracle.greatest("extreme")),
    "label_low": (col.label.min(), oracle.least("label")),
    "first": (col.ordinal.first(), oracle.first("ordinal")),
    "last": (col.label.last(), oracle.last("label")),
    "top": (col.ordinal.max_by(col.small), oracle.max_by("ordinal", "small")),
    "bottom": (col.label.min_by(col.value), oracle.min_by("label", "value")),
    "p90": (col.value.quantile(0.9, exact=True), oracle.quantile("value", 0.9)),
}
MERGEABLE = tuple(name for name in AGGREGATES if name != "p90")
"""An exact quantile needs all values in one place; without it groups are formed before the exchange."""


@dataclass(frozen=True)
class Job:
    """A windowed aggregate, to be asked of the engine and of the oracle."""

    by: Sequence[str] = ("key",)
    names: Sequence[str] = tuple(AGGREGATES)
    size_us: int = generator.WINDOW_US
    delay_us: int = generator.DELAY_US
    lateness_us: int = 0
    offset_us: int = 0

    def windows(self, source: flow.Stream) -> flow.Stream:
        window = flow.tumbling(f"{self.size_us}us", offset=f"{self.offset_us}us")
        return (
            source.watermark("at", delay=f"{self.delay_us}us")
            .window(window, by=self.by, lateness=f"{self.lateness_us}us")
            .agg(*[AGGREGATES[name][0].alias(name) for name in self.names])
        )

    def answer(self, tables: Mapping[str, pa.Table]) -> oracle.Answer:
        return oracle.tumbling(
            tables,
            {name: AGGREGATES[name][1] for name in self.names},
            time="at",
            by=self.by,
            size_us=self.size_us,
            delay_us=self.delay_us,
            lateness_us=self.lateness_us,
            offset_us=self.offset_us,
        )

    def check(self, run: WindowRun, answer: oracle.Answer) -> None:
        by = ("window_start", "window_end", *self.by)
        oracle.assert_same_rows(run.final, answer.final, by=by, tolerance=TOLERANCE)
        oracle.assert_same_rows(run.late, [row.values for row in answer.late], by=("ordinal",))
        counted = sum(row["n"] for row in run.final)
        assert counted + len(run.late) + len(answer.without_time) == run.result.rows_in
        for step, counts in run.result.ledger.items():
            where = [counts[one] for one in ("passed", "filtered", "late", "dead", "folded", "held")]
            assert counts["rows_in"] == sum(where), f"{step}: {counts}"


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    return generator.tables(20, rows=1500, floats=FLOATS)


@pytest.mark.slow
@pytest.mark.parametrize("names", [tuple(AGGREGATES), MERGEABLE], ids=["rows", "merged"])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 7, 1000, 65_536])
def test_batch_size_and_workers_do_not_show(
    tables: dict[str, pa.Table], size: int, workers: int, names: Sequence[str]
) -> None:
    job = Job(names=names)
    source = generator.ReplaySource({name: generator.cut(table, [size]) for name, table in tables.items()})
    job.check(run_windows(job.windows(flow.read(source)), workers), job.answer(tables))


JOBS = st.builds(
    Job,
    by=st.sampled_from([("key",), (), ("number",), ("flag", "ratio")]),
    names=st.sampled_from([tuple(AGGREGATES), MERGEABLE]),
    size_us=st.sampled_from([1, 1_000_003, 10_000_000, 3_600_000_000]),
    delay_us=st.sampled_from([0, 1, 5_000_000, 60_000_000]),
    lateness_us=st.sampled_from([0, 1, 7_000_000]),
    offset_us=st.sampled_from([0, 1, -3_000_000]),
)


@pytest.mark.slow
@given(job=JOBS, seed=st.integers(0, 10_000), workers=st.sampled_from([1, 2, 4]), hesitant=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_cut_gives_the_same_rows(job: Job, seed: int, workers: int, hesitant: bool) -> None:
    tables = generator.tables(seed, rows=120, floats=FLOATS)
    batches = {name: generator.random_cut(table, seed) for name, table in tables.items()}
    source = generator.ReplaySource(batches, hesitant=hesitant)
    job.check(run_windows(job.windows(flow.read(source)), workers), job.answer(tables))


@pytest.mark.parametrize("names", [tuple(AGGREGATES), MERGEABLE], ids=["rows", "merged"])
@pytest.mark.parametrize(
    "by", [(), ("number",), ("ratio",), ("flag",), ("key", "number"), ("ratio", "flag", "key"), ("label", "small")]
)
def test_any_key_gives_the_same_rows(by: Sequence[str], names: Sequence[str]) -> None:
    job = Job(by=by, names=names)
    tables = generator.tables(5, rows=400, floats=FLOATS)
    source = generator.ReplaySource({name: generator.random_cut(table, 5) for name, table in tables.items()})
    job.check(run_windows(job.windows(flow.read(source)), workers=2), job.answer(tables))


@pytest.mark.parametrize(
    "groups_max", [(0, 1 << 18), (2, 5), (1 << 16, 3)], ids=["all wide", "wide and early", "early"]
)
@given(job=JOBS, seed=st.integers(0, 10_000), workers=st.sampled_from([2, 3]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_who_merges_a_window_and_when_does_not_show(
    groups_max: tuple[int, int], job: Job, seed: int, workers: int
) -> None:
    with pytest.MonkeyPatch.context() as few:
        few.setattr(partial, "WHOLE_GROUPS_MAX", groups_max[0])
        few.setattr(partial, "PARTIAL_GROUPS_MAX", groups_max[1])
        job = replace(job, names=MERGEABLE)
        tables = generator.tables(seed, rows=120, floats=FLOATS)
        source = generator.ReplaySource({name: generator.random_cut(table, seed) for name, table in tables.items()})
        run = run_windows(job.windows(flow.read(source)), workers)
        job.check(run, job.answer(tables))
        alone = run_windows(job.windows(flow.read(source)), workers=1)
        assert [_bits(row) for row in run.final] == [_bits(row) for row in alone.final]


@pytest.mark.parametrize("workers", [1, 4])
def test_rows_without_a_time_are_error_rows_and_move_nothing(workers: int) -> None:
    job, errors = Job(), KeepingSink()
    tables = generator.tables(8, rows=400, null_times=True, floats=FLOATS)
    batches = {name: generator.random_cut(table, 8) for name, table in tables.items()}
    watched = flow.read(generator.ReplaySource(batches)).watermark("at", delay="5s")
    answer = job.answer(tables)
    job.check(run_windows(job.windows(flow.read(generator.ReplaySource(batches))), workers), answer)

    flow.Pipeline("errors", watched.errors.to(errors)).run(workers=workers)
    oracle.assert_same_rows(errors.rows(), answer.without_time, by=("ordinal",))


@pytest.mark.parametrize("small_rows", [1, 20])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("row_group_rows", [1, 7, 1000])
def test_row_groups_and_files_of_one_partition_do_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_group_rows: int, workers: int, small_rows: int
) -> None:
    monkeypatch.setattr(parquet, "SMALL_ROWS", small_rows)
    table = generator.tables(3, rows=600, floats=FLOATS)["p0"]
    borders = (0, 1, 250, 400, table.num_rows)
    for number, (start, end) in enumerate(itertools.pairwise(borders)):
        pq.write_table(table.slice(start, end - start), tmp_path / f"{number}.parquet", row_group_size=row_group_rows)
    job = Job()
    windows = job.windows(flow.read_parquet(tmp_path / "*.parquet"))
    job.check(run_windows(windows, workers), job.answer({"p0": table}))


@pytest.mark.parametrize("names", [tuple(AGGREGATES), MERGEABLE], ids=["rows", "merged"])
def test_every_run_gives_the_same_bits_in_the_same_order(names: Sequence[str]) -> None:
    tables, job = generator.tables(11, rows=500), Job(names=names)
    runs = []
    for size, workers in ((1, 1), (13, 4), (500, 2)):
        source = generator.ReplaySource({name: generator.cut(table, [size]) for name, table in tables.items()})
        run = run_windows(job.windows(flow.read(source)), workers)
        runs.append(([_bits(row) for row in run.final], sorted(_bits(row) for row in run.late)))
    assert runs[0] == runs[1] == runs[2]


def _bits(row: Mapping[str, Any]) -> str:
    return repr([value.hex() if isinstance(value, float) else value for value in row.values()])


UNORDERED = tuple(name for name in AGGREGATES if name not in ("first", "last", "top", "bottom"))
"""What needs no time of a row but the window that it is in."""


@given(
    job=JOBS,
    seed=st.integers(0, 10_000),
    row_group_rows=st.sampled_from([1, 3, 20]),
    small_rows=st.sampled_from([1, 4]),
    workers=st.sampled_from([1, 2]),
    null_times=st.booleans(),
    is_mergeable=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_times_that_statistics_tell_need_not_be_decoded(
    tmp_path_factory: pytest.TempPathFactory,
    job: Job,
    seed: int,
    row_group_rows: int,
    small_rows: int,
    workers: int,
    null_times: bool,
    is_mergeable: bool,
) -> None:
    job = replace(job, names=[name for name in UNORDERED if name in MERGEABLE] if is_mergeable else UNORDERED)
    table = generator.tables(seed, rows=120, null_times=null_times, floats=FLOATS)["p0"]
    path = tmp_path_factory.mktemp("times") / "x.parquet"
    pq.write_table(table, path, row_group_size=row_group_rows)
    with pytest.MonkeyPatch.context() as small:
        small.setattr(parquet, "SMALL_ROWS", small_rows)
        job.check(run_windows(job.windows(flow.read_parquet(path)), workers), job.answer({"p0": table}))

        told = _runs_after_steps(job, path, workers)
        pq.write_table(table, path, row_group_size=row_group_rows, write_statistics=False)
        assert _runs_after_steps(job, path, workers) == told


def _runs_after_steps(job: Job, path: Path, workers: int) -> list[list[str]]:
    """Final, late and error rows, where rows are filtered and some cannot be computed on the way to the window."""
    watched = flow.read_parquet(path).watermark("at", delay=f"{job.delay_us}us")
    derived = watched.filter(col.small.is_null() | (col.small > -30)).derive(more=col.extreme + 1)
    windows = derived.window(flow.tumbling(f"{job.size_us}us"), by=job.by, lateness=f"{job.lateness_us}us").agg(
        *[AGGREGATES[name][0].alias(name) for name in job.names], doubled=(col.extreme * 2).sum(), more=col.more.min()
    )
    sinks = KeepingSink(), KeepingSink(), KeepingSink(), KeepingSink()
    streams = windows, windows.late, windows.errors, derived.errors
    outputs = [stream.to(sink, name=f"sink {n}") for n, (stream, sink) in enumerate(zip(streams, sinks, strict=True))]
    flow.Pipeline("steps", *outputs).run(workers=workers)
    final, *others = [[_bits(row) for row in sink.rows()] for sink in sinks]
    return [final, *map(sorted, others)]


ERROR_ROWS = pa.table(
    {
        "id": range(60),
        "n": [number % 4 for number in range(60)],
        "big": [(number % 3) * 2**61 for number in range(60)],
        "at": pa.array([1_000_000 * number for number in range(60)], pa.timestamp("us")),
    }
)
"""Each expression of the test below fails in rows of its own, and in some rows two do."""
FAILING: Mapping[str, Callable[[flow.Stream], flow.Stream]] = {
    "filter": lambda rows: rows.filter(col.big * 2 >= 0, col.id % 5 != 3, 1 // col.n >= 0),
    "derive": lambda rows: rows.derive(q=col.id % col.n, twice=col.big * 2),
    "derive, chained": lambda rows: rows.derive(twice=col.big * 2, q=col.twice // col.n),
    "select": lambda rows: rows.select("id", twice=col.big * 2, q=col.id % col.n),
    "arguments": lambda rows: (
        rows.watermark("at").window(flow.tumbling("7s")).agg(a=(col.big * 2).max(), b=(col.id // col.n).sum())
    ),
}


@pytest.mark.parametrize("step", FAILING)
def test_error_rows_come_in_the_order_of_rows_wherever_they_are_cut(step: str) -> None:
    runs = []
    for size, workers in itertools.product((1, 7, 1000), (1, 2)):
        rows = flow.from_arrow(pa.Table.from_batches(generator.cut(ERROR_ROWS, [size])))
        runs.append(FAILING[step](rows).errors.collect(workers=workers).to_pylist())
    assert all(run == runs[0] for run in runs)
    assert len({row["error_message"] for row in runs[0]}) > 1
    ids = [row["id"] for row in runs[0]]
    assert ids == sorted(set(ids))


def test_a_row_that_fails_in_several_expressions_is_one_error_row_with_the_first_reason() -> None:
    rows = flow.from_arrow(pa.table({"n": [0, 1, 0], "m": [1, 0, 0]}))
    made = rows.derive(a=1 // col.n, b=1 // col.m)
    failed = made.errors.collect().to_pylist()
    assert [(row["n"], row["m"]) for row in failed] == [(0, 1), (1, 0), (0, 0)]
    assert ["col.n" in row["error_message"] for row in failed] == [True, False, True]


def test_groups_that_cannot_be_computed_come_in_the_order_of_windows_and_keys() -> None:
    windows = flow.from_arrow(ERROR_ROWS).watermark("at").window(flow.tumbling("12s"), by="big")
    failed = windows.agg(a=(col.big // 2).sum(), b=col.big.sum()).errors.collect(workers=1).to_pylist()
    assert [row["at"].second for row in failed] == [0, 0, 12, 12, 24, 24, 36, 36, 48, 48]
    assert [row["big"] for row in failed] == [2**61, 2**62] * 5
    assert len({row["error_message"] for row in failed}) == 2

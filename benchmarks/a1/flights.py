"""All flights of 2013: the same rows as DuckDB over the same file, and exactly so many late ones.

DuckDB knows no watermarks, so lateness is told there by a running maximum in the order of the file.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

import dataflow as flow
from benchmarks.lines import Line, Options, exactly
from dataflow import col, count

DEPARTED, ALL_ROWS, WITHOUT_DELAY = 328_521, 336_776, 8_255
LATE_BY_HOURS = {24: 0, 6: 11_159}
FLOAT_TOLERANCE = 1e-9

QUERY = """
WITH flown AS (
    SELECT *, time_hour + to_minutes(minute + dep_delay) AS happened
    FROM (SELECT *, row_number() OVER () AS n FROM read_csv('{path}', nullstr = 'NA', parallel = false))
    WHERE dep_delay IS NOT NULL
), judged AS (
    SELECT *, time_bucket(INTERVAL 1 HOUR, happened) AS start,
        max(happened) OVER earlier - INTERVAL {hours} HOUR AS watermark
    FROM flown WINDOW earlier AS (ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)
SELECT epoch_us(start) AS start_us, origin, count(*) AS flights, avg(dep_delay) AS mean_delay,
    quantile_cont(dep_delay, 0.95) AS p95_delay, first(carrier ORDER BY dep_delay DESC, happened, n) AS worst_carrier
FROM judged WHERE watermark IS NULL OR start + INTERVAL 1 HOUR > watermark
GROUP BY ALL
"""
Rows = dict[tuple[int, str], tuple[Any, ...]]


def lines(options: Options) -> Iterator[Line]:
    if options.flights is None:
        yield Line("all flights equal DuckDB's answer", "not run: give --flights FILE", "", ok=False)
        return
    for hours, late_expected in LATE_BY_HOURS.items():
        ours, late, filtered = windows(options.flights, hours)
        theirs = duckdb_rows(options.flights, hours)
        different = len(ours.keys() ^ theirs.keys()) + sum(
            not _equal(ours[key], theirs[key]) for key in ours.keys() & theirs.keys()
        )
        counted = sum(row[0] for row in ours.values())
        yield exactly(f"delay {hours} h: rows that differ from DuckDB's {len(theirs):,}", different, 0)
        yield exactly(f"delay {hours} h: late rows", late, late_expected)
        yield exactly(f"delay {hours} h: counted and late", counted + late, DEPARTED)
        yield exactly(f"delay {hours} h: filtered, as they have no departure", filtered, WITHOUT_DELAY)


def windows(path: Path, hours: int) -> tuple[Rows, int, int]:
    """The rows of the example's query over a file, the number of late rows, and of filtered ones."""
    departed = (
        flow.read_csv(path, null_values=("NA",))
        .filter(col.dep_delay.is_not_null())
        .derive(departed=col.time_hour + flow.duration(minutes=col.minute + col.dep_delay))
    )
    hourly = (
        departed.watermark("departed", delay=f"{hours}h")
        .window(flow.tumbling("1h"), by="origin")
        .agg(
            flights=count(),
            mean_delay=col.dep_delay.mean(),
            p95_delay=col.dep_delay.quantile(0.95, exact=True),
            worst_carrier=col.carrier.max_by(col.dep_delay),
        )
    )
    with tempfile.TemporaryDirectory() as folder, flow.Store(folder) as store:
        sinks = hourly.write_topic("hourly"), hourly.late.write_topic("late")
        flow.Pipeline("flights", *sinks).run(store=store)
        table = store.read("hourly")
        late = store.read("late").num_rows
    starts = table["window_start"].cast(pa.timestamp("us")).cast(pa.int64()).to_pylist()
    values = table.select(["flights", "mean_delay", "p95_delay", "worst_carrier"]).to_pylist()
    rows = {
        (start, origin): tuple(row.values())
        for start, origin, row in zip(starts, table["origin"].to_pylist(), values, strict=True)
    }
    return rows, late, ALL_ROWS - departed.collect().num_rows


def duckdb_rows(path: Path, hours: int) -> Rows:
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    found = connection.execute(QUERY.format(path=path, hours=hours)).fetchall()
    return {(row[0], row[1]): row[2:] for row in found}


def _equal(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    return all(
        math.isclose(one, two, rel_tol=FLOAT_TOLERANCE, abs_tol=FLOAT_TOLERANCE)
        if isinstance(one, float)
        else one == two
        for one, two in zip(ours, theirs, strict=True)
    )

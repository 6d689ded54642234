"""One engine in a process of its own, warm, running a round on command.

    python benchmarks/engines.py ENGINE FOLDER        (ENGINE: dataflow, duckdb, polars, pyarrow)

Reads a shape a line from stdin (`int`, `csv` …), runs that job once, and answers with a JSON line: the wall seconds
of the job alone, and the result summed up (`workload.Answer`), which is not part of the time. Every engine gets
two threads and the same CPUs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import workload

THREADS = 2
Job = Callable[[], pa.Table]
"""Runs once; the result has the columns key (or a and b), minute, n, s, and low and high where they were asked for."""


# ── dataflow ─────────────────────────────────────────────────────────────────────────────────────────────


def dataflow_job(folder: Path, shape: str) -> Job:
    import dataflow as flow
    from dataflow import col, count

    def source() -> flow.Stream:
        match shape:
            case "csv":
                text = flow.read_csv(folder / "int.csv", schema={"ts": "int64", "key": "int64", "value": "float64"})
                return text.derive(time=col.ts.cast("timestamp[ms]")).watermark("time", delay=workload.DELAY)
            case "topic":
                stream = flow.read_topic("events", store=folder / "store")
            case "str" | "two":
                stream = flow.read_parquet(folder / f"{shape}.parquet")
            case "filter":
                stream = flow.read_parquet(folder / "int.parquet")
                watched = stream.watermark("ts", delay=workload.DELAY)
                return watched.filter(col.value < workload.FILTER_BELOW).derive(value=col.value * 2.0)
            case _:
                stream = flow.read_parquet(folder / "int.parquet")
        return stream.watermark("ts", delay=workload.DELAY)

    def job() -> pa.Table:
        by = ["a", "b"] if shape == "two" else "key"
        windows = source().window(flow.tumbling("1m"), by=by)
        value = col.value
        if shape == "five":
            return windows.agg(n=count(), s=value.sum(), mean=value.mean(), low=value.min(), high=value.max()).collect()
        return windows.agg(n=count(), s=value.sum()).collect()

    return job


# ── DuckDB ───────────────────────────────────────────────────────────────────────────────────────────────


def duckdb_job(folder: Path, shape: str) -> Job:
    import duckdb

    connection = duckdb.connect(config={"threads": THREADS})
    name = shape if shape in ("str", "two") else "int"
    source, minute = f"'{folder}/{name}.parquet'", "time_bucket(INTERVAL '1 minute', ts)"
    if shape == "csv":
        columns = "{ts: 'BIGINT', key: 'BIGINT', value: 'DOUBLE'}"
        source, minute = f"read_csv('{folder}/int.csv', columns = {columns})", "ts // 60000"
    keys = "a, b" if shape == "two" else "key"
    value, where = ("value * 2.0", f"WHERE value < {workload.FILTER_BELOW}") if shape == "filter" else ("value", "")
    more = ", avg(value) AS mean, min(value) AS low, max(value) AS high" if shape == "five" else ""
    query = (
        f"SELECT {keys}, {minute} AS minute, count(*) AS n, sum({value}) AS s{more} FROM {source} {where} GROUP BY ALL"
    )
    return lambda: connection.sql(query).to_arrow_table()


# ── Polars ───────────────────────────────────────────────────────────────────────────────────────────────


def polars_job(folder: Path, shape: str) -> Job:
    import polars as pl

    ts, value = pl.col("ts"), pl.col("value")
    if shape == "csv":
        types = {"ts": pl.Int64, "key": pl.Int64, "value": pl.Float64}
        frame, minute = pl.scan_csv(folder / "int.csv", schema=types), ts // 60_000
    else:
        name = shape if shape in ("str", "two") else "int"
        frame, minute = pl.scan_parquet(folder / f"{name}.parquet"), ts.dt.truncate("1m")
    if shape == "filter":
        frame, value = frame.filter(value < workload.FILTER_BELOW), value * 2.0
    aggregates = [pl.len().alias("n"), value.sum().alias("s")]
    if shape == "five":
        aggregates += [value.mean().alias("mean"), value.min().alias("low"), value.max().alias("high")]
    keys = ["a", "b"] if shape == "two" else ["key"]
    query = frame.group_by(*keys, minute.alias("minute")).agg(*aggregates)
    return lambda: query.collect(engine="streaming").to_arrow()


# ── what decoding alone costs: pyarrow, a reader a thread ────────────────────────────────────────────────


def pyarrow_job(folder: Path, shape: str) -> Job:
    path = folder / ("str.parquet" if shape == "str" else "int.parquet")
    groups = pq.read_metadata(path).num_row_groups

    def every(first: int) -> int:
        file = pq.ParquetFile(path, read_dictionary=["key"] if shape == "str" else None)
        return sum(
            int(file.read_row_group(group, use_threads=False).num_rows) for group in range(first, groups, THREADS)
        )

    def job() -> pa.Table:
        with ThreadPoolExecutor(THREADS) as pool:
            return pa.table({"n": pa.array(list(pool.map(every, range(THREADS))))})

    return job


ENGINES = {"dataflow": dataflow_job, "duckdb": duckdb_job, "polars": polars_job, "pyarrow": pyarrow_job}


def summed_up(result: pa.Table) -> workload.Answer:
    """A result in the numbers of `workload.Answer`, whatever the engine calls its windows."""
    names = result.schema.names
    if names == ["n"]:
        return workload.Answer(0, pc.sum(result["n"]).as_py(), 0.0, 0, 0.0)
    if "a" in names:
        key = result["a"].to_numpy() * workload.TWO_B + result["b"].to_numpy()
    elif pa.types.is_integer(result["key"].type):
        key = result["key"].to_numpy()
    else:
        numbers = pc.utf8_slice_codeunits(result["key"].cast(pa.string()), len("user-"))
        key = numbers.cast(pa.int64()).to_numpy()
    minute = result["window_start" if "window_start" in names else "minute"]
    if pa.types.is_timestamp(minute.type):
        minute = pc.divide(minute.cast(pa.timestamp("us")).cast(pa.int64()), 60_000_000)
    return workload.answer_of(
        key.astype(np.int64),
        minute.to_numpy(),
        result["n"].to_numpy().astype(np.int64),
        result["s"].to_numpy(),
        [result[name].to_numpy() for name in ("mean", "low", "high") if name in names],
    )


def main() -> None:
    engine, folder = sys.argv[1], Path(sys.argv[2])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    os.environ["POLARS_MAX_THREADS"] = str(THREADS)
    jobs: dict[str, Job] = {}
    for line in sys.stdin:
        shape = line.strip()
        if shape not in jobs:
            jobs[shape] = ENGINES[engine](folder, shape)
        began = time.perf_counter()
        result = jobs[shape]()
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "answer": asdict(summed_up(result))}), flush=True)


if __name__ == "__main__":
    main()

"""What a batch costs when it holds one row: time per stage, and Python calls.

The work for a row is next to nothing, so this is the engine's own cost. It bounds the latency of live streams, and
how much a badly cut input can hurt.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pyarrow as pa

import dataflow as flow
from benchmarks.lines import Line, Options, at_most
from dataflow import col, count

BATCHES, ROUNDS = 10_000, 5
MICROSECONDS_MAX = 150
CALLS_MAX = 120
"""Python calls a batch in all stages of the windowed job; tests/test_calls_per_batch.py holds it to that as well."""


class NullSink:
    """Takes everything and keeps nothing."""

    def open(self, epoch: int) -> None:
        """Nothing to open."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Nothing to keep."""

    def prepare(self, epoch: int) -> object:
        return epoch

    def commit(self, handle: object) -> None:
        """Nothing to show."""

    def abort(self, handle: object) -> None:
        """Nothing to take back."""


def one_row_batches(count: int) -> pa.Table:
    """A table of so many chunks of one row."""
    columns = {
        "at": pa.array(range(count), pa.timestamp("ms")),
        "key": pa.array([number % 10 for number in range(count)], pa.int64()),
        "value": pa.repeat(pa.scalar(0.5), count),
    }
    return pa.Table.from_batches(pa.table(columns).to_batches(max_chunksize=1))


def stateless(table: pa.Table) -> None:
    """Two stages, and each sees every batch: the source with its steps, and the sink."""
    rows = flow.from_arrow(table).filter(col.value > 0.1).derive(double=col.value * 2.0)
    flow.Pipeline("stateless", rows.to(NullSink())).run(workers=1)


def windowed(table: pa.Table) -> None:
    """Only the source's stage sees every batch; the groups go on when a window closes."""
    rows = flow.from_arrow(table).watermark("at", delay="1s").filter(col.value > 0.1)
    hourly = rows.window(flow.tumbling("1h"), by="key").agg(n=count(), s=col.value.sum())
    flow.Pipeline("windowed", hourly.to(NullSink())).run(workers=1)


def lines(_: Options) -> Iterator[Line]:
    for job, stages, text in (
        (stateless, 2, "filter and derive into a sink"),
        (windowed, 1, "watermark, filter and window"),
    ):
        cost = microseconds_per_batch(job) / stages
        yield at_most(f"a batch of one row, per stage: {text}", cost, MICROSECONDS_MAX, "µs", 0)
    yield at_most(
        "Python calls a batch: watermark, filter and window", calls_per_batch(windowed), CALLS_MAX, "calls", 0
    )


def microseconds_per_batch(job: Callable[[pa.Table], None]) -> float:
    """The median over some rounds, less what a run of one batch costs."""
    many, one = one_row_batches(BATCHES), one_row_batches(1)
    job(many)
    return (_seconds(job, many) - _seconds(job, one)) / (BATCHES - 1) * 1e6


def _seconds(job: Callable[[pa.Table], None], table: pa.Table) -> float:
    walls = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        job(table)
        walls.append(time.perf_counter() - began)
    return statistics.median(walls)


def calls_per_batch(job: Callable[[pa.Table], None], batches: int = 500) -> float:
    """How many Python functions are entered for one more batch, in all threads."""
    few, many = one_row_batches(batches), one_row_batches(2 * batches)
    job(few)
    return (_calls(job, many) - _calls(job, few)) / batches


def _calls(job: Callable[[pa.Table], None], table: pa.Table) -> int:
    entered = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal entered
        entered += event == "call"

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        job(table)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return entered

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
from dataflow.plan import make_plan

BATCHES, ROUNDS = 10_000, 5
MICROSECONDS_MAX = 150
CALLS_MAX = 450
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


def stateless(table: pa.Table) -> flow.Pipeline:
    """Two stages: the source with its steps, and the sink."""
    rows = flow.from_arrow(table).filter(col.value > 0.1).derive(double=col.value * 2.0)
    return flow.Pipeline("stateless", rows.to(NullSink()))


def windowed(table: pa.Table) -> flow.Pipeline:
    """Three stages, and every batch moves the watermark of all: up to the groups, the windows, and the sink."""
    rows = flow.from_arrow(table).watermark("at", delay="1s").filter(col.value > 0.1)
    hourly = rows.window(flow.tumbling("1h"), by="key").agg(n=count(), s=col.value.sum())
    return flow.Pipeline("windowed", hourly.to(NullSink()))


Job = Callable[[pa.Table], flow.Pipeline]


def stages(job: Job) -> int:
    """Into how many stages the job is planned."""
    return len(make_plan(job(one_row_batches(1)).nodes, workers=1).stages)


def lines(_: Options) -> Iterator[Line]:
    for job, text in ((stateless, "filter, derive, sink"), (windowed, "watermark, filter, window, sink")):
        number = stages(job)
        cost = microseconds_per_batch(job) / number
        yield at_most(f"a batch of one row, for each of {number} stages: {text}", cost, MICROSECONDS_MAX, "µs", 0)
    yield at_most(
        f"Python calls a batch, in {stages(windowed)} stages", calls_per_batch(windowed), CALLS_MAX, "calls", 0
    )


def microseconds_per_batch(job: Job) -> float:
    """The median over some rounds, less what a run of one batch costs."""
    many, one = one_row_batches(BATCHES), one_row_batches(1)
    job(many).run(workers=1)
    return (_seconds(job, many) - _seconds(job, one)) / (BATCHES - 1) * 1e6


def _seconds(job: Job, table: pa.Table) -> float:
    walls = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        job(table).run(workers=1)
        walls.append(time.perf_counter() - began)
    return statistics.median(walls)


def calls_per_batch(job: Job, batches: int = 500) -> float:
    """How many Python functions are entered for one more batch, in all threads."""
    few, many = one_row_batches(batches), one_row_batches(2 * batches)
    job(few).run(workers=1)
    return (_calls(job, many) - _calls(job, few)) / batches


def _calls(job: Job, table: pa.Table) -> int:
    entered = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal entered
        entered += event == "call"

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        job(table).run(workers=1)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return entered

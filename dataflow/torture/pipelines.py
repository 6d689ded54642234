"""The pipeline that the end-to-end rows torture: numbered rows with late ones among them, through windows, into three
kinds of sinks. What it has to give follows from the number of rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

import dataflow as flow
from dataflow import col, count
from dataflow.system import Clock, RealSystem

SCHEMA = pa.schema({"at": pa.timestamp("us"), "key": pa.int64(), "value": pa.float64()})
PARTITIONS = 2
ROW_US, JITTER_US, DELAY = 25, 40_000, "50ms"
"""Of event time between two rows of a partition, how far they are out of order at most, and what is allowed."""
LATE_EVERY, LATE_US = 9_973, 5_000_000
MIX = np.uint64(0x9E3779B97F4A7C15)
"""Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4)."""
KEYS = 1_000
BATCH_ROWS = 8_192
NAME = "tortured"


def rows_of(partition: int, first: int, number: int) -> pa.RecordBatch:
    """Some rows of a partition: always the same ones."""
    n = np.arange(first, first + number, dtype=np.int64) * PARTITIONS + partition
    mixed = (n.astype(np.uint64) * MIX >> np.uint64(1)).astype(np.int64)
    at = n // PARTITIONS * ROW_US + mixed % JITTER_US
    at = np.where(n % LATE_EVERY == 0, at - LATE_US, at)
    arrays = [pa.array(at).cast(pa.timestamp("us")), pa.array((mixed >> 20) % KEYS), pa.array((mixed >> 8) % 2**40 / 7)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


class Numbers:
    """`rows` rows in two partitions, at most `rows_per_second` of them (0: as fast as they are read).

    An endless source waits behind them. `tell` hears of each batch before it is handed out: the partition, the number
    of its first row there, and how many rows; and, with none, where a partition is opened.
    """

    name, schema = "numbers", SCHEMA

    def __init__(
        self,
        rows: int,
        rows_per_second: float = 0.0,
        clock: Clock | None = None,
        *,
        bounded: bool = True,
        tell: Callable[[str, int, int], None] = lambda partition, first, rows: None,
    ) -> None:
        self.rows, self.rows_per_second, self.bounded, self.tell = rows, rows_per_second, bounded, tell
        self.clock = clock or RealSystem().clock

    def partitions(self) -> Sequence[str]:
        return [str(number) for number in range(PARTITIONS)]

    def open(self, partition: str, position: object | None) -> _Reader:
        return _Reader(self, int(partition), position if isinstance(position, int) else 0)


class _Reader:
    def __init__(self, source: Numbers, partition: int, first: int) -> None:
        self.source, self.partition, self.first, self.next = source, partition, first, first
        self.began = source.clock.monotonic()
        source.tell(str(partition), first, 0)

    def read(self, rows_max: int) -> pa.RecordBatch | flow.Idle | flow.EndOfInput:
        source = self.source
        left = source.rows // PARTITIONS - self.next
        if left <= 0:
            return flow.EndOfInput() if source.bounded else flow.Idle()
        if source.rows_per_second:
            seconds = source.clock.monotonic() - self.began
            allowed = int(seconds * source.rows_per_second / PARTITIONS) - (self.next - self.first)
            if allowed <= 0:
                return flow.Idle()
            left = min(left, allowed)
        found = rows_of(self.partition, self.next, min(left, rows_max, BATCH_ROWS))
        source.tell(str(self.partition), self.next, found.num_rows)
        self.next += found.num_rows
        return found

    def position(self) -> object:
        return self.next


def pipeline(root: Path, source: Numbers, *, all_sinks: bool = True, roll: str = "1MB") -> flow.Pipeline:
    """Windows of a second into a topic, and into Parquet files and a SQLite table below `root`."""
    rows = flow.read(source).watermark("at", delay=DELAY)
    seconds = rows.window(flow.tumbling("1s"), by="key").agg(
        n=count(), total=col.value.sum(), least=col.value.min(), first=col.value.first()
    )
    sinks = [seconds.write_topic("seconds")]
    if all_sinks:
        sinks.append(seconds.write_parquet(str(root / "parts") + "/", roll=roll))
        sinks.append(seconds.write_sqlite(str(root / "seconds.sqlite"), "seconds"))
    return flow.Pipeline(NAME, *sinks)

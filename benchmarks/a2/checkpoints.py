"""What epochs cost a run, measured inside: (snapshot + stall + commit) ÷ wall, from a generator of rows at full speed.

`snapshot` is what tasks are kept from their work, `stall` what a worker idles although rows wait, `commit` what the
thread of `run` takes to write and to commit, waiting for the disk included; that goes on beside the workers, so the
throughput with and without epochs is printed too.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator

from benchmarks.lines import Line, Options, at_most, python

KEYS, SHARE_MAX = 10_000, 5.0
SECONDS = 20.0
NAMES = ("snapshot", "stall", "commit")
CODE = """
import json, sys, time
import numpy as np, pyarrow as pa
import dataflow as flow
from dataflow import col, count

interval, seconds, keys, store = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
SCHEMA = pa.schema({"at": pa.timestamp("us"), "key": pa.int64(), "value": pa.float64()})
ROWS = 262_144

class Generator:
    name, schema, bounded = "generator", SCHEMA, True
    def __init__(self):
        chance = np.random.default_rng(1)
        self.keys, self.values = chance.integers(0, keys, ROWS), chance.random(ROWS)
        self.numbers, self.next, self.began = np.arange(ROWS), 0, None
    def partitions(self): return ["0"]
    def open(self, partition, position): return self
    def read(self, rows_max):
        self.began = self.began or time.monotonic()
        if time.monotonic() - self.began > seconds:
            return flow.EndOfInput()
        n = min(rows_max, ROWS)
        at = pa.array(self.next + self.numbers[:n]).cast(pa.timestamp("us"))
        self.next += n
        return pa.RecordBatch.from_arrays([at, pa.array(self.keys[:n]), pa.array(self.values[:n])], schema=SCHEMA)
    def position(self): return self.next

rows = flow.read(Generator()).watermark("at", delay="1s")
windows = rows.window(flow.tumbling("1m"), by="key").agg(n=count(), total=col.value.sum(), most=col.value.max())
result = flow.Pipeline("cost", windows.write_topic("out")).run(store=store, checkpoint_interval=interval, workers=2)
costs = result.costs
print(json.dumps([result.rows_in / result.seconds, result.epochs, result.seconds,
                  costs.snapshot, costs.stall, costs.commit]))
"""


def lines(options: Options) -> Iterator[Line]:
    idle = statistics.median(_run("1000s", KEYS, options.seconds / 6)[0] for _ in range(3))
    for interval, keys in (("1s", KEYS), ("100ms", KEYS), ("100ms", 100)):
        rate, epochs, seconds, *costs = _run(interval, keys, min(SECONDS, options.seconds))
        shares = [100 * cost / seconds for cost in costs]
        told = ", ".join(
            f"{name} {share:.2f} %" for name, share in zip(("snapshot", "stall", "commit"), shares, strict=True)
        )
        beside = (
            f"; {rate / 1e6:.0f} M rows/s, {100 * (1 - rate / idle):.1f} % less than without" if keys == KEYS else ""
        )
        what = f"epochs every {interval}, {keys:,} keys ({epochs} epochs; {told}{beside})"
        yield at_most(what, sum(shares), SHARE_MAX, "%", 2)


def _run(interval: str, keys: int, seconds: float) -> list[float]:
    with tempfile.TemporaryDirectory() as store:
        found: list[float] = json.loads(python(CODE, interval, str(seconds), str(keys), store))
        return found

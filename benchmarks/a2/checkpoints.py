"""What epochs cost a run, measured inside: (snapshot + stall + commit) ÷ wall, from a generator of rows.

`snapshot` is what tasks are kept from their work, `stall` what a worker idles although rows wait, `commit` what the
thread of `run` takes to write and to commit, waiting for the disk included. That goes on beside the workers; so for a
source of batches that keeps both cores busy, what epochs take from the throughput is told too.
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

kind, interval, seconds, keys, store = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
ROWS = 262_144

def generator():
    began, number = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for _ in range(1_000):
            number += 1
            yield number * 10, number * 7919 % keys, number * 0.5

class Batches:
    name, schema, bounded = "batches", pa.schema({"at": pa.int64(), "key": pa.int64(), "value": pa.float64()}), True
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
        at = pa.array(self.next + self.numbers[:n])
        self.next += n
        columns = [at, pa.array(self.keys[:n]), pa.array(self.values[:n])]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)
    def position(self): return self.next

types = {"at": "int64", "key": "int64", "value": "float64"}
rows = flow.from_rows(generator(), types) if kind == "generator" else flow.read(Batches())
timed = rows.derive(at=col.at.cast("timestamp[us]")).watermark("at", delay="1s")
windows = timed.window(flow.tumbling("1m"), by="key").agg(n=count(), total=col.value.sum(), most=col.value.max())
result = flow.Pipeline("cost", windows.write_topic("out")).run(store=store, checkpoint_interval=interval, workers=2)
costs = result.costs
print(json.dumps([result.rows_in / result.seconds, result.epochs, result.seconds,
                  costs.snapshot, costs.stall, costs.commit]))
"""


def lines(options: Options) -> Iterator[Line]:
    seconds = min(SECONDS, options.seconds)
    for interval, keys in (("1s", KEYS), ("100ms", KEYS), ("100ms", 100)):
        share, told = _share("generator", interval, keys, seconds)
        yield at_most(f"generator, epochs every {interval}, {keys:,} keys ({told})", share, SHARE_MAX, "%", 2)
    idle = statistics.median(_run("batches", "1000s", KEYS, seconds / 4)[0] for _ in range(3))
    for interval in ("1s", "100ms"):
        rates = [_run("batches", interval, KEYS, seconds / 4)[0] for _ in range(3)]
        share, told = _share("batches", interval, KEYS, seconds)
        loss = 100 * (1 - statistics.median(rates) / idle)
        what = f"batches at full speed, both cores busy, epochs every {interval}, {KEYS:,} keys ({told})"
        yield Line(what, f"{share:.2f} %; throughput {loss:.1f} % less than without", "told", ok=True)


def _share(kind: str, interval: str, keys: int, seconds: float) -> tuple[float, str]:
    """What epochs cost, in percent of the wall, and the parts of it."""
    _, epochs, wall, *costs = _run(kind, interval, keys, seconds)
    shares = [100 * cost / wall for cost in costs]
    told = ", ".join(f"{name} {share:.2f} %" for name, share in zip(NAMES, shares, strict=True))
    return sum(shares), f"{epochs:.0f} epochs; {told}"


def _run(kind: str, interval: str, keys: int, seconds: float) -> list[float]:
    with tempfile.TemporaryDirectory() as store:
        found: list[float] = json.loads(python(CODE, kind, interval, str(seconds), str(keys), store))
        return found

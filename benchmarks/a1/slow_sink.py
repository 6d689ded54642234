"""A sink that takes 1,000 rows a second under an endless fast source: memory stays, nothing is lost, SIGTERM is heard.

The rows are numbered, and the sink checks that each one is the next. After the signal every row that was taken from
the source has to be in the sink.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.lines import ROOT, Line, Options, at_most, exactly, rss_anon_bytes

GROWTH_MB_MAX, LEAVE_SECONDS_MAX = 50, 5
SETTLED_SECONDS = 5.0
"""Memory is compared with what it was then: the channels are full and every module is loaded."""
CODE = """
import json, time
import numpy as np, pyarrow as pa
import dataflow as flow
from dataflow import col

SCHEMA = pa.schema([("n", pa.int64())])

class Fast:
    name, bounded, schema = "fast", False, SCHEMA
    def partitions(self): return ["p0"]
    def open(self, partition, position): return self
    next_ = 0
    def read(self, rows_max):
        numbers = pa.array(np.arange(self.next_, self.next_ + rows_max))
        self.next_ += rows_max
        return pa.record_batch([numbers], schema=SCHEMA)
    def position(self): return self.next_

class Slow:
    rows, in_order = 0, True
    def open(self, epoch): pass
    def write(self, batch):
        time.sleep(batch.num_rows / 1000)
        expected = np.arange(self.rows, self.rows + batch.num_rows)
        self.in_order &= bool((batch.column("n").to_numpy() == expected).all())
        self.rows += batch.num_rows
    def prepare(self, epoch): return epoch
    def commit(self, handle): pass
    def abort(self, handle): pass

sink = Slow()
result = flow.Pipeline("slow", flow.read(Fast()).filter(col.n >= 0).to(sink)).run()
print(json.dumps([result.rows_in, sink.rows, sink.in_order, result.stopped]))
"""


def lines(options: Options) -> Iterator[Line]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, text=True)
    growth = _growth(process, options.seconds)
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    left_after = time.perf_counter() - began
    what = f"1,000 rows/s for {options.seconds:.0f} s"
    yield at_most(f"{what}: growth of anonymous memory", growth / 1e6, GROWTH_MB_MAX, "MB")
    if process.returncode != 0:
        yield Line(f"{what}: SIGTERM commits and leaves", f"exit {process.returncode} (above)", "exit 0", ok=False)
        return
    read, written, in_order, stopped = json.loads(said)
    yield exactly(f"{what}: rows read ({read:,}) and not in the sink", read - written, 0)
    yield Line(f"{what}: each row is the next one", "in order" if in_order else "out of order", "in order", in_order)
    fed = 0.8 * 1000 * options.seconds
    yield Line(f"{what}: the sink was kept busy", f"{written:,} rows", f"≥ {fed:,.0f} rows", written >= fed)
    yield at_most(f"{what}: SIGTERM ({stopped}) leaves within", left_after, LEAVE_SECONDS_MAX, "s", 2)


def _growth(process: subprocess.Popen[str], seconds: float) -> int:
    """By how much the process's memory ever exceeds what it was once settled."""
    began = time.perf_counter()
    settled, most = 0, 0
    while (passed := time.perf_counter() - began) < seconds:
        time.sleep(0.25)
        now = rss_anon_bytes(process.pid)
        settled = now if passed < SETTLED_SECONDS else settled
        most = max(most, now - settled)
    return most

"""Anonymous memory on ten million rows: the peak of a fresh process, sampled while it runs the headline job."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import workload
from benchmarks.lines import Line, Options, at_most, python

BAR_MB = 400
CODE = """
import sys, threading
from pathlib import Path
import dataflow as flow
from dataflow import col, count
from benchmarks.lines import rss_anon_bytes

peak, over = 0, threading.Event()
def sample():
    global peak
    while not over.wait(0.005):
        peak = max(peak, rss_anon_bytes())

watcher = threading.Thread(target=sample)
watcher.start()
rows = flow.read_parquet(sys.argv[1]).watermark("ts", delay="2s")
table = rows.window(flow.tumbling("1m"), by="key").agg(n=count(), s=col.value.sum()).collect()
over.set()
watcher.join()
print(table.num_rows, peak)
"""


def lines(options: Options) -> Iterator[Line]:
    folder = workload.prepare(options.work, options.rows, csv=False, topic=False)
    _, peak = python(CODE, str(folder / "int.parquet")).split()
    yield at_most(f"anonymous memory, {options.rows:,} rows, the result included", int(peak) / 1e6, BAR_MB, "MB", 0)

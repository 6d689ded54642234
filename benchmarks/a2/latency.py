"""From a row's append in one process to its result, visible in another: filter and derive, topic to topic.

The producer is to append 100,000 rows a second, in a batch every 20 ms. A row's latency counts from when it *should*
have been appended, so a stall counts for every row that it delays (coordinated omission). The consumer looks for
new rows in a third process; all clocks are the machine's monotonic one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.lines import ROOT, Line, Options, at_most

ROWS_PER_SECOND, BATCH_SECONDS, SECONDS, WARM_SECONDS = 100_000, 0.02, 20.0, 3.0
P99_MS_MAX = 150.0
PRODUCER = """
import sys, time
import numpy as np, pyarrow as pa
import dataflow as flow

rows, gap, seconds = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
with flow.Store(sys.argv[1]) as store:
    began = time.monotonic()
    for number in range(int(seconds / gap)):
        due = began + number * gap
        time.sleep(max(due - time.monotonic(), 0))
        sent = np.full(rows, due)
        store.append("in", pa.table({"sent": sent, "n": np.arange(rows)}))
"""
PIPELINE = """
import sys
import dataflow as flow
from dataflow import col

rows = flow.read_topic("in", store=sys.argv[1], follow=True)
made = rows.filter(col.n >= 0).derive(double=col.n * 2)
flow.Pipeline("latency", made.write_topic("out")).run(store=sys.argv[1], checkpoint_interval="10ms")
"""


def lines(options: Options) -> Iterator[Line]:
    latencies = measure(min(SECONDS, options.seconds))
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    what = f"latency at {ROWS_PER_SECOND:,} rows/s, 10 ms epochs, {len(latencies):,} rows"
    yield at_most(
        f"{what}: p99 (p50 {p50:.1f} ms, most {latencies.max() * 1e3:.0f} ms; aim 30)", float(p99), P99_MS_MAX, "ms"
    )


def measure(seconds: float) -> np.ndarray:
    """Seconds from when each row was due to when its result was seen; the first ones left out."""
    import pyarrow as pa

    from dataflow.state.store import Store

    rows = int(ROWS_PER_SECOND * BATCH_SECONDS)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store") as store:
        store.append("in", pa.table({"sent": [0.0], "n": pa.array([-1])}))
        pipeline = _start(PIPELINE, str(store.path))
        while store.pipeline("latency") is None:
            time.sleep(0.05)
        total = seconds + WARM_SECONDS
        producer = _start(PRODUCER, str(store.path), str(rows), str(BATCH_SECONDS), str(total))
        wanted, seen, found = rows * int(total / BATCH_SECONDS), 0, []
        version = -1
        while seen < wanted:
            assert pipeline.poll() is None and producer.poll() in (None, 0), "a process has failed"
            known, version = version, store.data_version()
            if version == known or not (fresh := _fresh(store, seen)):
                time.sleep(0.001)
                continue
            now = time.monotonic()
            found += [now - sent for sent in fresh]
            seen += sum(len(sent) for sent in fresh)
        pipeline.send_signal(signal.SIGTERM)
        assert pipeline.wait() == 0 and producer.wait() == 0
    return np.concatenate(found)[int(rows * WARM_SECONDS / BATCH_SECONDS) :]


def _fresh(store: object, seen: int) -> list[np.ndarray]:
    from dataflow.state.store import Store

    assert isinstance(store, Store)
    if "out" not in [info.name for info in store.topics()]:
        return []
    table = store.read("out", start=seen, columns=["sent"])
    return [chunk.to_numpy() for chunk in table["sent"].chunks if len(chunk)]


def _start(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment)

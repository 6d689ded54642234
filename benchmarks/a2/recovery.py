"""How soon a killed run with 100 MB of open windows gives its first new row, from the start of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from benchmarks.lines import ROOT, Line, Options, at_most

STATE_BYTES_MIN, SECONDS_MAX = 100e6, 2.0
ROUNDS = 5
CODE = """
import sys, time
import numpy as np, pyarrow as pa
import dataflow as flow
from dataflow import col, count

store, groups = sys.argv[1], int(sys.argv[2])
SCHEMA = pa.schema({"at": pa.timestamp("us"), "key": pa.int64(), "value": pa.float64()})
ROWS = 131_072

class Numbers:
    name, schema, bounded = "numbers", SCHEMA, False
    def partitions(self): return ["0"]
    def open(self, partition, position):
        self.next, self.due = position or 0, 0.0
        self.resumed = position is not None
        return self
    def read(self, rows_max):
        if self.next >= groups and not self.resumed:
            return flow.Idle()
        first = self.next < groups
        if not first and time.monotonic() < self.due:
            return flow.Idle()
        self.due = time.monotonic() + 0.01
        n = np.arange(self.next, self.next + min(rows_max, ROWS))
        at = np.zeros(len(n), np.int64) if first else np.full(len(n), 2 * 3_600_000_000)
        self.next += len(n)
        return pa.RecordBatch.from_arrays(
            [pa.array(at).cast(pa.timestamp("us")), pa.array(n % groups), pa.array(n * 0.5)], schema=SCHEMA)
    def position(self): return self.next

rows = flow.read(Numbers())
windows = rows.watermark("at").window(flow.tumbling("1h"), by="key").agg(
    n=count(), total=col.value.sum(), least=col.value.min(), most=col.value.max())
flow.Pipeline("recovery", windows.write_topic("out"), rows.filter(col.key % 1_000 == 0).write_topic("copy")).run(
    store=store, checkpoint_interval="100ms")
"""
GROUPS = 900_000


def lines(options: Options) -> Iterator[Line]:
    del options
    found = sorted(_once() for _ in range(ROUNDS))
    seconds, state = found[ROUNDS // 2]
    what = f"{state / 1e6:.0f} MB of state, {ROUNDS} kills: from the start of the process to a new committed row"
    yield at_most(what, seconds, SECONDS_MAX, "s", 2)
    yield Line("state that was restored", f"{state / 1e6:.0f} MB", "≥ 100 MB", state >= STATE_BYTES_MIN)


def _once() -> tuple[float, float]:
    from dataflow.state.store import Store

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        process = _start(path)
        while _epoch_with_state(path) is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        state = _epoch_with_state(path)
        assert state is not None
        with Store(path) as store:
            before = store.topic("copy").rows
            began = time.perf_counter()
            process = _start(path)
            while store.topic("copy").rows == before:
                assert process.poll() is None, "the run ended"
                time.sleep(0.005)
            seconds = time.perf_counter() - began
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return seconds, state


def _start(path: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, str(path), str(GROUPS)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _epoch_with_state(path: Path) -> float | None:
    """The bytes of the frames, once all groups are in them."""
    from dataflow.errors import StoreError
    from dataflow.state.store import Store

    try:
        with Store(path) as store:
            state = store.pipeline("recovery")
    except StoreError:
        return None
    partitions = {} if state is None else cast(dict[str, dict[str, list[int]]], state.checkpoint["sources"])
    position = partitions.get("numbers", {}).get("0")
    if state is None or position is None or position[0] < GROUPS:
        return None
    return float(sum(frame.length for frame in state.frames))

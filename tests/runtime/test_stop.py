"""A stop commits what is in flight and leaves in time, also under a slow sink; nothing is lost or twice."""

from __future__ import annotations

import os
import signal
import threading
import time

import pyarrow as pa
import pytest

import dataflow as flow
from dataflow.errors import RunError


class SlowSink:
    """Writes 2,000 rows a second; asks for a stop once it has written so many."""

    def __init__(self, stop_after: int) -> None:
        self.stop_after = stop_after
        self.rows: list[int] = []
        self.committed: list[int] = []

    def open(self, epoch: int) -> None: ...

    def write(self, batch: pa.RecordBatch) -> None:
        time.sleep(batch.num_rows / 2_000)  # the sink's own slowness is what is tested
        self.rows += batch.column(0).to_pylist()
        if len(self.rows) >= self.stop_after > 0:
            self.stop_after = 0
            os.kill(os.getpid(), signal.SIGTERM)

    def prepare(self, epoch: int) -> int:
        return len(self.rows)

    def commit(self, handle: object) -> None:
        assert isinstance(handle, int)
        self.committed.append(handle)

    def abort(self, handle: object) -> None: ...


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_a_slow_sink_commits_a_prefix(workers: int) -> None:
    assert threading.current_thread() is threading.main_thread()
    sink = SlowSink(stop_after=3_000)
    numbers = flow.from_arrow(pa.table({"n": range(500_000)}))
    result = flow.Pipeline("slow", numbers.to(sink)).run(workers=workers)
    assert result.stopped == "SIGTERM"
    assert sink.rows == list(range(len(sink.rows))) and len(sink.rows) < 500_000
    assert sink.committed[-1] == len(sink.rows) == result.rows_out == result.rows_in


def test_a_failing_sink_ends_the_run_with_the_users_line() -> None:
    class Broken(SlowSink):
        def write(self, batch: pa.RecordBatch) -> None:
            raise OSError("no more room")

    with pytest.raises(RunError, match="no more room") as caught:
        flow.Pipeline("broken", flow.from_arrow(pa.table({"n": [1]})).to(Broken(0))).run()
    assert caught.value.origin is not None and caught.value.origin.file == __file__

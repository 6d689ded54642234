"""Rows of several tasks are put back into the order of their source, and no task waits for another in a ring."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import dataflow as flow
from dataflow import col, count


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_many_late_rows_leave_in_order_while_later_units_wait(workers: int) -> None:
    """A unit whose late rows fill the channel of their sink must not wait for a task that waits for this unit."""
    rows = 400_000
    minutes = np.where(np.arange(rows) < 1_000, 10_000_000, np.arange(rows))
    table = pa.table({"n": np.arange(rows), "at": pa.array(minutes, pa.timestamp("ms"))})
    windows = flow.from_arrow(table).watermark("at").window(flow.tumbling("1s")).agg(n=count())
    late = windows.late.select("n").collect(workers=workers)
    assert late["n"].to_pylist() == list(range(1_000, rows))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_filter_keeps_the_order_of_its_source(workers: int) -> None:
    numbers = flow.from_arrow(pa.table({"n": range(300_000)}))
    kept = numbers.filter((col.n % 7 == 0) | (col.n > 299_000)).collect(workers=workers)
    assert kept["n"].to_pylist() == [n for n in range(300_000) if n % 7 == 0 or n > 299_000]

"""Rows that keyed steps made are in order of time and key, whatever numbers stand for the keys."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dataflow.state.keyed import Groups
from dataflow.state.order import canonical_order, ranked_order

INTS = st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(st.integers(-2, 2) | INTS, INTS, INTS)))
def test_ranks_are_ordered_as_arrow_orders_values(rows: list[tuple[int, int, int]]) -> None:
    times, first, second = (np.array([row[n] for row in rows], dtype=np.int64) for n in range(3))
    order = ranked_order(times, [first, second]).tolist()
    assert [rows[n] for n in order] == sorted(rows)
    assert canonical_order(times, [pa.array(first), pa.array(second)]).tolist() == order


@given(st.lists(st.tuples(st.integers(0, 1), st.none() | st.text("aZé\U0001f600", max_size=3), st.integers(-3, 3))))
def test_groups_are_ordered_by_pane_then_text_then_number_and_null_is_last(
    rows: list[tuple[int, str | None, int]],
) -> None:
    groups = Groups([pa.string(), pa.int32()])
    columns = [pa.array([row[1] for row in rows], pa.string()), pa.array([row[2] for row in rows], pa.int32())]
    slots = groups.slots(columns, np.array([row[0] for row in rows], dtype=np.int64))
    live = groups.live_slots()
    ordered = live[groups.order(live)]
    texts, numbers = (column.to_pylist() for column in groups.keys(ordered))
    found = list(zip(groups.panes[ordered].tolist(), texts, numbers, strict=True))
    assert found == sorted(set(rows), key=lambda row: (row[0], row[1] is None, (row[1] or "").encode(), row[2]))
    assert len(live) == len(set(slots.tolist()))

"""Aggregates do not depend on how rows were split, merged or cleaned up; the numbers are those of exact arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.aggregates import Aggregate, count
from dataflow.errors import TypeMismatchError
from dataflow.expr import col
from dataflow.operators.accumulators import AggregateSet, AggregateState, RowOrder, quantile

SCHEMA = pa.schema({"f": pa.float64(), "i": pa.int64(), "s": pa.string()})
AGGREGATES: dict[str, Aggregate] = {
    "n": count(),
    "n_f": count(col.f),
    "f_sum": col.f.sum(),
    "f_mean": col.f.mean(),
    "i_sum": col.i.sum(),
    "i_mean": col.i.mean(),
    "f_min": col.f.min(),
    "f_max": col.f.max(),
    "i_max": col.i.max(),
    "s_min": col.s.min(),
    "first": col.s.first(),
    "last": col.f.last(ignore_nulls=True),
    "top": col.s.max_by(col.f),
    "by_text": col.i.min_by(col.s),
    "some": col.i.sum().filter(col.i > 0),
}
floats = (
    st.none()
    | st.floats(-1e15, 1e15).map(lambda x: 0.0 if abs(x) < 1e-9 else x)
    | st.sampled_from([math.inf, math.nan])
)
rows_of = st.lists(
    st.tuples(floats, st.none() | st.integers(-(2**62), 2**62), st.none() | st.sampled_from(["", "a", "b", "é"])),
    min_size=1,
    max_size=30,
)


def state_of(aggregates: AggregateSet, rows: Sequence[tuple[Any, ...]], first: int, slots: list[int]) -> AggregateState:
    state = aggregates.build()
    state.grow(max(slots, default=0) + 1)
    columns = {f.name: pa.array([row[n] for row in rows], f.type) for n, f in enumerate(SCHEMA)}
    arrays = [expr.bind(SCHEMA).evaluate(columns, len(rows)).values for expr in aggregates.inputs]
    numbers = np.arange(first, first + len(rows))
    state.update(np.array(slots, dtype=np.int64), arrays, RowOrder(numbers // 3, numbers))
    return state


def finished(state: AggregateState, slots: int) -> list[list[object]]:
    done = state.finish(np.arange(slots))
    return [[repr(value) for value in column.to_pylist()] for column in done.columns]


@settings(deadline=None)
@given(rows=rows_of, data=st.data())
def test_any_split_gives_the_same(rows: Sequence[tuple[Any, ...]], data: st.DataObject) -> None:
    aggregates = AggregateSet(AGGREGATES, SCHEMA)
    slots = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    whole = finished(state_of(aggregates, rows, 0, [*slots]), max(slots) + 1)
    at = data.draw(st.integers(0, len(rows)))
    parts = [state_of(aggregates, rows[a:b], a, slots[a:b]) for a, b in ((0, at), (at, len(rows))) if b > a]
    merged = aggregates.build()
    merged.grow(3)
    for part in data.draw(st.permutations(parts)):
        part.grow(3)
        merged.merge(np.arange(3), part.partial(np.arange(3)))
    assert finished(merged, max(slots) + 1) == whole


@settings(deadline=None)
@given(rows=rows_of)
def test_sums_are_exact_and_rounded_once(rows: Sequence[tuple[Any, ...]]) -> None:
    finite = [row for row in rows if row[0] is None or math.isfinite(row[0])]
    if not finite:
        return
    aggregates = AggregateSet({"f": col.f.sum(), "i": col.i.mean()}, SCHEMA)
    done = state_of(aggregates, finite, 0, [0] * len(finite)).finish(np.arange(1))
    values = [Fraction(row[0]) for row in finite if row[0] is not None]
    assert done.columns[0][0].as_py() == (float(sum(values)) if values else None)


def test_an_integer_sum_beyond_64_bits_is_a_bad_row_and_never_a_wrap() -> None:
    aggregates = AggregateSet({"total": col.i.sum()}, SCHEMA)
    most = 2**63 - 1
    over = state_of(aggregates, [(None, most, None), (None, 1, None)], 0, [0, 0]).finish(np.arange(1))
    assert over.columns[0].to_pylist() == [None] and over.bad[0].mask.tolist() == [True]
    back = state_of(aggregates, [(None, most, None), (None, 1, None), (None, -1, None)], 0, [0] * 3).finish(
        np.arange(1)
    )
    assert back.columns[0].to_pylist() == [most] and not back.bad


def test_nan_is_the_greatest_and_infinities_cancel_to_nan() -> None:
    aggregates = AggregateSet({"top": col.f.max(), "low": col.f.min(), "sum": col.f.sum()}, SCHEMA)
    rows = [(math.nan, None, None), (-math.inf, None, None), (math.inf, None, None)]
    top, low, total = (c[0].as_py() for c in state_of(aggregates, rows, 0, [0] * 3).finish(np.arange(1)).columns)
    assert math.isnan(top) and low == -math.inf and math.isnan(total)


def test_an_exact_quantile_interpolates_and_survives_a_clean_up() -> None:
    aggregates = AggregateSet({"q": col.f.quantile(0.5, exact=True)}, SCHEMA)
    state = state_of(
        aggregates, [(1.0, None, None), (9.0, None, None), (2.0, None, None), (4.0, None, None)], 0, [0, 1, 1, 1]
    )
    state.keep(np.array([1]), 2)
    assert state.finish(np.arange(1)).columns[0].to_pylist() == [4.0]
    assert not aggregates.mergeable


def test_quantiles_of_one_column_share_its_values_and_know_large_unsigned_ones() -> None:
    schema = pa.schema({"u": pa.uint64()})
    aggregates = AggregateSet({"q": col.u.quantile(0.5, exact=True), "top": col.u.quantile(1, exact=True)}, schema)
    state = aggregates.build()
    state.grow(1)
    state.update(np.zeros(3, dtype=np.int64), [pa.array([2**63, 7, 2**64 - 2**11], pa.uint64())], None)
    assert state.nbytes == 3 * 16
    assert [column.to_pylist() for column in state.finish(np.arange(1)).columns] == [[2.0**63], [2.0**64 - 2**11]]
    assert [column.to_pylist() for column in state.finish(np.arange(1)).columns] == [[None], [None]]


def test_the_sum_of_a_text_is_refused_with_its_name() -> None:
    with pytest.raises(TypeMismatchError, match="needs numbers"):
        AggregateSet({"x": col.s.sum()}, SCHEMA)


def test_the_same_quantile_under_two_names_has_two_values() -> None:
    aggregates = AggregateSet({n: col.f.quantile(0.5, exact=True) for n in ("a", "b")}, SCHEMA)
    done = state_of(aggregates, [(1.0, None, None), (3.0, None, None)], 0, [0, 0]).finish(np.arange(1))
    assert [column.to_pylist() for column in done.columns] == [[2.0], [2.0]]


@given(st.data())
def test_quantiles_of_groups_that_close_one_by_one_are_those_of_their_rows(data: st.DataObject) -> None:
    """However the values are put into runs, whichever groups close or move, and though slots are used again."""
    schema = pa.schema({"f": pa.float64()})
    aggregates = AggregateSet({"q": col.f.quantile(0.5, exact=True)}, schema)
    with pytest.MonkeyPatch.context() as small:
        small.setattr(quantile, "RUN_ROWS", data.draw(st.sampled_from([0, 3, 1000])))
        state = aggregates.build()
        state.grow(6)
        known: dict[int, list[float]] = {}
        for _ in range(data.draw(st.integers(1, 8))):
            rows = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=8))
            for slot, value in rows:
                known.setdefault(slot, []).append(float(value))
            values = pa.array([float(value) for _, value in rows], pa.float64())
            state.update(np.array([slot for slot, _ in rows], dtype=np.int64), [values], None)
            closing = [slot for slot in sorted(known) if data.draw(st.booleans())]
            found = state.finish(np.array(closing, dtype=np.int64)).columns[0].to_pylist()
            assert found == [statistics.median(known.pop(slot)) for slot in closing]
            if data.draw(st.booleans()):
                kept = sorted(known)
                state.keep(np.array(kept, dtype=np.int64), 6)
                known = {new: known[old] for new, old in enumerate(kept)}

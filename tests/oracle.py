"""What tumbling windows must answer, told row by row in plain Python.

Slow and obvious on purpose: it shares no code with the engine. A row is late when its window was final by the
watermark of its *own* partition before it came: `window_end + lateness <= max(times seen before) - delay`. Every
other row belongs to the group of its window and key; a group's rows are ordered by event time, then partition,
then offset. Nothing here depends on batches or workers, which is why the engine's answer must not either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

Values = Mapping[str, Any]
Aggregate = Callable[[Sequence[Values]], Any]


@dataclass(frozen=True)
class Row:
    """A row and where it stands."""

    time_us: int
    partition: str
    offset: int
    values: Values


@dataclass(frozen=True)
class Answer:
    """Final rows (window bounds in µs, keys, aggregates), late rows and rows without an event time."""

    final: list[dict[str, Any]]
    late: list[Row]
    without_time: list[Values]


def tumbling(
    partitions: Mapping[str, pa.Table],
    aggregates: Mapping[str, Aggregate],
    *,
    time: str,
    by: Sequence[str],
    size_us: int,
    delay_us: int,
    offset_us: int = 0,
    lateness_us: int = 0,
) -> Answer:
    """Judge every row, group the timely ones, and compute the aggregates of each group."""
    groups: dict[tuple[Any, ...], tuple[dict[str, Any], list[Row]]] = {}
    late: list[Row] = []
    without_time: list[Values] = []
    for partition, table in partitions.items():
        time_max_us: int | None = None
        for offset, values in enumerate(rows_of(table)):
            time_us = values[time]
            if time_us is None:
                without_time.append(values)
                continue
            row = Row(time_us, partition, offset, values)
            start_us = time_us - (time_us - offset_us) % size_us
            if time_max_us is not None and start_us + size_us + lateness_us <= time_max_us - delay_us:
                late.append(row)
            else:
                head = {"window_start": start_us, "window_end": start_us + size_us, **{k: values[k] for k in by}}
                groups.setdefault((start_us, *(_key(values[k]) for k in by)), (head, []))[1].append(row)
            time_max_us = time_us if time_max_us is None else max(time_max_us, time_us)
    final = []
    for head, rows in groups.values():
        rows.sort(key=lambda row: (row.time_us, row.partition, row.offset))
        final.append({**head, **{name: make([row.values for row in rows]) for name, make in aggregates.items()}})
    return Answer(final, late, without_time)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as dicts, with times as integers (µs): years beyond 9999 do not fit a `datetime`."""
    plain = [
        column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
        if pa.types.is_timestamp(column.type)
        else column
        for column in table.columns
    ]
    names = table.schema.names
    return [dict(zip(names, row, strict=True)) for row in zip(*(column.to_pylist() for column in plain), strict=True)]


def _key(value: Any) -> tuple[str, Any]:
    """A key value as the engine groups it: null and NaN are one group each, -0.0 is 0.0."""
    if isinstance(value, float):
        return ("nan", 0) if math.isnan(value) else ("float", value + 0.0)
    return (type(value).__name__, value)


# ── aggregates: each gets the values of a group's rows in order ──────────────────────────────────────────


def _present(rows: Sequence[Values], column: str) -> list[Any]:
    return [row[column] for row in rows if row[column] is not None]


def _rank(value: Any) -> tuple[bool, Any]:
    """Orders values; NaN is greater than any other number."""
    return (True, 0.0) if isinstance(value, float) and math.isnan(value) else (False, value)


def count(column: str | None = None) -> Aggregate:
    return lambda rows: len(rows) if column is None else len(_present(rows, column))


def total(column: str) -> Aggregate:
    def of(rows: Sequence[Values]) -> Any:
        present = _present(rows, column)
        if not present:
            return None
        return _float_sum(present) if isinstance(present[0], float) else sum(present)

    return of


def mean(column: str) -> Aggregate:
    def of(rows: Sequence[Values]) -> Any:
        present = [float(value) for value in _present(rows, column)]
        return _float_sum(present) / len(present) if present else None

    return of


def _float_sum(values: Sequence[float]) -> float:
    if any(math.isnan(value) for value in values) or {math.inf, -math.inf} <= set(values):
        return math.nan
    return math.fsum(values)


def least(column: str) -> Aggregate:
    return lambda rows: min(_present(rows, column), key=_rank, default=None)


def greatest(column: str) -> Aggregate:
    return lambda rows: max(_present(rows, column), key=_rank, default=None)


def first(column: str) -> Aggregate:
    return lambda rows: rows[0][column]


def last(column: str) -> Aggregate:
    return lambda rows: rows[-1][column]


def max_by(column: str, order: str) -> Aggregate:
    """The value of the first row with the greatest order; rows whose order is null do not take part."""
    return lambda rows: max(
        (row for row in rows if row[order] is not None), key=lambda row: _rank(row[order]), default={column: None}
    )[column]


def min_by(column: str, order: str) -> Aggregate:
    return lambda rows: min(
        (row for row in rows if row[order] is not None), key=lambda row: _rank(row[order]), default={column: None}
    )[column]


def quantile(column: str, q: float) -> Aggregate:
    """Linear interpolation between the two nearest of the sorted values."""

    def of(rows: Sequence[Values]) -> float | None:
        present = sorted(_present(rows, column), key=_rank)
        if not present:
            return None
        at = q * (len(present) - 1)
        low, high = present[math.floor(at)], present[math.ceil(at)]
        return float(low) if low == high else low + (high - low) * (at - math.floor(at))

    return of


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────


def assert_same_rows(
    got: Iterable[Values],
    expected: Iterable[Values],
    *,
    by: Sequence[str],
    tolerance: Mapping[str, float] | None = None,
) -> None:
    """Fail unless both hold the same rows in any order, told apart by the columns `by`.

    Floats are equal when they are equal or both NaN; those of columns in `tolerance` may differ by that much.
    """
    got, expected = list(got), list(expected)
    ours = {tuple(_key(row[name]) for name in by): row for row in got}
    theirs = {tuple(_key(row[name]) for name in by): row for row in expected}
    assert len(ours) == len(got), "some rows came twice"
    assert len(theirs) == len(expected), f"{by} do not tell the expected rows apart"
    assert ours.keys() == theirs.keys(), _difference(ours, theirs)
    for key, row in theirs.items():
        assert ours[key].keys() >= row.keys(), f"columns {ours[key].keys()} lack some of {row.keys()}"
        for name, value in row.items():
            assert _same(ours[key][name], value, (tolerance or {}).get(name, 0.0)), (
                f"{name} of {key}: got {ours[key][name]!r}, expected {value!r}"
            )


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return one == other or abs(one - other) <= tolerance
    return type(one) is type(other) and bool(one == other)


def _difference(ours: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> str:
    extra, missing = list(ours.keys() - theirs.keys()), list(theirs.keys() - ours.keys())
    return f"{len(extra)} rows too many, such as {extra[:3]}; {len(missing)} missing, such as {missing[:3]}"

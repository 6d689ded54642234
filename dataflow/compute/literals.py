"""What a constant means beside a column: `1` is a float beside floats, `"2013-07-04"` a time beside times.

A literal has no type of its own until it meets a column: then it takes the column's family, and its exact type
if the value fits. The hard part is to convert only without loss: a value that does not fit keeps its natural
type, and the binder then widens the column or refuses the pair.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pyarrow as pa

from dataflow.compute.calendar import TICKS_PER_SECOND
from dataflow.compute.evaluate import LiteralNode
from dataflow.errors import TypeMismatchError
from dataflow.event_time import duration_us
from dataflow.schema import is_bytes_type, is_text_type

t = pa.types
INT64 = np.iinfo(np.int64)
UINT64_MAX = np.iinfo(np.uint64).max


def literal(value: object) -> LiteralNode:
    """A literal in its natural type, still open to take another."""
    return LiteralNode(_natural(value), value, is_open=True)


def _natural(value: object) -> pa.Scalar:
    if isinstance(value, int) and not isinstance(value, bool):
        if INT64.min <= value <= INT64.max:
            return pa.scalar(value, pa.int64())
        if 0 <= value <= UINT64_MAX:
            return pa.scalar(value, pa.uint64())
        raise TypeMismatchError(
            f"the number {value} does not fit into 64 bits", help='write a float, or `Decimal("…")`'
        )
    if isinstance(value, dt.datetime):
        return pa.scalar(value, pa.timestamp("us", tz=None if value.tzinfo is None else "UTC"))
    try:
        return pa.scalar(value)
    except UnicodeEncodeError:
        raise TypeMismatchError(f"{value!r} is no text that UTF-8 can hold") from None


def adapted(node: LiteralNode, target: pa.DataType) -> LiteralNode | None:
    """The literal in exactly this type, or None where it does not fit without loss."""
    if node.value is None:
        return LiteralNode(pa.scalar(None, target))
    for accepts, convert in _CONVERTERS:
        if accepts(target):
            scalar = convert(node.value, target)
            return None if scalar is None else LiteralNode(scalar)
    return LiteralNode(node.scalar) if node.type == target else None


def _to_integer(value: object, target: pa.DataType) -> pa.Scalar | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    limits = np.iinfo(target.to_pandas_dtype())
    return pa.scalar(value, target) if limits.min <= value <= limits.max else None


def _to_float(value: object, target: pa.DataType) -> pa.Scalar | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return pa.scalar(float(value), pa.float64()).cast(target)


def _to_decimal(value: object, target: pa.DataType) -> pa.Scalar | None:
    """In the column's scale where the digits fit, so `col.price > 9.99` compares what it says."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        return pa.scalar(_digits(value), target)
    except (pa.ArrowInvalid, OverflowError):
        return None


def exact_decimal(node: LiteralNode) -> LiteralNode | None:
    """A number as a decimal of its own digits: `col.price * 1.19` needs two of them."""
    if isinstance(node.value, bool) or not isinstance(node.value, int | float | Decimal):
        return None
    exact = _digits(node.value)
    return LiteralNode(pa.scalar(exact)) if exact.is_finite() else None


def _digits(value: float | Decimal) -> Decimal:
    """The digits that the user wrote."""
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


def _to_text(value: object, target: pa.DataType) -> pa.Scalar | None:
    return pa.scalar(value, target) if isinstance(value, str) else None


def _to_bytes(value: object, target: pa.DataType) -> pa.Scalar | None:
    if not isinstance(value, bytes):
        return None
    fits = not t.is_fixed_size_binary(target) or len(value) == target.byte_width
    return pa.scalar(value, target) if fits else None


def _to_timestamp(value: object, target: pa.DataType) -> pa.Scalar | None:
    if isinstance(value, str):
        value = _parsed(value, dt.datetime.fromisoformat, "timestamp")
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day)
    if not isinstance(value, dt.datetime):
        return None
    if target.tz is None and value.tzinfo is not None:
        raise TypeMismatchError(
            f"the time {value.isoformat()!r} has a zone, the column ({target}) has none",
            help='leave the zone out, or give the column one: `.cast("timestamp[us, UTC]")`',
        )
    if target.tz is not None and value.tzinfo is None:
        value = value.replace(tzinfo=pa.lib.string_to_tzinfo(target.tz))
    epoch = dt.datetime(1970, 1, 1, tzinfo=None if value.tzinfo is None else dt.UTC)
    return _ticks((value - epoch) // dt.timedelta(microseconds=1), target)


def _to_duration(value: object, target: pa.DataType) -> pa.Scalar | None:
    if isinstance(value, str):
        value = dt.timedelta(microseconds=duration_us(value, "a duration"))
    if not isinstance(value, dt.timedelta):
        return None
    return _ticks(value // dt.timedelta(microseconds=1), target)


def _ticks(us: int, target: pa.DataType) -> pa.Scalar | None:
    ticks, rest = divmod(us * TICKS_PER_SECOND[target.unit], 10**6)
    return None if rest or not INT64.min <= ticks <= INT64.max else pa.scalar(ticks, pa.int64()).cast(target)


def _to_date(value: object, target: pa.DataType) -> pa.Scalar | None:
    if isinstance(value, str):
        value = _parsed(value, dt.date.fromisoformat, "date")
    if isinstance(value, dt.datetime) or not isinstance(value, dt.date):
        return None
    return pa.scalar(value, target)


def _to_time(value: object, target: pa.DataType) -> pa.Scalar | None:
    if isinstance(value, str):
        value = _parsed(value, dt.time.fromisoformat, "time")
    if not isinstance(value, dt.time):
        return None
    try:
        return pa.scalar(value, target)
    except pa.ArrowInvalid:
        return None


def _parsed(text: str, parse: Callable[[str], object], what: str) -> object:
    try:
        return parse(text.strip())
    except ValueError as error:
        shape = {"timestamp": "2013-07-04T15:30:00", "date": "2013-07-04", "time": "15:30:00"}[what]
        raise TypeMismatchError(
            f"{text!r} is not a {what}, which it is compared with: {error}",
            code="DF0305",
            help=f"write it as {shape!r}",
        ) from error


_CONVERTERS = (
    (t.is_integer, _to_integer),
    (t.is_floating, _to_float),
    (t.is_decimal, _to_decimal),
    (is_text_type, _to_text),
    (is_bytes_type, _to_bytes),
    (t.is_timestamp, _to_timestamp),
    (t.is_date, _to_date),
    (t.is_time, _to_time),
    (t.is_duration, _to_duration),
)

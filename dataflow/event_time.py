"""Event time is int64 microseconds since 1970 UTC; durations are written `10s`, `1h30m`, `7d`.

Every timestamp and date type of Arrow is turned into that one unit here. The hard part is the far ends: a
timestamp[s] may stand millions of years away, where microseconds do not fit into 64 bits. Such times saturate
at the limits of int64 (they stay in order and never wrap), and the check for it must cost next to nothing.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow.errors import ProgramError, TypeMismatchError
from dataflow.message import BoolArray, Int64Array

UNITS_US = {
    "w": 604_800_000_000,
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
    "us": 1,
}
"""From the longest to the shortest; `m` is minutes."""
_OTHER_WORDS = {
    "w": ("week", "weeks"),
    "d": ("day", "days"),
    "h": ("hr", "hrs", "hour", "hours"),
    "m": ("min", "mins", "minute", "minutes"),
    "s": ("sec", "secs", "second", "seconds"),
    "ms": ("msec", "millis", "millisecond", "milliseconds"),
    "us": ("µs", "usec", "micros", "microsecond", "microseconds"),
}
_UNIT_OF_WORD = {word: unit for unit, words in _OTHER_WORDS.items() for word in words}
_PART = r"(\d+)(us|ms|w|d|h|m|s)"
_LOOSE_PART = r"(?i)(\d+(?:\.\d+)?)\s*([a-zµ]+)\s*"
_INT64 = np.iinfo(np.int64)


# ── durations ────────────────────────────────────────────────────────────────────────────────────────────


def duration_us(value: str | timedelta, what: str) -> int:
    """A duration in microseconds; `what` names it in an error. A leading `-` makes it negative.

    >>> duration_us("1h30m", "size")
    5400000000
    """
    if isinstance(value, timedelta):
        return _in_64_bits(value // timedelta(microseconds=1), value, what)
    if not isinstance(value, str):
        raise _bad_duration(value, what)
    text = value.strip()
    parts = re.findall(_PART, text)
    units = [unit for _, unit in parts]
    if not re.fullmatch(f"-?({_PART})+", text) or units != sorted(set(units), key=list(UNITS_US).index):
        raise _bad_duration(value, what)
    us = sum(int(number) * UNITS_US[unit] for number, unit in parts)
    return _in_64_bits(-us if text.startswith("-") else us, value, what)


def _in_64_bits(us: int, value: object, what: str) -> int:
    if abs(us) > _INT64.max:
        raise ProgramError(
            f"{what}: {value!r} is longer than 64 bits of microseconds can hold",
            code="DF0402",
            help="use at most 292,000 years: `106000000d`",
        )
    return us


def _bad_duration(value: object, what: str) -> ProgramError:
    if isinstance(value, str) and (better := _respelled(value)):
        help = f"write `{better}`"
    elif isinstance(value, str) and re.fullmatch(r"-?\d+(mo|y|month|months|year|years)", value.strip()):
        help = "months and years have no fixed length; use days, as in `30d`"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        help = f"add the unit, as in `{value:g}s`" if value == int(value) else "add the unit, as in `1s500ms`"
    else:
        help = "write numbers with units from long to short, as in `250ms`, `10s`, `5m`, `1h30m`, `7d`, `1w`"
    return ProgramError(f"{what}: {value!r} is not a duration", code="DF0402", help=help)


def _respelled(text: str) -> str | None:
    """The duration that was probably meant by "5min", "1.5 h" or "30m1h"."""
    body = text.strip().removeprefix("-")
    if re.sub(_LOOSE_PART, "", body) or not body:
        return None
    us = 0.0
    for number, word in re.findall(_LOOSE_PART, body):
        unit = word if word in UNITS_US else _UNIT_OF_WORD.get(word.lower(), word.lower())
        if unit not in UNITS_US:
            return None
        us += float(number) * UNITS_US[unit]
    return format_duration(round(us) * (-1 if text.strip().startswith("-") else 1))


def format_duration(us: int) -> str:
    """The shortest text that `duration_us` reads back as `us`.

    >>> format_duration(5_400_000_000)
    '1h30m'
    """
    if us == 0:
        return "0s"
    parts, rest = [], abs(us)
    for unit, unit_us in UNITS_US.items():
        if unit == "w" and rest % unit_us:
            continue  # `10d` reads better than `1w3d`
        number, rest = divmod(rest, unit_us)
        if number:
            parts.append(f"{number}{unit}")
    return ("-" if us < 0 else "") + "".join(parts)


# ── event times ──────────────────────────────────────────────────────────────────────────────────────────

_US_IN = {"s": 1_000_000, "ms": 1_000, "us": 1}


def is_time_type(type: pa.DataType) -> bool:
    """Whether a column of this type can be the event time."""
    return bool(pa.types.is_timestamp(type) or pa.types.is_date(type))


def check_time_type(type: pa.DataType, what: str) -> None:
    """Refuse a type that cannot be the event time, with the cast that makes it one."""
    if is_time_type(type):
        return
    if pa.types.is_integer(type):
        help = 'say what the number counts: `.cast("timestamp[ms]")` (or s, us, ns)'
    elif pa.types.is_string(type) or pa.types.is_large_string(type):
        help = 'parse it: `.cast("timestamp")` for ISO 8601, `.str.to_timestamp("%d/%m/%Y")` for others'
    else:
        help = "the event time is a timestamp or a date"
    raise TypeMismatchError(f"{what} is {type}, which cannot be an event time", help=help)


def to_us(times: pa.Array) -> tuple[Int64Array, BoolArray | None]:
    """Event times in microseconds and where they are null (None: nowhere).

    Saturates at the limits of int64; nanoseconds are floored. What stands in a null's place is not defined.
    timestamp[us] costs nothing: the result is a view.
    """
    type = times.type
    nulls = _mask_of(times.is_null()) if times.null_count else None
    if pa.types.is_timestamp(type):
        values = values_of(times, np.int64)
        return (values // 1_000 if type.unit == "ns" else _scaled(values, _US_IN[type.unit])), nulls
    if pa.types.is_date64(type):
        return _scaled(values_of(times, np.int64), 1_000), nulls
    assert pa.types.is_date32(type), type
    # 2**31 days are 5,879,610 years, eighteen times what int64 microseconds hold.
    return _scaled(values_of(times, np.int32), UNITS_US["d"]), nulls


def ticks_us(ticks: int, unit: str) -> int:
    """One time in microseconds, as `to_us` of a timestamp.

    >>> ticks_us(-1, "ns"), ticks_us(2**62, "s") == 2**63 - 1
    (-1, True)
    """
    us = ticks // 1_000 if unit == "ns" else ticks * _US_IN[unit]
    return max(int(_INT64.min) + 1, min(us, int(_INT64.max)))


def bounds_type(time_type: pa.DataType) -> pa.DataType:
    """The type of `window_start` and `window_end`: microseconds in the zone of the event time."""
    return pa.timestamp("us", tz=time_type.tz if pa.types.is_timestamp(time_type) else None)


def from_us(times_us: Int64Array, time_type: pa.DataType) -> pa.Array:
    """Microseconds as window bounds for an event time of this type (zero-copy)."""
    values = np.ascontiguousarray(times_us, dtype=np.int64)
    return pa.Array.from_buffers(bounds_type(time_type), len(values), [None, pa.py_buffer(values)])


def values_of(array: pa.Array, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    """The values of a fixed-width array as a view; what stands in a null's place is not defined."""
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.zeros(len(array), dtype)
    return np.frombuffer(buffer, dtype=dtype, count=array.offset + len(array))[array.offset :]


def _mask_of(mask: pa.BooleanArray) -> BoolArray:
    return np.asarray(mask.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _scaled(values: np.ndarray[Any, Any], factor: int) -> Int64Array:
    if factor == 1 or not len(values):
        return values
    low, high = -(-_INT64.min // factor), _INT64.max // factor
    if values.min() >= low and values.max() <= high:
        fitting: Int64Array = np.multiply(values, factor, dtype=np.int64)
        return fitting
    scaled = np.multiply(np.clip(values, low, high), factor, dtype=np.int64)
    return np.where(values > high, _INT64.max, np.where(values < low, _INT64.min, scaled))

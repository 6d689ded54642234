"""Durations and event times: what is written, what is refused, and the far ends of time."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.errors import DataflowError
from dataflow.event_time import bounds_type, check_time_type, duration_us, format_duration, from_us, to_us

INT64 = np.iinfo(np.int64)
int64s = st.one_of(
    st.integers(INT64.min, INT64.max),
    st.integers(-(10**13), 10**13),
    st.sampled_from([INT64.min, INT64.min + 1, -1, 0, 1, INT64.max - 1, INT64.max]),
)


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("250ms", 250_000),
        ("10s", 10_000_000),
        ("5m", 300_000_000),
        ("1h30m", 5_400_000_000),
        ("7d", 604_800_000_000),
        ("1w", 604_800_000_000),
        ("0s", 0),
        ("-5m", -300_000_000),
        (" 1s500ms20us ", 1_500_020),
        (timedelta(milliseconds=3), 3_000),
        (timedelta(microseconds=-1), -1),
    ],
)
def test_a_duration_is_read_as_microseconds(text: str | timedelta, us: int) -> None:
    assert duration_us(text, "`size`") == us


@pytest.mark.parametrize(
    ("wrong", "help"),
    [
        ("5min", "write `5m`"),
        ("1 hour", "write `1h`"),
        ("1.5h", "write `1h30m`"),
        ("30m1h", "write `1h30m`"),
        ("-2 mins", "write `-2m`"),
        ("1h1h", "write `2h`"),
        ("1mo", "months and years have no fixed length; use days, as in `30d`"),
        (5, "add the unit, as in `5s`"),
        (0.5, "add the unit, as in `1s500ms`"),
        ("soon", "write numbers with units from long to short, as in `250ms`, `10s`, `5m`, `1h30m`, `7d`, `1w`"),
        ("", "write numbers with units from long to short, as in `250ms`, `10s`, `5m`, `1h30m`, `7d`, `1w`"),
        (None, "write numbers with units from long to short, as in `250ms`, `10s`, `5m`, `1h30m`, `7d`, `1w`"),
    ],
)
def test_what_is_no_duration_is_refused_with_the_right_spelling(wrong: str, help: str) -> None:
    with pytest.raises(DataflowError) as caught:
        duration_us(wrong, "`delay`")
    assert str(caught.value) == f"error[DF0402]: `delay`: {wrong!r} is not a duration\n = help: {help}"


def test_a_duration_beyond_64_bits_is_refused() -> None:
    with pytest.raises(DataflowError, match="longer than 64 bits"):
        duration_us("99999999999w", "`size`")


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_a_formatted_duration_reads_back(us: int) -> None:
    assert duration_us(format_duration(us), "it") == us


# ── event times ──────────────────────────────────────────────────────────────────────────────────────────

PER_US = {"s": 1_000_000, "ms": 1_000, "us": 1}


def saturated(us: int) -> int:
    return min(max(us, INT64.min), INT64.max)


@given(
    unit=st.sampled_from(["s", "ms", "us", "ns"]),
    zone=st.sampled_from([None, "UTC", "Asia/Kathmandu"]),
    ticks=st.lists(st.none() | int64s, max_size=12),
    start=st.integers(0, 3),
)
def test_timestamps_become_microseconds_and_saturate(
    unit: str, zone: str | None, ticks: list[int | None], start: int
) -> None:
    times = pa.array(ticks, pa.int64()).view(pa.timestamp(unit, tz=zone)).slice(start)
    us, nulls = to_us(times)
    expected = [
        None if tick is None else saturated(tick // 1000 if unit == "ns" else tick * PER_US[unit])
        for tick in ticks[start:]
    ]
    assert us.dtype == np.int64
    assert (nulls is None) == (None not in expected)
    is_null = np.zeros(len(us), bool) if nulls is None else nulls
    assert [None if null else int(one) for one, null in zip(us, is_null, strict=True)] == expected


@given(st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=8))
def test_dates_become_their_midnights(days: list[int | None]) -> None:
    day_us = 86_400_000_000
    us, nulls = to_us(pa.array(days, pa.int32()).view(pa.date32()))
    is_null = np.zeros(len(us), bool) if nulls is None else nulls
    assert [None if null else int(one) for one, null in zip(us, is_null, strict=True)] == [
        None if day is None else saturated(day * day_us) for day in days
    ]


def test_a_date64_counts_milliseconds() -> None:
    us, _ = to_us(pa.array([-86_400_000, 0, 86_400_000]).view(pa.date64()))
    assert us.tolist() == [-86_400_000_000, 0, 86_400_000_000]


def test_microseconds_cost_no_copy() -> None:
    times = pa.array([1, 2, 3], pa.timestamp("us"))
    us, _ = to_us(times)
    assert us.ctypes.data == times.buffers()[1].address


def test_window_bounds_are_microseconds_in_the_zone_of_the_event_time() -> None:
    bounds = from_us(np.array([0, 60_000_000]), pa.timestamp("ms", tz="Europe/Rome"))
    assert bounds.type == pa.timestamp("us", tz="Europe/Rome")
    assert bounds.cast(pa.int64()).to_pylist() == [0, 60_000_000]
    assert bounds_type(pa.date32()) == pa.timestamp("us")


@pytest.mark.parametrize(
    ("type", "help"),
    [
        (pa.int64(), 'say what the number counts: `.cast("timestamp[ms]")` (or s, us, ns)'),
        (pa.string(), 'parse it: `.cast("timestamp")` for ISO 8601, `.str.to_timestamp("%d/%m/%Y")` for others'),
        (pa.bool_(), "the event time is a timestamp or a date"),
    ],
)
def test_other_types_cannot_be_the_event_time(type: pa.DataType, help: str) -> None:
    check_time_type(pa.date64(), "`at`")
    with pytest.raises(DataflowError) as caught:
        check_time_type(type, "`at`")
    assert str(caught.value) == f"error[DF0301]: `at` is {type}, which cannot be an event time\n = help: {help}"

"""The function library: every example in the table, and the hard cases against Python's own calendar."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.errors import DataflowError, NameNotFoundError
from dataflow.expr import Expr, col, lit
from dataflow.functions import FUNCTIONS, Function

INT64 = np.iinfo(np.int64)
EPOCH = dt.datetime(1970, 1, 1)


def values_of(expr: Expr, column: pa.Array) -> list[object]:
    """The values of an expression over the column `x`, with "bad" in bad rows."""
    bound = expr.bind(pa.schema({"x": column.type}))
    result = bound.evaluate({"x": column}, len(column))
    assert result.values.type == bound.type
    values: list[object] = result.values.to_pylist()
    for one in result.bad:
        for row in np.flatnonzero(one.mask):
            assert values[row] is None
            values[row] = "bad"
    return values


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_example_in_the_table_is_true(function: Function) -> None:
    example = eval(function.example, {"lit": lit, "col": col})
    assert function.name.rpartition(".")[2] in function.example
    assert example.bind(pa.schema([])).evaluate({}, 1).values.to_pylist() == [True]
    assert function.doc.endswith(".")
    assert function.signature.startswith(function.name + "(")


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: col.x.str.lowr(),
            "error[DF0202]: there is no function `str.lowr`\n = help: did you mean `str.lower`? (functions: str.lower, "
            "str.upper, str.strip, str.length, str.contains, str.starts_with, str.ends_with, str.slice, "
            "str.to_timestamp)",
        ),
        (
            lambda: col.x.str.hour(),
            "error[DF0202]: there is no function `str.hour`\n = help: did you mean `dt.hour`? (functions: str.lower, "
            "str.upper, str.strip, str.length, str.contains, str.starts_with, str.ends_with, str.slice, "
            "str.to_timestamp)",
        ),
        (lambda: col.x.str.slice(), "error[DF0301]: `str.slice(start, length=None)` needs `start`"),
        (lambda: col.x.str.lower(1), "error[DF0301]: `str.lower()` takes 0 values, got 1"),
        (
            lambda: col.x.str.slice(0, size=3),
            "error[DF0202]: `str.slice(start, length=None)` has no option `size`\n = help: (options: start, length)",
        ),
        (
            lambda: col.x.str.contains(col.y),
            "error[DF0301]: `str.contains(part)`: `part` is a constant text, got col.y",
        ),
        (
            lambda: col.x.round(Decimal(2)),  # type: ignore[arg-type]
            "error[DF0301]: `round(digits=0)`: `digits` is a constant whole number, got Decimal('2')",
        ),
    ],
)
def test_a_wrong_call_is_refused_where_it_is_written(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(DataflowError) as caught:
        attempt()
    assert str(caught.value) == message


def test_a_namespace_lists_its_functions_and_answers_hasattr() -> None:
    assert "truncate" in dir(col.x.dt)
    assert hasattr(col.x.dt, "hour")
    assert not hasattr(col.x.dt, "lower")
    with pytest.raises(NameNotFoundError):
        col.x.dt.lower  # noqa: B018


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────

WORDS = ["", "Abc", " é \t", None, "naïve.B", "日本語", "aaa"]


@pytest.mark.parametrize("type", [pa.string(), pa.large_string(), pa.string_view(), None])
@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (col.x.str.lower(), str.lower),
        (col.x.str.upper(), str.upper),
        (col.x.str.strip(), str.strip),
        (col.x.str.length(), len),
        (col.x.str.contains("."), lambda s: "." in s),
        (col.x.str.starts_with("a"), lambda s: s.startswith("a")),
        (col.x.str.ends_with("語"), lambda s: s.endswith("語")),
        (col.x.str.slice(1), lambda s: s[1:]),
        (col.x.str.slice(1, 2), lambda s: s[1:3]),
        (col.x.str.slice(-2), lambda s: s[-2:]),
        (col.x.str.slice(-2, 1), lambda s: s[-2:][:1] if len(s) > 1 else ""),
        (col.x.str.slice(-2, 5), lambda s: s[-2:]),
        (col.x.str.slice(0, 0), lambda s: ""),
    ],
    ids=repr,
)
def test_a_text_function_does_what_python_does(
    expr: Expr, expected: Callable[[str], object], type: pa.DataType | None
) -> None:
    words = [word for word in WORDS if word is None or len(word) != 1]
    wanted = [None if word is None else expected(word) for word in words]
    column = pa.array(words, type or pa.string())
    assert values_of(expr, column) == wanted
    if type is None:
        bound = expr.bind(pa.schema({"x": pa.string()}))
        assert bound.evaluate({"x": column.dictionary_encode()}, len(words)).values.to_pylist() == wanted


@given(st.lists(st.dates(dt.date(1900, 1, 1), dt.date(2100, 12, 31)), min_size=1))
def test_times_are_read_in_any_format(days: list[dt.date]) -> None:
    for format in ("%d/%m/%Y", "%Y%m%d", "%m-%d-%Y"):
        texts = pa.array([day.strftime(format) for day in days])
        expected = [dt.datetime(day.year, day.month, day.day) for day in days]
        assert values_of(col.x.str.to_timestamp(format), texts) == expected


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        ("%d/%m/%Y", "29/02/2020", dt.datetime(2020, 2, 29)),
        ("%d/%m/%Y", "29/02/2021", "bad"),
        ("%d/%m/%Y", "31/04/2021", "bad"),
        ("%d/%m/%Y", "01/05/2021", dt.datetime(2021, 5, 1)),
        ("%d/%m/%Y", " 1/5/2021", dt.datetime(2021, 5, 1)),
        ("%d/%m/%Y", "32/01/2021", "bad"),
        ("%d/%m/%Y", "", "bad"),
        ("%d/%m/%Y", "01/05/2021 10:00", "bad"),
        ("%d/%m/%Y", None, None),
        ("%F %T", "2021-02-30 00:00:00", "bad"),
        ("%F %T", "2021-03-02 10:11:12", dt.datetime(2021, 3, 2, 10, 11, 12)),
        ("%d.%m.%Y %H:%M", "03.03.1969 23:59", dt.datetime(1969, 3, 3, 23, 59)),
        ("%H:%M", "07:30", dt.datetime(1899, 12, 31, 7, 30)),
        (None, "2021-03-02T10:11:12.5", dt.datetime(2021, 3, 2, 10, 11, 12, 500_000)),
        (None, "2021-02-29", "bad"),
    ],
)
def test_a_text_that_tells_no_time_is_a_bad_row(format: str | None, text: str | None, expected: object) -> None:
    company = pa.array([text, "01/01/2020", text], pa.string())
    read = values_of(col.x.str.to_timestamp(format), company)
    if format == "%H:%M":
        assert [type(one) for one in read] == [dt.datetime, str, dt.datetime]
        return
    assert [read[0], read[2]] == [expected, expected]


def test_formats_that_would_be_misread_are_refused() -> None:
    for expr in (col.x.str.to_timestamp("%Y %f"), col.x.str.to_timestamp("YYYY"), col.x.str.to_timestamp("%Y %")):
        with pytest.raises(DataflowError, match="parts: %Y"):
            expr.bind(pa.schema({"x": pa.string()}))
    with pytest.raises(DataflowError, match="`%f` is not a known part"):
        col.x.dt.strftime("%H.%f").bind(pa.schema({"x": pa.timestamp("us")}))
    with pytest.raises(DataflowError, match="has no zone to print"):
        col.x.dt.strftime("%H %Z").bind(pa.schema({"x": pa.timestamp("us")}))


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────

moments = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2250, 1, 1))
PARTS: dict[str, Callable[[dt.datetime], object]] = {
    "year": lambda at: at.year,
    "month": lambda at: at.month,
    "day": lambda at: at.day,
    "weekday": lambda at: at.isoweekday(),
    "hour": lambda at: at.hour,
    "minute": lambda at: at.minute,
}


@given(st.lists(st.none() | moments, min_size=1), st.sampled_from(["s", "ms", "us", "ns"]))
def test_the_parts_of_a_time_are_those_of_python(times: list[dt.datetime | None], unit: str) -> None:
    # Floored first: a cast to a coarser unit would round towards 1970.
    floored = [None if at is None else at.replace(microsecond=0) for at in times]
    column = pa.array(floored, pa.timestamp("us")).cast(pa.timestamp(unit))
    for name, part in PARTS.items():
        expected = [None if at is None else part(at) for at in floored]
        assert values_of(getattr(col.x.dt, name)(), column) == expected
    stamps = [None if at is None else at.strftime("%d.%m.%Y %H:%M:%S") for at in times]
    if unit in ("us", "ns"):
        assert values_of(col.x.dt.strftime("%d.%m.%Y %H:%M:%S"), column) == stamps


@given(st.lists(moments, min_size=1), st.sampled_from(["Europe/Rome", "America/New_York", "Asia/Kathmandu"]))
def test_a_time_with_a_zone_is_taken_apart_on_its_clock(times: list[dt.datetime], zone: str) -> None:
    times = [at.replace(year=1980 + at.year % 57, microsecond=0) for at in times if (at.month, at.day) != (2, 29)]
    column = pa.array(times, pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC")).cast(pa.timestamp("us", tz=zone))
    local = [at.replace(tzinfo=dt.UTC).astimezone(ZoneInfo(zone)) for at in times]
    for name, part in PARTS.items():
        assert values_of(getattr(col.x.dt, name)(), column) == [part(at) for at in local]


def test_a_summer_after_2037_is_right_or_a_bad_row() -> None:
    summer = instants("Europe/Rome", "2037-07-01T12:00+00:00", "2045-07-01T12:00+00:00")
    assert values_of(col.x.dt.hour(), summer) in ([14, "bad"], [14, 14])
    kathmandu = instants("Asia/Kathmandu", "2045-07-01T12:00+00:00")
    assert values_of(col.x.dt.hour(), kathmandu) == [17]
    with pytest.raises(DataflowError, match="there is no time zone 'Mars/Olympus'"):
        col.x.dt.hour().bind(pa.schema({"x": pa.timestamp("us", tz="Mars/Olympus")}))


@given(st.lists(st.dates(), min_size=1), st.sampled_from([pa.date32(), pa.date64()]))
def test_the_parts_of_a_date_are_those_of_python(days: list[dt.date], type: pa.DataType) -> None:
    column = pa.array(days, type)
    assert values_of(col.x.dt.year(), column) == [day.year for day in days]
    assert values_of(col.x.dt.weekday(), column) == [day.isoweekday() for day in days]
    assert values_of(col.x.dt.strftime("%d/%m"), column) == [f"{day:%d/%m}" for day in days]
    assert values_of(col.x.dt.truncate("1w"), column) == [
        day - dt.timedelta(days=day.weekday()) if day.toordinal() > 7 else values_of(col.x.dt.truncate("1w"), column)[i]
        for i, day in enumerate(days)
    ]


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_times_beyond_the_calendar_are_bad_rows(unit: str) -> None:
    column = pa.array([INT64.min, INT64.max, 0, None], pa.int64()).view(pa.timestamp(unit))
    for name in PARTS:
        assert values_of(getattr(col.x.dt, name)(), column) == ["bad", "bad", PARTS[name](EPOCH), None]
    assert values_of(col.x.dt.strftime("%Y"), column) == ["bad", "bad", "1970", None]


def test_nanoseconds_reach_their_own_ends() -> None:
    column = pa.array([INT64.min, INT64.max, None], pa.int64()).view(pa.timestamp("ns"))
    assert values_of(col.x.dt.year(), column) == [1677, 2262, None]
    rome = column.view(pa.timestamp("ns", tz="Europe/Rome"))
    assert values_of(col.x.dt.year(), rome) == ["bad", "bad", None]


@given(
    st.lists(st.none() | st.integers(INT64.min, INT64.max) | st.integers(-(10**16), 10**16), min_size=1),
    st.sampled_from(["1us", "7ms", "1s", "5m", "1h", "1h30m", "1d", "1w", "2w"]),
    st.sampled_from([None, "UTC"]),
)
def test_truncating_floors_also_before_1970(ticks: list[int | None], every: str, zone: str | None) -> None:
    from dataflow.event_time import duration_us

    every_us = duration_us(every, "every")
    origin = 4 * 86_400_000_000 if every.endswith("w") else 0
    column = pa.array(ticks, pa.int64()).view(pa.timestamp("us", tz=zone))
    floored = [None if tick is None else (tick - origin) // every_us * every_us + origin for tick in ticks]
    expected = ["bad" if tick is not None and tick < INT64.min else tick for tick in floored]
    assert values_of(col.x.dt.truncate(every).cast("int64"), column) == expected


def instants(zone: str, *texts: str) -> pa.Array:
    return pa.array([dt.datetime.fromisoformat(text) for text in texts], pa.timestamp("us", tz=zone))


def shown(values: list[object]) -> list[str]:
    return [value.isoformat() if isinstance(value, dt.datetime) else str(value) for value in values]


def test_truncating_follows_the_clock_of_the_zone() -> None:
    # Rome set its clocks back on 2023-10-29 at 3:00, so 2:00 to 3:00 came twice; on 2023-03-26 it left out 2:00.
    autumn = instants("Europe/Rome", "2023-10-29T00:30+00:00", "2023-10-29T01:30+00:00", "2023-10-29T23:30+00:00")
    assert shown(values_of(col.x.dt.truncate("1h"), autumn)) == [
        "2023-10-29T02:00:00+02:00",
        "2023-10-29T02:00:00+01:00",
        "2023-10-30T00:00:00+01:00",
    ]
    assert shown(values_of(col.x.dt.truncate("1d"), autumn)) == [
        "2023-10-29T00:00:00+02:00",
        "2023-10-29T00:00:00+02:00",
        "2023-10-30T00:00:00+01:00",
    ]
    assert shown(values_of(col.x.dt.truncate("1w"), autumn))[2] == "2023-10-30T00:00:00+01:00"
    kathmandu = instants("Asia/Kathmandu", "2023-01-01T00:20+00:00")
    assert shown(values_of(col.x.dt.truncate("1h"), kathmandu)) == ["2023-01-01T06:00:00+05:45"]


def test_truncating_to_finer_steps_than_the_type_has_is_refused() -> None:
    with pytest.raises(DataflowError, match="has no such fine steps"):
        col.x.dt.truncate("1h").bind(pa.schema({"x": pa.date32()}))
    with pytest.raises(DataflowError, match="has no such fine steps"):
        col.x.dt.truncate("1ms").bind(pa.schema({"x": pa.timestamp("s")}))
    with pytest.raises(DataflowError, match="write `5m`"):
        col.x.dt.truncate("5min").bind(pa.schema({"x": pa.timestamp("s")}))
    with pytest.raises(DataflowError, match="greater than zero"):
        col.x.dt.truncate("0s").bind(pa.schema({"x": pa.timestamp("s")}))


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_halves_are_rounded_to_the_even_neighbour() -> None:
    x = pa.array([0.5, 1.5, 2.5, -0.5, 1e308, 2.0**53 + 2, math.inf, None])
    assert values_of(col.x.round(), x) == [0.0, 2.0, 2.0, -0.0, 1e308, 2.0**53 + 2, math.inf, None]
    assert values_of(col.x.round(3), x) == [0.5, 1.5, 2.5, -0.5, 1e308, 2.0**53 + 2, math.inf, None]
    assert values_of(col.x.round(-1), pa.array([15.0, 25.0, 1.7e308])) == [20.0, 20.0, 1.7e308]
    assert values_of(col.x.round(), pa.array([3, None])) == [3, None]
    assert math.isnan(float(str(values_of(col.x.round(2), pa.array([math.nan]))[0])))


def test_a_decimal_that_rounds_to_more_digits_than_it_has_is_a_bad_row() -> None:
    x = pa.array([Decimal("99.95"), Decimal("1.25"), None], pa.decimal128(4, 2))
    assert values_of(col.x.round(1), x) == ["bad", Decimal("1.20"), None]


@given(st.lists(st.none() | st.integers(-128, 127), min_size=1))
def test_the_absolute_value_of_a_small_integer_does_not_overflow(numbers: list[int | None]) -> None:
    expected = [None if number is None else abs(number) for number in numbers]
    assert values_of(col.x.abs(), pa.array(numbers, pa.int8())) == expected

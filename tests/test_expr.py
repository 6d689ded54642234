"""Expressions: how they print, what they refuse, and that they compute what plain Python would, row by row."""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.aggregates import count, quantile
from dataflow.aggregates import max as max_of
from dataflow.aggregates import sum as sum_of
from dataflow.errors import DataflowError
from dataflow.expr import Evaluated, Expr, coalesce, col, duration, lit, when

INT64 = np.iinfo(np.int64)


def evaluate(expr: Expr, columns: Mapping[str, pa.Array], logical: pa.Schema | None = None) -> Evaluated:
    schema = logical or pa.schema([(name, column.type) for name, column in columns.items()])
    num_rows = len(next(iter(columns.values())))
    bound = expr.bind(schema)
    result = bound.evaluate(columns, num_rows)
    assert bound.is_column or result.values.type == bound.type
    assert len(result.values) == num_rows
    for bad in result.bad:
        assert bad.mask.dtype == np.bool_
        assert len(bad.mask) == num_rows
        assert result.values.filter(pa.array(bad.mask)).null_count == np.count_nonzero(bad.mask)
    return result


def values_of(expr: Expr, **columns: pa.Array) -> list[object]:
    """The values, with "bad" in bad rows."""
    result = evaluate(expr, columns)
    bad = {int(row) for one in result.bad for row in np.flatnonzero(one.mask)}
    return ["bad" if row in bad else value for row, value in enumerate(result.values.to_pylist())]


# ── as users see them ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "col.a",
        "col('a b')",
        "col('class')",
        "col.a + 1",
        "1 - col.a",
        "(col.a + col.b) * 2",
        "col.a + col.b * 2",
        "col.a - (col.b - col.c)",
        "col.a - col.b - col.c",
        "-(col.a + 1)",
        "(-col.a).abs()",
        "(col.a > 1) & (col.b < 2) | ~col.c",
        "(col.a == 1) == (col.b == 2)",
        '(col.a + 1).cast("int64").fill_null(0)',
        "col.a.is_in(['x', 'y'])",
        "col.a.between(0, col.b)",
        "col.a.is_null()",
        "when(col.a > 1).then('x').when(col.b).then(col.c).otherwise(None)",
        "coalesce(col.a, col.b, 0)",
        "col.at + duration(minutes=5, seconds=col.s)",
        "lit(1) + lit(2)",
        "(col.a > 1).alias('big')",
        "col.s.str.slice(1, 3).str.lower()",
        "col.at.dt.truncate('1h')",
        "col.x.round(2)",
        "col.x.round()",
    ],
)
def test_an_expression_prints_as_it_is_written(text: str) -> None:
    names = {"col": col, "lit": lit, "when": when, "coalesce": coalesce, "duration": duration}
    expr = eval(text, names)
    assert repr(expr) == text
    assert eval(repr(expr), names).identity() == expr.identity()
    assert json.loads(json.dumps(expr.identity())) == json.loads(json.dumps(eval(text, names).identity()))


def test_identities_tell_apart_what_is_different() -> None:
    exprs = [
        *(col.a, col.b, lit(1), lit(1.0), lit(True), lit("1"), lit(b"1"), lit(None), lit(math.nan)),
        *(col.a + 1, 1 + col.a, col.a - 1, -col.a, col.a.cast("int8"), col.a.alias("b")),
        *(col.a.is_in([1]), col.a.is_in([True]), col.a.round(1), col.a.round(2), duration(hours=1), duration(days=1)),
        *(lit(dt.date(2020, 1, 1)), lit(dt.datetime(2020, 1, 1)), lit(Decimal("1")), lit(Decimal("1.0"))),
    ]
    assert len({json.dumps(expr.identity()) for expr in exprs}) == len(exprs)


def test_an_expression_knows_its_columns_and_its_name() -> None:
    expr = when(col.a > 1).then(col.b + 1).otherwise(coalesce(col.c, 0))
    assert expr.columns() == {"a", "b", "c"}
    assert expr.output_name() is None
    assert expr.alias("x").output_name() == "x"
    assert col.a.cast("int8").fill_null(0).output_name() == "a"
    assert (col.a + 1).output_name() is None


def test_expressions_are_immutable_and_hash_by_identity() -> None:
    expr = col.a + 1
    with pytest.raises(AttributeError):
        expr.op = "-"  # type: ignore[attr-defined]
    assert len({expr, col.a + 1}) == 2


def test_numpy_values_make_literals() -> None:
    assert repr(np.int64(3) + col.a) == "3 + col.a"
    assert repr(col.a > np.float64(0.5)) == "col.a > 0.5"
    assert repr(col.at > np.datetime64("2020-01-01", "ns")) == "col.at > datetime(2020, 1, 1, 0, 0)"


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────

SCHEMA = pa.schema(
    {
        "i": pa.int64(),
        "k": pa.int32(),
        "u": pa.uint64(),
        "f": pa.float64(),
        "d": pa.decimal128(10, 2),
        "b": pa.bool_(),
        "s": pa.string(),
        "price": pa.float64(),
        "at": pa.timestamp("ms"),
        "utc": pa.timestamp("us", tz="UTC"),
        "day": pa.date32(),
        "list": pa.list_(pa.int64()),
    }
)


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        (
            col.prise > 1,
            "error[DF0202]: there is no column `prise`\n = help: did you mean `price`? (columns: i, k, u, f, d, b, s, "
            "price, at, utc, day, list)",
        ),
        (
            col.s == 1,
            "error[DF0301]: `col.s == 1`: string and int64 do not go together\n = help: cast one of them: "
            '`.cast("int64")` on the text, or `.cast("string")` on the other',
        ),
        (
            col.u + col.i,
            "error[DF0301]: `col.u + col.i`: uint64 and int64 have no common integer type\n = help: say what is "
            'meant: `.cast("int64")` on the uint64 side (rows beyond int64 become error rows), or `.cast("float64")`',
        ),
        (
            col.u > -1,
            "error[DF0301]: `col.u > -1`: uint64 and int64 have no common integer type\n = help: say what is "
            'meant: `.cast("int64")` on the uint64 side (rows beyond int64 become error rows), or `.cast("float64")`',
        ),
        (
            col.d * col.f,
            "error[DF0301]: `col.d * col.f`: a decimal is exact, a float is not\n = help: say which is meant: "
            '`.cast("float64")` on the decimal, or `.cast("decimal(18, 2)")` on the float',
        ),
        (
            col.b + 1,
            "error[DF0301]: `col.b + 1`: cannot compute with bool\n"
            ' = help: a condition becomes 0 or 1 with `.cast("int64")`',
        ),
        (
            col.s * 2,
            "error[DF0301]: `col.s * 2`: cannot compute with string\n"
            ' = help: make it a number first: `.cast("int64")` or `.cast("float64")`',
        ),
        (
            col.i & (col.k > 1),
            "error[DF0301]: `col.i & (col.k > 1)`: `col.i` is int64, not a condition\n"
            " = help: compare it with something, as in `(col.i != 0)`",
        ),
        (
            (col.i > 1) & col.k + 1,
            "error[DF0301]: `(col.i > 1) & col.k + 1`: `col.k + 1` is int64, not a condition\n = help: put each "
            "condition in brackets: `(a > 1) & (b < 2)`; `&` and `|` bind more tightly than `>`",
        ),
        (
            col.at > col.utc,
            "error[DF0301]: `col.at > col.utc`: timestamp[ms] has no zone, timestamp[us, UTC] has one\n"
            ' = help: give the other one a zone: `.cast("timestamp[us, UTC]")` takes its clock as UTC',
        ),
        (
            col.at == "yesterday",
            "error[DF0305]: 'yesterday' is not a timestamp, which it is compared with: Invalid isoformat string: "
            "'yesterday'\n = help: write it as '2013-07-04T15:30:00'",
        ),
        (
            col.at > dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
            "error[DF0301]: the time '2020-01-01T00:00:00+00:00' has a zone, the column (timestamp[ms]) has none\n"
            ' = help: leave the zone out, or give the column one: `.cast("timestamp[us, UTC]")`',
        ),
        (
            col.at + 5,
            "error[DF0301]: `col.at + 5`: there is no timestamp[ms] + int64\n"
            " = help: times go with durations: `time + duration(minutes=5)`, `time - time`, `duration * 2`",
        ),
        (
            col.f.cast("timestamp"),
            'error[DF0301]: `col.f.cast("timestamp[us]")`: there is no cast from float64 to timestamp[us]\n'
            ' = help: cast in two steps, as in `.cast("int64").cast("timestamp[ms]")`, if a type between them fits',
        ),
        (
            col.i.is_in([1, None]),
            "error[DF0301]: `col.i.is_in([1, None])`: null is equal to nothing, so `is_in` cannot find it\n"
            " = help: write `| x.is_null()` beside it",
        ),
        (
            col.list == col.list,
            "error[DF0301]: `col.list == col.list`: list[int64] cannot be compared\n = help: compare its parts",
        ),
        (
            when(col.b).then(1).otherwise("x"),
            "error[DF0301]: `when(col.b).then(1).otherwise('x')`: int64 and string do not go together\n = help: cast "
            'one of them: `.cast("int64")` on the text, or `.cast("string")` on the other',
        ),
        (
            col.i.dt.hour(),
            "error[DF0301]: `col.i.dt.hour()`: `dt.hour` takes a timestamp, not int64",
        ),
        (
            col.s.dt.day(),
            "error[DF0301]: `col.s.dt.day()`: `dt.day` takes a timestamp or a date, not string\n"
            ' = help: parse it first: `.cast("timestamp")` or `.str.to_timestamp("%d/%m/%Y")`',
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_bound(expr: Expr, message: str) -> None:
    with pytest.raises(DataflowError) as caught:
        expr.bind(SCHEMA)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: bool(col.a > 1), "`col.a > 1` is an expression: it is true or false for each row, not as a whole"),
        (lambda: 1 < col.a < 3, "`col.a > 1` is an expression: it is true or false for each row, not as a whole"),
        (lambda: 1 in col.a, "`in col.a` cannot be asked"),
        (lambda: list(col.a), "`col.a` is an expression and cannot be iterated over"),
        (lambda: col.a == [1], "a list cannot be a value in an expression: [1]"),
        (lambda: col.a.is_in("abc"), "`is_in` needs a list of values, got 'abc'"),
        (
            lambda: when(col.a).then(1) + 1,  # type: ignore[operator]
            "unsupported operand",
        ),
        (lambda: col.b + when(col.a), "`when(col.a) …` is not finished"),
        (lambda: duration(), "`duration` needs at least one part"),
        (lambda: coalesce(), "`coalesce` needs at least one value"),
        (lambda: lit(2**70).bind(SCHEMA), "the number 1180591620717411303424 does not fit into 64 bits"),
        (lambda: col.a.cast("flaot"), "the type: there is no type 'flaot'"),
        (lambda: col.x.sum() / count(), "`col.x.sum()` is an aggregate: it has a value for a group, not for a row"),
        (lambda: col.x + count(), "`count()` is an aggregate: it has a value for a group, not for a row"),
        (lambda: count() == 3, "`count()` is an aggregate: it has a value for a group, not for a row"),
        (lambda: sum_of("x"), "an aggregate needs a column, got the text 'x'"),
        (lambda: col.x.quantile(0.5), "an approximate `quantile` is not available yet"),
        (lambda: col.x.quantile(95, exact=True), "`quantile` needs a share between 0 and 1, got 95"),
    ],
)
def test_what_python_cannot_mean_is_refused_with_advice(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises((DataflowError, TypeError)) as caught:
        attempt()
    shown = caught.value.message if isinstance(caught.value, DataflowError) else str(caught.value)
    assert shown.startswith(message)


def test_the_advice_for_bool_names_the_operators() -> None:
    with pytest.raises(DataflowError) as caught:
        bool(col.a)
    assert str(caught.value).startswith("error[DF0301]: `col.a` is an expression")
    assert "`&`, `|` and `~`" in str(caught.value)
    assert ".is_in([…])" in str(caught.value)


# ── types ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("expr", "type"),
    [
        (col.k + col.k, pa.int64()),
        (col.k + 1, pa.int64()),
        (-col.k, pa.int64()),
        (col.i + col.f, pa.float64()),
        (col.i * 1.5, pa.float64()),
        (col.i / 2, pa.float64()),
        (col.i // 2, pa.int64()),
        (col.u + 1, pa.uint64()),
        (col.u * 0.5, pa.float64()),
        (col.d + 1, pa.decimal128(11, 2)),
        (col.d / 2, pa.float64()),
        (col.k.fill_null(0), pa.int32()),
        (col.k.fill_null(2**40), pa.int64()),
        (coalesce(col.k, col.i), pa.int64()),
        (when(col.b).then(1).otherwise(0), pa.int64()),
        (when(col.b).then(col.i).otherwise(0.5), pa.float64()),
        (when(col.b).then(None).otherwise(col.s), pa.string()),
        (col.at.fill_null("2020-01-01"), pa.timestamp("ms")),
        (col.at + duration(minutes=1), pa.timestamp("us")),
        (col.at - dt.timedelta(minutes=1), pa.timestamp("us")),
        (col.at - col.at, pa.duration("ms")),
        (col.utc - dt.datetime(2020, 1, 1, tzinfo=dt.UTC), pa.duration("us")),
        (col.day + duration(hours=col.f), pa.timestamp("us")),
        (duration(hours=1) * 2, pa.duration("us")),
        (duration(hours=1) / duration(minutes=1), pa.float64()),
        (col.day == "2020-01-01", pa.bool_()),
        (lit(None) + 1, pa.int64()),
        (col.s + "!", pa.string()),
    ],
)
def test_the_type_of_an_expression_is_known_before_it_runs(expr: Expr, type: pa.DataType) -> None:
    assert expr.bind(SCHEMA).type == type
    empty = {field.name: pa.array([], field.type) for field in SCHEMA}
    assert expr.bind(SCHEMA).evaluate(empty, 0).values.type == type


# ── values, by example ───────────────────────────────────────────────────────────────────────────────────


def test_a_plain_column_is_handed_on_as_it_is() -> None:
    column = pa.array(["x", "y"]).dictionary_encode()
    bound = col.s.bind(pa.schema({"s": pa.string()}))
    assert bound.is_column
    assert bound.evaluate({"s": column}, 2).values is column


def test_only_the_rows_whose_result_depends_on_a_failure_are_bad() -> None:
    a, b = pa.array([7, 7, None, 7]), pa.array([2, 0, 0, None])
    assert values_of(col.a // col.b, a=a, b=b) == [3, "bad", None, None]
    assert values_of(when(col.b != 0).then(col.a // col.b).otherwise(-1), a=a, b=b) == [3, -1, -1, -1]
    assert values_of((col.b != 0) & (col.a // col.b > 1), a=a, b=b) == [True, False, False, None]
    assert values_of((col.b == 0) | (col.a // col.b > 1), a=a, b=b) == [True, True, True, None]
    assert values_of(coalesce(col.b, col.a // col.b), a=a, b=b) == [2, 0, 0, None]
    assert values_of((col.a // col.b).fill_null(9), a=a, b=b) == [3, "bad", 9, 9]
    assert values_of((col.a // col.b).is_null(), a=a, b=b) == [False, "bad", True, True]
    assert values_of((col.a // col.b).is_not_null() & (col.a % col.b).is_not_null(), a=a, b=b) == [
        True,
        "bad",
        False,
        False,
    ]


def test_a_bad_row_says_why() -> None:
    result = evaluate((col.a + 1) // col.b, {"a": pa.array([1, INT64.max]), "b": pa.array([0, 1])})
    assert [(one.code, one.message, one.mask.tolist()) for one in result.bad] == [
        ("DF0310", "`col.a + 1`: integer overflow", [False, True]),
        ("DF0311", "`(col.a + 1) // col.b`: division by zero", [True, False]),
    ]


def test_the_least_integer_divides_as_in_python() -> None:
    a, b = pa.array([INT64.min] * 3), pa.array([-1, 1, 3])
    assert values_of(col.a // col.b, a=a, b=b) == ["bad", INT64.min, INT64.min // 3]
    assert values_of(col.a % col.b, a=a, b=b) == [0, 0, INT64.min % 3]
    assert values_of(col.a // -1, a=a) == ["bad"] * 3
    assert values_of(-col.a, a=a) == ["bad"] * 3
    assert values_of(col.a.abs(), a=a) == ["bad"] * 3
    assert values_of(col.a * -1, a=a) == ["bad"] * 3


def test_unsigned_64_bits_are_checked_too() -> None:
    u = pa.array([0, 5, 2**64 - 1], pa.uint64())
    assert values_of(col.u + 1, u=u) == [1, 6, "bad"]
    assert values_of(col.u - 1, u=u) == ["bad", 4, 2**64 - 2]
    assert values_of(col.u * 3, u=u) == [0, 15, "bad"]
    assert values_of(col.u // 2, u=u) == [0, 2, 2**63 - 1]
    assert values_of(7 % col.u, u=u) == ["bad", 2, 7]
    assert values_of(col.u.cast("int64"), u=u) == [0, 5, "bad"]
    assert values_of(col.u > 2**63, u=u) == [False, False, True]


def test_floats_divide_without_errors() -> None:
    x = pa.array([1.0, -1.0, 0.0, None])
    assert str(values_of(col.x / 0, x=x)) == "[inf, -inf, nan, None]"
    assert str(values_of(col.x // 0.0, x=x)) == "[inf, -inf, nan, None]"
    assert str(values_of(col.x % 0.0, x=x)) == "[nan, nan, nan, None]"
    assert str(values_of(lit(1) / lit(0), x=x)) == "[inf, inf, inf, inf]"


def test_decimals_stay_exact() -> None:
    price = pa.array([Decimal("9.99"), Decimal("10.00"), None], pa.decimal128(10, 2))
    assert values_of(col.price > 9.99, price=price) == [False, True, None]
    assert values_of(col.price == Decimal("9.990"), price=price) == [True, False, None]
    assert values_of(col.price * 1.1, price=price) == [Decimal("10.989"), Decimal("11.000"), None]
    assert values_of(-col.price + 1, price=price) == [Decimal("-8.99"), Decimal("-9.00"), None]
    assert values_of(col.price.cast("int64"), price=price) == ["bad", 10, None]
    assert values_of(col.n.cast("decimal(4, 2)"), n=pa.array([1, 99, 100])) == [Decimal(1), Decimal(99), "bad"]


def test_constants_are_repeated() -> None:
    a = pa.array([1, 2, 3])
    assert values_of(lit(1) + 2, a=a) == [3, 3, 3]
    assert values_of(lit(1) // 0, a=a) == ["bad"] * 3
    assert values_of(lit("x").cast("int64"), a=a) == ["bad"] * 3
    assert values_of(lit(None) > 1, a=a) == [None] * 3
    assert values_of(lit(True) & lit(None), a=a) == [None] * 3
    assert values_of(when(True).then("x").otherwise("y"), a=a) == ["x"] * 3
    assert values_of((col.a > 1) | (lit(1) // 0 > 0), a=a) == ["bad", True, True]


def test_times_compare_with_texts_and_datetimes() -> None:
    at = pa.array([-1, 0, 1, None], pa.timestamp("ms"))
    assert values_of(col.at >= "1970-01-01", at=at) == [False, True, True, None]
    assert values_of(col.at == dt.datetime(1970, 1, 1, 0, 0, 0, 1000), at=at) == [False, False, True, None]
    assert values_of(col.at > dt.datetime(1969, 12, 31, 23, 59, 59, 999_500), at=at) == [False, True, True, None]
    assert values_of(col.at.is_in(["1970-01-01", dt.date(1970, 1, 2)]), at=at) == [False, True, False, None]
    ns = at.cast(pa.timestamp("ns"))
    assert values_of(col.at < dt.datetime(9999, 1, 1), at=ns) == [True, True, True, None]
    rome = at.cast(pa.timestamp("us", tz="Europe/Rome"))
    assert values_of(col.at >= "1970-01-01T01:00", at=rome) == [False, True, True, None]
    assert values_of(col.at >= "1970-01-01T00:00Z", at=rome) == [False, True, True, None]
    assert values_of(col.d == "1970-01-02", d=pa.array([1, 2], pa.date32())) == [True, False]
    assert values_of(col.t < "12:30", t=pa.array([0, 46_000_000_000], pa.time64("us"))) == [True, False]


def test_times_that_leave_their_range_are_bad() -> None:
    far = pa.array([2**62, 0, None], pa.int64()).view(pa.timestamp("ms"))
    assert values_of(col.at + duration(hours=1), at=far) == ["bad", dt.datetime(1970, 1, 1, 1), None]
    assert values_of((col.at - dt.datetime(1970, 1, 1)).cast("int64"), at=far) == ["bad", 0, None]
    assert values_of(col.at.cast("timestamp[us]").is_null(), at=far) == ["bad", False, True]
    assert values_of(duration(days=col.n).cast("int64"), n=pa.array([2**40, -1])) == ["bad", -86_400_000_000]
    assert values_of(duration(days=col.n).cast("int64"), n=pa.array([0.5, math.nan])) == [43_200_000_000, "bad"]
    assert values_of(col.d.cast("timestamp[us]").cast("int64"), d=pa.array([2**31 - 1, -1], pa.date32())) == [
        "bad",
        -86_400_000_000,
    ]


def test_times_print_within_the_calendar() -> None:
    at = pa.array([0, 2**62, -1, None], pa.int64()).view(pa.timestamp("us", tz="UTC"))
    assert values_of(col.at.cast("string"), at=at) == [
        "1970-01-01 00:00:00.000000Z",
        "bad",
        "1969-12-31 23:59:59.999999Z",
        None,
    ]


def test_durations_change_their_unit_as_times_do() -> None:
    length = pa.array([-1, 1500, 2**62, None], pa.int64()).view(pa.duration("ms"))
    assert values_of(col.d.cast("duration[s]").cast("int64"), d=length) == [-1, 1, 2**62 // 1000, None]
    assert values_of(col.d.cast("duration[us]").cast("int64"), d=length) == [-1000, 1_500_000, "bad", None]
    assert values_of(col.d > "1s", d=length) == [False, True, True, None]
    assert values_of((col.d / "500ms").round(), d=length)[:2] == [-0.0, 3.0]


def test_a_time_before_1970_is_floored() -> None:
    at = pa.array([-1, -1500, 1500], pa.timestamp("us"))
    assert values_of(col.at.cast("timestamp[ms]").cast("int64"), at=at) == [-1, -2, 1]
    assert values_of(col.at.cast("date"), at=at) == [dt.date(1969, 12, 31), dt.date(1969, 12, 31), dt.date(1970, 1, 1)]
    assert values_of(col.at.cast("date64").cast("int64"), at=at) == [-86_400_000, -86_400_000, 0]


TEXTS = ["12", "-7", "+7", "x", "", None, "0x1F", "007", "99999999999999999999", " 5", "1.5", "1e3", "nan", "-inf"]
TEXTS += ["true", "False", "1", "2020-02-29", "2020-02-30", "2021-02-29", "2020-01-01T10:00", "2020-01-01 24:00"]
TEXTS += ["2020-01-01T10:00:00.123456", "2020-01-01T10:00:00Z", "0000-01-01", "12.345", "١٢"]


@pytest.mark.parametrize(
    "target",
    [
        *("int64", "int8", "uint64", "float64", "float32", "bool", "date"),
        *("timestamp[us]", "timestamp[ns]", "timestamp[s, UTC]", "decimal(5, 2)"),
    ],
)
@settings(max_examples=20)
@given(data=st.data())
def test_a_text_is_read_the_same_in_any_company(target: str, data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.sampled_from(TEXTS) | st.text("0123456789+-.:TZeE xX", max_size=12), min_size=1))
    together = evaluate(col.s.cast(target), {"s": pa.array(texts, pa.string())})
    alone = [evaluate(col.s.cast(target), {"s": pa.array([text], pa.string())}) for text in texts]
    assert str(together.values) == str(pa.concat_arrays([one.values for one in alone]))
    bad = np.logical_or.reduce([np.zeros(len(texts), bool), *(one.mask for one in together.bad)])
    assert bad.tolist() == [any(one.mask[0] for one in each.bad) for each in alone]
    assert bad.tolist() == [
        text is not None and value is None for text, value in zip(texts, _raw(together), strict=True)
    ]


def _raw(result: Evaluated) -> list[object]:
    return [True if valid.as_py() else None for valid in result.values.is_valid()]


# ── values, against plain Python ─────────────────────────────────────────────────────────────────────────

Row = Mapping[str, object]


class Failed:
    """What a row's value is when it cannot be computed."""


FAILED = Failed()


@dataclass(frozen=True)
class Case:
    """An expression, the family of its type, and what it means in one row."""

    expr: Expr
    kind: str
    meaning: Callable[[Row], object]

    def __repr__(self) -> str:
        return repr(self.expr)


INTS = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([INT64.min, INT64.min + 1, INT64.max, 2**31, 2**53 + 1, -(2**32), 3_037_000_500]),
    st.integers(INT64.min, INT64.max),
)
FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, -2.5, math.nan, math.inf, -math.inf, 1e18, 2.0**63, -(2.0**63), 1e308]),
    st.floats(),
)
WORDS = st.sampled_from(["", "a", "ab", "é", "7", "-12", "x1", "9223372036854775808"])
COLUMNS = {
    "i": ("int", pa.int64(), INTS),
    "j": ("int", pa.int64(), st.integers(-3, 3)),
    "k": ("int", pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "u": ("int", pa.uint8(), st.integers(0, 255)),
    "f": ("float", pa.float64(), FLOATS),
    "g": ("float", pa.float64(), st.sampled_from([0.0, 1.0, -3.0, 0.1])),
    "b": ("bool", pa.bool_(), st.booleans()),
    "s": ("text", pa.string(), WORDS),
}
PLAIN_SCHEMA = pa.schema([(name, type) for name, (_, type, _) in COLUMNS.items()])
LITERALS = {"int": INTS, "float": FLOATS, "bool": st.booleans(), "text": WORDS}
KINDS = ("int", "float", "bool", "text")


def strict(function: Callable[..., object]) -> Callable[..., object]:
    """Failure in gives failure out, else null in gives null out."""

    def call(*args: object) -> object:
        if any(arg is FAILED for arg in args):
            return FAILED
        return None if any(arg is None for arg in args) else function(*args)

    return call


def fitting(number: int) -> object:
    return number if INT64.min <= number <= INT64.max else FAILED


def int_operator(op: str) -> Callable[..., object]:
    def compute(a: int, b: int) -> object:
        if op in ("//", "%") and b == 0:
            return FAILED
        return fitting({"+": a.__add__, "-": a.__sub__, "*": a.__mul__, "//": a.__floordiv__, "%": a.__mod__}[op](b))

    return compute


def float_operator(op: str) -> Callable[..., object]:
    ufunc = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "//": np.floor_divide, "%": np.remainder}

    def compute(a: float, b: float) -> object:
        with np.errstate(all="ignore"):
            return float(ufunc[op](np.float64(a), np.float64(b)))

    return compute


def both(a: object, b: object) -> object:
    if a is False or b is False:
        return False
    if a is FAILED or b is FAILED:
        return FAILED
    return None if a is None or b is None else True


def negated(a: object) -> object:
    return a if a is FAILED or a is None else not a


def compared(op: str, a: object, b: object) -> object:
    return strict(lambda x, y: {"==": x == y, "!=": x != y, "<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y}[op])(
        a, b
    )


def as_float(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@st.composite
def cases(draw: st.DrawFn, kind: str | None = None, depth: int = 3) -> Case:
    """A random typed expression with its meaning."""
    kind = kind or draw(st.sampled_from(KINDS))
    if depth == 0 or draw(st.integers(0, 9)) == 0:
        return draw(leaves(kind))
    return draw(st.sampled_from(MAKERS[kind]))(draw, kind, depth - 1)


@st.composite
def leaves(draw: st.DrawFn, kind: str) -> Case:
    names = [name for name, (of, _, _) in COLUMNS.items() if of == kind]
    if draw(st.booleans()) or draw(st.booleans()):
        name = draw(st.sampled_from(names))
        return Case(col(name), kind, lambda row: row[name])
    value = draw(LITERALS[kind])
    return Case(lit(value), kind, lambda row: value)


def make_arithmetic(draw: st.DrawFn, kind: str, depth: int) -> Case:
    if kind == "int":
        op = draw(st.sampled_from(["+", "-", "*", "//", "%"]))
        left, right, compute = draw(cases("int", depth)), draw(cases("int", depth)), int_operator(op)
    else:
        op = draw(st.sampled_from(["+", "-", "*", "/", "//", "%"]))
        kinds = draw(st.sampled_from([("float", "float"), ("int", "float"), ("float", "int")]))
        left, right, compute = draw(cases(kinds[0], depth)), draw(cases(kinds[1], depth)), float_operator(op)
    return Case(
        operate(op, left.expr, right.expr), kind, lambda row: strict(compute)(left.meaning(row), right.meaning(row))
    )


def operate(op: str, left: Expr, right: Expr) -> Expr:
    made = eval(f"left {op} right", {"left": left, "right": right})
    assert isinstance(made, Expr)
    return made


def make_negative(draw: st.DrawFn, kind: str, depth: int) -> Case:
    one = draw(cases(kind, depth))
    limit = fitting if kind == "int" else lambda x: x
    if draw(st.booleans()):
        return Case(-one.expr, kind, lambda row: strict(lambda x: limit(-x))(one.meaning(row)))
    return Case(one.expr.abs(), kind, lambda row: strict(lambda x: limit(abs(x)))(one.meaning(row)))


def make_cast(draw: st.DrawFn, kind: str, depth: int) -> Case:
    if kind == "int":
        one = draw(cases(draw(st.sampled_from(["float", "bool", "text"])), depth))
        return Case(one.expr.cast("int64"), kind, lambda row: strict(to_int)(one.meaning(row)))
    if kind == "float":
        one = draw(cases("int", depth))
        return Case(one.expr.cast("float64"), kind, lambda row: strict(float)(one.meaning(row)))
    one = draw(cases("int", depth))
    return Case(one.expr.cast("string"), kind, lambda row: strict(str)(one.meaning(row)))


def to_int(value: object) -> object:
    if isinstance(value, float):
        return FAILED if not math.isfinite(value) else fitting(int(value))
    if isinstance(value, bool):
        return int(value)
    assert isinstance(value, str)
    return fitting(int(value)) if value.lstrip("-").isdigit() and value.isascii() else FAILED


def make_choice(draw: st.DrawFn, kind: str, depth: int) -> Case:
    branches = [(draw(cases("bool", depth)), draw(cases(kind, depth))) for _ in range(draw(st.integers(1, 2)))]
    default = draw(cases(kind, depth))
    first, *others = branches
    chain = when(first[0].expr).then(first[1].expr)
    for condition, value in others:
        chain = chain.when(condition.expr).then(value.expr)

    def meaning(row: Row) -> object:
        for condition, value in branches:
            holds = condition.meaning(row)
            if holds is FAILED:
                return FAILED
            if holds is True:
                return value.meaning(row)
        return default.meaning(row)

    return Case(chain.otherwise(default.expr), kind, meaning)


def make_coalesce(draw: st.DrawFn, kind: str, depth: int) -> Case:
    parts = [draw(cases(kind, depth)) for _ in range(draw(st.integers(1, 3)))]

    def meaning(row: Row) -> object:
        return next((value for part in parts if (value := part.meaning(row)) is not None), None)

    if len(parts) == 2:
        return Case(parts[0].expr.fill_null(parts[1].expr), kind, meaning)
    return Case(coalesce(*(part.expr for part in parts)), kind, meaning)


def make_comparison(draw: st.DrawFn, kind: str, depth: int) -> Case:
    of = draw(st.sampled_from(KINDS))
    other = draw(st.sampled_from(["int", "float"])) if of in ("int", "float") else of
    left, right = draw(cases(of, depth)), draw(cases(other, depth))
    convert = as_float if {of, other} == {"int", "float"} else lambda x: x
    op = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
    return Case(
        operate(op, left.expr, right.expr),
        kind,
        lambda row: compared(op, convert(left.meaning(row)), convert(right.meaning(row))),
    )


def make_between(draw: st.DrawFn, kind: str, depth: int) -> Case:
    of = draw(st.sampled_from(["int", "text"]))
    value, low, high = (draw(cases(of, depth)) for _ in range(3))

    def meaning(row: Row) -> object:
        x = value.meaning(row)
        return both(compared(">=", x, low.meaning(row)), compared("<=", x, high.meaning(row)))

    return Case(value.expr.between(low.expr, high.expr), kind, meaning)


def make_logic(draw: st.DrawFn, kind: str, depth: int) -> Case:
    left, right = draw(cases("bool", depth)), draw(cases("bool", depth))
    if draw(st.booleans()):
        return Case(left.expr & right.expr, kind, lambda row: both(left.meaning(row), right.meaning(row)))
    return Case(
        left.expr | right.expr,
        kind,
        lambda row: negated(both(negated(left.meaning(row)), negated(right.meaning(row)))),
    )


def make_not(draw: st.DrawFn, kind: str, depth: int) -> Case:
    one = draw(cases("bool", depth))
    return Case(~one.expr, kind, lambda row: negated(one.meaning(row)))


def make_null_test(draw: st.DrawFn, kind: str, depth: int) -> Case:
    one = draw(cases(draw(st.sampled_from(KINDS)), depth))
    wanted = draw(st.booleans())

    def meaning(row: Row) -> object:
        value = one.meaning(row)
        return FAILED if value is FAILED else (value is None) == wanted

    return Case(one.expr.is_null() if wanted else one.expr.is_not_null(), kind, meaning)


def make_is_in(draw: st.DrawFn, kind: str, depth: int) -> Case:
    of = draw(st.sampled_from(["int", "text"]))
    one = draw(cases(of, depth))
    values = draw(st.lists(LITERALS[of], max_size=3))
    return Case(one.expr.is_in(values), kind, lambda row: strict(lambda x: x in values)(one.meaning(row)))


SHARED = (make_choice, make_coalesce)
MAKERS: dict[str, tuple[Callable[[st.DrawFn, str, int], Case], ...]] = {
    "int": (make_arithmetic, make_arithmetic, make_negative, make_cast, *SHARED),
    "float": (make_arithmetic, make_arithmetic, make_negative, make_cast, *SHARED),
    "bool": (make_comparison, make_comparison, make_between, make_logic, make_not, make_null_test, make_is_in, *SHARED),
    "text": (make_cast, *SHARED),
}
rows_of_columns = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, (_, _, values) in COLUMNS.items()}),
    min_size=1,
    max_size=6,
)


def same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and one == other


def outcomes(case: Case, columns: Mapping[str, pa.Array]) -> list[object]:
    result = evaluate(case.expr, columns, PLAIN_SCHEMA)
    values: list[object] = result.values.to_pylist()
    for one in result.bad:
        for row in np.flatnonzero(one.mask):
            values[row] = FAILED
    return values


@settings(max_examples=400, deadline=None)
@given(case=cases(), rows=rows_of_columns)
def test_an_expression_computes_what_plain_python_does_row_by_row(case: Case, rows: list[Row]) -> None:
    columns = {name: pa.array([row[name] for row in rows], type) for name, (_, type, _) in COLUMNS.items()}
    expected = [case.meaning(row) for row in rows]
    if case.kind == "float":
        expected = [as_float(value) for value in expected]
    together = outcomes(case, columns)
    assert all(map(same, together, expected)), (case, together, expected)
    alone = [
        outcomes(case, {name: column.slice(i, 1) for name, column in columns.items()})[0] for i in range(len(rows))
    ]
    assert all(map(same, alone, expected)), (case, alone, expected)


@settings(max_examples=200, deadline=None)
@given(case=cases(), rows=rows_of_columns, spare=st.booleans())
def test_a_dictionary_column_gives_what_a_plain_one_does(case: Case, rows: list[Row], spare: bool) -> None:
    plain = {name: pa.array([row[name] for row in rows], type) for name, (_, type, _) in COLUMNS.items()}
    encoded = {name: encode(column, spare) for name, column in plain.items()}
    assert all(map(same, outcomes(case, encoded), outcomes(case, plain)))


def encode(column: pa.Array, spare: bool) -> pa.Array:
    """The column as a dictionary, with an unused entry and a null in the dictionary if `spare`."""
    if not spare:
        return column.dictionary_encode()
    encoded = column.dictionary_encode()
    dictionary = pa.concat_arrays([encoded.dictionary, pa.nulls(1, column.type), column[:1]])
    return pa.DictionaryArray.from_arrays(encoded.indices, dictionary)


# ── what it costs ────────────────────────────────────────────────────────────────────────────────────────


def test_a_comparison_is_a_handful_of_calls() -> None:
    bound = (col.value > 0.5).bind(pa.schema({"value": pa.float64()}))
    columns = {"value": pa.array([0.1, 0.9])}
    bound.evaluate(columns, 2)
    calls = 0

    def count_calls(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count_calls)
    bound.evaluate(columns, 2)
    sys.setprofile(None)
    assert calls <= 20


# ── aggregates ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_aggregate_is_a_value_that_prints_as_it_is_written() -> None:
    late = col.delay.mean().filter(col.delay > 0).filter(col.ok).alias("late")
    assert repr(late) == "col.delay.mean().filter((col.delay > 0) & col.ok).alias('late')"
    assert late.columns() == {"delay", "ok"}
    assert late.output_name() == "late"
    assert late.function == "mean"
    assert [repr(one) for one in late.inputs] == ["col.delay"]
    assert repr(count()) == "count()"
    assert repr(count(col.a)) == "count(col.a)"
    assert repr(quantile(col.a + 1, 0.95, exact=True)) == "(col.a + 1).quantile(0.95, exact=True)"
    assert repr(col.a.first(ignore_nulls=True)) == "col.a.first(ignore_nulls=True)"
    assert repr(col.carrier.max_by(col.delay)) == "col.carrier.max_by(col.delay)"
    assert col.a.last().option("ignore_nulls") is False


def test_equal_aggregates_have_equal_identities_that_fit_json() -> None:
    assert sum_of(col.a + 1).identity() == (col.a + 1).sum().identity()
    assert max_of(col.a) == col.a.max()
    assert col.a.max() != col.a.max().alias("top")
    assert len({json.dumps(one.identity()) for one in (count(), count(col.a), col.a.sum(), col.a.first())}) == 4
    assert col.a.first().identity() != col.a.first(ignore_nulls=True).identity()

"""Type names and schemas: what users may write, and what they are told."""

from __future__ import annotations

import datetime as dt
import typing
from dataclasses import dataclass
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dataflow as flow
from dataflow import count
from dataflow.errors import DataflowError
from dataflow.schema import (
    check_key_type,
    column_not_found,
    is_key_type,
    shown_values,
    to_schema,
    to_type,
    type_name,
)


@pytest.mark.parametrize(
    ("written", "type"),
    [
        ("int", pa.int64()),
        ("int64", pa.int64()),
        ("uint8", pa.uint8()),
        ("float", pa.float64()),
        ("Float64", pa.float64()),
        ("double", pa.float64()),
        ("string", pa.string()),
        ("bool", pa.bool_()),
        ("bytes", pa.binary()),
        ("bytes[16]", pa.binary(16)),
        ("timestamp", pa.timestamp("us")),
        ("timestamp[ms]", pa.timestamp("ms")),
        ("timestamp[us, UTC]", pa.timestamp("us", tz="UTC")),
        ("timestamp[ns, tz=Europe/Rome]", pa.timestamp("ns", tz="Europe/Rome")),
        ("date", pa.date32()),
        ("time", pa.time64("us")),
        ("duration", pa.duration("us")),
        ("decimal(10, 2)", pa.decimal128(10, 2)),
        ("decimal256(50,4)", pa.decimal256(50, 4)),
        ("list[int?]?", pa.list_(pa.int64())),
        ("list<item: int64>", pa.list_(pa.int64())),
        ("struct[a: int, b: list[decimal(5, 1)]]", pa.struct([("a", "int64"), ("b", pa.list_(pa.decimal128(5, 1)))])),
        ("map[string, timestamp[us, UTC]]", pa.map_(pa.string(), pa.timestamp("us", tz="UTC"))),
        (int, pa.int64()),
        (dt.datetime, pa.timestamp("us")),
        (dt.date, pa.date32()),
        (list[str], pa.list_(pa.string())),
        (int | None, pa.int64()),
        (typing.Optional[float], pa.float64()),  # noqa: UP045
        (typing.Annotated[int, "count"], pa.int64()),
        (pa.uint16(), pa.uint16()),
    ],
)
def test_a_type_may_be_written_so(written: object, type: pa.DataType) -> None:
    assert to_type(written) == type


plain_types = st.sampled_from(
    [
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.null(), pa.string(), pa.large_string()),
        *(pa.binary(), pa.large_binary(), pa.binary(4), pa.string_view(), pa.binary_view()),
        *(pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
        *(pa.timestamp(unit, tz=tz) for unit in ("s", "ms", "us", "ns") for tz in (None, "UTC", "+01:00")),
        *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
        *(pa.decimal128(38, 10), pa.decimal128(5, -2), pa.decimal256(76, 0)),
    ]
)
any_type = st.recursive(
    plain_types, lambda inner: inner.map(pa.list_) | inner.map(lambda t: pa.struct([("x", t), ("y", pa.int8())]))
)


@given(any_type)
def test_the_name_of_a_type_reads_back(type: pa.DataType) -> None:
    assert to_type(type_name(type)) == type


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "flot64",
            "error[DF0202]: column `price`: there is no type 'flot64'\n = help: did you mean 'float64'? (types: int64, "
            "float64, string, bool, bytes, timestamp[us], date, time, duration, decimal(18, 2), list[T] …)",
        ),
        (
            "list[strng]",
            "error[DF0202]: column `price`: there is no type 'strng' in 'list[strng]'\n = help: did you mean 'string'? "
            "(types: int64, float64, string, bool, bytes, timestamp[us], date, time, duration, decimal(18, 2), "
            "list[T] …)",
        ),
        (
            "timestamp[minutes]",
            "error[DF0301]: column `price`: 'timestamp[minutes]' is not a type: write `timestamp[us]` or "
            "`timestamp[us, UTC]`; the units are s, ms, us, ns",
        ),
        (
            Decimal,
            'error[DF0301]: column `price`: `Decimal` is not a type\n = help: write its digits: "decimal(18, 2)"',
        ),
        (
            7,
            "error[DF0301]: column `price`: `7` is not a type\n"
            " = help: write a type name such as 'int64', 'float64', 'string', 'bool'",
        ),
        (
            pa.dictionary(pa.int32(), pa.string()),
            "error[DF0301]: column `price` is a dictionary, which is an encoding and not a type\n"
            ' = help: write the type of its values: "string"',
        ),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_meant(written: object, message: str) -> None:
    with pytest.raises(DataflowError) as caught:
        to_schema({"price": written})
    assert str(caught.value) == message


@dataclass
class Sale:
    id: int
    price: float
    sold_at: dt.datetime | None
    tags: list[str]


class Click(typing.TypedDict):
    who: str
    seconds: typing.NotRequired[float]


def test_a_schema_may_be_a_dict_a_dataclass_a_typed_dict_or_arrows_own() -> None:
    sale = pa.schema(
        {"id": pa.int64(), "price": pa.float64(), "sold_at": pa.timestamp("us"), "tags": pa.list_(pa.string())}
    )
    assert to_schema(Sale) == sale
    assert to_schema(sale) == sale
    assert to_schema({"id": "int", "price": float, "sold_at": "timestamp", "tags": "list[string]"}) == sale
    assert to_schema(Click) == pa.schema({"who": pa.string(), "seconds": pa.float64()})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["id"], "`['id']` is not a schema"),
        (int, "`int` is not a schema"),
        ({1: "int"}, "the schema names a column 1: names are text"),
        (pa.schema([("a", pa.int8()), ("a", pa.int8())]), "the schema names the column `a` twice"),
    ],
)
def test_what_is_no_schema_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(DataflowError) as caught:
        to_schema(wrong)
    assert caught.value.message == message


def test_an_unknown_column_is_answered_with_the_nearest_one_and_all_of_them() -> None:
    assert str(column_not_found("prise", ["id", "price", "sold_at"])) == (
        "error[DF0202]: there is no column `prise`\n = help: did you mean `price`? (columns: id, price, sold_at)"
    )
    many = column_not_found("x", [f"column_{i}" for i in range(30)]).help
    assert many is not None
    assert many.endswith("column_19 … 30 in all)")


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(plain_types)
def test_every_plain_type_can_be_a_key(type: pa.DataType) -> None:
    assert is_key_type(type)
    assert is_key_type(pa.struct([("a", type)]))


@pytest.mark.parametrize(
    ("type", "message"),
    [
        (
            pa.list_(pa.int64()),
            "error[DF0302]: `k` is list[int64], which cannot be a key\n = help: group by one of its elements or by a "
            "text made from them: derive a column from `k` first",
        ),
        (
            pa.struct([("a", pa.int64()), ("b", pa.list_(pa.int8()))]),
            "error[DF0302]: `k` is struct[a: int64, b: list[int8]], which cannot be a key\n = help: its field `b` is "
            "list[int8]: derive columns from the other fields and use those",
        ),
        (
            pa.struct([("a", pa.int64())]),
            "error[DF0302]: `k` is struct[a: int64], which cannot be a key\n = help: derive columns from the fields of "
            "`k` and use those",
        ),
        (
            pa.float16(),
            'error[DF0302]: `k` is float16, which cannot be a key\n = help: cast it: `derive(k=col.k.cast("float64"))`',
        ),
        (
            pa.map_(pa.string(), pa.int64()),
            "error[DF0302]: `k` is map<string, int64>, which cannot be a key\n = help: derive a column with the entry "
            "of `k` that tells the groups apart, and use that",
        ),
    ],
)
def test_nested_keys_are_refused_with_the_fix(type: pa.DataType, message: str) -> None:
    with pytest.raises(DataflowError) as caught:
        check_key_type("k", type)
    assert str(caught.value) == message


FAR = [
    pa.array([0, 2**62, None], pa.timestamp("us", "UTC")),
    pa.array([2**31 - 1, None], pa.date32()),
    pa.array([2**62, None], pa.duration("s")),
    pa.array([2**62, 1], pa.timestamp("ns")),
    pa.array([[2**62], None], pa.list_(pa.timestamp("s"))),
]


@pytest.mark.parametrize("column", FAR, ids=lambda column: str(column.type))
def test_values_that_python_cannot_hold_are_shown_all_the_same(column: pa.Array) -> None:
    shown = shown_values(column)
    assert [value is None for value in shown] == column.is_null().to_pylist()
    assert shown_values(column.slice(1)) == shown[1:]


def test_an_unread_late_row_at_the_end_of_time_does_not_end_the_run() -> None:
    rows = pa.table({"at": pa.array([2**62, 0, 2**61], pa.timestamp("us")), "k": [1, 1, 2]})
    windows = flow.from_arrow(rows).watermark("at", delay="1s").window(flow.tumbling("1m"), by="k").agg(n=count())
    assert windows.collect().num_rows == 1

"""Rows as text, against the parsers of Python: whatever the values are, and wherever a batch was cut."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.errors import ConnectorError
from dataflow.operators.sinks import text

TEXTS = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(
    ['"', '""', ",", "\n", "\r\n", "\\", "\x01", "\x1f\x7f", "é😀", " a ", "\u2028"]
)  # fmt: skip
INTEGERS = st.none() | st.integers(-(2**63), 2**63 - 1)
FLOATS = st.none() | st.floats(width=64)
NESTED = st.none() | st.lists(st.none() | st.fixed_dictionaries({"a": INTEGERS, "b": TEXTS}), max_size=3)
MAPS = st.none() | st.dictionaries(TEXTS.filter(lambda one: one is not None), FLOATS, max_size=3)
SCHEMA = pa.schema(
    {
        "s": pa.string(),
        "i": pa.int64(),
        "f": pa.float64(),
        'l"': pa.list_(pa.struct({"a": pa.int64(), "b": pa.string()})),
        "m": pa.map_(pa.string(), pa.float64()),
    }
)


@given(st.lists(st.tuples(TEXTS, INTEGERS, FLOATS, NESTED, MAPS), max_size=6), st.integers(0, 6))
def test_json_lines_are_what_the_json_module_reads(rows: list[tuple[Any, ...]], cut: int) -> None:
    batch = pa.record_batch(list(map(list, zip(*rows, strict=True))) if rows else [[]] * 5, schema=SCHEMA)
    told = b"".join(text.json_lines(part).to_pybytes() for part in (batch.slice(0, cut), batch.slice(cut)))
    found = [json.loads(line) for line in told.split(b"\n") if line]
    assert found == [dict(zip(SCHEMA.names, map(_in_json, row), strict=True)) for row in rows]


def _in_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _in_json(one) for key, one in value.items()}
    return [_in_json(one) for one in value] if isinstance(value, list) else value


@given(st.lists(st.tuples(TEXTS, INTEGERS, FLOATS), max_size=6), st.integers(0, 6))
def test_csv_lines_are_what_the_csv_module_reads(rows: list[tuple[Any, ...]], cut: int) -> None:
    schema = pa.schema([SCHEMA.field(name) for name in ("s", "i", "f")])
    batch = pa.record_batch(list(map(list, zip(*rows, strict=True))) if rows else [[]] * 3, schema=schema)
    told = b"".join(text.csv_lines(part).to_pybytes() for part in (batch.slice(0, cut), batch.slice(cut)))
    found = list(csv.reader(io.StringIO(told.decode(), newline="")))
    assert [row[0] for row in found] == [row[0] or "" for row in rows]
    assert [int(row[1]) if row[1] else None for row in found] == [row[1] for row in rows]
    floats = [float(row[2]) if row[2] else None for row in found]
    assert list(map(repr, floats)) == [repr(row[2]) if row[2] == row[2] else "nan" for row in rows]


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5), st.sampled_from(["s", "ms", "us", "ns"]))
def test_durations_say_every_tick(ticks: list[int | None], unit: str) -> None:
    told = text.plain_texts(pa.array(ticks, pa.duration(unit))).to_pylist()
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    for number, one in zip(ticks, told, strict=True):
        if number is None:
            assert one is None
            continue
        sign, body = (-1, one[3:-1]) if one.startswith("-") else (1, one[2:-1])
        seconds, _, rest = body.partition(".")
        assert sign * (int(seconds) * per_second + int(rest or 0)) == number


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_the_first_and_the_last_moment_that_text_can_say(unit: str) -> None:
    ticks = {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    first = int((dt.datetime(1, 1, 1) - dt.datetime(1970, 1, 1)).total_seconds()) * ticks
    after = (int((dt.datetime(9999, 12, 31, 23, 59, 59) - dt.datetime(1970, 1, 1)).total_seconds()) + 1) * ticks
    for good in (first, after - 1):
        text.check_times(pa.record_batch({"t": pa.array([good, None], pa.timestamp(unit))}), "here")
    told = text.plain_texts(pa.array([first, after - 1], pa.timestamp(unit))).to_pylist()
    assert told[0].startswith("0001-01-01T00:00:00") and told[1].startswith("9999-12-31T23:59:59")
    for bad in (first - 1, after):
        for times in (pa.array([bad], pa.timestamp(unit)), pa.array([[bad]], pa.list_(pa.timestamp(unit)))):
            with pytest.raises(ConnectorError, match="years 1 to 9999"):
                text.check_times(pa.record_batch({"t": times}), "here")


def test_dates_beyond_the_year_9999_are_refused() -> None:
    for kind, day in ((pa.date32(), 1), (pa.date64(), 86_400_000)):
        text.check_times(pa.record_batch({"d": pa.array([-719_162 * day, 2_932_896 * day], kind)}), "here")
        for bad in (-719_163 * day, 2_932_897 * day):
            with pytest.raises(ConnectorError):
                text.check_times(pa.record_batch({"d": pa.array([bad], kind)}), "here")


def test_long_texts_are_cut_into_pieces_that_fit() -> None:
    batch = pa.record_batch({"s": ["x" * (1 << 20)] * 200})
    cut = list(text.pieces(batch))
    assert sum(piece.num_rows for piece in cut) == 200
    assert max(piece.num_rows for piece in cut) <= text.LINES_BYTES_MAX >> 20

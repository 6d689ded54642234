"""Rows of Python objects: dicts, tuples, dataclasses; from a list, or from a generator that may wait.

The hard part is to fail well. Arrow converts a whole column at once and names no row, so a column that does not
fit is converted again value by value, until the first that fails is known.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import pyarrow as pa

from dataflow.errors import ConnectorError, TypeMismatchError
from dataflow.operators.base import Idle, Position, ReadRequest, paced
from dataflow.operators.sources.arrow import ArrowSplit, rows_before
from dataflow.operators.sources.pump import Pump
from dataflow.schema import columns_told, new_field, to_schema, type_name
from dataflow.system import System

SAMPLE_ROWS = 10_000
"""A schema that is not given is inferred from so many rows."""
AHEAD_ROWS = 2_048
"""As far a generator gets ahead, and as many of its rows are a unit: larger ones are a little faster, and keep epochs
waiting."""
SHOWN_MAX = 60
"""Characters of a value in an error."""
_DOES_NOT_FIT = (pa.ArrowException, TypeError, ValueError, OverflowError)


class RowsSource:
    """Reads an iterable of rows. A sequence can be read any number of times, a generator once."""

    bounded = True
    knows_times = False

    def __init__(self, rows: Iterable[Any], schema: object = None, name: str | None = None) -> None:
        if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
            raise TypeMismatchError(
                f"from_rows needs an iterable of rows, got {type(rows).__name__}",
                help='as in from_rows([{"id": 1}, {"id": 2}])',
            )
        self.name = name or "rows"
        self.rows = rows
        self.blocking = not isinstance(rows, Sequence)
        self.gives_rows_once = iter(rows) is rows
        self._schema = self._inferred() if schema is None else to_schema(schema)
        self._names = frozenset(self._schema.names)
        self._is_read = False
        self._first = 0
        self._pump: Pump[Any] | None = None

    def schema(self, system: System) -> pa.Schema:
        return self._schema

    def partitions(self, request: ReadRequest) -> Sequence[str]:
        return [self.name]

    def splits(self, partition: int, request: ReadRequest, position: Position = None) -> Iterator[ArrowSplit | Idle]:
        """Positions are numbers of rows. An iterator is the user's to begin where the last run left off."""
        first = rows_before(position)
        types = {name: self._schema.field(name).type for name in request.columns}
        for rows in self._batches(request, first):
            if isinstance(rows, Idle):
                yield rows
                continue
            yield ArrowSplit(self._batch(rows, first), types, first)
            first += len(rows)

    def identity(self) -> tuple[object, ...]:
        return ("rows", self.name, len(self.rows) if isinstance(self.rows, Sequence) else None)

    # ── batches ──

    def _batches(self, request: ReadRequest, first: int) -> Iterator[Sequence[Any] | Idle]:
        if isinstance(self.rows, Sequence):
            for start, length in paced(max(len(self.rows) - first, 0), request):
                if length:
                    yield self.rows[first + start : first + start + length]
            return
        rows = iter(self.rows)
        self._first = first
        if self.gives_rows_once:
            self._require_unread()
            if first:
                sys.stderr.write(
                    f"`{self.name}` is a generator, and {first} rows of it were read before: it goes on with whatever "
                    "it gives now, which must not be those rows again\n"
                )
        else:  # something that can be iterated again gives the same rows again
            rows = islice(rows, first, None)
        self._pump = Pump(rows, lambda: min(AHEAD_ROWS, request.unit_rows()), request.system, self.name)
        yield from self._pump

    def left_behind(self, position: Position) -> int:
        """How many rows a generator has given behind a position: it will not give them again."""
        if self._pump is None or not self._is_read:
            return 0
        return self._first + self._pump.items - rows_before(position)

    def _require_unread(self) -> None:
        if self._is_read:
            raise ConnectorError(
                f"`{self.name}` has been read already: a generator gives its rows only once",
                code="DF0503",
                help="make a new one for each run, or give a list",
            )
        self._is_read = True

    def _batch(self, rows: Sequence[Any], first: int) -> pa.RecordBatch:
        """The rows as columns; `first` is the number of the first of them."""
        values = self._values(rows, first)
        arrays = [self._array(field, column, first) for field, column in zip(self._schema, values, strict=True)]
        if not arrays:
            return pa.RecordBatch.from_struct_array(pa.array([{}] * len(rows), pa.struct([])))
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _values(self, rows: Sequence[Any], first: int) -> list[list[Any]]:
        """A list of values for each column."""
        names = self._schema.names
        if all(type(row) is dict for row in rows) and all(row.keys() <= self._names for row in rows):
            return [[row.get(name) for row in rows] for name in names]
        tuples = [self._as_tuple(row, first + number) for number, row in enumerate(rows)]
        return [[one[place] for one in tuples] for place in range(len(names))]

    def _as_tuple(self, row: object, number: int) -> Sequence[Any]:
        names = self._schema.names
        if isinstance(row, Mapping):
            if unknown := [name for name in row if name not in self._names]:
                raise self._misfit(
                    number, f"has `{unknown[0]}`, which the schema does not name", columns_told(names, str(unknown[0]))
                )
            return [row.get(name) for name in names]
        if dataclasses.is_dataclass(row) and not isinstance(row, type):
            if lacking := [name for name in names if not hasattr(row, name)]:
                raise self._misfit(number, f"({type(row).__name__}) has no `{lacking[0]}`", columns_told(names))
            return [getattr(row, name) for name in names]
        if not isinstance(row, tuple | list):
            raise self._misfit(number, f"is {_shown(row)}", "a row is a dict, a tuple or a dataclass")
        if len(row) != len(names):
            raise self._misfit(
                number, f"has {len(row)} values, the schema {len(names)}: {_shown(row)}", columns_told(names)
            )
        return row

    def _array(self, field: pa.Field, values: Sequence[Any], first: int) -> pa.Array:
        try:
            return _converted(values, field.type)
        except _DOES_NOT_FIT as error:
            number, reason = _first_misfit(values, field.type, error)
            raise self._misfit(
                first + number,
                f"column `{field.name}` is {type_name(field.type)}, but here is {_shown(values[number])}",
                f"{reason}; give the column another type in the schema, or convert the value",
            ) from None

    def _misfit(self, number: int, what: str, help: str) -> ConnectorError:
        return ConnectorError(f"`{self.name}`, row {number} (counted from 0): {what}", code="DF0502", help=help)

    # ── schema ──

    def _inferred(self) -> pa.Schema:
        """The schema of the first rows: of their dataclass, or by names and values."""
        if not isinstance(self.rows, Sequence) or not self.rows:
            what = "an empty list" if isinstance(self.rows, Sequence) else "a generator"
            raise TypeMismatchError(
                f"from_rows of {what} needs a schema", help='as in from_rows(rows, {"id": "int", "price": "float"})'
            )
        sample = self.rows[:SAMPLE_ROWS]
        head = sample[0]
        if dataclasses.is_dataclass(head) and all(type(row) is type(head) for row in sample):
            return to_schema(type(head))
        columns = _columns_of(sample)
        if columns is None:
            raise TypeMismatchError(
                "from_rows of rows without names needs a schema",
                help='as in from_rows([(1, 2.5)], {"id": "int", "price": "float"})',
            )
        return pa.schema([new_field(name, _inferred_type(name, values)) for name, values in columns.items()])


def _columns_of(rows: Sequence[Any]) -> dict[str, list[Any]] | None:
    """The values by name, names in the order in which they come up; None for rows without names."""
    if all(isinstance(row, Mapping) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}
    fields: Sequence[str] | None = getattr(rows[0], "_fields", None)
    if fields and all(type(row) is type(rows[0]) for row in rows):
        return {name: [row[place] for row in rows] for place, name in enumerate(fields)}
    return None


def _inferred_type(name: str, values: Sequence[Any]) -> pa.DataType:
    try:
        found = pa.array(values).type
        return pa.string() if pa.types.is_null(found) else found
    except _DOES_NOT_FIT as error:
        raise TypeMismatchError(
            f"column `{name}`: its values have no common type: {error}",
            help=f'say its type: from_rows(rows, {{"{name}": "string", …}})',
        ) from None


def _converted(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    if pa.types.is_integer(type) and any(isinstance(one, float) for one in values):
        raise TypeError("a float is not an integer")  # Arrow takes 1.0 for 1
    if pa.types.is_date(type) and any(isinstance(one, datetime) for one in values):
        raise TypeError("a datetime is not a date")  # Arrow drops the time
    return pa.array(values, type)


def _first_misfit(values: Sequence[Any], type: pa.DataType, cause: Exception) -> tuple[int, str]:
    """The number of the first value that does not fit, and why."""
    for number, value in enumerate(values):
        try:
            _converted([value], type)
        except _DOES_NOT_FIT as error:
            return number, str(error)
    return 0, str(cause)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]} …"

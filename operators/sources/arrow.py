"""Rows of Arrow data in memory, or of a stream of Arrow batches; chunks are the batches, large ones are cut.

The hard part is the dictionary: it may come in, but is never a logical type, so a column is decoded unless the
plan says that the column may stay as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dataflow.errors import ConnectorError, NameNotFoundError, TypeMismatchError
from dataflow.message import plain
from dataflow.operators.base import Position, ReadRequest, Rows, paced
from dataflow.schema import plain_schema
from dataflow.system import System

DICTIONARY = pa.dictionary(pa.int32(), pa.string())
"""The one kind of dictionary that a source hands out."""


class ArrowSource:
    """Reads a table, a batch, a frame that gives Arrow data (Polars, pandas), or once a `RecordBatchReader`."""

    bounded = True
    gives_rows_once = False
    knows_times = False

    def __init__(self, data: object, name: str | None = None) -> None:
        self.name = name or "table"
        self.blocking = isinstance(data, pa.RecordBatchReader)
        self.data = data if isinstance(data, pa.RecordBatchReader) else _table(data)
        self._is_read = False
        names = self.data.schema.names
        if twice := next((one for one in names if names.count(one) > 1), None):
            raise NameNotFoundError(
                f"`{self.name}` has two columns `{twice}`", code="DF0203", help="rename one of them in the table"
            )

    def schema(self, system: System) -> pa.Schema:
        return plain_schema(self.data.schema)

    def partitions(self, request: ReadRequest) -> Sequence[str]:
        return [self.name]

    def splits(self, partition: int, request: ReadRequest, position: Position = None) -> Iterator[ArrowSplit]:
        """Positions are numbers of rows. A RecordBatchReader is the user's to open where the last run left off."""
        first = rows_before(position)
        skipped = 0 if isinstance(self.data, pa.RecordBatchReader) else first
        types = asked_types(self.schema(request.system), request)
        for batch in self._batches(request.columns):
            begin, skipped = min(skipped, batch.num_rows), max(skipped - batch.num_rows, 0)
            for start, length in paced(batch.num_rows - begin, request):
                part = batch.slice(begin + start, length)
                yield ArrowSplit(part, types, first)
                first += part.num_rows

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if not isinstance(self.data, pa.RecordBatchReader):
            return iter(self.data.select(columns).to_batches())  # the columns that are not read cut nothing
        if self._is_read:
            raise ConnectorError(
                f"`{self.name}` has been read already: a RecordBatchReader gives its rows only once",
                code="DF0503",
                help="read it into a table first: from_arrow(reader.read_all())",
            )
        self._is_read = True
        return iter(self.data)

    def identity(self) -> tuple[object, ...]:
        rows = None if isinstance(self.data, pa.RecordBatchReader) else self.data.num_rows
        return ("arrow", self.name, rows)


def _table(data: object) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    raise TypeMismatchError(
        f"from_arrow needs Arrow data, got {type(data).__name__}",
        help="a pyarrow Table, RecordBatch or RecordBatchReader, or a frame of Polars, pandas or DuckDB; "
        "rows of Python objects: from_rows",
    )


def rows_before(position: Position) -> int:
    """A position that is a number of rows."""
    return position if isinstance(position, int) else 0


def asked_types(schema: pa.Schema, request: ReadRequest) -> dict[str, pa.DataType | None]:
    """What the columns that are read must be: their plain types, or None for a string that may stay a dictionary."""
    types = {name: schema.field(name).type for name in request.columns}
    return {n: None if n in request.dictionary and pa.types.is_string(type) else type for n, type in types.items()}


def as_asked(column: pa.Array, type: pa.DataType | None) -> pa.Array:
    """The column in the plain type it was asked for; a string as it is, where it may be a dictionary (type None)."""
    if type is not None:
        return plain(column, type)
    if not pa.types.is_dictionary(column.type) or column.type.equals(DICTIONARY):
        return column
    # Polars has unsigned indices, others too small ones: inside the engine there is one kind.
    return pa.DictionaryArray.from_arrays(column.indices.cast(pa.int32()), column.dictionary.cast(pa.string()))


@dataclass(frozen=True, slots=True)
class ArrowSplit:
    """Rows that are decoded already."""

    batch: pa.RecordBatch
    types: Mapping[str, pa.DataType | None]
    first: int

    @property
    def end(self) -> Position:
        return self.first + self.batch.num_rows

    def position(self, rows: int) -> Position:
        return self.first + rows

    def read(self) -> Iterator[Rows]:
        columns = {name: as_asked(self.batch.column(name), type) for name, type in self.types.items()}
        yield Rows(columns, self.batch.num_rows, self.first)

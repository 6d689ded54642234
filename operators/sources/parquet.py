"""Rows of Parquet files, a row group at a time; any worker decodes any row group.

Decoding is most of the work of many pipelines, so it must run at the speed of Arrow's decoder: one reader a
thread over row groups (Arrow's own threads would compete with our workers), and text columns that are keys
stay dictionaries, so that each value is hashed once and not once a row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.errors import ConnectorError, NameNotFoundError
from dataflow.operators.base import ReadRequest, Rows
from dataflow.operators.sources.files import FilePaths, Files
from dataflow.operators.stateless import require_column
from dataflow.schema import plain_type
from dataflow.system import RealSystem, System

GROUP_ROWS_MAX = 262_144
"""Row groups up to this size are decoded at once, larger ones in pieces: decoded rows must fit into the cache."""
PIECE_ROWS = 131_072


class ParquetSource:
    """Reads the row groups of files with equal schemas, in order."""

    bounded = True
    blocking = False

    def __init__(self, path: FilePaths, *, name: str | None = None, columns: Sequence[str] | None = None) -> None:
        self.files = Files(path)
        self.name = name or self.files.name
        self.columns = columns

    def schema(self, system: System) -> pa.Schema:
        paths = self.files.paths(system)
        schemas = [_opened(path, system).schema_arrow for path in paths]
        for path, schema in zip(paths, schemas, strict=True):
            _require_equal(paths[0], schemas[0], path, schema)
        fields = [pa.field(f.name, plain_type(f.type)) for f in schemas[0]]
        if twice := {f.name for f in fields if schemas[0].names.count(f.name) > 1}:
            raise NameNotFoundError(f"{paths[0]} has two columns `{min(twice)}`", code="DF0203")
        known = pa.schema(fields)
        return known if self.columns is None else pa.schema([require_column(c, known, "columns") for c in self.columns])

    def partitions(self, request: ReadRequest) -> Sequence[str]:
        return [self.name]

    def splits(self, partition: int, request: ReadRequest) -> Iterator[RowGroup]:
        first = 0
        for path in self.files.paths(request.system):
            readers = _Readers(path, request)
            metadata = readers.metadata
            for number in range(metadata.num_row_groups):
                rows = metadata.row_group(number).num_rows
                yield RowGroup(readers, number, rows, first, request.columns)
                first += rows

    def identity(self) -> tuple[object, ...]:
        return ("parquet", self.name, self.files.identity(RealSystem()))


class _Readers:
    """A reader of one file for each thread: `ParquetFile` may not be used by two at once."""

    def __init__(self, path: str, request: ReadRequest) -> None:
        self.path, self.request = path, request
        self.metadata = _opened(path, request.system).metadata
        self._own = threading.local()

    def reader(self) -> pq.ParquetFile:
        if not hasattr(self._own, "reader"):
            file = self.request.system.disk.open_arrow(self.path, memory_map=True)
            dictionary = sorted(self.request.dictionary)
            self._own.reader = pq.ParquetFile(file, metadata=self.metadata, read_dictionary=dictionary)
        return self._own.reader


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group of one file."""

    readers: _Readers
    number: int
    rows: int
    first: int
    names: tuple[str, ...]

    def read(self) -> Iterator[Rows]:
        try:
            first = self.first
            for batch in self._batches():
                yield Rows({name: whole(batch.column(name)) for name in self.names}, batch.num_rows, first)
                first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise ConnectorError(
                f"{self.readers.path}: row group {self.number} cannot be read: {error}",
                help="the file is damaged or was changed while it was read; restore it",
            ) from None

    def _batches(self) -> Iterator[pa.Table | pa.RecordBatch]:
        reader = self.readers.reader()
        if self.rows <= GROUP_ROWS_MAX:
            yield reader.read_row_group(self.number, columns=list(self.names), use_threads=False)
        else:
            yield from reader.iter_batches(
                PIECE_ROWS, row_groups=[self.number], columns=list(self.names), use_threads=False
            )


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array."""
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column


def _opened(path: str, system: System) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(system.disk.open_arrow(path, memory_map=True))
    except (pa.ArrowException, OSError) as error:
        raise ConnectorError(
            f"{path} cannot be read as Parquet: {error}", help="check that it is complete, and that it is Parquet"
        ) from None


def _require_equal(first_path: str, first: pa.Schema, path: str, schema: pa.Schema) -> None:
    if schema.equals(first):
        return
    for name in [*first.names, *schema.names]:
        ours = first.field(name).type if name in first.names else "missing"
        theirs = schema.field(name).type if name in schema.names else "missing"
        if ours != theirs:
            raise ConnectorError(
                f"the files have different columns: `{name}` is {ours} in {first_path} and {theirs} in {path}",
                help="read them as two streams, and cast and union those",
            )

"""File formats: which columns one can hold, and a writer that turns batches into its bytes.

Parquet and Arrow files end in a footer, so a file can be read only once it is complete; that is what file sinks show
anyway. Arrow means the IPC *file* format (what `.arrow` stands for, and what Polars, pandas and pyarrow map into memory
and read from any place), not the stream. The hard part of Parquet is small batches: each call makes a row group, so rows
are gathered until one is worth it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from dataflow.errors import TypeMismatchError
from dataflow.operators.sinks.output import HashedFile
from dataflow.operators.sinks.text import check_text_types, check_times, csv_header, csv_lines, json_lines, pieces
from dataflow.schema import type_name

GROUP_ROWS_MAX = 1 << 20
"""Of a Parquet row group: enough that readers decode long columns, few enough that they can share the work."""
GROUP_BYTES_MAX = 64 << 20
"""In memory, before encoding."""


class RowWriter(Protocol):
    """Writes the rows of one file."""

    @property
    def nbytes(self) -> int:
        """Rows that were taken and are not in the file yet, in memory."""
        ...

    def write(self, batch: pa.RecordBatch) -> None: ...
    def flush(self) -> None:
        """Let go of the rows in memory."""
        ...

    def finish(self) -> None:
        """Write what completes the file."""
        ...


@dataclass(frozen=True)
class FileFormat:
    """A format of files: `verb` is what users call, `check` refuses columns, `check_rows` refuses values."""

    name: str
    suffix: str
    check: Callable[[pa.Schema, str], None]
    writer: Callable[[HashedFile, pa.Schema], RowWriter]
    check_rows: Callable[[pa.RecordBatch, str], None]

    @property
    def verb(self) -> str:
        return f"write_{self.name}"


class TextWriter:
    """CSV or JSON Lines."""

    nbytes = 0

    def __init__(self, file: HashedFile, lines: Callable[[pa.RecordBatch], pa.Buffer], header: bytes = b"") -> None:
        self._file, self._lines = file, lines
        if header:
            file.write(header)

    def write(self, batch: pa.RecordBatch) -> None:
        for piece in pieces(batch):
            self._file.write(self._lines(piece))

    def flush(self) -> None:
        """Rows are written at once."""

    def finish(self) -> None:
        """The last line is the end."""


class GatheringWriter:
    """Writes batches in groups through one of pyarrow's writers."""

    def __init__(self, schema: pa.Schema, write_table: Callable[[pa.Table], None], close: Callable[[], None]) -> None:
        self._schema, self._write_table, self._close = schema, write_table, close
        self._gathered: list[pa.RecordBatch] = []
        self._rows = self.nbytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._gathered.append(batch)
        self._rows += batch.num_rows
        self.nbytes += batch.nbytes
        if self._rows >= GROUP_ROWS_MAX or self.nbytes >= GROUP_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        if self._gathered:
            self._write_table(pa.Table.from_batches(self._gathered, schema=self._schema).combine_chunks())
        self._gathered, self._rows, self.nbytes = [], 0, 0

    def finish(self) -> None:
        self.flush()
        self._close()


def _parquet_writer(file: HashedFile, schema: pa.Schema) -> RowWriter:
    import pyarrow.parquet as pq  # only for who writes Parquet

    writer = pq.ParquetWriter(file.arrow(), schema)
    return GatheringWriter(schema, lambda table: writer.write_table(table, GROUP_ROWS_MAX), writer.close)


def _arrow_writer(file: HashedFile, schema: pa.Schema) -> RowWriter:
    options = pa.ipc.IpcWriteOptions(use_threads=False)  # not compressed: readers map it
    writer = pa.ipc.new_file(file.arrow(), schema, options=options)
    return GatheringWriter(schema, writer.write_table, writer.close)


def _require_columns(schema: pa.Schema, verb: str) -> None:
    if not len(schema):
        raise TypeMismatchError(
            f"{verb}: the stream has no columns, so there is nothing to write",
            code="DF0303",
            help="select at least one column",
        )


def _check_csv(schema: pa.Schema, verb: str) -> None:
    _require_columns(schema, verb)
    check_text_types(schema, verb, nested=False)


def _check_jsonl(schema: pa.Schema, verb: str) -> None:
    _require_columns(schema, verb)
    check_text_types(schema, verb, nested=True)


def _check_parquet(schema: pa.Schema, verb: str) -> None:
    """Parquet lacks unions, intervals of months, and structs without fields."""
    _require_columns(schema, verb)
    for field in schema:
        if (unfit := _unfit_for_parquet(field.type)) is not None:
            raise TypeMismatchError(
                f"{verb}: column `{field.name}` is {type_name(field.type)}, and Parquet has no {unfit}",
                code="DF0303",
                help="leave the column out, or use `write_arrow`",
            )


def _unfit_for_parquet(kind: pa.DataType) -> str | None:
    t = pa.types
    if t.is_struct(kind) and not kind.num_fields:
        return "structs without fields"
    if t.is_union(kind):
        return "unions"
    if t.is_interval(kind):
        return "intervals of months"
    inner = [kind.field(n).type for n in range(kind.num_fields)] if t.is_nested(kind) else []
    return next((unfit for one in inner if (unfit := _unfit_for_parquet(one)) is not None), None)


def _any_rows(batch: pa.RecordBatch, what: str) -> None:
    """Whatever Arrow can hold."""


CSV = FileFormat("csv", "csv", _check_csv, lambda file, s: TextWriter(file, csv_lines, csv_header(s)), check_times)
JSONL = FileFormat("jsonl", "jsonl", _check_jsonl, lambda file, schema: TextWriter(file, json_lines), check_times)
PARQUET = FileFormat("parquet", "parquet", _check_parquet, _parquet_writer, _any_rows)
ARROW = FileFormat("arrow", "arrow", _require_columns, _arrow_writer, _any_rows)

"""File formats: which columns one can hold, and a writer that turns batches into its bytes.

Parquet and Arrow files end in a footer, so a file can be read only once it is complete; that is what file sinks show
anyway. Arrow means the IPC *file* format (what `.arrow` stands for, and what Polars, pandas and pyarrow map into memory
and read from any place), not the stream. The hard part is small batches: a call makes a row group, so rows are gathered
(`parts.py`) until one is worth it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from dataflow.errors import TypeMismatchError
from dataflow.operators.sinks.output import HashedFile
from dataflow.operators.sinks.text import (
    check_csv_rows,
    check_text_types,
    check_times,
    csv_header,
    csv_lines,
    json_lines,
    pieces,
)
from dataflow.schema import type_name

GROUP_ROWS_MAX = 1 << 20
"""Of a Parquet row group: enough that readers decode long columns, few enough that they can share the work."""
GROUP_BYTES_MAX = 64 << 20
"""In memory, before encoding."""


class RowWriter(Protocol):
    """Writes the rows of one file."""

    def write(self, rows: pa.Table) -> None:
        """Write a group of rows: many at once, since a format may keep them together."""
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

    def __init__(self, file: HashedFile, lines: Callable[[pa.RecordBatch], pa.Buffer], header: bytes = b"") -> None:
        self._file, self._lines = file, lines
        if header:
            file.write(header)

    def write(self, rows: pa.Table) -> None:
        for batch in rows.to_batches():
            for piece in pieces(batch):
                self._file.write(self._lines(piece))

    def finish(self) -> None:
        """The last line is the end."""


class ParquetWriter:
    """Each write makes a row group."""

    def __init__(self, file: HashedFile, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq  # only for who writes Parquet

        self._writer = pq.ParquetWriter(file.arrow(), schema)

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, GROUP_ROWS_MAX)

    def finish(self) -> None:
        self._writer.close()


class ArrowWriter:
    """Each write makes a batch. Not compressed, so that readers can map it."""

    def __init__(self, file: HashedFile, schema: pa.Schema) -> None:
        self._writer = pa.ipc.new_file(file.arrow(), schema, options=pa.ipc.IpcWriteOptions(use_threads=False))

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows.combine_chunks())

    def finish(self) -> None:
        self._writer.close()


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


CSV = FileFormat("csv", "csv", _check_csv, lambda file, s: TextWriter(file, csv_lines, csv_header(s)), check_csv_rows)
JSONL = FileFormat("jsonl", "jsonl", _check_jsonl, lambda file, schema: TextWriter(file, json_lines), check_times)
PARQUET = FileFormat("parquet", "parquet", _check_parquet, ParquetWriter, _any_rows)
ARROW = FileFormat("arrow", "arrow", _require_columns, ArrowWriter, _any_rows)

"""A sink that prints rows for a person to read: a header, then one line a row, columns separated by tabs."""

from __future__ import annotations

import sys
from typing import TextIO

import pyarrow as pa

from dataflow.schema import shown_values


class ConsoleSink:
    """Prints up to `limit` rows (all, if None) and counts the others."""

    def __init__(self, schema: pa.Schema, limit: int | None = None, out: TextIO | None = None) -> None:
        self.schema, self.limit, self.out = schema, limit, out
        self.rows = self.hidden = 0

    def open(self, epoch: int) -> None:
        """Nothing to open; the header comes with the first row."""

    def write(self, batch: pa.RecordBatch) -> None:
        shown = batch.num_rows if self.limit is None else min(batch.num_rows, self.limit - self.rows)
        self.hidden += batch.num_rows - shown
        if not shown:
            return
        lines = [] if self.rows else ["\t".join(self.schema.names)]
        columns = [shown_values(batch.column(i).slice(0, shown)) for i in range(batch.num_columns)]
        lines += ["\t".join(map(_text, row)) for row in zip(*columns, strict=True)]
        print("\n".join(lines), file=self.out or sys.stdout, flush=True)
        self.rows += shown

    def prepare(self, epoch: int) -> None:
        """What is printed cannot be taken back."""

    def commit(self, handle: object) -> None:
        """Printed already."""

    def abort(self, handle: object) -> None:
        """Printed already."""

    def close(self) -> None:
        if self.hidden:
            print(f"… and {self.hidden} more rows", file=self.out or sys.stdout, flush=True)


def _text(value: object) -> str:
    return "null" if value is None else str(value)

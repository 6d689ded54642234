"""Rows of an Arrow table in memory; its chunks are the batches, large ones are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dataflow.errors import TypeMismatchError
from dataflow.operators.base import UNIT_ROWS, ReadRequest, Rows
from dataflow.schema import plain_type
from dataflow.system import System


class ArrowSource:
    """Reads a `pa.Table` or `pa.RecordBatch`; it can be read any number of times."""

    bounded = True
    blocking = False

    def __init__(self, data: pa.Table | pa.RecordBatch, name: str | None = None) -> None:
        if isinstance(data, pa.RecordBatch):
            data = pa.Table.from_batches([data])
        if not isinstance(data, pa.Table):
            raise TypeMismatchError(
                f"from_arrow needs a pyarrow Table or RecordBatch, got {type(data).__name__}",
                help="a Polars or pandas frame becomes one by `.to_arrow()` or `pa.Table.from_pandas(frame)`",
            )
        self.table, self.name = data, name or "table"

    def schema(self, system: System) -> pa.Schema:
        return pa.schema([pa.field(f.name, plain_type(f.type)) for f in self.table.schema])

    def partitions(self, request: ReadRequest) -> Sequence[str]:
        return [self.name]

    def splits(self, partition: int, request: ReadRequest) -> Iterator[ArrowSplit]:
        first = 0
        wanted = self.table.select(request.columns) if request.columns else self.table.select(self.table.column_names[:1])
        for batch in wanted.to_batches(max_chunksize=UNIT_ROWS):
            yield ArrowSplit(batch, request.columns, first)
            first += batch.num_rows

    def identity(self) -> tuple[object, ...]:
        return ("arrow", self.name, self.table.num_rows)


@dataclass(frozen=True, slots=True)
class ArrowSplit:
    """Rows that are decoded already."""

    batch: pa.RecordBatch
    names: tuple[str, ...]
    first: int

    def read(self) -> Iterator[Rows]:
        columns = {name: self.batch.column(name) for name in self.names}
        yield Rows(columns, self.batch.num_rows, self.first)

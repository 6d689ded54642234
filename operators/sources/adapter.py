"""A user's source, which reads one batch after the other, as splits that are decoded already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from dataflow.errors import ConnectorError, TypeMismatchError
from dataflow.operators.base import UNIT_ROWS, EndOfInput, Idle, ReadRequest, Source
from dataflow.operators.sources.arrow import ArrowSplit
from dataflow.schema import plain_type
from dataflow.system import System


class UserSource:
    """Wraps an object that fulfils the `Source` protocol; its readers are opened when a run starts."""

    def __init__(self, source: Source, name: str | None = None) -> None:
        if not isinstance(source, Source):
            raise TypeMismatchError(
                f"read needs a source, got {type(source).__name__}",
                help="a source has schema, partitions() and open(partition, position) (see dataflow.Source)",
            )
        self.source = source
        self.name = name or getattr(source, "name", None) or type(source).__name__
        self.bounded = bool(getattr(source, "bounded", True))
        self.blocking = bool(getattr(source, "blocking", False))

    def schema(self, system: System) -> pa.Schema:
        return pa.schema([pa.field(f.name, plain_type(f.type)) for f in self.source.schema])

    def partitions(self, request: ReadRequest) -> Sequence[str]:
        return list(self.source.partitions())

    def splits(self, partition: int, request: ReadRequest) -> Iterator[ArrowSplit | Idle]:
        name = list(self.source.partitions())[partition]
        reader = self.source.open(name, None)
        first = 0
        while True:
            found = reader.read(UNIT_ROWS)
            if isinstance(found, EndOfInput):
                return
            if isinstance(found, Idle):
                yield found
                continue
            self._check(found)
            yield ArrowSplit(found, request.columns, first)
            first += found.num_rows

    def _check(self, found: object) -> None:
        if not isinstance(found, pa.RecordBatch):
            raise ConnectorError(
                f"source `{self.name}`: read() returned {type(found).__name__}",
                code="DF0504",
                help="return a pyarrow.RecordBatch, dataflow.Idle() or dataflow.EndOfInput()",
            )
        expected = self.source.schema
        if not found.schema.equals(expected):
            raise ConnectorError(
                f"source `{self.name}` says that its columns are ({_told(expected)}), but read() returned "
                f"({_told(found.schema)}); nothing of the batch was used",
                code="DF0504",
                help="make both the same",
            )

    def identity(self) -> tuple[object, ...]:
        return ("source", type(self.source).__qualname__, self.name)


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name}: {f.type}" for f in schema)

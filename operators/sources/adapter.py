"""A user's source, which reads one batch after the other, as splits that are decoded already.

The hard part is trust: what a source returns is checked batch by batch, so that a mistake in it is told with its
name, and not by a kernel far behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from dataflow.errors import ConnectorError, TypeMismatchError
from dataflow.operators.base import EndOfInput, Idle, ReadRequest, Source, SourceReader, paced
from dataflow.operators.sources.arrow import ArrowSplit, asked_types
from dataflow.schema import plain_schema, to_schema, type_name
from dataflow.system import System


class UserSource:
    """Wraps an object that fulfils the `Source` protocol; its readers are opened when a run starts."""

    knows_times = False

    def __init__(self, source: Source, name: str | None = None) -> None:
        if isinstance(source, type) or not isinstance(source, Source):
            what = f"the class {source.__name__}" if isinstance(source, type) else type(source).__name__
            raise TypeMismatchError(
                f"read needs a source, got {what}",
                help="a source is an object with schema, partitions() and open(partition, position)",
            )
        self.source = source
        self.name = name or str(getattr(source, "name", None) or type(source).__name__)
        self.bounded = bool(getattr(source, "bounded", True))
        self.blocking = bool(getattr(source, "blocking", False))
        given: object = source.schema
        self._schema = plain_schema(given) if isinstance(given, pa.Schema) else to_schema(given)

    def schema(self, system: System) -> pa.Schema:
        return self._schema

    def partitions(self, request: ReadRequest) -> Sequence[str]:
        names = list(self.source.partitions())
        if not all(isinstance(one, str) for one in names) or len(set(names)) < len(names):
            raise self._broken(f"partitions() returned {names!r}", "return names, each once")
        return names

    def splits(self, partition: int, request: ReadRequest) -> Iterator[ArrowSplit | Idle]:
        name = self.partitions(request)[partition]
        reader = self.source.open(name, None)
        if not isinstance(reader, SourceReader):
            raise self._broken(
                f"open({name!r}, None) returned {type(reader).__name__}", "return a reader: read(rows_max), position()"
            )
        types = asked_types(self._schema, request)
        first = 0
        while not isinstance(found := reader.read(request.unit_rows()), EndOfInput):
            if isinstance(found, Idle):
                yield found
                continue
            self._check(found)
            for start, length in paced(found.num_rows, request):
                part = found.slice(start, length)
                yield ArrowSplit(part, types, first)
                first += part.num_rows

    def _check(self, found: object) -> None:
        if not isinstance(found, pa.RecordBatch):
            raise self._broken(
                f"read() returned {type(found).__name__}",
                "return a pyarrow.RecordBatch, dataflow.Idle() or dataflow.EndOfInput()",
            )
        if not plain_schema(found.schema).equals(self._schema):
            raise self._broken(
                f"its schema says ({_told(self._schema)}), but read() returned ({_told(found.schema)})",
                "make both the same; nothing of the batch was used",
            )

    def _broken(self, what: str, help: str) -> ConnectorError:
        return ConnectorError(f"source `{self.name}`: {what}", code="DF0504", help=help)

    def identity(self) -> tuple[object, ...]:
        return ("source", type(self.source).__qualname__, self.name)


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {type_name(field.type)}" for field in schema)

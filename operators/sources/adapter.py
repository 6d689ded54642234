"""A user's source, which reads one batch after the other, as splits that are decoded already.

The hard part is trust: what a source returns is checked batch by batch, so that a mistake in it is told with its
name, and not by a kernel far behind it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import pyarrow as pa

from dataflow.errors import ConnectorError, TypeMismatchError
from dataflow.operators.base import EndOfInput, Idle, Position, ReadRequest, Source, SourceReader, paced
from dataflow.operators.sources.arrow import ArrowSplit, asked_types
from dataflow.operators.sources.pump import Pump
from dataflow.schema import plain_schema, to_schema, type_name
from dataflow.system import System


class UserSource:
    """Wraps an object that fulfils the `Source` protocol; its readers are opened when a run starts."""

    gives_rows_once = False
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

    def splits(self, partition: int, request: ReadRequest, position: Position = None) -> Iterator[UserSplit | Idle]:
        """A position is what the reader calls its own before a batch, how many rows of that batch have been read, and
        how many rows of the partition before it."""
        name = self.partitions(request)[partition]
        before, skipped, first = _read_position(position)
        if before is None and first and not skipped:
            sys.stderr.write(
                f"source `{self.name}` does not say where it was (its position is None), and is opened anew: what it "
                f"gave before ({first} rows of {name!r}) comes once more if it gives it again\n"
            )
        reader = self.source.open(name, before)
        if not isinstance(reader, SourceReader):
            raise self._broken(
                f"open({name!r}, {before!r}) returned {type(reader).__name__}",
                "return a reader: read(rows_max), position()",
            )
        types = asked_types(self._schema, request)
        for one in self._reads(reader, request, skipped):
            if isinstance(one, Idle):
                yield one
                continue
            found, after = one
            begin, skipped = min(skipped, found.num_rows), max(skipped - found.num_rows, 0)
            if begin == found.num_rows > 0 or skipped:  # a split of no rows would end before what is still skipped
                before = after
                continue
            for start, length in paced(found.num_rows - begin, request):
                part = found.slice(begin + start, length)
                yield UserSplit(part, types, first, before, begin + start, after, found.num_rows)
                first += part.num_rows
            before = after

    def _reads(
        self, reader: SourceReader, request: ReadRequest, skipped: int
    ) -> Iterator[tuple[pa.RecordBatch, object] | Idle]:
        """What the reader gives, with its position after each batch."""
        reads = self._read(reader, request, skipped)
        if not self.blocking:
            yield from reads
            return
        for taken in Pump(reads, lambda: 1, request.system, self.name):
            yield taken if isinstance(taken, Idle) else taken[0]

    def _read(
        self, reader: SourceReader, request: ReadRequest, skipped: int
    ) -> Iterator[tuple[pa.RecordBatch, object] | Idle]:
        while not isinstance(found := reader.read(request.unit_rows() + skipped), EndOfInput):
            if isinstance(found, Idle):
                yield found
                if request.to_head:
                    return
                continue
            self._check(found)
            after = self._position_of(reader)
            if after is None and found.num_rows and request.exactly_once:
                raise ConnectorError(
                    f'source `{self.name}`: delivery="exactly_once" cannot be kept: its position() returned None, so '
                    "after a stop it would be read anew; nothing of the batch was used",
                    code="DF0506",
                    help="return where the reader is (a number, a text, …) and begin there in open(); or leave "
                    "`delivery` out",
                )
            yield found, after
            skipped = max(skipped - found.num_rows, 0)

    def _position_of(self, reader: SourceReader) -> object:
        position = reader.position()
        try:
            json.dumps(position, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise self._broken(
                f"position() returned {position!r}, which is not a JSON value ({error})",
                "return None, a number, a text, or lists and dicts of these: it is kept in the store",
            ) from None
        return position

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


@dataclass(frozen=True, slots=True)
class UserSplit(ArrowSplit):
    """A part of a batch that a reader returned."""

    before: object
    """The reader's position before that batch."""
    begin: int
    """How many rows of the batch come before this part."""
    after: object
    """The reader's position after the batch; None: it cannot go on from anywhere."""
    batch_rows: int

    @property
    def end(self) -> Position:
        return self.position(self.batch.num_rows)

    def position(self, rows: int) -> Position:
        if self.after is None or self.begin + rows == self.batch_rows:
            return [self.after, 0, self.first + rows]
        return [self.before, self.begin + rows, self.first - self.begin]


def _read_position(position: Position) -> tuple[object, int, int]:
    """The reader's own position, the rows to skip from there, and the number of the first row that is then read."""
    if position is None:
        return None, 0, 0
    before, rows, first = cast(tuple[object, int, int], position)
    return before, rows, first + rows


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {type_name(field.type)}" for field in schema)

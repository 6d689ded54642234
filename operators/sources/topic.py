"""Rows of a topic of the event log, from the run's store or from another one.

A split is one published batch, or a part of it under a slow sink: any worker may read it, and what it hands on points
into the mapped file. What is there when reading begins is read, and no more, so a pipeline may write to the topic that
it reads; unless the topic is followed: then the catalog is asked again whenever another commit may have changed it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from dataflow.errors import PlanError
from dataflow.operators.base import Idle, Position, ReadRequest, Rows, paced
from dataflow.operators.sources.arrow import rows_before
from dataflow.state.layout import check_topic_name
from dataflow.system import FilePath, System

if TYPE_CHECKING:
    from dataflow.state.log.segment import IndexEntry
    from dataflow.state.store import Store


class TopicSource:
    """Reads the offsets from `start` up to, not including, `until` of each partition of a topic.

    With `follow` it goes on with what is appended later, by this process or another one, and never ends.
    """

    blocking = False
    gives_rows_once = False
    knows_times = False

    def __init__(
        self,
        topic: str,
        store: FilePath | Store | None = None,
        *,
        name: str | None = None,
        start: int | str = "earliest",
        until: int | None = None,
        follow: bool = False,
    ) -> None:
        self.topic = check_topic_name(topic)
        self.name = name or topic
        self.store = store
        self.start = 0 if start == "earliest" else _offset(start, "start", '"earliest" or ')
        self.until = None if until is None else _offset(until, "until")
        if self.until is not None and self.until < self.start:
            raise PlanError(
                f"read_topic: `until` ({self.until}) comes before `start` ({self.start})",
                help="`start` is the first offset that is read, `until` the first one that is not",
            )
        if follow and until is not None:
            raise PlanError(
                "a topic is followed for ever, or read up to an offset: `follow` and `until` exclude each other",
                help="leave one of them out",
            )
        self.follow, self.bounded = follow, not follow
        self._opened: Store | None = None

    def schema(self, system: System) -> pa.Schema:
        return self._open(system, None).schema(self.topic)

    def partitions(self, request: ReadRequest) -> Sequence[str]:
        numbers = self._open(request.system, request.store).partitions(self.topic)
        return [f"{self.topic}/{number}" for number in numbers]

    def splits(self, partition: int, request: ReadRequest, position: Position = None) -> Iterator[TopicSplit | Idle]:
        """Positions are offsets."""
        store = self._open(request.system, request.store)
        schema = store.schema(self.topic)
        fields = tuple(schema.field(column) for column in request.columns)
        number = store.partitions(self.topic)[partition]
        next_offset = max(self.start, rows_before(position))
        seen: int | None = None
        while True:
            version = store.data_version() if self.follow else None
            if seen is None or version != seen:
                seen = version
                for entry in store.batches(self.topic, number, next_offset, self.until):
                    first = max(entry.first_offset, next_offset)
                    end = entry.first_offset + entry.rows
                    until = end if self.until is None else min(end, self.until)
                    for start, length in paced(until - first, request):
                        yield TopicSplit(store, entry, fields, first + start, first + start + length)
                    next_offset = until
            if not self.follow or request.to_head:
                return
            yield Idle()

    def identity(self) -> tuple[object, ...]:
        path = None if self.store is None else str(getattr(self.store, "path", self.store))
        return ("topic", self.topic, path, self.start, self.until, self.follow)

    def _open(self, system: System, run_store: object | None) -> Store:
        from dataflow.state.store import Store

        given = run_store if self.store is None else self.store
        if isinstance(given, Store):
            return given
        if given is None:
            raise PlanError(
                f"the columns of topic `{self.topic}` are not known: it is not said which store it is in",
                code="DF0408",
                help=f"give the store: read_topic({self.topic!r}, store=...)",
            )
        if self._opened is None or self._opened.system is not system:
            self._opened = Store(str(given), system=system)
        return self._opened


@dataclass(frozen=True, slots=True)
class TopicSplit:
    """The offsets from `start` up to `until` of a published batch; its rows' positions are their offsets."""

    store: Store
    entry: IndexEntry
    fields: tuple[pa.Field, ...]
    start: int
    until: int

    @property
    def end(self) -> Position:
        return self.until

    def position(self, rows: int) -> Position:
        return self.start + rows

    def read(self) -> Iterator[Rows]:
        from dataflow.state.log.reader import column_of
        from dataflow.state.store import cut

        batch = cut(self.store.read_entry(self.entry), self.entry, self.start, self.until)
        columns = {field.name: column_of(batch, field) for field in self.fields}
        yield Rows(columns, batch.num_rows, self.start)


def _offset(given: object, what: str, other: str = "") -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise PlanError(
            f"`{what}` of a topic is {other}an offset from 0 on, got {given!r}",
            help="offsets count the rows of a partition from 0",
        )
    return given

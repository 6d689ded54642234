"""The one writer of a partition: appends batches, makes them durable, and lets the store publish them.

Between `prepare` and the store's commit the next epoch's rows already come in. So a writer keeps apart what is
published, what is prepared (described by `Pending`s, in order) and what is only written; `rollback` takes back
everything that is not published. After a failed fsync nothing about the file's tail can be known any more: the
writer refuses all work and touches nothing, and whoever opens the partition next reads from the disk what is there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self

import pyarrow as pa

from dataflow.errors import DiskFullError, StoreError, disk_fix, disk_reason
from dataflow.schema import plain_type
from dataflow.state.log.segment import SEGMENT_BYTES_MAX, SEGMENT_NAME, GrowingSegment, Partition
from dataflow.system import Lock


class WriterPhase(Enum):
    OPEN = auto()
    """Takes batches."""
    PAUSED = auto()
    """Nothing waits to be published, and its lock is free for others until it is resumed."""
    FAILED = auto()
    """An fsync or a commit failed: refuses everything, changes nothing."""
    CLOSED = auto()
    """Its files are closed and its lock is free."""


@dataclass(frozen=True, slots=True)
class PendingBatch:
    """A batch that was written: its message in the segment with this name."""

    segment: str
    position: int
    length: int
    rows: int
    xxh3: int


@dataclass(frozen=True, slots=True)
class PendingSegment:
    """A segment that was appended to, and its length once this is published."""

    name: str
    first_offset: int
    header_bytes: int
    header_xxh3: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """What one `prepare` made durable and a commit is to publish: rows of one partition from `first_offset` on."""

    topic: str
    partition: int
    schema: pa.Schema
    first_offset: int
    batches: tuple[PendingBatch, ...]
    segments: tuple[PendingSegment, ...]
    writer: TopicWriter = field(repr=False)

    @property
    def rows(self) -> int:
        return sum(batch.rows for batch in self.batches)

    @property
    def bytes(self) -> int:
        return sum(batch.length for batch in self.batches)


class TopicWriter:
    """Appends to one partition. `append` and `prepare` come from one thread, `mark_published` may come from another.

    Opened by `Store.writer`; holds the partition's lock until `close`.
    """

    def __init__(
        self,
        partition: Partition,
        schema: pa.Schema,
        next_offset: int,
        *,
        is_registered: bool,
        lock: Lock,
    ) -> None:
        self.partition, self.schema = partition, schema
        self.phase = WriterPhase.OPEN
        self._published_offset = self._next_offset = next_offset
        self._is_registered = is_registered
        self._lock = lock
        self._segments: list[GrowingSegment] = []
        """The last one grows; those before it are full and hold bytes that are not published yet."""
        self._written: list[PendingBatch] = []
        self._prepared: deque[Pending] = deque()
        self._in_commit: list[Pending] = []
        """Those that a commit may be publishing at this moment: nothing may be cut before it is known."""
        self._mutex = partition.system.scheduler.mutex()

    @property
    def topic(self) -> str:
        return self.partition.topic

    @property
    def next_offset(self) -> int:
        """The offset that the next row will get."""
        return self._next_offset

    def append(self, batch: pa.RecordBatch) -> None:
        """Write the rows behind the others; nobody can see them yet. The batch stays one batch on disk.

        When the disk is full the error leaves the writer as it was: the batch may be appended again later.
        """
        columns = conform(batch, self.schema, self.topic)
        if columns.num_rows == 0:
            return
        with self._mutex:
            self._check_open()
            try:
                segment = self._segment_with_room()
                position, length, xxh3 = segment.append(columns)
            except OSError as error:
                if any(segment.is_torn for segment in self._segments):
                    self.phase = WriterPhase.FAILED
                raise self._not_written(error) from error
            self._written.append(PendingBatch(segment.name, position, length, columns.num_rows, xxh3))
            self._next_offset += columns.num_rows

    def prepare(self) -> Pending | None:
        """Make all that was appended durable and describe it, or None when there is nothing to publish.

        A topic without rows is published too, once: then readers find it, with its columns.
        """
        with self._mutex:
            self._check_open()
            if not self._written and (self._is_registered or self._prepared):
                return None
            try:
                self._sync()
            except OSError as error:
                self.phase = WriterPhase.FAILED
                raise self._cannot_sync(error) from error
            pending = self._describe()
            self._written = []
            self._prepared.append(pending)
            return pending

    def begin_publish(self, pending: Pending) -> None:
        """A commit of this part begins; until its end is known nothing is cut. By the store, as the next three."""
        with self._mutex:
            if not any(one is pending for one in self._prepared):
                raise StoreError(
                    f"rows of topic `{self.topic}` from offset {pending.first_offset} on were published or taken back "
                    "before; nothing was published",
                    code="DF0604",
                )
            self._in_commit.append(pending)

    def mark_refused(self, pending: Pending) -> None:
        """The commit did not take this part: it can be published again, or taken back."""
        with self._mutex:
            self._in_commit = [one for one in self._in_commit if one is not pending]

    def mark_published(self, pending: Pending) -> None:
        """The commit is durable: these rows are final."""
        with self._mutex:
            assert self._prepared[0] is pending, "published out of order"
            self._prepared.popleft()
            self._in_commit = [one for one in self._in_commit if one is not pending]
            self._published_offset += pending.rows
            self._is_registered = True
            lengths = {segment.name: segment.bytes for segment in pending.segments}
            for segment in self._segments:
                segment.published_bytes = lengths.get(segment.name, segment.published_bytes)
            while len(self._segments) > 1 and self._segments[0].published_bytes == self._segments[0].size:
                self._segments.pop(0).close()

    def fail(self) -> None:
        """Nobody can know whether the commit is durable: from now on nothing may be cut or appended."""
        with self._mutex:
            if self.phase is WriterPhase.OPEN:
                self.phase = WriterPhase.FAILED

    def pause(self) -> None:
        """Let others have the partition. Only when nothing waits to be published."""
        with self._mutex:
            assert not self._written and not self._prepared
            self.phase = WriterPhase.PAUSED
            self._lock.release()

    def resume(self, lock: Lock) -> None:
        """Go on with a lock taken anew; whoever resumes checks that the partition still ends at `next_offset`."""
        with self._mutex:
            assert self.phase is WriterPhase.PAUSED
            self.phase, self._lock = WriterPhase.OPEN, lock

    def rollback(self) -> None:
        """Take back all that is not published, prepared or not. Does nothing to the disk after a failure."""
        with self._mutex:
            self._roll_back()

    def close(self) -> None:
        """Take back what is not published, close the files and free the partition. May be called again."""
        with self._mutex:
            if self.phase is WriterPhase.CLOSED:
                return
            try:
                self._roll_back()
            finally:
                for segment in self._segments:
                    segment.close()
                self.phase = WriterPhase.CLOSED
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _roll_back(self) -> None:
        if self._in_commit and self.phase is WriterPhase.OPEN:
            self.phase = WriterPhase.FAILED
        if self.phase is not WriterPhase.OPEN:
            return
        self._written = []
        self._prepared.clear()
        self._next_offset = self._published_offset
        try:
            self._segments = [segment for segment in self._segments if segment.rollback()]
        except OSError as error:
            self.phase = WriterPhase.FAILED
            raise self._not_cut(error) from error

    def _segment_with_room(self) -> GrowingSegment:
        if not self._segments or self._segments[-1].size >= SEGMENT_BYTES_MAX:
            name = f"{self._next_offset:020d}-{self._next_number()}.arrow"
            self._segments.append(GrowingSegment(self.partition, name, self._next_offset, self.schema))
        return self._segments[-1]

    def _next_number(self) -> int:
        names = self.partition.system.disk.list_dir(self.partition.directory)
        numbers = [int(match[2]) for name in names if (match := SEGMENT_NAME.fullmatch(name))]
        return max(numbers, default=0) + 1

    def _sync(self) -> None:
        fresh = [segment for segment in self._segments if not segment.is_synced]
        for segment in fresh:
            segment.sync()
        if any(not segment.published_bytes for segment in fresh):
            # A file's name is durable only with its directory.
            self.partition.system.disk.sync_dir(self.partition.directory)

    def _describe(self) -> Pending:
        names = {batch.segment for batch in self._written}
        touched = tuple(
            PendingSegment(segment.name, segment.first_offset, segment.header_bytes, segment.header_xxh3, segment.size)
            for segment in self._segments
            if segment.name in names
        )
        rows = sum(batch.rows for batch in self._written)
        return Pending(
            self.topic,
            self.partition.number,
            self.schema,
            self._next_offset - rows,
            tuple(self._written),
            touched,
            self,
        )

    def _check_open(self) -> None:
        if self.phase is not WriterPhase.OPEN:
            why = "is closed" if self.phase is WriterPhase.CLOSED else "failed before and takes nothing more"
            raise StoreError(
                f"the writer of topic `{self.topic}` (partition {self.partition.number}) {why}; "
                f"rows up to offset {self._published_offset} are published",
                code="DF0604",
                help="open a new one: it starts from what is on disk",
            )

    def _not_written(self, error: OSError) -> StoreError:
        what = (
            f"a batch of topic `{self.topic}` could not be written: {disk_reason(error)}; nothing of it was kept, "
            "and what was written before is untouched"
        )
        if self.phase is WriterPhase.FAILED:
            return StoreError(
                what, code="DF0604", help="check the disk; then run again: it goes on from the last commit"
            )
        kind = DiskFullError.or_other(error)
        return kind(what, code=None if kind is DiskFullError else "DF0604", help=disk_fix(error))

    def _not_cut(self, error: OSError) -> StoreError:
        return StoreError(
            f"rows of topic `{self.topic}` that are not published could not be taken back ({error.strerror}); nobody "
            f"sees them, and rows up to offset {self._published_offset} are published",
            code="DF0604",
            help="check the disk; the next writer cuts them off",
        )

    def _cannot_sync(self, error: OSError) -> StoreError:
        return StoreError(
            f"the disk did not confirm the rows of topic `{self.topic}` from offset {self._published_offset} on "
            f"({error.strerror}); they are not published, and this writer takes nothing more",
            code="DF0604",
            help="check the disk; then run again: it goes on from the last commit",
        )


def conform(batch: pa.RecordBatch, schema: pa.Schema, topic: str) -> pa.RecordBatch:
    """The columns of `schema`, in its order, decoded where they are dictionaries. Never casts to another type."""
    if batch.schema.equals(schema):
        return batch
    columns = [_conform_column(batch, field, topic) for field in schema]
    unknown = [name for name in batch.schema.names if name not in schema.names]
    if unknown:
        raise StoreError(
            f"topic `{topic}` has no column `{unknown[0]}` (columns: {', '.join(schema.names)}); nothing was written",
            code="DF0605",
        )
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _conform_column(batch: pa.RecordBatch, field: pa.Field, topic: str) -> pa.Array:
    positions = batch.schema.get_all_field_indices(field.name)
    if len(positions) != 1:
        found = "is missing" if not positions else "is there more than once"
        raise StoreError(
            f"column `{field.name}` of topic `{topic}` {found} in the batch; nothing was written", code="DF0605"
        )
    column = batch.column(positions[0])
    if column.type.equals(field.type):
        return column
    if plain_type(column.type).equals(field.type):
        return column.cast(field.type)  # decodes, and nothing else
    raise StoreError(
        f"column `{field.name}` of topic `{topic}` is {field.type}, and the batch has {column.type}; "
        "nothing was written",
        code="DF0605",
        help=f"cast it: .derive({field.name}=flow.col({field.name!r}).cast({str(field.type)!r}))",
    )

"""One partition: the rows of `batches` in the order of offsets, and the segments that they fill.

Part of the verifier: imports nothing of the store (see __init__.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from struct import iter_unpack
from typing import TypeAlias

import pyarrow as pa

from dataflow.state.verify.arrow import read_batch, read_schema
from dataflow.state.verify.catalog import CATALOG
from dataflow.state.verify.files import UNSIGNED_64, File, Findings, StoreFiles, Unreadable, short

SEGMENT_BYTES_FULL = 268_435_456
"""No batch begins at or beyond it."""
ENTRY_BYTES = 40
SEGMENT_NAME = re.compile(r"([0-9]{20})-([1-9][0-9]*)\.arrow")

Taker: TypeAlias = Callable[[pa.RecordBatch], None]
"""Gets each batch that was found to be what was written."""


@dataclass(frozen=True)
class Place:
    """What the schema message of a segment has to agree with."""

    store_id: str
    topic: str
    partition: int
    schemas: list[pa.Schema]
    """Version 1 first."""


@dataclass(frozen=True)
class Segment:
    """A row of `segments`."""

    segment_id: int
    file: str
    first_offset: int
    schema_version: int
    header_bytes: int
    header_xxh3: int
    published_bytes: int


class PartitionCheck:
    """Walks the commits of a partition in the order of offsets, and its segments with them."""

    def __init__(
        self,
        files: StoreFiles,
        place: Place,
        segments: list[Segment],
        found: Findings,
        counted: Counter[str],
        take: Taker | None = None,
    ) -> None:
        self._files = files
        self._place = place
        self._found = found
        self._counted = counted
        self._segments = {segment.segment_id: segment for segment in segments}
        self._take = take
        self._offset = self._bytes = self._last_commit = 0
        self._ends: dict[int, int] = {}
        """Where the next entry of a segment begins."""
        self._current: int | None = None
        self._file: File | None = None
        self._schema: pa.Schema | None = None
        if place.partition < 0:
            found.damage(CATALOG, f"{place.partition} is no number of a partition", topic=place.topic)
        self._check_names(segments)

    def __enter__(self) -> PartitionCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def commit(self, first: int, commit_id: int, rows: int, entries: bytes, epoch: int | None, known: bool) -> None:
        """One row of `batches`."""
        where = self._where(first, epoch)
        if not known:
            self._found.damage(CATALOG, f"rows belong to a commit {commit_id} that is not listed", **where)
        if commit_id <= self._last_commit:
            self._found.damage(CATALOG, f"rows of commit {commit_id} come after those of {self._last_commit}", **where)
        if first != self._offset:
            self._found.damage(CATALOG, f"rows begin at offset {first}, those before end at {self._offset}", **where)
        self._last_commit, self._offset = commit_id, first
        if not entries or len(entries) % ENTRY_BYTES:
            self._found.damage(CATALOG, f"batches.entries has {len(entries)} bytes, no multiple of 40", **where)
        else:
            for segment_id, position, length, count, xxh3 in iter_unpack("<5Q", entries):
                self._entry(segment_id, position, length, count, xxh3, epoch)
        if self._offset != first + rows:
            self._found.damage(CATALOG, f"batches.rows is {rows}, its entries have {self._offset - first}", **where)
            self._offset = first + rows

    def finish(self, rows: object, size: object) -> None:
        """The totals of the partition, and that each segment is full to its published length."""
        where = self._where(None, None)
        if rows is not None and (rows, size) != (self._offset, self._bytes):
            what = f"partitions says {rows} rows in {size} bytes, the batches are {self._offset} in {self._bytes}"
            self._found.damage(CATALOG, what, **where)
        self._counted["rows"] += self._offset
        self._counted["bytes"] += self._bytes
        for segment in self._segments.values():
            self._counted["segments"] += 1
            end = self._ends.get(segment.segment_id)
            if end is None:
                self._found.damage(self._path(segment), "the catalog lists the segment, but no batch in it", **where)
            elif end != segment.published_bytes:
                what = f"the batches end at {end}, the published length is {segment.published_bytes}"
                self._found.damage(self._path(segment), what, position=min(end, segment.published_bytes), **where)
        self._look_beside()

    def _look_beside(self) -> None:
        """The lock, and segments that no recovery would take for a torn tail: published rows lie where they begin."""
        listed = {segment.file for segment in self._segments.values()}
        folder = ("topics", self._place.topic, str(self._place.partition))
        try:
            names = [entry.name for entry in self._files.entries(*folder) if entry.name not in listed]
        except Unreadable:
            return  # no segment could be opened either
        if "writer.lock" not in names:
            self._found.warn("/".join((*folder, "writer.lock")), "is missing; lock files are never removed")
        for name in names:
            named = SEGMENT_NAME.fullmatch(name)
            if named is not None and int(named[1]) < self._offset:
                what = "is a segment that the catalog does not list, and is left alone"
                self._found.warn("/".join((*folder, name)), what, **self._where(int(named[1]), None))

    def _entry(self, segment_id: int, position: int, length: int, rows: int, xxh3: int, epoch: int | None) -> None:
        offset = self._offset
        where = self._where(offset, epoch)
        self._counted["batches"] += 1
        self._offset += rows
        self._bytes += length
        segment = self._segments.get(segment_id)
        if segment is None:
            self._found.damage(CATALOG, f"a batch is in a segment {segment_id} that is not listed here", **where)
            return
        path = self._path(segment)
        if segment_id != self._current:
            self._begin(segment, offset, where)
        expected = self._ends[segment_id]
        self._ends[segment_id] = max(expected, position + length)
        if position != expected:
            self._found.damage(
                path, f"the next batch begins at {position}, not at {expected}", position=expected, **where
            )
        if rows == 0 or position + length > segment.published_bytes:
            what = f"a batch of {rows} rows, {length} bytes at {position}, in {segment.published_bytes} published bytes"
            self._found.damage(path, what, position=position, **where)
            return
        if position >= SEGMENT_BYTES_FULL:
            self._found.warn(path, "a batch was added to a segment that was full", position=position, **where)
        # What overlaps is not read: the work stays in proportion to the file.
        if self._file is None or position < expected:
            return
        try:
            content = self._file.checked(position, length, xxh3)
            batch = read_batch(content, self._schema, rows)
        except Unreadable as error:
            self._found.damage(path, str(error), position=position, **where)
            return
        if self._take is not None and batch is not None:
            self._take(batch)

    def _begin(self, segment: Segment, offset: int, where: dict[str, int | str | None]) -> None:
        """Open a segment when its first entry comes, and check its schema message."""
        path = self._path(segment)
        self._close()
        self._current = segment.segment_id
        if segment.segment_id in self._ends:
            self._found.damage(path, "the segment goes on after a later one began", **where)
        elif offset != segment.first_offset:
            what = f"its first batch has offset {offset}, the catalog says {segment.first_offset}"
            self._found.damage(path, what, **where)
        self._ends.setdefault(segment.segment_id, segment.header_bytes)
        try:
            self._file = self._files.opened("topics", self._place.topic, str(self._place.partition), segment.file)
            if self._file.size < segment.published_bytes:
                what = f"the file has {self._file.size} bytes, {segment.published_bytes} are published"
                self._found.damage(path, what, position=self._file.size, **where)
            self._schema = self._checked_schema(segment)
        except Unreadable as error:
            self._found.damage(path, str(error), position=0, **where)

    def _checked_schema(self, segment: Segment) -> pa.Schema | None:
        assert self._file is not None
        if not 0 < segment.header_bytes <= segment.published_bytes:
            raise Unreadable(f"a schema message of {segment.header_bytes} bytes in {segment.published_bytes} published")
        header = self._file.checked(0, segment.header_bytes, segment.header_xxh3 % UNSIGNED_64)
        schema = read_schema(header, segment.header_bytes)
        metadata = {
            b"dataflow.store": self._place.store_id.encode(),
            b"dataflow.topic": self._place.topic.encode(),
            b"dataflow.partition": str(self._place.partition).encode(),
            b"dataflow.first_offset": str(segment.first_offset).encode(),
        }
        if schema.metadata != metadata:
            wrong = {key: (schema.metadata or {}).get(key) for key in metadata} | (schema.metadata or {})
            told = ", ".join(f"{key!r}: {value!r}" for key, value in wrong.items() if metadata.get(key) != value)
            raise Unreadable(f"its schema message is of another place: {told}")
        if not 1 <= segment.schema_version <= len(self._place.schemas):
            raise Unreadable(f"the topic has no schema version {segment.schema_version}")
        plain = schema.remove_metadata()
        if not plain.equals(self._place.schemas[segment.schema_version - 1], check_metadata=True):
            raise Unreadable(f"its columns are not those of schema version {segment.schema_version}")
        return plain

    def _check_names(self, segments: list[Segment]) -> None:
        numbers = []
        for segment in segments:
            named = SEGMENT_NAME.fullmatch(segment.file)
            if named is None or int(named[1]) != segment.first_offset:
                what = f"{segment.file!r} is no name of a segment from offset {segment.first_offset}"
                self._found.damage(CATALOG, what, **self._where(segment.first_offset, None))
            else:
                numbers.append(int(named[2]))
        if any(earlier >= later for earlier, later in pairwise(numbers)):
            self._found.damage(
                CATALOG, f"the segments' numbers do not ascend: {short(numbers)}", **self._where(None, None)
            )

    def _where(self, offset: int | None, epoch: int | None) -> dict[str, int | str | None]:
        return {"topic": self._place.topic, "partition": self._place.partition, "offset": offset, "epoch": epoch}

    def _path(self, segment: Segment) -> str:
        return f"topics/{self._place.topic}/{self._place.partition}/{segment.file}"

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._schema = None

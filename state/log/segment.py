"""A segment: one file of a partition, a plain Arrow IPC stream that only grows (FORMAT.md section 2).

Arrow IPC has no checksum, and a flipped bit mostly reads back as valid, wrong data. So every message is vouched for
by the catalog: its position, its length and its XXH3 are kept apart from it, and nothing is decoded before they agree.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import pyarrow as pa
import xxhash

from dataflow.errors import StoreError
from dataflow.state.layout import FILE_MODE
from dataflow.system import AppendFile, Disk, System

SEGMENT_BYTES_MAX = 256 << 20
"""Where a new file begins: large enough that files are few, small enough that retention can drop them one by one."""
SEGMENT_NAME = re.compile(r"(\d{20})-(\d+)\.arrow")

checksum_of = xxhash.xxh3_64_intdigest
"""XXH3-64 of a buffer. One call a message: it runs at memory speed, and lets other threads run meanwhile."""


class CorruptSegmentError(StoreError):
    """A log segment holds bytes that its checksum does not vouch for."""

    code = "DF0603"

    def __init__(self, path: str, position: int, offset: int, epoch: int | None, reason: str) -> None:
        since = "no epoch" if epoch is None else f"epoch {epoch}"
        super().__init__(
            f"{path} is corrupt at byte {position}: {reason}; rows from offset {offset} on ({since}) cannot be "
            "trusted; nothing was changed",
            help="restore the file from a backup, or rebuild the topic by running its pipeline into a new store",
        )
        self.path, self.position, self.offset, self.epoch, self.reason = path, position, offset, epoch, reason


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A segment as the catalog lists it. `path` is below the store's root."""

    segment_id: int
    topic: str
    partition: int
    path: str
    first_offset: int
    header_bytes: int
    header_xxh3: int
    published_bytes: int


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Where one published batch lies: `length` bytes at `position` of a segment; its first row has `first_offset`."""

    segment: SegmentInfo
    position: int
    length: int
    rows: int
    xxh3: int
    first_offset: int
    commit_id: int
    epoch: int | None

    @property
    def until_offset(self) -> int:
        return self.first_offset + self.rows


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of one store: what a segment says it belongs to, and the directory of its files."""

    system: System
    store_id: str
    topic: str
    number: int
    directory: str


def header_metadata(store_id: str, topic: str, partition: int, first_offset: int) -> dict[bytes, bytes]:
    """What the schema message of a segment says about where it belongs."""
    return {
        b"dataflow.store": store_id.encode(),
        b"dataflow.topic": topic.encode(),
        b"dataflow.partition": str(partition).encode(),
        b"dataflow.first_offset": str(first_offset).encode(),
    }


class GrowingSegment:
    """The segment that a writer appends to. Knows what of it is published, and can be cut back to that."""

    def __init__(self, partition: Partition, name: str, first_offset: int, schema: pa.Schema) -> None:
        self.name, self.first_offset, self.schema = name, first_offset, schema
        self.published_bytes = 0
        self.is_synced = False
        self.is_torn = False
        """True when a part of a message is at the end and could not be cut off: nothing may follow it."""
        self._disk = partition.system.disk
        self._file: AppendFile = self._disk.open_append(
            os.path.join(partition.directory, name), new=True, mode=FILE_MODE
        )
        place = header_metadata(partition.store_id, partition.topic, partition.number, first_offset)
        header = schema.with_metadata(place).serialize()
        self.header_bytes, self.header_xxh3 = header.size, checksum_of(header)
        try:
            self._append(header)
        except OSError:
            self.rollback()
            raise

    @property
    def size(self) -> int:
        return self._file.size

    @property
    def path(self) -> str:
        return self._file.path

    def append(self, batch: pa.RecordBatch) -> tuple[int, int, int]:
        """Append one message; return its position, length and checksum. After an OSError nothing of it is left."""
        message = batch.serialize()
        return self._append(message), message.size, checksum_of(message)

    def _append(self, message: pa.Buffer) -> int:
        size_before = self._file.size
        try:
            position = self._file.write(message)
        except OSError:
            self.is_torn = True
            self._file.truncate(size_before)
            self.is_torn = False
            raise
        self.is_synced = False
        return position

    def sync(self) -> None:
        """Make what was appended durable. Once it failed, only `close` may follow."""
        self._file.sync()
        self.is_synced = True

    def rollback(self) -> bool:
        """Cut back to what is published; a file of which nothing is, is removed. True when the file is still there."""
        if self.published_bytes:
            self._file.truncate(self.published_bytes)
            return True
        self._file.close()
        self._disk.remove(self.path)
        return False

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class MappedSegment:
    """A segment's bytes in memory, after its schema message was checked."""

    buffer: pa.Buffer
    schema: pa.Schema

    def read(self, entry: IndexEntry) -> pa.RecordBatch:
        """The batch of an entry, without a copy, after its bytes were checked."""
        if entry.position + entry.length > self.buffer.size:
            raise corrupt(entry, f"the file ends at byte {self.buffer.size}, before the batch does")
        message = self.buffer.slice(entry.position, entry.length)
        if checksum_of(message) != entry.xxh3:
            raise corrupt(entry, f"{entry.length} bytes do not have the checksum that was published")
        batch = pa.ipc.read_record_batch(message, self.schema)
        if batch.num_rows != entry.rows:
            raise corrupt(entry, f"it has {batch.num_rows} rows, and the catalog says {entry.rows}")
        return batch


def corrupt(entry: IndexEntry, reason: str, position: int | None = None) -> CorruptSegmentError:
    """The error for an entry that cannot be read."""
    at = entry.position if position is None else position
    return CorruptSegmentError(entry.segment.path, at, entry.first_offset, entry.epoch, reason)


def map_segment(disk: Disk, root: str, store_id: str, entry: IndexEntry) -> MappedSegment:
    """Map the segment of an entry and check that its schema message is the published one of this place."""
    info = entry.segment
    try:
        buffer = disk.map(os.path.join(root, info.path))
    except FileNotFoundError:
        raise corrupt(entry, "the file is missing", 0) from None
    except PermissionError as error:
        raise StoreError(
            f"topic `{info.topic}`: {os.path.join(root, info.path)} may not be read by this user; nothing was changed",
            code="DF0604",
            help="ask its owner for the permission to read all files of the store, and to enter its directories",
        ) from error
    header = buffer.slice(0, min(info.header_bytes, buffer.size))
    if header.size != info.header_bytes or checksum_of(header) != info.header_xxh3:
        raise corrupt(entry, "its schema message does not have the checksum that was published", 0)
    schema = pa.ipc.read_schema(header)
    if schema.metadata != header_metadata(store_id, info.topic, info.partition, info.first_offset):
        raise corrupt(entry, "it belongs to another store, topic, partition or offset", 0)
    return MappedSegment(buffer, schema.remove_metadata())

"""Reads published batches: maps segments, checks, and hands out batches that point into the map.

Any number of threads read at once. What costs is the checksum, and that runs at memory speed without the
interpreter's lock; the cache of maps is looked up without a lock of ours either.
"""

from __future__ import annotations

import pyarrow as pa

from dataflow.state.log.segment import IndexEntry, MappedSegment, map_segment
from dataflow.system import System

MAPS_MAX = 256
"""Segments kept mapped: 64 GiB of address space at most, and far from the kernel's limit of maps a process."""


class TopicReader:
    """Reads the batches of one store."""

    def __init__(self, system: System, root: str, store_id: str) -> None:
        self._disk, self._root, self._store_id = system.disk, root, store_id
        self._maps: dict[str, MappedSegment] = {}
        self._mutex = system.scheduler.mutex()

    def read(self, entry: IndexEntry) -> pa.RecordBatch:
        """The batch of an entry, in the schema of its segment; zero-copy. Thread-safe.

        Raises CorruptSegmentError when its bytes are not those that were published.
        """
        segment = self._maps.get(entry.segment.path)
        if segment is None or segment.buffer.size < entry.position + entry.length:
            segment = self._map(entry)
        return segment.read(entry)

    def close(self) -> None:
        """Forget the maps; batches that were handed out keep theirs alive."""
        with self._mutex:
            self._maps.clear()

    def _map(self, entry: IndexEntry) -> MappedSegment:
        segment = map_segment(self._disk, self._root, self._store_id, entry)
        with self._mutex:
            while len(self._maps) >= MAPS_MAX:
                self._maps.pop(next(iter(self._maps)))
            self._maps[entry.segment.path] = segment
        return segment


def fit(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema`; those that the batch's schema version did not have yet are null."""
    if batch.schema.equals(schema):
        return batch
    columns = [column_of(batch, field) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def column_of(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    """A column of a batch, or nulls when its schema version did not have it yet."""
    position = batch.schema.get_field_index(field.name)
    return pa.nulls(batch.num_rows, field.type) if position < 0 else batch.column(position)

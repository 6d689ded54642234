"""What sinks write bytes into: a new file that is hashed as it grows, and rows that wait for their commit.

A file sink says with each file what is in it (its size and XXH3), so that a later run can tell whether the file that
has the name is the one that was meant. Arrow's writers get their file from here, never by a path: bytes go through the
seam.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import xxhash

from dataflow.errors import ConnectorError, disk_fix, disk_reason
from dataflow.operators.base import SinkContext, SinkRoom
from dataflow.system import AppendFile, Content, Disk, FilePath

SPOOL_BYTES_MAX = 16 << 20
"""Rows that wait in memory; more go to a file."""


def not_written(path: str, error: OSError, kept: str) -> ConnectorError:
    """The error for a file that could not be written; `kept` says what is left."""
    return ConnectorError(
        f"{path} cannot be written: {disk_reason(error)}; {kept}", code="DF0512", help=disk_fix(error)
    )


class HashedFile:
    """A new file, which Arrow's writers can write to (`arrow`); it waits for room. Used by one thread."""

    def __init__(self, disk: Disk, path: FilePath, room: SinkRoom) -> None:
        self._room = room
        self._file: AppendFile = room.attempt(lambda: disk.open_append(path, new=True))
        self._hash = xxhash.xxh3_64()
        self.path = self._file.path
        self.closed = False
        """As Arrow asks it of files."""

    @property
    def size(self) -> int:
        return self._file.size

    @property
    def xxh3(self) -> int:
        return self._hash.intdigest()

    def arrow(self) -> pa.NativeFile:
        return pa.PythonFile(self, mode="w")

    def write(self, data: Content) -> int:
        content, start = memoryview(data).cast("B"), self._file.size
        self._room.attempt(lambda: self._append(content, start))
        self._hash.update(data)
        return content.nbytes

    def _append(self, content: memoryview, start: int) -> None:
        """Write what is not there yet of the bytes that begin at `start`: a disk that got full took a part of them."""
        try:
            self._file.write(content[self._file.size - start :])
        except OSError as error:
            error.filename = self.path  # which the kernel does not tell
            raise

    def tell(self) -> int:
        return self._file.size

    def flush(self) -> None:
        """Nothing is kept back."""

    def finish(self) -> None:
        """Make the bytes durable, and close."""
        self._file.sync()
        self.close()

    def close(self) -> None:
        self._file.close()
        self.closed = True


def hash_of(disk: Disk, path: FilePath) -> int:
    """The XXH3 of a file's bytes."""
    return xxhash.xxh3_64_intdigest(disk.map(path))


class Spool:
    """Rows of a run without a store that wait until they can be written where they belong.

    Few stay in memory; more go into a file at `path`, which is gone with the run. Without a path all stay in memory.
    """

    def __init__(self, context: SinkContext, path: str | None) -> None:
        self._disk, self._room, self._schema, self._path = context.system.disk, context.room, context.schema, path
        self._kept: list[pa.RecordBatch] = []
        self._kept_bytes = 0
        self._file: HashedFile | None = None
        self._frames: list[tuple[int, int]] = []
        self.rows = 0

    @property
    def nbytes(self) -> int:
        return self._kept_bytes + sum(length for _, length in self._frames)

    def keep(self, batches: Sequence[pa.RecordBatch]) -> None:
        self._kept += batches
        self._kept_bytes += sum(batch.nbytes for batch in batches)
        self.rows += sum(batch.num_rows for batch in batches)
        if self._path is not None and self._kept_bytes > SPOOL_BYTES_MAX:
            self._spill(self._path)

    def _spill(self, path: str) -> None:
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, self._schema) as stream:
            for batch in self._kept:
                stream.write_batch(batch)
        data = buffer.getvalue()
        try:
            if self._file is None:
                self._file = HashedFile(self._disk, path, self._room)
            position = self._file.size
            self._file.write(data)
        except OSError as error:
            raise not_written(path, error, "nothing of this run is visible") from error
        self._frames.append((position, data.size))
        self._kept, self._kept_bytes = [], 0

    def batches(self) -> Iterable[pa.RecordBatch]:
        for position, length in self._frames:
            assert self._file is not None
            yield from pa.ipc.open_stream(self._disk.map(self._file.path).slice(position, length))
        yield from self._kept

    def drop(self) -> None:
        self._kept, self._kept_bytes, self._frames, self.rows = [], 0, [], 0
        if self._file is not None:
            self._file.close()
            self._disk.remove(self._file.path)
            self._file = None

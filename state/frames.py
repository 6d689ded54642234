"""Frames: rows that a pipeline keeps beside the catalog, for its checkpoints and for its sinks (FORMAT.md section 7).

A frame is a complete Arrow IPC stream in a file of the pipeline's directory. Files only grow, so an epoch costs one
fsync however many frames it has, and a checkpoint may refer to frames of earlier epochs for what has not changed. What
no committed epoch refers to any more goes with its file. The hard part is who may be looking: frames are written by the
threads of tasks and sinks, and a file may be removed only when the epoch without its frames is durable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dataflow.errors import DiskFullError, StoreError, disk_fix, disk_reason
from dataflow.state.layout import FILE_MODE, make_durable_dirs
from dataflow.state.log.segment import checksum_of
from dataflow.system import AppendFile, System

FRAME_FILE_BYTES_MAX = 64 << 20
"""Where a new file begins: an old one can only go as a whole."""
FILE_NAME = re.compile(r"(\d+)\.state")
_PLAIN = pa.ipc.IpcWriteOptions(use_threads=False)
_PACKED = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a frame lies, and whose it is."""

    number: int
    owner: str
    rows: int
    file: str
    position: int
    length: int
    xxh3: int


class CorruptFrameError(StoreError):
    """A frame's bytes are not those that were committed."""

    code = "DF0603"

    def __init__(self, path: str, frame: Frame, reason: str) -> None:
        super().__init__(
            f"{path} is corrupt at byte {frame.position}: {reason}; it holds rows of {frame.owner}, and the pipeline "
            "cannot go on without them; nothing was changed",
            help="restore the file from a backup, or run the pipeline from the start into a new store",
        )
        self.path, self.frame, self.reason = path, frame, reason


class FrameFiles:
    """The frames of one pipeline, whose lock the caller holds. Every method may be called from any thread."""

    def __init__(self, system: System, root: str, directory: str, next_number: int) -> None:
        self._system, self._root, self._directory = system, root, directory
        self._next_number = next_number
        self._file: AppendFile | None = None
        self._listed: set[str] | None = None
        self._unsynced: list[AppendFile] = []
        self._is_new = False
        """Whether the directory has a name that is not durable yet."""
        self._failed = False
        self._mutex = system.scheduler.mutex()

    def write(self, owner: str, batches: Sequence[pa.RecordBatch], schema: pa.Schema, *, packed: bool = False) -> Frame:
        """Append a frame; durable after `sync`. `packed` ones take less disk, and more time."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema, options=_PACKED if packed else _PLAIN) as stream:
            for batch in batches:
                stream.write_batch(batch)
        data = sink.getvalue()
        with self._mutex:
            self._check_open()
            try:
                file = self._growing()
                position = self._append(file, data)
            except OSError as error:
                raise self._not_written(owner, error) from error
            if file not in self._unsynced:
                self._unsynced.append(file)
            number = self._next_number
            self._next_number += 1
        rows = sum(batch.num_rows for batch in batches)
        return Frame(number, owner, rows, os.path.basename(file.path), position, data.size, checksum_of(data))

    def sync(self) -> None:
        """Make all frames durable. Once it failed, nothing more is taken."""
        with self._mutex:
            self._check_open()
            try:
                for file in self._unsynced:
                    file.sync()
                if self._is_new:
                    self._system.disk.sync_dir(self._directory)
            except OSError as error:
                self._failed = True
                raise StoreError(
                    f"the disk did not confirm {self._directory} ({error.strerror}); the epoch is not committed, and "
                    "this run takes nothing more",
                    code="DF0604",
                    help="check the disk; then run again: it goes on from the last commit",
                ) from error
            for file in self._unsynced:
                if file is not self._file:
                    file.close()
            self._unsynced, self._is_new = [], False

    def read(self, frame: Frame) -> list[pa.RecordBatch]:
        """The rows of a frame, after its bytes were checked."""
        path = os.path.join(self._directory, frame.file)
        try:
            content = self._system.disk.map(path)
        except FileNotFoundError:
            raise CorruptFrameError(path, frame, "the file is missing") from None
        start = min(frame.position, content.size)
        data = content.slice(start, min(frame.length, content.size - start))
        if data.size != frame.length:
            raise CorruptFrameError(path, frame, f"the file ends at byte {content.size}, before the frame does")
        if checksum_of(data) != frame.xxh3:
            raise CorruptFrameError(path, frame, f"{frame.length} bytes do not have the checksum that was committed")
        batches = list(pa.ipc.open_stream(data))
        if sum(batch.num_rows for batch in batches) != frame.rows:
            raise CorruptFrameError(path, frame, f"it does not have the {frame.rows} rows that were committed")
        return batches

    def forget(self, in_use: Iterable[Frame]) -> None:
        """Remove the files in which no frame lies that a committed epoch needs. After that epoch's commit."""
        kept = {frame.file for frame in in_use}
        with self._mutex:
            growing = {os.path.basename(file.path) for file in (*self._unsynced, *([self._file] if self._file else []))}
            for name in self._names() - kept - growing:
                self._system.disk.remove(os.path.join(self._directory, name))
                self._names().discard(name)

    def _names(self) -> set[str]:
        """The files that there are; nobody else makes any, so the directory is read once."""
        if self._listed is None:
            disk = self._system.disk
            found = disk.list_dir(self._directory) if disk.exists(self._directory) else []
            self._listed = {name for name in found if FILE_NAME.fullmatch(name)}
        return self._listed

    def close(self) -> None:
        """Close the files; what was not committed is left to `forget` of the next run."""
        with self._mutex:
            for file in {id(one): one for one in (*self._unsynced, self._file) if one is not None}.values():
                file.close()
            self._unsynced, self._file = [], None

    def _append(self, file: AppendFile, data: pa.Buffer) -> int:
        """Append all or nothing."""
        size = file.size
        try:
            return file.write(data)
        except OSError:
            file.truncate(size)
            raise

    def _growing(self) -> AppendFile:
        if self._file is None or self._file.size >= FRAME_FILE_BYTES_MAX:
            disk = self._system.disk
            make_durable_dirs(disk, self._directory, until=self._root)
            number = max((int(name.partition(".")[0]) for name in self._names()), default=0) + 1
            path = os.path.join(self._directory, f"{number}.state")
            if self._file is not None and self._file not in self._unsynced:
                self._file.close()
            self._file, self._is_new = disk.open_append(path, new=True, mode=FILE_MODE), True
            self._names().add(os.path.basename(path))
        return self._file

    def _check_open(self) -> None:
        if self._failed:
            raise StoreError(
                f"an earlier write below {self._directory} was not confirmed by the disk; nothing more is taken",
                code="DF0604",
                help="check the disk; then run again: it goes on from the last commit",
            )

    def _not_written(self, owner: str, error: OSError) -> StoreError:
        return DiskFullError.or_other(error)(
            f"rows of {owner} could not be written below {self._directory}: {disk_reason(error)}; nothing of them was "
            "kept",
            code="DF0609",
            help=f"{disk_fix(error)}: it goes on from the last commit",
        )


class Staging:
    """Rows that a sink keeps in the store until it can write them where they belong. Used by the sink's thread.

    What `keep` adds is durable with the epoch that the next `prepare` ends; what `drop` lets go, likewise.
    """

    def __init__(self, files: FrameFiles, owner: str, schema: pa.Schema, frames: Iterable[Frame] = ()) -> None:
        self._files, self._owner, self._schema = files, owner, schema
        self.frames: list[Frame] = list(frames)

    @property
    def rows(self) -> int:
        return sum(frame.rows for frame in self.frames)

    @property
    def nbytes(self) -> int:
        """On disk."""
        return sum(frame.length for frame in self.frames)

    def keep(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Keep these rows behind the others, as one frame."""
        if any(batch.num_rows for batch in batches):
            self.frames.append(self._files.write(self._owner, batches, self._schema, packed=True))

    def batches(self) -> Iterable[pa.RecordBatch]:
        """All rows that are kept, oldest first, checked against their checksums."""
        for frame in self.frames:
            yield from self._files.read(frame)

    def drop(self) -> None:
        """None of these rows is needed any more."""
        self.frames = []

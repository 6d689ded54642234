"""A system that passes everything on and keeps a list of what changed the disk.

From the list, later tests build every disk that a power cut could have left: any write after the last sync of
its file may be there, missing or torn; any name after the last sync of its directory may be old or new.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataflow.system.contract import AppendFile, Clock, Content, Disk, FilePath, Scheduler, System
from dataflow.system.passing import PassingDisk

if TYPE_CHECKING:
    import apsw


@dataclass(frozen=True, slots=True)
class Create:
    """A new, empty file; in the place of an older one, if `write_bytes` made it."""

    path: str


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes put into a file at a position."""

    path: str
    position: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file cut (or filled up with zeros) to a size."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """What was written to the file before is durable."""

    path: str


@dataclass(frozen=True, slots=True)
class Rename:
    """A file under another name."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Remove:
    """A file's name taken away."""

    path: str


@dataclass(frozen=True, slots=True)
class MakeDir:
    """A directory and its missing parents."""

    path: str


@dataclass(frozen=True, slots=True)
class SyncDir:
    """The names in a directory are durable as they are."""

    path: str


Operation = Create | Write | Truncate | Sync | Rename | Remove | MakeDir | SyncDir


class RecordedAppendFile:
    """An AppendFile whose changes are told."""

    def __init__(self, inner: AppendFile, operations: list[Operation]) -> None:
        self._inner, self._operations = inner, operations

    @property
    def path(self) -> str:
        return self._inner.path

    @property
    def size(self) -> int:
        return self._inner.size

    def write(self, data: Content) -> int:
        position = self._inner.write(data)
        self._operations.append(Write(self.path, position, memoryview(data).tobytes()))
        return position

    def sync(self) -> None:
        self._inner.sync()
        self._operations.append(Sync(self.path))

    def truncate(self, size: int) -> None:
        self._inner.truncate(size)
        self._operations.append(Truncate(self.path, size))

    def close(self) -> None:
        self._inner.close()


class RecordingDisk(PassingDisk):
    """Passes on to `inner`; `operations` has every change that went through, in order."""

    def __init__(self, inner: Disk) -> None:
        super().__init__(inner)
        self.operations: list[Operation] = []
        self._vfs: apsw.VFS | None = None

    def note(self, operation: Operation) -> None:
        self.operations.append(operation)

    def note_create(self, path: str) -> None:
        self.note(Create(path))

    def note_remove(self, path: str, sync_dir: bool) -> None:
        self.note(Remove(path))
        if sync_dir:
            self.note(SyncDir(os.path.dirname(path)))

    def open_append(self, path: FilePath, *, new: bool = False, mode: int = 0o666) -> AppendFile:
        is_new = new or not self._inner.exists(path)
        file = self._inner.open_append(path, new=new, mode=mode)
        if is_new:
            self.note(Create(os.fspath(path)))
        return RecordedAppendFile(file, self.operations)

    def write_bytes(self, path: FilePath, data: Content, *, mode: int = 0o666) -> None:
        self._inner.write_bytes(path, data, mode=mode)
        name = os.fspath(path)
        self.operations += [Create(name), Write(name, 0, memoryview(data).tobytes()), Sync(name)]

    def rename(self, old: FilePath, new: FilePath) -> None:
        self._inner.rename(old, new)
        self.note(Rename(os.fspath(old), os.fspath(new)))

    def rename_new(self, old: FilePath, new: FilePath) -> None:
        self._inner.rename_new(old, new)
        self.note(Rename(os.fspath(old), os.fspath(new)))

    def remove(self, path: FilePath) -> None:
        self._inner.remove(path)
        self.note(Remove(os.fspath(path)))

    def truncate(self, path: FilePath, size: int) -> None:
        self._inner.truncate(path, size)
        self.note(Truncate(os.fspath(path), size))

    def make_dirs(self, path: FilePath, *, mode: int = 0o777) -> None:
        is_new = not self._inner.exists(path)
        self._inner.make_dirs(path, mode=mode)
        if is_new:
            self.note(MakeDir(os.fspath(path)))

    def sync_dir(self, path: FilePath) -> None:
        self._inner.sync_dir(path)
        self.note(SyncDir(os.fspath(path)))

    def vfs_name(self) -> str:
        name = f"dataflow-recording-{id(self)}"
        if self._vfs is None:
            from dataflow.system.vfs import RecordingVfs

            self._vfs = RecordingVfs(name, self._inner.vfs_name(), self)
        return name


class RecordingSystem:
    """Another system, with every change of its disk written down in `operations`."""

    def __init__(self, inner: System) -> None:
        self.disk = RecordingDisk(inner.disk)
        self.clock: Clock = inner.clock
        self.chance: random.Random = inner.chance
        self.scheduler: Scheduler = inner.scheduler

    @property
    def operations(self) -> list[Operation]:
        return self.disk.operations

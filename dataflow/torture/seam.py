"""Systems for torture: the real disk under a clock that jumps, and one whose every change can be made to fail.

Faults are put in where the engine touches the disk, SQLite's reads and writes included (by the VFS). The hard part is
to fail as real disks do: a write may leave a part behind, an error of SQLite's files has to carry SQLite's own code,
and a kill comes before a change, in the middle of one, or never.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, Protocol

import apsw

from dataflow.system import AppendFile, Clock, Content, Disk, FilePath, RealSystem, Scheduler, System
from dataflow.system.passing import PassingDisk
from dataflow.system.real import RealDisk
from dataflow.system.simulated import SimulatedClock, SimulatedScheduler

Kind = Literal["create", "write", "sync", "truncate", "rename", "remove", "make_dirs", "sync_dir"]
"""The changes of a disk."""


class SeededVfs(apsw.VFS):
    """SQLite's own VFS, with randomness from a seed: two runs then write the same bytes."""

    def __init__(self, name: str, chance: random.Random) -> None:
        self._chance = chance
        # The default, since that is the one which SQLite asks for randomness.
        super().__init__(name, "", makedefault=True, maxpathname=4096)

    def xRandomness(self, numbytes: int) -> bytes:  # noqa: N802 (SQLite's name)
        return self._chance.randbytes(numbytes)


class SeededDisk(RealDisk):
    """The machine's file systems; databases are opened by a SeededVfs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._seeded: SeededVfs | None = None

    def vfs_name(self) -> str:
        name = f"dataflow-seeded-{id(self)}"
        if self._seeded is None:
            self._seeded = SeededVfs(name, random.Random(self._seed))
        return name


class QuickSystem:
    """The real disk in one thread, whose waits take no time."""

    def __init__(self, seed: int = 0, disk: Disk | None = None) -> None:
        clock = SimulatedClock()
        self.disk: Disk = RealSystem().disk if disk is None else disk
        self.clock: Clock = clock
        self.scheduler: Scheduler = SimulatedScheduler(clock, random.Random(seed))
        self.chance = random.Random(seed)


@dataclass(frozen=True, slots=True)
class Change:
    """A change that is about to be made: of `size` bytes at `position`, for a write; to `size`, for a truncate."""

    kind: Kind
    path: str
    position: int = 0
    size: int = 0


class Fault(Protocol):
    """Decides about every change of a disk."""

    def before(self, change: Change) -> Refusal | None:
        """Called before a change: None lets it happen. May end the process instead of answering."""
        ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """A change that fails; of a write, `written` bytes are there all the same."""

    error_number: int
    written: int = 0

    def os_error(self, path: str) -> OSError:
        return OSError(self.error_number, os.strerror(self.error_number), path)

    def sqlite_error(self, kind: Kind) -> apsw.Error:
        """The error that SQLite's own VFS would return."""
        if self.error_number == errno.ENOSPC and kind != "create":
            return apsw.FullError(os.strerror(errno.ENOSPC))
        kind_of_error = apsw.CantOpenError if kind == "create" else apsw.IOError
        error: apsw.Error = kind_of_error(os.strerror(self.error_number))
        codes = {
            "write": apsw.SQLITE_IOERR_WRITE,
            "sync": apsw.SQLITE_IOERR_FSYNC,
            "truncate": apsw.SQLITE_IOERR_TRUNCATE,
            "remove": apsw.SQLITE_IOERR_DELETE,
        }
        error.extendedresult = codes.get(kind, apsw.SQLITE_CANTOPEN)  # type: ignore[attr-defined]
        return error


class FaultyDisk(PassingDisk):
    """A disk that asks a fault before it changes anything."""

    def __init__(self, inner: Disk, fault: Fault) -> None:
        super().__init__(inner)
        self._fault = fault
        self._vfs: FaultyVfs | None = None

    def _ask(self, kind: Kind, path: FilePath, size: int = 0) -> None:
        refusal = self._fault.before(Change(kind, os.fspath(path), size=size))
        if refusal is not None:
            raise refusal.os_error(os.fspath(path))

    def open_append(self, path: FilePath, *, new: bool = False, mode: int = 0o666) -> AppendFile:
        if new or not self._inner.exists(path):
            self._ask("create", path)
        return FaultyAppendFile(self._inner.open_append(path, new=new, mode=mode), self._fault)

    def write_bytes(self, path: FilePath, data: Content, *, mode: int = 0o666) -> None:
        refusal = self._fault.before(Change("write", os.fspath(path), size=memoryview(data).nbytes))
        if refusal is not None:
            self._inner.write_bytes(path, memoryview(data).cast("B")[: refusal.written], mode=mode)
            raise refusal.os_error(os.fspath(path))
        self._inner.write_bytes(path, data, mode=mode)

    def rename(self, old: FilePath, new: FilePath) -> None:
        self._ask("rename", old)
        self._inner.rename(old, new)

    def rename_new(self, old: FilePath, new: FilePath) -> None:
        self._ask("rename", old)
        self._inner.rename_new(old, new)

    def remove(self, path: FilePath) -> None:
        self._ask("remove", path)
        self._inner.remove(path)

    def truncate(self, path: FilePath, size: int) -> None:
        self._ask("truncate", path, size)
        self._inner.truncate(path, size)

    def make_dirs(self, path: FilePath, *, mode: int = 0o777) -> None:
        if not self._inner.exists(path):
            self._ask("make_dirs", path)
        self._inner.make_dirs(path, mode=mode)

    def sync_dir(self, path: FilePath) -> None:
        self._ask("sync_dir", path)
        self._inner.sync_dir(path)

    def vfs_name(self) -> str:
        name = f"dataflow-faulty-{id(self)}"
        if self._vfs is None:
            self._vfs = FaultyVfs(name, self._inner, self._fault)
        return name


class FaultyAppendFile:
    """An AppendFile that asks a fault before it changes anything."""

    def __init__(self, inner: AppendFile, fault: Fault) -> None:
        self._inner, self._fault = inner, fault

    @property
    def path(self) -> str:
        return self._inner.path

    @property
    def size(self) -> int:
        return self._inner.size

    def write(self, data: Content) -> int:
        change = Change("write", self.path, self.size, memoryview(data).nbytes)
        refusal = self._fault.before(change)
        if refusal is not None:
            if refusal.written:
                self._inner.write(memoryview(data).cast("B")[: refusal.written])
            raise refusal.os_error(self.path)
        return self._inner.write(data)

    def sync(self) -> None:
        self._ask("sync")
        self._inner.sync()

    def truncate(self, size: int) -> None:
        self._ask("truncate", size)
        self._inner.truncate(size)

    def close(self) -> None:
        self._inner.close()

    def _ask(self, kind: Kind, size: int = 0) -> None:
        refusal = self._fault.before(Change(kind, self.path, size=size))
        if refusal is not None:
            raise refusal.os_error(self.path)


class FaultyVfs(apsw.VFS):
    """Databases whose every change a fault is asked about."""

    def __init__(self, name: str, disk: Disk, fault: Fault) -> None:
        self._disk, self._base, self._fault = disk, disk.vfs_name(), fault
        super().__init__(name, self._base, maxpathname=4096)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is not None and flags[0] & apsw.SQLITE_OPEN_CREATE and not self._disk.exists(path):
            _refuse(self._fault.before(Change("create", path)), "create")
        return FaultyDatabaseFile(self._base, name, flags, path, self._fault)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        _refuse(self._fault.before(Change("remove", filename)), "remove")
        super().xDelete(filename, syncdir)


class FaultyDatabaseFile(apsw.VFSFile):
    """A database file whose every change a fault is asked about."""

    def __init__(
        self, base: str, name: str | apsw.URIFilename | None, flags: list[int], path: str | None, fault: Fault
    ) -> None:
        self._path, self._fault = path or "", fault
        super().__init__(base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        refusal = self._fault.before(Change("write", self._path, offset, len(data)))
        if refusal is not None and refusal.written:
            super().xWrite(bytes(data[: refusal.written]), offset)
        _refuse(refusal, "write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        _refuse(self._fault.before(Change("sync", self._path)), "sync")
        super().xSync(flags)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        _refuse(self._fault.before(Change("truncate", self._path, size=newsize)), "truncate")
        super().xTruncate(newsize)


def _refuse(refusal: Refusal | None, kind: Kind) -> None:
    if refusal is not None:
        raise refusal.sqlite_error(kind)


class QuietConnection(apsw.Connection):
    """SQLite hides what fails while a connection is closed; apsw would show what a VFS in Python raised."""

    def close(self, force: bool = False) -> None:
        with suppress(apsw.Error):
            super().close(force)


@contextmanager
def closing_quietly() -> Iterator[None]:
    """Connections close as they do over SQLite's own VFS."""
    usual = apsw.Connection
    apsw.Connection = QuietConnection  # type: ignore[misc]
    try:
        yield
    finally:
        apsw.Connection = usual  # type: ignore[misc]


class FaultySystem:
    """Another system, with a fault in its disk."""

    def __init__(self, inner: System, fault: Fault) -> None:
        self.disk: Disk = FaultyDisk(inner.disk, fault)
        self.clock, self.scheduler, self.chance = inner.clock, inner.scheduler, inner.chance

"""SQLite's way through the seam: the VFS of recorded and of simulated disks. Imported when a database is opened there.

SQLite's WAL index lives in shared memory, which apsw can only pass through to a real file. A simulated disk has
none, so there a database must be opened in exclusive locking mode: `Disk.shares_memory` says so.
"""
# ruff: noqa: N802 (the method names are SQLite's)

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import apsw

if TYPE_CHECKING:
    from dataflow.system.recording import Operation, RecordingDisk
    from dataflow.system.simulated import SimulatedFile, SimulatedSystem


class RecordingVfs(apsw.VFS):
    """Passes on to `base` and tells `disk` what changes a file."""

    def __init__(self, name: str, base: str, disk: RecordingDisk) -> None:
        self._base, self._disk = base, disk
        super().__init__(name, base, maxpathname=4096)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        path = _path_of(name)
        if path is not None and not self._disk.exists(path):
            self._disk.note_create(path)
        return RecordedFile(self._base, name, flags, path, self._disk.note)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self._disk.note_remove(filename, syncdir)


class RecordedFile(apsw.VFSFile):
    """A database file whose changes are told before they are made."""

    def __init__(
        self,
        base: str,
        name: str | apsw.URIFilename | None,
        flags: list[int],
        path: str | None,
        note: Callable[[Operation], None],
    ) -> None:
        self._path, self._note = path, note
        super().__init__(base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        from dataflow.system.recording import Write

        super().xWrite(data, offset)
        if self._path is not None:
            self._note(Write(self._path, offset, bytes(data)))

    def xSync(self, flags: int) -> None:
        from dataflow.system.recording import Sync

        super().xSync(flags)
        if self._path is not None:
            self._note(Sync(self._path))

    def xTruncate(self, newsize: int) -> None:
        from dataflow.system.recording import Truncate

        super().xTruncate(newsize)
        if self._path is not None:
            self._note(Truncate(self._path, newsize))


class SimulatedVfs(apsw.VFS):
    """Databases as files of a simulated disk; its time and its randomness are the simulation's."""

    def __init__(self, name: str, system: SimulatedSystem) -> None:
        self._system = system
        super().__init__(name, "", maxpathname=4096)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        path = _path_of(name) or f"/temporary-{self._system.chance.getrandbits(64):x}"
        flags[1] = flags[0]
        disk, is_journal = self._system.disk, flags[0] & (apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL)
        is_new = bool(is_journal) and not disk.exists(path)
        file = disk.file(path, make=bool(flags[0] & apsw.SQLITE_OPEN_CREATE))
        # As SQLite's own: the first sync of a new journal makes its name durable too.
        return SimulatedDatabaseFile(file, partial(disk.sync_dir, os.path.dirname(path)) if is_new else None)

    def xAccess(self, pathname: str, flags: int) -> bool:
        return self._system.disk.exists(pathname)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        if self._system.disk.exists(filename):
            self._system.disk.remove(filename)
        if syncdir:
            self._system.disk.sync_dir(os.path.dirname(filename))

    def xFullPathname(self, name: str) -> str:
        return os.path.abspath(name)

    def xRandomness(self, numbytes: int) -> bytes:
        return self._system.chance.randbytes(numbytes)

    def xSleep(self, microseconds: int) -> int:
        self._system.scheduler.sleep(microseconds / 1_000_000)
        return microseconds

    def xCurrentTimeInt64(self) -> int:
        return self._system.clock.wall_us() // 1000 + 210_866_760_000_000  # milliseconds since Julian day 0


class SimulatedDatabaseFile(apsw.VFSFile):
    """One open database file. One connection has it at a time, so locks always succeed."""

    def __init__(self, file: SimulatedFile, sync_name: Callable[[], None] | None) -> None:
        self._file, self._sync_name = file, sync_name  # no base file: every method is ours

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self._file.content[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        self._file.write(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self._file.truncate(newsize)

    def xSync(self, flags: int) -> None:
        self._file.sync()
        if self._sync_name is not None:
            self._sync_name()
            self._sync_name = None

    def xFileSize(self) -> int:
        return len(self._file.content)

    def xClose(self) -> None:
        pass

    def xLock(self, level: int) -> None:
        pass

    def xUnlock(self, level: int) -> None:
        pass

    def xCheckReservedLock(self) -> bool:
        return False

    def xSectorSize(self) -> int:
        return 4096

    def xDeviceCharacteristics(self) -> int:
        return 0

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False


def _path_of(name: str | apsw.URIFilename | None) -> str | None:
    return name.filename() if isinstance(name, apsw.URIFilename) else name

"""What the seam offers, as protocols. Every path may be a str or a Path; every size is in bytes.

Durable means: still there after a power cut. A file's bytes are durable after `sync`; that the file exists, or
has its new name, only after `sync_dir` of its directory.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TypeAlias

import pyarrow as pa

from dataflow.errors import StoreError

FilePath = str | os.PathLike[str]
Content: TypeAlias = bytes | bytearray | memoryview | pa.Buffer
"""What can be written: anything with contiguous bytes."""


class LockHeldError(StoreError):
    """Somebody else has the lock. `holder` is what they wrote into it: pid, boot, note."""

    code = "DF0602"

    def __init__(self, path: str, holder: dict[str, object], who: str) -> None:
        super().__init__(
            f"{holder.get('note') or path} is in use by {who}; nothing was changed",
            help="wait until it has ended, or stop it; the lock goes with its process and needs no cleaning up",
        )
        self.path, self.holder = path, holder


class AppendFile(Protocol):
    """A file that grows at its end. Used by one thread at a time."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    def write(self, data: Content) -> int:
        """Append all of `data` and return the position of its first byte; not durable yet.

        When it raises (a full disk), a part may have been written and `size` counts it.
        """
        ...

    def sync(self) -> None:
        """Make the bytes durable. Once it raised, nothing about the unsynced bytes can be known: leave the file."""
        ...

    def truncate(self, size: int) -> None: ...
    def close(self) -> None: ...


class Lock(Protocol):
    """A lock that this process holds until `release`, or until it ends."""

    def release(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Disk(Protocol):
    """Files and directories."""

    @property
    def shares_memory(self) -> bool:
        """Whether several SQLite connections may have one database open (its WAL index needs shared memory)."""
        ...

    def open_append(self, path: FilePath, *, new: bool = False, mode: int = 0o666) -> AppendFile:
        """Open for appending, made if missing; with `new`, FileExistsError if it is there already."""
        ...

    def read_bytes(self, path: FilePath) -> bytes: ...
    def write_bytes(self, path: FilePath, data: Content, *, mode: int = 0o666) -> None:
        """Make or replace a small file and sync it; its name is durable after `sync_dir`. Not atomic: see `rename`."""
        ...

    def map(self, path: FilePath) -> pa.Buffer:
        """The file's bytes as they are now, without a copy. The mapped part must never be truncated."""
        ...

    def open_arrow(self, path: FilePath, *, memory_map: bool = True) -> pa.NativeFile:
        """A file for Arrow's readers (Parquet, CSV); `memory_map` gives zero-copy reads."""
        ...

    def exists(self, path: FilePath) -> bool: ...
    def is_dir(self, path: FilePath) -> bool: ...
    def size(self, path: FilePath) -> int: ...
    def modified_ns(self, path: FilePath) -> int:
        """When its bytes were changed last: nanoseconds since 1970 UTC, in steps of the file system's own (often some
        milliseconds). Users and their tools may set it."""
        ...

    def stamp(self, path: FilePath) -> object:
        """Another one whenever the file was changed, or is another file; None when there is none."""
        ...

    def list_dir(self, path: FilePath) -> list[str]:
        """The names in a directory, sorted."""
        ...

    def glob(self, pattern: str) -> list[str]:
        """The paths that match, sorted; `**` stands for any number of directories."""
        ...

    def rename(self, old: FilePath, new: FilePath) -> None:
        """Give a file another name, replacing what has it. Atomic; durable after `sync_dir`."""
        ...

    def rename_new(self, old: FilePath, new: FilePath) -> None:
        """Give a file another name, or raise FileExistsError if something has it; durable after `sync_dir`.

        After a power cut the file may have both names: whoever goes on then removes the old one.
        """
        ...

    def remove(self, path: FilePath) -> None: ...
    def truncate(self, path: FilePath, size: int) -> None: ...
    def make_dirs(self, path: FilePath, *, mode: int = 0o777) -> None:
        """Make a directory and its parents; no error when it is there."""
        ...

    def sync_dir(self, path: FilePath) -> None:
        """Make the names in a directory durable: files made, renamed and removed."""
        ...

    def lock(self, path: FilePath, note: str) -> Lock:
        """Take the lock that this file stands for, or raise LockHeldError at once. The file stays, for ever."""
        ...

    def vfs_name(self) -> str:
        """The name of the VFS by which apsw opens databases on this disk."""
        ...


class Clock(Protocol):
    """Processing time."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back. For intervals."""
        ...

    def wall_us(self) -> int:
        """Microseconds since 1970 UTC. May jump; only to be recorded and shown."""
        ...


class Event(Protocol):
    """A flag that threads can wait for."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set or the seconds are over; true when it is set."""
        ...


class Mutex(Protocol):
    """Held by one thread at a time; a context manager."""

    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Thread(Protocol):
    """A thread that was started."""

    @property
    def name(self) -> str: ...
    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None: ...


class Scheduler(Protocol):
    """Threads and waiting."""

    @property
    def cores(self) -> int:
        """Processors that this process may use."""
        ...

    def start_thread(self, run: Callable[[], None], name: str, turn: Callable[[], bool]) -> Thread:
        """Run it in a thread of its own, which does not keep the process alive.

        `run` does what `turn` does, again and again. Where there is only one thread, it calls `turn` instead,
        whenever it waits for something; false means that there was nothing to do.
        """
        ...

    def sleep(self, seconds: float) -> None: ...
    def event(self) -> Event: ...
    def mutex(self) -> Mutex: ...


class System(Protocol):
    """The outside world, as one object to hand in."""

    @property
    def disk(self) -> Disk: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def chance(self) -> random.Random: ...
    @property
    def scheduler(self) -> Scheduler: ...

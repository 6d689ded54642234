"""The seam onto the real machine.

The hard part is the lock. It is a flock on a file of its own: POSIX record locks vanish when any descriptor of
the file is closed anywhere in the process. The kernel drops a flock with its process, so a lock file that lies
around means nothing; what is written in it (pid, boot, note) only tells the refused one whom to look for.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import pyarrow as pa

from dataflow.system.contract import (
    AppendFile,
    Clock,
    Content,
    Disk,
    Event,
    FilePath,
    Lock,
    LockHeldError,
    Mutex,
    Scheduler,
    Thread,
)

BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems say that cannot give a file a second name."""
LOCK_BYTES_MAX = 4096
"""Of a lock file, as far as it is read: more than any holder writes."""


class RealAppendFile:
    """An AppendFile over a descriptor opened with O_APPEND."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._size = os.fstat(descriptor).st_size

    @property
    def path(self) -> str:
        return self._path

    @property
    def size(self) -> int:
        return self._size

    def write(self, data: Content) -> int:
        position = self._size
        rest = memoryview(data).cast("B")
        while rest:
            written = os.write(self._descriptor, rest)
            self._size += written
            rest = rest[written:]
        return position

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        self._size = size

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()  # a descriptor is only a number: nobody else would close it


class RealLock:
    """A flock, held as long as the descriptor is open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):  # what the file says is a hint: on a dead disk it stays, and the lock does not
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class RealDisk:
    """The machine's file systems."""

    shares_memory = True

    def open_append(self, path: FilePath, *, new: bool = False, mode: int = 0o666) -> AppendFile:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if new else 0)
        return RealAppendFile(os.fspath(path), os.open(path, flags, mode))

    def read_bytes(self, path: FilePath) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def write_bytes(self, path: FilePath, data: Content, *, mode: int = 0o666) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open(path, "wb", opener=lambda name, _: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def map(self, path: FilePath) -> pa.Buffer:
        if os.path.getsize(path) == 0:
            return pa.py_buffer(b"")  # an empty file cannot be mapped
        return pa.memory_map(os.fspath(path), "r").read_buffer()

    def open_arrow(self, path: FilePath, *, memory_map: bool = True) -> pa.NativeFile:
        if memory_map and os.path.getsize(path) > 0:
            return pa.memory_map(os.fspath(path), "r")
        return pa.OSFile(os.fspath(path), "r")

    def exists(self, path: FilePath) -> bool:
        return os.path.exists(path)

    def is_dir(self, path: FilePath) -> bool:
        return os.path.isdir(path)

    def size(self, path: FilePath) -> int:
        return os.path.getsize(path)

    def modified_ns(self, path: FilePath) -> int:
        return os.stat(path).st_mtime_ns

    def stamp(self, path: FilePath) -> object:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def list_dir(self, path: FilePath) -> list[str]:
        return sorted(os.listdir(path))

    def glob(self, pattern: str) -> list[str]:
        return sorted(glob.glob(pattern, recursive=True))

    def rename(self, old: FilePath, new: FilePath) -> None:
        os.replace(old, new)

    def rename_new(self, old: FilePath, new: FilePath) -> None:
        # A link is refused where a name is taken, by the file system itself: nobody can come between.
        try:
            os.link(old, new, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if os.path.lexists(new):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new)) from None
            os.rename(old, new)
        else:
            os.remove(old)

    def remove(self, path: FilePath) -> None:
        os.remove(path)

    def truncate(self, path: FilePath, size: int) -> None:
        os.truncate(path, size)

    def make_dirs(self, path: FilePath, *, mode: int = 0o777) -> None:
        # os.makedirs gives its mode to the last directory only.
        parent = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(parent):
            self.make_dirs(parent, mode=mode)
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def sync_dir(self, path: FilePath) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: FilePath, note: str) -> Lock:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder_of(os.pread(descriptor, LOCK_BYTES_MAX, 0))
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise LockHeldError(os.fspath(path), {"note": note, **holder}, _describe(holder)) from None
        with suppress(OSError):  # on a full disk nobody hears who holds it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "boot": _boot_id(), "note": note}).encode(), 0)
        return RealLock(descriptor)

    def vfs_name(self) -> str:
        # SQLite's own. One in Python, even one that only passes on, would show tracebacks of errors that SQLite reports
        # itself, and raise those that it hides: what a connection cannot tidy up on a full disk while it is closed.
        return "unix"


def _boot_id() -> str:
    try:
        with open(BOOT_ID_PATH) as file:
            return file.read().strip()
    except OSError:  # not on every kind of Unix
        return ""


def _holder_of(content: bytes) -> dict[str, object]:
    """What the holder wrote; nothing when it has not come to writing yet."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _describe(holder: dict[str, object]) -> str:
    if "pid" not in holder:
        return "another process"
    if holder["pid"] == os.getpid() and holder.get("boot") == _boot_id():
        return f"this process (pid {holder['pid']})"
    if holder.get("boot") != _boot_id():
        return f"a process of another machine or container (pid {holder['pid']} there)"
    return f"process {holder['pid']}"


class RealClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_us(self) -> int:
        return time.time_ns() // 1000


class RealScheduler:
    """Threads of the operating system."""

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def start_thread(self, run: Callable[[], None], name: str, turn: Callable[[], bool]) -> Thread:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def event(self) -> Event:
        return threading.Event()

    def mutex(self) -> Mutex:
        return threading.Lock()


class RealSystem:
    """The machine as it is."""

    def __init__(self) -> None:
        self.disk: Disk = RealDisk()
        self.clock: Clock = RealClock()
        self.chance = random.Random()
        self.scheduler: Scheduler = RealScheduler()

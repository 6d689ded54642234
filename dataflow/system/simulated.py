"""A whole machine in memory: time moves when somebody waits, chance comes from a seed, disks lose power.

The disk keeps two states: what programs see, and what a power cut would leave (the bytes synced, the names whose
directory was synced). Threads are refused: in a simulation one thread turns all workers, in an order that the
seed decides, so a run can be repeated exactly.
"""

from __future__ import annotations

import fnmatch
import os
import random
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from dataflow.system.contract import AppendFile, Content, Event, FilePath, Lock, LockHeldError, Mutex, Thread

if TYPE_CHECKING:
    import apsw

SIMULATION_START_US = 1_700_000_000_000_000
"""Wall clock at the start of every simulation: a day in 2023, so that times look like times."""


class SimulatedFile:
    """A file's bytes: as they are, and as they would be after a power cut."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = b""

    def write(self, data: Content, position: int) -> None:
        if position > len(self.content):
            self.content.extend(bytes(position - len(self.content)))
        self.content[position : position + memoryview(data).nbytes] = memoryview(data).tobytes()

    def truncate(self, size: int) -> None:
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def sync(self) -> None:
        self.durable = bytes(self.content)

    def after_power_cut(self, chance: random.Random) -> SimulatedFile:
        """The file with what was synced, and some prefix of what was appended after it."""
        kept = self.durable
        if self.content[: len(kept)] == kept:
            kept = bytes(self.content[: chance.randint(len(kept), len(self.content))])
        file = SimulatedFile()
        file.content, file.durable = bytearray(kept), kept
        return file


class SimulatedAppendFile:
    """An AppendFile of a simulated disk."""

    def __init__(self, path: str, file: SimulatedFile) -> None:
        self._path, self._file = path, file

    @property
    def path(self) -> str:
        return self._path

    @property
    def size(self) -> int:
        return len(self._file.content)

    def write(self, data: Content) -> int:
        position = self.size
        self._file.write(data, position)
        return position

    def sync(self) -> None:
        self._file.sync()

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def close(self) -> None:
        pass


class SimulatedLock:
    """A lock of a simulated disk: an entry in its table of locks."""

    def __init__(self, locks: dict[str, str], path: str) -> None:
        self._locks, self._path, self._is_held = locks, path, True

    def release(self) -> None:
        if self._is_held:
            self._locks.pop(self._path, None)
        self._is_held = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class SimulatedDisk:
    """Files by absolute path; a directory is an entry without a file."""

    shares_memory = False

    def __init__(self, system: SimulatedSystem) -> None:
        self._system = system
        self._entries: dict[str, SimulatedFile | None] = {"/": None}
        self._durable: dict[str, SimulatedFile | None] = {"/": None}
        self._locks: dict[str, str] = {}
        self._vfs: apsw.VFS | None = None

    def lose_power(self) -> None:
        """Go back to what is durable. What was open keeps the old files, which nobody can reach any more."""
        chance, kept = self._system.chance, self._durable
        reachable = sorted(path for path in kept if all(parent in kept for parent in _parents(path)))
        files = [(path, kept[path]) for path in reachable]
        self._entries = {path: file and file.after_power_cut(chance) for path, file in files}
        self._durable = dict(self._entries)
        self._locks = {}

    def file(self, path: FilePath, *, make: bool = False) -> SimulatedFile:
        """The file at a path, made if asked to."""
        name = os.path.abspath(path)
        if make and name not in self._entries:
            if not self.is_dir(os.path.dirname(name)):
                raise FileNotFoundError(2, "No such directory", os.path.dirname(name))
            self._entries[name] = SimulatedFile()
        file = self._entries.get(name)
        if file is None:
            raise IsADirectoryError(21, "Is a directory", name) if name in self._entries else _missing(name)
        return file

    def open_append(self, path: FilePath, *, new: bool = False, mode: int = 0o666) -> AppendFile:
        if new and self.exists(path):
            raise FileExistsError(17, "File exists", os.fspath(path))
        return SimulatedAppendFile(os.fspath(path), self.file(path, make=True))

    def read_bytes(self, path: FilePath) -> bytes:
        return bytes(self.file(path).content)

    def write_bytes(self, path: FilePath, data: Content, *, mode: int = 0o666) -> None:
        file = self.file(path, make=True)
        file.truncate(0)
        file.write(data, 0)
        file.sync()

    def map(self, path: FilePath) -> pa.Buffer:
        return pa.py_buffer(self.read_bytes(path))

    def open_arrow(self, path: FilePath, *, memory_map: bool = True) -> pa.NativeFile:
        return pa.BufferReader(self.map(path))

    def exists(self, path: FilePath) -> bool:
        return os.path.abspath(path) in self._entries

    def is_dir(self, path: FilePath) -> bool:
        return self._entries.get(os.path.abspath(path), ...) is None

    def size(self, path: FilePath) -> int:
        return len(self.file(path).content)

    def list_dir(self, path: FilePath) -> list[str]:
        name = os.path.abspath(path)
        if not self.is_dir(name):
            raise _missing(name)
        return sorted(os.path.basename(one) for one in self._entries if os.path.dirname(one) == name != one)

    def glob(self, pattern: str) -> list[str]:
        parts = os.path.abspath(pattern).split("/")
        return sorted(path for path in self._entries if path != "/" and _matches(path.split("/"), parts))

    def rename(self, old: FilePath, new: FilePath) -> None:
        self._entries[os.path.abspath(new)] = self.file(old)
        del self._entries[os.path.abspath(old)]

    def rename_new(self, old: FilePath, new: FilePath) -> None:
        if self.exists(new):
            raise FileExistsError(17, "File exists", os.fspath(new))
        self.rename(old, new)

    def remove(self, path: FilePath) -> None:
        self.file(path)
        del self._entries[os.path.abspath(path)]

    def truncate(self, path: FilePath, size: int) -> None:
        self.file(path).truncate(size)

    def make_dirs(self, path: FilePath, *, mode: int = 0o777) -> None:
        name = os.path.abspath(path)
        if name not in self._entries:
            self.make_dirs(os.path.dirname(name))
            self._entries[name] = None
        elif not self.is_dir(name):
            raise FileExistsError(17, "File exists", name)

    def sync_dir(self, path: FilePath) -> None:
        directory = os.path.abspath(path)
        self.list_dir(directory)
        for state in (self._durable, self._entries):
            for name in [one for one in state if os.path.dirname(one) == directory != one]:
                if name in self._entries:
                    self._durable[name] = self._entries[name]
                else:
                    self._durable.pop(name)

    def lock(self, path: FilePath, note: str) -> Lock:
        name = os.path.abspath(path)
        self.file(name, make=True)
        if name in self._locks:
            raise LockHeldError(name, {"note": self._locks[name]}, "another holder in this simulation")
        self._locks[name] = note
        return SimulatedLock(self._locks, name)

    def vfs_name(self) -> str:
        name = f"dataflow-simulated-{id(self)}"
        if self._vfs is None:
            from dataflow.system.vfs import SimulatedVfs

            self._vfs = SimulatedVfs(name, self._system)
        return name


def _parents(path: str) -> list[str]:
    parent = os.path.dirname(path)
    return [] if parent == path else [parent, *_parents(parent)]


def _missing(path: str) -> FileNotFoundError:
    return FileNotFoundError(2, "No such file or directory", path)


def _matches(path: list[str], pattern: list[str]) -> bool:
    if not pattern or not path:
        return not pattern and not path
    if pattern[0] == "**":
        return _matches(path, pattern[1:]) or _matches(path[1:], pattern)
    return fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


class SimulatedClock:
    """Time that stands still until somebody waits."""

    def __init__(self) -> None:
        self._now = 0.0

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def monotonic(self) -> float:
        return self._now

    def wall_us(self) -> int:
        return SIMULATION_START_US + round(self._now * 1_000_000)


class SimulatedEvent:
    """A flag. Nobody else runs while one waits, so waiting only passes the time."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock, self._is_set = clock, False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            assert timeout is not None, "a simulation waits for ever: nobody is left to set this event"
            self._clock.advance(timeout)
        return self._is_set


class SimulatedMutex:
    """Always free: there is one thread. Taking it twice is the deadlock that it would be in life."""

    def __init__(self) -> None:
        self._held = False

    def __enter__(self) -> bool:
        assert not self._held, "taken twice by the one thread of a simulation"
        self._held = True
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False


class SimulatedScheduler:
    """One thread, which turns everything itself."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock

    @property
    def cores(self) -> int:
        return 1

    def start_thread(self, run: Callable[[], None], name: str) -> Thread:
        raise RuntimeError(f"a simulation has no threads; turn `{name}` from the one that is there")

    def sleep(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def event(self) -> Event:
        return SimulatedEvent(self._clock)

    def mutex(self) -> Mutex:
        return SimulatedMutex()


class SimulatedSystem:
    """A machine in memory. The same seed gives the same run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.clock = SimulatedClock()
        self.scheduler = SimulatedScheduler(self.clock)
        self.disk = SimulatedDisk(self)

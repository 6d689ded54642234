"""A whole machine in memory: time moves when somebody waits, chance comes from a seed, disks lose power.

The disk keeps two states: what programs see, and what a power cut would leave (the bytes synced, the names whose
directory was synced). There is one thread: whenever it waits, it turns what would have been the others, in an order
that the seed decides, so a run can be repeated exactly. `trace` is a hash of all that happened.
"""

from __future__ import annotations

import fnmatch
import os
import random
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow as pa
import xxhash

from dataflow.system.contract import AppendFile, Content, Event, FilePath, Lock, LockHeldError, Mutex, Thread

if TYPE_CHECKING:
    import apsw

SIMULATION_START_US = 1_700_000_000_000_000
"""Wall clock at the start of every simulation: a day in 2023, so that times look like times."""


class SimulatedFile:
    """A file's bytes: as they are, and as they would be after a power cut. `changes` is told of each change,
    `now_us` tells when it is."""

    def __init__(self, changes: Callable[[str], None] = lambda _: None, now_us: Callable[[], int] = lambda: 0) -> None:
        self.content = bytearray()
        self.durable = b""
        self.changes, self.now_us = changes, now_us
        self.modified_us = now_us()

    def write(self, data: Content, position: int) -> None:
        self.changes("write")
        self.modified_us = self.now_us()
        if position > len(self.content):
            self.content.extend(bytes(position - len(self.content)))
        self.content[position : position + memoryview(data).nbytes] = memoryview(data).tobytes()

    def truncate(self, size: int) -> None:
        self.changes("truncate")
        self.modified_us = self.now_us()
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def sync(self) -> None:
        self.changes("sync")
        self.durable = bytes(self.content)

    def after_power_cut(self, chance: random.Random) -> SimulatedFile:
        """The file with what was synced, and some prefix of what was appended after it."""
        kept = self.durable
        if self.content[: len(kept)] == kept:
            kept = bytes(self.content[: chance.randint(len(kept), len(self.content))])
        file = SimulatedFile(self.changes, self.now_us)
        file.content, file.durable, file.modified_us = bytearray(kept), kept, self.modified_us
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

    def _changes(self, kind: str, path: str) -> None:
        self._system.note(f"{kind} {path}")

    def kill_processes(self) -> None:
        """All processes are gone; what they had written is there."""
        self._locks = {}

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
            self._changes("create", name)
            self._entries[name] = SimulatedFile(partial(self._changes, path=name), self._system.clock.wall_us)
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

    def modified_ns(self, path: FilePath) -> int:
        return self.file(path).modified_us * 1000

    def stamp(self, path: FilePath) -> object:
        return self.read_bytes(path) if self.exists(path) else None

    def list_dir(self, path: FilePath) -> list[str]:
        name = os.path.abspath(path)
        if not self.is_dir(name):
            raise _missing(name)
        return sorted(os.path.basename(one) for one in self._entries if os.path.dirname(one) == name != one)

    def glob(self, pattern: str) -> list[str]:
        parts = os.path.abspath(pattern).split("/")
        return sorted(path for path in self._entries if path != "/" and _matches(path.split("/"), parts))

    def rename(self, old: FilePath, new: FilePath) -> None:
        self._changes("rename", os.path.abspath(new))
        self._entries[os.path.abspath(new)] = self.file(old)
        del self._entries[os.path.abspath(old)]

    def rename_new(self, old: FilePath, new: FilePath) -> None:
        if self.exists(new):
            raise FileExistsError(17, "File exists", os.fspath(new))
        self.rename(old, new)

    def remove(self, path: FilePath) -> None:
        self.file(path)
        self._changes("remove", os.path.abspath(path))
        del self._entries[os.path.abspath(path)]

    def truncate(self, path: FilePath, size: int) -> None:
        self.file(path).truncate(size)

    def make_dirs(self, path: FilePath, *, mode: int = 0o777) -> None:
        name = os.path.abspath(path)
        if name not in self._entries:
            self.make_dirs(os.path.dirname(name))
            self._changes("make_dirs", name)
            self._entries[name] = None
        elif not self.is_dir(name):
            raise FileExistsError(17, "File exists", name)

    def sync_dir(self, path: FilePath) -> None:
        directory = os.path.abspath(path)
        self.list_dir(directory)
        self._changes("sync_dir", directory)
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
    """A flag. Who waits for it lets the others have some turns; when none has anything to do, the time passes."""

    def __init__(self, scheduler: SimulatedScheduler) -> None:
        self._scheduler, self._is_set = scheduler, False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        scheduler = self._scheduler
        scheduler.turn_others(TURNS_MAX)
        until = None if timeout is None else scheduler.clock.monotonic() + timeout
        while not self._is_set and (until is None or scheduler.clock.monotonic() < until):
            if not scheduler.turn_others(1):
                assert until is not None, "a simulation waits for ever: nobody is left to set this event"
                scheduler.clock.advance(max(until - scheduler.clock.monotonic(), 0.0))
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


TURNS_MAX = 8
"""Of others, while somebody waits for what has happened already: real threads would not hear of it at once either."""
TURN_SECONDS_MAX = 0.002
"""A turn takes up to so long, by chance."""
IDLE_TURNS = 3
"""So many turns of each that change nothing: then nobody has anything to do."""


class SimulatedThread:
    """What would be a thread: it has turns, until it has nothing more to do."""

    def __init__(self, name: str, turn: Callable[[], bool]) -> None:
        self._name, self.turn = name, turn
        self.is_over = False

    @property
    def name(self) -> str:
        return self._name

    def is_alive(self) -> bool:
        return not self.is_over

    def join(self, timeout: float | None = None) -> None:
        """It has been told to stop, and hears of it in its next turn."""
        while self.turn():
            pass
        self.is_over = True


class SimulatedScheduler:
    """One thread, which turns everything itself, in an order that comes from a seed."""

    def __init__(
        self, clock: SimulatedClock, chance: random.Random, note: Callable[[str], None] = lambda _: None
    ) -> None:
        self.clock, self._chance, self._note = clock, chance, note
        self._threads: list[SimulatedThread] = []
        self._is_turning = False
        self._idle = 0

    @property
    def cores(self) -> int:
        return 1

    def start_thread(self, run: Callable[[], None], name: str, turn: Callable[[], bool]) -> Thread:
        thread = SimulatedThread(name, turn)
        self._threads.append(thread)
        self._idle = 0
        return thread

    def forget_threads(self) -> None:
        """The process has ended, and its threads with it."""
        self._threads = []

    def turn_others(self, turns_max: int) -> bool:
        """Some turns of threads drawn by lot; false when none has anything to do."""
        if self._is_turning:  # one of them waits: time passes for it
            return False
        for _ in range(self._chance.randint(1, turns_max)):
            self._threads = [thread for thread in self._threads if not thread.is_over]
            if not self._threads or self._idle >= IDLE_TURNS * len(self._threads):
                self._idle = 0
                return False
            thread = self._chance.choice(self._threads)
            before = self.clock.monotonic()
            self._is_turning = True
            try:
                moved = thread.turn()
            finally:
                self._is_turning = False
            self._note(f"{thread.name} {moved}")
            self._idle = 0 if moved else self._idle + 1
            if moved and self.clock.monotonic() == before:
                self.clock.advance(self._chance.random() * TURN_SECONDS_MAX)
        return True

    def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def event(self) -> Event:
        return SimulatedEvent(self)

    def mutex(self) -> Mutex:
        return SimulatedMutex()


class SimulatedSystem:
    """A machine in memory. The same seed gives the same run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.clock = SimulatedClock()
        self._trace = xxhash.xxh3_64()
        self.scheduler = SimulatedScheduler(self.clock, random.Random(seed + 1), self.note)
        self.disk = SimulatedDisk(self)

    def note(self, what: str) -> None:
        """Something happened."""
        self._trace.update(f"{self.clock.monotonic():.6f} {what}\n".encode())

    @property
    def trace(self) -> str:
        """Equal for two runs in which the same happened, at the same times and in the same order."""
        return self._trace.hexdigest()

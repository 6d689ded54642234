"""Every disk that a power cut could have left, made from a recording of what was written.

After a power cut a file has what was synced; of what was written since, any part may be there: a write whole, torn at
a byte or a sector, as zeros, or not at all, whatever became of the writes before and after it. A name has its last
synced state, or any later one. `fsync` of a file makes its bytes durable and not its name; `fsync` of a directory its
names. The hard part is the number: all subsets are too many, so at each moment of the recording the telling ones are
made (all, none, all but one, only one, the last write torn), and as many others as chance gives. Equal images are
made once.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from dataflow.system import (
    Create,
    MakeDir,
    Operation,
    RecordingSystem,
    Remove,
    Rename,
    Sync,
    SyncDir,
    System,
    Truncate,
    Write,
)
from dataflow.torture.frame import Tally

SECTOR_BYTES = 512
"""What a disk writes at once, if it keeps any promise at all."""
SINGLED_OUT_MAX = 10
"""Of the latest changes that are not durable, each is once the only one missing and once the only one there."""
MIXTURES_PER_MOMENT = 4
PASSES = 8
"""The moments are visited in so many rounds, so that a run that ends early has seen all parts of the recording."""
WAL_SUFFIXES = ("-wal", "-journal")
"""SQLite's own files. The first sync of a new one syncs its directory too, inside of SQLite's VFS, unseen here."""


class Acks:
    """What a workload was promised, and when: `note` anything, at the moment that it holds from."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._notes: list[tuple[int, object]] = []

    def note(self, what: object) -> None:
        self._notes.append((len(self._operations), what))

    def until(self, moment: int) -> list[object]:
        """What had been noted when so many operations had been made."""
        return [what for at, what in self._notes if at <= moment]


Workload = Callable[[System, Path, Acks], None]
"""Does something with the disk of a system, below a directory that is there and empty."""
Check = Callable[[Path, list[object], Tally, str], None]
"""Looks at the directory after a power cut, and at what had been noted by then; counts damages."""


@dataclass
class Recording:
    """What a workload did to the directory `root`."""

    root: Path
    operations: list[Operation]
    acks: Acks


def record(workload: Workload, system: System, root: Path) -> Recording:
    """Run a workload in an empty directory and keep what it did to the disk."""
    recording = RecordingSystem(system)
    acks = Acks(recording.operations)
    workload(recording, root, acks)
    return Recording(root, list(recording.operations), acks)


# ── one moment: what is durable, what is not ──


Part = tuple[int, int, bool]
"""Of a write: the bytes [from, until) are there; the others of it are zeros (True) or as before (False)."""
NONE: Part = (0, 0, False)


class Inode:
    """A file's bytes: those that are durable, and the changes since."""

    def __init__(self) -> None:
        self.durable = b""
        self.pending: list[Write | Truncate] = []

    def content(self, parts: Sequence[Part | None]) -> bytes:
        """The bytes with some of the pending changes; None stands for a whole one."""
        content = bytearray(self.durable)
        for change, part in zip(self.pending, parts, strict=True):
            if isinstance(change, Truncate):
                if part is None:
                    _resize(content, change.size)
            else:
                _put(content, change, part, len(self.durable))
        return bytes(content)


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def _put(content: bytearray, write: Write, part: Part | None, durable_bytes: int) -> None:
    start, until, is_zeroed = (0, len(write.data), False) if part is None else part
    if is_zeroed:  # where there were bytes before, a write that is lost leaves those, never zeros
        _resize(content, max(len(content), write.position + len(write.data)))
        first = max(write.position, durable_bytes)
        content[first : write.position + len(write.data)] = bytes(max(0, write.position + len(write.data) - first))
    if until > start:
        _resize(content, max(len(content), write.position + until))
        content[write.position + start : write.position + until] = write.data[start:until]


Names = dict[str, "Inode | None"]
"""Files by path; a directory has no inode."""


@dataclass
class Moment:
    """The disk as programs see it, and as it is durable."""

    root: str
    """What was there, durable and empty, when the recording began."""
    names: Names = field(default_factory=dict)
    durable_names: Names = field(default_factory=dict)
    pending_names: list[tuple[Operation, Inode | None]] = field(default_factory=list)
    """Changes of names that no sync of their directory followed; a new file with its inode."""

    def apply(self, operation: Operation) -> None:
        match operation:
            case Create(path) if (inode := self.names.get(path)) is not None:
                inode.pending.append(Truncate(path, 0))  # in the place of an older one
            case Create(path):
                self._rename((operation, Inode()))
            case Write(path) | Truncate(path):
                self._inode(path).pending.append(operation)
            case Sync(path):
                inode = self._inode(path)
                inode.durable = inode.content([None] * len(inode.pending))
                inode.pending = []
                if path.endswith(WAL_SUFFIXES) and self.durable_names.get(path) is not inode:
                    self._sync_dir(os.path.dirname(path))
            case SyncDir(path):
                self._sync_dir(path)
            case MakeDir(path):
                for missing in self._missing(path):
                    self._rename((MakeDir(missing), None))
            case Remove() | Rename():
                self._rename((operation, None))

    def _missing(self, path: str) -> list[str]:
        """The directory and those above it that are not there, the highest first."""
        if path == self.root or path in self.names:
            return []
        return [*self._missing(os.path.dirname(path)), path]

    def _inode(self, path: str) -> Inode:
        inode = self.names[path]
        assert inode is not None, f"{path} is a directory"
        return inode

    def _rename(self, change: tuple[Operation, Inode | None]) -> None:
        rename(self.names, change)
        self.pending_names.append(change)

    def _sync_dir(self, directory: str) -> None:
        rest = []
        for change in self.pending_names:
            if directory in {os.path.dirname(path) for path in _paths(change[0])}:
                rename(self.durable_names, change)
            else:
                rest.append(change)
        self.pending_names = rest


def rename(names: Names, change: tuple[Operation, Inode | None]) -> None:
    """Apply a change of names, as far as what it changes is there."""
    operation, inode = change
    match operation:
        case Create(path) | MakeDir(path):
            names[path] = inode
        case Remove(path):
            names.pop(path, None)
        case Rename(old, new) if old in names:
            names[new] = names.pop(old)


def _paths(operation: Operation) -> tuple[str, ...]:
    return (operation.old, operation.new) if isinstance(operation, Rename) else (operation.path,)


# ── the images of a moment ──


@dataclass(frozen=True)
class Image:
    """A legal disk after a power cut: directories and the bytes of files, by path."""

    moment: int
    what: str
    """How it came to be, for whoever looks for the bug."""
    names: Names
    contents: dict[str, bytes]

    def digest(self) -> int:
        """Equal images have equal digests."""
        hashed = xxhash.xxh3_64()
        for path in sorted(self.names):
            hashed.update(path.encode() + b"\0")
            if path in self.contents:
                hashed.update(xxhash.xxh3_128_digest(self.contents[path]))
        return hashed.intdigest()

    def make(self, root: Path, recorded_root: Path) -> None:
        """Write it below `root`, which is there and empty, in the place of the directory that was recorded."""
        for path in sorted(self.names, key=len):
            place = root / os.path.relpath(path, recorded_root)
            if path in self.contents:
                place.write_bytes(self.contents[path])
            else:
                place.mkdir()


Choice = tuple[str, dict[int, Part]]
"""What is not there: by the number of a pending change, the part that is. Changes not named are there."""


def images(recording: Recording, seed: int, mixtures: int = MIXTURES_PER_MOMENT) -> Iterator[tuple[Image, int]]:
    """The distinct legal disks of a recording with their digests, from its first moment to its last."""
    chance, seen = random.Random(seed), set[tuple[int, int]]()
    passes = list(range(PASSES))
    chance.shuffle(passes)
    for one in passes:
        moment = Moment(str(recording.root))
        for number in range(len(recording.operations) + 1):
            if number:
                moment.apply(recording.operations[number - 1])
            if number % PASSES == one:
                noted = len(recording.acks.until(number))
                for what, missing in _choices(moment, chance, mixtures):
                    image = _image(moment, number, what, missing)
                    digest = image.digest()
                    if (digest, noted) not in seen:
                        seen.add((digest, noted))
                        yield image, digest


def _choices(moment: Moment, chance: random.Random, mixtures: int) -> Iterator[Choice]:
    inodes = _dirty(moment)
    writes = [change for inode in inodes for change in inode.pending]
    count = len(writes) + len(moment.pending_names)
    everything = range(count)
    yield "all is there", {}
    yield "nothing is there that was not synced", dict.fromkeys(everything, NONE)
    yield "no name is there that was not synced", dict.fromkeys(range(len(writes), count), NONE)
    yield "no byte is there that was not synced", dict.fromkeys(range(len(writes)), NONE)
    last_writes = _last(inodes)
    names = list(range(len(writes), count))[-SINGLED_OUT_MAX:]
    for one in {*last_writes, *names}:
        yield f"only change {one} of {count} is missing", {one: NONE}
        yield f"only change {one} of {count} is there", {other: NONE for other in everything if other != one}
    for one in last_writes[-2:]:
        change = writes[one]
        if isinstance(change, Write):
            for part in _torn(len(change.data), chance):
                yield f"change {one} of {count} is torn: {part}", {one: part}
    for _ in range(mixtures if count > 1 else 0):
        yield "a mixture", _mixture(writes, count, chance)


def _dirty(moment: Moment) -> list[Inode]:
    """The inodes with pending changes, under whatever name, each once."""
    named = [*moment.names.values(), *moment.durable_names.values(), *(inode for _, inode in moment.pending_names)]
    unique = {id(inode): inode for inode in named if inode is not None and inode.pending}
    return list(unique.values())


def _last(inodes: Sequence[Inode]) -> list[int]:
    """The numbers of the last pending changes of each inode, at most so many in all."""
    numbers: list[int] = []
    first = 0
    for inode in inodes:
        own = range(first, first + len(inode.pending))
        numbers += own[-max(2, SINGLED_OUT_MAX // len(inodes)) :]
        first += len(inode.pending)
    return numbers


def _torn(length: int, chance: random.Random) -> list[Part]:
    ends = {1, length // 2, length - 1, chance.randrange(length)} if length > 1 else set()
    parts = [(0, end, is_zeroed) for end in sorted(ends) for is_zeroed in (False, True)]
    sectors = range(SECTOR_BYTES, length, SECTOR_BYTES)
    if sectors:
        cut_at = chance.choice(sectors)
        parts += [(0, cut_at, False), (cut_at, length, False), (cut_at, length, True)]
    return [*parts, (0, 0, True)]


def _mixture(writes: Sequence[Write | Truncate], count: int, chance: random.Random) -> dict[int, Part]:
    missing: dict[int, Part] = {}
    share = chance.random()
    for number in range(count):
        if chance.random() < share:
            change = writes[number] if number < len(writes) else None
            can_tear = isinstance(change, Write) and chance.random() < 0.3
            missing[number] = chance.choice(_torn(len(change.data), chance)) if can_tear else NONE  # type: ignore[union-attr]
    return missing


def _image(moment: Moment, number: int, what: str, missing: dict[int, Part]) -> Image:
    parts_of: dict[int, list[Part | None]] = {}
    first = 0
    for inode in _dirty(moment):
        numbers = range(first, first + len(inode.pending))
        parts_of[id(inode)] = [missing.get(one) for one in numbers]
        first += len(inode.pending)
    names = dict(moment.durable_names)
    for position, change in enumerate(moment.pending_names, first):
        if position not in missing:
            rename(names, change)
    reachable = {path: inode for path, inode in names.items() if _is_reachable(path, names, moment.root)}
    contents = {
        path: inode.content(parts_of[id(inode)]) if inode.pending else inode.durable
        for path, inode in reachable.items()
        if inode is not None
    }
    return Image(number, what, reachable, contents)


def _is_reachable(path: str, names: Names, root: str) -> bool:
    """Whether all directories above it are there."""
    parent = os.path.dirname(path)
    return path == root or parent == root or (names.get(parent, ...) is None and _is_reachable(parent, names, root))

"""What lies in a store's directories beside what the catalog lists: names, permissions, lock files.

None of this is damage: readers go by the catalog alone, and what a writer left unpublished is cut or removed by the
next one. What the format does not know, or what others than the owner may read, is told as a warning.

Part of the verifier: imports nothing of the store (see __init__.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from dataflow.state.verify.files import Entry, Finding, StoreFiles, Unreadable

DIRECTORY_MODE, FILE_MODE = 0o700, 0o600
LOCK_BYTES_MAX = 64 << 10
LOCK_MEMBERS = {"pid", "boot", "note"}
ROOT_FILES = {"catalog.db", "catalog.db-wal", "catalog.db-shm", "store.lock"}
ROOT_DIRECTORIES = {"locks", "topics", "snapshots"}
_TOPIC = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,200}")
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_SEGMENT = re.compile(r"[0-9]{20}-[1-9][0-9]*\.arrow")
_FRAMES = re.compile(r"[1-9][0-9]*\.state")
_QUOTED = re.compile(r"(?:[a-z0-9._-]|%[0-9A-F]{2})+")


def lower(name: str) -> str:
    """A topic's name as `topics.folded` has it; names are ASCII."""
    return name.lower()


def quoted(pipeline: str) -> str:
    """The name of a pipeline as that of a file or directory.

    >>> quoted("Fares/ü"), quoted("..")
    ('%46ares%2F%C3%BC', '%2E.')
    """
    plain = b"abcdefghijklmnopqrstuvwxyz0123456789._-"
    name = "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in pipeline.encode("utf-8", "replace"))
    return "%2E" + name[1:] if name and not name.strip(".") else name


def is_quoted(name: str) -> bool:
    """Whether a pipeline can be called so that this is its quoted name."""
    if not _QUOTED.fullmatch(name):
        return False
    raw = re.sub(rb"%([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), name.encode())
    try:
        return quoted(raw.decode()) == name
    except UnicodeDecodeError:
        return False


def unexpected(files: StoreFiles) -> Iterator[Finding]:
    """Everything in the store's directories that is not as the format says."""
    if files.mode != DIRECTORY_MODE:
        yield _mode(".", files.mode, DIRECTORY_MODE)
    yield from _root(files)
    yield from _locks(files)
    yield from _topics(files)
    yield from _snapshots(files)


def _root(files: StoreFiles) -> Iterator[Finding]:
    names = set()
    for entry in _entries(files):
        names.add(entry.name)
        if entry.name in ROOT_DIRECTORIES:
            yield from _is_a("directory", entry)
        elif entry.name in ROOT_FILES:
            yield from _is_a("file", entry)
        else:
            yield _unknown(entry.name)
    if "store.lock" not in names:
        yield Finding(kind="warning", file="store.lock", what="is missing; lock files are never removed")
    else:
        yield from _lock_content(files, "store.lock")


def _locks(files: StoreFiles) -> Iterator[Finding]:
    for entry in _entries(files, "locks"):
        path = f"locks/{entry.name}"
        named = re.fullmatch(r"pipeline-(.+)\.lock", entry.name, re.DOTALL)
        if named is None or not is_quoted(named[1]):
            yield _unknown(path)
            continue
        yield from _is_a("file", entry, path)
        yield from _lock_content(files, "locks", entry.name)


def _topics(files: StoreFiles) -> Iterator[Finding]:
    topics = list(_entries(files, "topics"))
    for first, second in case_clashes([entry.name for entry in topics]):
        what = f"{first!r} and {second!r} differ in case only"
        yield Finding(kind="warning", file=f"topics/{second}", what=what)
    for topic in topics:
        if not _TOPIC.fullmatch(topic.name):
            yield _unknown(f"topics/{topic.name}")
            continue
        yield from _is_a("directory", topic, f"topics/{topic.name}")
        for partition in _entries(files, "topics", topic.name):
            path = f"topics/{topic.name}/{partition.name}"
            if not _NUMBER.fullmatch(partition.name):
                yield _unknown(path)
                continue
            yield from _is_a("directory", partition, path)
            yield from _partition(files, topic.name, partition.name)


def _partition(files: StoreFiles, topic: str, partition: str) -> Iterator[Finding]:
    for entry in _entries(files, "topics", topic, partition):
        path = f"topics/{topic}/{partition}/{entry.name}"
        if entry.name != "writer.lock" and not _SEGMENT.fullmatch(entry.name):
            yield _unknown(path)
            continue
        yield from _is_a("file", entry, path)
        if entry.name == "writer.lock":
            yield from _lock_content(files, "topics", topic, partition, entry.name)


def _snapshots(files: StoreFiles) -> Iterator[Finding]:
    for pipeline in _entries(files, "snapshots"):
        path = f"snapshots/{pipeline.name}"
        if not is_quoted(pipeline.name):
            yield _unknown(path)
            continue
        yield from _is_a("directory", pipeline, path)
        for entry in _entries(files, "snapshots", pipeline.name):
            if not _FRAMES.fullmatch(entry.name):
                yield _unknown(f"{path}/{entry.name}")
            else:
                yield from _is_a("file", entry, f"{path}/{entry.name}")


def case_clashes(names: list[str]) -> Iterator[tuple[str, str]]:
    """Names that some file systems cannot tell apart."""
    seen: dict[str, str] = {}
    for name in names:
        if (first := seen.setdefault(lower(name), name)) != name:
            yield first, name


def _lock_content(files: StoreFiles, *parts: str) -> Iterator[Finding]:
    """Empty, or whom the lock belongs to. A holder that is writing just now is no finding: it is read twice."""
    path = "/".join(parts)
    contents = []
    for _ in range(2):
        try:
            with files.file(*parts) as file:
                if file.size > LOCK_BYTES_MAX:
                    yield Finding(kind="warning", file=path, what=f"a lock file of {file.size} bytes")
                    return
                contents.append(file.read(0, file.size) if file.size else b"")
        except Unreadable:
            return  # what kind of file it is was told; it became shorter when the holder released it
    if contents[0] == contents[1] and contents[0] and not _is_holder(contents[0]):
        yield Finding(kind="warning", file=path, what="does not tell who holds or held the lock")


def _is_holder(content: bytes) -> bool:
    try:
        holder = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(holder, dict) and set(holder) == LOCK_MEMBERS and type(holder["pid"]) is int


def _entries(files: StoreFiles, *parts: str) -> list[Entry]:
    try:
        return files.entries(*parts)
    except Unreadable:
        return []  # missing (an empty store has no topics), or no directory, which the level above tells


def _is_a(kind: str, entry: Entry, path: str | None = None) -> Iterator[Finding]:
    path = path or entry.name
    mode = DIRECTORY_MODE if kind == "directory" else FILE_MODE
    if entry.kind != kind:
        yield Finding(kind="warning", file=path, what=f"is no {kind}")
    elif entry.mode != mode:
        yield _mode(path, entry.mode, mode)


def _mode(path: str, found: int, expected: int) -> Finding:
    return Finding(kind="warning", file=path, what=f"has the permissions {found:04o}, not {expected:04o}")


def _unknown(path: str) -> Finding:
    return Finding(kind="warning", file=path, what="is not known to the format, and was left alone")

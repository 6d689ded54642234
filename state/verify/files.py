"""The files of a store as the verifier sees them: bytes that nobody vouches for.

A length from the catalog, a file that is a symlink, a pipe or a directory, a message that claims to be longer than what
holds it: each is the answer "cannot be read, because …" and never an exception of Python or a signal. So every path is
walked from the store's directory without following links, and nothing is allocated by a length that was not
held against the file's size.

Part of the verifier: imports nothing of the store (see __init__.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import xxhash

PIECE_BYTES = 1 << 20
"""Read at a time when only the checksum is asked for."""
WHOLE_BYTES_MAX = 64 << 20
"""Longer stretches are hashed piece by piece before memory is taken for the whole."""
ENTRIES_MAX = 1_000_000
"""Of one directory; a store with more in one is not checked further there."""
UNSIGNED_64 = 2**64
"""Added to what SQLite keeps as a signed number."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as FORMAT.md says; "damage" is what readers or recovery cannot live with."""

    kind: Literal["damage", "warning"]
    file: str
    """Relative to the store; `catalog.db` for what its tables say."""
    what: str
    position: int | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    epoch: int | None = None


@dataclass
class Findings:
    """What was found so far."""

    found: list[Finding] = field(default_factory=list)

    def damage(self, file: str, what: str, **where: int | str | None) -> None:
        self.found.append(Finding(kind="damage", file=file, what=what, **where))  # type: ignore[arg-type] # few keys

    def warn(self, file: str, what: str, **where: int | str | None) -> None:
        self.found.append(Finding(kind="warning", file=file, what=what, **where))  # type: ignore[arg-type] # few keys


class Unreadable(Exception):
    """What is asked for is not there in the way the format says; the text tells how."""


class File:
    """One regular file, open for reading."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.stat = os.fstat(descriptor)
        self.size = self.stat.st_size

    def read(self, position: int, length: int) -> bytes:
        """Exactly these bytes, or Unreadable."""
        self._must_hold(position, length)
        pieces = []
        end = position + length
        while position < end:
            piece = self._piece(position, end - position)
            pieces.append(piece)
            position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def hashed(self, position: int, length: int) -> int:
        """XXH3-64 of exactly these bytes, with little memory."""
        self._must_hold(position, length)
        digest = xxhash.xxh3_64()
        end = position + length
        while position < end:
            piece = self._piece(position, min(PIECE_BYTES, end - position))
            digest.update(piece)
            position += len(piece)
        return digest.intdigest()

    def checked(self, position: int, length: int, xxh3: int) -> bytes:
        """These bytes, once their checksum agrees."""
        if length > WHOLE_BYTES_MAX and self.hashed(position, length) != xxh3:
            raise Unreadable("the bytes do not have the catalog's checksum")
        content = self.read(position, length)
        if xxhash.xxh3_64_intdigest(content) != xxh3:
            raise Unreadable("the bytes do not have the catalog's checksum")
        return content

    def close(self) -> None:
        os.close(self._descriptor)

    def _must_hold(self, position: int, length: int) -> None:
        size = os.fstat(self._descriptor).st_size  # it may have grown since
        if position < 0 or length < 0 or position + length > size:
            raise Unreadable(f"{length} bytes at {position} reach beyond the end of the file ({size} bytes)")

    def _piece(self, position: int, length: int) -> bytes:
        try:
            piece = os.pread(self._descriptor, length, position)
        except OSError as error:
            raise Unreadable(f"cannot be read at {position}: {error.strerror}") from None
        if not piece:
            raise Unreadable(f"became shorter than {position + 1} bytes while it was read")
        return piece


@dataclass(frozen=True)
class Entry:
    """A name in a directory."""

    name: str
    kind: Literal["file", "directory", "other"]
    mode: int
    """Permission bits."""


class StoreFiles:
    """A store's directory; every name below it is reached without following a link."""

    def __init__(self, root: Path) -> None:
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise Unreadable(f"the store's directory cannot be opened: {_reason(error)}") from None
        self.mode = stat.S_IMODE(os.fstat(self._root).st_mode)

    def close(self) -> None:
        os.close(self._root)

    @contextmanager
    def file(self, *parts: str) -> Iterator[File]:
        """Open a regular file for as long as the block lasts."""
        file = self.opened(*parts)
        try:
            yield file
        finally:
            file.close()

    def opened(self, *parts: str) -> File:
        """Open a regular file; the caller closes it."""
        # Without O_NONBLOCK a pipe of that name would be waited for.
        descriptor = self._open(parts, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Unreadable("is not a regular file")
        return File(descriptor)

    def stat(self, *parts: str) -> os.stat_result | None:
        """Of a name, not of what it links to; None when there is none."""
        try:
            folder = self._open(parts[:-1], os.O_RDONLY | os.O_DIRECTORY)
        except Unreadable:
            return None
        try:
            return os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        except (OSError, ValueError):
            return None
        finally:
            os.close(folder)

    def entries(self, *parts: str) -> list[Entry]:
        """What a directory holds, by name."""
        folder = self._open(parts, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = os.listdir(folder)
            if len(names) > ENTRIES_MAX:
                raise Unreadable(f"holds {len(names)} names, more than the {ENTRIES_MAX} that are looked at")
            return [entry for name in sorted(names) if (entry := _entry(folder, name)) is not None]
        except OSError as error:
            raise Unreadable(f"cannot be listed: {_reason(error)}") from None
        finally:
            os.close(folder)

    def _open(self, parts: tuple[str, ...], flags: int) -> int:
        """Descriptor of the last part."""
        at = os.dup(self._root)
        for number, name in enumerate(parts, start=1):
            last = number == len(parts)
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                os.close(at)
                raise Unreadable(f"{name!r} is no name of a file")
            try:
                wanted = flags if last else os.O_RDONLY | os.O_DIRECTORY
                below = os.open(name, wanted | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            except (OSError, ValueError) as error:
                raise Unreadable(_reason(error) if last else f"{name}: {_reason(error)}") from None
            finally:
                os.close(at)
            at = below
        return at


def _entry(folder: int, name: str) -> Entry | None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:  # removed since it was listed
        return None
    kind: Literal["file", "directory", "other"] = (
        "file" if stat.S_ISREG(found.st_mode) else "directory" if stat.S_ISDIR(found.st_mode) else "other"
    )
    return Entry(name, kind, stat.S_IMODE(found.st_mode))


def _reason(error: OSError | ValueError) -> str:
    match getattr(error, "errno", None):
        case errno.ENOENT:
            return "is missing"
        case errno.ELOOP:
            return "is a symbolic link"
        case errno.ENOTDIR:
            return "is not a directory"
        case _:
            return f"cannot be opened: {getattr(error, 'strerror', None) or error}"


def short(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values[:10])) + (", …" if len(values) > 10 else "") if values else "none"

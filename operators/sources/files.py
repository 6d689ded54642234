"""What file sources share: which files a path means, in which order, and what makes them the same in another run.

The hard part is order: however the files are found, they are one partition, and its order decides which rows are
late. So a pattern means its matches by full path, and a list means its own order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import pyarrow as pa
import xxhash

from dataflow.errors import ConnectorError, PlanError, TypeMismatchError
from dataflow.schema import column_not_found
from dataflow.system import System

FilePaths = str | PathLike[str] | Sequence[str | PathLike[str]]
PREFIX_BYTES = 65_536
"""Hashed to tell whether a file is still the one that was read before."""


class Files:
    """A path, a glob or a list: one partition, in the order of the full paths (a list in its own order).

    `suffix` is that of the files one would expect; errors show it.
    """

    def __init__(self, paths: FilePaths, suffix: str) -> None:
        given = [paths] if isinstance(paths, str | PathLike) else list(paths)
        if not given or not all(isinstance(one, str | PathLike) for one in given):
            raise TypeMismatchError(f"a path, a glob or a list of paths is needed, got {paths!r}")
        self.given = tuple(os.fspath(one) for one in given)
        self.suffix = suffix

    @property
    def name(self) -> str:
        """The name of a source without one of its own: the file's without its endings, or the directory's."""
        stem = Path(self.given[0]).name.split(".")[0]
        return stem if stem and not _is_pattern(stem) else Path(self.given[0]).parent.name or "files"

    def paths(self, system: System) -> list[str]:
        """The files that there are now; raises when one is missing or a pattern matches none."""
        found = [path for one in self.given for path in self._matches(one, system)]
        if len(set(found)) < len(found):
            twice = next(path for path in found if found.count(path) > 1)
            raise ConnectorError(f"{twice} is listed twice", help="its rows would be read twice: leave one out")
        return found

    def _matches(self, one: str, system: System) -> list[str]:
        disk = system.disk
        if disk.is_dir(one):
            pattern = os.path.join(one, f"*{self.suffix}")
            raise ConnectorError(f"{one} is a directory", help=f'read its files by a pattern, as in "{pattern}"')
        if disk.exists(one):  # also a file whose name looks like a pattern
            return [one]
        if not _is_pattern(one):
            raise ConnectorError(f"there is no file {one}", help=f"relative paths start at {os.getcwd()}")
        matches = [path for path in disk.glob(one) if not disk.is_dir(path)]
        if not matches:
            raise ConnectorError(f"no file matches {one}", help=f"relative paths start at {os.getcwd()}")
        return sorted(matches, key=os.path.abspath)

    def identity(self) -> tuple[object, ...]:
        """What names the files; not what they are, since they may grow."""
        return self.given

    def marks(self, paths: Sequence[str], system: System, after: FileMark | None = None) -> Marks:
        """How each of these files is known again; `after` is the mark where reading goes on."""
        return Marks(paths, system, after)

    def check(self, mark: FileMark, paths: Sequence[str], system: System) -> int:
        """The number of the marked file among the files of today; raises when what was read is not there any more, or
        has changed, or when files have come before it, which would never be read."""
        if mark.path not in paths:
            raise ConnectorError(
                f"{mark.path}, in which the last run stopped reading, is not there any more",
                help="restore it; or start from the beginning with `restart`",
            )
        number = paths.index(mark.path)
        if number != mark.number or Marks(paths, system).before(number) != mark.before:
            raise ConnectorError(
                f"the files before {mark.path} are not those that were read ({mark.number} then, {number} now), or one "
                "of them has another size: what came to them would never be read",
                help="write only to the last file, and give new files names that sort behind it; or start from the "
                "beginning with `restart`",
            )
        content = system.disk.map(mark.path)
        if content.size < mark.prefix_bytes or _prefix(content, mark.prefix_bytes) != (mark.prefix_bytes, mark.prefix):
            raise ConnectorError(
                f"{mark.path} is another file than the one that was read: its beginning has changed",
                help="restore it; or start from the beginning with `restart`",
            )
        return number


@dataclass(frozen=True, slots=True)
class FileMark:
    """A file in which reading may go on, and how it is known again."""

    path: str
    number: int
    before: str
    """A hash of the paths before it."""
    prefix_bytes: int
    prefix: str
    """A hash of so many bytes at its beginning."""


class Marks:
    """The marks of some files, made one after the other."""

    def __init__(self, paths: Sequence[str], system: System, after: FileMark | None = None) -> None:
        self._paths, self._system = paths, system
        self._before = {0: _hash_of(b"")} if after is None else {after.number: after.before}

    def before(self, number: int) -> str:
        """A hash of the paths before the file of this number, and of their sizes as they were when they were read."""
        if number not in self._before:
            for earlier in range(max(known for known in self._before if known < number), number):
                self._add(earlier, self._system.disk.size(self._paths[earlier]))
        return self._before[number]

    def _add(self, number: int, size: int) -> None:
        told = f"{self._before[number]}{self._paths[number]}\0{size}"
        self._before.setdefault(number + 1, _hash_of(told.encode()))

    def of(self, number: int) -> FileMark:
        """What a later run wants to find unchanged when it goes on in the file of this number."""
        content, before = self._system.disk.map(self._paths[number]), self.before(number)
        self._add(number, content.size)
        return FileMark(self._paths[number], number, before, *_prefix(content, content.size))


def _prefix(content: pa.Buffer, size: int) -> tuple[int, str]:
    taken = min(PREFIX_BYTES, size)
    return taken, _hash_of(content.slice(0, taken))


def _hash_of(content: bytes | pa.Buffer) -> str:
    return xxhash.xxh3_64_hexdigest(memoryview(content))


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def check_on_error(on_error: str) -> None:
    """Refuse what is not built yet, rather than to lose rows."""
    if on_error != "fail":
        raise PlanError(
            f"on_error={on_error!r} is not there yet",
            help='on_error="fail" (the default) fails the run at the first row that cannot be read',
        )


def selected(schema: pa.Schema, columns: Sequence[str] | None, where: str) -> pa.Schema:
    """The columns that a reader was asked for by `columns=`, in that order; all when it was not."""
    if columns is None:
        return schema
    for name in columns:
        if name not in schema.names:
            raise column_not_found(name, schema.names, where)
    return pa.schema([schema.field(name) for name in columns])

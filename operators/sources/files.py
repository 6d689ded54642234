"""What file sources share: which files a path means, and in which order.

The hard part is order: however the files are found, they are one partition, and its order decides which rows are
late. So a pattern means its matches by full path, and a list means its own order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import pyarrow as pa

from dataflow.errors import ConnectorError, PlanError, TypeMismatchError
from dataflow.schema import column_not_found
from dataflow.system import System

FilePaths = str | PathLike[str] | Sequence[str | PathLike[str]]


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

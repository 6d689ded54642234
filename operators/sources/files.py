"""What file sources share: which files a path means, in which order, and what makes them the same in another run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import xxhash

from dataflow.errors import ConnectorError, TypeMismatchError
from dataflow.system import System

FilePaths = str | PathLike[str] | Sequence[str | PathLike[str]]
PREFIX_BYTES = 65_536
"""Hashed to tell whether a file is still the one that was read before."""


class Files:
    """A path, a glob or a list: one partition, in the order of the full paths (a list in its own order)."""

    def __init__(self, paths: FilePaths) -> None:
        given = [paths] if isinstance(paths, str | PathLike) else list(paths)
        if not given or not all(isinstance(one, str | PathLike) for one in given):
            raise TypeMismatchError(f"a path, a glob or a list of paths is needed, got {paths!r}")
        self.given = [os.fspath(one) for one in given]

    @property
    def name(self) -> str:
        """The name of a source without one of its own: the file's, without its endings."""
        stem = Path(self.given[0]).name.split(".")[0]
        return stem if stem and "*" not in stem else Path(self.given[0]).parent.name or "files"

    def paths(self, system: System) -> list[str]:
        """The files that there are now; raises when one is missing or a pattern matches none."""
        found: list[str] = []
        for one in self.given:
            if any(sign in one for sign in "*?["):
                matches = [path for path in system.disk.glob(one) if not system.disk.is_dir(path)]
                if not matches:
                    raise ConnectorError(f"no file matches {one}", help="check the pattern and the working directory")
                found += sorted(matches, key=os.path.abspath)
            else:
                self._require_file(one, system)
                found.append(one)
        return found

    def _require_file(self, path: str, system: System) -> None:
        if system.disk.is_dir(path):
            raise ConnectorError(f"{path} is a directory", help=f'read its files by a pattern, as in "{path}/*.csv"')
        if not system.disk.exists(path):
            raise ConnectorError(f"there is no file {path}", help=f"relative paths start at {os.getcwd()}")

    def identity(self, system: System) -> tuple[object, ...]:
        """Paths, sizes and a hash of each file's beginning."""
        return tuple(
            (path, system.disk.size(path), xxhash.xxh3_64_hexdigest(memoryview(system.disk.map(path))[:PREFIX_BYTES]))
            for path in self.paths(system)
        )

"""Every error raised on purpose: a code, what happened, where in the user's program, and what to do.

A code never changes its meaning. The first two digits tell the family: 02 names, 03 types, 04 time and
state, 05 connectors and delivery, 06 store and log, 07 run. The hard part is *where*: a pipeline is built
long before it runs, so every node keeps the `Origin` (file and line) of the call that made it.
"""

from __future__ import annotations

import difflib
import errno
import linecache
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)
_PACKAGE_ROOTS = tuple({_PACKAGE, *(str((Path(_PACKAGE) / name).resolve()) for name in ("dsl", "operators", "state"))})
SUGGESTION_SIMILARITY_MIN = 0.6
"""Below it a suggestion is more often a distraction than the word that was meant."""


@dataclass(frozen=True)
class Origin:
    """The place in the user's program that made a node: a file and a 1-based line."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"

    def text(self) -> str:
        """The source line itself, or "" where it cannot be read (a REPL)."""
        return linecache.getline(self.file, self.line).strip()


def caller_origin() -> Origin | None:
    """The innermost frame outside of this package: the user's line."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE_ROOTS) and not file.startswith("<frozen"):
            return Origin(file, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to `word`, or None when none is near.

    >>> did_you_mean("prise", ["price", "id"])
    'price'
    """
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=SUGGESTION_SIMILARITY_MIN)
    return lowered[near[0]] if near else None


class DataflowError(Exception):
    """Base of all errors that dataflow raises on purpose.

    `code` (like "DF0202"), `message` (one sentence), `help` (what to do next) and `origin` (the user's
    line) are fields too, so that programs need not parse text.
    """

    code = "DF0000"

    def __init__(
        self, message: str, *, code: str | None = None, help: str | None = None, origin: Origin | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.help = help
        self.origin = origin

    def at(self, origin: Origin | None) -> DataflowError:
        """This error, with the user's line where none is known yet."""
        self.origin = self.origin or origin
        return self

    def __str__(self) -> str:
        parts = [f"error[{self.code}]: {self.message}"]
        if self.origin is not None:
            parts.append(f" --> {self.origin}")
            if text := self.origin.text():
                number = str(self.origin.line)
                parts.append(f"{' ' * len(number)} |\n{number} | {text}\n{' ' * len(number)} |")
        if self.help:
            parts.append(f" = help: {self.help}")
        return "\n".join(parts)


class ProgramError(DataflowError):
    """The program is wrong or was used wrongly; nothing ran (exit code 2)."""


class NameNotFoundError(ProgramError):
    """A name (column, function, topic, option) that does not exist here."""

    code = "DF0202"


class TypeMismatchError(ProgramError):
    """An expression or a step got a type it cannot take."""

    code = "DF0301"


class PlanError(ProgramError):
    """The graph cannot be run as it stands (time, state or delivery)."""

    code = "DF0401"


class ConnectorError(DataflowError):
    """A source or sink cannot do what was asked: a missing file, a broken row, a target that exists."""

    code = "DF0501"


class StoreError(DataflowError):
    """The store's directory, catalog or a segment is not as it must be."""

    code = "DF0601"


class DiskFullError(StoreError):
    """There is no room for something on the disk. Nothing of it was kept, and it may be tried again."""

    code = "DF0609"

    @classmethod
    def or_other(cls, error: OSError) -> type[StoreError]:
        """What kind of error this one of the disk is."""
        return cls if says_full(error) else StoreError


class TargetFullError(DiskFullError, ConnectorError):
    """There is no room where a sink writes. Nothing of it was kept, and it may be tried again."""

    code = "DF0512"


def says_full(error: Exception) -> bool:
    """Whether the disk has no room, or the user's quota of it is used up."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, DiskFullError)


_ROOM, _PERMISSION = "make room, then run again", "give the user of this process the permission to write there"
_ERRNOS = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("a file may not become so large", "raise the limit (`ulimit -f`), or take a file system without it"),
    errno.EACCES: ("it is not permitted", _PERMISSION),
    errno.EPERM: ("it is not permitted", _PERMISSION),
    errno.EROFS: ("the file system is read-only", "mount it for writing, or name a path on another one"),
    errno.EMFILE: ("this process has too many files open", "raise the limit (`ulimit -n`)"),
    errno.ENOENT: ("the directory is gone", "make it again, then run again"),
    errno.ENAMETOOLONG: ("the name is too long", "shorten it: a name may have 255 bytes"),
    errno.EXDEV: ("it lies on another file system", "name a path on the same one"),
}


def disk_reason(error: OSError) -> str:
    """Why a file could not be written, for people."""
    return _ERRNOS.get(error.errno or 0, (error.strerror or str(error), ""))[0]


def disk_fix(error: OSError) -> str:
    """What to do about it."""
    return _ERRNOS.get(error.errno or 0, ("", "check the disk, then run again"))[1]


class RunError(DataflowError):
    """A run failed; the last commit stands."""

    code = "DF0701"


class CloseError(RunError):
    """All that a run has read is committed, but a sink could not be closed."""

    code = "DF0702"

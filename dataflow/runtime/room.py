"""A full disk is a pause: what needs room waits until there is some, and backpressure does the rest.

Only what left nothing behind when it failed may be tried again (`DiskFullError` says so). The wait has an end, since
nobody may be there to make room, and a run that stands still without a word would be worse than one that fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from dataflow.errors import DataflowError, says_full
from dataflow.system import Clock, Event

Made = TypeVar("Made")

ROOM_SECONDS = 1.0
"""Between two looks whether there is room."""
FULL_SECONDS_MAX = 600.0
"""Then the run fails, with what it has committed."""


class Room:
    """Whether something waits for room, and since when."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None
        self.lacking: str | None = None
        """What there is no room for, while it waits."""

    def wait(self, error: DataflowError | OSError) -> None:
        """There was no room; raises the error when that has been so for too long."""
        now = self._clock.monotonic()
        if self._since is None:
            self._since, self.lacking = now, _told(error)
            sys.stderr.write(f"the disk is full: {self.lacking}; waiting for room, nothing is lost\n")
        elif now - self._since > FULL_SECONDS_MAX:
            raise error

    def found(self) -> None:
        """There was room."""
        if self._since is not None:
            self._since = self.lacking = None
            sys.stderr.write("there is room on the disk again: going on\n")


class BlockingRoom(Room):
    """For a sink, which may block: it waits inside of its own calls, until there is room or the job is over."""

    def __init__(self, clock: Clock, over: Event) -> None:
        super().__init__(clock)
        self._over = over

    def attempt(self, write: Callable[[], Made]) -> Made:
        """Do what leaves nothing behind when there is no room for it; again, until there is."""
        while True:
            try:
                made = write()
            except (DataflowError, OSError) as error:
                if not says_full(error) or self._over.is_set():
                    raise
                self.wait(error)
                self._over.wait(ROOM_SECONDS)
            else:
                self.found()
                return made


def _told(error: DataflowError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename} cannot be written ({error.strerror})"
    return error.message

"""Items of an iterator that may keep its caller waiting, taken from it by a thread of its own.

A generator or a socket may have nothing to give for an hour. Meanwhile epochs go on, a run can be stopped, and what has
come already is worked on: nobody waits inside of the iterator but this thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from dataflow.operators.base import Idle
from dataflow.system import System

Item = TypeVar("Item")

HOLD_SECONDS = 0.005
"""How long items wait for more of them: long enough for hundreds, too short to be noticed."""
PULL_ITEMS = 1_000
"""After so many it is looked whether the run has been stopped."""
ROOM_SECONDS = 0.1


class Pump(Generic[Item]):
    """Takes items ahead, up to `items_max()` of them, and hands them on in order. One thread may take them."""

    def __init__(self, items: Iterator[Item], items_max: Callable[[], int], system: System, name: str) -> None:
        self._items, self._items_max, self._clock = items, items_max, system.clock
        self._waiting: deque[Item] = deque()
        self._since = 0.0
        """When the oldest of them came."""
        self._error: BaseException | None = None
        self._is_over = False
        self.handed_on = 0
        """How many items have been taken from it."""
        self._room = system.scheduler.event()
        system.scheduler.start_thread(self._run, name, lambda: self._pull(1))

    # ── called by whoever reads ──

    def take(self) -> list[Item]:
        """What has come; nothing while more may come in a moment. Raises what the iterator raised, after its items."""
        is_over, most = self._is_over, self._items_max()
        number = len(self._waiting)
        if not is_over and number < most and self._clock.monotonic() - self._since < HOLD_SECONDS:
            return []
        taken = [self._waiting.popleft() for _ in range(min(number, most))]
        self.handed_on += len(taken)
        self._room.set()
        if is_over and not taken and self._error is not None:
            raise self._error
        return taken

    @property
    def has_ended(self) -> bool:
        """Whether nothing will come any more."""
        return self._is_over and not self._waiting and self._error is None

    @property
    def items(self) -> int:
        """How many the iterator has given."""
        return self.handed_on + len(self._waiting)

    def __iter__(self) -> Iterator[list[Item] | Idle]:
        """Until the iterator has ended; idle while nothing has come."""
        try:
            while not self.has_ended:
                yield self.take() or Idle()
        finally:
            self.stop()

    def stop(self) -> None:
        """Take nothing more. A thread that waits inside of the iterator is left to it."""
        self._is_over = True
        self._room.set()

    # ── the thread ──

    def _run(self) -> None:
        while not self._is_over:
            self._room.clear()
            if not self._pull(PULL_ITEMS):
                self._room.wait(ROOM_SECONDS)

    def _pull(self, most: int) -> bool:
        """Take up to so many items, as far as there is room; false when nothing came of it."""
        room = min(most, self._items_max() - len(self._waiting))
        if self._is_over or room <= 0:
            return False
        try:
            for _ in range(room):
                item = next(self._items)
                if self._is_over:  # stopped meanwhile
                    return False
                if not self._waiting:
                    self._since = self._clock.monotonic()
                self._waiting.append(item)
        except StopIteration:
            self._is_over = True
        except BaseException as error:  # noqa: BLE001  # whatever ends the iterator ends the run, which raises it
            self._error = error
            self._is_over = True
        return True

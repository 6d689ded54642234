"""Turns over the tasks of one thread; sleeps when none can move.

A channel that gets a message, or room, wakes the worker at its other end. The event is cleared before the
tasks are looked at, so a wake-up that comes meanwhile is never lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dataflow.runtime.task import Task
from dataflow.system import Clock, Event

IDLE_SECONDS = 0.005
"""A source without rows is asked again this often; everybody else is woken."""


class Worker:
    """The tasks of one thread, receivers first: what is already made leaves before more is made."""

    def __init__(self, name: str, wake: Event, failed: Callable[[Task, BaseException], None], clock: Clock) -> None:
        self.name, self.wake, self._failed, self._clock = name, wake, failed, clock
        self.tasks: Sequence[Task] = ()
        self.stopped = False
        self.left = False
        """Whether its thread is done: no task of it is inside of a call."""
        self.stalled_seconds = 0.0
        """How long it had nothing to do because of an epoch, although rows waited for it."""

    def run(self) -> None:
        """Until all tasks have ended or the job stops this worker."""
        while not self.stopped and not self.ended:
            self.wake.clear()
            if not self.round() and not self.stopped:
                self._wait()

    def _wait(self) -> None:
        began = self._clock.monotonic() if any(task.is_held_up for task in self.tasks) else None
        self.wake.wait(IDLE_SECONDS)
        if began is not None:
            self.stalled_seconds += self._clock.monotonic() - began

    @property
    def ended(self) -> bool:
        return all(task.ended for task in self.tasks)

    def round(self) -> bool:
        """One turn of every task; true when any moved."""
        moved = False
        for task in self.tasks:
            if task.ended or self.stopped:
                continue
            try:
                moved = task.turn() or moved
            except BaseException as error:  # noqa: BLE001  # whatever ends a task ends the job, which raises it
                self._failed(task, error)
                return False
        return moved

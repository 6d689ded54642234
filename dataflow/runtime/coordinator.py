"""Starts epochs, counts the sinks' acks, commits; runs in the thread that called `run`.

An epoch ends when every sink has prepared it (or has ended). Then the store commits, in one transaction, and
only after that the sinks make visible what they prepared. A stop is one more epoch after which no unit is
handed out: windows stay open, nothing is flushed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from dataflow.message import Barrier
from dataflow.runtime.job import Job
from dataflow.runtime.sink_task import SinkTask
from dataflow.system import Mutex, System

STOP_SECONDS_MAX = 4.5
"""After a signal, what is in flight has this long to commit; then the last commit has to do."""
WAIT_SECONDS = 0.1
"""Signals are noticed at least this often."""


@dataclass(frozen=True)
class Commit:
    """What one epoch makes durable."""

    epoch: int
    handles: tuple[object, ...]
    cut: dict[str, dict[str, int]]
    finished: bool


class Committer(Protocol):
    """Where epochs become durable: the store, or nowhere."""

    def commit(self, commit: Commit) -> None: ...


@dataclass
class _Round:
    """The acks of one epoch."""

    barrier: Barrier
    cut: dict[str, dict[str, int]]
    prepared: dict[int, object] = field(default_factory=dict)


class Coordinator:
    """Drives the epochs of one job until its input has ended, it was stopped, or it failed."""

    def __init__(
        self, system: System, committer: Committer, interval_seconds: float, enough: Callable[[], bool]
    ) -> None:
        self.system, self.committer, self.interval_seconds, self.enough = system, committer, interval_seconds, enough
        self._lock: Mutex = system.scheduler.mutex()
        self._changed = system.scheduler.event()
        self._round: _Round | None = None
        self._ended: dict[int, object] = {}
        self._committed_ends: set[int] = set()
        self._epoch = 1
        self.epochs = 0
        self.stop_asked = False
        self.stopped = False
        """A barrier that stops has been sent."""
        self.gave_up = False

    # ── called by the sinks' threads ──

    def prepared(self, sink: SinkTask, epoch: int, handle: object) -> None:
        with self._lock:
            assert self._round is not None and self._round.barrier.epoch == epoch, epoch
            self._round.prepared[id(sink)] = handle
        self._changed.set()

    def ended(self, sink: SinkTask, handle: object) -> None:
        with self._lock:
            self._ended[id(sink)] = handle
        self._changed.set()

    def look(self) -> None:
        """Something has changed: a worker has ended, or failed."""
        self._changed.set()

    # ── called by the thread of `run` ──

    def stop(self) -> None:
        """Commit what is in flight and leave. May be called from a signal handler, so it must not wake: the handler
        interrupts the thread that waits, which may hold the event's lock at that moment, and would never get it."""
        self.stop_asked = True

    def run(self, job: Job) -> None:
        """Until the job is over."""
        clock = self.system.clock
        due = clock.monotonic() + self.interval_seconds
        leave_at: float | None = None
        while not job.over:
            self._changed.clear()
            self._commit_if_complete(job)
            now = clock.monotonic()
            self.stop_asked = self.stop_asked or self.enough()
            if self.stop_asked and leave_at is None:
                leave_at = now + STOP_SECONDS_MAX
            if leave_at is not None and now >= leave_at:
                self.gave_up = True
                return
            if self._round is None and (now >= due or (self.stop_asked and not self.stopped)):
                self._begin(job)
                due = now + self.interval_seconds
            if not job.over:
                self._changed.wait(min(WAIT_SECONDS, max(due - clock.monotonic(), 0.001)))

    def _begin(self, job: Job) -> None:
        """Send a barrier through the job; one that stops, if that was asked for."""
        self.stopped = self.stop_asked
        barrier = Barrier(self._epoch, stop=self.stopped)
        self._round = _Round(barrier, {})
        self._round.cut = job.begin_epoch(barrier)
        self._epoch += 1

    def _commit_if_complete(self, job: Job) -> None:
        """Commit when every sink has prepared the epoch or has ended."""
        with self._lock:
            sinks = job.sinks
            prepared = self._round.prepared if self._round is not None else {}
            all_ended = all(id(sink) in self._ended for sink in sinks)
            fresh_ends = {key: handle for key, handle in self._ended.items() if key not in self._committed_ends}
            complete = all(id(sink) in prepared or id(sink) in self._ended for sink in sinks)
            if not complete or not (prepared or fresh_ends) or not (self._round or all_ended):
                return
            cut = self._round.cut if self._round is not None else {}
            self._round = None
        self._commit(job, prepared | fresh_ends, cut, all_ended)

    def _commit(self, job: Job, handles: dict[int, object], cut: dict[str, dict[str, int]], all_ended: bool) -> None:
        self._committed_ends |= self._ended.keys()
        finished = all_ended and not self.stopped
        self.epochs += 1
        self.committer.commit(Commit(self.epochs, tuple(handles.values()), cut, finished))
        for sink in job.sinks:
            if id(sink) in handles:
                sink.commit()
        job.wake()

"""Drives the epochs of a job: a barrier into the sources, an ack from every task, one commit, then the sinks make it
visible.

Runs in the thread that called `run`, and only waits there. The next epoch begins when the one before it is
committed, so there is never more than one barrier on its way. The hard part is the end. Tasks end one by one, and what
an ended one had to say counts in every later epoch; a sink that has ended prepares once more, and the last commit makes
visible what they prepared. A stop is one more epoch after which no unit is handed out: windows stay open, nothing is
flushed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dataflow.errors import DiskFullError
from dataflow.message import Barrier
from dataflow.runtime.epoch import Commit, Committer, TaskAck
from dataflow.runtime.job import Job
from dataflow.runtime.process import impatient
from dataflow.runtime.room import ROOM_SECONDS, Room
from dataflow.runtime.task import Task
from dataflow.system import Mutex, System

STOP_SECONDS_MAX = 4.25
"""After a signal, what is in flight has this long to commit; then the last commit has to do."""
LEAVE_SECONDS = 0.25
"""What is left of the five seconds for threads to leave their calls; the end of the process needs some of it, too."""
WAIT_SECONDS = 0.1
"""Signals are noticed at least this often."""


@dataclass(slots=True)
class EpochCosts:
    """What epochs cost a run, in seconds.

    `snapshot` is the longest that any task was kept from its work in each epoch, `stall` the longest that a worker had
    nothing to do although rows waited for it (behind a barrier, or for a sink to commit), `commit` how long the thread
    of `run` took to write and to commit.
    """

    snapshot: float = 0.0
    stall: float = 0.0
    commit: float = 0.0


@dataclass
class _Round:
    """The acks of one epoch, by task."""

    barrier: Barrier
    acks: dict[int, TaskAck] = field(default_factory=dict)
    is_staged: bool = False


class Coordinator:
    """Drives the epochs of one job until its input has ended, it was stopped, or it failed."""

    def __init__(
        self,
        system: System,
        committer: Committer,
        interval_seconds: float,
        enough: Callable[[], bool],
        *,
        first_epoch: int = 1,
        to_head: bool = False,
    ) -> None:
        self.system, self.committer, self.interval_seconds, self.enough = system, committer, interval_seconds, enough
        self.to_head = to_head
        self._lock: Mutex = system.scheduler.mutex()
        self._changed = system.scheduler.event()
        self._round: _Round | None = None
        self._ended: dict[int, TaskAck] = {}
        self._committed_ends: set[int] = set()
        self._tasks: dict[int, Task] = {}
        self._keepers: set[int] = set()
        """All tasks but the sinks', which are the last to hear of an epoch."""
        self._epoch = first_epoch
        self._due = self._leave_at = 0.0
        self.epochs = 0
        self.committed: Sequence[TaskAck] = ()
        """What the tasks had to say of the last epoch that was committed."""
        self.costs = EpochCosts()
        self._room = Room(system.clock)
        self.stop_asked = False
        self.stopped = False
        """A barrier that stops has been sent."""
        self.gave_up = False

    # ── called by the threads of tasks ──

    def prepared(self, task: object, epoch: int, ack: TaskAck) -> None:
        with self._lock:
            assert self._round is not None and self._round.barrier.epoch == epoch, epoch
            self._round.acks[id(task)] = ack
            is_news = self._is_news()
        if is_news:
            self._changed.set()

    def ended(self, task: object, ack: TaskAck) -> None:
        with self._lock:
            self._ended[id(task)] = ack
            is_news = self._is_news()
        if is_news:
            self._changed.set()

    def _is_news(self) -> bool:
        """Whether there is something to do: waking the thread of `run` costs the workers time."""
        acks = self._ended if self._round is None else self._ended | self._round.acks
        return self._tasks.keys() == acks.keys() or self._keepers <= acks.keys()

    def epoch_wanted(self) -> None:
        """Begin the next epoch soon: much waits for it."""
        self._due = 0.0
        self._changed.set()

    def look(self) -> None:
        """Something has changed: a worker has ended, or failed; a source is at its head."""
        self._changed.set()

    # ── called by the thread of `run` ──

    def stop(self) -> None:
        """Commit what is in flight and leave. May be called from a signal handler, so it must not wake: the handler
        interrupts the thread that waits, which may hold the event's lock at that moment, and would never get it."""
        self.stop_asked = True
        self._leave_at = self.system.clock.monotonic() + STOP_SECONDS_MAX

    def give_up(self) -> None:
        """Leave at once; what is in flight is nobody's. From a signal handler too, as `stop`."""
        self.gave_up = True

    def run(self, job: Job) -> None:
        """Until the job is over."""
        clock = self.system.clock
        self.begin(job)
        while not job.over and not self.gave_up:
            self._changed.clear()
            self.turn(job)
            if not job.over:
                is_waiting = self.stopped or self._round is not None  # an ack will wake it
                due = WAIT_SECONDS if is_waiting else max(self._due - clock.monotonic(), 0.001)
                self._changed.wait(min(WAIT_SECONDS, due))

    @property
    def join_seconds(self) -> float:
        """How long the threads of a job that is over may take to leave what they are inside of."""
        if not self._leave_at:
            return STOP_SECONDS_MAX
        return max(self._leave_at - self.system.clock.monotonic(), 0.0) + LEAVE_SECONDS

    def begin(self, job: Job) -> None:
        """The clock of the epochs starts. Before the job does."""
        self._tasks = {id(task): task for task in job.tasks}
        self._keepers = self._tasks.keys() - {id(sink) for sink in job.sinks}
        self._due = self.system.clock.monotonic() + self.interval_seconds

    def turn(self, job: Job) -> None:
        """Commit what is complete; begin what is due."""
        self._commit_if_complete(job)
        now = self.system.clock.monotonic()
        if self.enough() and not self.stop_asked:
            self.stop()
        if self._leave_at and now >= self._leave_at:
            self.gave_up = True
            return
        stops = self.stop_asked or (self.to_head and job.at_head)
        if self.stopped:  # nothing comes after it, and nobody is left to cut the input once more
            return
        if self._round is None and not job.over and (now >= self._due or stops):
            self._begin(job, stops)
            self._due = now + self.interval_seconds

    def _begin(self, job: Job, stops: bool) -> None:
        """Send a barrier through the job; one that stops, if that was asked for."""
        self.stopped = stops
        barrier = Barrier(self._epoch, stop=self.stopped)
        self._round = _Round(barrier)
        job.begin_epoch(barrier)

    def _commit_if_complete(self, job: Job) -> None:
        """Commit when every task has acked the epoch or has ended; what steps keep is written before the sinks have."""
        with self._lock:
            acked = self._round
            round_acks = dict(acked.acks) if acked is not None else {}
            acks = self._ended | round_acks
            # A task that has ended since its barrier has two acks: this epoch is that of the first one.
            fresh_ends = self._ended.keys() - self._committed_ends - round_acks.keys()
            all_ended = len(self._ended) == len(self._tasks)
        if acked is not None and not acked.is_staged and self._keepers <= acks.keys():
            acked.is_staged = True
            self._timed(lambda: self.committer.stage([acks[key] for key in self._keepers]))
        if len(acks) < len(self._tasks) or not (round_acks or fresh_ends) or not (acked or all_ended):
            return
        self._round = None
        self._committed_ends |= fresh_ends
        self._commit(job, acks, round_acks.keys() | fresh_ends, ended=not round_acks and not self.stopped)

    def _commit(self, job: Job, acks: dict[int, TaskAck], fresh: set[int], *, ended: bool) -> None:
        """Make the epoch durable, and let the sinks that take part in it make it visible."""
        commit = Commit(
            self._epoch,
            [acks[key] for key in self._tasks],
            [acks[key] for key in self._tasks if key in fresh],
            job.positions(ended=ended),
            finished=ended and len(self._ended) == len(self._tasks),
        )
        self._timed(lambda: self.committer.commit(commit))
        self.costs.snapshot += max(ack.seconds for ack in acks.values())
        self._epoch += 1
        self.epochs += 1
        self.committed = commit.acks
        for sink in job.sinks:
            if id(sink) in fresh:
                sink.commit()
        job.wake()

    def finish(self) -> None:
        """The job is over, and nothing has failed."""
        self._timed(self.committer.finish)

    def _timed(self, write: Callable[[], None]) -> None:
        began = self.system.clock.monotonic()
        while True:
            try:
                with impatient():
                    write()
                break
            except DiskFullError as error:
                if self.stop_asked or self.enough():
                    raise
                self._room.wait(error)
                self.system.scheduler.sleep(ROOM_SECONDS)
        self._room.found()
        self.costs.commit += self.system.clock.monotonic() - began

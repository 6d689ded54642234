"""Drives one instance of a stage: takes a message, lets the fused operators work, moves what they made.

A turn does a bounded amount of work and never blocks. The hard part is the barrier: it may leave only when no
operator still holds rows that wait for another task, and when everything made before it has left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Protocol

from dataflow.message import Barrier, Batch, End, Message, Progress, Watermark
from dataflow.operators.base import Operator, Receiver, Saved, Snapshot, StepCounts
from dataflow.runtime.dispenser import PartitionEnd
from dataflow.runtime.epoch import Acks, TaskAck
from dataflow.runtime.exchange import Edge
from dataflow.runtime.unread import Unread
from dataflow.system import Clock


class Input(Protocol):
    """What a task reads (`runtime/inputs.py`)."""

    state_name: str | None
    """The name under which its snapshot is kept; None where nothing of it outlives a run."""
    rows_total: int
    """How many rows of a source it has given; 0 where it reads channels."""

    @property
    def holds_up(self) -> bool:
        """Whether rows wait behind a barrier that has not come on all channels."""
        ...

    @property
    def has_rows(self) -> bool:
        """Whether something could be taken."""
        ...

    def poll(self) -> Message | PartitionEnd | None: ...
    def consumed(self, rows: int, seconds: float) -> None: ...
    def snapshot(self, epoch: int) -> Snapshot: ...
    def restore(self, saved: Saved) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a task consists of, from its input to its edges."""

    name: str
    input: Input
    root: Receiver
    operators: Sequence[Operator] = ()
    edges: Sequence[Edge] = ()
    counts: Sequence[tuple[str, StepCounts]] = ()
    unread: Sequence[Unread] = field(default=())
    durable: bool = False
    """Whether snapshots are wanted."""


class TaskPhase(Enum):
    RUNNING = auto()
    """Taking messages."""
    SETTLING = auto()
    """A barrier or the end has come; an operator still holds rows that wait for another task."""
    ENDED = auto()
    """The end has been handed on, and everything made has left."""


class Task:
    """One running instance of a stage. Turned by one thread."""

    def __init__(self, parts: Parts, acks: Acks, clock: Clock) -> None:
        self.parts, self.acks, self.clock = parts, acks, clock
        self.name, self.input, self.root, self.edges = parts.name, parts.input, parts.root, parts.edges
        self.phase = TaskPhase.RUNNING
        self.epoch = 0
        """The last one whose barrier it has got."""
        self._holders = [operator for operator in parts.operators if operator.may_hold]
        self._parked: Barrier | End | None = None
        self._ending = False
        self._unsent = False
        """Whether an edge may keep something that did not fit into its channel."""
        self._rows_taken = 0
        self._taken_at: float | None = None

    @property
    def ended(self) -> bool:
        return self.phase is TaskPhase.ENDED

    @property
    def is_held_up(self) -> bool:
        """Whether rows wait for it that it may not take, because of an epoch."""
        return self.input.holds_up

    def turn(self) -> bool:
        """Do some work; false when none can be done until a channel or another task moves."""
        if self._unsent and not self._flushed():
            return False
        if self._ending:
            self.phase = TaskPhase.ENDED
            return True
        if self._taken_at is not None:
            self._measure(self._taken_at)
        moved = False
        for operator in self._holders:
            moved = operator.turn() or moved
        if moved and not self._flushed():
            return True
        if self._parked is not None:
            return self._unpark() or moved
        if self._holders and self._held() >= HELD_MAX:
            return moved
        message = self.input.poll()
        if message is None:
            return moved
        self._handle(message)
        self._flushed()
        return True

    def _held(self) -> int:
        return sum(operator.held for operator in self._holders)

    def _flushed(self) -> bool:
        """Move what fits into the channels; true when nothing is left."""
        self._unsent = False
        for edge in self.edges:
            self._unsent = not edge.flush() or self._unsent
        return not self._unsent

    def _measure(self, taken_at: float) -> None:
        """Tell the input how long its last batch took, waiting for our own receivers included."""
        self.input.consumed(self._rows_taken, self.clock.monotonic() - taken_at)
        self._taken_at = None

    def _handle(self, message: Message | PartitionEnd) -> None:
        if isinstance(message, Batch):
            self._taken_at, self._rows_taken = self.clock.monotonic(), message.num_rows
            self.root.on_batch(message)
        elif isinstance(message, Watermark):
            self.root.on_watermark(message.time_us)
        elif isinstance(message, Progress):
            self.root.on_progress(message.sequence)
        elif isinstance(message, PartitionEnd):
            self.root.on_partition_end(message.partition, message.units_total)
        else:
            self._parked, self.phase = message, TaskPhase.SETTLING
            for operator in self._holders:  # what other tasks have told before the epoch began belongs to it
                operator.turn()
            self._unpark()

    def _unpark(self) -> bool:
        """Hand on the barrier or the end, if every operator is settled."""
        message = self._parked
        assert message is not None
        if self._held():
            return False
        self._parked, self.phase = None, TaskPhase.RUNNING
        if isinstance(message, End):
            self._end(message)
        else:
            self.on_barrier(message)
        for edge in self.edges:
            edge.send(message)
        self._flushed()
        return True

    def on_barrier(self, barrier: Barrier) -> None:
        """Everything before the barrier has been handed on, but for what a snapshot keeps."""
        began = self.clock.monotonic()
        if self.parts.durable:
            for operator in self.parts.operators:
                operator.on_barrier()
        self.epoch = barrier.epoch
        ack = self.ack()
        self.acks.prepared(self, barrier.epoch, replace(ack, seconds=self.clock.monotonic() - began))

    def _end(self, end: End) -> None:
        if end.flush:
            self.root.on_end()
        self._ending = True
        self.on_end(end)

    def on_end(self, end: End) -> None:
        """Nothing more will come."""
        self.acks.ended(self, self.ack())

    @property
    def keepers(self) -> Sequence[Input | Operator]:
        """What may have state that outlives a run."""
        return (self.input, *self.parts.operators)

    def ack(self) -> TaskAck:
        """What the task keeps and has counted, as it is now."""
        states = []
        if self.parts.durable:
            epoch = self.epoch
            states = [(one.state_name, one.snapshot(epoch)) for one in self.keepers if one.state_name is not None]
        counts = [(step, replace(one)) for step, one in self.parts.counts]
        unread = [batch for one in self.parts.unread for batch in one.take()]
        return TaskAck(states, counts, unread, rows_read=self.input.rows_total)


HELD_MAX = 4
"""Decoded batches that may wait for an earlier unit of another task: a little more than one each is enough."""

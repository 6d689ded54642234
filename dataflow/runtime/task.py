"""Drives one instance of a stage: takes a message, lets the fused operators work, moves what they made.

A turn does a bounded amount of work and never blocks. The hard part is the barrier: it may leave only when no
operator still holds rows that wait for another task, and when everything made before it has left.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Protocol

from dataflow.message import Barrier, Batch, End, Message, Progress, Watermark
from dataflow.operators.base import Operator, Receiver
from dataflow.runtime.dispenser import PartitionEnd
from dataflow.runtime.exchange import Edge
from dataflow.system import Clock


class Input(Protocol):
    """What a task reads (`runtime/inputs.py`)."""

    def poll(self) -> Message | PartitionEnd | None: ...
    def consumed(self, rows: int, seconds: float) -> None: ...


class TaskPhase(Enum):
    RUNNING = auto()
    """Taking messages."""
    SETTLING = auto()
    """A barrier or the end has come; an operator still holds rows that wait for another task."""
    ENDED = auto()
    """The end has been handed on, and everything made has left."""


class Task:
    """One running instance of a stage. Turned by one thread."""

    def __init__(
        self, name: str, source: Input, root: Receiver, operators: Sequence[Operator], edges: Sequence[Edge],
        clock: Clock,
    ) -> None:  # fmt: skip
        self.name, self.input, self.root, self.operators, self.edges = name, source, root, operators, edges
        self.clock = clock
        self.phase = TaskPhase.RUNNING
        self._holders = [operator for operator in operators if operator.may_hold]
        self._parked: Barrier | End | None = None
        self._ending = False
        self._unsent = False
        """Whether an edge may keep something that did not fit into its channel."""
        self._rows_taken = 0
        self._taken_at: float | None = None

    @property
    def ended(self) -> bool:
        return self.phase is TaskPhase.ENDED

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
            if isinstance(message, Barrier) and message.stop:
                for operator in self._holders:
                    operator.discard()
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
        """Everything before the barrier has been handed on."""

    def _end(self, end: End) -> None:
        if end.flush:
            self.root.on_end()
        self._ending = True
        self.on_end(end)

    def on_end(self, end: End) -> None:
        """Nothing more will come."""


HELD_MAX = 4
"""Decoded batches that may wait for an earlier unit of another task: a little more than one each is enough."""

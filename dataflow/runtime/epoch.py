"""What the parts of a run tell each other about an epoch: tasks and sinks to the coordinator, it to the committer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from dataflow.operators.base import Piece, Position, SinkStaging, Snapshot, StepCounts
from dataflow.runtime.unread import UnreadBatch


@dataclass(frozen=True, slots=True)
class TaskAck:
    """What a task has to say at a barrier, or at its end."""

    states: Sequence[tuple[str, Snapshot]]
    counts: Sequence[tuple[str, StepCounts]]
    """Of each step, since the run began; a copy."""
    unread: Sequence[UnreadBatch] = ()
    """Late and error rows since the last barrier that no later step reads."""
    sink: str | None = None
    handle: object = None
    staged: Sequence[object] = ()
    """The frames of rows that the sink keeps in the store."""
    seconds: float = 0.0
    """How long the task was kept from its work for this epoch."""
    rows_read: int = 0
    """Rows of a source since the run began."""


class Acks(Protocol):
    """Who wants to know of tasks and workers: the coordinator."""

    def prepared(self, task: object, epoch: int, ack: TaskAck) -> None: ...
    def ended(self, task: object, ack: TaskAck) -> None: ...
    def epoch_wanted(self) -> None: ...
    def look(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Commit:
    """What one epoch makes durable. `fresh` are the acks whose rows have not been committed yet."""

    epoch: int
    acks: Sequence[TaskAck]
    fresh: Sequence[TaskAck]
    positions: Mapping[str, Mapping[str, Position]]
    """By source and partition."""
    finished: bool


class Committer(Protocol):
    """Where epochs become durable: the store, or nowhere."""

    def stage(self, acks: Sequence[TaskAck]) -> None:
        """Write what these tasks keep; the commit that follows makes it count."""
        ...

    def commit(self, commit: Commit) -> None: ...

    def finish(self) -> None:
        """All sinks have committed the last epoch, and nothing has failed."""
        ...


@dataclass(frozen=True, slots=True)
class SavedState:
    """What all tasks of a step had kept: values, and rows in pieces that are read when asked for."""

    values: Sequence[Mapping[str, object]]
    pieces: Sequence[Piece] = ()


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a run goes on. Without a store, and the first time, at the beginning."""

    durable: bool = False
    epoch: int = 0
    """The last one that was committed."""
    run: str = ""
    """A name that no other run has."""
    home: str = ""
    """The store's id; empty without one."""
    restart: bool = False
    """Whether it begins at the inputs' start though earlier runs have committed epochs."""
    positions: Mapping[str, Mapping[str, Position]] = field(default_factory=dict)
    states: Mapping[str, SavedState] = field(default_factory=dict)
    handles: Mapping[str, object] = field(default_factory=dict)

    staging: Callable[[str, pa.Schema], SinkStaging | None] = lambda sink, schema: None
    """Where a sink keeps rows; None without a store."""

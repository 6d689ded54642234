"""Drives a sink: writes batches in order, prepares at a barrier, commits after the store has.

Between prepare and commit the task takes nothing more, so a sink never holds two epochs. A slow sink is fed in
slices of what it was seen to write in half a second, so that a signal is heard.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pyarrow as pa

from dataflow.errors import DiskFullError
from dataflow.message import Barrier, Batch, End
from dataflow.operators.base import Receiver, Sink, SinkStaging, StepCounts
from dataflow.runtime.channel import CHANNEL_ROWS_MAX, Pace
from dataflow.runtime.epoch import Acks, TaskAck
from dataflow.runtime.room import ROOM_SECONDS, Room
from dataflow.runtime.task import Parts, Task, TaskPhase
from dataflow.system import Clock


class SinkTask(Task):
    """The task that owns one sink of a run; `sink_name` is its stable name, `epoch` the one that it begins with."""

    def __init__(
        self,
        parts: Parts,
        acks: Acks,
        clock: Clock,
        *,
        sink: Sink,
        sink_name: str,
        schema: pa.Schema,
        staging: SinkStaging | None,
        epoch: int,
    ) -> None:
        ((_, counts),) = parts.counts
        self.writer = _Writer(sink, schema, counts, clock)
        super().__init__(replace(parts, root=self.writer), acks, clock)
        self.sink, self.sink_name, self.staging, self.epoch = sink, sink_name, staging, epoch
        self.handle: object = None
        self._waits_for_commit = False
        self._commit_now = False
        sink.open(self.epoch)

    def turn(self) -> bool:
        if self._commit_now:
            self._commit()
            return True
        if self._waits_for_commit:
            return False
        if self.writer.write_some():
            return True
        return super().turn()

    @property
    def is_held_up(self) -> bool:
        return self.input.holds_up or (self._waits_for_commit and self.input.has_rows)

    def on_barrier(self, barrier: Barrier) -> None:
        self.epoch = barrier.epoch
        if barrier.stop:
            self._tell("leave")
        self._prepare()
        self.acks.prepared(self, barrier.epoch, self.ack())

    def on_end(self, end: End) -> None:
        is_last = end.flush or (end.at_head and not self.parts.durable)  # nobody will go on with it
        self._tell("end" if is_last else "leave")
        self._prepare()
        self.acks.ended(self, self.ack())

    def _tell(self, what: str) -> None:
        """Call a method that a sink need not have."""
        if (told := getattr(self.sink, what, None)) is not None:
            told()

    def _prepare(self) -> None:
        self.handle = self.sink.prepare(self.epoch)
        self._waits_for_commit = True

    def ack(self) -> TaskAck:
        staged = () if self.staging is None else tuple(self.staging.frames)
        return replace(super().ack(), sink=self.sink_name, handle=self.handle, staged=staged)

    def commit(self) -> None:
        """The store has committed what was prepared; called by the coordinator, done in the sink's own thread."""
        self._commit_now = True

    def _commit(self) -> None:
        self.sink.commit(self.handle)
        self.handle = None
        self._commit_now = self._waits_for_commit = False
        if self._ending:
            self.phase = TaskPhase.ENDED
        else:
            self.epoch += 1
            self.sink.open(self.epoch)

    def settle(self) -> None:
        """The run is over before this sink is: take its epoch back, unless the store has committed it. Then the sink
        has to; perhaps again, if its commit has failed. Where nobody may know whether the store has committed, what was
        prepared stays: the next run finds out, and tells the sink (`recover`)."""
        if self._commit_now:
            self.sink.commit(self.handle)
        elif not (self._waits_for_commit and self.parts.durable):
            self.sink.abort(self.handle)

    def _unpark(self) -> bool:
        """A barrier is handled once all rows before it are written."""
        return False if self.writer.waiting else super()._unpark()


class _Writer(Receiver):
    """Rows on their way into the sink."""

    def __init__(self, sink: Sink, schema: pa.Schema, counts: StepCounts, clock: Clock) -> None:
        self.sink, self.schema, self.counts, self.clock = sink, schema, counts, clock
        self.waiting: deque[pa.RecordBatch] = deque()
        self.pace = Pace(CHANNEL_ROWS_MAX)
        self.room, self.paused_until = Room(clock), 0.0

    def on_batch(self, batch: Batch) -> None:
        self.counts.rows_in += batch.num_rows
        if batch.num_rows:
            self.waiting.append(batch.to_record_batch(self.schema))
            self.write_some()

    def write_some(self) -> bool:
        """Write one slice; false when nothing waits."""
        if not self.waiting:
            return False
        began = self.clock.monotonic()
        if began < self.paused_until:
            return False
        batch = self.waiting[0]
        part = batch.slice(0, self.pace.rows_max)
        try:
            self.sink.write(part)
        except DiskFullError as error:
            if not getattr(self.sink, "waits_for_room", False):
                raise
            self.room.wait(error)
            self.paused_until = began + ROOM_SECONDS
            return False
        self.room.found()
        self.pace.measure(part.num_rows, self.clock.monotonic() - began)
        self.counts.passed += part.num_rows
        if part.num_rows == batch.num_rows:
            self.waiting.popleft()
        else:
            self.waiting[0] = batch.slice(part.num_rows)
        return True

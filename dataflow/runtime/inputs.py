"""What a task reads: one stream of messages, made of a source's units or of many channels.

Merging keeps three promises: the watermark is the least of all channels that have not ended; a barrier comes
once it has come on every channel; the end comes once every channel has ended. The hard part is order. Before a
sink, rows of several tasks are put back into the order of their source (`OrderedInput`), or, where a keyed
step made them, by event time and key (`TimeOrderedInput`): the output does not show how many tasks there were.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

import numpy as np
import pyarrow as pa

from dataflow.kernels.gateway import column_of, ints_of
from dataflow.message import (
    DERIVED,
    TIME_MAX_US,
    TIME_MIN_US,
    Barrier,
    Batch,
    End,
    Int64Array,
    Message,
    Progress,
    Watermark,
)
from dataflow.operators.base import Piece, ReadRequest, Rows, Saved, Snapshot, StreamType, event_time_us
from dataflow.runtime.channel import Channel, Pace
from dataflow.runtime.dispenser import Dispenser, PartitionEnd, Unit
from dataflow.runtime.exchange import Edge
from dataflow.state.order import canonical_order


class StatelessInput:
    """An input of which nothing outlives a run."""

    state_name: str | None = None
    rows_total = 0

    @property
    def holds_up(self) -> bool:
        return False

    @property
    def has_rows(self) -> bool:
        """Whether something could be taken."""
        return False

    def snapshot(self, epoch: int) -> Snapshot:
        raise NotImplementedError

    def restore(self, saved: Saved) -> None:
        raise NotImplementedError


class SourceInput(StatelessInput):
    """Decodes the units of a source, one after the other."""

    def __init__(
        self, dispenser: Dispenser, request: ReadRequest, task: int, positions: bool, edges: Sequence[Edge]
    ) -> None:
        self.dispenser, self.request, self.task, self.positions = dispenser, request, task, positions
        self._edges = edges
        self._tells_progress = any(edge.ordered for edge in edges)
        self.rows_total = 0
        self._unit: Unit | None = None
        self._reading: Iterator[Rows] = iter(())
        self._ahead: Rows | None = None
        self._batch: Batch | None = None
        self._progress_sent = self._next_sequence = -1
        self._pace = Pace(PACE_ROWS_MAX)

    def poll(self) -> Message | PartitionEnd | None:
        """The next message of this task; None when there is nothing to read now."""
        if self._unit is not None:
            if self._batch is not None or self._ahead is not None:
                return self._go_on(self._unit)
            self.dispenser.through(self._unit)  # its last rows have been handed on
            self._next_sequence = self._unit.place.sequence + 1
            self._unit = None
        if (progress := self._progress(self._next_sequence)) is not None:
            return progress
        taken = self.dispenser.take(self.task)
        if not isinstance(taken, Unit):
            return self._progress(self.dispenser.sequence) if taken is None else taken
        self._unit = taken
        self._reading = iter(taken.split.read())
        self._ahead = next(self._reading, None)
        assert self._ahead is not None, "a split has at least one Rows"
        # Said before the unit's rows: they may wait for another task, which may wait for a gather to hear this.
        return self._progress(taken.place.sequence) or self._go_on(taken)

    def _go_on(self, unit: Unit) -> Message | None:
        """The next slice of the unit; or the barrier, which may come between two; or None while others go first."""
        barrier = self.dispenser.barrier_for(self.task, unit)
        if barrier is not None:
            if barrier.stop:  # the other rows are left unread
                self._unit = self._batch = self._ahead = None
            return barrier
        if self._batch is None:
            self._batch = self._decoded(unit)
        if not unit.is_entered:
            if not self.dispenser.enter(self.task, unit, self._takes_long(self._batch)):
                return None
        elif unit.by_turn and not self._takes_long(self._batch):
            self.dispenser.let_pass(unit)
        made = self._slice(self._batch)
        unit.rows += made.num_rows
        return made

    def _takes_long(self, batch: Batch) -> bool:
        """Whether the rest of the unit, as far as it is known, keeps the task for more than a moment."""
        return batch.num_rows > MOMENT * self.slice_rows

    @property
    def slice_rows(self) -> int:
        """As many rows as the task, and the slowest of its receivers, are likely to take in half a second."""
        rows = self._pace.rows_max
        for edge in self._edges:
            rows = min(rows, edge.rows_max)
        return rows

    def _slice(self, batch: Batch) -> Batch:
        rows = self.slice_rows
        if batch.num_rows <= rows:
            self._batch = None
        else:
            self._batch, batch = batch.slice(rows, batch.num_rows - rows), batch.slice(0, rows)
        self.rows_total += batch.num_rows
        return batch

    def _progress(self, sequence: int) -> Progress | None:
        """Tell it, if it is news and somebody downstream waits for it."""
        if sequence <= self._progress_sent or not self._tells_progress:
            return None
        self._progress_sent = sequence
        return Progress(sequence)

    def _decoded(self, unit: Unit) -> Batch:
        assert self._ahead is not None
        rows, self._ahead = self._ahead, next(self._reading, None)
        place = unit.place if self._ahead is None else replace(unit.place, last=False)
        positions = None
        if self.positions:
            first = rows.first_position + (place.partition << POSITION_BITS)
            positions = np.arange(first, first + rows.num_rows, dtype=np.int64)
        return Batch(rows.columns, rows.num_rows, place, None, positions, unread=rows.unread)

    def consumed(self, rows: int, seconds: float) -> None:
        """The task took so long for the rows of the last batch."""
        self._pace.measure(rows, seconds)


MOMENT = 4
"""Times half a second: a unit that takes longer is entered when all earlier ones are through, so that an epoch need
not wait for it."""
PACE_ROWS_MAX = 1 << 30
"""A fast task gets its units whole."""
POSITION_BITS = 46
"""A position in a partition takes the low bits (70 T rows or bytes), the partition's number the others."""


class MergedInput(StatelessInput):
    """Messages of several channels as they come: for state that does not depend on their order."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self.channels = channels
        self._watermarks_us = [int(TIME_MIN_US)] * len(channels)
        self._blocked: list[Barrier | None] = [None] * len(channels)
        self._ended: list[End | None] = [None] * len(channels)
        self._next = 0
        self._sent_us: int = TIME_MIN_US
        self._last = 0
        self._barrier: Barrier | None = None
        """It comes after the watermark that was handed on last."""

    def poll(self) -> Message | None:
        """The next message of any channel; None when none has one."""
        if (barrier := self._due_barrier()) is not None:
            return barrier
        for _ in range(len(self.channels)):
            number = self._next
            self._next = (number + 1) % len(self.channels)
            if self._blocked[number] is None and self._ended[number] is None:
                message = self.channels[number].poll()
                if message is not None and (made := self._take(number, message)) is not None:
                    return made
        return None

    def _take(self, number: int, message: Message) -> Message | None:
        """What a message of one channel means for the task; None: nothing yet."""
        self._last = number
        if isinstance(message, Batch):
            return message
        if isinstance(message, Watermark):
            self._watermarks_us[number] = message.time_us
        elif isinstance(message, Barrier):
            self._blocked[number] = message
            return self._aligned(message)
        elif isinstance(message, End):
            return self._on_end(number, message)
        return self._watermark()

    def _on_end(self, number: int, message: End) -> Message | None:
        self._ended[number] = message
        self._watermarks_us[number] = TIME_MAX_US
        if all(end is not None for end in self._ended):
            ends = [end for end in self._ended if end is not None]
            return End(all(end.flush for end in ends), all(end.flush or end.at_head for end in ends))
        barrier = next((one for one in self._blocked if one is not None), None)
        aligned = self._aligned(barrier) if barrier is not None else None
        watermark = self._watermark() if message.flush else None
        if watermark is None:
            return aligned
        # The end came before the barrier: other tasks may have seen it so, and all have to be at one watermark there.
        self._barrier = aligned
        return watermark

    def _due_barrier(self) -> Barrier | None:
        barrier, self._barrier = self._barrier, None
        return barrier

    def _aligned(self, barrier: Barrier) -> Barrier | None:
        """The barrier, once every channel has brought it or has ended."""
        if any(b is None and e is None for b, e in zip(self._blocked, self._ended, strict=True)):
            return None
        self._blocked = [None] * len(self.channels)
        return barrier

    @property
    def holds_up(self) -> bool:
        waiting = zip(self._blocked, self.channels, strict=True)
        return any(barrier is not None and channel.peek() is not None for barrier, channel in waiting)

    @property
    def has_rows(self) -> bool:
        return any(channel.peek() is not None for channel in self.channels)

    def _watermark(self) -> Watermark | None:
        least = min(self._watermarks_us)
        if least <= self._sent_us:
            return None
        self._sent_us = least
        return Watermark(least)

    def consumed(self, rows: int, seconds: float) -> None:
        """The task took so long for the rows of the last batch."""
        self.channels[self._last].consumed(rows, seconds)


class OrderedInput(MergedInput):
    """Batches in the order in which their units were handed out.

    A stage's tasks get units in rising order, so the batch with the least sequence is the next one as soon as
    no other channel of that stage can bring a lower one. `stages` tells which stage each channel comes from;
    rows of different stages (a union) come as they are ready.
    """

    def __init__(self, channels: Sequence[Channel], stages: Sequence[object]) -> None:
        super().__init__(channels)
        self._groups = [[n for n, s in enumerate(stages) if s is stage] for stage in dict.fromkeys(stages)]
        self._reached = [-1] * len(channels)

    def poll(self) -> Message | None:
        if (barrier := self._due_barrier()) is not None:
            return barrier
        for group in self._groups:
            for number in group:
                made = self._take_controls(number)
                if made is not None:
                    return made
            if (ready := self._ready(group)) is not None:
                message = self.channels[ready].poll()
                assert isinstance(message, Batch)
                self._last = ready
                return message
        return None

    def _take_controls(self, number: int) -> Message | None:
        """Take what is not a batch from the head of a channel."""
        channel = self.channels[number]
        while self._blocked[number] is None and self._ended[number] is None:
            head = channel.peek()
            if head is None or isinstance(head, Batch):
                return None
            channel.poll()
            if isinstance(head, Progress):
                self._reached[number] = head.sequence
            elif (made := self._take(number, head)) is not None:
                return made
        return None

    def _ready(self, group: Sequence[int]) -> int | None:
        """The channel whose head is the next batch, or None while an earlier one may still come."""
        best: tuple[int, int] | None = None
        for number in group:
            at = self._earliest(number)
            if at is not None and (best is None or at < best[0]):
                best = (at, number)
        return best[1] if best is not None and isinstance(self.channels[best[1]].peek(), Batch) else None

    def _earliest(self, number: int) -> int | None:
        """The least sequence that a channel may bring; None when it brings no batch before the next barrier."""
        if self._blocked[number] is not None or self._ended[number] is not None:
            return None
        head = self.channels[number].peek()
        return head.place.sequence if isinstance(head, Batch) else self._reached[number]


class TimeOrderedInput(MergedInput):
    """Rows that keyed steps made, by event time and then by key; rows wait until the watermark has passed them.

    With `state_name`, a run that is stopped keeps rows that wait for the next one; without, it lets them go.
    """

    def __init__(self, channels: Sequence[Channel], kind: StreamType, positions: bool, state_name: str | None) -> None:
        super().__init__(channels)
        self.kind, self.positions, self.state_name = kind, positions, state_name
        self._held: list[Batch] = []
        self._ready: deque[Message] = deque()
        self._emitted = 0

    def poll(self) -> Message | None:
        while not self._ready:
            message = super().poll()
            if message is None:
                return None
            if isinstance(message, Batch):
                self._held.append(message)
            else:
                self._on_control(message)
        return self._ready.popleft()

    def _on_control(self, message: Message) -> None:
        if isinstance(message, Watermark):
            self._release(message.time_us)
        elif self._lets_go(message):
            self._release(TIME_MAX_US)
        self._ready.append(message)

    def _lets_go(self, message: Message) -> bool:
        """Whether no later watermark will let the rows go."""
        if isinstance(message, End):
            return message.flush
        return isinstance(message, Barrier) and message.stop and self.state_name is None

    def consumed(self, rows: int, seconds: float) -> None:
        """The rows of a released batch came through all channels."""
        for channel in self.channels:
            channel.consumed(rows, seconds)

    def snapshot(self, epoch: int) -> Snapshot:
        """The rows that wait, and how many have left."""
        kept = [self._to_keep(batch) for batch in self._held]
        return Snapshot({"emitted": self._emitted}, [Piece(kept)] if kept else [])

    def _to_keep(self, batch: Batch) -> pa.RecordBatch:
        names = list(batch.columns)
        schema = pa.schema([self.kind.schema.field(name) for name in names])
        return batch.to_record_batch(schema).append_column(TIME, column_of(self._times_us(batch)))

    def restore(self, saved: Saved) -> None:
        """Go on from what was kept. Before any message."""
        self._emitted = max((cast(int, one["emitted"]) for one in saved.values), default=0)
        for batch in (batch for piece in saved.pieces for batch in piece.load()):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            time_us = ints_of(columns.pop(TIME))
            self._held.append(Batch(columns, batch.num_rows, DERIVED, time_us=time_us))

    def _release(self, watermark_us: int) -> None:
        """Put the rows before the watermark in order; hold the others on."""
        due = self._due(watermark_us)
        if due:
            ordered = self._ordered(due)
            if self.positions:
                ordered.positions = np.arange(self._emitted, self._emitted + ordered.num_rows, dtype=np.int64)
            self._emitted += ordered.num_rows
            self._ready.append(ordered)

    def _due(self, watermark_us: int) -> list[Batch]:
        """The rows before the watermark, which are held no longer."""
        due: list[Batch] = []
        held: list[Batch] = []
        for batch in self._held:
            time_us = self._times_us(batch)
            before = time_us < watermark_us if watermark_us < TIME_MAX_US else np.ones(len(time_us), dtype=np.bool_)
            number = int(np.count_nonzero(before))
            if number in (0, batch.num_rows):
                (due if number else held).append(batch)
            else:
                due.append(batch.without(~before))
                held.append(batch.without(before))
        self._held = held
        return due

    def _ordered(self, batches: Sequence[Batch]) -> Batch:
        """Some batches as one, by event time and key. Mostly each is in order, and they follow each other."""
        keys = self.kind.order_keys or ()
        if all(batch.in_order == keys for batch in batches):
            runs = sorted(batches, key=lambda batch: int(self._times_us(batch)[0]))
            if all(self._times_us(one)[-1] < self._times_us(other)[0] for one, other in pairwise(runs)):
                return concatenated(runs)
        batch = concatenated(batches)
        return batch.take(canonical_order(self._times_us(batch), [batch.columns[name] for name in keys]))

    def _times_us(self, batch: Batch) -> Int64Array:
        return event_time_us(batch, self.kind.event_time)


TIME = "#time"
"""The column of kept rows that has their event time; users cannot type its name."""


def concatenated(batches: Sequence[Batch]) -> Batch:
    """The rows of derived batches as one."""
    if len(batches) == 1:
        return batches[0]
    names = batches[0].columns
    columns = {name: pa.concat_arrays([batch.columns[name] for batch in batches]) for name in names}
    made = Batch(columns, sum(batch.num_rows for batch in batches), DERIVED)
    made.time_us = np.concatenate([batch.time_us for batch in batches if batch.time_us is not None])
    return made

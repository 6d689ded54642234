"""What a task reads: one stream of messages, made of a source's units or of many channels.

Merging keeps three promises: the watermark is the least of all channels that have not ended; a barrier comes
once it has come on every channel; the end comes once every channel has ended. The hard part is order. Before a
sink, rows of several tasks are put back into the order of their source (`OrderedInput`), or, where a keyed
step made them, by event time and key (`TimeOrderedInput`): the output does not show how many tasks there were.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from dataflow.message import (
    DERIVED,
    TIME_MAX_US,
    TIME_MIN_US,
    Barrier,
    Batch,
    End,
    Int64Array,
    Message,
    Place,
    Progress,
    Watermark,
)
from dataflow.operators.base import ReadRequest, Rows, StreamType, event_time_us
from dataflow.runtime.channel import Channel, Pace
from dataflow.runtime.dispenser import Dispenser, PartitionEnd, Unit
from dataflow.runtime.exchange import Edge
from dataflow.state.order import canonical_order


class SourceInput:
    """Decodes the units of a source, one after the other."""

    def __init__(
        self, dispenser: Dispenser, request: ReadRequest, task: int, positions: bool, edges: Sequence[Edge]
    ) -> None:
        self.dispenser, self.request, self.task, self.positions = dispenser, request, task, positions
        self._edges = edges
        self._tells_progress = any(edge.ordered for edge in edges)
        self.rows_total = 0
        self._reading: Iterator[Rows] | None = None
        self._ahead: Rows | None = None
        self._place = Place(0, 0, 0)
        self._progress_sent = -1
        self._batch: Batch | None = None
        self._pace = Pace(PACE_ROWS_MAX)

    def poll(self) -> Message | PartitionEnd | None:
        """The next message of this task; None when there is nothing to read now."""
        if self._batch is None and self._ahead is not None:
            self._batch = self._decoded()
        if self._batch is not None:
            return self._cut_or_slice(self._batch)
        if self._reading is not None:
            self._reading = None
            if (progress := self._progress(self._place.sequence + 1)) is not None:
                return progress
        taken = self.dispenser.take(self.task)
        if isinstance(taken, Unit):
            self._place = taken.place
            self._reading = iter(taken.split.read())
            self._ahead = next(self._reading, None)
            assert self._ahead is not None, "a split has at least one Rows"
            self._batch = self._decoded()
            # Said before the unit's rows: they may wait for another task, which may wait for a gather to hear this.
            return self._progress(self._place.sequence) or self._slice(self._batch)
        return self._progress(self.dispenser.sequence) if taken is None else taken

    def _cut_or_slice(self, batch: Batch) -> Batch | Barrier:
        """A barrier may come between the slices of a batch; one that stops leaves the other rows unread."""
        barrier = self.dispenser.barrier_inside(self.task)
        if barrier is None:
            return self._slice(batch)
        if barrier.stop:
            self._batch = self._ahead = self._reading = None
        return barrier

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

    def _decoded(self) -> Batch:
        assert self._reading is not None and self._ahead is not None
        rows, self._ahead = self._ahead, next(self._reading, None)
        last = self._ahead is None
        place = self._place if last else Place(self._place.partition, self._place.unit, self._place.sequence, False)
        positions = None
        if self.positions:
            first = rows.first_position + (place.partition << POSITION_BITS)
            positions = np.arange(first, first + rows.num_rows, dtype=np.int64)
        return Batch(rows.columns, rows.num_rows, place, None, positions, unread=rows.unread)

    def consumed(self, rows: int, seconds: float) -> None:
        """The task took so long for the rows of the last batch."""
        self._pace.measure(rows, seconds)


PACE_ROWS_MAX = 1 << 30
"""A fast task gets its units whole."""
POSITION_BITS = 46
"""A position in a partition takes the low bits (70 T rows or bytes), the partition's number the others."""


class MergedInput:
    """Messages of several channels as they come: for state that does not depend on their order."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self.channels = channels
        self._watermarks_us = [int(TIME_MIN_US)] * len(channels)
        self._blocked: list[Barrier | None] = [None] * len(channels)
        self._ended: list[End | None] = [None] * len(channels)
        self._next = 0
        self._sent_us: int = TIME_MIN_US
        self._last = 0

    def poll(self) -> Message | None:
        """The next message of any channel; None when none has one."""
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
            return End(flush=all(end.flush for end in self._ended if end is not None))
        barrier = next((one for one in self._blocked if one is not None), None)
        aligned = self._aligned(barrier) if barrier is not None else None
        return aligned if aligned is not None else (self._watermark() if message.flush else None)

    def _aligned(self, barrier: Barrier) -> Barrier | None:
        """The barrier, once every channel has brought it or has ended."""
        if any(b is None and e is None for b, e in zip(self._blocked, self._ended, strict=True)):
            return None
        self._blocked = [None] * len(self.channels)
        return barrier

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
    """Rows that keyed steps made, by event time and then by key; rows wait until the watermark has passed them."""

    def __init__(self, channels: Sequence[Channel], kind: StreamType, positions: bool) -> None:
        super().__init__(channels)
        self.kind, self.positions = kind, positions
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
        elif (isinstance(message, Barrier) and message.stop) or isinstance(message, End):
            self._release(TIME_MAX_US)
        self._ready.append(message)

    def consumed(self, rows: int, seconds: float) -> None:
        """The rows of a released batch came through all channels."""
        for channel in self.channels:
            channel.consumed(rows, seconds)

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


def concatenated(batches: Sequence[Batch]) -> Batch:
    """The rows of derived batches as one."""
    if len(batches) == 1:
        return batches[0]
    names = batches[0].columns
    columns = {name: pa.concat_arrays([batch.columns[name] for batch in batches]) for name in names}
    made = Batch(columns, sum(batch.num_rows for batch in batches), DERIVED)
    made.time_us = np.concatenate([batch.time_us for batch in batches if batch.time_us is not None])
    return made

"""Event time and its watermark: W_p before a row is the greatest event time seen in its partition, less a delay.

The hard part: several workers decode the units of one partition at once, yet W_p must follow the partition's
own order. Each task reports the greatest time of a unit to the `WatermarkLine` that the tasks share; the
maximum over all earlier units is known once they all have reported, and until then the task keeps the unit's
rows. The task with the earliest unit never waits, so the others always go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import numpy as np
import pyarrow as pa

from dataflow.errors import PlanError, TypeMismatchError
from dataflow.event_time import format_duration
from dataflow.expr import Bad
from dataflow.message import TIME_MAX_US, TIME_MIN_US, Batch
from dataflow.operators.base import (
    EventTime,
    Operator,
    OperatorContext,
    Saved,
    Snapshot,
    StatelessSpec,
    StreamType,
    event_ticks,
    event_time_us,
    send_errors,
)
from dataflow.operators.stateless import require_column
from dataflow.system import Mutex


@dataclass(frozen=True)
class WatermarkSpec(StatelessSpec):
    """Declares the event-time column and how far rows may be out of order."""

    column: str
    delay_us: int
    verb: ClassVar[str] = "watermark"
    keeps_state: ClassVar[bool] = True

    def output_type(self, inputs: Sequence[StreamType]) -> StreamType:
        source = inputs[0]
        kind = require_column(self.column, source.schema, self.verb).type
        if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            raise TypeMismatchError(
                f"watermark: `{self.column}` is {kind}, but event time is a timestamp or a date",
                help=f'convert it, as in `.watermark(col.{self.column}.cast("timestamp[ms]"), …)`',
            )
        if source.order_keys is not None:
            raise PlanError(
                "watermark: the results of a window have an event time already (one tick before window_end)",
                help="leave this watermark out; a following window uses that event time",
            )
        return StreamType(source.schema, EventTime(self.column), source.bounded)

    def columns_needed(self, wanted: frozenset[str], input_type: StreamType) -> frozenset[str]:
        return wanted | {self.column}

    def describe(self) -> str:
        return f"{self.column}, delay={format_duration(self.delay_us)}"

    def identity(self) -> tuple[object, ...]:
        return (self.verb, self.column, self.delay_us)

    def build(self, input_type: StreamType, wanted: frozenset[str], context: OperatorContext) -> Operator:
        line = cast(WatermarkLine, context.shared(lambda: WatermarkLine(context.system.scheduler.mutex())))
        line.register(list(context.partitions))
        return AssignWatermark(self, line, context)


@dataclass(slots=True)
class _Frontier:
    """How far a partition has reported without a gap: `max_us` over all units before `unit`."""

    unit: int = 0
    max_us: int = TIME_MIN_US
    ahead: dict[int, int] = field(default_factory=dict)
    """Reports of units behind a gap."""
    before: dict[int, int] = field(default_factory=lambda: {0: int(TIME_MIN_US)})
    """The maximum before a unit that has not been asked for yet."""
    units_total: int | None = None

    @property
    def finished(self) -> bool:
        return self.units_total is not None and self.unit >= self.units_total


class WatermarkLine:
    """The greatest event time before each unit of each partition; shared by the tasks of a job."""

    def __init__(self, lock: Mutex) -> None:
        self._lock = lock
        self._frontiers: dict[int, _Frontier] = {}
        self._awaited = False
        """Whether a task has asked in vain."""
        self.version = 0
        """Changes with everything that is reported."""

    def register(self, partitions: Sequence[int]) -> None:
        """Partitions that hold the watermark back until they are heard of."""
        for partition in partitions:
            self._frontiers.setdefault(partition, _Frontier())

    def resume(self, partition: int, max_us: int) -> None:
        """An earlier run has seen this time in the partition. Before any unit."""
        frontier = self._frontiers[partition]
        frontier.max_us = frontier.before[0] = max(frontier.max_us, max_us)

    def report(self, partition: int, unit: int, max_us: int) -> bool:
        """The greatest time of a unit; once for each. True when a task may wait for it."""
        with self._lock:
            self.version += 1
            frontier = self._frontiers[partition]
            frontier.ahead[unit] = max_us
            while frontier.unit in frontier.ahead:
                frontier.max_us = max(frontier.max_us, frontier.ahead.pop(frontier.unit))
                frontier.unit += 1
                frontier.before[frontier.unit] = frontier.max_us
            awaited, self._awaited = self._awaited, False
            return awaited

    def finish(self, partition: int, units_total: int) -> None:
        """The partition has ended: it no longer holds the others back."""
        with self._lock:
            self.version += 1
            self._frontiers[partition].units_total = units_total

    def before(self, partition: int, unit: int) -> int | None:
        """The greatest time before a unit, or None while an earlier unit has not reported."""
        known = self._frontiers[partition].before.get(unit)
        if known is None:
            with self._lock:
                known = self._frontiers[partition].before.get(unit)
                self._awaited = self._awaited or known is None
        return known

    def passed(self, partition: int, unit: int) -> None:
        """Nobody asks again for the maximum before `unit`."""
        with self._lock:
            self._frontiers[partition].before.pop(unit, None)

    def max_us(self, held: dict[int, int]) -> int:
        """The least of the partitions' maxima: what a task that still holds these units may count on."""
        with self._lock:
            least = int(TIME_MAX_US)
            for partition, frontier in self._frontiers.items():
                if partition in held:
                    least = min(least, frontier.before.get(held[partition], TIME_MIN_US))
                elif not frontier.finished:
                    least = min(least, frontier.max_us)
            return least


@dataclass(slots=True)
class _Held:
    """A batch whose rows cannot be judged yet."""

    batch: Batch
    min_us: int
    behind: bool
    before_in_unit_us: int


class AssignWatermark(Operator):
    """Finds the rows behind the watermark of their partition, and tells how far it is."""

    may_hold = True

    def __init__(self, spec: WatermarkSpec, line: WatermarkLine, context: OperatorContext) -> None:
        super().__init__(context)
        from dataflow.kernels import windows

        self.kernels = windows
        self.column, self.delay_us, self.line = spec.column, spec.delay_us, line
        self.event_time = EventTime(spec.column)
        self.state_name = f"{context.name}/watermark {spec.describe()}"
        self.waiting: deque[_Held | int] = deque()
        self.unit_max_us: int = TIME_MIN_US
        self.seen_us: dict[int, int] = {}
        """The greatest time of each partition that this task has seen, in an earlier run too."""
        self.sent_us: int = TIME_MIN_US
        self.seen = 0
        """The version of the line at the last look."""

    @property
    def held(self) -> int:
        return len(self.waiting)

    def on_batch(self, batch: Batch) -> None:
        self.counts.rows_in += batch.num_rows
        batch = self._without_null_times(batch)
        batch.watermark_before_us = batch.time_us = None  # of a watermark before this one
        held = _Held(batch, TIME_MAX_US, False, self.unit_max_us)
        if batch.unread is not None:
            held.min_us = batch.unread.least_us
            self.unit_max_us = max(self.unit_max_us, batch.unread.most_us)
        elif batch.num_rows:
            ticks, factor = event_ticks(batch, self.event_time)
            held.min_us, max_us, held.behind = self.kernels.scan_times(ticks, factor, self.delay_us)
            self.unit_max_us = max(self.unit_max_us, max_us)
        partition = batch.place.partition
        self.seen_us[partition] = max(self.seen_us.get(partition, TIME_MIN_US), self.unit_max_us)
        self.waiting.append(held)
        if batch.place.last:
            if self.line.report(batch.place.partition, batch.place.unit, self.unit_max_us):
                self.context.wake()
            self.unit_max_us = TIME_MIN_US
        self._go_on()

    def snapshot(self, epoch: int) -> Snapshot:
        """What the task has seen: the greatest of all tasks is the greatest before the cut."""
        names = self.context.partitions
        return Snapshot({"max_us": {names[number]: max_us for number, max_us in self.seen_us.items()}})

    def restore(self, saved: Saved) -> None:
        numbers = {name: number for number, name in self.context.partitions.items()}
        for values in saved.values:
            for name, max_us in cast(Mapping[str, int], values["max_us"]).items():
                if name in numbers:
                    self.line.resume(numbers[name], max_us)
                    self.seen_us[numbers[name]] = max(self.seen_us.get(numbers[name], TIME_MIN_US), max_us)

    def _without_null_times(self, batch: Batch) -> Batch:
        if batch.unread is not None or not batch.columns[self.column].null_count:
            return batch
        column = batch.columns[self.column]
        nulls = column.is_null().to_numpy(zero_copy_only=False)
        send_errors(batch, [Bad(nulls, "DF0404", f"the event time `{self.column}` is null")], self)
        return batch.without(nulls)

    def on_progress(self, sequence: int) -> None:
        self.waiting.append(sequence)
        self._go_on()

    def on_partition_end(self, partition: int, units_total: int) -> None:
        self.line.finish(partition, units_total)
        self._go_on()

    def turn(self) -> bool:
        return self._go_on() if self.line.version != self.seen else False

    def _go_on(self) -> bool:
        """Release what need not wait any more, and tell how far the watermark is."""
        moved = False
        self.seen = self.line.version
        while self.waiting and self._release(self.waiting[0]):
            self.waiting.popleft()
            moved = True
        return self._forward_watermark() or moved

    def _release(self, first: _Held | int) -> bool:
        if isinstance(first, int):
            super().on_progress(first)
            return True
        place = first.batch.place
        before_us = self.line.before(place.partition, place.unit)
        if before_us is None:
            return False
        if place.last:
            self.line.passed(place.partition, place.unit)
        self._judge(first, max(before_us, first.before_in_unit_us))
        self.counts.passed += first.batch.num_rows
        self.out.on_batch(first.batch)
        return True

    def _judge(self, held: _Held, before_us: int) -> None:
        """Attach W_p to a batch, if any of its rows is behind it."""
        unread = held.batch.unread
        if unread is not None:
            read = unread.read

            def read_and_attach(batch: Batch) -> None:
                read(batch)
                self._attach(batch, before_us)

            unread.watermark_max_us = _less(max(before_us, unread.most_us), self.delay_us)
            unread.read = read_and_attach
        elif held.behind or held.min_us < _less(before_us, self.delay_us):
            self._attach(held.batch, before_us)

    def _attach(self, batch: Batch, before_us: int) -> None:
        time_us = event_time_us(batch, self.event_time)
        watermark_us = np.empty(len(time_us), dtype=np.int64)
        self.kernels.running_watermark(time_us, before_us, self.delay_us, watermark_us)
        batch.watermark_before_us = watermark_us

    def _forward_watermark(self) -> bool:
        held: dict[int, int] = {}
        for item in self.waiting:
            if isinstance(item, _Held):
                held.setdefault(item.batch.place.partition, item.batch.place.unit)
        max_us = self.line.max_us(held)
        watermark_us = max_us if max_us == TIME_MAX_US else _less(max_us, self.delay_us)
        if watermark_us <= self.sent_us:
            return False
        self.sent_us = watermark_us
        self.out.on_watermark(watermark_us)
        return True

    def on_watermark(self, time_us: int) -> None:
        """The watermark of an event time declared before this one ends here."""


def _less(time_us: int, delay_us: int) -> int:
    return max(time_us - delay_us, TIME_MIN_US)

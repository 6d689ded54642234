"""The open groups of one task, in either part of a window aggregate."""

from __future__ import annotations

import math

import pyarrow as pa

from dataflow.kernels.gateway import ints_of
from dataflow.message import TIME_MAX_US, Batch, Int32Array, Int64Array
from dataflow.operators.accumulators import AggregateSet, RowOrder
from dataflow.operators.base import Operator, OperatorContext
from dataflow.operators.windows.base import Window
from dataflow.state.keyed import Groups

PANE = "#pane"
TIME = "#time"
POSITION = "#position"
"""Columns that only travel between the parts of one step; users cannot type these names."""


class WindowGroups:
    """The open groups (key and pane) of one task and what their aggregates have gathered."""

    def __init__(self, window: Window, lateness_us: int, by: pa.Schema, aggregates: AggregateSet) -> None:
        self.window, self.lateness_us, self.by = window, lateness_us, tuple(by.names)
        self.groups = Groups(by.types)
        self.state = aggregates.build()
        self._inputs = [f"#{number}" for number in range(len(aggregates.inputs))]
        self._needs_order = aggregates.needs_order
        self.oldest: float = math.inf
        """No group has a pane before it; infinite without any."""

    def update(self, batch: Batch) -> None:
        """Take in rows."""
        slots = self.slots_of(batch)
        order = RowOrder(ints_of(batch.columns[TIME]), ints_of(batch.columns[POSITION])) if self._needs_order else None
        self.state.update(slots, [batch.columns[name] for name in self._inputs], order)

    def slots_of(self, batch: Batch) -> Int32Array:
        """The slot of each row's group; new groups are made."""
        known = self.groups.count
        keys = [batch.columns[name] for name in self.by]
        panes = ints_of(batch.columns[PANE])
        slots = self.groups.slots(keys, panes)
        if self.groups.count > known:
            self.state.grow(self.groups.room)
            self.oldest = min(self.oldest, int(panes.min()))
        return slots

    def due(self, watermark_us: int) -> Int64Array | None:
        """The slots of the groups that are final now, or None for none."""
        if watermark_us == TIME_MAX_US:
            slots = self.groups.live_slots()
            self.oldest = math.inf
            return slots if len(slots) else None
        last = self.window.last_ended(watermark_us - self.lateness_us)
        if self.oldest > last:
            return None
        slots, self.oldest = self.groups.due_slots(last)
        return slots if len(slots) else None  # the oldest may have been emitted early

    def release(self, slots: Int64Array) -> None:
        """Forget groups that have been emitted."""
        self.state.clear(slots)
        kept = self.groups.release(slots)
        if kept is not None:
            self.state.keep(kept, self.groups.room)


class GroupOperator(Operator):
    """One part of a window aggregate: it gathers groups, and emits those that the watermark has passed."""

    def __init__(self, groups: WindowGroups, context: OperatorContext) -> None:
        super().__init__(context)
        self.groups = groups

    def emit(self, slots: Int64Array) -> None:
        """Hand on these groups, at least one, and forget them."""
        raise NotImplementedError

    def emit_due(self, watermark_us: int) -> None:
        due = self.groups.due(watermark_us)
        if due is not None:
            self.emit(due)

    def on_end(self) -> None:
        self.emit_due(TIME_MAX_US)
        super().on_end()

"""The open groups of one task, in either part of a window aggregate, and how they outlive a run.

What is kept of groups is what came in for them: the batches since the last epoch are written, those of earlier epochs
are in the store already. That is exact, and costs what the epoch brought, not what is open. Once that is more than
the groups themselves, they are written anew and the log begins again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from dataflow.kernels.gateway import ints_of
from dataflow.message import TIME_MAX_US, Batch, Int32Array, Int64Array
from dataflow.operators.accumulators import AggregateSet, RowOrder
from dataflow.operators.base import Operator, OperatorContext, Piece
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
        last = self.last_final(watermark_us)
        if self.oldest > last:
            return None
        slots, self.oldest = self.groups.due_slots(last)
        return slots if len(slots) else None  # the oldest may have been emitted early

    def last_final(self, watermark_us: int) -> int:
        """The last pane that is final at a watermark."""
        return self.window.last_ended(watermark_us - self.lateness_us)

    def release(self, slots: Int64Array) -> None:
        """Forget groups that have been emitted."""
        self.state.clear(slots)
        kept = self.groups.release(slots)
        if kept is not None:
            self.state.keep(kept, self.groups.room)


LOG_ROWS_MAX = 2
"""Rows of a log for each row that would do; beyond, it is written anew."""
LOG_BYTES_MAX = 64 << 20
"""Of rows since the last epoch: an epoch is asked for when so many wait to be written."""


class Inherited:
    """What an earlier run has kept of all groups of a step; shared by its tasks, which give it up together.

    Its rows are of no task in particular. If one task wrote its groups anew while another one still needs these rows,
    the next run would find some groups twice.
    """

    def __init__(self) -> None:
        self.pieces: Sequence[Piece] = ()
        self._until: float = math.inf

    def give_up_after(self, epoch: int) -> None:
        """From the next epoch on nobody needs it: by then all tasks have heard of it."""
        self._until = min(self._until, epoch)

    def is_given_up(self, epoch: int) -> bool:
        return epoch > self._until


class GroupLog:
    """What came in for the open groups since they were written as a whole."""

    def __init__(self, inherited: Inherited, epoch_wanted: Callable[[], None]) -> None:
        self._epoch_wanted = epoch_wanted
        self._inherited: Inherited | None = inherited
        self._inherited_rows = 0
        """Those of this task."""
        self._pieces: list[Piece] = []
        self._fresh: list[pa.RecordBatch] = []
        self._fresh_bytes = 0

    def inherit(self, pieces: Sequence[Piece], rows: int) -> None:
        """An earlier run has kept these pieces, of which so many rows are this task's."""
        assert self._inherited is not None
        self._inherited.pieces, self._inherited_rows = pieces, rows

    def add(self, batch: Batch) -> None:
        """These rows came in."""
        self._fresh.append(as_record_batch(batch))
        self._fresh_bytes += batch.nbytes
        if self._fresh_bytes > LOG_BYTES_MAX:
            self._fresh_bytes = 0
            self._epoch_wanted()

    def inherited_rows(self) -> Iterator[pa.RecordBatch]:
        """Those that an earlier run has kept, of all tasks."""
        for piece in self._inherited.pieces if self._inherited is not None else ():
            yield from piece.load()

    def own_rows(self) -> Iterator[pa.RecordBatch]:
        """All others."""
        for piece in self._pieces:
            yield from piece.load()
        yield from self._fresh

    def snapshot(self, epoch: int, needed: int, whole: Callable[[], list[pa.RecordBatch]]) -> list[Piece]:
        """What restores the groups. `whole()` does so too, with as many rows as are needed."""
        rows = sum(piece.rows for piece in self._pieces) + sum(batch.num_rows for batch in self._fresh)
        is_long = self._inherited_rows + rows > LOG_ROWS_MAX * needed
        if is_long and self._inherited is not None and self._inherited.pieces:
            self._inherited.give_up_after(epoch)
        is_free = self._inherited is None or not self._inherited.pieces or self._inherited.is_given_up(epoch)
        if is_free and (is_long or self._inherited is not None):
            batches = whole()
            self._pieces, self._inherited, self._inherited_rows = [Piece(batches)] if batches else [], None, 0
        elif self._fresh:
            self._pieces = [*self._pieces, Piece(self._fresh)]
        self._fresh, self._fresh_bytes = [], 0
        return [*(self._inherited.pieces if self._inherited is not None else ()), *self._pieces]


def as_record_batch(batch: Batch) -> pa.RecordBatch:
    """The rows with columns in their logical types."""
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in batch.columns.values()
    ]
    return pa.RecordBatch.from_arrays(columns, list(batch.columns))


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

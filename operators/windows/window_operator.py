"""Aggregation over windows: the one place that knows lateness, emission and their ledger.

A row takes two steps. Where it was read, `WindowInput` judges whether it is late (by the watermark of its own
partition, so the answer depends on nobody else) and computes what the aggregates need. Then the groups are
formed: mergeable aggregates first in the task that read the row (`PartialAggregate`), so that only one row a
group and window crosses to the task that owns the key (`MergeAggregate`); others send the rows themselves
(`RowAggregate`). The hard part is to close a window exactly once: when the watermark, merged over all inputs,
has passed its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import pyarrow as pa

from dataflow.aggregates import Aggregate
from dataflow.errors import NameNotFoundError, PlanError
from dataflow.event_time import format_duration, from_us
from dataflow.expr import Bad, BoundExpr
from dataflow.kernels.gateway import column_of, ints_of
from dataflow.message import DERIVED, TIME_MAX_US, TIME_MIN_US, Batch, BoolArray, Int64Array, UnreadTimes
from dataflow.operators.accumulators import AggregateSet
from dataflow.operators.base import (
    EventTime,
    Operator,
    OperatorContext,
    OperatorSpec,
    Saved,
    Snapshot,
    StreamType,
    error_type,
    event_ticks,
    event_time_us,
    send_errors,
)
from dataflow.operators.stateless import require_column
from dataflow.operators.windows.base import Window
from dataflow.operators.windows.groups import (
    PANE,
    POSITION,
    TIME,
    GroupLog,
    GroupOperator,
    Inherited,
    WindowGroups,
    as_record_batch,
)
from dataflow.operators.windows.partial import merging_task, owning_task
from dataflow.schema import check_key_type


@dataclass(frozen=True)
class WindowAggregateSpec(OperatorSpec):
    """`window(w, by=…).agg(…)`: one row a window and key, when the window is final."""

    window: Window
    by: tuple[str, ...]
    aggregates: tuple[tuple[str, Aggregate], ...]
    lateness_us: int = 0
    verb: ClassVar[str] = "agg"

    def output_type(self, inputs: Sequence[StreamType]) -> StreamType:
        source = inputs[0]
        if source.event_time is None:
            raise PlanError(
                "a window needs event time, and this stream has none",
                code="DF0403",
                help='say which column tells when a row happened: `.watermark("ts", delay="10s")`; select must keep it',
            )
        for name in self.by:
            check_key_type(name, require_column(name, source.schema, "window by").type)
        self._refuse_clashes()
        bound = self.bind(source)
        bounds = [pa.field(name, window_time_type(source)) for name in ("window_start", "window_end")]
        keys = [source.schema.field(name) for name in self.by]
        return StreamType(
            pa.schema([*bounds, *keys, *bound.fields]), EventTime("window_end", 1), source.bounded, self.by
        )

    def _refuse_clashes(self) -> None:
        bounds = ("window_start", "window_end")
        for key in self.by:
            if self.by.count(key) > 1:
                raise NameNotFoundError(f"window by: `{key}` is there twice", code="DF0203", help="give each key once")
            if key in bounds:
                raise NameNotFoundError(
                    f"window by: a key cannot be called `{key}`, since a column of the result is",
                    code="DF0203",
                    help=f'rename it before the window, as in `.rename(earlier_{key}="{key}")`',
                )
        names = [*bounds, *self.by, *(name for name, _ in self.aggregates)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise NameNotFoundError(
                f"agg makes a second column `{min(twice)}`",
                code="DF0203",
                help="give the aggregate another name, as in `.agg(n=count())`; window_start, window_end and the keys "
                "are taken",
            )

    def side_type(self, port: str, inputs: Sequence[StreamType]) -> StreamType:
        source = inputs[0]
        if port == "late":
            extra = [
                pa.field("late_by", pa.duration("us")),
                pa.field("late_reason", pa.string()),
                pa.field("watermark", window_time_type(source)),
                pa.field("window_end", window_time_type(source)),
            ]
            kept = [f for f in source.schema if f.name not in {e.name for e in extra}]
            return StreamType(pa.schema([*kept, *extra]), None, source.bounded, source.order_keys)
        return error_type(source)

    def bind(self, source: StreamType) -> AggregateSet:
        return AggregateSet(dict(self.aggregates), source.schema)

    def groups(self, source: StreamType, aggregates: AggregateSet) -> WindowGroups:
        """Empty groups for one task."""
        by = pa.schema([source.schema.field(name) for name in self.by])
        return WindowGroups(self.window, self.lateness_us, by, aggregates)

    def asks_only_for_the_pane(self, column: str) -> bool:
        """Whether the event time in that column tells a row's pane, and nothing else is made of it."""
        return column not in self.by and not any(column in one.columns() for _, one in self.aggregates)

    def is_one_pane(self, least_us: int, most_us: int) -> bool:
        """Whether all rows between two times fall into one pane."""
        return self.pane_of(least_us) == self.pane_of(most_us)

    def pane_of(self, time_us: int) -> int:
        """The first pane that has not ended at a time."""
        return self.window.last_ended(time_us) + 1

    def last_final(self, watermark_us: int) -> int:
        """The last pane that is final at a watermark."""
        return self.window.last_ended(watermark_us - self.lateness_us)

    def columns_needed(self, wanted: frozenset[str], input_type: StreamType) -> frozenset[str]:
        assert input_type.event_time is not None
        inputs = (aggregate.columns() for _, aggregate in self.aggregates)
        order = input_type.order_keys if input_type.order_keys and self.bind(input_type).needs_order else ()
        return frozenset({*self.by, input_type.event_time.column, *order}).union(*inputs)

    def describe(self) -> str:
        keys = f" by {', '.join(self.by)}" if self.by else ""
        late = f", lateness={format_duration(self.lateness_us)}" if self.lateness_us else ""
        made = ", ".join(f"{name}={aggregate!r}" for name, aggregate in self.aggregates)
        return f"{self.window.describe()}{keys}{late}: {made}"

    def identity(self) -> tuple[object, ...]:
        made = tuple((name, aggregate.identity()) for name, aggregate in self.aggregates)
        return (self.verb, self.window.identity(), self.by, self.lateness_us, made)


def window_time_type(source: StreamType) -> pa.DataType:
    """Window bounds are microseconds in the zone of the event time."""
    assert source.event_time is not None
    kind = source.schema.field(source.event_time.column).type
    return pa.timestamp("us", tz=getattr(kind, "tz", None))


def final_us(window: Window, panes: Int64Array, lateness_us: int) -> Int64Array:
    """The watermark at which each pane is final; saturating."""
    ends = window.end_us(panes)
    return np.where(ends > TIME_MAX_US - lateness_us, TIME_MAX_US, ends + lateness_us)


def _of_runs(edge_us: Callable[[Int64Array], Int64Array], panes: Int64Array) -> Int64Array:
    """An edge of each of some panes, which ascend: mostly it is one pane."""
    return np.repeat(edge_us(panes[:1]), len(panes)) if panes[0] == panes[-1] else edge_us(panes)


class WindowInput(Operator):
    """Sends late rows and rows that cannot be computed aside; the others get panes and aggregate inputs."""

    def __init__(
        self, spec: WindowAggregateSpec, source: StreamType, aggregates: AggregateSet, context: OperatorContext
    ) -> None:
        super().__init__(context)
        assert source.event_time is not None
        self.spec, self.event_time, self.aggregates = spec, source.event_time, aggregates
        self.inputs: list[BoundExpr] = [expr.bind(source.schema) for expr in aggregates.inputs]
        self.time_type = window_time_type(source)
        self.last_final = self.spec.window.last_ended(TIME_MIN_US)

    def on_watermark(self, time_us: int) -> None:
        """Hand on only a watermark at which a pane becomes final: each one turns several tasks."""
        last = self.spec.last_final(time_us)
        if last > self.last_final or time_us == TIME_MAX_US:
            self.last_final = last
            self.out.on_watermark(time_us)

    def on_batch(self, batch: Batch) -> None:
        self.counts.rows_in += batch.num_rows
        pane = self._only_pane(batch.unread)
        if pane is not None:
            self._send_timely(batch, np.full(batch.num_rows, pane))
            return
        batch.read_times()
        panes = self.spec.window.panes_of(*event_ticks(batch, self.event_time))
        if batch.watermark_before_us is not None:
            late = final_us(self.spec.window, panes, self.spec.lateness_us) <= batch.watermark_before_us
            if late.any():
                self._send_late(batch, panes, late)
                batch, panes = batch.without(late), panes[~late]
        self._send_timely(batch, panes)

    def _only_pane(self, unread: UnreadTimes | None) -> int | None:
        """The pane of all rows, if their times need not be read to know it, and to know that none is late."""
        if unread is None or unread.watermark_max_us is None or unread.watermark_max_us == TIME_MAX_US:
            return None
        if not self.spec.is_one_pane(unread.least_us, unread.most_us):
            return None
        pane = self.spec.pane_of(unread.least_us)
        return pane if pane > self.spec.last_final(unread.watermark_max_us) else None

    def _send_late(self, batch: Batch, panes: Int64Array, late: BoolArray) -> None:
        rows = batch.filter(pa.array(late), int(np.count_nonzero(late)))
        self.counts.late += rows.num_rows
        watermark_us = cast(Int64Array, rows.watermark_before_us)
        late_by_us = watermark_us - final_us(self.spec.window, panes[late], self.spec.lateness_us)
        late_by_us[late_by_us < 0] = TIME_MAX_US  # it is never negative: the difference did not fit
        extra = {
            "late_by": column_of(late_by_us, pa.duration("us")),
            "late_reason": pa.repeat(pa.scalar("window_final"), rows.num_rows),
            "watermark": from_us(watermark_us, self.time_type),
            "window_end": from_us(self.spec.window.end_us(panes[late]), self.time_type),
        }
        self.late.on_batch(rows.with_columns(rows.columns | extra))

    def _send_timely(self, batch: Batch, panes: Int64Array) -> None:
        columns = {name: batch.columns[name] for name in self.spec.by}
        bad: list[Bad] = []
        for number, bound in enumerate(self.inputs):
            evaluated = bound.evaluate(batch.columns, batch.num_rows)
            columns[f"#{number}"] = evaluated.values
            bad.extend(evaluated.bad)
        columns[PANE] = column_of(panes)
        if self.aggregates.needs_order:
            assert batch.positions is not None
            columns[TIME] = column_of(event_time_us(batch, self.event_time))
            columns[POSITION] = column_of(batch.positions)
        made = Batch(columns, batch.num_rows, batch.place)
        if bad and (rows := send_errors(batch, bad, self)) is not None:
            made = made.without(rows)
        if made.num_rows:
            self.out.on_batch(made)


class CloseWindows(GroupOperator):
    """Emits the rows of final groups; how they are gathered is up to the two kinds below."""

    def __init__(
        self, spec: WindowAggregateSpec, source: StreamType, aggregates: AggregateSet, context: OperatorContext
    ) -> None:
        super().__init__(spec.groups(source, aggregates), context)
        self.state_name = context.name
        inherited = cast(Inherited, context.shared(Inherited))
        self.log = GroupLog(inherited, context.epoch_wanted) if context.durable else None
        self.closed: int = spec.window.last_ended(TIME_MIN_US)
        """The last pane that has been closed."""
        self.wide_from: int | None = None
        """The first wide pane of the run before."""
        self.names = [f.name for f in aggregates.fields]
        assert source.event_time is not None
        self.time_type, self.source_schema = window_time_type(source), source.schema
        self.time_column = source.event_time.column

    def on_watermark(self, time_us: int) -> None:
        self.emit_due(time_us)
        self.closed = max(self.closed, self.groups.last_final(time_us))
        self.out.on_watermark(max(time_us - self.groups.lateness_us, TIME_MIN_US))

    def on_end(self) -> None:
        super().on_end()
        self.closed = self.groups.last_final(TIME_MAX_US)

    def on_batch(self, batch: Batch) -> None:
        self.take_in(batch)
        if self.log is not None:
            self.log.add(batch)

    def take_in(self, batch: Batch) -> None:
        """Put rows into their groups."""
        raise NotImplementedError

    def whole(self) -> list[pa.RecordBatch]:
        """All that is known of the open groups, as batches that `take_in` takes."""
        raise NotImplementedError

    def snapshot(self, epoch: int) -> Snapshot:
        """A barrier finds all tasks of the step at the same watermark, so `closed` is the same for all."""
        assert self.log is not None
        groups = self.groups.groups
        panes = groups.panes[groups.live_slots()]
        last = int(panes.max()) if len(panes) else None
        pieces = self.log.snapshot(epoch, self.needed, self.whole)
        return Snapshot({"closed": self.closed, "last_pane": last}, pieces)

    @property
    def needed(self) -> int:
        """How many rows `whole` would have."""
        return self.groups.groups.count

    def restore(self, saved: Saved) -> None:
        """Take this task's share of the open groups."""
        assert self.log is not None
        self.closed = max([self.closed, *(cast(int, one["closed"]) for one in saved.values if "closed" in one)])
        wide = [cast(int, one["wide_from"]) for one in saved.values if one.get("wide_from") is not None]
        self.wide_from = min(wide, default=None)
        rows_total = 0
        for batch in (batch for piece in saved.pieces for batch in piece.load()):
            mine = self.share_of(batch)
            if mine.num_rows:
                self.take_in(mine)
                rows_total += mine.num_rows
        self.log.inherit(saved.pieces, rows_total)

    def share_of(self, batch: pa.RecordBatch) -> Batch:
        """The rows of open groups that are this task's."""
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        panes = ints_of(columns[PANE])
        is_mine = panes > self.closed
        if self.context.tasks > 1:
            keys = [columns[name] for name in self.groups.by]
            wide_from = math.inf if self.wide_from is None else self.wide_from
            is_mine &= self.owners_of(keys, panes, wide_from) == self.context.task
        rows = Batch(columns, batch.num_rows, DERIVED)
        return rows if is_mine.all() else rows.without(~is_mine)

    def owners_of(self, keys: Sequence[pa.Array], panes: Int64Array, wide_from: float) -> Int64Array:
        """The task of each group, as the exchange before this step has it."""
        return owning_task(keys, self.context.tasks)

    def emit(self, slots: Int64Array) -> None:
        in_order = slots[self.groups.groups.order(slots)]
        panes = self.groups.groups.panes[in_order]
        finished = self.groups.state.finish(in_order)
        end_us = _of_runs(self.groups.window.end_us, panes)
        columns = {
            "window_start": from_us(_of_runs(self.groups.window.start_us, panes), self.time_type),
            "window_end": from_us(end_us, self.time_type),
            **dict(zip(self.groups.by, self.groups.groups.keys(in_order), strict=True)),
        }
        result = Batch(columns | dict(zip(self.names, finished.columns, strict=True)), len(slots), DERIVED)
        result.time_us = end_us - 1
        result.in_order = self.groups.by
        self.groups.release(slots)
        self.counts.produced += result.num_rows
        if finished.bad:
            result = self._without_bad(result, finished.bad)
        self.out.on_batch(result)

    def _without_bad(self, result: Batch, bad: Sequence[Bad]) -> Batch:
        """Groups that could not be computed become error rows with the input's columns: the keys, and the start of the
        window as event time; the rest is null."""
        known = {f.name: pa.nulls(result.num_rows, f.type) for f in self.source_schema}
        times = self.source_schema.field(self.time_column)
        known[times.name] = result.columns["window_start"].cast(times.type, safe=False)
        keys = {name: result.columns[name] for name in self.groups.by}
        dead = self.counts.dead
        rows = send_errors(result.with_columns(known | keys), bad, self)
        self.counts.dead = dead  # they are produced rows; rows that came in have been counted before
        return result if rows is None else result.without(rows)


class MergeAggregate(CloseWindows):
    """Merges the partial groups of all tasks."""

    def __init__(
        self, spec: WindowAggregateSpec, source: StreamType, aggregates: AggregateSet, context: OperatorContext
    ) -> None:
        super().__init__(spec, source, aggregates, context)
        self.fields = [f.name for f in aggregates.partial_fields]

    def take_in(self, batch: Batch) -> None:
        slots = self.groups.slots_of(batch)
        self.groups.state.merge(slots, [batch.columns[name] for name in self.fields])

    def owners_of(self, keys: Sequence[pa.Array], panes: Int64Array, wide_from: float) -> Int64Array:
        return merging_task(keys, panes, wide_from, self.context.tasks)

    def whole(self) -> list[pa.RecordBatch]:
        groups = self.groups.groups
        slots = groups.live_slots()
        columns = [*groups.keys(slots), column_of(groups.panes[slots]), *self.groups.state.partial(slots)]
        made = pa.RecordBatch.from_arrays(columns, [*self.groups.by, PANE, *self.fields])
        return [made] if len(slots) else []


class RowAggregate(CloseWindows):
    """Aggregates rows that came through the exchange. Its state is all rows of the open panes."""

    def __init__(
        self, spec: WindowAggregateSpec, source: StreamType, aggregates: AggregateSet, context: OperatorContext
    ) -> None:
        super().__init__(spec, source, aggregates, context)
        self.rows_of: dict[int, int] = {}
        """How many rows each open pane has."""

    def on_batch(self, batch: Batch) -> None:
        super().on_batch(batch)
        self.counts.folded += batch.num_rows

    def take_in(self, batch: Batch) -> None:
        self.groups.update(batch)
        if self.log is not None:
            panes, rows = np.unique(ints_of(batch.columns[PANE]), return_counts=True)
            for pane, number in zip(panes.tolist(), rows.tolist(), strict=True):
                self.rows_of[pane] = self.rows_of.get(pane, 0) + number

    @property
    def needed(self) -> int:
        self.rows_of = {pane: rows for pane, rows in self.rows_of.items() if pane > self.closed}
        return sum(self.rows_of.values())

    def whole(self) -> list[pa.RecordBatch]:
        assert self.log is not None
        kept = [as_record_batch(self.share_of(batch)) for batch in self.log.inherited_rows()]
        for batch in self.log.own_rows():
            is_open = ints_of(batch.column(PANE)) > self.closed
            kept.append(batch if is_open.all() else batch.filter(pa.array(is_open)))
        return [batch for batch in kept if batch.num_rows]

"""Aggregation before the exchange: one row a group crosses it, and who merges a pane is settled here.

The hard part: all groups of a pane must meet in one task, whoever made them and whenever they are handed on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import pyarrow as pa

from dataflow.kernels.gateway import column_of
from dataflow.message import DERIVED, Batch, Int64Array
from dataflow.operators.accumulators import AggregateSet
from dataflow.operators.base import OperatorContext, Saved, Snapshot
from dataflow.operators.windows.groups import PANE, GroupOperator, WindowGroups
from dataflow.state.keys import split_by_owner
from dataflow.system import Mutex

WHOLE_GROUPS_MAX = 1 << 16
"""Up to so many groups a pane is merged by one task; beyond, the work is worth spreading."""
PANES_APART_MAX = 4
"""Groups of up to so many panes are handed on pane by pane."""
PARTIAL_GROUPS_MAX = 1 << 18
"""Beyond it a task hands on its partial groups early: many keys make aggregation before the exchange useless, and
its table must stay in the cache."""


class WidePanes:
    """Which panes have too many groups for one task to merge; shared by the tasks that aggregate first.

    The groups of a pane must all meet in the same task. Mostly that is one task for the whole pane: then a pane is
    handed over as it is, and leaves in order. Panes from the first wide one on are split by key; which that is is
    settled when the first task hands on a pane, and never changes for panes that have been begun.
    """

    def __init__(self, lock: Mutex) -> None:
        self._lock = lock
        self._begun: float = -math.inf
        self._wide_from: float = math.inf

    def begin(self, first: int, last: int, groups: int) -> float:
        """A task hands on groups of these panes; returns the first wide pane."""
        with self._lock:
            if groups > WHOLE_GROUPS_MAX * (last - first + 1) and self._wide_from == math.inf:
                self._wide_from = max(first, self._begun + 1)
            self._begun = max(self._begun, last)
            return self._wide_from

    def resume(self, begun: float, wide_from: float) -> None:
        """Groups of panes up to `begun` are there already, from an earlier run."""
        with self._lock:
            self._begun, self._wide_from = max(self._begun, begun), min(self._wide_from, wide_from)

    @property
    def wide_from(self) -> float:
        """The first wide pane; infinite for none. Once it is finite it never changes, and panes before it are not
        concerned: so it may be asked for at any time."""
        return self._wide_from


class PartialAggregate(GroupOperator):
    """Aggregates what one task has read, and hands on one row a group once the task's own watermark has passed it."""

    def __init__(self, groups: WindowGroups, aggregates: AggregateSet, context: OperatorContext) -> None:
        super().__init__(groups, context)
        self.wide = cast(WidePanes, context.shared(lambda: WidePanes(context.system.scheduler.mutex())))
        self.fields = [f.name for f in aggregates.partial_fields]
        self.state_name = context.name

    def on_batch(self, batch: Batch) -> None:
        self.groups.update(batch)
        self.counts.folded += batch.num_rows
        if self.groups.groups.count > PARTIAL_GROUPS_MAX:
            self.emit(self.groups.groups.live_slots())

    def on_watermark(self, time_us: int) -> None:
        self.emit_due(time_us)
        self.out.on_watermark(time_us)

    def on_barrier(self) -> None:
        """What is kept of groups is kept where they are merged."""
        if self.groups.groups.count:
            self.emit(self.groups.groups.live_slots())

    def snapshot(self, epoch: int) -> Snapshot:
        return Snapshot({"wide_from": None if math.isinf(self.wide.wide_from) else int(self.wide.wide_from)})

    def restore(self, saved: Saved) -> None:
        known = [cast(int, values["wide_from"]) for values in saved.values if values.get("wide_from") is not None]
        begun = [cast(int, values["last_pane"]) for values in saved.values if values.get("last_pane") is not None]
        self.wide.resume(max(begun, default=-math.inf), min(known, default=math.inf))

    def emit(self, slots: Int64Array) -> None:
        """A pane after the other, if they are few: each then goes to its task as it is."""
        panes = self.groups.groups.panes[slots]
        first, last = int(panes.min()), int(panes.max())
        if first == last or last - first >= PANES_APART_MAX:
            self._emit(slots, panes, first, last)
            return
        for pane in range(first, last + 1):
            is_there = panes == pane
            if is_there.any():
                self._emit(slots[is_there], panes[is_there], pane, pane)

    def _emit(self, slots: Int64Array, panes: Int64Array, first: int, last: int) -> None:
        groups, bounds = self.groups.groups, None
        keys = groups.encoded_keys(slots)
        if keys and self.out.owners > 1:
            order, bounds = self._split(keys, panes, first, last)
            if order is not None:
                slots, panes = slots[order], panes[order]
                keys = groups.encoded_keys(slots)
        columns = dict(zip(self.groups.by, keys, strict=True))
        columns[PANE] = column_of(panes)
        columns |= zip(self.fields, self.groups.state.partial(slots), strict=True)
        self.groups.release(slots)
        self.out.on_batch(Batch(columns, len(slots), DERIVED, owner_bounds=bounds))

    def _split(
        self, keys: Sequence[pa.Array], panes: Int64Array, first: int, last: int
    ) -> tuple[Int64Array | None, Sequence[int]]:
        """The order of the groups by the task that merges them (None: as they are), and where those of each begin."""
        owners = self.out.owners
        wide_from = self.wide.begin(first, last, len(panes))
        if last < wide_from and first == last:
            owner = first % owners
            return None, [0] * (owner + 1) + [len(panes)] * (owners - owner)
        if first >= wide_from:
            return split_by_owner(keys, owners)
        owner_of = merging_task(keys, panes, wide_from, owners)
        order = np.argsort(owner_of, kind="stable")
        return order, np.searchsorted(owner_of[order], np.arange(owners + 1)).tolist()


def merging_task(keys: Sequence[pa.Array], panes: Int64Array, wide_from: float, owners: int) -> Int64Array:
    """The task that merges each of some groups."""
    owner_of = panes % owners
    is_wide = panes >= wide_from
    return np.where(is_wide, owning_task(keys, owners), owner_of) if is_wide.any() else owner_of


def owning_task(keys: Sequence[pa.Array], owners: int) -> Int64Array:
    """The task that owns the key of each row."""
    order, bounds = split_by_owner(keys, owners)
    by_key = np.empty(len(order), dtype=np.int64)
    by_key[order] = np.repeat(np.arange(owners), np.diff(bounds))
    return by_key

"""Exact quantiles: all values of the open groups are kept, and sorted when a group closes.

Linear interpolation between the two nearest ranks, as DuckDB's and SQL's `quantile_cont` (Hyndman & Fan 1996,
type 7). Not mergeable in less space than the values themselves, so rows cross the exchange. The hard part is that
many groups may be open while few close: what a closing costs must not grow with the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflow.message import Float64Array, Int64Array, SlotArray
from dataflow.operators.accumulators.base import Accumulator, Rows

RUN_ROWS = 65_536
"""So many values are looked through at each closing; more are put into the order of their groups first."""


@dataclass(slots=True)
class _Run:
    """Values in the order of their groups; `slots` ascend, and the values of each begin at `starts`."""

    slots: Int64Array
    starts: Int64Array
    counts: Int64Array
    """How many values of each group have not been taken."""
    values: Float64Array

    @classmethod
    def of(cls, slots: Int64Array, values: Float64Array) -> _Run:
        order = np.argsort(slots, kind="stable")
        distinct, starts, counts = np.unique(slots[order], return_index=True, return_counts=True)
        return cls(distinct, starts, counts, values[order])

    def take(self, slots: SlotArray) -> tuple[Int64Array, Float64Array]:
        """The values of these groups, which are given away, and for each the place of its group in `slots`."""
        at = np.minimum(np.searchsorted(self.slots, slots), len(self.slots) - 1)
        counts = np.where(self.slots[at] == slots, self.counts[at], 0)
        self.counts[at[counts > 0]] = 0
        ends = np.cumsum(counts)
        rows = np.repeat(self.starts[at] - (ends - counts), counts) + np.arange(counts.sum())
        return np.repeat(np.arange(len(slots)), counts), self.values[rows]

    def keep(self, new: Int64Array) -> None:
        """Slot i becomes new[i], or goes where that is negative; the order stays."""
        moved = new[self.slots]
        kept = moved >= 0
        self.slots, self.starts, self.counts = moved[kept], self.starts[kept], self.counts[kept]

    def tidied(self) -> _Run | None:
        """Without most of what has been taken; None when nothing is left."""
        left = int(self.counts.sum())
        if 2 * left > len(self.values):
            return self
        there = np.flatnonzero(self.counts)
        slots = self.slots[there]
        places, values = self.take(slots)
        return _Run.of(slots[places], values) if left else None


class Values(Accumulator):
    """The values of each group: in runs, and the last ones in chunks as they came."""

    def __init__(self, unsigned: bool = False) -> None:
        super().__init__()
        self._unsigned = unsigned
        self._runs: list[_Run] = []
        self._slots: list[Int64Array] = []
        self._values: list[Float64Array] = []
        self._rows = 0
        self._given: tuple[SlotArray, Float64Array, Int64Array] | None = None

    def update(self, words: Int64Array, rows: Rows) -> None:
        slots, values = rows.slots, rows.plain.view(np.uint64) if self._unsigned else rows.plain
        self._given = None
        if len(rows.valid):
            slots, values = slots[rows.valid], values[rows.valid]
        self._slots.append(slots.astype(np.int64))  # a copy: the table uses that memory again
        self._values.append(values.astype(np.float64))
        self._rows += len(slots)
        if self._rows > RUN_ROWS:
            self._runs.append(_Run.of(*self._joined()))
            self._replace(np.empty(0, dtype=np.int64), np.empty(0))

    def keep(self, kept: Int64Array) -> None:
        slots, values = self._joined()
        known = [slots, kept, *(run.slots for run in self._runs)]
        new = np.full(max(int(one.max(initial=-1)) for one in known) + 1, -1, dtype=np.int64)
        new[kept] = np.arange(len(kept))
        for run in self._runs:
            run.keep(new)
        moved = new[slots]
        self._replace(moved[moved >= 0], values[moved >= 0])
        self._tidy()
        self._given = None

    def _joined(self) -> tuple[Int64Array, Float64Array]:
        """What is in no run yet."""
        if not self._slots:
            return np.empty(0, dtype=np.int64), np.empty(0)
        return np.concatenate(self._slots), np.concatenate(self._values)

    def _replace(self, slots: Int64Array, values: Float64Array) -> None:
        self._slots, self._values, self._rows = [slots], [values], len(slots)

    def _tidy(self) -> None:
        self._runs = [run for one in self._runs if (run := one.tidied()) is not None]

    def take(self, slots: SlotArray) -> tuple[Float64Array, Int64Array]:
        """The values of these groups, sorted within each, and where each group begins (one bound more).

        They are given away: a group is asked once, when it closes. Only other quantiles of the same values may ask
        for the same slots right after.
        """
        if self._given is None or self._given[0] is not slots:
            self._given = (slots, *self._taken(slots))
        return self._given[1:]

    def _taken(self, slots: SlotArray) -> tuple[Float64Array, Int64Array]:
        known, last = self._joined()
        place = np.full(max(int(known.max(initial=-1)), int(slots.max(initial=-1))) + 1, -1, dtype=np.int64)
        place[slots] = np.arange(len(slots))
        among = place[known]
        asked = among >= 0
        self._replace(known[~asked], last[~asked])
        taken = [(among[asked], last[asked]), *(run.take(slots) for run in self._runs)]
        self._tidy()
        groups, values = (np.concatenate([one[n] for one in taken]) for n in (0, 1))
        order = np.lexsort((values, groups))
        bounds = np.searchsorted(groups[order], np.arange(len(slots) + 1))
        return values[order] + 0.0, bounds

    @property
    def nbytes(self) -> int:
        runs = (array for run in self._runs for array in (run.slots, run.starts, run.counts, run.values))
        return sum(one.nbytes for one in (*self._slots, *self._values, *runs))


def interpolated(values: Float64Array, bounds: Int64Array, q: float) -> tuple[Float64Array, Int64Array]:
    """The quantile of each group of sorted values, and how many values it has; undefined for none."""
    numbers = np.diff(bounds)
    if not len(values):
        return np.zeros(len(numbers)), numbers
    rank = q * np.maximum(numbers - 1, 0)
    low = np.minimum(bounds[:-1] + np.floor(rank).astype(np.int64), len(values) - 1)
    high = np.minimum(bounds[:-1] + np.ceil(rank).astype(np.int64), len(values) - 1)
    share = rank - np.floor(rank)
    with np.errstate(invalid="ignore", over="ignore"):
        between = values[low] + (values[high] - values[low]) * share
    return np.where((values[low] == values[high]) | (share == 0), values[low], between), numbers

"""Exact quantiles: all values of the open groups are kept, and sorted when a group closes.

Linear interpolation between the two nearest ranks, as DuckDB's and SQL's `quantile_cont` (Hyndman & Fan 1996,
type 7). Not mergeable in less space than the values themselves, so rows cross the exchange.
"""

from __future__ import annotations

import numpy as np

from dataflow.message import Float64Array, Int64Array, SlotArray
from dataflow.operators.accumulators.base import Accumulator, Rows


class Values(Accumulator):
    """The values of each group, in chunks as they came."""

    def __init__(self, unsigned: bool = False) -> None:
        super().__init__()
        self._unsigned = unsigned
        self._slots: list[Int64Array] = []
        self._values: list[Float64Array] = []
        self._given: tuple[SlotArray, Float64Array, Int64Array] | None = None

    def update(self, words: Int64Array, rows: Rows) -> None:
        slots, values = rows.slots, rows.plain.view(np.uint64) if self._unsigned else rows.plain
        self._given = None
        if len(rows.valid):
            slots, values = slots[rows.valid], values[rows.valid]
        self._slots.append(slots.astype(np.int64))  # a copy: the table uses that memory again
        self._values.append(values.astype(np.float64))

    def keep(self, kept: Int64Array) -> None:
        slots, values = self._joined()
        new = np.full(max(int(slots.max(initial=-1)), int(kept.max(initial=-1))) + 1, -1, dtype=np.int64)
        new[kept] = np.arange(len(kept))
        moved = new[slots]
        self._slots, self._values = [moved[moved >= 0]], [values[moved >= 0]]
        self._given = None

    def _joined(self) -> tuple[Int64Array, Float64Array]:
        if not self._slots:
            return np.empty(0, dtype=np.int64), np.empty(0)
        return np.concatenate(self._slots), np.concatenate(self._values)

    def take(self, slots: SlotArray) -> tuple[Float64Array, Int64Array]:
        """The values of these groups, sorted within each, and where each group begins (one bound more).

        They are given away: a group is asked once, when it closes. Only other quantiles of the same values may ask
        for the same slots right after.
        """
        if self._given is None or self._given[0] is not slots:
            self._given = (slots, *self._taken(slots))
        return self._given[1:]

    def _taken(self, slots: SlotArray) -> tuple[Float64Array, Int64Array]:
        known, values = self._joined()
        place = np.full(max(int(known.max(initial=-1)), int(slots.max(initial=-1))) + 1, -1, dtype=np.int64)
        place[slots] = np.arange(len(slots))
        groups = place[known]
        asked = groups >= 0
        self._slots, self._values = [known[~asked]], [values[~asked]]
        groups, values = groups[asked], values[asked]
        order = np.lexsort((values, groups))
        bounds = np.searchsorted(groups[order], np.arange(len(slots) + 1))
        return values[order] + 0.0, bounds

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (*self._slots, *self._values))


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

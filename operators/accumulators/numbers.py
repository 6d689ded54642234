"""Counts, sums and extremes of numbers: one kernel call a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from dataflow.kernels import accumulate as kernels
from dataflow.message import BoolArray, Float64Array, Int64Array
from dataflow.operators.accumulators.base import Accumulator, Rows


def _plain(column: pa.Array) -> np.ndarray:
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values


class Count(Accumulator):
    """How many rows, or values that are not null."""

    partial_types = (pa.int64(),)

    def __init__(self) -> None:
        super().__init__()
        self.counts: Int64Array = np.zeros(0, dtype=np.int64)

    def arrays(self) -> list[str]:
        return ["counts"]

    def update(self, rows: Rows) -> None:
        kernels.count_rows(rows.slots, rows.valid, self.counts)

    def partial(self, slots: Int64Array) -> list[pa.Array]:
        return [pa.array(self.counts[slots])]

    def merge(self, slots: Int64Array, columns: Sequence[pa.Array]) -> None:
        np.add.at(self.counts, slots, _plain(columns[0]))

    def number(self, slots: Int64Array) -> Int64Array:
        return self.counts[slots]


class FloatSum(Accumulator):
    """A sum of the finite values in three parts, their number, and what else was met."""

    partial_types = (pa.float64(), pa.float64(), pa.float64(), pa.float64(), pa.int64())

    def __init__(self) -> None:
        super().__init__()
        self.sums: Float64Array = np.zeros((0, 4))
        self.met: Int64Array = np.zeros(0, dtype=np.int64)

    def arrays(self) -> list[str]:
        return ["sums", "met"]

    def update(self, rows: Rows) -> None:
        kernels.sum_floats(rows.slots, rows.plain, rows.valid, self.sums, self.met)

    def partial(self, slots: Int64Array) -> list[pa.Array]:
        sums = self.sums[slots]
        return [pa.array(np.ascontiguousarray(sums[:, n])) for n in range(4)] + [pa.array(self.met[slots])]

    def merge(self, slots: Int64Array, columns: Sequence[pa.Array]) -> None:
        high, middle, low, number, met = map(_plain, columns)
        kernels.merge_floats(slots, high, middle, low, number, met, self.sums, self.met)

    def number(self, slots: Int64Array) -> Int64Array:
        number: Int64Array = self.sums[slots, 3].astype(np.int64)
        return number

    def total(self, slots: Int64Array) -> Float64Array:
        """The sums, rounded once."""
        high, middle, low, met = *self.sums[slots, :3].T, self.met[slots]
        with np.errstate(invalid="ignore"):
            total: Float64Array = high + middle
            back = total - high
            lost = (high - (total - back)) + (middle - back)
            total = np.where(np.isfinite(middle + low), total + (lost + low), high) + 0.0
        total[met == kernels.PLUS_INF] = np.inf
        total[met == kernels.MINUS_INF] = -np.inf
        total[(met & kernels.NAN > 0) | (met & 6 == 6)] = np.nan
        return total


class IntSum(Accumulator):
    """A sum of 128 bits and the number of values."""

    partial_types = (pa.int64(), pa.int64(), pa.int64())

    def __init__(self) -> None:
        super().__init__()
        self.sums: Int64Array = np.zeros((0, 3), dtype=np.int64)

    def arrays(self) -> list[str]:
        return ["sums"]

    def update(self, rows: Rows) -> None:
        kernels.sum_ints(rows.slots, rows.plain, rows.valid, self.sums)

    def partial(self, slots: Int64Array) -> list[pa.Array]:
        sums = self.sums[slots]
        return [pa.array(np.ascontiguousarray(sums[:, n])) for n in range(3)]

    def merge(self, slots: Int64Array, columns: Sequence[pa.Array]) -> None:
        low, high, number = map(_plain, columns)
        kernels.merge_ints(slots, low, high, number, self.sums)

    def number(self, slots: Int64Array) -> Int64Array:
        number: Int64Array = self.sums[slots, 2]
        return number

    def too_large(self, slots: Int64Array) -> BoolArray:
        """Which sums do not fit into 64 bits."""
        wide: BoolArray = self.sums[slots, 1] != self.sums[slots, 0] >> 63
        return wide

    def low(self, slots: Int64Array) -> Int64Array:
        """The sums, where they fit."""
        low: Int64Array = self.sums[slots, 0]
        return low

    def total(self, slots: Int64Array) -> Float64Array:
        """The sums as floats, rounded once where they fit into 64 bits."""
        low, high = self.sums[slots, 0], self.sums[slots, 1]
        wide = high.astype(np.float64) * 2.0**64 + low.view(np.uint64).astype(np.float64)
        total: Float64Array = np.where(high == low >> 63, low.astype(np.float64), wide)
        return total


class Extreme(Accumulator):
    """The greatest or least value, as an int that orders like it."""

    partial_types = (pa.int64(), pa.int64())

    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.flip = 0 if largest else -1
        self.best: Int64Array = np.zeros(0, dtype=np.int64)
        self.counts: Int64Array = np.zeros(0, dtype=np.int64)

    def arrays(self) -> list[str]:
        return ["best", "counts"]

    def update(self, rows: Rows) -> None:
        kernels.extremes(rows.slots, rows.plain, rows.valid, self.flip, self.best, self.counts)

    def partial(self, slots: Int64Array) -> list[pa.Array]:
        return [pa.array(self.best[slots]), pa.array(self.counts[slots])]

    def merge(self, slots: Int64Array, columns: Sequence[pa.Array]) -> None:
        best, counts = map(_plain, columns)
        kernels.extremes(slots, best, counts > 0, self.flip, self.best, self.counts)

    def number(self, slots: Int64Array) -> Int64Array:
        return self.counts[slots]


class FloatExtreme(Extreme):
    """Floats are compared as ints that order alike."""

    def update(self, rows: Rows) -> None:
        super().update(replace(rows, plain=ranks_of(rows.plain)))


def ranks_of(values: np.ndarray) -> Int64Array:
    """Ints in the order of the values."""
    if values.dtype != np.float64:
        return values
    ranks = np.empty(len(values), dtype=np.int64)
    kernels.sortable(values, ranks)
    return ranks


def floats_of(ranks: Int64Array) -> Float64Array:
    """The floats that `sortable` made these ints of."""
    return np.where(ranks < 0, -(np.abs(ranks).view(np.float64)), ranks.view(np.float64))

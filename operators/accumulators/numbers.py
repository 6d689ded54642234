"""Counts, sums and extremes of numbers: one kernel call a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from dataflow.kernels import accumulate as kernels
from dataflow.message import BoolArray, Float64Array, Int64Array
from dataflow.operators.accumulators.base import Accumulator, Rows, Taken


class Count(Accumulator):
    """How many rows, or values that are not null."""

    width = 1

    def update(self, words: Int64Array, rows: Rows) -> None:
        kernels.count_rows(rows.slots, rows.valid, words, self.at)

    def merge(self, words: Int64Array, given: Taken, values: Sequence[pa.Array]) -> None:
        kernels.merge_counts(given.slots, given.words, words, self.at)

    def rows(self, taken: Taken) -> Int64Array:
        """How many rows were counted."""
        return taken.words[:, self.at]


class _Numbers(Accumulator):
    """What is made of numbers: it also counts its rows and which of them are null."""

    counts_rows = True
    rows_at: int
    nulls_at: int
    """The words that count them."""

    def rows(self, taken: Taken) -> Int64Array:
        return taken.words[:, self.at + self.rows_at]

    def number(self, taken: Taken) -> Int64Array:
        """How many values are not null."""
        number: Int64Array = self.rows(taken) - taken.words[:, self.at + self.nulls_at]
        return number


class FloatSum(_Numbers):
    """A sum of the finite values in three parts, and what else was met."""

    width, rows_at, nulls_at = 6, 2, 4

    def update(self, words: Int64Array, rows: Rows) -> None:
        kernels.sum_floats(rows.slots, rows.plain, rows.valid, words, words.view(np.float64), self.at)

    def merge(self, words: Int64Array, given: Taken, values: Sequence[pa.Array]) -> None:
        kernels.merge_floats(given.slots, given.words, given.floats, words, words.view(np.float64), self.at)

    def total(self, taken: Taken) -> Float64Array:
        """The sums, rounded once."""
        totals = np.empty(len(taken.slots))
        kernels.total_floats(taken.words, taken.floats, self.at, totals)
        return totals


class IntSum(_Numbers):
    """A sum of 128 bits."""

    width, rows_at, nulls_at = 4, 2, 3

    def update(self, words: Int64Array, rows: Rows) -> None:
        kernels.sum_ints(rows.slots, rows.plain, rows.valid, words, self.at)

    def merge(self, words: Int64Array, given: Taken, values: Sequence[pa.Array]) -> None:
        kernels.merge_ints(given.slots, given.words, words, self.at)

    def too_large(self, taken: Taken) -> BoolArray:
        """Which sums do not fit into 64 bits."""
        wide: BoolArray = taken.words[:, self.at + 1] != self.low(taken) >> 63
        return wide

    def low(self, taken: Taken) -> Int64Array:
        """The sums, where they fit."""
        return taken.words[:, self.at]

    def total(self, taken: Taken) -> Float64Array:
        """The sums as floats, rounded once where they fit into 64 bits."""
        low, high = self.low(taken), taken.words[:, self.at + 1]
        wide = high.astype(np.float64) * 2.0**64 + low.astype(np.uint64).astype(np.float64)
        total: Float64Array = np.where(high == low >> 63, low.astype(np.float64), wide)
        return total


class Extreme(_Numbers):
    """The greatest or least value, as an int that orders like it."""

    width, rows_at, nulls_at = 3, 1, 2

    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.flip = 0 if largest else -1

    def update(self, words: Int64Array, rows: Rows) -> None:
        kernels.extremes(rows.slots, rows.plain, rows.valid, self.flip, words, self.at)

    def merge(self, words: Int64Array, given: Taken, values: Sequence[pa.Array]) -> None:
        kernels.merge_extremes(given.slots, given.words, self.flip, words, self.at)

    def best(self, taken: Taken) -> Int64Array:
        return taken.words[:, self.at]


class FloatExtreme(Extreme):
    """Floats are compared as ints that order alike."""

    def update(self, words: Int64Array, rows: Rows) -> None:
        super().update(words, replace(rows, plain=ranks_of(rows.plain)))


def ranks_of(values: np.ndarray) -> Int64Array:
    """Ints in the order of the values."""
    if values.dtype != np.float64:
        return values
    ranks = np.empty(len(values), dtype=np.int64)
    kernels.sortable(values.view(np.int64), ranks)
    return ranks


def floats_of(ranks: Int64Array) -> Float64Array:
    """The floats that `sortable` made these ints of."""
    return np.where(ranks < 0, -(np.abs(ranks).view(np.float64)), ranks.view(np.float64))

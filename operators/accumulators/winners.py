"""Aggregates that keep one row's value for each group: first, last, max_by, min_by, and extremes of text.

The value may be of any Arrow type, so it is not kept in a numpy array: each group has a reference into an
append-only store of Arrow arrays, which takes only the winners of each batch and is rewritten when most of it
is no longer referred to.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dataflow.kernels import accumulate as kernels
from dataflow.message import BoolArray, Int64Array, SlotArray
from dataflow.operators.accumulators.base import Accumulator, RowOrder, Rows, Taken

VALUES_MIN = 4_096
"""Stored values below which a rewrite is not worth it."""


class ValueStore:
    """Values by reference."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind
        self.length = 0
        self._chunks: list[pa.Array] = []

    def append(self, values: pa.Array) -> Int64Array:
        """Store values; returns their references."""
        first = self.length
        self._chunks.append(values)
        self.length += len(values)
        return np.arange(first, self.length)

    def take(self, references: Int64Array) -> pa.Array:
        """The values; -1 gives null."""
        if len(self._chunks) != 1:
            self._chunks = [pa.concat_arrays(self._chunks) if self._chunks else pa.nulls(0, self.kind)]
        return self._chunks[0].take(pa.array(references, mask=references < 0))

    def keep(self, references: Int64Array) -> None:
        """Only these values, in this order."""
        self._chunks = [self.take(references)]
        self.length = len(references)


def tidy(stores: Sequence[ValueStore], references: Int64Array) -> None:
    """Rewrite stores of equal references (+ 1; 0 for none) when most values are no longer referred to."""
    used = np.flatnonzero(references)
    if stores[0].length > max(VALUES_MIN, 4 * len(used)):
        kept = references[used] - 1
        for store in stores:
            store.keep(kept)
        references[used] = np.arange(len(used)) + 1


class Winner(Accumulator):
    """The value of one row: of the greatest (least) rank, then of the first (last) in order.

    The words are those of the kernel (rank, time, position, row) and the reference to the value + 1, or 0.
    """

    width = 5

    def __init__(self, kind: pa.DataType, *, by_rank: bool, largest: bool, latest: bool) -> None:
        super().__init__()
        self.kind, self.by_rank = kind, by_rank
        self.flip_rank = 0 if largest else -1
        self.flip_order = -1 if latest else 0
        self.store = ValueStore(kind)
        self.value_types = (kind,)

    def update(self, words: Int64Array, rows: Rows) -> None:
        assert rows.values is not None and rows.order is not None
        ranks = rows.ranks if self.by_rank else np.zeros(len(rows.slots), dtype=np.int64)
        self._offer(words, rows.slots, ranks, rows.order, rows.valid, rows.values)

    def _offer(
        self,
        words: Int64Array,
        slots: SlotArray,
        ranks: Int64Array,
        order: RowOrder,
        valid: BoolArray,
        values: pa.Array,
    ) -> None:
        touched = np.empty(len(slots), dtype=np.int64)
        number = kernels.winners(slots, ranks, *order, valid, self.flip_rank, self.flip_order, words, self.at, touched)
        if number:
            new = touched[:number]
            rows, references = self._row(words), self._reference(words)
            references[new] = self.store.append(values.take(pa.array(rows[new] - 2))) + 1
            rows[new] = 1
            tidy([self.store], references)

    def _row(self, words: Int64Array) -> Int64Array:
        return words[:, self.at + 3]

    def _reference(self, words: Int64Array) -> Int64Array:
        return words[:, self.at + 4]

    def values(self, taken: Taken) -> list[pa.Array]:
        value = self.value(taken)
        self._reference(taken.words)[:] = 0  # it means nothing elsewhere
        return [value]

    def merge(self, words: Int64Array, given: Taken, values: Sequence[pa.Array]) -> None:
        ranks, times, positions = (np.ascontiguousarray(given.words[:, self.at + n]) for n in range(3))
        self._offer(words, given.slots, ranks, RowOrder(times, positions), self._row(given.words) > 0, values[0])

    def value(self, taken: Taken) -> pa.Array:
        return self.store.take(self._reference(taken.words) - 1)


class ArrowWinner(Accumulator):
    """As `Winner`, for ranks that only Arrow can compare (text, decimals); without `ordered`, the rank is the value.

    The words are time, position, and the reference to the value and the rank + 1, or 0.
    """

    width = 3

    def __init__(self, kind: pa.DataType, rank_kind: pa.DataType, *, largest: bool, ordered: bool) -> None:
        super().__init__()
        self.largest, self.ordered = largest, ordered
        self.store, self.ranks = ValueStore(kind), ValueStore(rank_kind)
        self.value_types = (kind, rank_kind)

    def offer(
        self, words: Int64Array, slots: SlotArray, values: pa.Array, ranks: pa.Array, order: RowOrder | None
    ) -> None:
        """Rows with a rank; the best of each slot is compared with the one known."""
        zeros = np.zeros(len(slots), dtype=np.int64)
        time_us, positions = order if self.ordered and order is not None else (zeros, zeros)
        rows = self._best_rows(slots, ranks, time_us, positions)
        slots, time_us, positions = slots[rows], time_us[rows], positions[rows]
        values, ranks = values.take(pa.array(rows)), ranks.take(pa.array(rows))
        own = words[:, self.at : self.at + 3]
        wins = self._beats(own[slots], ranks, time_us, positions)
        won, mask = slots[wins], pa.array(wins)
        self.ranks.append(ranks.filter(mask))
        references = self.store.append(values.filter(mask)) + 1
        own[won] = np.stack([time_us[wins], positions[wins], references], axis=1)
        tidy([self.store, self.ranks], own[:, 2])

    def _best_rows(self, slots: SlotArray, ranks: pa.Array, time_us: Int64Array, positions: Int64Array) -> Int64Array:
        """The row that wins in each slot, among these."""
        import pyarrow.compute as pc

        table = pa.table({"slot": slots, "rank": ranks, "time": time_us, "position": positions})
        direction = "descending" if self.largest else "ascending"
        keys = [("slot", "ascending"), ("rank", direction), ("time", "ascending"), ("position", "ascending")]
        order = pc.sort_indices(table, sort_keys=keys).to_numpy().astype(np.int64)
        sorted_slots = slots[order]
        best: Int64Array = order[np.append(True, sorted_slots[1:] != sorted_slots[:-1])[: len(order)]]
        return best

    def _beats(self, known: Int64Array, ranks: pa.Array, time_us: Int64Array, positions: Int64Array) -> BoolArray:
        """Which rows win over what is known of their groups."""
        import pyarrow.compute as pc

        times_known, positions_known, references = known.T
        ranks_known = self.ranks.take(references - 1)
        better = pc.greater(ranks, ranks_known) if self.largest else pc.less(ranks, ranks_known)
        equal = pc.equal(ranks, ranks_known).fill_null(False).to_numpy(zero_copy_only=False)
        earlier = (time_us < times_known) | ((time_us == times_known) & (positions < positions_known))
        wins: BoolArray = better.fill_null(True).to_numpy(zero_copy_only=False) | (equal & earlier) | (references == 0)
        return wins

    def update(self, words: Int64Array, rows: Rows) -> None:
        raise AssertionError("the set calls `offer`, since the rank is an Arrow array")

    def values(self, taken: Taken) -> list[pa.Array]:
        references = taken.words[:, self.at + 2]
        values = [self.store.take(references - 1), self.ranks.take(references - 1)]
        np.minimum(references, 1, out=references)  # elsewhere it only tells that there is a value
        return values

    def merge(self, words: Int64Array, given: Taken, values: Sequence[pa.Array]) -> None:
        times, positions, references = given.words[:, self.at : self.at + 3].T
        there = references > 0
        if there.any():
            mask = pa.array(there)
            value, rank = (one.filter(mask) for one in values)
            self.offer(words, given.slots[there], value, rank, RowOrder(times[there], positions[there]))

    def value(self, taken: Taken) -> pa.Array:
        return self.store.take(taken.words[:, self.at + 2] - 1)

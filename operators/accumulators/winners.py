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
from dataflow.kernels.gateway import ALL_VALID
from dataflow.message import BoolArray, Int64Array
from dataflow.operators.accumulators.base import Accumulator, RowOrder, Rows

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


class Winner(Accumulator):
    """The value of one row: of the greatest (least) rank, then of the first (last) in order.

    `references` holds, per slot, the reference + 1, or 0 for none yet.
    """

    def __init__(self, kind: pa.DataType, *, by_rank: bool, largest: bool, latest: bool) -> None:
        super().__init__()
        self.kind, self.by_rank = kind, by_rank
        self.flip_rank = 0 if largest else -1
        self.flip_order = -1 if latest else 0
        self.best: Int64Array = np.zeros((0, 3), dtype=np.int64)
        self.references: Int64Array = np.zeros(0, dtype=np.int64)
        self.rows: Int64Array = np.zeros(0, dtype=np.int64)
        self.store = ValueStore(kind)
        self.partial_types = (kind, pa.int64(), pa.int64(), pa.int64())

    def arrays(self) -> list[str]:
        return ["best", "references", "rows"]

    def update(self, rows: Rows) -> None:
        assert rows.values is not None and rows.order is not None
        ranks = rows.ranks if self.by_rank else np.zeros(len(rows.slots), dtype=np.int64)
        self._offer(rows.slots, ranks, rows.order, rows.valid, rows.values)

    def _offer(self, slots: Int64Array, ranks: Int64Array, order: RowOrder, valid: BoolArray, values: pa.Array) -> None:
        touched = np.empty(len(slots), dtype=np.int64)
        number = kernels.winners(
            slots, ranks, *order, valid, self.flip_rank, self.flip_order, self.best, self.rows, touched
        )
        if number:
            new = touched[:number]
            self.references[new] = self.store.append(values.take(pa.array(self.rows[new] - 2))) + 1
            self.rows[new] = 1
            self._tidy()

    def _tidy(self) -> None:
        """Rewrite the store when most of it is no longer referred to."""
        used = np.flatnonzero(self.references)
        if self.store.length > max(VALUES_MIN, 4 * len(used)):
            values = self.store.take(self.references[used] - 1)
            self.store = ValueStore(self.kind)
            self.references[used] = self.store.append(values) + 1

    def partial(self, slots: Int64Array) -> list[pa.Array]:
        seen = self.references[slots] == 0
        best = [pa.array(np.ascontiguousarray(self.best[slots, n]), mask=seen) for n in range(3)]
        return [self.value(slots), *best]

    def merge(self, slots: Int64Array, columns: Sequence[pa.Array]) -> None:
        value, *best = columns
        valid = best[0].is_valid().to_numpy(zero_copy_only=False) if best[0].null_count else ALL_VALID
        ranks, times, positions = (one.fill_null(0).to_numpy() for one in best)
        self._offer(slots, ranks, RowOrder(times, positions), valid, value)

    def value(self, slots: Int64Array) -> pa.Array:
        return self.store.take(self.references[slots] - 1)


class ArrowWinner(Accumulator):
    """As `Winner`, for ranks that only Arrow can compare (text, decimals); without `ordered`, the rank is the value."""

    def __init__(self, kind: pa.DataType, rank_kind: pa.DataType, *, largest: bool, ordered: bool) -> None:
        super().__init__()
        self.largest, self.ordered = largest, ordered
        self.times: Int64Array = np.zeros(0, dtype=np.int64)
        self.positions: Int64Array = np.zeros(0, dtype=np.int64)
        self.references: Int64Array = np.zeros(0, dtype=np.int64)
        self.kind, self.rank_kind = kind, rank_kind
        self.values, self.ranks = ValueStore(kind), ValueStore(rank_kind)
        self.partial_types = (kind, rank_kind, pa.int64(), pa.int64())

    def arrays(self) -> list[str]:
        return ["times", "positions", "references"]

    def offer(self, slots: Int64Array, values: pa.Array, ranks: pa.Array, order: RowOrder | None) -> None:
        """Rows with a rank; the best of each slot is compared with the one known."""
        zeros = np.zeros(len(slots), dtype=np.int64)
        time_us, positions = order if self.ordered and order is not None else (zeros, zeros)
        rows = self._best_rows(slots, ranks, time_us, positions)
        slots, time_us, positions = slots[rows], time_us[rows], positions[rows]
        values, ranks = values.take(pa.array(rows)), ranks.take(pa.array(rows))
        wins = self._beats(slots, ranks, time_us, positions)
        won = slots[wins]
        mask = pa.array(wins)
        self.times[won], self.positions[won] = time_us[wins], positions[wins]
        self.ranks.append(ranks.filter(mask))
        self.references[won] = self.values.append(values.filter(mask)) + 1
        self._tidy()

    def _best_rows(self, slots: Int64Array, ranks: pa.Array, time_us: Int64Array, positions: Int64Array) -> Int64Array:
        """The row that wins in each slot, among these."""
        import pyarrow.compute as pc

        table = pa.table({"slot": slots, "rank": ranks, "time": time_us, "position": positions})
        direction = "descending" if self.largest else "ascending"
        keys = [("slot", "ascending"), ("rank", direction), ("time", "ascending"), ("position", "ascending")]
        order = pc.sort_indices(table, sort_keys=keys).to_numpy().astype(np.int64)
        sorted_slots = slots[order]
        best: Int64Array = order[np.append(True, sorted_slots[1:] != sorted_slots[:-1])[: len(order)]]
        return best

    def _beats(self, slots: Int64Array, ranks: pa.Array, time_us: Int64Array, positions: Int64Array) -> BoolArray:
        import pyarrow.compute as pc

        references = self.references[slots] - 1
        known = self.ranks.take(references)
        better = pc.greater(ranks, known) if self.largest else pc.less(ranks, known)
        equal = pc.equal(ranks, known).fill_null(False).to_numpy(zero_copy_only=False)
        earlier = (time_us < self.times[slots]) | ((time_us == self.times[slots]) & (positions < self.positions[slots]))
        wins: BoolArray = better.fill_null(True).to_numpy(zero_copy_only=False) | (equal & earlier)
        return wins | (references < 0)

    def _tidy(self) -> None:
        used = np.flatnonzero(self.references)
        if self.values.length > max(VALUES_MIN, 4 * len(used)):
            references = self.references[used] - 1
            values, ranks = self.values.take(references), self.ranks.take(references)
            self.values, self.ranks = ValueStore(self.kind), ValueStore(self.rank_kind)
            self.ranks.append(ranks)
            self.references[used] = self.values.append(values) + 1

    def update(self, rows: Rows) -> None:
        raise AssertionError("the set calls `offer`, since the rank is an Arrow array")

    def partial(self, slots: Int64Array) -> list[pa.Array]:
        seen = self.references[slots] == 0
        order = [pa.array(one[slots], mask=seen) for one in (self.times, self.positions)]
        return [self.value(slots), self.ranks.take(self.references[slots] - 1), *order]

    def merge(self, slots: Int64Array, columns: Sequence[pa.Array]) -> None:
        there = columns[3].is_valid()
        kept = there.to_numpy(zero_copy_only=False)
        value, rank, times, positions = (column.filter(there) for column in columns)
        if len(value):
            self.offer(slots[kept], value, rank, RowOrder(times.to_numpy(), positions.to_numpy()))

    def value(self, slots: Int64Array) -> pa.Array:
        return self.values.take(self.references[slots] - 1)

"""Pairs of int64 become dense slots: the growing hash table under groups and indexes.

The kernels look up; this class makes room, and scrambles codes that pile up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dataflow.kernels.grouping import DEAD_PANE, find_direct, find_groups, free_groups, refill
from dataflow.message import Int32Array, Int64Array, SlotArray

GROUPS_MIN = 1_024
"""Room for groups at the start."""
TABLE_SPARSENESS = 2
"""Places in a table for each group that it may hold: more would mean fewer collisions, but miss the cache."""
STEPS_MAX = 8
"""How often another group may be in a row's way, on average, before the codes are scrambled: in a table that is half
full random codes need less than two, so they are not random."""
SCRAMBLE = 0xD1342543DE82EF95
"""Any odd number whose powers look random: the factor of a linear congruential generator (Steele & Vigna 2021)."""
CELLS_MIN, CELLS_PER_GROUP = 1 << 16, 8
"""Groups have cells of their own up to so many, and up to so many for each group or row of a batch."""
PANES_MIN = 8
"""Where that is allowed, so many panes have cells: the next ones come soon, and untouched memory costs little."""
BLOCK_ROWS = 2_048
"""Rows that are looked up together: what is written about them stays in the first-level cache."""
_MASK = (1 << 64) - 1
_CODE_MAX = 2**63 - 1
"""So far no range of codes may reach: the difference of a code outside of it must not wrap into it."""


class _Cells(NamedTuple):
    """A place for each pair of code and pane, which holds the number of its group, or 0."""

    cells: Int32Array
    low: int
    span: np.uint64
    first: int
    depth: np.uint64
    """So many panes from `first` on have cells, for so many codes (`span`) from `low` on."""

    def can_hold(self, low: int, high: int, first: int, last: int) -> bool:
        """Whether it has places for pairs of such codes and panes, if `first` were its first one."""
        holds_codes = self.low <= low and high < self.low + int(self.span)
        return holds_codes and last < first + int(self.depth) <= _CODE_MAX

    def places(self, codes: Int64Array, panes: Int64Array) -> Int64Array:
        """The places of pairs that have one."""
        return (panes - self.first) * int(self.span) + (codes - self.low)


_NO_CELLS = _Cells(np.empty(0, dtype=np.int32), 0, np.uint64(0), 0, np.uint64(1))


class Table:
    """Pairs of int64 to dense slots, which are used again once they are released.

    Where codes are dense (numbers of an index, ids), each pair has a cell of its own: nothing to hash or to compare.
    Where that would take too many cells, pairs are hashed.
    """

    def __init__(self) -> None:
        self.count = 0
        """How many slots are in use."""
        self._scramble = 1
        """Codes are kept times this odd number; 1 until they pile up."""
        self._steps_max = STEPS_MAX
        self._cells = _NO_CELLS
        self._is_hashed = False
        """Whether the hash table holds all groups. When neither it nor the cells do, the next rows decide."""
        self._stale = 0
        """Places of the hash table that lead to released groups."""
        self._make_room(GROUPS_MIN)
        self._slots: Int32Array = np.empty(0, dtype=np.int32)
        self._missed = np.empty(BLOCK_ROWS, dtype=np.int64)

    def _make_room(self, room: int) -> None:
        """Empty room; groups are numbered from 1 there."""
        self._codes, self._panes = np.empty(room + 1, dtype=np.int64), np.full(room + 1, DEAD_PANE)
        self._codes[0] = 0
        self._free = np.arange(1, room + 1, dtype=np.int32)
        self._table = np.zeros(TABLE_SPARSENESS * room, dtype=np.int32)
        self._shift = np.uint64(65 - len(self._table).bit_length())

    @property
    def room(self) -> int:
        """All slots are below it."""
        return len(self._free)

    @property
    def codes(self) -> Int64Array:
        """The code of each slot, anything for those that are free; not to be written to."""
        kept = self._codes[1:]
        return kept if self._scramble == 1 else _times(kept, pow(self._scramble, -1, 1 << 64))

    @property
    def panes(self) -> Int64Array:
        """The pane of each slot."""
        return self._panes[1:]

    def find(self, codes: Int64Array, panes: Int64Array) -> Int32Array:
        """The slot of each pair, good until the next call; new pairs get free ones."""
        if len(self._slots) < len(codes):
            self._slots = np.empty(len(codes), dtype=np.int32)
        slots = self._slots[: len(codes)]
        if self._is_hashed and not self.count and len(codes):
            self._index(codes, panes)
        row = 0
        while row < len(codes):
            if self._cells is not _NO_CELLS:
                row = self._find_direct(codes, panes, row, slots)
            elif self._is_hashed:
                row = self._find_hashed(codes, panes, row, slots)
            else:
                self._index(codes[row:], panes[row:])
        return slots

    def _find_direct(self, codes: Int64Array, panes: Int64Array, row: int, slots: Int32Array) -> int:
        row, self.count = find_direct(
            codes, panes, row, *self._cells, self._codes, self._panes, self._free, self.count, slots
        )
        if row < len(codes):
            if self.count == self.room:
                self._grow()
            else:
                self._index(codes[row:], panes[row:])
        return row

    def _find_hashed(self, codes: Int64Array, panes: Int64Array, row: int, slots: Int32Array) -> int:
        kept = codes if self._scramble == 1 else _times(codes, self._scramble)
        groups = self._table, self._codes, self._panes, self._free
        count_max, patience = self.room - self._stale, self._patience(len(codes) - row)
        row, self.count = find_groups(
            kept, panes, row, *groups, self.count, count_max, slots, self._missed, self._shift, patience
        )
        if row < len(codes):
            if self.count < count_max:
                self._scramble_more()
                self._refill()
            elif 4 * self.count > 3 * self.room:
                self._grow()
            else:
                self._index(codes[row:], panes[row:])
        return row

    def _index(self, codes: Int64Array, panes: Int64Array) -> None:
        """Give the groups that are there, and those of these rows, cells of their own; or hash them, if that takes too
        many. There are more panes than needed now, since the next ones will come."""
        live = np.flatnonzero(self._panes != DEAD_PANE)
        known_codes, known_panes = self.codes[live - 1], self._panes[live]
        low, high = _limits(codes, known_codes)
        first, last = _limits(panes, known_panes)
        if self._cells.can_hold(low, high, first, last):
            self._cells = self._cells._replace(first=first)
            self._cells.cells.fill(0)
        else:
            span, depth = high - low + 1, last - first + 1
            cells_max = max(CELLS_MIN, CELLS_PER_GROUP * max(len(live), len(codes)))
            self._is_hashed = span * depth > cells_max or high >= _CODE_MAX or last >= _CODE_MAX
            if self._is_hashed:
                self._cells = _NO_CELLS
                self._refill()
                return
            depth = min(max(2 * depth, PANES_MIN), cells_max // span, _CODE_MAX - first)
            cells = np.zeros(span * depth, dtype=np.int32)
            self._cells = _Cells(cells, low, np.uint64(span), first, np.uint64(depth))
            self._scramble, self._codes[live] = 1, known_codes
        self._cells.cells[self._cells.places(known_codes, known_panes)] = live

    def _patience(self, rows: int) -> int:
        """How often a group may be in the way of these rows. All groups count: they would have to be placed anew."""
        return self._steps_max * (rows + self.count + 1)

    def _scramble_more(self) -> None:
        """Change which codes pile up. With more patience each time, since it must end, whatever the codes are."""
        self._scramble = self._scramble * SCRAMBLE & _MASK
        self._codes = _times(self._codes, SCRAMBLE)
        self._steps_max *= 2

    def _grow(self) -> None:
        codes, panes, free = self._codes, self._panes, self._free
        self._make_room(2 * self.room)
        self._codes[: len(codes)], self._panes[: len(panes)], self._free[: len(free)] = codes, panes, free
        if self._is_hashed:
            self._refill()

    def _refill(self) -> None:
        """Make the table anew from the pairs."""
        self._stale = 0
        self._table.fill(0)
        while not refill(self._table, self._codes, self._panes, self._shift, self._patience(0)):
            self._scramble_more()
            self._table.fill(0)

    def release(self, slots: SlotArray) -> None:
        """Forget these pairs: should they come again, they get other slots."""
        cells, low, span, first, _ = self._cells
        groups = self._codes, self._panes, self._free
        free_groups(slots.astype(np.int64, copy=False), cells, low, span, first, *groups, self.count)
        self.count -= len(slots)
        self._stale += len(slots)

    def keep(self, slots: SlotArray, codes: Int64Array, count_max: int) -> None:
        """Only these slots, as the first ones, with other codes, and room for so many."""
        panes = self.panes[slots]
        self._make_room(max(GROUPS_MIN, 1 << (count_max - 1).bit_length()))
        self.count = len(slots)
        self.panes[: len(slots)] = panes
        self.recode(np.arange(len(slots)), codes)

    def recode(self, slots: SlotArray, codes: Int64Array) -> None:
        """Give all slots that are in use other codes."""
        self._scramble, self._steps_max = 1, STEPS_MAX
        self._codes[slots + 1] = codes
        self._cells, self._is_hashed = _NO_CELLS, False


def _limits(values: Int64Array, others: Int64Array) -> tuple[int, int]:
    """The least and the greatest of values (at least one) and others."""
    low, high = int(values.min()), int(values.max())
    if len(others):
        low, high = min(low, int(others.min())), max(high, int(others.max()))
    return low, high


def _times(codes: Int64Array, factor: int) -> Int64Array:
    """Multiplied modulo 2^64, which an odd factor's inverse undoes."""
    product: Int64Array = (codes.view(np.uint64) * np.uint64(factor)).view(np.int64)
    return product

"""Pairs of int64 become dense slots: the growing hash table under groups and indexes.

The kernels look up; this class makes room, and scrambles codes that pile up.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np

from dataflow.kernels.grouping import DEAD_PANE, find_direct, find_groups, refill
from dataflow.message import Int32Array, Int64Array, SlotArray

GROUPS_MIN = 1_024
"""Room for groups at the start, and the least number of dead ones that is worth a clean-up."""
TABLE_SPARSENESS = 2
"""Places in a table for each group that it may hold: more would mean fewer collisions, but miss the cache."""
STEPS_MAX = 8
"""How often another group may be in a row's way, on average, before the codes are scrambled: in a table that is half
full random codes need less than two, so they are not random."""
SCRAMBLE = 0xD1342543DE82EF95
"""Any odd number whose powers look random: the factor of a linear congruential generator (Steele & Vigna 2021)."""
CELLS_MIN, CELLS_PER_GROUP = 1 << 16, 8
"""Groups have cells of their own up to so many, and up to so many for each group or row of a batch."""
BLOCK_ROWS = 2_048
"""Rows that are looked up together: what is written about them stays in the first-level cache."""
_MASK = (1 << 64) - 1
_CODE_MAX = 2**63 - 1
"""So far no range of codes may reach: the difference of a code outside of it must not wrap into it."""


class _Cells(NamedTuple):
    """A place for each pair of code and pane, which holds the number of its group, or 0."""

    cells: Int32Array
    low: int
    span: int
    first: int
    depth: int

    def places(self, codes: Int64Array, panes: Int64Array) -> Int64Array:
        """The places of pairs that have one."""
        return (panes - self.first) * self.span + (codes - self.low)


class Table:
    """Pairs of int64 to dense slots.

    Where codes are dense (numbers of an index, ids), each pair has a cell of its own: nothing to hash or to compare.
    Where that would take too many cells, pairs are hashed.
    """

    def __init__(self) -> None:
        self._next = 1
        self._scramble = 1
        """Codes are kept times this odd number; 1 until they pile up."""
        self._steps_max = STEPS_MAX
        self._cells: _Cells | None = None
        self._is_hashed = False
        """Whether the hash table holds all groups. When neither it nor the cells do, the next rows decide."""
        self._make_room(GROUPS_MIN)
        self._slots: Int32Array = np.empty(0, dtype=np.int32)
        self._missed = np.empty(BLOCK_ROWS, dtype=np.int64)

    def _make_room(self, room: int) -> None:
        self._codes, self._panes = np.empty(room + 1, dtype=np.int64), np.empty(room + 1, dtype=np.int64)
        self._codes[0], self._panes[0] = 0, DEAD_PANE
        self._table = np.zeros(TABLE_SPARSENESS * room, dtype=np.int32)
        self._shift = np.uint64(65 - len(self._table).bit_length())

    @property
    def count(self) -> int:
        """How many slots there are; the kernel numbers them from 1."""
        return self._next - 1

    @property
    def codes(self) -> Int64Array:
        """The code of each slot; not to be written to."""
        kept = self._codes[1 : self._next]
        return kept if self._scramble == 1 else _times(kept, pow(self._scramble, -1, 1 << 64))

    @property
    def panes(self) -> Int64Array:
        return self._panes[1 : self._next]

    def find(self, codes: Int64Array, panes: Int64Array) -> Int32Array:
        """The slot of each pair, good until the next call; new pairs get the next ones."""
        if len(self._slots) < len(codes):
            self._slots = np.empty(len(codes), dtype=np.int32)
        slots = self._slots[: len(codes)]
        if self._cells is None and not self._is_hashed and len(codes):
            self._index(codes, panes)
        row = 0
        while row < len(codes):
            row = (self._find_hashed if self._cells is None else self._find_direct)(codes, panes, row, slots)
        return slots

    def _find_direct(self, codes: Int64Array, panes: Int64Array, row: int, slots: Int32Array) -> int:
        groups = self._codes, self._panes, self._next
        cells, low, span, first, depth = cast(_Cells, self._cells)
        there = cells, low, np.uint64(span), first, np.uint64(depth)
        row, self._next = find_direct(codes, panes, row, *there, *groups, slots)
        if row < len(codes):
            if self._next == len(self._codes):
                self._grow()
            else:
                self._index(codes[row:], panes[row:])
        return row

    def _find_hashed(self, codes: Int64Array, panes: Int64Array, row: int, slots: Int32Array) -> int:
        kept = codes if self._scramble == 1 else _times(codes, self._scramble)
        groups = self._table, self._codes, self._panes, self._next
        patience = self._patience(len(codes) - row)
        row, self._next = find_groups(kept, panes, row, *groups, slots, self._missed, self._shift, patience)
        if row < len(codes):
            if self._next == len(self._codes):
                self._grow()
            else:
                self._scramble_more()
                self._refill()
        return row

    def _index(self, codes: Int64Array, panes: Int64Array) -> None:
        """Give the groups that are there, and those of these rows, cells of their own; or hash them, if that takes too
        many. There are more panes than needed now, since the next ones will come."""
        live = np.flatnonzero(self._panes[: self._next] != DEAD_PANE)
        known_codes, known_panes = self._codes[live], self._panes[live]
        low, high = _limits(codes, known_codes)
        first, last = _limits(panes, known_panes)
        span, depth = high - low + 1, last - first + 1
        cells_max = max(CELLS_MIN, CELLS_PER_GROUP * max(len(live), len(codes)))
        self._is_hashed = span * depth > cells_max or high >= _CODE_MAX or last >= _CODE_MAX
        if self._is_hashed:
            self._cells = None
            self._refill()
            return
        depth = min(2 * depth, cells_max // span, _CODE_MAX - first)
        self._cells = _Cells(np.zeros(span * depth, dtype=np.int32), low, span, first, depth)
        self._cells.cells[self._cells.places(known_codes, known_panes)] = live

    def _patience(self, rows: int) -> int:
        """How often a group may be in the way of these rows. All groups count: they would have to be placed anew."""
        return self._steps_max * (rows + self._next)

    def _scramble_more(self) -> None:
        """Change which codes pile up. With more patience each time, since it must end, whatever the codes are."""
        self._scramble = self._scramble * SCRAMBLE & _MASK
        self._codes[1 : self._next] = _times(self._codes[1 : self._next], SCRAMBLE)
        self._steps_max *= 2

    def _grow(self) -> None:
        old_codes, old_panes = self._codes[: self._next], self._panes[: self._next]
        self._make_room(2 * self.count)
        self._codes[: self._next], self._panes[: self._next] = old_codes, old_panes
        if self._is_hashed:
            self._refill()

    def _refill(self) -> None:
        """Make the table anew from the pairs."""
        self._table.fill(0)
        while not refill(self._table, self._codes, self._panes, self._next, self._shift, self._patience(0)):
            self._scramble_more()
            self._table.fill(0)

    def recode(self, codes: Int64Array) -> None:
        """Give all slots other codes."""
        self._scramble, self._steps_max = 1, STEPS_MAX
        self._codes[1 : self._next] = codes
        self._cells, self._is_hashed = None, False

    def release(self, slots: SlotArray) -> None:
        """Forget these pairs: should they come again, they get new slots."""
        if self._cells is not None:
            self._cells.cells[self._cells.places(self.codes[slots], self.panes[slots])] = 0
        self.panes[slots] = DEAD_PANE

    def keep(self, slots: SlotArray, codes: Int64Array | None = None) -> None:
        """Only these slots, with other codes if given. The table shrinks slowly: the next window will want as much."""
        cells, panes = self._cells if codes is None else None, self.panes[slots]
        codes = self.codes[slots] if codes is None else codes
        room = len(self._codes) - 1
        if 4 * len(slots) < room and room > GROUPS_MIN:
            self._make_room(room // 2)
        self._next = len(slots) + 1
        self.panes[:] = panes
        self.recode(codes)
        if cells is not None and len(slots):
            first = int(panes.min())
            cells.cells.fill(0)
            self._cells = cells._replace(first=first)
            cells.cells[self._cells.places(codes, panes)] = np.arange(1, self._next)


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

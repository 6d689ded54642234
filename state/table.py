"""Pairs of int64 become dense slots: the growing hash table under groups and indexes.

The kernels look up; this class makes room, and scrambles codes that pile up.
"""

from __future__ import annotations

import numpy as np

from dataflow.kernels.grouping import DEAD_PANE, find_groups, refill
from dataflow.message import Int64Array

GROUPS_MIN = 1_024
"""Room for groups at the start, and the least number of dead ones that is worth a clean-up."""
TABLE_SPARSENESS = 2
"""Places in a table for each group that it may hold: more would mean fewer collisions, but miss the cache."""
STEPS_MAX = 8
"""How often another group may be in a row's way, on average, before the codes are scrambled: in a table that is half
full random codes need less than two, so they are not random."""
SCRAMBLE = 0xD1342543DE82EF95
"""Any odd number whose powers look random: the factor of a linear congruential generator (Steele & Vigna 2021)."""
BLOCK_ROWS = 2_048
"""Rows that are looked up together: what is written about them stays in the first-level cache."""
_MASK = (1 << 64) - 1


class Table:
    """Pairs of int64 to dense slots."""

    def __init__(self) -> None:
        self._next = 1
        self._scramble = 1
        """Codes are kept times this odd number; 1 until they pile up."""
        self._steps_max = STEPS_MAX
        self._make_room(GROUPS_MIN)
        self._slots = np.empty(0, dtype=np.int64)
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

    def find(self, codes: Int64Array, panes: Int64Array) -> Int64Array:
        """The slot of each pair, good until the next call; new pairs get the next ones."""
        if len(self._slots) < len(codes):
            self._slots = np.empty(len(codes), dtype=np.int64)
        slots = self._slots[: len(codes)]
        kept = codes if self._scramble == 1 else _times(codes, self._scramble)
        row = 0
        while True:
            patience = self._patience(len(codes) - row)
            groups = self._table, self._codes, self._panes, self._next
            row, self._next = find_groups(kept, panes, row, *groups, slots, self._missed, self._shift, patience)
            if row == len(codes):
                return slots
            if self._next == len(self._codes):
                self._grow()
            else:
                self._scramble_more()
                self._refill()
            kept = codes if self._scramble == 1 else _times(codes, self._scramble)

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
        self._refill()

    def keep(self, slots: Int64Array, codes: Int64Array) -> None:
        """Only these slots, with these codes. The table shrinks slowly: the next window will want as much again."""
        panes = self.panes[slots]
        room = len(self._codes) - 1
        if 4 * len(slots) < room and room > GROUPS_MIN:
            self._make_room(room // 2)
        self._next = len(slots) + 1
        self.panes[:] = panes
        self.recode(codes)


def _times(codes: Int64Array, factor: int) -> Int64Array:
    """Multiplied modulo 2^64, which an odd factor's inverse undoes."""
    product: Int64Array = (codes.view(np.uint64) * np.uint64(factor)).view(np.int64)
    return product

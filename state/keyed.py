"""Groups: key columns of any type and a pane become a dense slot; state is then plain arrays indexed by slot.

Two things are hard. Null is a group, but no int64 is free to stand for it: a column changes from values to indexes when
its first null comes. And memory must follow the live groups, also when no key ever comes back: released groups and the
values that only they used are dropped once they outnumber the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import pyarrow as pa

from dataflow.kernels.grouping import DEAD_PANE, due_slots, join_codes
from dataflow.message import Int32Array, Int64Array, SlotArray
from dataflow.state.keys import KeyColumn
from dataflow.state.order import canonical_order, ranked_order
from dataflow.state.table import GROUPS_MIN, Table

VALUES_PER_GROUP_MAX = 4
"""Values that an index may know for each group: dictionaries bring some that no row has."""
ROOM_PER_GROUP_MAX, RELEASES = 4, 16
"""Room is given back when it was more than so many times what was needed, for so many releases: the next window will
want as much as the last one."""


class Groups:
    """The slots of (key, pane). Used by one task."""

    def __init__(self, key_types: Sequence[pa.DataType]) -> None:
        self._types = tuple(key_types)
        self._table = Table()
        self._most, self._releases = 0, 0
        self._start_encoding([False] * len(self._types))

    def _start_encoding(self, indexed: Sequence[bool]) -> None:
        self._columns = [KeyColumn(kind, one) for kind, one in zip(self._types, indexed, strict=True)]
        self._pairs = [Table() for _ in self._types[2:]]

    @property
    def count(self) -> int:
        """Groups that have not been released."""
        return self._table.count

    @property
    def room(self) -> int:
        """All slots are below it."""
        return self._table.room

    @property
    def panes(self) -> Int64Array:
        """The pane of each slot."""
        return self._table.panes

    def slots(self, columns: Sequence[pa.Array], panes: Int64Array) -> Int32Array:
        """The slot of each row's group; new groups get new slots."""
        return self._table.find(self._codes_of(columns, len(panes)), panes)

    def _codes_of(self, columns: Sequence[pa.Array], rows: int) -> Int64Array:
        """One code a row. Columns whose values cannot be codes (nulls, or two that do not fit together) are indexed."""
        if not columns:
            return np.zeros(rows, dtype=np.int64)
        columns = [known.decoded(column) for known, column in zip(self._columns, columns, strict=True)]
        nullable = [
            known.is_raw and column.null_count > 0 for known, column in zip(self._columns, columns, strict=True)
        ]
        if any(nullable):
            self._index(nullable)
        codes = [known.codes_of(column) for known, column in zip(self._columns, columns, strict=True)]
        joined = codes[0]
        for number, more in enumerate(codes[1:]):
            if number:
                joined = self._pairs[number - 1].find(joined, np.zeros(rows, dtype=np.int64)).astype(np.int64)
            pair, joined = joined, np.empty(rows, dtype=np.int64)
            if not join_codes(pair, more, joined):
                self._index([True] * len(columns))
                return self._codes_of(columns, rows)
        return joined

    def _index(self, columns: Sequence[bool]) -> None:
        """From now on these columns are indexed; the codes of all groups are made anew."""
        slots = self.live_slots()
        keys = self.keys(slots)
        self._start_encoding([one or not known.is_raw for one, known in zip(columns, self._columns, strict=True)])
        if len(slots):
            self._table.recode(slots, self._codes_of(keys, len(slots)))

    def keys(self, slots: SlotArray) -> list[pa.Array]:
        """The key columns of these slots, in their logical types."""
        return [known.values(codes) for known, codes in self._column_codes(slots)]

    def encoded_keys(self, slots: SlotArray) -> list[pa.Array]:
        """As `keys`, but text columns are dictionaries: for other tasks of this run."""
        return [known.encoded(codes) for known, codes in self._column_codes(slots)]

    def order(self, slots: SlotArray) -> Int64Array:
        """The order of these slots by pane, then by key (nulls last)."""
        ranks = [known.ranks(codes) for known, codes in self._column_codes(slots)]
        if any(one is None for one in ranks):
            return canonical_order(self.panes[slots], self.keys(slots))
        return ranked_order(self.panes[slots], cast(list[Int64Array], ranks))

    def _column_codes(self, slots: SlotArray) -> list[tuple[KeyColumn, Int64Array]]:
        """For each key column the codes of these slots."""
        if not self._columns:
            return []
        codes = self._table.codes[slots]
        found: list[tuple[KeyColumn, Int64Array]] = []
        for number in range(len(self._columns) - 1, 0, -1):
            codes, last = _split(codes)
            found.append((self._columns[number], last))
            if number > 1:
                codes = self._pairs[number - 2].codes[codes]
        return [(self._columns[0], codes), *found[::-1]]

    def live_slots(self) -> Int64Array:
        """The slots of the groups that have not been released."""
        return np.flatnonzero(self.panes != DEAD_PANE)

    def due_slots(self, last: int) -> tuple[Int64Array, float]:
        """The slots of the groups up to pane `last`, and the least pane of the others (infinite for none)."""
        slots = np.empty(self.room, dtype=np.int64)
        number, oldest = due_slots(self.panes, max(last, -(2**63)), slots)
        return slots[:number], math.inf if oldest == 2**63 - 1 else oldest

    def release(self, slots: SlotArray) -> Int64Array | None:
        """Forget groups. Now and then those that are left move together: then this returns their old slots, in the
        order of the new ones; else None."""
        self._most, self._releases = max(self._most, self.count), self._releases + 1
        self._table.release(slots)
        has_room = self._releases >= RELEASES and self.room > max(GROUPS_MIN, ROOM_PER_GROUP_MAX * self._most)
        if has_room or self._known > VALUES_PER_GROUP_MAX * max(GROUPS_MIN, self._most):
            kept = self.live_slots()
            keys = self.keys(kept)
            self._start_encoding([not known.is_raw for known in self._columns])
            self._table.keep(kept, self._codes_of(keys, len(kept)), self._most)
        else:
            kept = None
        if self._releases >= RELEASES or kept is not None:
            self._most, self._releases = self.count, 0
        return kept

    @property
    def _known(self) -> int:
        """How many values the index knows that knows most; all may be of groups that are gone."""
        return max((*(one.count for one in self._columns), *(one.count for one in self._pairs)), default=0)


def _split(joined: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The two codes of 32 bits that were joined."""
    return joined >> 32, (joined << 32) >> 32

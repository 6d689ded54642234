"""Groups: key columns of any type and a pane become a dense slot; state is then plain arrays indexed by slot.

A key becomes one int64 code first: a single integer-like column is its own code, everything else goes through
an index of the values seen (`ColumnIndex`). Two things are hard. Null is a group, but no int64 is free to stand
for it: a column changes from values to indexes when its first null comes. And memory must follow the live
groups, also when no key ever comes back: released groups and the values that only they used are dropped once
they outnumber the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dataflow.event_time import to_us
from dataflow.kernels.exchange import split_by_group
from dataflow.kernels.gateway import ALL_VALID, validity_of, values_of
from dataflow.kernels.grouping import DEAD_PANE, due_slots, find_groups, find_texts, join_codes, place_texts, refill
from dataflow.kernels.hashing import hash_bytes, hash_ints
from dataflow.message import BoolArray, Int64Array
from dataflow.schema import is_bytes_type, is_text_type

GROUPS_MIN = 1_024
"""Room for groups at the start, and the least number of dead ones that is worth a clean-up."""
TABLE_SPARSENESS = 2
"""Places in a table for each group that it may hold: more would mean fewer collisions, but miss the cache."""
STEPS_MAX = 8
"""How often another group may be in a row's way, on average, before the codes are scrambled: in a table that is half
full random codes need less than two, so they are not random."""
SCRAMBLE = 0xD1342543DE82EF95
"""Any odd number whose powers look random: the factor of a linear congruential generator (Steele & Vigna 2021)."""
VALUES_PER_GROUP_MAX = 4
"""Values that an index may know for each group: dictionaries bring some that no row has."""
BLOCK_ROWS = 2_048
"""Rows that are looked up together: what is written about them stays in the first-level cache."""
_MASK = (1 << 64) - 1
_CANONICAL_NAN = np.int64(0x7FF8000000000000)


# ── keys as plain arrays ─────────────────────────────────────────────────────────────────────────────────


def is_text(kind: pa.DataType) -> bool:
    """Whether values of the type are compared by their bytes."""
    return bool(is_text_type(kind) or is_bytes_type(kind) or pa.types.is_decimal(kind))


def key_ints(column: pa.Array) -> tuple[Int64Array, BoolArray]:
    """The int64 that stands for each value of an integer-like column, and validity; equal keys have equal ints."""
    values, valid = values_of(column)
    if values.dtype == np.float64:
        folded = values + 0.0  # −0.0 becomes 0.0
        bits = folded.view(np.int64)
        nan = np.isnan(folded)
        return (np.where(nan, _CANONICAL_NAN, bits) if nan.any() else bits), valid
    return values, valid  # type: ignore[return-value]  # not float64, so int64


def key_bytes(column: pa.Array) -> tuple[Int64Array, np.ndarray, BoolArray]:
    """Offsets (one more than rows), bytes and validity of a text column."""
    valid = validity_of(column)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.string())
    large = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    if not large and not pa.types.is_string(column.type) and not pa.types.is_binary(column.type):
        column, large = column.cast(pa.large_binary()), True
    _, offsets, data = column.buffers()
    width = np.int64 if large else np.int32
    plain = np.frombuffer(offsets, dtype=width, count=len(column) + 1, offset=column.offset * np.dtype(width).itemsize)
    found = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, dtype=np.uint8)
    return plain.astype(np.int64, copy=False), found, valid


# ── the documented hash ──────────────────────────────────────────────────────────────────────────────────


def row_hashes(columns: Sequence[pa.Array]) -> np.ndarray:
    """The key hash of each row, as FORMAT.md section 6 defines it."""
    hashes = np.zeros(len(columns[0]), dtype=np.uint64)
    for number, column in enumerate(columns):
        if pa.types.is_dictionary(column.type):
            if number == 0 and not column.null_count and not column.dictionary.null_count:
                hashes = row_hashes([column.dictionary])[column.indices.to_numpy()]
                continue
            column = column.cast(column.type.value_type)
        _hash_column(column, hashes)
    return hashes


def split_by_owner(columns: Sequence[pa.Array], owners: int) -> tuple[Int64Array, list[int]]:
    """Row numbers ordered by the task that owns each key, and where each owner's rows begin and end."""
    return split_by_group(row_hashes(columns), owners)


def _hash_column(column: pa.Array, hashes: np.ndarray) -> None:
    kind = column.type
    if pa.types.is_null(kind):
        hash_ints(np.zeros(len(column), dtype=np.int64), np.zeros(len(column), dtype=np.bool_), hashes)
    elif is_text(kind):
        hash_bytes(*key_bytes(column), hashes)
    else:
        hash_ints(*_canonical_ints(column), hashes)


def _canonical_ints(column: pa.Array) -> tuple[Int64Array, BoolArray]:
    """As `key_ints`, but times of every unit as microseconds."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return to_us(column)[0], validity_of(column)
    values, valid = key_ints(column)
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        per_us = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}
        factor, divisor = per_us[kind.unit]
        return values * factor // divisor, valid
    if pa.types.is_date64(kind):
        return values // 86_400_000, valid
    return values, valid


# ── indexes of the values of one column ──────────────────────────────────────────────────────────────────


class IntIndex:
    """The distinct ints of a column, numbered as they come. `-1` stands for null outside."""

    def __init__(self) -> None:
        self._table = Table()

    def ids_of(self, values: Int64Array) -> Int64Array:
        return self._table.find(values, np.zeros(len(values), dtype=np.int64))

    def values(self, ids: Int64Array) -> Int64Array:
        """The values with these ids; anything for -1."""
        known = self._table.codes if self._table.count else np.zeros(1, dtype=np.int64)
        return known[ids]


class TextIndex:
    """The distinct byte strings of a column, numbered as they come."""

    def __init__(self) -> None:
        self.count = 0
        self._table = np.full(4 * GROUPS_MIN, -1, dtype=np.int32)
        self._hashes = np.empty(GROUPS_MIN, dtype=np.uint64)
        self._offsets = np.zeros(GROUPS_MIN + 1, dtype=np.int64)
        self._data = np.empty(16 * GROUPS_MIN, dtype=np.uint8)

    def ids_of(self, column: pa.Array) -> Int64Array:
        """The id of each value; what stands at a null's place is some id too."""
        offsets, data, _ = key_bytes(column)
        hashes = np.zeros(len(column), dtype=np.uint64)
        hash_bytes(offsets, data, ALL_VALID, hashes)
        ids = np.empty(len(column), dtype=np.int64)
        row = 0
        while True:
            row, self.count = find_texts(
                offsets, data, hashes, row, self._table, self._hashes, self._offsets, self._data, self.count, ids
            )
            if row == len(column):
                return ids
            self._grow(int(offsets[row + 1] - offsets[row]))

    def _grow(self, bytes_needed: int) -> None:
        """Make room for one more value of this length, and for as many again."""
        if self.count == len(self._hashes):
            self._hashes = _resized(self._hashes, 2 * self.count)
            self._offsets = _resized(self._offsets, 2 * self.count + 1)
            size = 4 * len(self._hashes)
            self._table = np.full(size, -1, dtype=np.int32)
            place_texts(self._table, self._hashes, self.count)
        used = int(self._offsets[self.count])
        if used + bytes_needed > len(self._data):
            self._data = _resized(self._data, 2 * (used + bytes_needed))

    def values(self, ids: Int64Array, kind: pa.DataType) -> pa.Array:
        """The values with these ids, in their logical type; -1 is null."""
        # No copy: what is below `count` never changes, and growing makes new arrays.
        offsets, data = pa.py_buffer(self._offsets), pa.py_buffer(self._data)
        is_bytes = is_bytes_type(kind)
        stored = pa.large_binary() if is_bytes else pa.large_string()
        known = pa.Array.from_buffers(stored, self.count, [None, offsets, data])
        null = ids < 0
        return known.take(pa.array(ids, mask=null if null.any() else None)).cast(kind)


def _resized(array: np.ndarray, size: int) -> np.ndarray:
    grown = np.empty(size, dtype=array.dtype)
    grown[: len(array)] = array
    return grown


class KeyColumn:
    """One key column: its values as int64 codes, and back. `null_code` is -1, which indexed columns keep free."""

    def __init__(self, kind: pa.DataType, indexed: bool) -> None:
        self.kind = kind
        self.is_text = is_text(kind) or pa.types.is_null(kind)
        self.ints = IntIndex() if indexed and not self.is_text else None
        self.texts = TextIndex() if self.is_text else None
        self._dictionary: pa.Array | None = None
        self._dictionary_ids = np.empty(0, dtype=np.int64)

    @property
    def is_raw(self) -> bool:
        """Whether codes are the values themselves; then null has no code."""
        return self.ints is None and self.texts is None

    def codes_of(self, column: pa.Array) -> Int64Array:
        if pa.types.is_null(column.type):
            return np.full(len(column), -1, dtype=np.int64)
        if pa.types.is_dictionary(column.type):
            return self._through_dictionary(column)
        if self.texts is not None:
            ids, valid = self.texts.ids_of(column.drop_null() if column.null_count else column), validity_of(column)
            return ids if not len(valid) else _spread(ids, valid)
        values, valid = key_ints(column)
        if self.ints is None:
            return values
        if not len(valid):
            return self.ints.ids_of(values)
        return np.where(valid, self.ints.ids_of(np.where(valid, values, 0)), -1)

    def decoded(self, column: pa.Array) -> pa.Array:
        """The column without its dictionary, unless that saves work: each of its texts is then hashed once."""
        kind = column.type
        if pa.types.is_dictionary(kind) and not (self.is_text and len(column.dictionary) <= len(column)):
            column, kind = column.cast(kind.value_type), kind.value_type
        is_view = pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
        return column.cast(pa.large_binary()) if is_view else column  # Arrow cannot filter views

    def _through_dictionary(self, column: pa.DictionaryArray) -> Int64Array:
        """Hash each value of the dictionary once; the batches of a unit share theirs."""
        dictionary = column.dictionary
        if self._dictionary is None or not _same_memory(self._dictionary, dictionary):
            self._dictionary_ids = np.append(self.codes_of(dictionary), -1)
            self._dictionary = dictionary
        indices = column.indices
        if indices.null_count:  # as 64 bits: a narrow index may have no number left
            indices = indices.cast(pa.int64()).fill_null(len(dictionary))
        codes: Int64Array = np.take(self._dictionary_ids, indices.to_numpy())
        return codes

    def values(self, codes: Int64Array) -> pa.Array:
        if self.texts is not None:
            if pa.types.is_null(self.kind):
                return pa.nulls(len(codes))
            return self.texts.values(codes, self.kind)
        null = codes < 0 if self.ints is not None else None
        ints = codes if self.ints is None else self.ints.values(codes)
        return _from_ints(ints, self.kind, null)


def _spread(ids: Int64Array, valid: BoolArray) -> Int64Array:
    codes = np.full(len(valid), -1, dtype=np.int64)
    codes[valid] = ids
    return codes


def _same_memory(one: pa.Array, other: pa.Array) -> bool:
    if len(one) != len(other) or one.offset != other.offset:
        return False
    pairs = zip(one.buffers(), other.buffers(), strict=True)
    return all((a.address if a else 0) == (b.address if b else 0) for a, b in pairs)


def _from_ints(ints: Int64Array, kind: pa.DataType, null: BoolArray | None) -> pa.Array:
    """The values of an integer-like type that these ints stand for."""
    mask = null if null is not None and null.any() else None
    if mask is not None:
        ints = np.where(mask, 0, ints)
    if pa.types.is_floating(kind):
        return pa.array(ints.view(np.float64), mask=mask).cast(kind)
    found = pa.array(ints, mask=mask)
    if pa.types.is_boolean(kind):
        return found.cast(pa.bool_())
    if pa.types.is_uint64(kind):
        return pa.array(ints.view(np.uint64), mask=mask)
    if kind.bit_width == 64:
        return found.view(kind)
    if pa.types.is_integer(kind):
        return found.cast(kind)
    return found.cast(pa.int32()).view(kind)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────


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


class Groups:
    """The slots of (key, pane). Used by one task."""

    def __init__(self, key_types: Sequence[pa.DataType]) -> None:
        self._types = tuple(key_types)
        self._table = Table()
        self._dead = 0
        self._start_encoding([False] * len(self._types))

    def _start_encoding(self, indexed: Sequence[bool]) -> None:
        self._columns = [KeyColumn(kind, one) for kind, one in zip(self._types, indexed, strict=True)]
        self._pairs = [Table() for _ in self._types[2:]]

    @property
    def count(self) -> int:
        """Slots in use, those of released groups included."""
        return self._table.count

    @property
    def panes(self) -> Int64Array:
        """The pane of each slot."""
        return self._table.panes

    def slots(self, columns: Sequence[pa.Array], panes: Int64Array) -> Int64Array:
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
                joined = self._pairs[number - 1].find(joined, np.zeros(rows, dtype=np.int64))
            pair, joined = joined, np.empty(rows, dtype=np.int64)
            if not join_codes(pair, more, joined):
                self._index([True] * len(columns))
                return self._codes_of(columns, rows)
        return joined

    def _index(self, columns: Sequence[bool]) -> None:
        """From now on these columns are indexed; the codes of all groups are made anew."""
        keys = self.keys(np.arange(self.count))
        self._start_encoding([one or not known.is_raw for one, known in zip(columns, self._columns, strict=True)])
        if self.count:
            self._table.recode(self._codes_of(keys, self.count))

    def keys(self, slots: Int64Array) -> list[pa.Array]:
        """The key columns of these slots, in their logical types."""
        codes = self._table.codes[slots]
        if len(self._types) == 1:
            return [self._columns[0].values(codes)]
        found: list[pa.Array] = []
        for number in range(len(self._types) - 1, 0, -1):
            codes, last = _split(codes)
            found.append(self._columns[number].values(last))
            if number > 1:
                codes = self._pairs[number - 2].codes[codes]
        return [self._columns[0].values(codes), *found[::-1]] if self._types else []

    def live_slots(self) -> Int64Array:
        """The slots of the groups that have not been released."""
        return np.flatnonzero(self.panes != DEAD_PANE)

    def due_slots(self, last: int) -> tuple[Int64Array, float]:
        """The slots of the groups up to pane `last`, and the least pane of the others (infinite for none)."""
        slots = np.empty(self.count, dtype=np.int64)
        number, oldest = due_slots(self.panes, max(last, -(2**63)), slots)
        return slots[:number], math.inf if oldest == 2**63 - 1 else oldest

    def release(self, slots: Int64Array) -> Int64Array | None:
        """Forget groups. When many are dead they are cleaned up: then this returns the old slots that were kept,
        in the order of the new ones; else None."""
        self._table.panes[slots] = DEAD_PANE
        self._dead += len(slots)
        if self._dead < max(GROUPS_MIN, self.count // 4) and not self._knows_too_much():
            return None
        kept = self.live_slots()
        codes = self._table.codes[kept]
        if not all(known.is_raw for known in self._columns) or self._pairs:
            keys = self.keys(kept)
            self._start_encoding([not known.is_raw for known in self._columns])
            codes = self._codes_of(keys, len(kept))
        self._table.keep(kept, codes)
        self._dead = 0
        return kept

    def _knows_too_much(self) -> bool:
        """Whether an index holds many more values than there are groups."""
        most = VALUES_PER_GROUP_MAX * max(GROUPS_MIN, self.count)
        return any(known.texts is not None and known.texts.count > most for known in self._columns)


def _split(joined: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The two codes of 32 bits that were joined."""
    return joined >> 32, (joined << 32) >> 32

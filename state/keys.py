"""Key columns of any type as plain int64 codes, and back; and the documented hash of keys.

A single integer-like column is its own code; everything else goes through an index of the values seen. The hard part is
text: its values come in dictionaries of their own, unit after unit, and from other tasks, and each is hashed once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dataflow.event_time import to_us
from dataflow.kernels.exchange import split_by_group
from dataflow.kernels.gateway import ALL_VALID, column_of, int32s_of, ints_of, validity_of, values_of
from dataflow.kernels.grouping import find_texts, place_texts, take_codes
from dataflow.kernels.hashing import hash_bytes, hash_ints
from dataflow.message import BoolArray, Int64Array
from dataflow.schema import is_bytes_type, is_text_type
from dataflow.state.table import GROUPS_MIN, Table

_CANONICAL_NAN = np.int64(0x7FF8000000000000)


# ── keys as plain arrays ─────────────────────────────────────────────────────────────────────────────────


def is_text(kind: pa.DataType) -> bool:
    """Whether values of the type are compared by their bytes."""
    return bool(is_text_type(kind) or is_bytes_type(kind) or pa.types.is_decimal(kind))


def is_view(kind: pa.DataType) -> bool:
    """Whether values are views into several buffers."""
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


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
        return self._table.find(values, np.zeros(len(values), dtype=np.int64)).astype(np.int64)

    @property
    def count(self) -> int:
        return self._table.count

    def values(self, ids: Int64Array) -> Int64Array:
        """The values with these ids; anything for -1."""
        return self._table.codes[ids]


class TextIndex:
    """The distinct byte strings of a column, numbered as they come."""

    def __init__(self) -> None:
        self.count = 0
        self._table = np.full(4 * GROUPS_MIN, -1, dtype=np.int32)
        self._hashes = np.empty(GROUPS_MIN, dtype=np.uint64)
        self._offsets = np.zeros(GROUPS_MIN + 1, dtype=np.int64)
        self._data = np.empty(16 * GROUPS_MIN, dtype=np.uint8)
        self._known: pa.Array | None = None
        self._ranks: Int64Array = np.empty(0, dtype=np.int64)

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

    def known(self, kind: pa.DataType) -> pa.Array:
        """All values by their ids, in their logical type (views as large text, since Arrow cannot take from views); the
        same array until another value comes."""
        if self._known is None or len(self._known) != self.count:
            # No copy: what is below `count` never changes, and growing makes new arrays.
            offsets, data = pa.py_buffer(self._offsets), pa.py_buffer(self._data)
            stored = pa.large_binary() if is_bytes_type(kind) else pa.large_string()
            self._known = pa.Array.from_buffers(stored, self.count, [None, offsets, data])
            if not is_view(kind):
                self._known = self._known.cast(kind)
        return self._known

    def ranks(self, kind: pa.DataType) -> Int64Array:
        """For each id its place in the order of the values; the last one, which -1 refers to, is that of null."""
        known = self.known(kind)
        if len(self._ranks) != len(known) + 1:
            import pyarrow.compute as pc

            self._ranks = np.empty(len(known) + 1, dtype=np.int64)
            self._ranks[-1] = len(known)
            self._ranks[pc.sort_indices(known).to_numpy()] = np.arange(len(known))
        return self._ranks


def _resized(array: np.ndarray, size: int) -> np.ndarray:
    grown = np.empty(size, dtype=array.dtype)
    grown[: len(array)] = array
    return grown


class KeyColumn:
    """One key column: its values as int64 codes, and back. Null is -1, which indexed columns keep free."""

    def __init__(self, kind: pa.DataType, indexed: bool) -> None:
        self.kind = kind
        self.is_text = is_text(kind) or pa.types.is_null(kind)
        self.ints = IntIndex() if indexed and not self.is_text else None
        self.texts = TextIndex() if self.is_text else None
        self._dictionaries: dict[tuple[int, ...], tuple[pa.Array, Int64Array]] = {}
        """The last dictionaries, by where they lie in memory, and the code of each of their values."""

    @property
    def is_raw(self) -> bool:
        """Whether codes are the values themselves; then null has no code."""
        return self.ints is None and self.texts is None

    @property
    def count(self) -> int:
        """How many values an index knows."""
        return self.texts.count if self.texts is not None else 0 if self.ints is None else self.ints.count

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
        if pa.types.is_dictionary(kind):
            if self.is_text and len(column.dictionary) <= DICTIONARY_PER_ROW_MAX * len(column):
                return column
            column, kind = column.cast(kind.value_type), kind.value_type
        return column.cast(pa.large_binary()) if is_view(kind) else column  # Arrow cannot filter views

    def _through_dictionary(self, column: pa.DictionaryArray) -> Int64Array:
        """Hash each value of the dictionary once; batches of a unit share theirs, and so do those of another task."""
        dictionary = column.dictionary
        place = _memory_of(dictionary)
        found = self._dictionaries.pop(place, None)
        if found is None:
            found = dictionary, np.append(self.codes_of(dictionary), -1)
            while len(self._dictionaries) >= DICTIONARIES_MAX:
                del self._dictionaries[next(iter(self._dictionaries))]
        self._dictionaries[place] = found  # the last one used is the last to be forgotten
        indices = column.indices
        codes = np.empty(len(indices), dtype=np.int64)
        if pa.types.is_int32(indices.type) and not indices.null_count:
            take_codes(int32s_of(indices), found[1], codes)
        else:  # as 64 bits: a narrow index may have no number left
            np.take(found[1], ints_of(indices.cast(pa.int64()).fill_null(len(dictionary))), out=codes)
        return codes

    def values(self, codes: Int64Array) -> pa.Array:
        """The values with these codes, in their logical type."""
        if self.texts is not None:
            if pa.types.is_null(self.kind):
                return pa.nulls(len(codes))
            taken = self.texts.known(self.kind).take(_with_nulls(codes))
            return taken if taken.type.equals(self.kind) else taken.cast(self.kind)
        null = codes < 0 if self.ints is not None else None
        ints = codes if self.ints is None else self.ints.values(codes)
        return _from_ints(ints, self.kind, null)

    def encoded(self, codes: Int64Array) -> pa.Array:
        """As `values`, but text as a dictionary of all that is known: another task then hashes that once."""
        if self.texts is None or not is_text_type(self.kind) or is_view(self.kind):
            return self.values(codes)
        indices = _with_nulls(codes).cast(pa.int32())
        return pa.DictionaryArray.from_arrays(indices, self.texts.known(self.kind), safe=False)

    def ranks(self, codes: Int64Array) -> Int64Array | None:
        """Ints in the order of the values, null last; None where only Arrow can compare them."""
        if self.texts is not None:
            return None if pa.types.is_null(self.kind) else self.texts.ranks(self.kind)[codes]
        is_ordered = pa.types.is_integer(self.kind) or pa.types.is_temporal(self.kind) or pa.types.is_boolean(self.kind)
        return codes if self.ints is None and is_ordered and not pa.types.is_uint64(self.kind) else None


DICTIONARY_PER_ROW_MAX = 2
"""A dictionary with more values than so many times the rows is not worth hashing."""
DICTIONARIES_MAX = 8
"""Dictionaries whose codes are kept: one of each sending task, as a rule."""


def _with_nulls(codes: Int64Array) -> pa.Array:
    """Codes as an array with null for -1."""
    null = codes < 0
    return pa.array(codes, mask=null) if null.any() else column_of(codes)


def _spread(ids: Int64Array, valid: BoolArray) -> Int64Array:
    codes = np.full(len(valid), -1, dtype=np.int64)
    codes[valid] = ids
    return codes


def _memory_of(array: pa.Array) -> tuple[int, ...]:
    """Where an array lies: arrays of equal memory are equal, as long as they are kept."""
    return len(array), array.offset, *((one.address if one else 0) for one in array.buffers())


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

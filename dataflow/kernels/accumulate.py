"""The inner loops of aggregates: each goes once over the rows of a batch and updates the rows of their groups.

`words` holds one row of 64-bit words for each group: all that its aggregates keep, so that a group's state is
one or two lines of the cache, and is copied as one. An aggregate's own words begin `at` a column; some are floats.
Slots are used as unsigned numbers, which spares a test for negative ones at each access. A validity of length 0
means: all valid.

Float sums have three parts: a sum, what its additions lost (TwoSum: Knuth, The Art of Computer Programming 2, 4.2.2,
Theorem B), and what those lost in turn, so the rounded result does not depend on how the rows were split. Integer sums
have 128 bits, so no order of additions overflows on the way.
"""

from __future__ import annotations

import numpy as np

from dataflow.kernels import helper, kernel
from dataflow.message import BoolArray, Float64Array, Int64Array

NAN, PLUS_INF, MINUS_INF = 1, 2, 4
"""What a float sum has met besides numbers; bits."""
_INF_BITS = np.int64(0x7FF0000000000000)
_NAN_BITS = np.int64(0x7FF8000000000000)
_ABS_BITS = np.int64(0x7FFFFFFFFFFFFFFF)


@kernel
def count_rows(slots: Int64Array, valid: BoolArray, words: Int64Array, at: int) -> None:
    """Count the valid rows of each slot."""
    if len(valid) == 0:
        for row in range(len(slots)):
            words[np.uint64(slots[row]), at] += 1
    else:
        for row in range(len(slots)):
            words[np.uint64(slots[row]), at] += valid[row]


@kernel
def merge_counts(slots: Int64Array, given: Int64Array, words: Int64Array, at: int) -> None:
    """Add what other tasks have counted; `given` has the words of one group a row."""
    for row in range(len(slots)):
        words[np.uint64(slots[row]), at] += given[row, at]


@helper
def _add(floats: Float64Array, slot: np.uint64, at: int, value: float) -> None:
    """Add to a sum in three parts. What is lost is mostly nothing, and adding nothing changes nothing."""
    high = floats[slot, at]
    total = high + value
    back = total - high
    lost = (high - (total - back)) + (value - back)
    floats[slot, at] = total
    middle = floats[slot, at + 1]
    total = middle + lost
    back = total - middle
    floats[slot, at + 1] = total
    lost = (middle - (total - back)) + (lost - back)
    if lost != 0.0:
        floats[slot, at + 2] += lost


@kernel
def sum_floats(slots: Int64Array, values: Float64Array, valid: BoolArray, words: Int64Array, at: int) -> None:
    """Add to a sum in three parts, the number of values, and the bits of what was met that is not finite."""
    floats = words.view(np.float64)
    every = len(valid) == 0
    for row in range(len(slots)):
        if every or valid[row]:
            slot = np.uint64(slots[row])
            value = values[row]
            words[slot, at + 3] += 1
            if value - value == 0.0:
                _add(floats, slot, at, value)
            else:  # infinite, or not a number
                words[slot, at + 4] |= NAN if value != value else (PLUS_INF if value > 0.0 else MINUS_INF)


@kernel
def merge_floats(slots: Int64Array, given: Int64Array, words: Int64Array, at: int) -> None:
    """Add sums that other tasks have gathered; `given` has the words of one group a row."""
    floats = words.view(np.float64)
    parts = given.view(np.float64)
    for row in range(len(slots)):
        slot = np.uint64(slots[row])
        for part in range(3):
            _add(floats, slot, at, parts[row, at + part])
        words[slot, at + 3] += given[row, at + 3]
        words[slot, at + 4] |= given[row, at + 4]


@helper
def _add_wide(words: Int64Array, slot: np.uint64, at: int, low: int, high: int) -> None:
    """Add to a sum of 128 bits."""
    total = np.uint64(words[slot, at]) + np.uint64(low)
    words[slot, at] = np.int64(total)
    words[slot, at + 1] += high + np.int64(total < np.uint64(low))


@kernel
def sum_ints(slots: Int64Array, values: Int64Array, valid: BoolArray, words: Int64Array, at: int) -> None:
    """Add to a sum (its low 64 bits, its high 64 bits) and to the number of values."""
    every = len(valid) == 0
    for row in range(len(slots)):
        if every or valid[row]:
            slot = np.uint64(slots[row])
            _add_wide(words, slot, at, values[row], values[row] >> 63)
            words[slot, at + 2] += 1


@kernel
def merge_ints(slots: Int64Array, given: Int64Array, words: Int64Array, at: int) -> None:
    """Add sums of 128 bits that other tasks have gathered; `given` has the words of one group a row."""
    for row in range(len(slots)):
        slot = np.uint64(slots[row])
        _add_wide(words, slot, at, given[row, at], given[row, at + 1])
        words[slot, at + 2] += given[row, at + 2]


@kernel
def sortable(values: Float64Array, ranks: Int64Array) -> None:
    """Ints in the order of the floats: NaN is the greatest, and −0.0 equals 0.0."""
    bits = values.view(np.int64)
    for row in range(len(values)):
        found = bits[row]
        if (found & _ABS_BITS) > _INF_BITS:
            found = _NAN_BITS
        elif found < 0:
            # −0.0 becomes 0, other negative numbers fall as their magnitude grows
            found = -(found & _ABS_BITS)
        ranks[row] = found


@kernel
def extremes(slots: Int64Array, values: Int64Array, valid: BoolArray, flip: int, words: Int64Array, at: int) -> None:
    """Keep the greatest value of each slot, or with `flip` -1 the least, and the number of values."""
    every = len(valid) == 0
    for row in range(len(slots)):
        if every or valid[row]:
            slot = np.uint64(slots[row])
            value = values[row]
            if words[slot, at + 1] == 0 or (value ^ flip) > (words[slot, at] ^ flip):
                words[slot, at] = value
            words[slot, at + 1] += 1


@kernel
def winners(
    slots: Int64Array,
    ranks: Int64Array,
    times: Int64Array,
    positions: Int64Array,
    valid: BoolArray,
    flip_rank: int,
    flip_order: int,
    words: Int64Array,
    at: int,
    touched: Int64Array,
) -> int:
    """Keep for each slot the row of the greatest rank, of equal ones the first (`flip_order` -1: the last).

    The words are its rank, time, position, and the row: 0 for none yet, 1 for a row of an earlier batch, and for
    a row of this batch its number + 2. Returns how many slots have a new winner; they stand in `touched`.
    """
    number = 0
    for row in range(len(slots)):
        if len(valid) and not valid[row]:
            continue
        slot = np.uint64(slots[row])
        if words[slot, at + 3] != 0:
            rank = ranks[row] ^ flip_rank
            known = words[slot, at] ^ flip_rank
            if rank < known:
                continue
            if rank == known:
                time = times[row] ^ flip_order
                best_time = words[slot, at + 1] ^ flip_order
                if time > best_time:
                    continue
                if time == best_time and (positions[row] ^ flip_order) >= (words[slot, at + 2] ^ flip_order):
                    continue
        words[slot, at] = ranks[row]
        words[slot, at + 1] = times[row]
        words[slot, at + 2] = positions[row]
        if words[slot, at + 3] < 2:
            touched[number] = np.int64(slot)
            number += 1
        words[slot, at + 3] = row + 2
    return number

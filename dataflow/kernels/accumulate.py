"""The inner loops of aggregates: each goes once over the rows of a batch and updates the rows of their groups.

`words` holds one row of 64-bit words for each group: all that its aggregates keep, so that a group's state is
one or two lines of the cache, and is copied as one. An aggregate's own words begin `at` a column; some are `floats`,
which is the same memory (views are made outside: numba compiles one as long as a small kernel). Slots are used as
unsigned numbers, which spares a test for negative ones at each access. A validity of length 0 means: all valid.

Float sums have three parts: a sum, what its additions lost (TwoSum: Knuth, The Art of Computer Programming 2, 4.2.2,
Theorem B), and what those lost in turn, so the rounded result does not depend on how the rows were split. Integer sums
have 128 bits, so no order of additions overflows on the way.
"""

from __future__ import annotations

import numpy as np

from dataflow.kernels import helper, kernel
from dataflow.message import BoolArray, Float64Array, Int64Array, SlotArray

NAN, PLUS_INF, MINUS_INF = 1, 2, 4
"""What a float sum has met besides numbers; bits."""
_HIGH, _MIDDLE, _ROWS, _LOW, _NULLS, _MET = (np.uint64(place) for place in range(6))
"""The words of a float sum: what each row changes stands together."""
_INF_BITS = np.int64(0x7FF0000000000000)
_NAN_BITS = np.int64(0x7FF8000000000000)
_ABS_BITS = np.int64(0x7FFFFFFFFFFFFFFF)


@kernel
def clear(slots: SlotArray, words: Int64Array) -> None:
    """Make these slots empty groups."""
    for number in range(len(slots)):
        slot = np.uint64(slots[number])
        for word in range(words.shape[1]):
            words[slot, word] = 0


@kernel
def count_rows(slots: SlotArray, valid: BoolArray, words: Int64Array, at: int) -> None:
    """Count the valid rows of each slot."""
    if len(valid) == 0:
        for row in range(len(slots)):
            words[np.uint64(slots[row]), at] += 1
    else:
        for row in range(len(slots)):
            words[np.uint64(slots[row]), at] += valid[row]


@kernel
def merge_counts(slots: SlotArray, given: Int64Array, words: Int64Array, at: int) -> None:
    """Add what other tasks have counted; `given` has the words of one group a row."""
    for row in range(len(slots)):
        words[np.uint64(slots[row]), at] += given[row, at]


@helper
def _two_sum(one: float, other: float) -> tuple[float, float]:
    """The sum, and what it lost."""
    total = one + other
    back = total - one
    return total, (one - (total - back)) + (other - back)


@kernel
def sum_floats(
    slots: SlotArray, values: Float64Array, valid: BoolArray, words: Int64Array, floats: Float64Array, at: int
) -> None:
    """Add to a sum: its first two parts, the number of rows, its third part, the number of nulls, and bits.

    The second part seldom loses anything, but always does so (NaN) when a value is not finite: such are found there.
    """
    first = np.uint64(at)
    every = len(valid) == 0
    for row in range(np.uint64(len(slots))):
        slot = np.uint64(slots[row])
        words[slot, first + _ROWS] += 1
        if every or valid[row]:
            value = values[row]
            high, lost = _two_sum(floats[slot, first], value)
            known = floats[slot, first + _MIDDLE]
            middle = known + lost
            # cheaper than what is lost is whether anything is: the greater of both can be taken away exactly
            if (middle - known != lost) | (middle - lost != known):
                if value - value != 0.0:
                    words[slot, first + _MET] |= NAN if value != value else (PLUS_INF if value > 0.0 else MINUS_INF)
                    continue
                floats[slot, first + _LOW] += _two_sum(known, lost)[1]
            floats[slot, first] = high
            floats[slot, first + _MIDDLE] = middle
        else:
            words[slot, first + _NULLS] += 1


@kernel
def merge_floats(
    slots: SlotArray, given: Int64Array, parts: Float64Array, words: Int64Array, floats: Float64Array, at: int
) -> None:
    """Add sums that other tasks have gathered; `given` (and `parts`, as floats) has the words of one group a row."""
    first = np.uint64(at)
    for row in range(np.uint64(len(slots))):
        slot = np.uint64(slots[row])
        for part in (_HIGH, _MIDDLE, _LOW):
            value = parts[row, first + part]
            if value != 0.0 and value == value:  # beyond all floats, the parts after the first are no numbers
                floats[slot, first], lost = _two_sum(floats[slot, first], value)
                floats[slot, first + _MIDDLE], lost = _two_sum(floats[slot, first + _MIDDLE], lost)
                floats[slot, first + _LOW] += lost
        words[slot, first + _ROWS] += given[row, first + _ROWS]
        words[slot, first + _NULLS] += given[row, first + _NULLS]
        words[slot, first + _MET] |= given[row, first + _MET]


@kernel
def total_floats(words: Int64Array, floats: Float64Array, at: int, totals: Float64Array) -> None:
    """The sums of groups, rounded once; `words` has one group a row."""
    first = np.uint64(at)
    for row in range(np.uint64(len(words))):
        high = floats[row, first]
        middle = floats[row, first + _MIDDLE]
        low = floats[row, first + _LOW]
        total, lost = _two_sum(high, middle)
        rest = lost + low
        if rest - rest != 0.0:  # the sum is beyond all floats
            total = high
            rest = 0.0
        met = words[row, first + _MET]
        if met != 0:
            total = np.inf if met == PLUS_INF else (-np.inf if met == MINUS_INF else np.nan)
            rest = 0.0
        totals[row] = total + rest + 0.0


@helper
def _add_wide(words: Int64Array, slot: np.uint64, at: int, low: int, high: int) -> None:
    """Add to a sum of 128 bits."""
    total = np.uint64(words[slot, at]) + np.uint64(low)
    words[slot, at] = np.int64(total)
    words[slot, at + 1] += high + np.int64(total < np.uint64(low))


@kernel
def sum_ints(slots: SlotArray, values: Int64Array, valid: BoolArray, words: Int64Array, at: int) -> None:
    """Add to a sum (its low 64 bits, its high 64 bits) and to the numbers of rows and of nulls."""
    every = len(valid) == 0
    for row in range(len(slots)):
        slot = np.uint64(slots[row])
        words[slot, at + 2] += 1
        if every or valid[row]:
            _add_wide(words, slot, at, values[row], values[row] >> 63)
        else:
            words[slot, at + 3] += 1


@kernel
def merge_ints(slots: SlotArray, given: Int64Array, words: Int64Array, at: int) -> None:
    """Add sums of 128 bits that other tasks have gathered; `given` has the words of one group a row."""
    for row in range(len(slots)):
        slot = np.uint64(slots[row])
        _add_wide(words, slot, at, given[row, at], given[row, at + 1])
        words[slot, at + 2] += given[row, at + 2]
        words[slot, at + 3] += given[row, at + 3]


@kernel
def sortable(bits: Int64Array, ranks: Int64Array) -> None:
    """Ints in the order of the floats with these bits: NaN is the greatest, and −0.0 equals 0.0."""
    for row in range(len(bits)):
        found = bits[row]
        if (found & _ABS_BITS) > _INF_BITS:
            found = _NAN_BITS
        elif found < 0:
            # −0.0 becomes 0, other negative numbers fall as their magnitude grows
            found = -(found & _ABS_BITS)
        ranks[row] = found


@kernel
def extremes(slots: SlotArray, values: Int64Array, valid: BoolArray, flip: int, words: Int64Array, at: int) -> None:
    """Keep the greatest value of each slot, or with `flip` -1 the least, and the numbers of rows and of nulls."""
    every = len(valid) == 0
    for row in range(len(slots)):
        slot = np.uint64(slots[row])
        if every or valid[row]:
            value = values[row]
            if words[slot, at + 1] == words[slot, at + 2] or (value ^ flip) > (words[slot, at] ^ flip):
                words[slot, at] = value
        else:
            words[slot, at + 2] += 1
        words[slot, at + 1] += 1


@kernel
def merge_extremes(slots: SlotArray, given: Int64Array, flip: int, words: Int64Array, at: int) -> None:
    """Keep the greater of what two tasks know; `given` has the words of one group a row."""
    for row in range(len(slots)):
        slot = np.uint64(slots[row])
        value = given[row, at]
        if given[row, at + 1] != given[row, at + 2] and (
            words[slot, at + 1] == words[slot, at + 2] or (value ^ flip) > (words[slot, at] ^ flip)
        ):
            words[slot, at] = value
        words[slot, at + 1] += given[row, at + 1]
        words[slot, at + 2] += given[row, at + 2]


@kernel
def winners(
    slots: SlotArray,
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

"""The inner loops of aggregates: each goes once over the rows of a batch and updates arrays indexed by slot.

Float sums have three parts: a sum, what its additions lost (TwoSum: Knuth, The Art of Computer Programming 2, 4.2.2,
Theorem B), and what those lost in turn, so the rounded result does not depend on how the rows were split. Integer sums
have 128 bits, so no order of additions overflows on the way. A validity of length 0 means: all valid.
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
def count_rows(slots: Int64Array, valid: BoolArray, counts: Int64Array) -> None:
    """Count the valid rows of each slot."""
    if len(valid) == 0:
        for row in range(len(slots)):
            counts[slots[row]] += 1
    else:
        for row in range(len(slots)):
            counts[slots[row]] += valid[row]


@helper
def _add(sums: Float64Array, slot: int, value: float) -> None:
    """Add to a sum in three parts."""
    high = sums[slot, 0]
    total = high + value
    back = total - high
    lost = (high - (total - back)) + (value - back)
    sums[slot, 0] = total
    middle = sums[slot, 1]
    total = middle + lost
    back = total - middle
    sums[slot, 2] += (middle - (total - back)) + (lost - back)
    sums[slot, 1] = total


@kernel
def sum_floats(slots: Int64Array, values: Float64Array, valid: BoolArray, sums: Float64Array, met: Int64Array) -> None:
    """Add to `sums` (per slot: a sum in three parts, the number of values); what is not finite goes to `met`."""
    for row in range(len(slots)):
        if len(valid) and not valid[row]:
            continue
        slot = slots[row]
        value = values[row]
        sums[slot, 3] += 1.0
        if value - value != 0.0:  # infinite, or not a number
            met[slot] |= NAN if value != value else (PLUS_INF if value > 0.0 else MINUS_INF)
            continue
        _add(sums, slot, value)


@kernel
def merge_floats(
    slots: Int64Array,
    high: Float64Array,
    middle: Float64Array,
    low: Float64Array,
    number: Float64Array,
    flags: Int64Array,
    sums: Float64Array,
    met: Int64Array,
) -> None:
    """Add sums that other tasks have gathered."""
    for row in range(len(slots)):
        slot = slots[row]
        _add(sums, slot, high[row])
        _add(sums, slot, middle[row])
        _add(sums, slot, low[row])
        sums[slot, 3] += number[row]
        met[slot] |= flags[row]


@kernel
def sum_ints(slots: Int64Array, values: Int64Array, valid: BoolArray, sums: Int64Array) -> None:
    """Add to `sums` (per slot: low 64 bits, high 64 bits, number of values)."""
    for row in range(len(slots)):
        if len(valid) and not valid[row]:
            continue
        slot = slots[row]
        value = values[row]
        low = np.uint64(sums[slot, 0]) + np.uint64(value)
        sums[slot, 0] = np.int64(low)
        sums[slot, 1] += (value >> 63) + np.int64(low < np.uint64(value))
        sums[slot, 2] += 1


@kernel
def merge_ints(slots: Int64Array, low: Int64Array, high: Int64Array, number: Int64Array, sums: Int64Array) -> None:
    """Add sums of 128 bits that other tasks have gathered."""
    for row in range(len(slots)):
        slot = slots[row]
        total = np.uint64(sums[slot, 0]) + np.uint64(low[row])
        sums[slot, 0] = np.int64(total)
        sums[slot, 1] += high[row] + np.int64(total < np.uint64(low[row]))
        sums[slot, 2] += number[row]


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
def extremes(
    slots: Int64Array, values: Int64Array, valid: BoolArray, flip: int, best: Int64Array, counts: Int64Array
) -> None:
    """Keep the greatest value of each slot, or with `flip` -1 the least; `counts` is how many there were."""
    for row in range(len(slots)):
        if len(valid) and not valid[row]:
            continue
        slot = slots[row]
        value = values[row]
        if counts[slot] == 0 or (value ^ flip) > (best[slot] ^ flip):
            best[slot] = value
        counts[slot] += 1


@kernel
def winners(
    slots: Int64Array,
    ranks: Int64Array,
    times: Int64Array,
    positions: Int64Array,
    valid: BoolArray,
    flip_rank: int,
    flip_order: int,
    best: Int64Array,
    rows: Int64Array,
    touched: Int64Array,
) -> int:
    """Keep for each slot the row of the greatest rank, of equal ones the first (`flip_order` -1: the last).

    `best` holds rank, time and position per slot; `rows` 0 for none yet, 1 for a row of an earlier batch, and for
    a row of this batch its number + 2. Returns how many slots have a new winner; they stand in `touched`.
    """
    number = 0
    for row in range(len(slots)):
        if len(valid) and not valid[row]:
            continue
        slot = slots[row]
        if rows[slot] != 0:
            rank = ranks[row] ^ flip_rank
            known = best[slot, 0] ^ flip_rank
            if rank < known:
                continue
            if rank == known:
                time = times[row] ^ flip_order
                best_time = best[slot, 1] ^ flip_order
                if time > best_time:
                    continue
                if time == best_time and (positions[row] ^ flip_order) >= (best[slot, 2] ^ flip_order):
                    continue
        best[slot, 0] = ranks[row]
        best[slot, 1] = times[row]
        best[slot, 2] = positions[row]
        if rows[slot] < 2:
            touched[number] = slot
            number += 1
        rows[slot] = row + 2
    return number

"""Keys to dense numbers: open-addressing tables, the hot loop of every keyed step.

A table is an int32 array of ids of a power of two length, probed linearly from the high bits of a multiplicative
hash (Knuth, The Art of Computer Programming 3, 6.4). The keys stand in dense arrays by id, so a
table stays small. A kernel stops at the first new key that finds no room; its caller grows and goes on there.

The hard part is that keys in arithmetic progression, which are common, collide less than random ones for nearly all
steps and pile up for a few (3,001, for one). So the kernels count how often they pass over another group and stop
when it was too often; the caller then scrambles its codes.

Where speed counts, indexes are unsigned: for signed ones numba tests at each access whether to count from the end.
"""

from __future__ import annotations

import numpy as np

from dataflow.kernels import helper, kernel
from dataflow.kernels.hashing import ByteArray, UInt64Array, read8
from dataflow.message import Int32Array, Int64Array

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: no factor spreads consecutive codes better."""
_OTHER = np.uint64(0x0DCE670AFAC210EF)
"""Of 150 random factors the one under which consecutive codes in 1 to 1,000 consecutive panes collided least: 4 %."""
DEAD_PANE = -(2**63)
"""Marks a group that has been released; no row has it, since event time never gets there."""


@helper
def _home(code: int, pane: int, shift: np.uint64) -> np.uint64:
    """Where a group would stand in an empty table; `shift` leaves as many high bits as the table's size has."""
    return (np.uint64(code) * _GOLDEN + np.uint64(pane) * _OTHER) >> shift


@kernel
def find_groups(
    codes: Int64Array,
    panes: Int64Array,
    start: int,
    table: Int32Array,
    group_codes: Int64Array,
    group_panes: Int64Array,
    free: Int32Array,
    used: int,
    used_max: int,
    slots: Int32Array,
    missed: Int64Array,
    shift: np.uint64,
    patience: int,
) -> tuple[int, int]:
    """The slot of each row's (code, pane), new ones taken from `free[used:]`; returns the row reached and `used`.

    Stops when a new group would be one more than `used_max`, or when other groups were in the way more than `patience`
    times.

    Inside, groups are numbered from 1, and `group_*[0]` is a group that no row has. First each row's home is looked
    at without a branch, which would be mispredicted for every collision; the rows that missed are probed after, a block
    (as many rows as `missed` holds) at a time, so that what passes between the loops stays in the cache.
    """
    mask = np.uint64(len(table) - 1)
    one = np.uint64(1)
    for block in range(start, len(codes), len(missed)):
        misses = np.uint64(0)
        for row in range(np.uint64(block), np.uint64(min(block + len(missed), len(codes)))):
            group = np.uint64(table[_home(codes[row], panes[row], shift)])
            slots[row] = np.int64(group) - 1
            missed[misses] = np.int64(row)
            misses += np.uint64((group_codes[group] != codes[row]) | (group_panes[group] != panes[row]))
        for miss in range(misses):
            reached = np.uint64(missed[miss])
            code = codes[reached]
            pane = panes[reached]
            at = _home(code, pane, shift)
            while True:
                group = np.uint64(table[at])
                if group == 0:
                    if used == used_max:
                        return np.int64(reached), used  # type: ignore[return-value]  # of one type for numba
                    group = np.uint64(free[used])
                    table[at] = np.int32(group)
                    group_codes[group] = code
                    group_panes[group] = pane
                    used += 1
                    break
                if group_codes[group] == code and group_panes[group] == pane:
                    break
                at = (at + one) & mask
                patience -= 1
            slots[reached] = np.int64(group) - 1
            if patience < 0:
                return np.int64(reached + one), used  # type: ignore[return-value]  # of one type for numba
    return len(codes), used


@kernel
def find_direct(
    codes: Int64Array,
    panes: Int64Array,
    start: int,
    cells: Int32Array,
    low: int,
    span: np.uint64,
    first: int,
    depth: np.uint64,
    group_codes: Int64Array,
    group_panes: Int64Array,
    free: Int32Array,
    used: int,
    slots: Int32Array,
) -> tuple[int, int]:
    """As `find_groups`, where each of `span` codes from `low` on has a cell in each of `depth` panes from `first` on.

    Stops at the first row that has no cell, or when no group is free.
    """
    for row in range(np.uint64(start), np.uint64(len(codes))):
        code = np.uint64(codes[row] - low)
        pane = np.uint64(panes[row] - first)
        if code >= span or pane >= depth:
            return np.int64(row), used  # type: ignore[return-value]  # of one type for numba
        cell = pane * span + code
        found = np.int64(cells[cell])
        if found == 0:
            if used == len(free):
                return np.int64(row), used  # type: ignore[return-value]  # of one type for numba
            found = np.int64(free[used])
            cells[cell] = found
            group_codes[found] = codes[row]
            group_panes[found] = panes[row]
            used += 1
        slots[row] = found - 1
    return len(codes), used


@kernel
def free_groups(
    slots: Int64Array,
    cells: Int32Array,
    low: int,
    span: np.uint64,
    first: int,
    group_codes: Int64Array,
    group_panes: Int64Array,
    free: Int32Array,
    used: int,
) -> None:
    """Mark groups as dead, make their numbers the next free ones and empty their cells, if there are any."""
    for number in range(len(slots)):
        group = slots[number] + 1
        if len(cells):
            pane = np.uint64(group_panes[group] - first)
            cells[pane * span + np.uint64(group_codes[group] - low)] = 0
        group_panes[group] = DEAD_PANE
        free[used - len(slots) + number] = group


@kernel
def due_slots(panes: Int64Array, last: int, slots: Int64Array) -> tuple[int, int]:
    """The slots of the groups up to pane `last`, and their number; and the least pane after it (2^63 - 1 for none)."""
    number = 0
    oldest = 2**63 - 1
    for slot in range(np.uint64(len(panes))):
        pane = panes[slot]
        slots[np.uint64(number)] = np.int64(slot)
        number += int(pane <= last and pane != DEAD_PANE)
        if pane > last:
            oldest = min(oldest, int(pane))
    return number, oldest


@kernel
def join_codes(first: Int64Array, second: Int64Array, joined: Int64Array) -> bool:
    """Two codes of 32 bits as one of 64; false when one does not fit."""
    fits = True
    for row in range(len(first)):
        a = first[row]
        b = second[row]
        fits &= a == np.int32(a) and b == np.int32(b)
        joined[row] = (a << 32) | (b & 0xFFFFFFFF)
    return fits


@kernel
def refill(
    table: Int32Array, group_codes: Int64Array, group_panes: Int64Array, shift: np.uint64, patience: int
) -> bool:
    """Put the live groups into a table of zeros; false when other groups were in the way more than `patience` times."""
    mask = len(table) - 1
    for slot in range(1, len(group_codes)):
        if group_panes[slot] != DEAD_PANE:
            at = np.int64(_home(group_codes[slot], group_panes[slot], shift))
            while table[at] != 0:
                at = (at + 1) & mask
                patience -= 1
            table[at] = slot
            if patience < 0:
                return False
    return True


@kernel
def find_texts(
    offsets: Int64Array,
    data: ByteArray,
    hashes: UInt64Array,
    start: int,
    table: Int32Array,
    known_hashes: UInt64Array,
    known_offsets: Int64Array,
    known_data: ByteArray,
    count: int,
    ids: Int64Array,
) -> tuple[int, int]:
    """The id of each row's bytes; `known_*` hold the bytes seen so far. Returns the row reached and the count."""
    mask = np.uint64(len(table) - 1)
    one = np.uint64(1)
    eight = np.uint64(8)
    for row in range(np.uint64(start), np.uint64(len(offsets) - 1)):
        begin = np.uint64(offsets[row])
        end = np.uint64(offsets[row + one])
        hash = hashes[row]
        at = hash & mask
        while True:
            found = table[at]
            if found < 0:
                used = np.uint64(known_offsets[count])
                if count == len(known_hashes) or used + (end - begin) > np.uint64(len(known_data)):
                    return np.int64(row), count  # type: ignore[return-value]  # of one type for numba
                for byte in range(begin, end):
                    known_data[used + (byte - begin)] = data[byte]
                known_hashes[count] = hash
                known_offsets[count + 1] = np.int64(used + (end - begin))
                table[at] = count
                ids[row] = count
                count += 1
                break
            id = np.uint64(found)
            other = np.uint64(known_offsets[id])
            if known_hashes[id] == hash and np.uint64(known_offsets[id + one]) - other == end - begin:
                here = begin
                while here + eight <= end and read8(data, here) == read8(known_data, other):
                    here += eight
                    other += eight
                while here < end and data[here] == known_data[other]:
                    here += one
                    other += one
                if here == end:
                    ids[row] = found
                    break
            at = (at + one) & mask
    return len(offsets) - 1, count


@kernel
def take_codes(indices: Int32Array, of_index: Int64Array, codes: Int64Array) -> None:
    """The code of each row's index."""
    for row in range(np.uint64(len(indices))):
        codes[row] = of_index[np.uint64(indices[row])]


@kernel
def place_texts(table: Int32Array, known_hashes: UInt64Array, count: int) -> None:
    """Put the first `count` byte strings into an empty table."""
    mask = len(table) - 1
    for found in range(count):
        at = np.int64(known_hashes[found] & np.uint64(mask))
        while table[at] >= 0:
            at = (at + 1) & mask
        table[at] = found

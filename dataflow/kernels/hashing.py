"""XXH64 of keys: of 8-byte integers and of byte strings, each value seeded with the hash of the columns before it.

The algorithm is Yann Collet's XXH64 (xxHash specification 0.8, section "XXH64 algorithm description"); test
vectors stand in `state/log/FORMAT.md`, since the hash decides which task owns a key.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dataflow.kernels import helper, kernel
from dataflow.message import BoolArray, Int64Array

UInt64Array = npt.NDArray[np.uint64]
ByteArray = npt.NDArray[np.uint8]

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_NULL = np.uint64(0x9E3779B97F4A7C15)
"""Stands for a null of any type."""
_1, _3, _4, _7, _8, _11, _12, _16, _18 = (np.uint64(number) for number in (1, 3, 4, 7, 8, 11, 12, 16, 18))
_23, _24, _27, _29, _31, _32, _33, _37 = (np.uint64(number) for number in (23, 24, 27, 29, 31, 32, 33, 37))
_41, _46, _52, _53, _57, _63 = (np.uint64(number) for number in (41, 46, 52, 53, 57, 63))


# ── steps of the algorithm: few, since each costs numba as much to compile as a small kernel ───────────────


@helper
def _round(value: np.uint64) -> np.uint64:
    return ((value << _31) | (value >> _33)) * _P1


@helper
def _avalanche(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> _33)) * _P2
    h = (h ^ (h >> _29)) * _P3
    return h ^ (h >> _32)


@helper
def read8(data: ByteArray, at: np.uint64) -> np.uint64:
    """Eight bytes as a number; the compiler makes one load of it."""
    value = np.uint64(0)
    for byte in range(_8):
        value |= np.uint64(data[at + byte]) << (byte << _3)
    return value


@helper
def _lane(data: ByteArray, at: np.uint64, end: np.uint64, lane: np.uint64) -> np.uint64:
    """Take in every fourth eight bytes. Lane after lane, not side by side: few keys are that long."""
    while at < end:
        lane = _round(lane + read8(data, at) * _P2)
        at += _32
    return lane


# ── kernels ──────────────────────────────────────────────────────────────────────────────────────────────


@kernel
def hash_ints(values: Int64Array, valid: BoolArray, hashes: UInt64Array) -> None:
    """Seed each hash with itself and replace it by the hash of the row's integer."""
    every = len(valid) == 0
    for row in range(np.uint64(len(values))):
        value = np.uint64(values[row]) if every or valid[row] else _NULL
        h = (hashes[row] + _P5 + _8) ^ _round(value * _P2)
        hashes[row] = _avalanche(((h << _27) | (h >> _37)) * _P1 + _P4)


def hash_bytes(offsets: Int64Array, data: ByteArray, valid: BoolArray, hashes: UInt64Array) -> None:
    """Seed each hash with itself and replace it by the hash of the row's bytes."""
    if len(offsets) > 1 and int(np.diff(offsets).max()) >= _32:
        _take_in_stripes(offsets, data, valid, hashes)
    _take_in_rest(offsets, data, valid, hashes)


@kernel
def _take_in_stripes(offsets: Int64Array, data: ByteArray, valid: BoolArray, hashes: UInt64Array) -> None:
    """The stripes of 32 bytes of the rows that have any."""
    for row in range(np.uint64(len(offsets) - 1)):
        at = np.uint64(offsets[row])
        length = np.uint64(offsets[row + _1]) - at
        if length >= _32 and (len(valid) == 0 or valid[row]):
            seed = hashes[row]
            end = at + (length & ~_31)
            a = _lane(data, at, end, seed + _P1 + _P2)
            b = _lane(data, at + _8, end, seed + _P2)
            c = _lane(data, at + _16, end, seed)
            d = _lane(data, at + _24, end, seed - _P1)
            h = ((a << _1) | (a >> _63)) + ((b << _7) | (b >> _57))
            h += ((c << _12) | (c >> _52)) + ((d << _18) | (d >> _46))
            h = (h ^ _round(a * _P2)) * _P1 + _P4
            h = (h ^ _round(b * _P2)) * _P1 + _P4
            h = (h ^ _round(c * _P2)) * _P1 + _P4
            hashes[row] = (h ^ _round(d * _P2)) * _P1 + _P4


@kernel
def _take_in_rest(offsets: Int64Array, data: ByteArray, valid: BoolArray, hashes: UInt64Array) -> None:
    """The bytes after the stripes, and the end of the algorithm; nulls are hashed as an integer of their own."""
    every = len(valid) == 0
    for row in range(np.uint64(len(offsets) - 1)):
        at = np.uint64(offsets[row])
        end = np.uint64(offsets[row + _1])
        length = end - at
        h = hashes[row]
        if not every and not valid[row]:
            h = (h + _P5 + _8) ^ _round(_NULL * _P2)
            hashes[row] = _avalanche(((h << _27) | (h >> _37)) * _P1 + _P4)
            continue
        if length >= _32:
            at += length & ~_31
        else:
            h += _P5
        h += length
        while at + _8 <= end:
            h ^= _round(read8(data, at) * _P2)
            h = ((h << _27) | (h >> _37)) * _P1 + _P4
            at += _8
        if at + _4 <= end:
            four = np.uint64(0)
            for byte in range(_4):
                four |= np.uint64(data[at + byte]) << (byte << _3)
            h ^= four * _P1
            h = ((h << _23) | (h >> _41)) * _P2 + _P3
            at += _4
        while at < end:
            h ^= np.uint64(data[at]) * _P5
            h = ((h << _11) | (h >> _53)) * _P1
            at += _1
        hashes[row] = _avalanche(h)

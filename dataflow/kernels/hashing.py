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
_8, _29, _32, _33 = np.uint64(8), np.uint64(29), np.uint64(32), np.uint64(33)


# ── steps of the algorithm, as numba functions ───────────────────────────────────────────────────────────


@helper
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@helper
def _round(lane: np.uint64, value: np.uint64) -> np.uint64:
    return _rotate(lane + value * _P2, 31) * _P1


@helper
def _merge(h: np.uint64, lane: np.uint64) -> np.uint64:
    return (h ^ _round(np.uint64(0), lane)) * _P1 + _P4


@helper
def _long(h: np.uint64, value: np.uint64) -> np.uint64:
    """Take in eight bytes."""
    return _rotate(h ^ _round(np.uint64(0), value), 27) * _P1 + _P4


@helper
def _avalanche(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> _33)) * _P2
    h = (h ^ (h >> _29)) * _P3
    return h ^ (h >> _32)


@helper
def _read8(data: ByteArray, at: int) -> np.uint64:
    value = np.uint64(0)
    for byte in range(8):
        value |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
    return value


@helper
def _read4(data: ByteArray, at: int) -> np.uint64:
    value = np.uint64(0)
    for byte in range(4):
        value |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
    return value


# ── kernels ──────────────────────────────────────────────────────────────────────────────────────────────


@kernel
def hash_ints(values: Int64Array, valid: BoolArray, hashes: UInt64Array) -> None:
    """Seed each hash with itself and replace it by the hash of the row's integer."""
    for row in range(len(values)):
        value = np.uint64(values[row])
        if len(valid) and not valid[row]:
            value = _NULL
        h = _long(hashes[row] + _P5 + _8, value)
        hashes[row] = _avalanche(h)


@kernel
def hash_bytes(offsets: Int64Array, data: ByteArray, valid: BoolArray, hashes: UInt64Array) -> None:
    """Seed each hash with itself and replace it by the hash of the row's bytes."""
    for row in range(len(offsets) - 1):
        seed = hashes[row]
        if len(valid) and not valid[row]:
            hashes[row] = _avalanche(_long(seed + _P5 + _8, _NULL))
            continue
        at = offsets[row]
        end = offsets[row + 1]
        length = end - at
        if length >= 32:
            a = seed + _P1 + _P2
            b = seed + _P2
            c = seed
            d = seed - _P1
            while at <= end - 32:
                a = _round(a, _read8(data, at))
                b = _round(b, _read8(data, at + 8))
                c = _round(c, _read8(data, at + 16))
                d = _round(d, _read8(data, at + 24))
                at += 32
            h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
            h = _merge(_merge(_merge(_merge(h, a), b), c), d)
        else:
            h = seed + _P5
        h += np.uint64(length)
        while at + 8 <= end:
            h = _long(h, _read8(data, at))
            at += 8
        if at + 4 <= end:
            h ^= _read4(data, at) * _P1
            h = _rotate(h, 23) * _P2 + _P3
            at += 4
        while at < end:
            h ^= np.uint64(data[at]) * _P5
            h = _rotate(h, 11) * _P1
            at += 1
        hashes[row] = _avalanche(h)

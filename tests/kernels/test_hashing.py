"""The hash of keys is XXH64 by its specification, each column seeded with the hash of those before it."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dataflow.kernels.gateway import ALL_VALID
from dataflow.kernels.hashing import hash_bytes, hash_ints
from dataflow.state.keys import row_hashes

seeds = st.integers(0, 2**64 - 1)
ints = st.integers(-(2**63), 2**63 - 1)
NULL = 0x9E3779B97F4A7C15


def xxh64(data: bytes, seed: int) -> int:
    return xxhash.xxh64_intdigest(data, seed)


def valid_of(values: list[object]) -> np.ndarray:
    return np.array([value is not None for value in values], dtype=np.bool_) if None in values else ALL_VALID


@given(st.lists(st.tuples(seeds, st.none() | ints), min_size=1))
def test_ints(rows: list[tuple[int, int | None]]) -> None:
    hashes = np.array([seed for seed, _ in rows], dtype=np.uint64)
    hash_ints(np.array([value or 0 for _, value in rows]), valid_of([value for _, value in rows]), hashes)
    expected = [xxh64(struct.pack("<Q", NULL) if v is None else struct.pack("<q", v), seed) for seed, v in rows]
    assert hashes.tolist() == expected


@given(st.lists(st.tuples(seeds, st.none() | st.binary(max_size=80)), min_size=1))
def test_bytes(rows: list[tuple[int, bytes | None]]) -> None:
    hashes = np.array([seed for seed, _ in rows], dtype=np.uint64)
    values = [b"what lies under a null is nobody's business" if value is None else value for _, value in rows]
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    data = np.frombuffer(b"".join(values), dtype=np.uint8)
    hash_bytes(offsets, data, valid_of([value for _, value in rows]), hashes)
    assert hashes.tolist() == [xxh64(struct.pack("<Q", NULL) if v is None else v, seed) for seed, v in rows]


@given(st.lists(st.tuples(ints, st.text(max_size=40), st.none() | st.booleans()), min_size=1))
def test_columns_are_combined_in_order(rows: list[tuple[int, str, bool | None]]) -> None:
    numbers, texts, flags = (pa.array(column) for column in zip(*rows, strict=True))
    expected = []
    for number, text, flag in rows:
        h = xxh64(text.encode(), xxh64(struct.pack("<q", number), 0))
        expected.append(xxh64(struct.pack("<Q", NULL if flag is None else int(flag)), h))
    flags = flags.cast(pa.bool_())
    assert row_hashes([numbers, texts, flags]).tolist() == expected
    assert row_hashes([numbers, texts.dictionary_encode(), flags]).tolist() == expected

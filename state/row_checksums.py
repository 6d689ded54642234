"""Checksums of the catalog's rows (FORMAT.md section 3): SQLite keeps none of its pages.

A flipped bit in a page mostly leaves a number or a text that is as good as the right one. So rows that nothing else
in the store tells have an XXH3 of their values. The hard part is to say the bytes of a row without a doubt: every
text is led by its length, so that no two rows have the same bytes.

>>> row_bytes((1, "a", None)).hex()
'0100000000000000010000000000000061ffffffffffffffff'
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from dataflow.state.log.segment import checksum_of

Value = int | str | bytes | None
Row = tuple[Value, ...]

NULL = b"\xff" * 8
"""No text is as long as that."""
_pack_signed, _pack_length = struct.Struct("<q").pack, struct.Struct("<Q").pack


def row_bytes(row: Row) -> bytes:
    """The bytes of a row's values, in the order of the table's columns."""
    parts = []
    for value in row:
        if isinstance(value, int):
            parts.append(_pack_signed(value))
        elif value is None:
            parts.append(NULL)
        else:
            data = value.encode() if isinstance(value, str) else value
            parts += (_pack_length(len(data)), data)
    return b"".join(parts)


def xxh3_of(*rows: Row) -> int:
    """The checksum over some rows, one after the other, as SQLite keeps it."""
    return signed(checksum_of(b"".join(map(row_bytes, rows))))


def xxh3_sum(rows: Iterable[Row]) -> int:
    """The sum of the checksums of some rows, in any order: rows can be added to it and taken away again."""
    return sum(checksum_of(row_bytes(row)) for row in rows)


def sealed(row: Row) -> Row:
    """The row, and its checksum as the last column."""
    return (*row, xxh3_of(row))


def is_intact(row: Row) -> bool:
    """Whether a row has the checksum that its last column says."""
    return xxh3_of(row[:-1]) == row[-1]


def signed(value: int) -> int:
    """The lowest 64 bits as SQLite's signed integer.

    >>> signed(2**64 - 1), signed(-1), signed(2**64 + 5)
    (-1, -1, 5)
    """
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value

"""The checksums of the catalog's rows, each computed anew from what SQLite reads.

Three tables are read side by side, in one order: a commit's checksum goes over its rows of `batches` and of `ledger`
too, and none of them may need memory in proportion to the catalog.

Part of the verifier: imports nothing of the store (see __init__.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

import xxhash

from dataflow.state.verify.catalog import TABLES, Row, Snapshot
from dataflow.state.verify.files import UNSIGNED_64

OWN_ROW = {"meta": "key", "topics": "topic_id", "schemas": "topic_id, version", "pipelines": "name"}
"""Tables whose checksums are over one row each, and how that row is told."""
WRONG_TOLD_MAX = 20
"""Of one table; more say nothing new."""


def wrong_row_checksums(snapshot: Snapshot) -> Iterator[str]:
    """What does not have its checksum."""
    for table, key in OWN_ROW.items():
        yield from _first(table, _wrong_rows(snapshot, table, key))
    yield from _first("pipelines", _wrong_frames(snapshot))
    yield from _first("commits", _wrong_commits(snapshot))


def _first(table: str, wrong: Iterator[str]) -> Iterator[str]:
    for number, what in enumerate(wrong):
        if number == WRONG_TOLD_MAX:
            yield f"more rows of {table} do not have their checksums"
            return
        yield what


def _wrong_rows(snapshot: Snapshot, table: str, key: str) -> Iterator[str]:
    parts = len(key.split(","))
    for row in snapshot.query(f"SELECT {_columns(table)} FROM {table} ORDER BY {key}"):
        if _signed(xxhash.xxh3_64_intdigest(_bytes(row[:-1]))) != row[-1]:
            told = ", ".join(repr(value) for value in row[:parts])
            yield f"the row of {table} with {key} {told} does not have its checksum"


def _wrong_frames(snapshot: Snapshot) -> Iterator[str]:
    for name, frames_xxh3 in snapshot.query("SELECT name, frames_xxh3 FROM pipelines ORDER BY name"):
        frames = snapshot.query(f"SELECT {_columns('frames')} FROM frames WHERE pipeline = ?", (str(name),))
        found = _signed(sum(xxhash.xxh3_64_intdigest(_bytes(row)) for row in frames))
        if found != frames_xxh3:
            yield f"the rows of frames of {name!r} do not have the checksum in pipelines.frames_xxh3"


def _wrong_commits(snapshot: Snapshot) -> Iterator[str]:
    # Sorted by SQLite, which takes a file when there is too much for memory.
    batches = _by_commit(snapshot, "batches", "topic_id, partition, first_offset")
    ledger = _by_commit(snapshot, "ledger", "pipeline, epoch")
    for row in snapshot.query(f"SELECT {_columns('commits')} FROM commits ORDER BY commit_id"):
        commit_id = row[0]
        digest = xxhash.xxh3_64(_bytes(row[:-1]))
        for others in (batches, ledger):
            for other in others.rows_of(commit_id):
                digest.update(_bytes(other))
        if _signed(digest.intdigest()) != row[-1]:
            yield f"commit {commit_id}, with its rows of batches and ledger, does not have its checksum"


class _ByCommit:
    """Rows in the order of their commits, asked for in that order."""

    def __init__(self, rows: Iterator[Row], column: int) -> None:
        self._groups = groupby(rows, key=itemgetter(column))
        self._next = next(self._groups, None)

    def rows_of(self, commit_id: object) -> Iterator[Row]:
        assert isinstance(commit_id, int)
        while self._next is not None:
            found, rows = self._next
            if found == commit_id:
                yield from rows
            if found > commit_id:
                return
            self._next = next(self._groups, None)


def _by_commit(snapshot: Snapshot, table: str, then: str) -> _ByCommit:
    rows = snapshot.query(f"SELECT {_columns(table)} FROM {table} ORDER BY commit_id, {then}")
    return _ByCommit(rows, list(TABLES[table]).index("commit_id"))


def _columns(table: str) -> str:
    return ", ".join(TABLES[table])


def _bytes(row: Row) -> bytes:
    return b"".join(map(_value_bytes, row))


def _value_bytes(value: object) -> bytes:
    match value:
        case None:
            return (UNSIGNED_64 - 1).to_bytes(8, "little")
        case int():
            return struct.pack("<q", value)
        case str():
            return _with_length(value.encode("utf-8"))
        case bytes():
            return _with_length(value)
        case _:
            raise TypeError(value)


def _with_length(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def _signed(number: int) -> int:
    number %= UNSIGNED_64
    return number - UNSIGNED_64 if number >= UNSIGNED_64 // 2 else number

"""A store made by hand from FORMAT.md alone, with sqlite3, pyarrow and xxhash: what the verifier's tests start from.

Nothing here knows the code of the store. That it can be written shows that the page suffices.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import xxhash

STORE_ID = "0123456789abcdef0123456789abcdef"
PIPELINE, PIPELINE_FILE = "Job/ü", "%4Aob%2F%C3%BC"
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT, xxh3 INTEGER) STRICT;
CREATE TABLE topics (topic_id INTEGER PRIMARY KEY, name TEXT UNIQUE, folded TEXT UNIQUE, xxh3 INTEGER) STRICT;
CREATE TABLE schemas (
    topic_id INTEGER, version INTEGER, arrow BLOB, xxh3 INTEGER, PRIMARY KEY (topic_id, version)
) STRICT;
CREATE TABLE partitions (
    topic_id INTEGER, partition INTEGER, rows INTEGER, bytes INTEGER, PRIMARY KEY (topic_id, partition)
) STRICT;
CREATE TABLE segments (
    segment_id INTEGER PRIMARY KEY, topic_id INTEGER, partition INTEGER, file TEXT, first_offset INTEGER,
    schema_version INTEGER, header_bytes INTEGER, header_xxh3 INTEGER, published_bytes INTEGER,
    UNIQUE (topic_id, partition, file)
) STRICT;
CREATE TABLE commits (
    commit_id INTEGER PRIMARY KEY, wall_us INTEGER, pipeline TEXT, epoch INTEGER, xxh3 INTEGER
) STRICT;
CREATE TABLE batches (
    topic_id INTEGER, partition INTEGER, first_offset INTEGER, commit_id INTEGER, rows INTEGER, entries BLOB,
    PRIMARY KEY (topic_id, partition, first_offset)
) STRICT;
CREATE TABLE pipelines (
    name TEXT PRIMARY KEY, graph_hash TEXT, state_hash TEXT, epoch INTEGER, finished INTEGER, commit_id INTEGER,
    checkpoint TEXT, frames_xxh3 INTEGER, xxh3 INTEGER
) STRICT;
CREATE TABLE frames (
    pipeline TEXT, frame INTEGER, owner TEXT, rows INTEGER, file TEXT, position INTEGER, length INTEGER, xxh3 INTEGER,
    PRIMARY KEY (pipeline, frame)
) STRICT;
CREATE TABLE ledger (
    pipeline TEXT, epoch INTEGER, commit_id INTEGER, counts BLOB, PRIMARY KEY (pipeline, epoch)
) STRICT;
"""


def signed(content: bytes) -> int:
    """XXH3-64 as SQLite keeps it."""
    number: int = struct.unpack("<q", struct.pack("<Q", xxhash.xxh3_64_intdigest(content)))[0]
    return number


def row_bytes(*values: object) -> bytes:
    """A row's values, one after the other: no two rows have the same bytes."""
    written = b""
    for value in values:
        if value is None:
            written += struct.pack("<Q", 2**64 - 1)
        elif isinstance(value, int):
            written += struct.pack("<q", value)
        else:
            content = value if isinstance(value, bytes) else str(value).encode()
            written += struct.pack("<Q", len(content)) + content
    return written


def sealed(*values: object) -> tuple[object, ...]:
    """A row with its checksum."""
    return (*values, signed(row_bytes(*values)))


@dataclass
class Segment:
    segment_id: int
    file: Path
    position: int
    version: int


@dataclass
class Handmade:
    """A store that is being made; appends are visible after `commit`."""

    path: Path
    rows: dict[tuple[str, int], int] = field(default_factory=dict)
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)
    schemas: dict[str, list[pa.Schema]] = field(default_factory=dict)
    open: dict[tuple[str, int], Segment] = field(default_factory=dict)
    segments: int = 0
    commits: int = 0
    pending: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        folder(self.path)
        write(self.path / "store.lock", b"")
        self.catalog = sqlite3.connect(self.path / "catalog.db", isolation_level=None)
        os.chmod(self.path / "catalog.db", 0o600)
        self.catalog.execute("PRAGMA journal_mode = WAL")
        self.catalog.execute("PRAGMA synchronous = FULL")
        self.catalog.executescript(f"BEGIN; PRAGMA application_id = {0x4446_4C57}; PRAGMA user_version = 2; {TABLES}")
        meta = [("store_id", STORE_ID), ("created_us", "1700000000000000")]
        self.catalog.executemany("INSERT INTO meta VALUES (?, ?, ?)", [sealed(*pair) for pair in meta])
        self.catalog.execute("COMMIT")

    def append(self, topic: str, partition: int, *batches: pa.RecordBatch, new_segment: bool = False) -> None:
        """Write the batches of one commit to a partition's segment."""
        key = (topic, partition)
        topic_id = self._topic_id(topic)
        version = self._version(topic_id, topic, batches[0].schema)
        segment = self.open.get(key)
        if segment is None or segment.version != version or new_segment:
            segment = self.open[key] = self._segment(topic_id, topic, partition, version)
        first, entries = self.rows.get(key, 0), b""
        with segment.file.open("ab") as file:
            for batch in batches:
                message = batch.serialize().to_pybytes()
                file.write(message)
                checksum = xxhash.xxh3_64_intdigest(message)
                place = (segment.segment_id, segment.position, len(message), batch.num_rows, checksum)
                entries += struct.pack("<5Q", *place)
                segment.position += len(message)
                self.rows[key] = self.rows.get(key, 0) + batch.num_rows
                self.sizes[key] = self.sizes.get(key, 0) + len(message)
        values = (topic_id, partition, first, self.commits + 1, self.rows[key] - first, entries)
        self._later("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", *values)
        self._later(
            "UPDATE segments SET published_bytes = ? WHERE segment_id = ?", segment.position, segment.segment_id
        )
        totals = (topic_id, partition, self.rows[key], self.sizes[key])
        self._later("INSERT OR REPLACE INTO partitions VALUES (?, ?, ?, ?)", *totals)

    def checkpoint(
        self, epoch: int, frames: Mapping[int, tuple[int, int, bytes]], *, finished: bool = False, name: str = PIPELINE
    ) -> None:
        """What an epoch leaves beside its rows; frames are (file, position, content) by number."""
        checkpoint = {
            "sources": {
                "clicks": {"0": {"position": [0, 4096 * epoch], "inputs": {"size": 99}}, "1": {"position": None}}
            },
            "states": {"window": [{"open": epoch}]},
            "sinks": {"out": {"file": "part-1"}},
            "steps": {
                "read clicks": {"does": "clicks", "columns": {"n": "int64", "who": "string"}, "paths": [], "hash": "0"}
            },
        }
        counts = {
            "filter": {"rows_in": 10, "passed": 7, "filtered": 3, "produced": 7},
            "window": {"rows_in": 7, "late": 1, "dead": 1, "folded": 6, "held": -1, "produced": 2},
        }
        ledger = (name, epoch, self.commits + 1, json.dumps(counts).encode())
        self._later("INSERT INTO ledger VALUES (?, ?, ?, ?)", *ledger)
        self._later("DELETE FROM frames WHERE pipeline = ?", name)
        checksums = 0
        for number, (file, position, content) in frames.items():
            rows = pa.ipc.open_stream(content).read_all().num_rows
            place = (f"{file}.state", position, len(content), signed(content))
            row = (name, number, "sink out" if number % 2 else "state window", rows, *place)
            self._later("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *row)
            checksums += xxhash.xxh3_64_intdigest(row_bytes(*row))
        values = (name, "ab", "cd", epoch, int(finished), self.commits + 1, json.dumps(checkpoint))
        own = sealed(*values, (checksums + 2**63) % 2**64 - 2**63)
        self._later("INSERT OR REPLACE INTO pipelines VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *own)

    def commit(self, pipeline: str | None = None, epoch: int | None = None) -> None:
        self.commits += 1
        self.catalog.execute("BEGIN IMMEDIATE")
        values = (self.commits, 1_700_000_000_000_000 + self.commits, pipeline, epoch)
        rows: list[tuple[object, ...]] = [values]
        for table in ("batches", "ledger"):
            rows += sorted(arguments for sql, arguments in self.pending if sql.startswith(f"INSERT INTO {table} "))
        checksum = signed(b"".join(row_bytes(*row) for row in rows))
        self.catalog.execute("INSERT INTO commits VALUES (?, ?, ?, ?, ?)", (*values, checksum))
        for sql, arguments in self.pending:
            self.catalog.execute(sql, arguments)
        self.catalog.execute("COMMIT")
        self.pending.clear()

    def close(self) -> None:
        self.catalog.close()

    def _topic_id(self, topic: str) -> int:
        if topic not in self.schemas:
            self.schemas[topic] = []
            folder(self.path / "topics" / topic)
            self._later("INSERT INTO topics VALUES (?, ?, ?, ?)", *sealed(len(self.schemas), topic, topic.lower()))
        return list(self.schemas).index(topic) + 1

    def _version(self, topic_id: int, topic: str, schema: pa.Schema) -> int:
        versions = self.schemas[topic]
        if schema not in versions:
            versions.append(schema)
            arrow = schema.serialize().to_pybytes()
            self._later("INSERT INTO schemas VALUES (?, ?, ?, ?)", *sealed(topic_id, len(versions), arrow))
        return versions.index(schema) + 1

    def _segment(self, topic_id: int, topic: str, partition: int, version: int) -> Segment:
        directory = self.path / "topics" / topic / str(partition)
        folder(directory)
        write(directory / "writer.lock", b"")
        first = self.rows.get((topic, partition), 0)
        number = len(list(directory.glob("*.arrow"))) + 1
        metadata = {
            "dataflow.store": STORE_ID,
            "dataflow.topic": topic,
            "dataflow.partition": str(partition),
            "dataflow.first_offset": str(first),
        }
        header = self.schemas[topic][version - 1].with_metadata(metadata).serialize().to_pybytes()
        file = directory / f"{first:020}-{number}.arrow"
        write(file, header)
        self.segments += 1
        place = (self.segments, topic_id, partition, file.name, first, version)
        sums = (len(header), signed(header), len(header))
        self._later("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *place, *sums)
        return Segment(self.segments, file, len(header), version)

    def _later(self, sql: str, *values: object) -> None:
        self.pending.append((sql, values))


def folder(path: Path) -> None:
    """Directories as the format has them; the test's own directory above the store is 0700 anyway."""
    before = os.umask(0o077)
    path.mkdir(parents=True, exist_ok=True)
    os.umask(before)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.chmod(path, 0o600)


def frame(*batches: pa.RecordBatch, lz4: bool = False) -> bytes:
    """A complete Arrow stream."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4" if lz4 else None)
    with pa.ipc.new_stream(sink, batches[0].schema, options=options) as stream:
        for batch in batches:
            stream.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def batch(numbers: Sequence[int], *, more: bool = False) -> pa.RecordBatch:
    columns = {
        "n": pa.array(numbers, pa.int64()),
        "who": pa.array([None if number % 3 == 0 else f"who-{number}" for number in numbers], pa.string()),
    }
    if more:
        columns = {"more": pa.array([number / 2 for number in numbers]), **columns}
    return pa.record_batch(columns)


def make(path: Path) -> Handmade:
    """Two topics, three partitions, four segments, two schema versions, a pipeline of three epochs with frames."""
    store = Handmade(path)
    folder(path / "locks")
    write(path / "locks" / f"pipeline-{PIPELINE_FILE}.lock", b'{"pid": 7, "boot": "x", "note": "test"}')
    store.append("flights", 0, batch([1, 2, 3]), batch([4]))
    store.commit()
    for epoch in (1, 2, 4):
        store.append("flights", 0, batch([10 * epoch, 10 * epoch + 1], more=epoch > 1))
        store.append("Late.rows-1", 1, batch([epoch]), batch([5, 6]), new_segment=epoch == 2)
        store.append("Late.rows-1", 0, batch(range(100)))
        frames = {2 * epoch: (1, 8, frame(batch([epoch] * 40), lz4=True)), 2 * epoch + 1: (2, 0, frame(batch([1])))}
        snapshots = path / "snapshots" / PIPELINE_FILE
        folder(snapshots)
        for number, position, content in frames.values():
            write(snapshots / f"{number}.state", b"\xee" * position + content + b"\xee" * 8)
        store.checkpoint(epoch, frames, finished=epoch == 4)
        store.commit(PIPELINE, epoch)
    store.append("Late.rows-1", 0, batch([7]))
    store.commit()
    return store

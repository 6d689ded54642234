"""FORMAT.md is true: a reader written from it alone (sqlite3, pyarrow, xxhash) finds what the store wrote.

Shares no code with `dataflow.state`.
"""

from __future__ import annotations

import re
import sqlite3
import struct
from pathlib import Path

import pyarrow as pa
import pytest
import xxhash

from dataflow.state.store import EpochRecord, Store

FORMAT = Path(__file__).parents[2] / "state/log/FORMAT.md"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two topics, three partitions, two schema versions, a rollback, several batches a commit."""
    with Store(tmp_path / "store") as store:
        store.append("flights", pa.table({"n": range(100_000), "who": ["ann", None, "bob", "cy"] * 25_000}))
        store.append("flights", pa.table({"n": [1], "who": ["x"], "more": [1.5]}))
        schema = pa.schema({"n": pa.int64()})
        with store.writer("other", schema) as zero, store.writer("other", schema, partition=1) as one:
            for epoch in range(3):
                for writer in (zero, one):
                    for rows in (1, 2, 3):
                        writer.append(pa.record_batch({"n": pa.array(range(rows), pa.int64())}))
                one.rollback()
                record = EpochRecord(pipeline="p", epoch=epoch, finished=False, graph_hash="x")
                store.publish([p for p in (zero.prepare(), one.prepare()) if p], epoch=record)
    return tmp_path / "store"


def test_the_catalog_and_the_segments_keep_what_always_holds(path: Path) -> None:
    catalog = sqlite3.connect(path / "catalog.db")
    assert catalog.execute("PRAGMA application_id").fetchone() == (0x4446_4C57,)
    assert catalog.execute("PRAGMA user_version").fetchone() == (2,)
    (store_id,) = catalog.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchone()
    checked = 0
    for topic_id, topic in catalog.execute("SELECT topic_id, name FROM topics").fetchall():
        partitions = catalog.execute("SELECT partition, rows, bytes FROM partitions WHERE topic_id = ?", (topic_id,))
        for partition, rows, size in partitions.fetchall():
            assert check_partition(catalog, path, store_id, topic_id, topic, partition) == (rows, size)
            checked += 1
    assert checked == 3
    epochs = [row[0] for row in catalog.execute("SELECT epoch FROM commits WHERE pipeline = 'p' ORDER BY commit_id")]
    assert epochs == sorted(set(epochs)) == [0, 1, 2]
    catalog.close()


def check_partition(
    catalog: sqlite3.Connection, path: Path, store_id: str, topic_id: int, topic: str, partition: int
) -> tuple[int, int]:
    key = (topic_id, partition)
    segments = {
        row[0]: row[1:]
        for row in catalog.execute(
            "SELECT segment_id, file, first_offset, schema_version, header_bytes, header_xxh3, published_bytes "
            "FROM segments WHERE topic_id = ? AND partition = ?",
            key,
        )
    }
    ends = {}
    for segment_id, (file, first, version, header_bytes, header_xxh3, _) in segments.items():
        content = (path / "topics" / topic / str(partition) / file).read_bytes()
        assert int(file.split("-")[0]) == first
        assert xxhash.xxh3_64_intdigest(content[:header_bytes]) == header_xxh3 % 2**64
        schema = pa.ipc.read_schema(pa.py_buffer(content[:header_bytes]))
        assert schema.metadata == {
            b"dataflow.store": store_id.encode(),
            b"dataflow.topic": topic.encode(),
            b"dataflow.partition": str(partition).encode(),
            b"dataflow.first_offset": str(first).encode(),
        }
        (arrow,) = catalog.execute(
            "SELECT arrow FROM schemas WHERE topic_id = ? AND version = ?", (topic_id, version)
        ).fetchone()
        assert pa.ipc.read_schema(pa.py_buffer(arrow)).equals(schema)
        ends[segment_id] = header_bytes
    offset = size = 0
    batches = (
        "SELECT first_offset, rows, entries FROM batches WHERE topic_id = ? AND partition = ? ORDER BY first_offset"
    )
    for first, rows, entries in catalog.execute(batches, key).fetchall():
        assert first == offset
        for segment_id, position, length, entry_rows, xxh3 in struct.iter_unpack("<5Q", entries):
            assert entry_rows > 0
            assert position == ends[segment_id], "no gap"
            content = (path / "topics" / topic / str(partition) / segments[segment_id][0]).read_bytes()
            message = content[position : position + length]
            assert xxhash.xxh3_64_intdigest(message) == xxh3
            if position == segments[segment_id][3]:
                assert segments[segment_id][1] == offset
            ends[segment_id] += length
            offset += entry_rows
            size += length
        assert offset == first + rows
    for segment_id, (*_, published_bytes) in segments.items():
        assert ends[segment_id] == published_bytes
    return offset, size


def test_a_segment_is_a_plain_arrow_stream_that_other_tools_read(path: Path) -> None:
    files = sorted((path / "topics/flights/0").glob("*.arrow"))
    with pa.OSFile(str(files[0])) as file:
        rows = pa.ipc.open_stream(file).read_all()
    assert rows["n"].to_pylist() == list(range(100_000))
    polars = pytest.importorskip("polars")
    assert polars.read_ipc_stream(files[0])["who"].to_list()[:4] == ["ann", None, "bob", "cy"]


def test_no_byte_of_a_store_is_a_pickle(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            assert not file.read_bytes().startswith(b"\x80\x04")
            assert b"__reduce__" not in file.read_bytes()


def canonical(value: object) -> bytes:
    match value:
        case None:
            return struct.pack("<Q", 0x9E37_79B9_7F4A_7C15)
        case bool() | int():
            return struct.pack("<q", value)
        case float():
            return struct.pack("<Q", 0x7FF8 << 48) if value != value else struct.pack("<d", value or 0.0)
        case str():
            return value.encode()
        case bytes():
            return value
    raise TypeError(value)


KEYS: dict[str, tuple[object, ...]] = {
    "`0`": (0,),
    "`1`": (1,),
    "`-1`": (-1,),
    "`9223372036854775807`": (2**63 - 1,),
    "`-9223372036854775808`": (-(2**63),),
    "`true`": (True,),
    "timestamp 2023-11-14 22:13:20 UTC": (1_700_000_000_000_000,),
    "`0.0`, `-0.0`": (-0.0,),
    "`1.5`": (1.5,),
    "NaN": (float("nan"),),
    "infinity": (float("inf"),),
    '`""`': ("",),
    '`"a"`': ("a",),
    '`"dataflow"`': ("dataflow",),
    '`"größe"`': ("größe",),
    "binary 00 FF": (b"\x00\xff",),
    "null": (None,),
    "`1`, `2`": (1, 2),
    "`2`, `1`": (2, 1),
    '`"a"`, null': ("a", None),
    'null, `"a"`': (None, "a"),
    '`"JFK"`, `10`': ("JFK", 10),
    '`10`, `"JFK"`, `1.5`': (10, "JFK", 1.5),
}


def test_the_key_hash_vectors_are_what_the_rules_give() -> None:
    table = FORMAT.read_text().split("| key | canonical bytes | hash | group |")[1]
    rows = re.findall(r"^\| (.+?) \| (?:`([0-9a-f]*)`)? ?\| `0x([0-9A-F]{16})` \| (\d+) \|$", table, re.MULTILINE)
    assert {row[0] for row in rows} == set(KEYS)
    for name, shown, hash_, group in rows:
        hashed = 0
        for value in KEYS[name]:
            hashed = xxhash.xxh64_intdigest(canonical(value), seed=hashed)
        assert (canonical(KEYS[name][-1]).hex(), f"{hashed:016X}", str(hashed >> 57)) == (shown, hash_, group), name

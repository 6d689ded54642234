"""The verifier finds whatever is not as FORMAT.md says, and nothing else; no damage makes it fail.

The stores are made by hand from the page (handmade.py). The hard part are the flips in the catalog: SQLite's pages have
no checksums, so a flip may leave a number that is as good as the right one; its rows have. One thing cannot be found by
any format: a log of SQLite that was cut exactly at the end of a transaction, which is what a crash before the later
ones leaves.
"""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pytest

from dataflow.cli import main
from dataflow.errors import StoreError
from dataflow.state import verify as verifier
from dataflow.state.catalog_database import create_catalog
from dataflow.state.layout import Layout
from dataflow.state.store import Store
from dataflow.state.verify import Finding, Report, commits, rows, verify
from dataflow.system import RealSystem, System
from dataflow.torture.images import Acks, images, record
from tests.cli.conftest import ROOT, environment
from tests.state.handmade import PIPELINE, PIPELINE_FILE, batch, frame, make, signed, write

FLIGHTS = "topics/flights/0/00000000000000000000-1.arrow"
LATE = "topics/Late.rows-1/1/00000000000000000003-2.arrow"
FRAMES = f"snapshots/{PIPELINE_FILE}/1.state"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A quiet store: SQLite has put its log away."""
    made = make(tmp_path / "store")
    made.close()
    return made.path


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The same, left by a process that was killed: all that was committed is in SQLite's log."""
    made = make(tmp_path / "made")
    shutil.copytree(made.path, tmp_path / "store")
    made.close()
    return tmp_path / "store"


# ── a good store ──


@pytest.mark.parametrize("state", ["store", "killed"])
def test_a_store_made_from_the_page_alone_is_found_good(state: str, request: pytest.FixtureRequest) -> None:
    assert verify(request.getfixturevalue(state)) == Report(
        findings=(),
        topics=2,
        partitions=3,
        segments=5,
        batches=15,
        rows=320,
        bytes=8568,
        commits=5,
        pipelines=1,
        frames=2,
    )


@pytest.mark.parametrize("state", ["store", "killed"])
def test_verifying_writes_nothing(state: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(state)

    def everything() -> dict[Path, tuple[int, bytes]]:
        paths = [path, *path.rglob("*")]
        return {one: (one.stat().st_mtime_ns, b"" if one.is_dir() else one.read_bytes()) for one in paths}

    before = everything()
    verify(path)
    rows(path, "flights")
    commits(path)
    assert everything() == before


def test_rows_are_those_of_all_partitions_in_the_last_schema(store: Path) -> None:
    flights = rows(store, "flights")
    assert flights["n"].to_pylist() == [1, 2, 3, 4, 10, 11, 20, 21, 40, 41]
    assert flights["more"].to_pylist() == [None] * 6 + [10.0, 10.5, 20.0, 20.5]
    assert rows(store, "Late.rows-1", partition=1)["n"].to_pylist() == [1, 5, 6, 2, 5, 6, 4, 5, 6]
    assert rows(store, "Late.rows-1").num_rows == 310


def test_commits_tell_what_each_made_visible(store: Path) -> None:
    first, epoch, *_, last = commits(store)
    assert first == (1, None, None, {("flights", 0): (0, 4)})
    assert epoch == (2, PIPELINE, 1, {("flights", 0): (4, 2), ("Late.rows-1", 0): (0, 100), ("Late.rows-1", 1): (0, 3)})
    assert last == (5, None, None, {("Late.rows-1", 0): (300, 1)})


def test_rows_of_a_damaged_segment_are_refused(store: Path) -> None:
    flip(store / FLIGHTS, 8 * 1000)
    with pytest.raises(StoreError, match="checksum"):
        rows(store, "flights")
    assert rows(store, "Late.rows-1").num_rows == 310


def test_what_was_not_published_is_no_finding(store: Path) -> None:
    with (store / FLIGHTS).open("ab") as file:
        file.write(b"torn")
    write(store / "topics/flights/0/00000000000000000010-9.arrow", b"never published")
    (store / "topics/new/7").mkdir(parents=True, mode=0o700)
    os.chmod(store / "topics/new", 0o700)
    write(store / "topics/new/7/00000000000000000000-1.arrow", b"")
    write(store / f"snapshots/{PIPELINE_FILE}/3.state", b"an aborted checkpoint")
    assert verify(store).findings == ()


# ── one thing at a time ──

Damage = Callable[[Path], object]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def sql(*statements: str) -> Damage:
    def change(store: Path) -> None:
        catalog = sqlite3.connect(store / "catalog.db")
        for statement in statements:
            catalog.execute(statement)
        catalog.commit()
        catalog.close()

    return change


def checkpoint(change: Callable[[dict[str, object]], object]) -> Damage:
    """Change the JSON of the checkpoint."""

    def apply(store: Path) -> None:
        catalog = sqlite3.connect(store / "catalog.db")
        parsed = json.loads(catalog.execute("SELECT checkpoint FROM pipelines").fetchone()[0])
        change(parsed)
        catalog.execute("UPDATE pipelines SET checkpoint = ?", [json.dumps(parsed)])
        catalog.commit()
        catalog.close()

    return apply


def entry(number: int, value: int) -> Damage:
    """Change a field of the first entry of a partition: segment, position, length, rows, checksum."""

    def change(store: Path) -> None:
        catalog = sqlite3.connect(store / "catalog.db")
        where = "WHERE topic_id = 1 AND first_offset = 0"
        entries = catalog.execute(f"SELECT entries FROM batches {where}").fetchone()[0]
        fields = list(struct.unpack_from("<5Q", entries))
        fields[number] = value
        catalog.execute(f"UPDATE batches SET entries = ? {where}", [struct.pack("<5Q", *fields) + entries[40:]])
        catalog.commit()
        catalog.close()

    return change


def replaced(file: str, content: bytes) -> Damage:
    return lambda store: (store / file).write_bytes(content)


def last_batch(content: bytes, rows: int = 1) -> Damage:
    """Other bytes for the last batch of a topic, with all numbers and the checksum right."""

    def change(store: Path) -> None:
        catalog = sqlite3.connect(store / "catalog.db")
        where = "WHERE commit_id = 5"
        entries = catalog.execute(f"SELECT entries FROM batches {where}").fetchone()[0]
        segment, position, length, _, _ = struct.unpack("<5Q", entries)
        new = struct.pack("<5Q", segment, position, len(content), rows, signed(content) % 2**64)
        catalog.execute(f"UPDATE batches SET entries = ? {where}", [new])
        catalog.execute(f"UPDATE segments SET published_bytes = {position + len(content)} WHERE segment_id = {segment}")
        catalog.execute(
            f"UPDATE partitions SET bytes = bytes + {len(content) - length} WHERE topic_id = 2 AND partition = 0"
        )
        catalog.commit()
        catalog.close()
        path = next((store / "topics/Late.rows-1/0").glob("*.arrow"))
        path.write_bytes(path.read_bytes()[:position] + content)

    return change


def frame_of(content: bytes) -> Damage:
    """Other bytes for a frame, with its length and checksum right."""

    def change(store: Path) -> None:
        (store / FRAMES.replace("1.", "2.")).write_bytes(content)
        sql(f"UPDATE frames SET length = {len(content)}, xxh3 = {signed(content)} WHERE file = '2.state'")(store)

    return change


def compressed(codec: str) -> bytes:
    options = pa.ipc.IpcWriteOptions(compression=codec)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch([7] * 500).schema, options=options) as stream:
        stream.write_batch(batch([7] * 500))
    content: bytes = sink.getvalue().to_pybytes()
    return content


def message(content: bytes, number: int) -> bytes:
    """The n-th message of a stream."""
    reader = pa.ipc.MessageReader.open_stream(content)
    messages = [one.serialize().to_pybytes() for one in reader]
    return bytes(messages[number])


def linked(file: str) -> Damage:
    def change(store: Path) -> None:
        (store / file).rename(store.parent / "elsewhere")
        (store / file).symlink_to(store.parent / "elsewhere")

    return change


def directory(file: str) -> Damage:
    def change(store: Path) -> None:
        (store / file).unlink()
        (store / file).mkdir(mode=0o700)

    return change


def pipe(file: str) -> Damage:
    def change(store: Path) -> None:
        (store / file).unlink()
        os.mkfifo(store / file, 0o600)

    return change


def swapped(store: Path) -> None:
    """Two segments of one length, each with its own right bytes, in each other's place."""
    one, other = store / "topics/Late.rows-1/1/00000000000000000000-1.arrow", store / LATE
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def wrong_header(key: str, value: str) -> Damage:
    """A schema message that names another place, with the right checksum in the catalog."""

    def change(store: Path) -> None:
        content = (store / LATE).read_bytes()
        schema = pa.ipc.read_schema(pa.py_buffer(content))
        before = len(schema.serialize())
        header = schema.with_metadata({**schema.metadata, key.encode(): value.encode()}).serialize().to_pybytes()
        assert len(header) == before
        (store / LATE).write_bytes(header + content[before:])
        sql(f"UPDATE segments SET header_xxh3 = {signed(header)} WHERE file = '{Path(LATE).name}'")(store)

    return change


DEEP = "[" * 100_000 + "]" * 100_000
DAMAGES: dict[str, tuple[Damage, str]] = {
    # segments and what the catalog says of them
    "a bit of a schema message": (lambda store: flip(store / LATE, 8 * 60), "checksum"),
    "a bit of a batch": (lambda store: flip(store / FLIGHTS, 8 * 600), "checksum"),
    "a segment cut short": (lambda store: os.truncate(store / FLIGHTS, 1000), "has 1000 bytes, 1176 are published"),
    "an empty segment": (replaced(FLIGHTS, b""), "has 0 bytes"),
    "a missing segment": (lambda store: (store / FLIGHTS).unlink(), "is missing"),
    "a missing topic": (lambda store: shutil.rmtree(store / "topics/flights"), "flights: is missing"),
    "a link for a segment": (linked(FLIGHTS), "is a symbolic link"),
    "a link for a partition": (linked("topics/flights/0"), "0: is "),
    "a directory for a segment": (directory(FLIGHTS), "is not a regular file"),
    "a pipe for a segment": (pipe(FLIGHTS), "is not a regular file"),
    "two segments swapped": (swapped, "checksum"),
    "a segment of another store": (wrong_header("dataflow.store", "f" * 32), "of another place"),
    "a segment of another partition": (wrong_header("dataflow.partition", "2"), "of another place"),
    "a segment of another offset": (wrong_header("dataflow.first_offset", "4"), "of another place"),
    "a segment of another topic": (wrong_header("dataflow.topic", "Late.rows-2"), "of another place"),
    "zeros in a segment": (replaced(FLIGHTS, bytes(1176)), "checksum"),
    "a published length that is too short": (
        sql("UPDATE segments SET published_bytes = published_bytes - 8 WHERE segment_id = 1"),
        "the published length is",
    ),
    "a published length that is too long": (
        sql("UPDATE segments SET published_bytes = 1 << 62 WHERE segment_id = 1"),
        "are published",
    ),
    "a header's length": (sql("UPDATE segments SET header_bytes = 1 << 62 WHERE segment_id = 1"), "schema message"),
    "a negative header": (sql("UPDATE segments SET header_bytes = -8 WHERE segment_id = 1"), "schema message"),
    "a header's checksum": (sql("UPDATE segments SET header_xxh3 = 5 WHERE segment_id = 1"), "checksum"),
    "a segment's first offset": (
        sql("UPDATE segments SET first_offset = 1 WHERE segment_id = 1"),
        "no name of a segment",
    ),
    "a segment's name": (sql("UPDATE segments SET file = '../../x' WHERE segment_id = 1"), "no name of a segment"),
    "a segment's schema": (sql("UPDATE segments SET schema_version = 2 WHERE segment_id = 1"), "of schema version 2"),
    "a schema that is not there": (
        sql("UPDATE segments SET schema_version = 9 WHERE segment_id = 1"),
        "no schema version 9",
    ),
    "a segment's partition": (sql("UPDATE segments SET partition = 1 WHERE segment_id = 1"), "not listed"),
    "a segment without batches": (
        sql("INSERT INTO segments SELECT 99, 1, 0, '00000000000000000010-9.arrow', 10, 1, 8, 8, 8"),
        "no batch in it",
    ),
    "numbers that do not ascend": (
        sql("UPDATE segments SET file = replace(file, '-1.', '-7.') WHERE segment_id = 1"),
        "do not ascend",
    ),
    "an entry's segment": (entry(0, 99), "segment 99 that is not listed"),
    "an entry's position": (entry(1, 424), "begins at 424, not at 416"),
    "an entry's position far off": (entry(1, 2**64 - 1), "begins at 18446744073709551615"),
    "an entry's length": (entry(2, 280), "begins at 688, not at 696"),
    "an entry's huge length": (entry(2, 2**63), "a batch of 3 rows"),
    "an entry's rows": (entry(3, 2), "batches.rows is 4, its entries have 3"),
    "an entry of no rows": (entry(3, 0), "a batch of 0 rows"),
    "an entry's checksum": (entry(4, 1), "checksum"),
    "half an entry": (
        sql("UPDATE batches SET entries = substr(entries, 1, 60) WHERE commit_id = 1"),
        "no multiple of 40",
    ),
    "no entry": (sql("UPDATE batches SET entries = x'' WHERE commit_id = 1"), "no multiple of 40"),
    # what a batch decodes to
    "a batch of other columns": (last_batch(pa.record_batch({"n": [1]}).serialize().to_pybytes()), "does not decode"),
    "a batch of other rows": (last_batch(batch([1, 2]).serialize().to_pybytes()), "the message has 2 rows"),
    "a schema for a batch": (last_batch(batch([1]).schema.serialize().to_pybytes()), "not one record batch"),
    "bytes for a batch": (last_batch(b"no message at all"), "no Arrow message starts there"),
    "a batch and more": (last_batch(batch([1]).serialize().to_pybytes() + bytes(8)), "not one record batch"),
    "a batch cut short": (last_batch(batch([1]).serialize().to_pybytes()[:-8]), "ends too early"),
    "a compressed batch": (last_batch(message(compressed("lz4"), 1), 500), "compressed (LZ4)"),
    # topics, schemas, partitions, commits
    "a topic's name": (
        sql("UPDATE topics SET name = 'flightz', folded = 'flightz' WHERE topic_id = 1"),
        "flightz: is missing",
    ),
    "a name that climbs out": (
        sql("UPDATE topics SET name = '../x', folded = '../x' WHERE topic_id = 1"),
        "no name of a topic",
    ),
    "a folded name": (sql("UPDATE topics SET folded = 'Flights' WHERE topic_id = 1"), "folded"),
    "a topic's id": (sql("UPDATE topics SET topic_id = 9 WHERE topic_id = 1"), "of a topic 1 that is not listed"),
    "a missing schema": (sql("DELETE FROM schemas WHERE version = 1"), "schema version 1 is not listed"),
    "a schema of nothing": (sql("UPDATE schemas SET arrow = x''"), "metadata of an Arrow message"),
    "a column that is gone": (
        lambda store: _schema(store, pa.schema({"more": pa.float64(), "n": pa.int64()})),
        "column 'who' is gone",
    ),
    "a column of another type": (
        lambda store: _schema(store, pa.schema({"more": pa.float64(), "n": pa.int32(), "who": pa.string()})),
        "was int64 and is int32",
    ),
    "a dictionary": (
        lambda store: _schema(store, pa.schema({"d": pa.dictionary(pa.int8(), pa.string())})),
        "dictionary",
    ),
    "metadata in a schema": (
        lambda store: _schema(store, batch([1], more=True).schema.with_metadata({"a": "b"})),
        "metadata",
    ),
    "a partition's rows": (sql("UPDATE partitions SET rows = rows + 1 WHERE topic_id = 1"), "partitions says 11 rows"),
    "a partition's bytes": (
        sql("UPDATE partitions SET bytes = bytes - 1 WHERE topic_id = 1"),
        "partitions says 10 rows",
    ),
    "a missing partition": (sql("DELETE FROM partitions WHERE topic_id = 1"), "partition 0 that is not listed"),
    "a negative partition": (sql("INSERT INTO partitions VALUES (1, -1, 0, 0)"), "-1 is no number of a partition"),
    "a missing batch row": (sql("DELETE FROM batches WHERE commit_id = 2 AND topic_id = 1"), "begin at offset 6"),
    "a batch row's offset": (
        sql("UPDATE batches SET first_offset = 5 WHERE commit_id = 2 AND topic_id = 1"),
        "begin at offset 5, those before end at 4",
    ),
    "a batch row's rows": (
        sql("UPDATE batches SET rows = 3 WHERE commit_id = 2 AND topic_id = 1"),
        "batches.rows is 3",
    ),
    "a batch row's commit": (
        sql("UPDATE batches SET commit_id = 77 WHERE commit_id = 5"),
        "commit 77 that is not listed",
    ),
    "batch rows out of order": (
        sql("UPDATE batches SET commit_id = 4 WHERE commit_id = 2 AND topic_id = 1"),
        "rows of commit 3 come after those of 4",
    ),
    "a missing commit": (sql("DELETE FROM commits WHERE commit_id = 1"), "where commit 1 should be"),
    "half an epoch": (sql("UPDATE commits SET epoch = 3 WHERE commit_id = 5"), "a pipeline or an epoch, not both"),
    "an epoch that goes back": (sql("UPDATE commits SET epoch = 1 WHERE commit_id = 3"), "epoch 1 of"),
    "a pipeline's epoch": (sql("UPDATE pipelines SET epoch = 5"), "is at epoch 5"),
    "a pipeline's commit": (sql("UPDATE pipelines SET commit_id = 5"), "by commit 5"),
    "a pipeline's end": (sql("UPDATE pipelines SET finished = 2"), "finished"),
    "a pipeline's name": (sql("UPDATE pipelines SET name = 'other'"), "of a pipeline 'Job/ü' that is not listed"),
    # checkpoints, frames, ledger
    "a bit of a frame": (lambda store: flip(store / FRAMES, 8 * 100), "checksum"),
    "a missing file of frames": (lambda store: (store / FRAMES).unlink(), "is missing"),
    "a link for a file of frames": (linked(FRAMES), "is a symbolic link"),
    "a file of frames cut short": (lambda store: os.truncate(store / FRAMES, 100), "beyond the end of the file"),
    "a frame's huge length": (sql("UPDATE frames SET length = 1 << 62"), "beyond the end of the file"),
    "a frame of nothing": (sql("UPDATE frames SET length = 0"), "cannot have 0 bytes"),
    "a frame's position": (sql("UPDATE frames SET position = -1"), "bytes at -1"),
    "a frame's file": (sql("UPDATE frames SET file = '../1.state'"), "no name of a file of frames"),
    "frames that overlap": (
        sql("INSERT INTO frames SELECT pipeline, 99, owner, 1, file, position + 1, length, 5 FROM frames LIMIT 1"),
        "overlaps",
    ),
    "a frame without end": (frame_of(frame(batch([1]))[:-8]), "end-of-stream marker"),
    "a frame and more": (frame_of(frame(batch([1])) + bytes(8)), "no Arrow message starts there"),
    "a frame of another codec": (frame_of(compressed("zstd")), "compressed (ZSTD)"),
    "a frame that is no Arrow": (frame_of(b"no message at all"), "no Arrow message starts there"),
    "a frame of no pipeline": (
        sql("UPDATE frames SET pipeline = 'x' WHERE frame = 8"),
        "of a pipeline 'x' that is not",
    ),
    "a frame of no step": (
        sql("UPDATE frames SET owner = 'state wimdow' WHERE frame = 8"),
        "which its checkpoint has not",
    ),
    "a frame's rows": (sql("UPDATE frames SET rows = 41 WHERE frame = 8"), "has 40 rows, the catalog says 41"),
    "a checkpoint without sinks": (
        checkpoint(lambda parts: parts.pop("sinks")),
        "'sink out', which its checkpoint has not",
    ),
    "a checkpoint with more": (
        checkpoint(lambda parts: parts.update(more=1)),
        "'more', which the format does not know",
    ),
    "a list for the sources": (checkpoint(lambda parts: parts.update(sources=[])), "sources is no object"),
    "a number for the states": (checkpoint(lambda parts: parts.update(states={"w": 1})), "is no list"),
    "a state that is no object": (checkpoint(lambda parts: parts.update(states={"w": [1]})), "is no object"),
    "a type that is no text": (
        checkpoint(lambda parts: parts.update(steps={"s": {"does": "", "columns": {"n": 1}, "paths": [], "hash": ""}})),
        "a text belongs",
    ),
    "a deep checkpoint": (sql(f"UPDATE pipelines SET checkpoint = '{DEEP}'"), "is no JSON"),
    "a checkpoint of NaN": (sql("UPDATE pipelines SET checkpoint = '{\"sources\": NaN}'"), "NaN is no JSON"),
    "a name twice": (sql('UPDATE pipelines SET checkpoint = \'{"a": 1, "a": 2}\''), "a name twice"),
    "a ledger that loses a row": (
        sql("UPDATE ledger SET counts = CAST(replace(CAST(counts AS TEXT), '\"late\": 1', '\"late\": 0') AS BLOB)"),
        "took 7 rows in, and 6 are accounted for",
    ),
    "a ledger of another epoch": (sql("UPDATE ledger SET epoch = 3 WHERE epoch = 2"), "is not that epoch's"),
    "a ledger's commit": (sql("UPDATE ledger SET commit_id = 2 WHERE epoch = 2"), "is not that epoch's"),
    "a missing ledger": (sql("DELETE FROM ledger WHERE epoch = 2"), "no row of epoch 2"),
    "a ledger of no JSON": (sql("UPDATE ledger SET counts = x'00'"), "is no JSON"),
    "a ledger of unknown counts": (sql('UPDATE ledger SET counts = CAST(\'{"f": {"x": 1}}\' AS BLOB)'), "'x', which"),
    "a negative count": (sql('UPDATE ledger SET counts = CAST(\'{"f": {"late": -1}}\' AS BLOB)'), "no number of rows"),
    # the catalog itself
    "no catalog": (lambda store: (store / "catalog.db").unlink(), "is missing"),
    "an empty catalog": (replaced("catalog.db", b""), "application id"),
    "a catalog of noise": (replaced("catalog.db", random.Random(1).randbytes(8192)), "SQLite cannot"),
    "a link for the catalog": (linked("catalog.db"), "is a symbolic link"),
    "a directory for the catalog": (directory("catalog.db"), "is not a regular file"),
    "a pipe for the catalog": (pipe("catalog.db"), "is not a regular file"),
    "a catalog cut short": (lambda store: os.truncate(store / "catalog.db", 20_000), "malformed"),
    "another application": (sql("PRAGMA application_id = 1"), "application id"),
    "another version": (sql("PRAGMA user_version = 1"), "the format version is 1"),
    "no log": (sql("PRAGMA journal_mode = DELETE"), "journal mode"),
    "a missing table": (sql("DROP TABLE ledger"), "no table ledger"),
    "a renamed column": (sql("ALTER TABLE frames RENAME COLUMN file TO name"), "table frames has the columns"),
    "a trigger": (sql("CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM commits; END"), "there is a trigger"),
    "a view for a table": (sql("DROP TABLE ledger", "CREATE VIEW ledger AS SELECT 1"), "there is a view"),
    "a table that is not strict": (
        sql("DROP TABLE meta", "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)"),
        "not STRICT",
    ),
    "a null": (sql("UPDATE batches SET rows = NULL WHERE commit_id = 5"), "batches.rows is null"),
    "a store without an id": (sql("DELETE FROM meta WHERE key = 'store_id'"), "meta.store_id"),
    "another store's id": (sql("UPDATE meta SET value = replace(value, '0', 'a')"), "of another place"),
    "a time of creation": (sql("UPDATE meta SET value = 'x' WHERE key = 'created_us'"), "created_us"),
    "a key too many": (sql("INSERT INTO meta VALUES ('x', 'y', 0)"), "does not know"),
    # what nothing but the checksums of rows can tell
    "another time of creation": (
        sql("UPDATE meta SET value = '1700000000000001' WHERE key = 'created_us'"),
        "the row of meta with key 'created_us'",
    ),
    "a topic's checksum": (sql("UPDATE topics SET xxh3 = xxh3 + 1 WHERE topic_id = 2"), "of topics with topic_id 2"),
    "a bit between the columns of a schema": (
        sql("UPDATE schemas SET arrow = CAST(substr(arrow, 1, length(arrow) - 1) || x'01' AS BLOB) WHERE topic_id = 1"),
        "the row of schemas with topic_id, version 1, 1",
    ),
    "the time of a commit": (sql("UPDATE commits SET wall_us = 1 WHERE commit_id = 2"), "commit 2, with its rows"),
    "rows of a commit between those of its neighbours": (
        sql("UPDATE batches SET commit_id = 1 WHERE commit_id = 2 AND topic_id = 2 AND partition = 1"),
        "commit 2, with its rows",
    ),
    "a commit that gets another's rows": (
        sql("UPDATE batches SET commit_id = 1 WHERE commit_id = 2 AND topic_id = 2 AND partition = 1"),
        "commit 1, with its rows",
    ),
    "rows that a ledger produced": (
        sql("UPDATE ledger SET counts = CAST(replace(CAST(counts AS TEXT), '\"produced\": 7', '\"held\": 0') AS BLOB)"),
        "commit 2, with its rows of batches and ledger",
    ),
    "a program's hash": (sql("UPDATE pipelines SET graph_hash = 'aa'"), "of pipelines with name 'Job/ü'"),
    "the hash of what it keeps": (sql("UPDATE pipelines SET state_hash = 'aa'"), "of pipelines with name 'Job/ü'"),
    "a pipeline that has ended": (sql("UPDATE pipelines SET finished = 0"), "of pipelines with name 'Job/ü'"),
    "a position in a checkpoint": (
        checkpoint(lambda parts: parts.update(sources={"clicks": {"0": {"position": 1}}})),
        "of pipelines with name 'Job/ü'",
    ),
    "the order of frames": (sql("UPDATE frames SET frame = 10 WHERE frame = 8"), "pipelines.frames_xxh3"),
    "an owner of frames": (sql("UPDATE frames SET owner = 'sink out'"), "pipelines.frames_xxh3"),
    "a frame that is gone": (sql("DELETE FROM frames WHERE frame = 8"), "pipelines.frames_xxh3"),
    "a topic without partitions": (
        sql("INSERT INTO topics VALUES (9, 'empty', 'empty', 0)"),
        "no partition is listed",
    ),
}


def _schema(store: Path, schema: pa.Schema) -> None:
    catalog = sqlite3.connect(store / "catalog.db")
    arrow = schema.serialize().to_pybytes()
    catalog.execute("UPDATE schemas SET arrow = ? WHERE topic_id = 1 AND version = 2", [arrow])
    catalog.commit()
    catalog.close()


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(store: Path, name: str) -> None:
    damage, what = DAMAGES[name]
    damage(store)
    report = verify(store)
    assert not report.ok
    assert any(what in f"{finding.file}: {finding.what}" for finding in report.findings), report.findings


def test_a_finding_says_where_it_is(store: Path) -> None:
    flip(store / FLIGHTS, 8 * 1000)
    (finding,) = verify(store).findings
    assert finding == Finding(
        kind="damage",
        file=FLIGHTS,
        what="the bytes do not have the catalog's checksum",
        position=920,
        topic="flights",
        partition=0,
        offset=4,
        epoch=1,
    )


WARNINGS: dict[str, tuple[Damage, str]] = {
    "others may read": (lambda store: os.chmod(store / "catalog.db", 0o644), "permissions 0644, not 0600"),
    "others may enter": (lambda store: os.chmod(store / "topics/flights", 0o755), "permissions 0755, not 0700"),
    "others may enter the store": (lambda store: os.chmod(store, 0o755), "permissions 0755, not 0700"),
    "a lock that is gone": (lambda store: (store / "store.lock").unlink(), "never removed"),
    "a writer's lock that is gone": (lambda store: (store / "topics/flights/0/writer.lock").unlink(), "never removed"),
    "a pipeline's lock that is gone": (lambda store: shutil.rmtree(store / "locks"), "never removed"),
    "a lock of noise": (replaced("store.lock", b"\xff"), "does not tell who"),
    "a huge lock": (lambda store: os.truncate(store / "store.lock", 1 << 40), "lock file of"),
    "a pipe for a lock": (pipe("store.lock"), "is no file"),
    "a stranger's file": (lambda store: write(store / "notes.txt", b""), "not known to the format"),
    "a stranger's partition": (
        lambda store: (store / "topics/flights/01").mkdir(mode=0o700),
        "not known to the format",
    ),
    "a stranger's lock": (lambda store: write(store / "locks/pipeline-A.lock", b""), "not known to the format"),
    "names of one case": (lambda store: (store / "topics/Flights").mkdir(mode=0o700), "differ in case only"),
    "an old segment": (
        lambda store: write(store / "topics/flights/0/00000000000000000003-9.arrow", b""),
        "the catalog does not list",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_what_harms_no_reader_is_a_warning(store: Path, name: str) -> None:
    change, what = WARNINGS[name]
    change(store)
    report = verify(store)
    assert report.ok
    assert [finding.kind for finding in report.findings] == ["warning"]
    assert what in report.findings[0].what


# ── SQLite's log, which SQLite itself passes over in silence ──

PAGE_BYTES, FRAME_BYTES, HEADER_BYTES = 4096, 4096 + 24, 32


def commit_frames(store: Path) -> list[int]:
    """Where the last frame of each transaction in the log begins."""
    content = (store / "catalog.db-wal").read_bytes()
    frames = range(HEADER_BYTES, len(content), FRAME_BYTES)
    return [at for at in frames if content[at + 4 : at + 8] != bytes(4)]


@pytest.mark.parametrize("bit", [0, 40, 70, 130, 8 * 30, 8 * 4000], ids=str)
def test_a_flip_in_an_earlier_transaction_of_the_log_is_damage(killed: Path, bit: int) -> None:
    before_last = commit_frames(killed)[-2]
    flip(killed / "catalog.db-wal", 8 * before_last + bit)
    report = verify(killed)
    assert not report.ok
    with pytest.raises(StoreError, match="commits that were made are lost"):
        commits(killed)
    assert any(finding.file == "catalog.db-wal" and finding.kind == "damage" for finding in report.findings)


@pytest.mark.parametrize("bit", [0, 40, 70, 130, 8 * 30, 8 * 4000], ids=str)
def test_a_flip_in_the_last_transaction_of_the_log_may_be_a_power_cut(killed: Path, bit: int) -> None:
    flip(killed / "catalog.db-wal", 8 * commit_frames(killed)[-1] + bit)
    report = verify(killed)
    assert [(finding.kind, finding.file) for finding in report.findings] == [("warning", "catalog.db-wal")]
    assert report.commits == 4


def test_a_last_frame_of_the_log_that_became_zeros_may_be_a_power_cut(killed: Path) -> None:
    log = killed / "catalog.db-wal"
    last = commit_frames(killed)[-1]
    log.write_bytes(log.read_bytes()[:last] + bytes(FRAME_BYTES))
    report = verify(killed)
    assert [(finding.kind, finding.file) for finding in report.findings] == [("warning", "catalog.db-wal")]
    assert report.commits == 4


def test_a_flip_in_the_header_of_the_log_is_damage(killed: Path) -> None:
    for bit in range(8 * HEADER_BYTES):
        flip(killed / "catalog.db-wal", bit)
        assert "catalog.db-wal" in {finding.file for finding in verify(killed).findings}, bit
        flip(killed / "catalog.db-wal", bit)


# ── flips and cuts everywhere ──

FLIPS = 700


def columns(store: Path, copy: Path) -> dict[str, list[dict[str, object]]] | None:
    """What SQLite reads from the catalog; None when it cannot."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in ("catalog.db", "catalog.db-wal"):
        if (store / name).exists():
            shutil.copy(store / name, copy / name)
    catalog = sqlite3.connect(copy / "catalog.db")
    catalog.text_factory = bytes
    catalog.row_factory = sqlite3.Row
    try:
        names = [row[0].decode() for row in catalog.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: [dict(row) for row in catalog.execute(f"SELECT * FROM {name} ORDER BY 1, 2")] for name in names}
    except sqlite3.Error:
        return None
    finally:
        catalog.close()


def changed(
    before: dict[str, list[dict[str, object]]], after: dict[str, list[dict[str, object]]]
) -> Iterator[tuple[str, str]]:
    for table, old_rows in before.items():
        none: dict[str, object] = {}
        for old, new in zip_longest(old_rows, after[table], fillvalue=none):
            for column in {*old, *new}:
                if old.get(column) != new.get(column):
                    yield table, column


def harm(path: Path, chance: random.Random) -> str:
    """Flip a bit or cut the file; of a catalog rather where something is."""
    content = path.read_bytes()
    if chance.random() < 0.15:
        path.write_bytes(content[: chance.randrange(len(content))])
        return "cut"
    at = chance.randrange(len(content))
    for _ in range(20):
        if any(content[max(at - 2, 0) : at + 3]):
            break
        at = chance.randrange(len(content))
    flip(path, 8 * at + chance.randrange(8))
    return "flip"


@pytest.mark.slow
@pytest.mark.parametrize("state", ["quiet", "killed", "killed later"])
def test_every_flip_and_cut_is_found_or_changes_nothing(tmp_path: Path, state: str) -> None:
    store, pristine = harmed_store(tmp_path, state)
    good, listed = columns(store, tmp_path / "copy"), commits(store)
    ends = [at + FRAME_BYTES for at in commit_frames(store)] if state != "quiet" else []
    assert good is not None
    files = [path for path in store.rglob("*") if path.is_file() and path.stat().st_size and path.suffix != ".db-shm"]
    weights = [path.stat().st_size ** 0.5 * (6 if path.name.startswith("catalog.db") else 1) for path in files]
    chance = random.Random(f"{state} 20")
    found = 0
    for _ in range(FLIPS):
        (path,) = chance.choices(files, weights)
        how = harm(path, chance)
        report = verify(store)
        found += bool(report.findings)
        name = path.relative_to(store)
        if not report.findings and path.name == "catalog.db-wal" and how == "cut":
            # Just what a crash before the last commits would have left: the bytes of the log as they were then.
            assert report.commits == len(listed) or path.stat().st_size in (0, *ends)
            assert commits(store) == listed[: report.commits]
        elif not report.findings and path.name.startswith("catalog.db"):
            after = columns(store, tmp_path / "copy")
            assert after is not None
            assert set(changed(good, after)) == set()
        elif not report.findings:
            assert name.parts[0] in ("locks", "snapshots"), f"{how} in {name}"  # texts of a lock; between frames
        shutil.copyfile(pristine / name, path)
    assert verify(store).findings == ()
    assert found > FLIPS / 3


def harmed_store(tmp_path: Path, state: str) -> tuple[Path, Path]:
    """A store in one of the states in which one may be found, and a copy that stays good."""
    made = make(tmp_path / "made")
    if state == "quiet":
        made.close()
    if state == "killed later":  # the log holds the last commits, and before its end are those of an earlier use
        made.catalog.execute("PRAGMA wal_checkpoint(RESTART)")
        for number in range(3):
            made.append("flights", 0, batch([number], more=True))
            made.commit()
    for name in ("store", "pristine"):
        shutil.copytree(made.path, tmp_path / name)
    made.close()
    return tmp_path / "store", tmp_path / "pristine"


def test_noise_for_any_file_ends_in_a_finding(store: Path) -> None:
    chance = random.Random(5)
    for path in [path for path in store.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for noise in (chance.randbytes(1), chance.randbytes(len(content) + 1), bytes(70_000), b"\xff" * 70_000):
            path.write_bytes(noise)
            assert verify(store).findings
        path.write_bytes(content)


# ── while a writer runs ──

WRITER = """
import os
import sys
from pathlib import Path
from tests.state.handmade import PIPELINE, PIPELINE_FILE, batch, frame, make, write

os.umask(0o077)
store = make(Path(sys.argv[1]))
store.catalog.execute("PRAGMA wal_autocheckpoint = 20")
snapshots = store.path / "snapshots" / PIPELINE_FILE
print("ready", flush=True)
for epoch in range(30, 100_000):
    content = frame(batch([epoch] * 10))
    file = epoch // 10
    path = snapshots / f"{file}.state"
    position = path.stat().st_size if epoch % 10 else 0
    if epoch % 10 == 0:
        write(path, b"")
    with path.open("ab") as opened:
        opened.write(content)
    store.append("flights", 0, batch([epoch], more=True), new_segment=epoch % 50 == 0)
    store.checkpoint(epoch, {epoch: (file, position, content)})
    store.commit(PIPELINE, epoch)
    if epoch % 10 == 0:
        (snapshots / f"{file - 1}.state").unlink(missing_ok=True)
"""


def test_a_store_is_good_at_any_moment_while_it_is_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "store")]
    writer = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        seen = []
        for _ in range(40):
            report = verify(tmp_path / "store")
            assert report.findings == ()
            seen.append(report.commits)
        assert writer.poll() is None
        assert seen == sorted(seen)
        assert seen[-1] > seen[0], "the writer stood still: nothing was proved"
    finally:
        writer.kill()
        writer.communicate()
    assert verify(tmp_path / "store").ok


# ── a store that is being made ──


def test_a_store_whose_making_a_power_cut_has_ended_is_unfinished_and_not_damaged(tmp_path: Path) -> None:
    def work(system: System, root: Path, acks: Acks) -> None:
        system.disk.make_dirs(root / "store", mode=0o700)
        create_catalog(system, Layout(str(root / "store")))
        acks.note("made")

    (tmp_path / "recorded").mkdir()
    recording = record(work, RealSystem(), tmp_path / "recorded")
    unfinished = completed = 0
    for number, (image, _) in enumerate(images(recording, seed=1)):
        root = tmp_path / f"image-{number}"
        root.mkdir()
        image.make(root, recording.root)
        path = root / "store"
        if not (path / "catalog.db").exists() or recording.acks.until(image.moment):
            continue
        report = verify(path)
        assert report.ok, (image.what, report.findings)
        if not any("was cut off" in finding.what for finding in report.findings if finding.file == "catalog.db"):
            continue
        unfinished += 1
        if unfinished % 20 == 1:  # those that follow each other differ little
            with Store(path) as store:
                store.append("t", pa.table({"n": [1]}))
            assert not any("was cut off" in finding.what for finding in verify(path).findings)
            completed += 1
    assert unfinished > 200 and completed > 10


def test_a_catalog_that_became_empty_is_damage_where_there_was_a_store(store: Path) -> None:
    (store / "catalog.db").write_bytes(b"")
    assert not verify(store).ok
    shutil.rmtree(store / "topics")
    assert not verify(store).ok  # pipelines have run here


# ── the command ──


def test_the_command_says_what_is_damaged_and_what_to_do(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "verify", "--store", str(store)]) == 0
    said = capsys.readouterr().out
    assert "the store is as it was written" in said
    assert "320" in said
    flip(store / FLIGHTS, 8 * 1000)
    assert main(["log", "verify", "--store", str(store)]) == 1
    said = capsys.readouterr().out
    assert f"damage: {FLIGHTS}: the bytes do not have the catalog's checksum" in said
    assert "position 920, topic flights, partition 0, offset 4, epoch 1" in said
    assert "restore the file from a copy" in said
    assert "1 damaged, 0 warnings; nothing was changed" in said


def test_the_command_says_that_a_store_is_unfinished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "catalog.db").touch(mode=0o600)
    assert main(["log", "verify", "--store", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "the making of the store was cut off" in said and "the next writer completes it" in said
    assert "nothing is damaged" in said


def test_the_command_tells_machines_in_json(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.chmod(store / "catalog.db", 0o644)
    assert main(["log", "verify", "--json", "--store", str(store)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["rows"], told["findings"][0]["kind"]) == (True, 320, "warning")


def test_the_command_wants_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "verify", "--store", str(tmp_path)]) == 2
    assert "there is no store at" in capsys.readouterr().err


def test_a_hostile_name_does_not_reach_the_terminal(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "topics/\x1b[2J\udcff").mkdir(mode=0o700)
    assert main(["log", "verify", "--store", str(store)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"\x1b[2J\udcff" in said


# ── independence ──


def test_the_verifier_shares_no_code_with_the_store() -> None:
    allowed = ("pyarrow", "xxhash", "apsw", "dataflow.errors", "dataflow.state.verify.", *sys.stdlib_module_names)
    for path in Path(str(verifier.__file__)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            strangers = {name for name in names if not name.startswith(allowed)}
            assert not strangers, path.name


def test_the_store_does_not_use_the_verifier() -> None:
    folders = ("state", "operators", "dsl", "dataflow/runtime", "dataflow/graph", "dataflow/system")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if "verify" not in path.parts]
    assert len(files) > 20
    assert not [path for path in files if "state.verify" in path.read_text() or "import verify" in path.read_text()]

"""The catalog: one SQLite database that says what a store holds (tables: FORMAT.md section 3).

A row of the catalog makes bytes exist; without it they are a torn tail. So everything that a commit publishes goes
into one transaction. The hard part is many processes on one database: no cursor stays open (it would pin the WAL),
transactions are short and begin IMMEDIATE, and each checks that the partition is still as its writer believes.
SQLite's pages have no checksums, so rows bring their own (row_checksums.py): what cannot be read for a bit that flipped
is told as CorruptCatalogError, and never taken for what was written.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import apsw
import pyarrow as pa

from dataflow.errors import StoreError
from dataflow.state.catalog_access import Access, is_current, open_catalog, steady
from dataflow.state.catalog_database import (
    APPLICATION_ID,
    BUSY_TIMEOUT_MS,
    FORMAT_VERSION,
    CorruptCatalogError,
    DoubtfulCommitError,
    UnfinishedCatalogError,
    is_unfinished,
    not_begun,
    told,
)
from dataflow.state.frames import Frame
from dataflow.state.layout import Layout
from dataflow.state.log.segment import IndexEntry, SegmentInfo
from dataflow.state.log.writer import Pending
from dataflow.state.records import CommitRequest, EpochRecord, JsonObject, PipelineState, TopicInfo
from dataflow.state.row_checksums import Row, Value, is_intact, sealed, signed, xxh3_of, xxh3_sum
from dataflow.system import System

MAX_OFFSET = 2**63 - 1
SETTLE_TIMEOUT_MS = 200
"""How long to wait for others with something that is only tidy."""
ENTRY = struct.Struct("<5Q")
"""Of `batches.entries`: segment_id, position, length, rows, xxh3."""


class Catalog:
    """An open catalog. Every method may be called from any thread."""

    def __init__(self, system: System, layout: Layout) -> None:
        self._system, self.layout = system, layout
        self._mutex = system.scheduler.mutex()
        self._access = open_catalog(system, layout)
        self._openings = 1
        self.store_id = self._checked()

    @steady
    def _checked(self) -> str:
        """The store's id, once it is sure that this is a store."""
        try:
            with self._mutex, told(self.layout.catalog):
                if is_unfinished(self._connection):
                    raise UnfinishedCatalogError(self.layout.root)
                self._check_version()
                return self._read_store_id()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._mutex:
            self._connection.close()

    # ── for those who may only read ──

    @property
    def is_read_only(self) -> bool:
        return self._access.is_read_only

    def access(self) -> Access:
        """The open database; opened anew if somebody has written where nobody was expected to."""
        with self._mutex:
            if not is_current(self._access, self._system, self.layout):
                self._connection.close()
                self._access = open_catalog(self._system, self.layout)
                self._openings += 1
            return self._access

    def is_steady(self, access: Access) -> bool:
        """Whether what was read since `access` is what was committed."""
        return access is self._access and is_current(access, self._system, self.layout)

    @property
    def _connection(self) -> apsw.Connection:
        return self._access.connection

    # ── topics ──

    @steady
    def topics(self) -> list[TopicInfo]:
        """All topics, by name."""
        with self._snapshot():
            found = self._rows(
                "SELECT topic_id, name, count(*), sum(rows), sum(bytes) FROM topics JOIN partitions USING (topic_id) "
                "GROUP BY topic_id ORDER BY name"
            )
            return [
                TopicInfo(name, partitions, rows, size, self._schema_of(topic_id, name))
                for topic_id, name, partitions, rows, size in found
            ]

    @steady
    def check_new_topic(self, name: str) -> None:
        """Raise if a topic exists whose name differs from this one in case only."""
        clash = self._read("SELECT name FROM topics WHERE folded = ? AND name <> ?", name.lower(), name)
        if clash:
            raise _case_clash(name, str(clash[0][0]))

    @steady
    def latest_schema(self, topic: str) -> pa.Schema | None:
        """A topic's columns, or None when there is no such topic."""
        with self._snapshot():
            found = self._rows("SELECT topic_id FROM topics WHERE name = ?", topic)
            return self._schema_of(found[0][0], topic) if found else None

    @steady
    def partitions(self, topic: str) -> dict[int, int]:
        """The rows of each partition, by its number."""
        return dict(
            self._read(
                "SELECT partition, rows FROM partitions JOIN topics USING (topic_id) WHERE name = ? ORDER BY partition",
                topic,
            )
        )

    @steady
    def segments(self, topic: str, partition: int) -> list[SegmentInfo]:
        """A partition's segments, in order."""
        found = self._read(
            "SELECT segment_id, file, first_offset, header_bytes, header_xxh3, published_bytes FROM segments "
            "JOIN topics USING (topic_id) WHERE name = ? AND partition = ? ORDER BY first_offset, segment_id",
            topic,
            partition,
        )
        return [self._segment(topic, partition, *row) for row in found]

    @steady
    def entries(self, topic: str, partition: int, start: int = 0, until: int | None = None) -> list[IndexEntry]:
        """The batches of a partition that hold rows of [start, until), in order and without a gap."""
        end = MAX_OFFSET if until is None else until
        with self._snapshot():  # every entry finds its segment
            found = self._rows(
                "SELECT b.first_offset, b.commit_id, epoch, entries FROM batches b JOIN topics USING (topic_id) "
                "JOIN commits USING (commit_id) WHERE name = ? AND partition = ? AND b.first_offset + b.rows > ? "
                "AND b.first_offset < ? ORDER BY b.first_offset",
                topic,
                partition,
                start,
                end,
            )
            listed = self._rows(
                "SELECT segment_id, file, first_offset, header_bytes, header_xxh3, published_bytes FROM segments "
                "JOIN topics USING (topic_id) WHERE name = ? AND partition = ?",
                topic,
                partition,
            )
            totals = self._rows(
                "SELECT rows FROM partitions JOIN topics USING (topic_id) WHERE name = ? AND partition = ?",
                topic,
                partition,
            )
        segments = {row[0]: self._segment(topic, partition, *row) for row in listed}
        try:
            entries = _unpack(segments, found)
        except (KeyError, TypeError, struct.error) as error:
            raise self._corrupt_index(topic, partition, "has a gap, or names a segment that is not listed") from error
        rows = totals[0][0] if totals else 0
        if start < min(end, rows):
            first, last = (entries[0].first_offset, entries[-1].until_offset) if entries else (rows, 0)
            if first > start or last < min(end, rows) or last > rows:
                raise self._corrupt_index(topic, partition, f"does not have the rows from offset {start} to {rows}")
        return [one for one in entries if one.until_offset > start and one.first_offset < end]

    # ── pipelines ──

    @steady
    def pipeline(self, name: str) -> PipelineState | None:
        """The last committed epoch of a pipeline, or None when it never committed one."""
        with self._snapshot():
            found = self._rows("SELECT * FROM pipelines WHERE name = ?", name)
            frames = self._rows("SELECT * FROM frames WHERE pipeline = ? ORDER BY frame", name)
        if not found:
            return None
        if not is_intact(found[0]):
            raise self._corrupt_pipeline(name, "its row does not have its checksum")
        _, graph_hash, state_hash, epoch, finished, commit_id, checkpoint, frames_xxh3, _ = found[0]
        if signed(xxh3_sum(frames)) != frames_xxh3:
            raise self._corrupt_pipeline(name, "its list of frames does not have its checksum")
        known = [
            Frame(number, owner, rows, file, position, length, xxh3 % 2**64)
            for _, number, owner, rows, file, position, length, xxh3 in frames
        ]
        checkpoint = json.loads(checkpoint)
        return PipelineState(name, graph_hash, state_hash, epoch, bool(finished), commit_id, checkpoint, known)

    @steady
    def data_version(self) -> int:
        """Changes whenever another connection, of this process or another one, has committed something."""
        with self._mutex, told(self.layout.catalog):
            return (self._openings << 32) + self._one("PRAGMA data_version")

    @steady
    def ledger(self, pipeline: str) -> dict[int, JsonObject]:
        """The ledger of each epoch of a pipeline, in order."""
        found = self._read("SELECT epoch, counts FROM ledger WHERE pipeline = ? ORDER BY epoch", pipeline)
        try:
            return {epoch: json.loads(counts) for epoch, counts in found}
        except ValueError as error:
            raise self._corrupt_pipeline(pipeline, f"its ledger is no JSON ({error})") from error

    # ── commits ──

    def commit(self, requests: Sequence[CommitRequest]) -> list[int | StoreError]:
        """Publish each request in one common transaction; a request that does not fit is left out, with its error.

        A StoreError means that nothing was published; any other error, that nobody can know.
        """
        with self._mutex:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                outcomes = self._commit_all(requests)
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, apsw.Error):
                    raise not_begun(self.layout, error) from error
                raise
            try:
                self._connection.execute("COMMIT")
            except BaseException as error:
                # What was written may or may not count. The next one to open the catalog decides that from the WAL, so
                # closing must not tidy it away.
                self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                if isinstance(error, apsw.FullError):
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise DoubtfulCommitError(self.layout.root) from error
                raise
            self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
            return outcomes

    def settle(self) -> None:
        """Leave no doubt about which commits there are; before anything is cut or removed by what the catalog says.

        The WAL may be what a process has left that could not sync its last commit. Then that commit may be found later,
        or a part of it is only in memory, and no later sync would help what is put behind it. So the WAL is copied into
        the database and emptied, if nobody else needs it, and a transaction is put where the doubtful one might be.
        """
        with self._mutex, told(self.layout.catalog):
            self._connection.set_busy_timeout(SETTLE_TIMEOUT_MS)
            try:
                with suppress(apsw.BusyError, apsw.LockedError):
                    self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            finally:
                self._connection.set_busy_timeout(BUSY_TIMEOUT_MS)
            list(self._connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}"))

    def _commit_all(self, requests: Sequence[CommitRequest]) -> list[int | StoreError]:
        if len(requests) == 1:
            return [self._publish(requests[0])]
        return [self._commit_one(request) for request in requests]

    def _commit_one(self, request: CommitRequest) -> int | StoreError:
        outcome: int | StoreError
        try:
            with self._connection:  # a savepoint: the other requests stand when this one falls
                outcome = self._publish(request)
        except StoreError as error:
            outcome = error
        return outcome

    def _publish(self, request: CommitRequest) -> int:
        epoch = request.epoch
        commit_id = self._one("SELECT coalesce(max(commit_id), 0) + 1 FROM commits")
        names = (None, None) if epoch is None else (epoch.pipeline, epoch.epoch)
        rows: list[Row] = [(commit_id, self._system.clock.wall_us(), *names)]
        rows += sorted(row for pending in request.pendings for row in self._publish_rows(pending, commit_id))
        if epoch is not None:
            rows.append(self._publish_epoch(epoch, commit_id))
        self._rows("INSERT INTO commits VALUES (?, ?, ?, ?, ?)", *rows[0], xxh3_of(*rows))
        return commit_id

    def _publish_rows(self, pending: Pending, commit_id: int) -> list[tuple[int, int, int, int, int, bytes]]:
        """List what a writer has prepared; its row of `batches`, or none when only the topic is made."""
        topic_id = self._topic_id(pending.topic)
        version = self._schema_version(topic_id, pending)
        self._advance(topic_id, pending)
        ids = {
            segment.name: self._one(
                "INSERT INTO segments (topic_id, partition, file, first_offset, schema_version, header_bytes, "
                "header_xxh3, published_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (topic_id, partition, file) "
                "DO UPDATE SET published_bytes = excluded.published_bytes RETURNING segment_id",
                topic_id,
                pending.partition,
                segment.name,
                segment.first_offset,
                version,
                segment.header_bytes,
                signed(segment.header_xxh3),
                segment.bytes,
            )
            for segment in pending.segments
        }
        if not pending.batches:
            return []
        entries = [
            ENTRY.pack(ids[one.segment], one.position, one.length, one.rows, one.xxh3) for one in pending.batches
        ]
        row = (topic_id, pending.partition, pending.first_offset, commit_id, pending.rows, b"".join(entries))
        self._rows("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", *row)
        return [row]

    def _topic_id(self, name: str) -> int:
        found = self._rows("SELECT topic_id, name FROM topics WHERE folded = ?", name.lower())
        if not found:
            topic_id = self._one("SELECT coalesce(max(topic_id), 0) + 1 FROM topics")
            self._rows("INSERT INTO topics VALUES (?, ?, ?, ?)", *sealed((topic_id, name, name.lower())))
            return topic_id
        if found[0][1] != name:
            raise _case_clash(name, found[0][1])
        return int(found[0][0])

    def _schema_version(self, topic_id: int, pending: Pending) -> int:
        version, latest = self._latest_schema(topic_id, pending.topic) or (0, None)
        if latest is not None and latest.equals(pending.schema):
            return version
        check_succeeds(pending.topic, latest, pending.schema)
        arrow = pending.schema.serialize().to_pybytes()
        self._rows("INSERT INTO schemas VALUES (?, ?, ?, ?)", *sealed((topic_id, version + 1, arrow)))
        return version + 1

    def _latest_schema(self, topic_id: int, topic: str) -> tuple[int, pa.Schema] | None:
        """The last version and its columns; None for a topic that is just being made."""
        found = self._rows("SELECT * FROM schemas WHERE topic_id = ? ORDER BY version DESC LIMIT 1", topic_id)
        if not found:
            return None
        _, version, arrow, _ = found[0]
        if not is_intact(found[0]):
            raise self._corrupt_topic(topic, f"version {version} of its columns does not have its checksum")
        return version, _schema(arrow)

    def _schema_of(self, topic_id: int, topic: str) -> pa.Schema:
        found = self._latest_schema(topic_id, topic)
        if found is None:
            raise self._corrupt_topic(topic, "its columns are not listed")
        return found[1]

    def _advance(self, topic_id: int, pending: Pending) -> None:
        """Count the rows in, if the partition still ends where the writer began."""
        key = (topic_id, pending.partition)
        self._rows("INSERT OR IGNORE INTO partitions VALUES (?, ?, 0, 0)", *key)
        rows = self._one("SELECT rows FROM partitions WHERE topic_id = ? AND partition = ?", *key)
        if rows != pending.first_offset:
            raise StoreError(
                f"partition {pending.partition} of topic `{pending.topic}` ends at offset {rows}, and the writer's "
                f"rows begin at {pending.first_offset}: somebody else wrote to it; nothing was published",
                code="DF0604",
                help="open a new writer: it starts from what is there",
            )
        self._rows(
            "UPDATE partitions SET rows = rows + ?, bytes = bytes + ? WHERE topic_id = ? AND partition = ?",
            pending.rows,
            pending.bytes,
            *key,
        )

    def _publish_epoch(self, epoch: EpochRecord, commit_id: int) -> Row:
        """Make it the pipeline's last one; the row of the ledger."""
        found = self._rows("SELECT epoch, frames_xxh3 FROM pipelines WHERE name = ?", epoch.pipeline)
        if found and found[0][0] >= epoch.epoch:
            raise StoreError(
                f"epoch {epoch.epoch} of pipeline `{epoch.pipeline}` comes after epoch {found[0][0]} was committed; "
                "nothing was published",
                code="DF0607",
                help="another run of this pipeline went on meanwhile: stop one of them",
            )
        row = (
            epoch.pipeline,
            epoch.graph_hash,
            epoch.state_hash,
            epoch.epoch,
            int(epoch.finished),
            commit_id,
            _json(epoch.checkpoint),
            self._change_frames(epoch, found[0][1] if found else 0),
        )
        self._rows("INSERT OR REPLACE INTO pipelines VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *sealed(row))
        counts = (epoch.pipeline, epoch.epoch, commit_id, _json(epoch.ledger).encode())
        self._rows("INSERT INTO ledger VALUES (?, ?, ?, ?)", *counts)
        return counts

    def _change_frames(self, epoch: EpochRecord, xxh3: int) -> int:
        """List what an epoch adds, drop what it drops; the sum of checksums, which was `xxh3` before."""
        dropped = [(epoch.pipeline, number) for number in epoch.dropped]
        sql = "DELETE FROM frames WHERE pipeline = ? AND frame = ? RETURNING *"
        xxh3 -= xxh3_sum(list(self._connection.executemany(sql, dropped)))
        added = [
            (epoch.pipeline, f.number, f.owner, f.rows, f.file, f.position, f.length, signed(f.xxh3))
            for f in epoch.added
        ]
        self._connection.executemany("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?, ?, ?)", added)
        return signed(xxh3 + xxh3_sum(added))

    # ── SQL ──

    def _read(self, sql: str, *values: Value) -> list[tuple]:  # type: ignore[type-arg]
        with self._mutex, told(self.layout.catalog):
            return self._rows(sql, *values)

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """What is read inside belongs together, though others commit meanwhile."""
        with self._mutex, told(self.layout.catalog):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def _rows(self, sql: str, *values: Value) -> list[tuple]:  # type: ignore[type-arg]
        return list(self._connection.execute(sql, values))

    def _one(self, sql: str, *values: Value) -> int:
        return int(self._rows(sql, *values)[0][0])

    def _segment(
        self,
        topic: str,
        partition: int,
        segment_id: int,
        file: str,
        first_offset: int,
        header_bytes: int,
        header_xxh3: int,
        published_bytes: int,
    ) -> SegmentInfo:
        path = os.path.join("topics", topic, str(partition), file)
        xxh3 = header_xxh3 % 2**64
        return SegmentInfo(segment_id, topic, partition, path, first_offset, header_bytes, xxh3, published_bytes)

    def _read_store_id(self) -> str:
        found = self._rows("SELECT * FROM meta")
        known = {row[0]: row[1] for row in found if is_intact(row)}
        if len(known) < len(found) or "store_id" not in known:
            what = "what it says of the store itself does not have its checksum"
            raise CorruptCatalogError(
                self.layout.catalog, what, "the store cannot be opened", "make it anew with its pipelines"
            )
        return str(known["store_id"])

    def _corrupt_pipeline(self, name: str, what: str) -> CorruptCatalogError:
        consequence, remedy = "it cannot go on from there", "run the pipeline from the start into a new store"
        return CorruptCatalogError(self.layout.catalog, f"pipeline `{name}`: {what}", consequence, remedy)

    def _corrupt_topic(self, topic: str, what: str) -> CorruptCatalogError:
        consequence = "its rows cannot be trusted"
        remedy = "rebuild the topic by running its pipeline into a new store"
        return CorruptCatalogError(self.layout.catalog, f"topic `{topic}`: {what}", consequence, remedy)

    def _corrupt_index(self, topic: str, partition: int, what: str) -> CorruptCatalogError:
        return self._corrupt_topic(topic, f"its list of batches (partition {partition}) {what}")

    def _check_version(self) -> None:
        application, version = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        if application != APPLICATION_ID:
            raise StoreError(
                f"{self.layout.catalog} is not the catalog of a store; nothing was changed", help="name another path"
            )
        if version != FORMAT_VERSION:
            raise StoreError(
                f"the store {self.layout.root} has format version {version}, and this program knows version "
                f"{FORMAT_VERSION}; nothing was changed",
                code="DF0606",
                help="use the version of dataflow that wrote it",
            )


def _unpack(segments: dict[int, SegmentInfo], rows: list[tuple[int, int, int | None, bytes]]) -> list[IndexEntry]:
    """The entries of rows of `batches` that follow each other; KeyError or struct.error when they do not."""
    unpacked, expected = [], rows[0][0] if rows else 0
    for offset, commit_id, epoch, entries in rows:
        if offset != expected:
            raise KeyError(expected)
        for segment_id, position, length, count, xxh3 in ENTRY.iter_unpack(entries):
            unpacked.append(IndexEntry(segments[segment_id], position, length, count, xxh3, offset, commit_id, epoch))
            offset += count
        expected = offset
    return unpacked


def check_succeeds(topic: str, latest: pa.Schema | None, schema: pa.Schema) -> None:
    """Raise unless `schema` may follow `latest`: all its columns with the same types, and perhaps more."""
    for old in latest or ():
        position = schema.get_field_index(old.name)
        if position < 0 or not schema.field(position).type.equals(old.type):
            found = "lacks it" if position < 0 else f"has it as {schema.field(position).type}"
            raise StoreError(
                f"column `{old.name}` of topic `{topic}` is {old.type}, and the new schema {found}; "
                "nothing was written",
                code="DF0605",
                help="columns may be added to a topic, not changed or left out: cast it, or write to another topic",
            )


def _case_clash(name: str, existing: str) -> StoreError:
    return StoreError(
        f"a topic cannot be named `{name}`, since there is `{existing}`: they differ in case only; nothing was written",
        code="DF0203",
        help=f"write to `{existing}`, or take another name",
    )


def _schema(arrow: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(arrow))


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(dict(value), separators=(",", ":"), allow_nan=False)

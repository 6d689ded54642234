"""The independent verifier: whether a store is what FORMAT.md says, read by someone who has only that page.

It shares no code with what writes, reads and recovers stores: a mistake that both made would not be seen. So it opens
files by itself (the seam of `dataflow.system` is not for it), and a test holds its imports to the standard library,
pyarrow, xxhash and apsw.

The hard part is to trust nothing. Every number of the catalog is held against another one or against a file before
it is used; Arrow decodes a message only after its checksum agreed and its frame was found sound; and what is wrong
becomes a `Finding`, whatever it is: `verify` raises nothing for a damaged store. A store may be written meanwhile: the
catalog is looked at in a copy of one moment, published bytes never change, and only the frames of a checkpoint may be
gone by the time they are read, which is why they come first and are tried again with a newer catalog.

>>> verify(Path("no such store")).ok
False
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from struct import iter_unpack
from typing import Literal, TypeAlias

import pyarrow as pa

from dataflow.errors import StoreError
from dataflow.state.verify_catalog import CATALOG, CatalogBroken, Row, Snapshot
from dataflow.state.verify_files import (
    RECORD_BATCH_MESSAGE,
    SCHEMA_MESSAGE,
    File,
    Finding,
    StoreFiles,
    Unreadable,
    message_frame,
)
from dataflow.state.verify_layout import lower, quoted, unexpected

__all__ = ["Finding", "Report", "commits", "rows", "verify"]

SEGMENT_BYTES_FULL = 268_435_456
"""No batch begins at or beyond it."""
ENTRY_BYTES = 40
FRAMES_TRIED_MAX = 100
"""Catalogs whose frames were removed by a newer checkpoint before they could be read."""
COUNTS = ("passed", "filtered", "late", "dead", "folded", "held")
COUNTS_BESIDE = ("rows_in", "produced")
TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
SEGMENT_NAME = re.compile(r"([0-9]{20})-(0|[1-9][0-9]*)\.arrow")
FRAMES_NAME = re.compile(r"(0|[1-9][0-9]*)\.state")
STORE_ID = re.compile(r"[0-9a-f]{32}")
UNSIGNED_64 = 2**64
ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, NotImplementedError, MemoryError)
"""What pyarrow raises for bytes that it cannot make sense of."""

Taker: TypeAlias = Callable[[int, pa.RecordBatch], None]
"""Gets the partition and a batch that was found to be what was written."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found, and how much there was to look at."""

    findings: tuple[Finding, ...]
    topics: int = 0
    partitions: int = 0
    segments: int = 0
    batches: int = 0
    """Record batch messages."""
    rows: int = 0
    bytes: int = 0
    """Of all record batch messages."""
    commits: int = 0
    pipelines: int = 0
    frames: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged; there may be warnings."""
        return not any(finding.kind == "damage" for finding in self.findings)


def verify(path: Path | str) -> Report:
    """Check a whole store, and change nothing in it."""
    check = _Check()
    with ExitStack() as stack:
        try:
            files = StoreFiles(Path(path))
            stack.callback(files.close)
            check.files = files
            for finding in unexpected(files):
                check.findings.append(finding)
            snapshot = check.open_with_frames(stack)
            check.whole(snapshot)
        except Unreadable as error:
            check.damage(".", str(error))
        except CatalogBroken as error:
            check.damage(CATALOG, f"{error}; what else the store holds cannot be checked without it")
    return check.report()


def rows(path: Path | str, topic: str, partition: int | None = None) -> pa.Table:
    """The published rows of a topic, read by FORMAT.md alone: partition after partition, in the topic's last schema.

    StoreError when any of them is not as it was written.
    """
    with _opened(path) as (check, snapshot):
        found = list(snapshot.query("SELECT topic_id FROM topics WHERE name = ?", (topic,)))
        if not found:
            raise StoreError(f"the store has no topic {topic!r}", help="`dataflow log ls` lists the topics")
        batches: list[pa.RecordBatch] = []

        def take(of: int, batch: pa.RecordBatch) -> None:
            if partition in (None, of):
                batches.append(batch)

        check.read_catalog(snapshot)
        topic_id = found[0][0]
        assert isinstance(topic_id, int)
        check.topic(snapshot, topic_id, take)
        check.must_be_ok()
        schema = check.schemas[topic_id][-1]
        return pa.Table.from_batches([_widened(batch, schema) for batch in batches], schema)


def commits(path: Path | str) -> list[tuple[int, str | None, int | None, dict[tuple[str, int], tuple[int, int]]]]:
    """Each commit in the order in which it became visible: its id, pipeline, epoch, and first offset and rows
    by topic and partition."""
    with _opened(path) as (_, snapshot):
        by_id: dict[int, dict[tuple[str, int], tuple[int, int]]] = {}
        listed = []
        for commit_id, pipeline, epoch in snapshot.query("SELECT commit_id, pipeline, epoch FROM commits ORDER BY 1"):
            assert isinstance(commit_id, int)
            by_id[commit_id] = {}
            listed.append((commit_id, _text(pipeline), _integer(epoch), by_id[commit_id]))
        sql = (
            "SELECT commit_id, name, partition, first_offset, rows FROM batches JOIN topics USING (topic_id)"
            " ORDER BY topic_id, partition, first_offset"
        )
        for row in snapshot.query(sql):
            commit_id, name, partition, first_offset, count = row
            assert isinstance(commit_id, int) and isinstance(name, str) and isinstance(partition, int)
            assert isinstance(first_offset, int) and isinstance(count, int)
            if commit_id not in by_id:
                raise StoreError(f"catalog.db names a commit {commit_id} that it does not list", code="DF0603")
            by_id[commit_id][name, partition] = (first_offset, count)
        return listed


@contextmanager
def _opened(path: Path | str) -> Iterator[tuple[_Check, Snapshot]]:
    """A store's catalog, for those who read it and want an exception when it is damaged."""
    check = _Check()
    try:
        with ExitStack() as stack:
            check.files = StoreFiles(Path(path))
            stack.callback(check.files.close)
            snapshot = Snapshot(check.files)
            stack.callback(snapshot.close)
            snapshot.check_structure()
            yield check, snapshot
    except (Unreadable, CatalogBroken) as error:
        raise StoreError(f"{path}: {error}", code="DF0603", help=_HELP) from None


_HELP = "nothing was changed; `dataflow log verify` tells all that is damaged"


@dataclass(frozen=True)
class _Segment:
    """A row of `segments`."""

    segment_id: int
    file: str
    first_offset: int
    schema_version: int
    header_bytes: int
    header_xxh3: int
    published_bytes: int


@dataclass
class _Check:
    """One run of the verifier: what it knows of the catalog so far, what it counted, what it found."""

    findings: list[Finding] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    store_id: str = ""
    names: dict[int, str] = field(default_factory=dict)
    schemas: dict[int, list[pa.Schema]] = field(default_factory=dict)
    """By topic id; version 1 first."""
    files: StoreFiles = field(init=False)

    def damage(self, file: str, what: str, **where: int | str | None) -> None:
        self._found("damage", file, what, where)

    def warn(self, file: str, what: str, **where: int | str | None) -> None:
        self._found("warning", file, what, where)

    def _found(
        self, kind: Literal["damage", "warning"], file: str, what: str, where: dict[str, int | str | None]
    ) -> None:
        self.findings.append(Finding(kind=kind, file=file, what=what, **where))  # type: ignore[arg-type] # few keys

    def must_be_ok(self) -> None:
        """StoreError with the first damage."""
        first = next((finding for finding in self.findings if finding.kind == "damage"), None)
        if first is not None:
            at = "" if first.position is None else f" at byte {first.position}"
            raise StoreError(f"{first.file}{at}: {first.what}", code="DF0603", help=_HELP)

    def report(self) -> Report:
        order = {"damage": 0, "warning": 1}
        return Report(findings=tuple(sorted(self.findings, key=lambda one: order[one.kind])), **self.counted)

    # ── the catalog ──

    def open_with_frames(self, stack: ExitStack) -> Snapshot:
        """A snapshot whose frames were checked before a newer checkpoint could remove them."""
        for attempt in range(1, FRAMES_TRIED_MAX + 1):
            snapshot = Snapshot(self.files)
            with ExitStack() as closing:
                closing.callback(snapshot.close)
                snapshot.check_structure()
                found, counted = len(self.findings), self.counted.copy()
                self.pipelines(snapshot)
                if len(self.findings) == found or snapshot.is_current() or attempt == FRAMES_TRIED_MAX:
                    self.findings += snapshot.findings
                    stack.push(closing.pop_all())
                    return snapshot
                del self.findings[found:]
                self.counted = counted
        raise AssertionError

    def whole(self, snapshot: Snapshot) -> None:
        """Everything but the frames, which are checked."""
        self.read_catalog(snapshot)
        for table in ("schemas", "partitions", "segments", "batches"):
            sql = f"SELECT DISTINCT topic_id FROM {table} WHERE topic_id NOT IN (SELECT topic_id FROM topics)"
            for row in snapshot.query(sql):
                self.damage(CATALOG, f"{table} has rows of a topic {row[0]} that is not listed")
        self.commits(snapshot)
        for topic_id in self.names:
            self.counted["topics"] += 1
            self.topic(snapshot, topic_id)

    def read_catalog(self, snapshot: Snapshot) -> None:
        """What the topics are called, and their columns."""
        self._read_meta(snapshot)
        for topic_id, name, folded in snapshot.query("SELECT topic_id, name, folded FROM topics ORDER BY topic_id"):
            assert isinstance(topic_id, int) and isinstance(name, str) and isinstance(folded, str)
            self.names[topic_id] = name
            if not TOPIC_NAME.fullmatch(name) or name in (".", ".."):
                self.damage(CATALOG, f"{name!r} is no name of a topic", topic=name)
            if folded != lower(name):
                self.damage(CATALOG, f"topic {name!r} is folded to {folded!r}", topic=name)
        for topic_id in self.names:
            self.schemas[topic_id] = []
            self._read_schemas(snapshot, topic_id)

    def _read_meta(self, snapshot: Snapshot) -> None:
        meta = {row[0]: row[1] for row in snapshot.query("SELECT key, value FROM meta")}
        store_id, created_us = meta.pop("store_id", None), meta.pop("created_us", None)
        self.store_id = str(store_id)
        if not isinstance(store_id, str) or not STORE_ID.fullmatch(store_id):
            self.damage(CATALOG, f"meta.store_id is {store_id!r}, not 32 hex digits")
        if not isinstance(created_us, str) or not re.fullmatch(r"-?(0|[1-9][0-9]{0,18})", created_us):
            self.damage(CATALOG, f"meta.created_us is {created_us!r}, not a time")
        if meta:
            self.damage(CATALOG, f"meta has keys that the format does not know: {', '.join(map(repr, meta))}")

    def _read_schemas(self, snapshot: Snapshot, topic_id: int) -> None:
        name, schemas = self.names[topic_id], self.schemas[topic_id]
        sql = "SELECT version, arrow FROM schemas WHERE topic_id = ? ORDER BY version"
        for number, (version, arrow) in enumerate(snapshot.query(sql, (topic_id,)), start=1):
            assert isinstance(arrow, bytes)
            if version != number:
                self.damage(CATALOG, f"schema version {number} is not listed, {version} is", topic=name)
                return
            try:
                schema = _schema(arrow, len(arrow))
            except Unreadable as error:
                self.damage(CATALOG, f"schema version {version}: {error}", topic=name)
                return
            if schema.metadata:
                self.damage(CATALOG, f"schema version {version} has metadata", topic=name)
                schema = schema.remove_metadata()
            for wrong in _wrong_change(schemas[-1], schema) if schemas else ():
                self.damage(CATALOG, f"schema version {version}: {wrong}", topic=name)
            schemas.append(schema)
        if not schemas:
            self.damage(CATALOG, "no schema is listed", topic=name)

    def commits(self, snapshot: Snapshot) -> None:
        """Ids, epochs, and that pipelines, ledger and batches name commits that there are."""
        last: dict[str, tuple[int, int]] = {}
        sql = "SELECT commit_id, pipeline, epoch FROM commits ORDER BY commit_id"
        expected = 1
        for commit_id, pipeline, epoch in snapshot.query(sql):
            assert isinstance(commit_id, int)
            self.counted["commits"] += 1
            if commit_id != expected:
                self.damage(CATALOG, f"commit {commit_id} is listed where commit {expected} should be")
            expected = commit_id + 1
            if not isinstance(pipeline, str) or not isinstance(epoch, int):
                if (pipeline, epoch) != (None, None):
                    self.damage(CATALOG, f"commit {commit_id} has a pipeline or an epoch, not both")
                continue
            before = last.get(pipeline)
            if epoch < 0 or (before is not None and epoch <= before[0]):
                self.damage(
                    CATALOG, f"epoch {epoch} of {pipeline!r} comes after epoch {before and before[0]}", epoch=epoch
                )
            last[pipeline] = epoch, commit_id
        self._last_epochs(snapshot, last)
        self._no_lost_rows(snapshot)
        self._ledger(snapshot)

    def _last_epochs(self, snapshot: Snapshot, last: dict[str, tuple[int, int]]) -> None:
        for name, epoch, commit_id in snapshot.query("SELECT name, epoch, commit_id FROM pipelines"):
            found = last.pop(str(name), None)
            if found != (epoch, commit_id):
                what = f"pipeline {name!r} is at epoch {epoch} by commit {commit_id}, but its last commit is {found}"
                self.damage(CATALOG, what, epoch=_integer(epoch))
        for name, (epoch, commit_id) in last.items():
            self.damage(CATALOG, f"commit {commit_id} is of a pipeline {name!r} that is not listed", epoch=epoch)

    def _no_lost_rows(self, snapshot: Snapshot) -> None:
        sql = "SELECT commit_id FROM commits WHERE pipeline IS NULL EXCEPT SELECT commit_id FROM batches"
        for row in snapshot.query(sql):
            self.damage(CATALOG, f"commit {row[0]} is of no pipeline, and no rows belong to it")

    # ── pipelines: checkpoints, frames, ledger ──

    def pipelines(self, snapshot: Snapshot) -> None:
        """Checkpoints and their frames."""
        for name, finished, checkpoint in snapshot.query("SELECT name, finished, checkpoint FROM pipelines"):
            assert isinstance(name, str) and isinstance(checkpoint, str)
            self.counted["pipelines"] += 1
            if finished not in (0, 1):
                self.damage(CATALOG, f"pipelines.finished of {name!r} is {finished}")
            named = Counter(self._frames_of(name, checkpoint))
            sql = "SELECT frame, file, position, length, xxh3 FROM frames WHERE pipeline = ? ORDER BY file, position"
            listed = list(snapshot.query(sql, (name,)))
            if named != Counter(row[0] for row in listed):
                what = f"the checkpoint of {name!r} names the frames {_short(sorted(named.elements()))}"
                self.damage(CATALOG, f"{what}, the catalog lists {_short(sorted(str(row[0]) for row in listed))}")
            self._frames(name, listed)
        for row in snapshot.query("SELECT DISTINCT pipeline FROM frames EXCEPT SELECT name FROM pipelines"):
            self.damage(CATALOG, f"frames are listed of a pipeline {row[0]!r} that is not")

    def _frames_of(self, name: str, checkpoint: str) -> Iterator[int]:
        """The frames that a checkpoint names; whatever is wrong with it is told."""
        try:
            yield from _frames_named(_json(checkpoint))
        except _WrongJson as error:
            self.damage(CATALOG, f"the checkpoint of {name!r}: {error}")

    def _frames(self, pipeline: str, listed: list[Row]) -> None:
        ends: dict[str, int] = {}
        for frame, name, position, length, xxh3 in listed:
            assert isinstance(frame, int) and isinstance(name, str) and isinstance(position, int)
            assert isinstance(length, int) and isinstance(xxh3, int)
            self.counted["frames"] += 1
            shown = f"snapshots/{quoted(pipeline)}/{name}"
            try:
                if not FRAMES_NAME.fullmatch(name):
                    raise Unreadable(f"{name!r} is no name of a file of frames")
                if position < 0 or length < 1:
                    raise Unreadable(f"a frame cannot have {length} bytes at {position}")
                if position < ends.get(name, 0):
                    raise Unreadable("the frame overlaps the one before it")
                ends[name] = position + length
                with self.files.file("snapshots", quoted(pipeline), name) as file:
                    _check_frame(file.checked(position, length, xxh3 % UNSIGNED_64))
            except Unreadable as error:
                self.damage(shown, f"frame {frame} of {pipeline!r}: {error}", position=position)

    def _ledger(self, snapshot: Snapshot) -> None:
        sql = (
            "SELECT ledger.pipeline, ledger.epoch, ledger.commit_id, counts, commits.commit_id FROM ledger LEFT JOIN"
            " commits ON commits.commit_id = ledger.commit_id AND commits.pipeline = ledger.pipeline"
            " AND commits.epoch = ledger.epoch"
        )
        for pipeline, epoch, commit_id, counts, found in snapshot.query(sql):
            assert isinstance(counts, bytes)
            if found is None:
                what = f"the ledger has epoch {epoch} of {pipeline!r} by commit {commit_id}, which is not that epoch's"
                self.damage(CATALOG, what, epoch=_integer(epoch))
            try:
                for wrong in _wrong_counts(_json(counts)):
                    self.damage(CATALOG, f"the ledger of {pipeline!r}: {wrong}", epoch=_integer(epoch))
            except _WrongJson as error:
                self.damage(CATALOG, f"the ledger of {pipeline!r}: {error}", epoch=_integer(epoch))
        sql = "SELECT pipeline, epoch FROM commits WHERE pipeline IS NOT NULL EXCEPT SELECT pipeline, epoch FROM ledger"
        for pipeline, epoch in snapshot.query(sql):
            self.damage(CATALOG, f"the ledger has no row of epoch {epoch} of {pipeline!r}", epoch=_integer(epoch))

    # ── topics ──

    def topic(self, snapshot: Snapshot, topic_id: int, take: Taker | None = None) -> None:
        """All partitions of a topic; a batch that is what was written goes to `take`."""
        sql = "SELECT partition, rows, bytes FROM partitions WHERE topic_id = ? ORDER BY partition"
        totals = {row[0]: row[1:] for row in snapshot.query(sql, (topic_id,))}
        for table in ("segments", "batches"):
            sql = f"SELECT DISTINCT partition FROM {table} WHERE topic_id = ?"
            for row in snapshot.query(sql, (topic_id,)):
                if row[0] not in totals:
                    what = f"{table} has rows of a partition {row[0]} that is not listed"
                    self.damage(CATALOG, what, topic=self.names[topic_id])
                    totals[row[0]] = (None, None)
        for partition, (count, size) in totals.items():
            assert isinstance(partition, int)
            self.counted["partitions"] += 1
            with _Partition(self, topic_id, partition, _segments(snapshot, topic_id, partition), take) as checked:
                for row in _batches(snapshot, topic_id, partition):
                    checked.commit(*row)
                checked.finish(count, size)


def _segments(snapshot: Snapshot, topic_id: int, partition: int) -> list[_Segment]:
    sql = (
        "SELECT segment_id, file, first_offset, schema_version, header_bytes, header_xxh3, published_bytes"
        " FROM segments WHERE topic_id = ? AND partition = ? ORDER BY first_offset"
    )
    return [_Segment(*row) for row in snapshot.query(sql, (topic_id, partition))]  # type: ignore[arg-type] # STRICT


def _batches(
    snapshot: Snapshot, topic_id: int, partition: int
) -> Iterator[tuple[int, int, int, bytes, int | None, bool]]:
    sql = (
        "SELECT first_offset, batches.commit_id, rows, entries, epoch, commits.commit_id IS NOT NULL FROM batches"
        " LEFT JOIN commits USING (commit_id) WHERE topic_id = ? AND partition = ? ORDER BY first_offset"
    )
    return snapshot.query(sql, (topic_id, partition))  # type: ignore[return-value] # STRICT


class _Partition:
    """Walks the commits of a partition in the order of offsets, and its segments with them."""

    def __init__(
        self, check: _Check, topic_id: int, partition: int, segments: list[_Segment], take: Taker | None
    ) -> None:
        self._check = check
        self._topic = check.names[topic_id]
        self._schemas = check.schemas[topic_id]
        self._partition = partition
        self._segments = {segment.segment_id: segment for segment in segments}
        self._take = take
        self._offset = self._bytes = self._last_commit = 0
        self._ends: dict[int, int] = {}
        """Where the next entry of a segment begins."""
        self._current: int | None = None
        self._file: File | None = None
        self._schema: pa.Schema | None = None
        if partition < 0:
            check.damage(CATALOG, f"{partition} is no number of a partition", topic=self._topic)
        self._check_names(segments)

    def __enter__(self) -> _Partition:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def commit(self, first: int, commit_id: int, rows: int, entries: bytes, epoch: int | None, known: bool) -> None:
        """One row of `batches`."""
        where = self._where(first, epoch)
        if not known:
            self._check.damage(CATALOG, f"rows belong to a commit {commit_id} that is not listed", **where)
        if commit_id <= self._last_commit:
            self._check.damage(CATALOG, f"rows of commit {commit_id} come after those of {self._last_commit}", **where)
        if first != self._offset:
            self._check.damage(CATALOG, f"rows begin at offset {first}, those before end at {self._offset}", **where)
        self._last_commit, self._offset = commit_id, first
        if not entries or len(entries) % ENTRY_BYTES:
            self._check.damage(CATALOG, f"batches.entries has {len(entries)} bytes, no multiple of 40", **where)
        else:
            for segment_id, position, length, count, xxh3 in iter_unpack("<5Q", entries):
                self._entry(segment_id, position, length, count, xxh3, epoch)
        if self._offset != first + rows:
            self._check.damage(CATALOG, f"batches.rows is {rows}, its entries have {self._offset - first}", **where)
            self._offset = first + rows

    def finish(self, rows: object, size: object) -> None:
        """The totals of the partition, and that each segment is full to its published length."""
        where = self._where(None, None)
        if rows is not None and (rows, size) != (self._offset, self._bytes):
            what = f"partitions says {rows} rows in {size} bytes, the batches are {self._offset} in {self._bytes}"
            self._check.damage(CATALOG, what, **where)
        self._check.counted["rows"] += self._offset
        self._check.counted["bytes"] += self._bytes
        for segment in self._segments.values():
            self._check.counted["segments"] += 1
            end = self._ends.get(segment.segment_id)
            if end is None:
                self._check.damage(self._path(segment), "the catalog lists the segment, but no batch in it", **where)
            elif end != segment.published_bytes:
                what = f"the batches end at {end}, the published length is {segment.published_bytes}"
                self._check.damage(self._path(segment), what, position=min(end, segment.published_bytes), **where)
        self._look_for_strangers()

    def _look_for_strangers(self) -> None:
        """Segments that no recovery would take for a torn tail, since published rows lie where they claim to begin."""
        listed = {segment.file for segment in self._segments.values()}
        folder = ("topics", self._topic, str(self._partition))
        try:
            names = [entry.name for entry in self._check.files.entries(*folder) if entry.name not in listed]
        except Unreadable:
            return  # no segment could be opened either
        for name in names:
            named = SEGMENT_NAME.fullmatch(name)
            if named is not None and int(named[1]) < self._offset:
                what = "is a segment that the catalog does not list, and is left alone"
                self._check.warn("/".join((*folder, name)), what, **self._where(int(named[1]), None))

    def _entry(self, segment_id: int, position: int, length: int, rows: int, xxh3: int, epoch: int | None) -> None:
        offset = self._offset
        where = self._where(offset, epoch)
        self._check.counted["batches"] += 1
        self._offset += rows
        self._bytes += length
        segment = self._segments.get(segment_id)
        if segment is None:
            self._check.damage(CATALOG, f"a batch is in a segment {segment_id} that is not listed here", **where)
            return
        path = self._path(segment)
        if segment_id != self._current:
            self._begin(segment, offset, where)
        expected = self._ends[segment_id]
        self._ends[segment_id] = max(expected, position + length)
        if position != expected:
            self._check.damage(
                path, f"the next batch begins at {position}, not at {expected}", position=expected, **where
            )
        if rows == 0 or position + length > segment.published_bytes:
            what = f"a batch of {rows} rows, {length} bytes at {position}, in {segment.published_bytes} published bytes"
            self._check.damage(path, what, position=position, **where)
            return
        if position >= SEGMENT_BYTES_FULL:
            self._check.warn(path, "a batch was added to a segment that was full", position=position, **where)
        # What overlaps is not read: the work stays in proportion to the file.
        if self._file is None or position < expected:
            return
        try:
            content = self._file.checked(position, length, xxh3)
            batch = _decoded(content, self._schema, rows)
        except Unreadable as error:
            self._check.damage(path, str(error), position=position, **where)
            return
        if self._take is not None and batch is not None:
            self._take(self._partition, batch)

    def _begin(self, segment: _Segment, offset: int, where: dict[str, int | str | None]) -> None:
        """Open a segment when its first entry comes, and check its schema message."""
        path = self._path(segment)
        self._close()
        self._current = segment.segment_id
        if segment.segment_id in self._ends:
            self._check.damage(path, "the segment goes on after a later one began", **where)
        elif offset != segment.first_offset:
            what = f"its first batch has offset {offset}, the catalog says {segment.first_offset}"
            self._check.damage(path, what, **where)
        self._ends.setdefault(segment.segment_id, segment.header_bytes)
        try:
            self._file = self._check.files.opened("topics", self._topic, str(self._partition), segment.file)
            if self._file.size < segment.published_bytes:
                what = f"the file has {self._file.size} bytes, {segment.published_bytes} are published"
                self._check.damage(path, what, position=self._file.size, **where)
            self._schema = self._checked_schema(segment)
        except Unreadable as error:
            self._check.damage(path, str(error), position=0, **where)

    def _checked_schema(self, segment: _Segment) -> pa.Schema | None:
        assert self._file is not None
        if not 0 < segment.header_bytes <= segment.published_bytes:
            raise Unreadable(f"a schema message of {segment.header_bytes} bytes in {segment.published_bytes} published")
        header = self._file.checked(0, segment.header_bytes, segment.header_xxh3 % UNSIGNED_64)
        schema = _schema(header, segment.header_bytes)
        metadata = {
            b"dataflow.store": self._check.store_id.encode(),
            b"dataflow.topic": self._topic.encode(),
            b"dataflow.partition": str(self._partition).encode(),
            b"dataflow.first_offset": str(segment.first_offset).encode(),
        }
        if schema.metadata != metadata:
            wrong = {key: (schema.metadata or {}).get(key) for key in metadata} | (schema.metadata or {})
            told = ", ".join(f"{key!r}: {value!r}" for key, value in wrong.items() if metadata.get(key) != value)
            raise Unreadable(f"its schema message is of another place: {told}")
        if not 1 <= segment.schema_version <= len(self._schemas):
            raise Unreadable(f"the topic has no schema version {segment.schema_version}")
        plain = schema.remove_metadata()
        if not plain.equals(self._schemas[segment.schema_version - 1], check_metadata=True):
            raise Unreadable(f"its columns are not those of schema version {segment.schema_version}")
        return plain

    def _check_names(self, segments: list[_Segment]) -> None:
        numbers = []
        for segment in segments:
            named = SEGMENT_NAME.fullmatch(segment.file)
            if named is None or int(named[1]) != segment.first_offset:
                what = f"{segment.file!r} is no name of a segment from offset {segment.first_offset}"
                self._check.damage(CATALOG, what, **self._where(segment.first_offset, None))
            else:
                numbers.append(int(named[2]))
        if any(earlier >= later for earlier, later in pairwise(numbers)):
            self._check.damage(
                CATALOG, f"the segments' numbers do not ascend: {_short(numbers)}", **self._where(None, None)
            )

    def _where(self, offset: int | None, epoch: int | None) -> dict[str, int | str | None]:
        return {"topic": self._topic, "partition": self._partition, "offset": offset, "epoch": epoch}

    def _path(self, segment: _Segment) -> str:
        return f"topics/{self._topic}/{self._partition}/{segment.file}"

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._schema = None


# ── Arrow: only bytes whose checksum agreed come here ────────────────────────────────────────────────────


def _schema(content: bytes, length: int) -> pa.Schema:
    """The schema of a message that fills the bytes exactly."""
    frame = message_frame(content)
    if frame.kind != SCHEMA_MESSAGE or frame.length != length:
        raise Unreadable("these bytes are not one schema message")
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(content))
        encoded = [column.name for column in schema if _has_dictionary(column)]
    except ARROW_ERRORS as error:
        raise Unreadable(f"Arrow cannot read the schema: {error}") from None
    if encoded:
        raise Unreadable(f"columns are dictionary-encoded: {', '.join(encoded)}")
    return schema


def _has_dictionary(column: pa.Field) -> bool:
    type = column.type
    _ = column.name, getattr(type, "tz", None)  # what is no UTF-8 shows itself here, as a ValueError
    inner = [_has_dictionary(type.field(number)) for number in range(type.num_fields)]
    return pa.types.is_dictionary(type) or any(inner)


def _decoded(content: bytes, schema: pa.Schema | None, rows: int) -> pa.RecordBatch | None:
    """The batch of a message that fills the bytes exactly; None where the schema is not known."""
    frame = message_frame(content)
    if frame.kind != RECORD_BATCH_MESSAGE or frame.length != len(content):
        raise Unreadable("these bytes are not one record batch message")
    if frame.codec is not None:
        raise Unreadable(f"the buffers are compressed ({frame.codec})")
    if frame.rows != rows:
        raise Unreadable(f"the message has {frame.rows} rows, the catalog says {rows}")
    if schema is None:
        return None
    try:
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(content)), schema)
        batch.validate(full=True)
    except ARROW_ERRORS as error:
        raise Unreadable(f"does not decode: {error}") from None
    for column, values in zip(schema, batch.columns, strict=True):
        if not column.nullable and values.null_count:
            raise Unreadable(f"column {column.name!r} has nulls, which its schema rules out")
    return batch


def _check_frame(content: bytes) -> None:
    """A frame is one Arrow stream: schema, batches (LZ4 or plain), end marker, and nothing after it."""
    first = message_frame(content)
    schema = _schema(content[: first.length], first.length)
    position = first.length
    while len(content) - position > 8:
        message = message_frame(content, position)
        if message.kind != RECORD_BATCH_MESSAGE:
            raise Unreadable("the frame has a message that is no record batch")
        if message.codec not in (None, "LZ4"):
            raise Unreadable(f"the buffers are compressed ({message.codec})")
        try:
            whole = pa.py_buffer(content[position : position + message.length])
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(whole), schema)
            batch.validate(full=True)
        except ARROW_ERRORS as error:
            raise Unreadable(f"does not decode: {error}") from None
        position += message.length
    if content[position:] != b"\xff\xff\xff\xff\0\0\0\0":
        raise Unreadable("the frame does not end with the end-of-stream marker")


def _wrong_change(earlier: pa.Schema, later: pa.Schema) -> Iterator[str]:
    for column in earlier:
        found = later.get_all_field_indices(column.name)
        if not found:
            yield f"column {column.name!r} is gone"
        elif all(later.field(number).type != column.type for number in found):
            yield f"column {column.name!r} was {column.type} and is {later.field(found[0]).type}"


def _widened(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch of an earlier schema version in a later one: columns that it does not have are null."""
    if batch.schema.equals(schema):
        return batch
    columns = [
        pa.nulls(batch.num_rows, column.type)
        if batch.schema.get_field_index(column.name) < 0
        else batch.column(batch.schema.get_field_index(column.name))
        for column in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


# ── JSON of strangers ────────────────────────────────────────────────────────────────────────────────────


class _WrongJson(Exception):
    """Not the JSON that the format describes; the text tells how."""


def _json(text: str | bytes) -> object:
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        parsed: object = json.loads(decoded, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _WrongJson(f"is no JSON: {error}") from None
    return parsed


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _members(value: object, where: str, needed: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, object]:
    """An object that has what it needs and nothing unknown."""
    found = _any_object(value, where)
    for name in needed:
        if name not in found:
            raise _WrongJson(f"{where} has no {name!r}")
    for name in found:
        if name not in needed and name not in others:
            raise _WrongJson(f"{where} has {name!r}, which the format does not know")
    return found


def _any_object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _WrongJson(f"{where} is no object")
    return value


def _frame_numbers(value: object, where: str) -> list[int]:
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise _WrongJson(f"{where} is no list of frame numbers")
    return value


def _frames_named(checkpoint: object) -> Iterator[int]:
    """The frame numbers of a checkpoint, whose form is checked on the way."""
    parts = _members(checkpoint, "the object", ("sources", "states", "sinks", "schemas"))
    for source, partitions in _any_object(parts["sources"], "sources").items():
        for partition, position in _any_object(partitions, f"source {source!r}").items():
            _members(position, f"partition {partition!r} of source {source!r}", ("position",), ("inputs",))
    for source, columns in _any_object(parts["schemas"], "schemas").items():
        for name, type_name in _any_object(columns, f"the schema of source {source!r}").items():
            if not isinstance(type_name, str):
                raise _WrongJson(f"the type of column {name!r} of source {source!r} is no text")
    for step, tasks in _any_object(parts["states"], "states").items():
        if not isinstance(tasks, list):
            raise _WrongJson(f"the state of step {step!r} is no list")
        for task in tasks:
            state = _members(task, f"a state of step {step!r}", ("values", "frames"))
            _any_object(state["values"], f"the values of step {step!r}")
            yield from _frame_numbers(state["frames"], f"the frames of step {step!r}")
    for sink, prepared in _any_object(parts["sinks"], "sinks").items():
        kept = _members(prepared, f"sink {sink!r}", ("handle", "frames"))
        yield from _frame_numbers(kept["frames"], f"the frames of sink {sink!r}")


def _wrong_counts(counts: object) -> Iterator[str]:
    """Steps whose rows do not add up."""
    for step, numbers in _any_object(counts, "the object").items():
        found = _members(numbers, f"step {step!r}", (), (*COUNTS, *COUNTS_BESIDE))
        for name, number in found.items():
            if type(number) is not int or (number < 0 and name != "held"):
                raise _WrongJson(f"{name!r} of step {step!r} is no number of rows")
        rows_in = found.get("rows_in", 0)
        left = sum(int(str(found.get(name, 0))) for name in COUNTS)
        if rows_in != left:
            yield f"step {step!r} took {rows_in} rows in, and {left} are accounted for"


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _short(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values[:10])) + (", …" if len(values) > 10 else "") if values else "none"

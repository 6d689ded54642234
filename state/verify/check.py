"""One run of the verifier over a store: the catalog's tables against each other, and against the files.

Part of the verifier: imports nothing of the store (see __init__.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from dataflow.errors import StoreError
from dataflow.state.verify.arrow import check_frame, read_schema, widened, wrong_change
from dataflow.state.verify.catalog import CATALOG, CatalogBroken, Row, Snapshot, is_unfinished
from dataflow.state.verify.checkpoint import WrongJson, owners, parsed, wrong_counts
from dataflow.state.verify.files import UNSIGNED_64, File, Finding, Findings, StoreFiles, Unreadable
from dataflow.state.verify.layout import lower, quoted, unexpected
from dataflow.state.verify.partition import PartitionCheck, Place, Segment, Taker
from dataflow.state.verify.row_checksums import wrong_row_checksums

FILES_HELD_MAX = 200
"""Open at a time; a process may have 1024."""
FRAMES_TRIED_MAX = 100
"""Catalogs whose frames were removed by a newer checkpoint before they could be read."""
TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
FRAMES_NAME = re.compile(r"[1-9][0-9]*\.state")
STORE_ID = re.compile(r"[0-9a-f]{32}")


_Held: TypeAlias = dict[tuple[str, str], File]
"""Files of frames by pipeline and name."""


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
            if is_unfinished(files):
                check.found.warn(CATALOG, _UNFINISHED)
                return check.report()
            check.found.found += unexpected(files)
            snapshot = check.open_with_frames(stack)
            check.whole(snapshot)
        except Unreadable as error:
            check.found.damage(".", str(error))
        except CatalogBroken as error:
            check.found.damage(CATALOG, f"{error}; what else the store holds cannot be checked without it")
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
        check.read_catalog(snapshot)
        topic_id = found[0][0]
        assert isinstance(topic_id, int)
        check.topic(snapshot, topic_id, batches.append, partition)
        check.must_be_ok()
        schema = check.schemas[topic_id][-1]
        return pa.Table.from_batches([widened(batch, schema) for batch in batches], schema)


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
            check.found.found += snapshot.findings
            check.must_be_ok()
            snapshot.check_structure()
            check.row_checksums(snapshot)
            check.must_be_ok()
            yield check, snapshot
    except (Unreadable, CatalogBroken) as error:
        raise StoreError(f"{path}: {error}", code="DF0603", help=_HELP) from None


_UNFINISHED = (
    "the making of the store was cut off, or goes on just now: there is no data in it, and the next writer completes it"
)
_HELP = "nothing was changed; `dataflow log verify` tells all that is damaged"


@dataclass
class _Check:
    """One run of the verifier: what it knows of the catalog so far, what it counted, what it found."""

    found: Findings = field(default_factory=Findings)
    counted: Counter[str] = field(default_factory=Counter)
    store_id: str = ""
    names: dict[int, str] = field(default_factory=dict)
    schemas: dict[int, list[pa.Schema]] = field(default_factory=dict)
    """By topic id; version 1 first."""
    files: StoreFiles = field(init=False)

    def must_be_ok(self) -> None:
        """StoreError with the first damage."""
        first = next((finding for finding in self.found.found if finding.kind == "damage"), None)
        if first is not None:
            at = "" if first.position is None else f" at byte {first.position}"
            raise StoreError(f"{first.file}{at}: {first.what}", code="DF0603", help=_HELP)

    def report(self) -> Report:
        order = {"damage": 0, "warning": 1}
        return Report(findings=tuple(sorted(self.found.found, key=lambda one: order[one.kind])), **self.counted)

    # ── the catalog ──

    def row_checksums(self, snapshot: Snapshot) -> None:
        """That the rows of the catalog are those that were written."""
        for wrong in wrong_row_checksums(snapshot):
            self.found.damage(CATALOG, wrong)

    def open_with_frames(self, stack: ExitStack) -> Snapshot:
        """A snapshot whose frames were checked before a newer checkpoint could remove them."""
        for attempt in range(1, FRAMES_TRIED_MAX + 1):
            snapshot = Snapshot(self.files)
            with ExitStack() as closing:
                closing.callback(snapshot.close)
                before, counted = len(self.found.found), self.counted.copy()
                self.found.found += snapshot.findings
                # A file that is open can be read to its end, though it is removed meanwhile.
                held = closing.enter_context(_frame_files(self.files, snapshot))
                snapshot.check_structure()
                self.row_checksums(snapshot)
                self.pipelines(snapshot, held)
                if len(self.found.found) == before or snapshot.is_current():
                    stack.push(closing.pop_all())
                    return snapshot
                del self.found.found[before:]
                if attempt == FRAMES_TRIED_MAX:
                    what = f"checkpoints come too fast: {attempt} times frames were replaced before they were read"
                    self.found.warn("snapshots", what)
                    stack.push(closing.pop_all())
                    return snapshot
                self.counted = counted
        raise AssertionError

    def whole(self, snapshot: Snapshot) -> None:
        """Everything but the frames, which are checked."""
        self.read_catalog(snapshot)
        for table in ("schemas", "partitions", "segments", "batches"):
            sql = f"SELECT DISTINCT topic_id FROM {table} WHERE topic_id NOT IN (SELECT topic_id FROM topics)"
            for row in snapshot.query(sql):
                self.found.damage(CATALOG, f"{table} has rows of a topic {row[0]} that is not listed")
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
                self.found.damage(CATALOG, f"{name!r} is no name of a topic", topic=name)
            if folded != lower(name):
                self.found.damage(CATALOG, f"topic {name!r} is folded to {folded!r}", topic=name)
        for topic_id in self.names:
            self.schemas[topic_id] = []
            self._read_schemas(snapshot, topic_id)

    def _read_meta(self, snapshot: Snapshot) -> None:
        meta = {row[0]: row[1] for row in snapshot.query("SELECT key, value FROM meta")}
        store_id, created_us = meta.pop("store_id", None), meta.pop("created_us", None)
        self.store_id = str(store_id)
        if not isinstance(store_id, str) or not STORE_ID.fullmatch(store_id):
            self.found.damage(CATALOG, f"meta.store_id is {store_id!r}, not 32 hex digits")
        if not isinstance(created_us, str) or not re.fullmatch(r"-?(0|[1-9][0-9]{0,18})", created_us):
            self.found.damage(CATALOG, f"meta.created_us is {created_us!r}, not a time")
        if meta:
            self.found.damage(CATALOG, f"meta has keys that the format does not know: {', '.join(map(repr, meta))}")

    def _read_schemas(self, snapshot: Snapshot, topic_id: int) -> None:
        name, schemas = self.names[topic_id], self.schemas[topic_id]
        sql = "SELECT version, arrow FROM schemas WHERE topic_id = ? ORDER BY version"
        for number, (version, arrow) in enumerate(snapshot.query(sql, (topic_id,)), start=1):
            assert isinstance(arrow, bytes)
            if version != number:
                self.found.damage(CATALOG, f"schema version {number} is not listed, {version} is", topic=name)
                return
            try:
                schema = read_schema(arrow, len(arrow))
            except Unreadable as error:
                self.found.damage(CATALOG, f"schema version {version}: {error}", topic=name)
                return
            if schema.metadata:
                self.found.damage(CATALOG, f"schema version {version} has metadata", topic=name)
                schema = schema.remove_metadata()
            for wrong in wrong_change(schemas[-1], schema) if schemas else ():
                self.found.damage(CATALOG, f"schema version {version}: {wrong}", topic=name)
            schemas.append(schema)
        if not schemas:
            self.found.damage(CATALOG, "no schema is listed", topic=name)

    def commits(self, snapshot: Snapshot) -> None:
        """Ids, epochs, and that pipelines, ledger and batches name commits that there are."""
        last: dict[str, tuple[int, int]] = {}
        sql = "SELECT commit_id, pipeline, epoch FROM commits ORDER BY commit_id"
        expected = 1
        for commit_id, pipeline, epoch in snapshot.query(sql):
            assert isinstance(commit_id, int)
            self.counted["commits"] += 1
            if commit_id != expected:
                self.found.damage(CATALOG, f"commit {commit_id} is listed where commit {expected} should be")
            expected = commit_id + 1
            if not isinstance(pipeline, str) or not isinstance(epoch, int):
                if (pipeline, epoch) != (None, None):
                    self.found.damage(CATALOG, f"commit {commit_id} has a pipeline or an epoch, not both")
                continue
            before = last.get(pipeline)
            if epoch < 0 or (before is not None and epoch <= before[0]):
                self.found.damage(
                    CATALOG, f"epoch {epoch} of {pipeline!r} comes after epoch {before and before[0]}", epoch=epoch
                )
            last[pipeline] = epoch, commit_id
        self._last_epochs(snapshot, last)
        self._ledger(snapshot)

    def _last_epochs(self, snapshot: Snapshot, last: dict[str, tuple[int, int]]) -> None:
        for name, epoch, commit_id in snapshot.query("SELECT name, epoch, commit_id FROM pipelines"):
            found = last.pop(str(name), None)
            if found != (epoch, commit_id):
                what = f"pipeline {name!r} is at epoch {epoch} by commit {commit_id}, but its last commit is {found}"
                self.found.damage(CATALOG, what, epoch=_integer(epoch))
        for name, (epoch, commit_id) in last.items():
            self.found.damage(CATALOG, f"commit {commit_id} is of a pipeline {name!r} that is not listed", epoch=epoch)

    # ── pipelines: checkpoints, frames, ledger ──

    def pipelines(self, snapshot: Snapshot, held: _Held) -> None:
        """Checkpoints and their frames."""
        sql = "SELECT name, graph_hash, state_hash, finished, checkpoint FROM pipelines"
        for name, _, _, finished, checkpoint in snapshot.query(sql):
            assert isinstance(name, str) and isinstance(checkpoint, str)
            self.counted["pipelines"] += 1
            lock = ("locks", f"pipeline-{quoted(name)}.lock")
            if self.files.stat(*lock) is None:
                self.found.warn("/".join(lock), "is missing; lock files are never removed")
            if finished not in (0, 1):
                self.found.damage(CATALOG, f"pipelines.finished of {name!r} is {finished}")
            sql = "SELECT frame, owner, rows, file, position, length, xxh3 FROM frames WHERE pipeline = ?"
            listed = list(snapshot.query(f"{sql} ORDER BY file, position", (name,)))
            self._owners(name, checkpoint, listed)
            self._frames(name, listed, held)
        for row in snapshot.query("SELECT DISTINCT pipeline FROM frames EXCEPT SELECT name FROM pipelines"):
            self.found.damage(CATALOG, f"frames are listed of a pipeline {row[0]!r} that is not")

    def _owners(self, name: str, checkpoint: str, listed: list[Row]) -> None:
        """Whether the checkpoint is what the format says, and knows whose each frame is."""
        try:
            known = owners(parsed(checkpoint))
        except WrongJson as error:
            self.found.damage(CATALOG, f"the checkpoint of {name!r}: {error}")
            return
        for frame, owner, *_ in listed:
            if owner not in known:
                self.found.damage(CATALOG, f"frame {frame} of {name!r} is of {owner!r}, which its checkpoint has not")

    def _frames(self, pipeline: str, listed: list[Row], held: _Held) -> None:
        ends: dict[str, int] = {}
        for frame, _, rows, name, position, length, xxh3 in listed:
            assert isinstance(rows, int) and isinstance(name, str) and isinstance(position, int)
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
                with ExitStack() as stack:
                    file = held.get((pipeline, name))
                    if file is None:
                        file = stack.enter_context(self.files.file("snapshots", quoted(pipeline), name))
                    check_frame(file.checked(position, length, xxh3 % UNSIGNED_64), rows)
            except Unreadable as error:
                self.found.damage(shown, f"frame {frame} of {pipeline!r}: {error}", position=position)

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
                self.found.damage(CATALOG, what, epoch=_integer(epoch))
            try:
                for wrong in wrong_counts(parsed(counts)):
                    self.found.damage(CATALOG, f"the ledger of {pipeline!r}: {wrong}", epoch=_integer(epoch))
            except WrongJson as error:
                self.found.damage(CATALOG, f"the ledger of {pipeline!r}: {error}", epoch=_integer(epoch))
        sql = "SELECT pipeline, epoch FROM commits WHERE pipeline IS NOT NULL EXCEPT SELECT pipeline, epoch FROM ledger"
        for pipeline, epoch in snapshot.query(sql):
            self.found.damage(CATALOG, f"the ledger has no row of epoch {epoch} of {pipeline!r}", epoch=_integer(epoch))

    # ── topics ──

    def topic(self, snapshot: Snapshot, topic_id: int, take: Taker | None = None, only: int | None = None) -> None:
        """All partitions of a topic, or one only; a batch that is what was written goes to `take`."""
        sql = "SELECT partition, rows, bytes FROM partitions WHERE topic_id = ? ORDER BY partition"
        totals = {row[0]: row[1:] for row in snapshot.query(sql, (topic_id,))}
        if not totals:
            self.found.damage(CATALOG, "no partition is listed", topic=self.names[topic_id])
        for table in ("segments", "batches"):
            sql = f"SELECT DISTINCT partition FROM {table} WHERE topic_id = ?"
            for row in snapshot.query(sql, (topic_id,)):
                if row[0] not in totals:
                    what = f"{table} has rows of a partition {row[0]} that is not listed"
                    self.found.damage(CATALOG, what, topic=self.names[topic_id])
                    totals[row[0]] = (None, None)
        for partition, (count, size) in totals.items():
            assert isinstance(partition, int)
            if only not in (None, partition):
                continue
            self.counted["partitions"] += 1
            place = Place(self.store_id, self.names[topic_id], partition, self.schemas[topic_id])
            segments = _segments(snapshot, topic_id, partition)
            with PartitionCheck(self.files, place, segments, self.found, self.counted, take) as checked:
                for row in _batches(snapshot, topic_id, partition):
                    checked.commit(*row)
                checked.finish(count, size)


@contextmanager
def _frame_files(files: StoreFiles, snapshot: Snapshot) -> Iterator[_Held]:
    """Open the files in which the frames lie; the catalog was not checked yet."""
    held: _Held = {}
    with ExitStack() as stack:
        try:
            named = list(snapshot.query("SELECT DISTINCT pipeline, file FROM frames LIMIT ?", (FILES_HELD_MAX,)))
        except CatalogBroken:
            named = []  # its structure is checked next, and tells what is wrong
        for pipeline, name in named:
            if isinstance(pipeline, str) and isinstance(name, str):
                with suppress(Unreadable):  # told when it is asked for
                    held[pipeline, name] = file = files.opened("snapshots", quoted(pipeline), name)
                    stack.callback(file.close)
        yield held


def _segments(snapshot: Snapshot, topic_id: int, partition: int) -> list[Segment]:
    sql = (
        "SELECT segment_id, file, first_offset, schema_version, header_bytes, header_xxh3, published_bytes"
        " FROM segments WHERE topic_id = ? AND partition = ? ORDER BY first_offset"
    )
    return [Segment(*row) for row in snapshot.query(sql, (topic_id, partition))]  # type: ignore[arg-type] # STRICT


def _batches(
    snapshot: Snapshot, topic_id: int, partition: int
) -> Iterator[tuple[int, int, int, bytes, int | None, bool]]:
    sql = (
        "SELECT first_offset, batches.commit_id, rows, entries, epoch, commits.commit_id IS NOT NULL FROM batches"
        " LEFT JOIN commits USING (commit_id) WHERE topic_id = ? AND partition = ? ORDER BY first_offset"
    )
    return snapshot.query(sql, (topic_id, partition))  # type: ignore[return-value] # STRICT


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

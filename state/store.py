"""A store: one directory with topics, and one commit that publishes any number of them together.

Writers make bytes durable first, each on its own; `Store.publish` then makes them exist, all in one transaction of
the catalog. Commits that come at the same time share a transaction, and there are at most 100 a second, so that
a busy loop leaves room for other processes. The hard part is a commit that fails: it may be on disk all the same,
so its writers are stopped where they are, and the next start reads from the disk which it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from dataflow.errors import NameNotFoundError, StoreError, TypeMismatchError, did_you_mean, disk_fix, disk_reason
from dataflow.schema import plain_schema
from dataflow.state.frames import FrameFiles
from dataflow.state.layout import (
    Layout,
    check_is_free,
    check_pipeline_name,
    check_store_path,
    check_topic_name,
    has_more_than_a_catalog,
    index_gone,
    make_durable_dirs,
)
from dataflow.state.log.reader import TopicReader, fit
from dataflow.state.log.recovery import Listing, recover_partition
from dataflow.state.log.segment import IndexEntry, Partition
from dataflow.state.log.writer import Pending, TopicWriter
from dataflow.state.records import CommitRequest, EpochRecord, PipelineState, TopicInfo
from dataflow.system import Event, FilePath, Lock, LockHeldError, RealSystem, System

if TYPE_CHECKING:  # the catalog brings apsw, which `import dataflow` does not wait for
    from dataflow.state.catalog import Catalog

__all__ = ["EpochRecord", "PipelineState", "Store", "TopicInfo"]

APPEND_ROWS, APPEND_BYTES = 262_144, 16 << 20
"""Rows, and about how many bytes, of a batch that `Store.append` makes: what readers like best."""
COMMIT_SECONDS_MIN = 0.01
"""Between two transactions of a process: SQLite's lock is not fair, and a loop without a pause starves the others."""
CREATION_SECONDS_MAX = 30.0
"""How long to wait for another process that is making the same store; it takes milliseconds."""
APPEND_SECONDS_MAX = 10.0
"""How long `append` waits for another one that has the partition; a pipeline has it for as long as it runs."""
LOCK_SECONDS_BETWEEN = 0.01


class Store:
    """A directory that holds topics. Made by the first write into it.

    >>> import tempfile
    >>> import pyarrow as pa
    >>> with tempfile.TemporaryDirectory() as path, Store(path) as store:
    ...     commit = store.append("clicks", pa.table({"user": ["ann", "bob"], "n": [1, 2]}))
    ...     store.read("clicks", columns=["n"]).to_pydict()
    {'n': [1, 2]}
    """

    def __init__(self, path: FilePath, system: System | None = None) -> None:
        self.path = check_store_path(path)
        self.system = RealSystem() if system is None else system
        self._layout = Layout(os.path.abspath(self.path))
        self._opened: Catalog | None = None
        self._reader: TopicReader | None = None
        self._appenders: dict[str, TopicWriter] = {}
        """Writers of `append`, kept for the next one; between two appends they hold no lock."""
        scheduler = self.system.scheduler
        self._open_mutex, self._append_mutex = scheduler.mutex(), scheduler.mutex()
        self._queue_mutex, self._commit_mutex = scheduler.mutex(), scheduler.mutex()
        self._queue: list[_Commit] = []
        self._last_commit_at = -COMMIT_SECONDS_MIN
        self._own_commits = 0
        """SQLite's own counter leaves these out."""
        self._failure: BaseException | None = None
        """What made a commit uncertain; after it there are no more."""
        self._check_is_free()

    def _check_is_free(self) -> None:
        """Raise unless a store is here, or can be made."""
        if self.exists:
            return
        try:
            with self._told_errors("its directory"):
                check_is_free(self.system.disk, self._layout)
        except StoreError:
            if not self.exists:  # else another process has made it meanwhile
                raise

    @property
    def exists(self) -> bool:
        """Whether anything was written here yet."""
        return self.system.disk.exists(self._layout.catalog)

    @property
    def id(self) -> str:
        """What tells it from every other store."""
        return self._catalog().store_id

    def close(self) -> None:
        """Close what is open; locks that `append` left are freed. Writers are closed by their owners."""
        with self._append_mutex:
            for appender in self._appenders.values():
                appender.close()
            self._appenders.clear()
        with self._open_mutex:
            if self._reader is not None:
                self._reader.close()
            if self._opened is not None:
                self._opened.close()
            self._reader = self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.path!r})"

    # ── reading ──

    def topics(self) -> list[TopicInfo]:
        """All topics: name, partitions, rows, bytes, schema."""
        return self._catalog().topics()

    def schema(self, topic: str) -> pa.Schema:
        """A topic's columns, in their latest version."""
        schema = self._catalog().latest_schema(check_topic_name(topic))
        if schema is None:
            raise self._no_topic(topic)
        return schema

    def topic(self, name: str) -> TopicInfo:
        """One topic: name, partitions, rows, bytes, schema."""
        for info in self.topics():
            if info.name == check_topic_name(name):
                return info
        raise self._no_topic(name)

    def partitions(self, topic: str) -> list[int]:
        """The numbers of a topic's partitions."""
        self.schema(topic)
        return list(self._catalog().partitions(topic))

    def read(
        self, topic: str, *, start: int | None = None, until: int | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """The rows of a topic with offsets from `start` up to, not including, `until`; all by default.

        Partitions come in the order in which their rows were committed. Zero-copy: the table points into the files.
        """
        schema = self._pruned(topic, columns)
        for what, offset in (("start", start), ("until", until)):
            if offset is not None and (not isinstance(offset, int) or isinstance(offset, bool) or offset < 0):
                raise TypeMismatchError(f"read: `{what}` is an offset, a number from 0 on, got {offset!r}")
        entries = [one for number in self.partitions(topic) for one in self.batches(topic, number, start, until)]
        entries.sort(key=lambda one: (one.commit_id, one.segment.partition, one.first_offset))
        batches = [fit(cut(self.read_entry(one), one, start, until), schema) for one in entries]
        return pa.Table.from_batches(batches, schema=schema)

    def batches(
        self, topic: str, partition: int = 0, start: int | None = None, until: int | None = None
    ) -> list[IndexEntry]:
        """The published batches of a partition in order: those that hold rows of [start, until)."""
        return self._catalog().entries(check_topic_name(topic), partition, start or 0, until)

    def read_entry(self, entry: IndexEntry) -> pa.RecordBatch:
        """The rows of a batch, checked against their checksum; zero-copy. From any thread."""
        if self._reader is None:
            self._catalog()
        assert self._reader is not None
        return self._reader.read(entry)

    def pipeline(self, name: str) -> PipelineState | None:
        """The last committed epoch of a pipeline, or None when it never committed one."""
        catalog = self._catalog_if_made()
        return None if catalog is None else catalog.pipeline(name)

    def frames(self, state: PipelineState | None, name: str) -> FrameFiles:
        """What a pipeline keeps beside the catalog. For the one that holds its lock."""
        next_number = max((frame.number for frame in state.frames), default=0) + 1 if state is not None else 1
        return FrameFiles(self.system, self._layout.root, self._layout.snapshots(name), next_number)

    def data_version(self) -> int:
        """Changes whenever somebody has committed something: cheap to ask, often."""
        return self._own_commits + self._catalog().data_version()

    def ledger(self, pipeline: str) -> dict[int, dict[str, object]]:
        """Where the rows of each epoch of a pipeline went."""
        return self._catalog().ledger(pipeline)

    # ── writing ──

    def append(self, topic: str, rows: pa.Table | pa.RecordBatch) -> int:
        """Append rows to a topic (partition 0) in one commit and return its id. Durable when it returns.

        The first append makes the topic, with the columns of the rows. Appends of several processes take turns; after
        ten seconds behind a writer that keeps the topic (a pipeline that runs) it raises LockHeldError.
        """
        table = _table_of(rows)
        with self._append_mutex:
            writer = self._appender(topic, plain_schema(table.schema))
            try:
                for batch in _slices(table):
                    writer.append(batch)
                pending = writer.prepare()
                commit_id = self.publish([] if pending is None else [pending])
            except BaseException:
                del self._appenders[topic]
                writer.close()
                raise
            writer.pause()
            return commit_id

    def writer(self, topic: str, schema: pa.Schema, *, partition: int = 0) -> TopicWriter:
        """Open a partition for writing. One writer has it at a time; a second one is refused with the holder's name."""
        with self._append_mutex:
            if partition == 0 and topic in self._appenders:
                self._appenders.pop(topic).close()
            return self._open_writer(topic, plain_schema(schema), partition)

    def publish(self, pendings: Sequence[Pending], *, epoch: EpochRecord | None = None) -> int:
        """Make prepared rows of any number of topics visible, with a pipeline's epoch; return the commit's id.

        All of it or nothing. When it raises, nothing was published, unless the error says that nobody can know.
        """
        for pending in pendings:
            pending.writer.begin_publish(pending)
        commit = _Commit(CommitRequest(tuple(pendings), epoch), self.system.scheduler.event())
        with self._queue_mutex:
            self._queue.append(commit)
        with self._commit_mutex:  # whoever gets in first commits for all who came meanwhile
            if not commit.done.is_set():
                self._commit_queued()
        return commit.result()

    def lock_pipeline(self, name: str) -> Lock:
        """Take the lock of a pipeline's name for as long as it runs; refused with the holder's name."""
        check_pipeline_name(name)
        catalog = self._catalog(create=True)
        with self._told_errors(f"the lock of pipeline `{name}`"):
            make_durable_dirs(self.system.disk, self._layout.locks, until=self._layout.root)
            lock = self.system.disk.lock(self._layout.pipeline_lock(name), f"pipeline `{name}`")
        try:
            catalog.settle()
        except BaseException:
            lock.release()
            raise
        return lock

    # ── inside ──

    def _catalog(self, *, create: bool = False) -> Catalog:
        catalog = self._catalog_if_made()
        if catalog is None and create:
            self._create()
            catalog = self._catalog_if_made()
        if catalog is None:
            raise StoreError(
                f"there is no store at {self.path}",
                help="did the pipeline run, and with this store? the path is relative to the working directory",
            )
        if create and catalog.is_read_only:
            from dataflow.state.catalog_access import not_writable

            raise not_writable(self._layout)
        return catalog

    def _catalog_if_made(self) -> Catalog | None:
        """The open catalog; None while there is none, or its making has not come to its end."""
        from dataflow.state.catalog import Catalog
        from dataflow.state.catalog_database import UnfinishedCatalogError

        if self._opened is not None:
            return self._opened
        with self._open_mutex:
            if self._opened is None and self.exists:
                is_used = has_more_than_a_catalog(self.system.disk, self._layout)
                try:
                    self._opened = Catalog(self.system, self._layout)
                except UnfinishedCatalogError:
                    if is_used:
                        raise index_gone(self._layout, "and a catalog.db with nothing in it") from None
                    return None
                self._reader = TopicReader(self.system, self._layout.root, self._opened.store_id)
            return self._opened

    def _create(self) -> None:
        from dataflow.state.catalog_database import create_catalog

        self._check_is_free()
        with self._told_errors("its catalog"):
            make_durable_dirs(self.system.disk, self._layout.root)
            with self._lock(self._layout.creation_lock, f"making the store {self.path}", CREATION_SECONDS_MAX):
                create_catalog(self.system, self._layout)

    @contextmanager
    def _told_errors(self, what: str) -> Iterator[None]:
        """An error of the disk while something is opened, as one that says what to do."""
        try:
            yield
        except OSError as error:
            file = error.filename or "a file"
            raise StoreError(
                f"{what} in the store {self.path} cannot be opened: {file}: {disk_reason(error)}; nothing that was "
                "committed is concerned",
                code="DF0604",
                help=disk_fix(error),
            ) from error

    def _lock(self, path: str, note: str, seconds: float) -> Lock:
        """Take a lock; wait so long for who has it."""
        deadline = self.system.clock.monotonic() + seconds
        while True:
            try:
                return self.system.disk.lock(path, note)
            except LockHeldError:
                if self.system.clock.monotonic() >= deadline:
                    raise
                self.system.scheduler.sleep(LOCK_SECONDS_BETWEEN)

    def _appender(self, topic: str, schema: pa.Schema) -> TopicWriter:
        """The writer of the append before, if the partition is as that one left it; else a new one."""
        writer = self._appenders.pop(topic, None)
        if writer is not None and writer.schema.equals(schema):
            writer.resume(self._writer_lock(topic, 0, APPEND_SECONDS_MAX))
            if self._catalog().partitions(topic).get(0) == writer.next_offset:
                self._appenders[topic] = writer
                return writer
        if writer is not None:
            writer.close()
        self._appenders[topic] = self._open_writer(topic, schema, 0, APPEND_SECONDS_MAX)
        return self._appenders[topic]

    def _writer_lock(self, topic: str, number: int, seconds: float) -> Lock:
        note = f"topic `{topic}` (partition {number}) of the store {self.path}"
        return self._lock(self._layout.writer_lock(topic, number), note, seconds)

    def _open_writer(self, topic: str, schema: pa.Schema, number: int, seconds: float = 0.0) -> TopicWriter:
        from dataflow.state.catalog import check_succeeds

        check_topic_name(topic)
        catalog = self._catalog(create=True)
        catalog.check_new_topic(topic)
        directory = self._layout.partition(topic, number)
        with self._told_errors(f"topic `{topic}`"):
            make_durable_dirs(self.system.disk, directory, until=self._layout.root)
            lock = self._writer_lock(topic, number, seconds)
        try:
            latest = catalog.latest_schema(topic)
            check_succeeds(topic, latest, schema)
            if latest is not None and set(latest.names) == set(schema.names):
                schema = latest  # the same columns in another order: the topic's order stands
            partition = Partition(self.system, catalog.store_id, topic, number, directory)

            def listing() -> Listing:
                return catalog.segments(topic, number), catalog.partitions(topic).get(number) or 0

            def settled() -> Listing:
                catalog.settle()
                return listing()

            with self._told_errors(f"topic `{topic}`"):
                recover_partition(partition, *listing(), settled)
            rows = catalog.partitions(topic).get(number)
        except BaseException:
            lock.release()
            raise
        is_registered = rows is not None and latest is not None and latest.equals(schema)
        return TopicWriter(partition, schema, rows or 0, is_registered=is_registered, lock=lock)

    def _commit_queued(self) -> None:
        clock = self.system.clock
        early_by = self._last_commit_at + COMMIT_SECONDS_MIN - clock.monotonic()
        if early_by > 0:
            self.system.scheduler.sleep(early_by)
        with self._queue_mutex:
            commits, self._queue = self._queue, []
        self._last_commit_at = clock.monotonic()
        try:
            outcomes = self._commit_together([commit.request for commit in commits])
        except BaseException as error:
            self._failure = error
            for commit in commits:
                commit.fail(error)
            if not isinstance(error, Exception):
                raise
            return
        for commit, outcome in zip(commits, outcomes, strict=True):
            commit.settle(outcome)

    def _commit_together(self, requests: Sequence[CommitRequest]) -> Sequence[int | StoreError]:
        if self._failure is not None:
            raise self._failure
        try:
            outcomes = self._catalog(create=True).commit(requests)
            self._own_commits += 1
            return outcomes
        except StoreError as error:  # surely nothing was committed
            return [error] * len(requests)

    def _pruned(self, topic: str, columns: Sequence[str] | None) -> pa.Schema:
        schema = self.schema(topic)
        if columns is None:
            return schema
        for name in columns:
            if schema.get_field_index(name) < 0:
                near = did_you_mean(name, schema.names)
                raise NameNotFoundError(
                    f"there is no column `{name}` in topic `{topic}` (columns: {', '.join(schema.names)})",
                    help=f"did you mean `{near}`?" if near else None,
                )
        return pa.schema([schema.field(name) for name in columns])

    def _no_topic(self, topic: str) -> NameNotFoundError:
        names = [info.name for info in self.topics()]
        near = did_you_mean(topic, names)
        return NameNotFoundError(
            f"there is no topic `{topic}` in the store {self.path} (topics: {', '.join(names) or 'none'})",
            help=f"did you mean `{near}`?" if near else "a topic appears with the first commit of what writes it",
        )


class _Commit:
    """One caller's part of a transaction, and what became of it."""

    def __init__(self, request: CommitRequest, done: Event) -> None:
        self.request, self.done = request, done
        self._commit_id = 0
        self._error: StoreError | None = None

    def settle(self, outcome: int | StoreError) -> None:
        """The transaction is durable, with this part of it or without; or there was no room for it, and its writers
        must not touch what it lists until it was tried again."""
        from dataflow.state.catalog_database import DoubtfulCommitError

        is_in = isinstance(outcome, int)
        for pending in self.request.pendings if not isinstance(outcome, DoubtfulCommitError) else ():
            (pending.writer.mark_published if is_in else pending.writer.mark_refused)(pending)
        if isinstance(outcome, int):
            self._commit_id = outcome
        else:
            self._error = outcome
        self.done.set()

    def fail(self, cause: BaseException) -> None:
        """The transaction may or may not be durable: its writers must not touch what may be published."""
        for pending in self.request.pendings:
            pending.writer.fail()
        self._error = uncertain(cause)
        self.done.set()

    def result(self) -> int:
        assert self.done.is_set()
        if self._error is not None:
            raise self._error
        return self._commit_id


def store_path(given: Store | FilePath) -> str:
    """The path of a store that a user named, or gave."""
    return given.path if isinstance(given, Store) else check_store_path(given)


def uncertain(cause: BaseException) -> StoreError:
    """The error for a commit of which nobody can know whether it is on disk."""
    error = StoreError(
        f"a commit failed at its last step ({cause}); it may or may not be on disk, and this store takes no more "
        "commits",
        code="DF0608",
        help="check the disk, then start again: the disk tells what was committed, and the run goes on from there",
    )
    error.__cause__ = cause
    return error


def cut(batch: pa.RecordBatch, entry: IndexEntry, start: int | None, until: int | None) -> pa.RecordBatch:
    """The rows of a batch whose offsets are in [start, until)."""
    first = max((start or 0) - entry.first_offset, 0)
    end = entry.rows if until is None else min(until - entry.first_offset, entry.rows)
    return batch if first == 0 and end == entry.rows else batch.slice(first, max(end - first, 0))


def _table_of(rows: pa.Table | pa.RecordBatch) -> pa.Table:
    """Rows that a topic can take."""
    if not isinstance(rows, pa.Table | pa.RecordBatch):
        raise TypeMismatchError(
            f"append takes a pyarrow Table or RecordBatch, got {type(rows).__name__}; nothing was appended",
            help="make one: `pa.table({…})`, or `pa.Table.from_pylist([…])` of dicts",
        )
    names = rows.schema.names
    if twice := [name for name in names if names.count(name) > 1]:
        raise NameNotFoundError(
            f"append: the rows have two columns `{twice[0]}`; nothing was appended",
            code="DF0203",
            help="rename one of them",
        )
    if not names:
        raise TypeMismatchError("append: the rows have no columns; nothing was appended", help="give them one")
    return pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows


def _slices(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """The rows in batches of one size, whatever chunks the table has."""
    rows = max(1, min(APPEND_ROWS, APPEND_BYTES * table.num_rows // max(table.nbytes, 1)))
    for start in range(0, table.num_rows, rows):
        yield from table.slice(start, rows).combine_chunks().to_batches()

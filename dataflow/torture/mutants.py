"""Bugs planted on purpose: each must be caught by the row that is meant for it (row 25).

A rig that never fails proves nothing. A mutant replaces one function of the engine, in the processes that do the work
and nowhere else, by one that makes a mistake which somebody has made somewhere. Only torture and its tests import
this.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import apsw
import pyarrow as pa

from dataflow.state import catalog, catalog_access
from dataflow.state import store as store_module
from dataflow.state.catalog import Catalog
from dataflow.state.catalog_database import prepared
from dataflow.state.frames import Frame, FrameFiles
from dataflow.state.log import reader
from dataflow.state.log.recovery import Listing, Recovery, recover_partition
from dataflow.state.log.segment import GrowingSegment, IndexEntry, MappedSegment, Partition, SegmentInfo
from dataflow.state.log.writer import Pending, TopicWriter
from dataflow.state.records import EpochRecord
from dataflow.state.store import Store
from dataflow.system import Disk, FilePath, System
from dataflow.system.real import RealDisk
from dataflow.torture import pipeline_mutants as pipelines
from dataflow.torture.mounts import why_no_disk
from dataflow.torture.pipeline_mutants import replaced


@dataclass(frozen=True)
class Mutant:
    """A bug, and the row that has to catch it."""

    name: str
    row: int
    sign: str
    """What the finding says: caught means caught for this, and not for something else."""
    plant: Callable[[], AbstractContextManager[None]]
    skip_reason: Callable[[], str | None] = lambda: None
    """Why the part of the row that has to catch it cannot run here."""


def planted(name: str | None) -> AbstractContextManager[None]:
    """Plant a bug by its name for as long as the block runs; none without a name."""
    if name is None:
        return nullcontext()
    (mutant,) = [one for one in MUTANTS if one.name == name]
    return mutant.plant()


# ── promises made too early, or in two steps ──


def ack_before_commit() -> AbstractContextManager[None]:
    """An epoch is acknowledged when it is queued; it is committed before the next one is."""
    publish, waiting = Store.publish, dict[Store, tuple[Sequence[Pending], EpochRecord]]()

    def publish_later(self: Store, pendings: Sequence[Pending], *, epoch: EpochRecord | None = None) -> int:
        if epoch is None:
            return publish(self, pendings)
        if self in waiting:
            earlier, its_epoch = waiting.pop(self)
            publish(self, earlier, epoch=its_epoch)
        waiting[self] = (pendings, epoch)
        return 0

    return replaced(Store, "publish", publish_later)


def topics_apart() -> AbstractContextManager[None]:
    """Each topic of a commit in a transaction of its own, the epoch with the last."""
    publish = Store.publish

    def publish_apart(self: Store, pendings: Sequence[Pending], *, epoch: EpochRecord | None = None) -> int:
        for pending in pendings[:-1]:
            publish(self, [pending])
        return publish(self, pendings[-1:], epoch=epoch)

    return replaced(Store, "publish", publish_apart)


def epoch_apart() -> AbstractContextManager[None]:
    """The epoch after its rows, in a transaction of its own."""
    publish = Store.publish

    def publish_apart(self: Store, pendings: Sequence[Pending], *, epoch: EpochRecord | None = None) -> int:
        commit_id = publish(self, pendings)
        return commit_id if epoch is None else publish(self, [], epoch=epoch)

    return replaced(Store, "publish", publish_apart)


def commit_before_rows() -> AbstractContextManager[None]:
    """Rows are kept in memory until the catalog lists them."""
    append, mark = GrowingSegment._append, TopicWriter.mark_published
    held: dict[GrowingSegment, list[pa.Buffer]] = {}

    def append_later(self: GrowingSegment, message: pa.Buffer) -> int:
        position = later_size(self)
        held.setdefault(self, []).append(message)
        self.is_synced = False
        return position

    def later_size(self: GrowingSegment) -> int:
        return int(self._file.size + sum(message.size for message in held.get(self, [])))

    def write_now(self: TopicWriter, pending: Pending) -> None:
        for segment in self._segments:
            for message in held.pop(segment, []):
                append(segment, message)
        mark(self, pending)

    @contextmanager
    def all_three() -> Iterator[None]:
        with (
            replaced(GrowingSegment, "_append", append_later),
            replaced(GrowingSegment, "size", property(later_size)),
            replaced(TopicWriter, "mark_published", write_now),
        ):
            yield

    return all_three()


# ── syncs that are left out, or believed ──


def no_fsync() -> AbstractContextManager[None]:
    """A segment's bytes are not synced."""

    def forget(self: GrowingSegment) -> None:
        self.is_synced = True

    return replaced(GrowingSegment, "sync", forget)


def no_directory_fsync() -> AbstractContextManager[None]:
    """A new segment's name is not synced."""

    def only_files(self: TopicWriter) -> None:
        for segment in self._segments:
            if not segment.is_synced:
                segment.sync()

    return replaced(TopicWriter, "_sync", only_files)


def no_parent_fsync() -> AbstractContextManager[None]:
    """A new directory's name is not synced."""

    def only_make(disk: Disk, path: FilePath, **_: object) -> None:
        disk.make_dirs(path, mode=0o700)

    return replaced(store_module, "make_durable_dirs", only_make)


def catalog_not_synced() -> AbstractContextManager[None]:
    """SQLite leaves it to the operating system when a commit is written."""

    def prepare_carelessly(connection: apsw.Connection, system: System) -> apsw.Connection:
        list(prepared(connection, system).execute("PRAGMA synchronous = OFF"))
        return connection

    return replaced(catalog_access, "prepared", prepare_carelessly)


def fsync_retried() -> AbstractContextManager[None]:
    """An fsync that failed is tried again, and believed."""
    sync = GrowingSegment.sync

    def try_twice(self: GrowingSegment) -> None:
        try:
            sync(self)
        except OSError:
            sync(self)

    return replaced(GrowingSegment, "sync", try_twice)


# ── bytes that are trusted, or cut ──


def no_checksum() -> AbstractContextManager[None]:
    """What was read is decoded without a look at its checksum."""

    def read_all(self: MappedSegment, entry: IndexEntry) -> pa.RecordBatch:
        return pa.ipc.read_record_batch(self.buffer.slice(entry.position, entry.length), self.schema)

    return replaced(MappedSegment, "read", read_all)


def no_header_check() -> AbstractContextManager[None]:
    """A segment is not asked where it belongs."""

    def map_any(disk: Disk, root: str, store_id: str, entry: IndexEntry) -> MappedSegment:
        buffer = disk.map(os.path.join(root, entry.segment.path))
        return MappedSegment(buffer, pa.ipc.read_schema(buffer).remove_metadata())

    return replaced(reader, "map_segment", map_any)


def cut_too_much() -> AbstractContextManager[None]:
    """A torn tail is cut off eight bytes below the published length."""

    def recover(
        partition: Partition,
        listed: Sequence[SegmentInfo],
        next_offset: int,
        settle: Callable[[], Listing] | None = None,
    ) -> Recovery:
        recovery = recover_partition(partition, listed, next_offset, settle)
        for segment in listed[-1:] if recovery.torn_bytes else ():
            path = os.path.join(partition.directory, os.path.basename(segment.path))
            partition.system.disk.truncate(path, segment.published_bytes - 8)
        return recovery

    return replaced(store_module, "recover_partition", recover)


# ── data that are run ──


def pickled_state() -> AbstractContextManager[None]:
    """What steps keep comes back through pickle."""
    read = FrameFiles.read

    def unpickle(self: FrameFiles, frame: Frame) -> list[pa.RecordBatch]:
        batches: list[pa.RecordBatch] = pickle.loads(pickle.dumps(read(self, frame)))
        return batches

    return replaced(FrameFiles, "read", unpickle)


def evaluated_checkpoint() -> AbstractContextManager[None]:
    """The JSON of the catalog is taken for Python."""

    def evaluate(text: str | bytes) -> object:
        return eval(text, {"true": True, "false": False, "null": None})

    return replaced(catalog, "json", SimpleNamespace(dumps=json.dumps, loads=evaluate))


# ── fences that are down ──


class OpenLock:
    """A lock that locks nobody out."""

    def release(self) -> None:
        pass

    def __enter__(self) -> OpenLock:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def no_fencing() -> AbstractContextManager[None]:
    """No lock is taken, and the catalog does not compare where the writer began."""

    def lock_nothing(self: RealDisk, path: FilePath, note: str) -> OpenLock:
        return OpenLock()

    def just_add(self: Catalog, topic_id: int, pending: Pending) -> None:
        key = (topic_id, pending.partition)
        self._rows("INSERT OR IGNORE INTO partitions VALUES (?, ?, 0, 0)", *key)
        sql = "UPDATE partitions SET rows = rows + ?, bytes = bytes + ? WHERE topic_id = ? AND partition = ?"
        self._rows(sql, pending.rows, pending.bytes, *key)

    @contextmanager
    def both() -> Iterator[None]:
        with replaced(RealDisk, "lock", lock_nothing), replaced(Catalog, "_advance", just_add):
            yield

    return both()


MUTANTS = (
    Mutant("ack before commit", 1, "lost", ack_before_commit),
    Mutant("topics of a commit published apart", 3, "the pipeline is at epoch", topics_apart),
    Mutant("epoch published after its rows", 3, "the pipeline is at epoch", epoch_apart),
    Mutant("commit before the rows are written", 3, "corrupt", commit_before_rows),
    Mutant("tail cut below the published length", 3, "corrupt", cut_too_much),
    Mutant("no fsync of a segment", 4, "corrupt", no_fsync),
    Mutant("no fsync of a segment's directory", 4, "the file is missing", no_directory_fsync),
    Mutant("no fsync of a new directory's parent", 4, "the file is missing", no_parent_fsync),
    Mutant("no fsync of a segment, and no power", 5, "corrupt", no_fsync),
    Mutant("commits of the catalog not synced", 5, "acked", catalog_not_synced),
    Mutant("failed fsync tried again", 6, "repeated, and believed", fsync_retried),
    Mutant("failed fsync tried again on a real disk", 6, "on a real disk", fsync_retried, partial(why_no_disk, "ext4")),
    Mutant("no checksum on read", 8, "undetected", no_checksum),
    Mutant("segment not asked where it belongs", 8, ".arrow: ", no_header_check),
    Mutant("positions of the epoch before", 11, "copy: ", pipelines.positions_apart),
    Mutant("stop without a commit", 12, "seed", pipelines.stop_without_a_commit),
    Mutant("no fencing", 13, "duplicated", no_fencing),
    Mutant("barrier not aligned", 14, "seed", pipelines.barrier_not_aligned),
    Mutant("positions committed apart from state", 14, "seed", pipelines.positions_apart),
    Mutant("sinks commit before the store", 14, "seed", pipelines.sinks_before_the_store),
    Mutant("sink commit not repeatable", 14, "(table)", pipelines.commit_not_repeatable),
    Mutant("rename before commit", 14, "(files)", pipelines.rename_before_commit),
    Mutant("an epoch after the one that stops", 14, "lost", pipelines.epoch_after_a_stop),
    Mutant("prepared parts taken back though nobody knows", 14, "DF0513", pipelines.aborted_though_nobody_knows),
    Mutant("epochs counted again", 17, "the source handed out", pipelines.epochs_counted_again),
    Mutant("row lost behind a filter", 17, "were given out", pipelines.row_lost_behind_a_filter),
    Mutant("state through pickle", 22, "pickle.find_class", pickled_state),
    Mutant("checkpoint evaluated", 22, "times exec", evaluated_checkpoint),
)
"""All bugs, by the row that has to catch them."""

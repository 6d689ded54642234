"""Writes results into a topic of the event log: of the run's store, or of another one.

What is prepared for the run's store is handed to the run, which publishes it in the one commit of the epoch. Rows for
another store cannot be in that commit: they wait in the run's store, and one commit of the other one takes them after
it, together with the number of their epoch. So a commit that is repeated finds that number there, and does nothing.
Without a store of the run, rows are written into the other one as they come, and published by its epochs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from dataflow.operators.base import NO_WAITING, SinkContext, SinkRoom
from dataflow.operators.sinks.staged import StagedEpoch, StagedSink
from dataflow.state.layout import check_topic_name
from dataflow.system import FilePath, Lock

if TYPE_CHECKING:
    from dataflow.state.log.writer import Pending, TopicWriter
    from dataflow.state.store import Store

__all__ = ["OtherStoreSink", "TopicSink", "check_topic_name", "topic_sink"]

BATCH_ROWS_MAX, BATCH_BYTES_MAX = 262_144, 16 << 20
"""Of a batch of the topic: what readers like best. Rows that waited come in smaller ones."""


@dataclass(slots=True, eq=False)
class OwnPending:
    """Prepared rows of a store that is not the run's: published by the sink, once."""

    pending: Pending
    is_published: bool = False


class TopicSink:
    """Appends to partition 0 of a topic; holds its lock from the start of the run to `close`.

    `prepare` returns a Pending for the run to publish when `store` is the run's (`publishes` is false).
    """

    waits_for_room = True
    """A batch that finds the disk full leaves the writer as it was."""

    def __init__(
        self,
        topic: str,
        store: Store,
        schema: pa.Schema,
        *,
        publishes: bool,
        closes: bool = False,
        room: SinkRoom = NO_WAITING,
    ) -> None:
        self.topic, self.store, self._room = topic, store, room
        self.publishes, self.closes = publishes, closes
        self.writer = store.writer(topic, schema)

    def open(self, epoch: int) -> None:
        """Nothing to do: the writer goes on from epoch to epoch."""

    def write(self, batch: pa.RecordBatch) -> None:
        self.writer.append(batch)

    def prepare(self, epoch: int) -> Pending | OwnPending | None:
        pending = self.writer.prepare()
        return OwnPending(pending) if pending is not None and self.publishes else pending

    def commit(self, handle: object) -> None:
        """Publish what the run could not; may be repeated."""
        if isinstance(handle, OwnPending) and not handle.is_published:
            self._room.attempt(lambda: self.store.publish([handle.pending]))
            handle.is_published = True

    def abort(self, handle: object) -> None:
        """Take back all that is not published, prepared or not."""
        self.writer.rollback()

    def close(self) -> None:
        self.writer.close()
        if self.closes:
            self.store.close()


class OtherStoreSink(StagedSink):
    """Appends to partition 0 of a topic of another store than the run's; holds its lock until `close`."""

    def __init__(self, topic: str, store: Store, context: SinkContext, *, closes: bool) -> None:
        assert context.staging is not None
        super().__init__(context, context.staging)
        self.topic, self.store, self._closes = topic, store, closes
        self.writer: TopicWriter
        self._lock: Lock | None = None
        """Of the name under which the other store keeps the epochs."""

    def begin(self) -> None:
        self.writer = self.store.writer(self.topic, self.context.schema)

    def applied_epoch(self, history: str) -> int:
        known = self.store.pipeline(self._name(history)) if self.store.exists else None
        return 0 if known is None else known.epoch

    def _name(self, history: str) -> str:
        return f"{self.context.pipeline}/{self.context.name}/{history}"

    def apply(self, epoch: StagedEpoch, batches: Iterable[pa.RecordBatch]) -> None:
        from dataflow.state.records import EpochRecord

        name, room = self._name(epoch.history), self.context.room
        self._lock = self._lock or self.store.lock_pipeline(name)
        if self.applied_epoch(epoch.history) >= epoch.epoch:
            return
        record = EpochRecord(pipeline=name, epoch=epoch.epoch, finished=False, graph_hash="")
        try:
            for batch in _gathered(batches):
                room.attempt(partial(self.writer.append, batch))
            pending = self.writer.prepare()
            room.attempt(lambda: self.store.publish([] if pending is None else [pending], epoch=record))
        except BaseException:
            self.writer.rollback()  # what is published stays
            raise

    def commit(self, handle: object) -> None:
        super().commit(handle)
        if (pending := self.writer.prepare()) is not None:  # a topic without rows is published too, once
            self.context.room.attempt(lambda: self.store.publish([pending]))

    def abort(self, handle: object) -> None:
        super().abort(handle)
        self.writer.rollback()

    def close(self) -> None:
        super().close()
        self.writer.close()
        if self._lock is not None:
            self._lock.release()
        if self._closes:
            self.store.close()


def topic_sink(topic: str, context: SinkContext, store: Store | FilePath | None = None) -> TopicSink | OtherStoreSink:
    """The sink of a run: into `store`, by default the run's."""
    from dataflow.state.store import Store

    run_store = context.store
    if store is None or (isinstance(run_store, Store) and _same(store, run_store)):
        assert isinstance(run_store, Store), "the plan refuses a topic without a store"
        return TopicSink(topic, run_store, context.schema, publishes=False)
    closes = not isinstance(store, Store)
    target = store if isinstance(store, Store) else Store(store, system=context.system)
    if context.staging is not None:
        return OtherStoreSink(topic, target, context, closes=closes)
    return TopicSink(topic, target, context.schema, publishes=True, closes=closes, room=context.room)


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
    """The rows in batches of a good size."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        rows, nbytes = sum(one.num_rows for one in waiting), sum(one.nbytes for one in waiting)
        if waiting and (rows + batch.num_rows > BATCH_ROWS_MAX or nbytes + batch.nbytes > BATCH_BYTES_MAX):
            yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()
            waiting = []
        waiting.append(batch)
    if waiting:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()


def _same(store: Store | FilePath, run_store: Store) -> bool:
    path: FilePath = getattr(store, "path", store)  # type: ignore[arg-type]
    return os.path.abspath(path) == os.path.abspath(run_store.path)

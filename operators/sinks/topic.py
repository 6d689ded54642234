"""Writes results into a topic of the event log: of the run's store, or of another one.

What is prepared for the run's store is handed to the run, which publishes it in the one commit of the epoch. Rows
for another store cannot be in that commit: this sink publishes them itself, after it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from dataflow.operators.base import SinkContext
from dataflow.state.layout import check_topic_name
from dataflow.system import FilePath

if TYPE_CHECKING:
    from dataflow.state.log.writer import Pending
    from dataflow.state.store import Store

__all__ = ["TopicSink", "check_topic_name"]


@dataclass(slots=True, eq=False)
class OwnPending:
    """Prepared rows of a store that is not the run's: published by the sink, once."""

    pending: Pending
    is_published: bool = False


class TopicSink:
    """Appends to partition 0 of a topic; holds its lock from the start of the run to `close`.

    `prepare` returns a Pending for the run to publish when `store` is the run's (`publishes` is false).
    """

    def __init__(self, topic: str, store: Store, schema: pa.Schema, *, publishes: bool, closes: bool = False) -> None:
        self.topic, self.store = topic, store
        self.publishes, self.closes = publishes, closes
        self.writer = store.writer(topic, schema)

    @classmethod
    def of(cls, topic: str, context: SinkContext, store: Store | FilePath | None = None) -> TopicSink:
        """The sink of a run: into `store`, by default the run's."""
        from dataflow.state.store import Store

        run_store = context.store
        if store is None or (isinstance(run_store, Store) and _same(store, run_store)):
            assert isinstance(run_store, Store), "the plan refuses a topic without a store"
            return cls(topic, run_store, context.schema, publishes=False)
        if isinstance(store, Store):
            return cls(topic, store, context.schema, publishes=True)
        return cls(topic, Store(store, system=context.system), context.schema, publishes=True, closes=True)

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
            self.store.publish([handle.pending])
            handle.is_published = True

    def abort(self, handle: object) -> None:
        """Take back all that is not published, prepared or not."""
        self.writer.rollback()

    def close(self) -> None:
        self.writer.close()
        if self.closes:
            self.store.close()


def _same(store: Store | FilePath, run_store: Store) -> bool:
    path: FilePath = getattr(store, "path", store)  # type: ignore[arg-type]
    return os.path.abspath(path) == os.path.abspath(run_store.path)

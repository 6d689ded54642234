"""Bugs planted in running pipelines: epochs, checkpoints and sinks.

Most are caught by simulated runs (row 14), whose kills and stops come at every moment; prepared parts taken back, and
an epoch after the one that stops, were bugs of ours. Stops are row 12's. Bugs of the ledger balance in each step, so
that only who compares steps sees them (row 17).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow.message import Barrier, Batch
from dataflow.operators.base import StepCounts
from dataflow.operators.sinks.files import FileEpoch, FileSink
from dataflow.operators.sinks.sqlite import SqliteSink
from dataflow.operators.sinks.staged import StagedEpoch
from dataflow.operators.stateless import Filter
from dataflow.runtime.commit import StoreCommitter
from dataflow.runtime.coordinator import Coordinator
from dataflow.runtime.epoch import Commit
from dataflow.runtime.inputs import MergedInput
from dataflow.runtime.job import Job
from dataflow.runtime.sink_task import SinkTask
from dataflow.state.records import EpochRecord


@contextmanager
def replaced(owner: Any, name: str, by: object) -> Iterator[None]:
    """Another function in the place of one of a class or module."""
    usual = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, usual)


def barrier_not_aligned() -> AbstractContextManager[None]:
    """A task with several inputs goes on with the first barrier, and takes rows behind it from there."""

    def first_one(self: MergedInput, barrier: Barrier) -> Barrier | None:
        seen = getattr(self, "seen_epoch", 0)
        self._blocked = [None] * len(self.channels)
        if barrier.epoch <= seen:
            return None
        self.seen_epoch = barrier.epoch  # type: ignore[attr-defined]
        return barrier

    return replaced(MergedInput, "_aligned", first_one)


def positions_apart() -> AbstractContextManager[None]:
    """Positions are committed with the epoch after the one whose state they belong to."""
    record, before = StoreCommitter._record, dict[StoreCommitter, dict[str, object]]()

    def record_late(self: StoreCommitter, commit: Commit, *arguments: Any, **options: Any) -> EpochRecord:
        made = record(self, commit, *arguments, **options)
        checkpoint = dict(made.checkpoint)
        known = before.get(self, {})
        before[self] = {"sources": checkpoint["sources"]}
        return made if commit.finished else replace(made, checkpoint=checkpoint | known)

    return replaced(StoreCommitter, "_record", record_late)


def sinks_before_the_store() -> AbstractContextManager[None]:
    """Sinks make visible what they prepared, and then the store commits."""
    usual = Coordinator._commit

    def sinks_first(self: Coordinator, job: Any, acks: Any, fresh: Any, *, ended: bool) -> None:
        for sink in job.sinks:
            if id(sink) in fresh and not hasattr(sink.handle, "batches"):
                sink.sink.commit(sink.handle)
        usual(self, job, acks, fresh, ended=ended)

    return replaced(Coordinator, "_commit", sinks_first)


def commit_not_repeatable() -> AbstractContextManager[None]:
    """A table does not remember which epochs it has."""

    def always(self: SqliteSink, epoch: StagedEpoch, batches: Iterable[pa.RecordBatch]) -> None:
        with self._transaction() as connection:
            connection.execute(self.target.create_sql)
            self._insert(connection, batches)

    return replaced(SqliteSink, "apply", always)


def rename_before_commit() -> AbstractContextManager[None]:
    """A file gets its name when it is complete, not when its epoch is committed."""
    prepare = FileSink.prepare

    def prepare_and_show(self: FileSink, epoch: int) -> dict[str, object]:
        handle = prepare(self, epoch)
        self._publish(FileEpoch.of(handle).parts)
        return handle

    return replaced(FileSink, "prepare", prepare_and_show)


def epoch_after_a_stop() -> AbstractContextManager[None]:
    """After the epoch that stops a run another one begins, while a sink still commits."""
    usual = Coordinator.turn

    def once_more(self: Coordinator, job: Job) -> None:
        usual(self, job)
        if self.stopped and self._round is None and not job.over and not self.gave_up:
            self._begin(job, stops=True)

    return replaced(Coordinator, "turn", once_more)


def aborted_though_nobody_knows() -> AbstractContextManager[None]:
    """After a commit of which nobody knows whether it is durable, sinks take back what they have prepared."""

    def take_back(self: SinkTask) -> None:
        if self._commit_now:
            self.sink.commit(self.handle)
        else:
            self.sink.abort(self.handle)

    return replaced(SinkTask, "settle", take_back)


def stop_without_a_commit() -> AbstractContextManager[None]:
    """A run that was told to stop leaves at once: what is in flight is left to the next one."""
    usual = Coordinator._commit

    def commit_nothing(self: Coordinator, job: Any, acks: Any, fresh: Any, *, ended: bool) -> None:
        if not self.stopped:
            usual(self, job, acks, fresh, ended=ended)
            return
        with replaced(self.committer, "commit", lambda commit: None):
            usual(self, job, acks, fresh, ended=ended)

    return replaced(Coordinator, "_commit", commit_nothing)


def epochs_counted_again() -> AbstractContextManager[None]:
    """The ledger of an epoch has all rows of the run so far."""
    return replaced(StepCounts, "since", lambda self, before: self)


def row_lost_behind_a_filter() -> AbstractContextManager[None]:
    """A filter counts a row as passed, and does not hand it on."""
    usual = Filter.on_batch

    def lose_one(self: Filter, batch: Batch) -> None:
        if batch.num_rows > 1:
            self.counts.rows_in += 1
            self.counts.passed += 1
            is_first = np.arange(batch.num_rows) == 0
            batch = batch.without(is_first)
        usual(self, batch)

    return replaced(Filter, "on_batch", lose_one)

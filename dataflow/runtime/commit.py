"""Where an epoch becomes durable: one transaction of the run's store, or nowhere when there is none.

Sinks that write into the run's store hand over what they prepared (`Pending`); it is published in the same
transaction as the epoch's own record, so that results and progress can never differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING

from dataflow.errors import PlanError
from dataflow.runtime.coordinator import Commit
from dataflow.system import System

if TYPE_CHECKING:
    from dataflow.state.records import EpochRecord
    from dataflow.state.store import Store
    from dataflow.system import Lock


@contextmanager
def open_store(given: Store | str | PathLike[str] | None, system: System) -> Iterator[Store | None]:
    """The store of a run; opened and closed here when a path was given."""
    if given is None:
        yield None
        return
    from dataflow.state.store import Store

    if isinstance(given, Store):
        yield given
        return
    with Store(given, system=system) as store:
        yield store


class StoreCommitter:
    """Commits the epochs of one pipeline. Used with `with`: holds the pipeline's lock in its store.

    `reads_only` is for `collect` and `head`, which read a store but leave no trace in it.
    """

    def __init__(self, store: Store | None, pipeline: str, graph_hash: str, reads_only: bool) -> None:
        self.store = None if reads_only else store
        self.pipeline, self.graph_hash = pipeline, graph_hash
        self.finished = False
        self._unfinished: EpochRecord | None = None
        """The last epoch of a run whose input has ended, until its sinks have committed it."""
        self._lock: Lock | None = None

    def __enter__(self) -> StoreCommitter:
        if self.store is not None:
            self._lock = self.store.lock_pipeline(self.pipeline)
            try:
                self._look_back(self.store)
            except BaseException:
                self._lock.release()
                raise
        return self

    def _look_back(self, store: Store) -> None:
        """What an earlier run of this pipeline left here."""
        before = store.pipeline(self.pipeline)
        if before is None:
            return
        if before.graph_hash != self.graph_hash:
            raise PlanError(
                f"pipeline `{self.pipeline}` has run in this store before, as another program; nothing was changed",
                code="DF0406",
                help="give the pipeline another name, or use another store",
            )
        if not before.finished:
            raise PlanError(
                f"pipeline `{self.pipeline}` was stopped in this store after epoch {before.epoch}, and its open "
                "windows were not kept; going on would give wrong results; nothing was changed",
                code="DF0407",
                help="run it in another store, or under another name; what it committed stays readable",
            )
        self.finished = True

    def commit(self, commit: Commit) -> None:
        """Make the epoch durable; raises when the store cannot, and then nothing of it is visible.

        A run has finished with its last epoch if only topics of the store take part in it; sinks of other kinds
        commit after the store, and might fail.
        """
        if self.store is None:
            return
        from dataflow.state.log.writer import Pending
        from dataflow.state.records import EpochRecord

        pendings = [one for one in commit.handles if isinstance(one, Pending)]
        others = len(pendings) < len(commit.handles)
        record = EpochRecord(
            pipeline=self.pipeline,
            epoch=commit.epoch,
            finished=commit.finished and not others,
            graph_hash=self.graph_hash,
            positions=commit.cut,
            watermarks={},
            ledger={},
        )
        self.store.publish(pendings, epoch=record)
        self._unfinished = (
            replace(record, epoch=commit.epoch + 1, finished=True) if commit.finished and others else None
        )

    def finish(self) -> None:
        """All sinks have committed the last epoch, and nothing has failed."""
        if self.store is not None and self._unfinished is not None:
            self.store.publish([], epoch=self._unfinished)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()

"""Sinks that write somewhere else after the commit: the epoch's rows wait in the store until they are there.

`prepare` makes the rows durable, `commit` hands them over. A commit that is repeated must not write twice, so the
target keeps, in the same transaction as the rows, how far it got; the words for that come from here. A run goes on only
where that fits what the store says: neither is an older copy, or gone. The hard part is telling histories apart: a
pipeline that begins anew in another store counts its epochs from 1 again, and a target that remembers the old ones must
not take the new rows for those that it has. So each history gets a name, by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pyarrow as pa

from dataflow.errors import ConnectorError
from dataflow.operators.base import SinkContext

STAGED_BYTES_MAX = 4 << 20
"""Rows in memory before they are staged: each time makes a frame, and a frame for a few rows is mostly overhead."""


@dataclass(frozen=True, slots=True)
class StagedEpoch:
    """What an epoch's handle says: which history of the pipeline it belongs to, its number there, and its rows."""

    history: str
    epoch: int
    rows: int
    before: int
    """The last epoch before it that had rows; 0 for none."""

    @classmethod
    def of(cls, handle: object) -> StagedEpoch:
        told: Any = handle
        return cls(str(told["history"]), int(told["epoch"]), int(told["rows"]), int(told["before"]))


class Waiting(Protocol):
    """Rows that wait for a commit: in the run's store (`SinkStaging`), or in a `Spool` where there is none."""

    @property
    def rows(self) -> int: ...
    def keep(self, batches: Sequence[pa.RecordBatch]) -> None: ...
    def batches(self) -> Iterable[pa.RecordBatch]: ...
    def drop(self) -> None: ...


class StagedSink:
    """Keeps the rows of an epoch until its commit; subclasses say in `apply` where they go. Its handles are JSON."""

    def __init__(self, context: SinkContext, staging: Waiting) -> None:
        self.context, self.staging = context, staging
        self.has_store = context.staging is not None
        self._history = f"{context.system.chance.getrandbits(64):016x}"
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0
        self._epoch = self._epoch_with_rows = 0
        """The last one that was prepared, and the last one that was handed over and had rows."""
        self._applied: StagedEpoch | None = None

    def apply(self, epoch: StagedEpoch, batches: Iterable[pa.RecordBatch]) -> None:
        """Write the rows of an epoch, unless the target has them already."""
        raise NotImplementedError

    def applied_epoch(self, history: str) -> int | None:
        """The last epoch of a history whose rows the target has; 0 for none, None when it does not say."""
        return None

    def begin(self) -> None:
        """The target is what the store takes it for; what it takes to write there may be made now."""

    def recover(self, handle: object) -> None:
        """Hand over what an earlier run has committed and perhaps not handed over."""
        if handle is None:
            self.begin()
            return
        last = StagedEpoch.of(handle)
        found = self.applied_epoch(last.history)
        if found is not None:
            self._check_target(last, found)
        self.begin()
        self._history, self._epoch = last.history, last.epoch
        self._epoch_with_rows = last.before if found is None else found
        self._apply(last)

    def open(self, epoch: int) -> None:
        """Nothing to open."""

    def write(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        self._waiting.append(batch)
        self._waiting_bytes += batch.nbytes
        if self._waiting_bytes >= STAGED_BYTES_MAX:
            self._stage()

    def prepare(self, epoch: int) -> dict[str, object]:
        self._stage()
        self._epoch = max(epoch, self._epoch + 1)
        return asdict(StagedEpoch(self._history, self._epoch, self.staging.rows, self._epoch_with_rows))

    def commit(self, handle: object) -> None:
        """Hand the epoch's rows over; may be repeated."""
        self._apply(StagedEpoch.of(handle))

    def abort(self, handle: object) -> None:
        """Nobody has seen the rows yet. The run is over: the store keeps those of its last commit."""
        self._waiting, self._waiting_bytes = [], 0
        if not self.has_store:
            self.staging.drop()

    def close(self) -> None:
        """The run is over."""
        if not self.has_store:
            self.staging.drop()

    def _check_target(self, last: StagedEpoch, found: int) -> None:
        """The target gets an epoch after the store's commit of it, and before the next one. If it has a later one, the
        store is an older copy, whose next epochs would pass for those that the target has. If it has less, the target
        is one, or was made anew: the rows of all epochs but the last are nowhere else."""
        if found > last.epoch:
            raise ConnectorError(
                f"{self.context.name} has the rows of epoch {found} of pipeline `{self.context.pipeline}`, and the "
                f"store of this run is at {last.epoch}: it is an older copy; nothing was changed",
                code="DF0516",
                help="put the newer store back; or give the pipeline another name, and it begins at the inputs' start",
            )
        if found < last.before and not self.context.restart:
            has = f"has its rows up to epoch {found} only" if found else "has none of its rows"
            raise ConnectorError(
                f"pipeline `{self.context.pipeline}` has written {self.context.name} up to epoch {last.before}, and "
                f"what is there now {has}: it was removed, or is an older copy; nothing was changed",
                code="DF0517",
                help="put it back; or begin again with `restart`: all rows are then written once more",
            )

    def _apply(self, epoch: StagedEpoch) -> None:
        if epoch == self._applied:
            return
        if epoch.rows:
            self.apply(epoch, self.staging.batches())
            self.staging.drop()
            self._epoch_with_rows = epoch.epoch
        self._applied = epoch

    def _stage(self) -> None:
        if self._waiting:
            self.context.room.attempt(lambda: self.staging.keep(self._waiting))
        self._waiting, self._waiting_bytes = [], 0

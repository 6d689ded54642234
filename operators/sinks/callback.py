"""A function of the user's as a sink: it gets the rows of each epoch, after the commit.

At least once: when it fails, or the process dies while it runs, the next run calls it again with the same rows and the
same epoch. A function that remembers the epochs it has dealt with makes exactly once of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pyarrow as pa

from dataflow.operators.base import SinkContext
from dataflow.operators.sinks.output import Spool
from dataflow.operators.sinks.staged import StagedEpoch, StagedSink

__all__ = ["CallbackSink"]


class CallbackSink(StagedSink):
    """Calls `fn(batch, epoch)` once an epoch that has rows; an exception of it fails the run."""

    def __init__(self, fn: Callable[[pa.RecordBatch, int], object], context: SinkContext) -> None:
        super().__init__(context, context.staging or Spool(context, None))
        self._fn = fn

    def apply(self, epoch: StagedEpoch, batches: Iterable[pa.RecordBatch]) -> None:
        rows = pa.Table.from_batches(batches, schema=self.context.schema).combine_chunks()
        for batch in rows.to_batches():  # one, unless a column has more text than fits into one
            self._fn(batch, epoch.epoch)

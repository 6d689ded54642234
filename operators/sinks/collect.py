"""A sink that keeps its rows in memory: what `.collect()` and `.head()` return."""

from __future__ import annotations

import pyarrow as pa


class CollectSink:
    """Keeps batches; `table()` is what has been written. With `limit`, `full` tells when there are enough rows."""

    def __init__(self, schema: pa.Schema, limit: int | None = None) -> None:
        self.schema, self.limit = schema, limit
        self.rows = 0
        self._batches: list[pa.RecordBatch] = []

    @property
    def full(self) -> bool:
        return self.limit is not None and self.rows >= self.limit

    def open(self, epoch: int) -> None:
        """Nothing to open."""

    def write(self, batch: pa.RecordBatch) -> None:
        if self.limit is not None:
            batch = batch.slice(0, self.limit - self.rows)
        self.rows += batch.num_rows
        self._batches.append(batch)

    def prepare(self, epoch: int) -> None:
        """Memory cannot be made durable."""

    def commit(self, handle: object) -> None:
        """Rows are visible as soon as they are written."""

    def abort(self, handle: object) -> None:
        """The run fails as a whole: nobody gets the table."""

    def table(self) -> pa.Table:
        return pa.Table.from_batches(self._batches, schema=self.schema)

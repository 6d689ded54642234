"""What tests of whole runs share: a sink that keeps rows, and one run that gives final and late rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

import dataflow as flow
from tests import oracle


@dataclass
class KeepingSink:
    """A user's sink that keeps every batch; what an epoch wrote counts once it is committed."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    committed: int = 0
    _prepared: dict[int, int] = field(default_factory=dict)

    def open(self, epoch: int) -> None:
        """Nothing to open."""

    def write(self, batch: pa.RecordBatch) -> None:
        self.batches.append(batch)

    def prepare(self, epoch: int) -> object:
        self._prepared[epoch] = len(self.batches)
        return epoch

    def commit(self, handle: object) -> None:
        assert isinstance(handle, int)
        self.committed = max(self.committed, self._prepared[handle])

    def abort(self, handle: object) -> None:
        del self.batches[self.committed :]

    def rows(self) -> list[dict[str, Any]]:
        assert self.committed == len(self.batches), "rows were written but never committed"
        return [row for batch in self.batches for row in oracle.rows_of(pa.Table.from_batches([batch]))]


@dataclass(frozen=True)
class WindowRun:
    """The rows of a windowed aggregate and of its late stream, from one run."""

    final: Sequence[dict[str, Any]]
    late: Sequence[dict[str, Any]]
    result: flow.RunResult


def run_windows(windows: flow.Stream, workers: int) -> WindowRun:
    """Run a windowed aggregate together with its late stream."""
    final, late = KeepingSink(), KeepingSink()
    result = flow.Pipeline("harness", windows.to(final, name="final"), windows.late.to(late, name="late")).run(
        workers=workers
    )
    return WindowRun(final.rows(), late.rows(), result)

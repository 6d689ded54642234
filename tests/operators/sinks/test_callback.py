"""A function of the user's: when it is called, with what, and what its failure means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import dataflow as flow
from dataflow.errors import RunError, TypeMismatchError

TABLE = pa.table({"n": [1, 2, 3]})


@pytest.mark.parametrize("store", [True, False])
def test_it_is_called_once_an_epoch_with_all_of_its_rows(tmp_path: Path, store: bool) -> None:
    calls: list[tuple[int, list[int]]] = []

    def keep(batch: pa.RecordBatch, epoch: int) -> None:
        assert isinstance(batch, pa.RecordBatch)
        calls.append((epoch, batch["n"].to_pylist()))

    flow.Pipeline("p", flow.from_arrow(TABLE).write_callback(keep)).run(store=tmp_path / "s" if store else None)
    assert calls == [(1, [1, 2, 3])]


def test_a_failure_of_it_fails_the_run_with_the_users_line_and_the_epoch_comes_again(tmp_path: Path) -> None:
    calls: list[tuple[int, list[int]]] = []

    def fails_once(batch: pa.RecordBatch, epoch: int) -> None:
        calls.append((epoch, batch["n"].to_pylist()))
        if len(calls) <= 2:  # the run asks a second time before it gives up
            raise KeyError("no such user")

    pipeline = flow.Pipeline("p", flow.from_arrow(TABLE, name="t").write_callback(fails_once))
    with pytest.raises(RunError, match="no such user") as caught:
        pipeline.run(store=tmp_path / "store")
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.origin is not None and caught.value.origin.file == __file__
    before = len(calls)
    pipeline.run(store=tmp_path / "store")
    assert len(calls) > before
    assert set(map(str, calls)) == {str((1, [1, 2, 3]))}


def test_what_cannot_be_called_is_refused() -> None:
    wrong: Any = "print"
    with pytest.raises(TypeMismatchError, match="needs a function, got str"):
        flow.from_arrow(TABLE).write_callback(wrong)

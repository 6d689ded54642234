"""What tests of sources share: reading all of a source, as a run does, and checking what every source promises."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from dataflow.operators.base import Idle, ReadRequest, Rows, Split, SplitSource
from dataflow.system import RealSystem, System

SYSTEM = RealSystem()
IDLE_SECONDS = 0.001
"""A blocking source without rows is asked again this often."""


def request(
    source: SplitSource, columns: Sequence[str] | None = None, dictionary: Sequence[str] = (), system: System = SYSTEM
) -> ReadRequest:
    names = source.schema(system).names if columns is None else columns
    return ReadRequest(tuple(names), frozenset(dictionary), system)


def parts(source: SplitSource, asked: ReadRequest | None = None) -> list[Rows]:
    """All decoded parts of the first partition, checked: whole columns in the wanted order, positions that rise."""
    asked = asked or request(source)
    schema = source.schema(asked.system)
    found: list[Rows] = []
    after = 0
    for split in source.splits(0, asked):
        if isinstance(split, Idle):
            assert source.blocking
            asked.system.scheduler.event().wait(IDLE_SECONDS)
            continue
        read = list(split.read())
        assert read, "a split has at least one Rows"
        for part in read:
            assert list(part.columns) == list(asked.columns)
            for name, column in part.columns.items():
                assert isinstance(column, pa.Array)
                assert len(column) == part.num_rows
                is_hinted = name in asked.dictionary and pa.types.is_dictionary(column.type)
                type = column.type.value_type if is_hinted else column.type
                assert type == schema.field(name).type, (name, type)
            assert part.first_position >= after
            after = part.first_position + part.num_rows
        found += read
    return found


def columns(source: SplitSource, asked: ReadRequest | None = None) -> dict[str, list[Any]]:
    """The values of all parts together."""
    asked = asked or request(source)
    read = parts(source, asked)
    return {name: [value for part in read for value in part.columns[name].to_pylist()] for name in asked.columns}


def rows(source: SplitSource, asked: ReadRequest | None = None) -> list[tuple[Any, ...]]:
    return list(zip(*columns(source, asked).values(), strict=True))


def rows_by_threads(source: SplitSource, asked: ReadRequest, threads: int = 2) -> list[tuple[Any, ...]]:
    """The same, each split decoded by any of several threads."""
    splits: Iterator[Split | Idle] = iter(source.splits(0, asked))
    lock = threading.Lock()
    found: list[Rows] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                with lock:
                    split = next(splits, None)
                if split is None:
                    return
                assert not isinstance(split, Idle)
                found.extend(split.read())
        except BaseException as error:  # noqa: BLE001  # told by the thread that waits
            failed.append(error)

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not failed, failed
    ordered = sorted(found, key=lambda part: part.first_position)
    return [row for part in ordered for row in zip(*(c.to_pylist() for c in part.columns.values()), strict=True)]

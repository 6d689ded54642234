"""A run that is cut off anywhere and goes on gives what an uninterrupted run gives, with any number of workers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

import dataflow as flow
from dataflow import col, count

ROWS, PARTITIONS = 6_000, 3
SCHEMA = pa.schema({"ts": pa.timestamp("us"), "k": pa.int64(), "name": pa.string(), "x": pa.float64()})


class NoMoreError(Exception):
    """The reader's network is gone."""


def partition_rows(number: int) -> pa.RecordBatch:
    """Rows in disorder of up to 3 s, some late, with a null key now and then."""
    chance = random.Random(number)
    times = [10_000 * i + chance.randint(-1_500_000, 1_500_000) for i in range(ROWS)]
    for late in range(700, ROWS, 700):
        times[late] -= 30_000_000
    keys = [None if chance.random() < 0.01 else chance.randint(0, 40) for _ in range(ROWS)]
    names = [f"n{chance.randint(0, 5)}" for _ in range(ROWS)]
    floats = [chance.uniform(-1e6, 1e6) for _ in range(ROWS)]
    arrays = [pa.array(times, pa.timestamp("us")), pa.array(keys), pa.array(names), pa.array(floats)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


FIRST_STEPS = ("filter", "watermark")
DATA = [partition_rows(number) for number in range(PARTITIONS)]


@dataclass
class Cuts:
    """How many rows may still be read before the network is gone; None: all."""

    rows_left: int | None = None
    opened_at: list[object] = field(default_factory=list)


class Network:
    """A source of several partitions that can be read from any row on, and breaks off when it is told to."""

    name = "network"
    schema = SCHEMA

    def __init__(self, cuts: Cuts, rows_a_batch: int = 97) -> None:
        self.cuts, self.rows_a_batch = cuts, rows_a_batch

    def partitions(self) -> Sequence[str]:
        return [f"p{number}" for number in range(PARTITIONS)]

    def open(self, partition: str, position: object | None) -> Reader:
        self.cuts.opened_at.append(position)
        return Reader(self, DATA[int(partition[1:])], position or 0)


class Reader:
    def __init__(self, network: Network, rows: pa.RecordBatch, at: Any) -> None:
        self.network, self.rows, self.at = network, rows, at

    def read(self, rows_max: int) -> pa.RecordBatch | flow.EndOfInput:
        if self.at >= self.rows.num_rows:
            return flow.EndOfInput()
        cuts = self.network.cuts
        found = self.rows.slice(self.at, min(self.network.rows_a_batch, rows_max))
        if cuts.rows_left is not None:
            cuts.rows_left -= found.num_rows
            if cuts.rows_left < 0:
                raise NoMoreError("the network is gone")
        self.at += found.num_rows
        return found

    def position(self) -> object:
        return self.at


def stateless(rows: flow.Stream) -> flow.Stream:
    return rows.filter(col.x > 0).derive(y=col.x * 2)


def windows(rows: flow.Stream) -> flow.Stream:
    timed = rows.watermark("ts", delay="2s")
    return timed.window(flow.tumbling("5s"), by=["k", "name"]).agg(
        n=count(), total=col.x.sum(), least=col.x.min(), first=col.x.first(), best=col.name.max_by(col.x)
    )


def quantiles(rows: flow.Stream) -> flow.Stream:
    timed = rows.watermark("ts", delay="2s")
    return timed.window(flow.tumbling("5s"), by="k").agg(n=count(), half=col.x.quantile(0.5, exact=True))


def unkeyed(rows: flow.Stream) -> flow.Stream:
    return rows.watermark("ts", delay="2s").window(flow.tumbling("7s"), lateness="3s").agg(n=count())


def chained(rows: flow.Stream) -> flow.Stream:
    minutes = windows(rows).window(flow.tumbling("20s"), by="name")
    return minutes.agg(n=col.n.sum(), last=col.total.last(), windows=count())


def pipeline(build: Any, cuts: Cuts, rows_a_batch: int = 97) -> flow.Pipeline:
    made = build(flow.read(Network(cuts, rows_a_batch)))
    sinks = [made.write_topic("out")]
    if build is not stateless and build is not chained:
        sinks.append(made.late.write_topic("late"))
    return flow.Pipeline("job", *sinks)


def content(store: Path) -> dict[str, list[dict[str, Any]]]:
    with flow.Store(store) as opened:
        return {info.name: opened.read(info.name).to_pylist() for info in opened.topics()}


def same(found: dict[str, list[dict[str, Any]]], expected: dict[str, list[dict[str, Any]]]) -> None:
    assert found.keys() == expected.keys()
    for topic, rows in expected.items():
        if topic == "out":
            assert found[topic] == rows, topic
        else:  # late rows of several partitions have no order among each other
            assert sorted(map(repr, found[topic])) == sorted(map(repr, rows)), topic


@pytest.mark.parametrize("build", [stateless, windows, quantiles, unkeyed, chained])
def test_a_run_that_is_cut_off_again_and_again_gives_the_same_rows(tmp_path: Path, build: Any) -> None:
    pipeline(build, Cuts()).run(store=tmp_path / "whole", workers=1)
    expected = content(tmp_path / "whole")
    chance = random.Random(build.__name__)
    cuts, failures = Cuts(), 0
    for workers in [1, 2, 4, 1, 3, 2, 1, 4] * 3:
        cuts.rows_left = chance.randint(500, 4_000) if failures < 20 else None
        try:
            pipeline(build, cuts, chance.choice([1, 10, 97, 500])).run(
                store=tmp_path / "cut", workers=workers, checkpoint_interval="1ms"
            )
            break
        except flow.DataflowError as error:
            assert isinstance(error.__cause__, NoMoreError), error
            failures += 1
    with flow.Store(tmp_path / "cut") as store:
        state = store.pipeline("job")
        assert state is not None and state.finished and state.epoch > failures > 2
        ledger = store.ledger("job")
    if build is stateless:
        # rows of several partitions interleave by chance
        found = content(tmp_path / "cut")
        assert sorted(map(repr, found["out"])) == sorted(map(repr, expected["out"]))
    else:
        same(content(tmp_path / "cut"), expected)
    heads = [counts for epoch in ledger.values() for step, counts in epoch.items() if step.startswith(FIRST_STEPS)]
    read = sum(cast(dict[str, int], counts).get("rows_in", 0) for counts in heads)
    assert read == ROWS * PARTITIONS, "the epochs' ledgers tell of every row once"

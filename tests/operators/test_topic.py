"""Topics as source and sink: splits are published batches, and the run's commit publishes what sinks prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import dataflow as flow
from dataflow.errors import DataflowError, NameNotFoundError, PlanError
from dataflow.operators.base import Idle, ReadRequest, Sink, SinkContext
from dataflow.operators.sinks.topic import topic_sink
from dataflow.operators.sources.topic import TopicSource
from dataflow.state.log.writer import Pending
from dataflow.state.store import Store
from dataflow.state.verify import verify
from dataflow.system import LockHeldError, RealSystem

SCHEMA = pa.schema({"n": pa.int64(), "word": pa.string()})


def rows(start: int, count: int) -> pa.Table:
    return pa.table({"n": range(start, start + count), "word": [f"w{n}" for n in range(start, start + count)]})


def batch(start: int, count: int) -> pa.RecordBatch:
    return rows(start, count).to_batches()[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for start in (0, 10, 20):
        store.append("t", rows(start, 10))
    return store


def request(store: Store | None, *columns: str) -> ReadRequest:
    return ReadRequest(columns or ("n", "word"), frozenset(), RealSystem(), store)


def read(source: TopicSource, request: ReadRequest) -> list[tuple[int, dict[str, list[object]]]]:
    """The first position and the columns of each split."""
    read = []
    for partition in range(len(source.partitions(request))):
        for split in source.splits(partition, request):
            assert not isinstance(split, Idle)
            for part in split.read():
                assert all(len(column) == part.num_rows for column in part.columns.values())
                read.append((part.first_position, {name: c.to_pylist() for name, c in part.columns.items()}))
    return read


def test_a_split_is_a_published_batch_and_positions_are_offsets(store: Store) -> None:
    source = TopicSource("t")
    assert [position for position, _ in read(source, request(store))] == [0, 10, 20]
    assert (source.name, source.bounded, source.blocking) == ("t", True, False)
    assert source.partitions(request(store)) == ["t/0"]


def test_only_the_wanted_columns_are_handed_out_in_the_wanted_order(store: Store) -> None:
    assert [list(columns) for _, columns in read(TopicSource("t"), request(store, "word", "n"))] == [["word", "n"]] * 3
    assert read(TopicSource("t", start=29), request(store, "word")) == [(29, {"word": ["w29"]})]


def test_start_and_until_cut_inside_of_batches(store: Store) -> None:
    found = read(TopicSource("t", start=5, until=21), request(store, "n"))
    assert found == [(5, {"n": [5, 6, 7, 8, 9]}), (10, {"n": list(range(10, 20))}), (20, {"n": [20]})]
    assert read(TopicSource("t", start=30), request(store)) == []
    assert read(TopicSource("t", until=0), request(store)) == []


def test_what_is_appended_while_it_reads_is_not_read(store: Store) -> None:
    splits = TopicSource("t").splits(0, request(store))
    read = [next(splits)]
    store.append("t", rows(30, 10))
    read += splits
    assert sum(part.num_rows for split in read if not isinstance(split, Idle) for part in split.read()) == 30


def test_every_partition_is_read(store: Store) -> None:
    with store.writer("t", SCHEMA, partition=3) as writer:
        writer.append(batch(100, 2))
        pending = writer.prepare()
        assert pending is not None
        store.publish([pending])
    assert TopicSource("t").partitions(request(store)) == ["t/0", "t/3"]
    assert read(TopicSource("t"), request(store, "n"))[-1] == (0, {"n": [100, 101]})


def test_a_column_that_came_later_is_null_in_older_batches(store: Store) -> None:
    store.append("t", rows(30, 1).append_column("more", pa.array([1.5])))
    found = read(TopicSource("t", start=29), request(store, "more"))
    assert found == [(29, {"more": [None]}), (30, {"more": [1.5]})]


def test_the_schema_comes_from_a_store_of_its_own_or_the_source_says_that_it_needs_one(store: Store) -> None:
    system = RealSystem()
    assert TopicSource("t", store).schema(system) == SCHEMA
    assert TopicSource("t", store.path).schema(system) == SCHEMA
    with pytest.raises(PlanError, match="not said which store"):
        TopicSource("t").schema(system)
    with pytest.raises(NameNotFoundError, match="no topic `u`"):
        TopicSource("u", store).schema(system)


def test_a_wrong_topic_or_start_fails_when_the_source_is_built() -> None:
    with pytest.raises(DataflowError, match="cannot be named"):
        TopicSource("a/b")
    for wrong in ("latest", -1, True):
        with pytest.raises(PlanError, match="`start`"):
            TopicSource("t", start=wrong)
    unfit: Any
    for unfit in ("5", 2.5, -1):
        with pytest.raises(PlanError, match="`until` of a topic is an offset"):
            TopicSource("t", until=unfit)
    with pytest.raises(PlanError, match=r"`until` \(3\) comes before `start` \(5\)"):
        TopicSource("t", start=5, until=3)


def test_the_identity_tells_sources_apart(store: Store) -> None:
    same = [TopicSource("t", store).identity(), TopicSource("t", store.path).identity()]
    assert same[0] == same[1]
    others = [
        TopicSource("t"),
        TopicSource("t", store, start=1),
        TopicSource("t", store, until=1),
        TopicSource("u", store),
    ]
    assert len({same[0], *(one.identity() for one in others)}) == 5


# ── the sink ──


def context(store: Store | None) -> SinkContext:
    return SinkContext(SCHEMA, RealSystem(), store, "job")


def test_rows_for_the_runs_store_are_handed_to_the_run_and_it_publishes_them(store: Store) -> None:
    sink = topic_sink("out", context(store))
    assert isinstance(sink, Sink)
    for epoch in (1, 2):
        sink.open(epoch)
        sink.write(batch(epoch, 3))
        pending = sink.prepare(epoch)
        assert isinstance(pending, Pending)
        store.publish([pending])
        sink.commit(pending)
    assert sink.prepare(3) is None
    sink.commit(None)
    sink.close()
    assert store.read("out")["n"].to_pylist() == [1, 2, 3, 2, 3, 4]


def test_a_sink_that_named_the_runs_store_by_its_path_is_in_its_commit_too(store: Store) -> None:
    sink = topic_sink("out", context(store), store.path)
    assert sink.store is store
    sink.close()


def test_rows_for_another_store_are_published_by_the_sink_once(store: Store, tmp_path: Path) -> None:
    for run_store in (store, None):
        path = tmp_path / f"other-{run_store is None}"
        sink = topic_sink("out", context(run_store), path)
        sink.open(1)
        sink.write(batch(0, 2))
        handle = sink.prepare(1)
        assert not isinstance(handle, Pending), "the run must not publish it in its own store"
        sink.commit(handle)
        sink.commit(handle)
        sink.close()
        with Store(path) as other:
            assert other.read("out")["n"].to_pylist() == [0, 1]


def test_a_store_that_another_pipeline_wrote_into_is_as_it_should_be(store: Store, tmp_path: Path) -> None:
    for number in range(2):
        rows = flow.from_arrow(pa.table({"n": [1, 2]}), name="rows")
        flow.Pipeline("p", rows.write_topic("out", store=tmp_path / "other")).run(store=tmp_path / f"run{number}")
    with Store(tmp_path / "other") as other:
        assert other.read("out")["n"].to_pylist() == [1, 2, 1, 2]
    report = verify(tmp_path / "other")
    assert not report.findings


def test_abort_takes_back_what_was_prepared_and_what_was_not(store: Store) -> None:
    sink = topic_sink("out", context(store))
    sink.open(1)
    sink.write(batch(0, 2))
    handle = sink.prepare(1)
    sink.write(batch(2, 2))
    sink.abort(handle)
    sink.abort(None)
    sink.write(batch(7, 1))
    pending = sink.prepare(1)
    assert isinstance(pending, Pending)
    store.publish([pending])
    sink.close()
    assert store.read("out")["n"].to_pylist() == [7]


def test_a_second_run_into_the_same_topic_is_refused_while_the_first_one_has_it(store: Store) -> None:
    sink = topic_sink("out", context(store))
    with pytest.raises(LockHeldError, match="topic `out`"):
        topic_sink("out", context(store))
    sink.close()
    topic_sink("out", context(store)).close()

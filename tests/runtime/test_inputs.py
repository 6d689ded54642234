"""Before a sink, rows of several tasks are put into one order; what is in order already is only joined."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest

from dataflow.message import DERIVED, Barrier, Batch, End, Watermark
from dataflow.operators.base import EventTime, StreamType
from dataflow.runtime import inputs
from dataflow.runtime.channel import Channel
from dataflow.runtime.inputs import MergedInput, OrderedInput, TimeOrderedInput

KIND = StreamType(pa.schema({"k": pa.int64(), "end": pa.timestamp("us")}), EventTime("end", 1), order_keys=("k",))


def batch(*rows: tuple[int, int], in_order: tuple[str, ...] | None = ("k",)) -> Batch:
    ends = pa.array([end for end, _ in rows], pa.timestamp("us"))
    columns = {"k": pa.array([key for _, key in rows]), "end": ends}
    made = Batch(columns, len(rows), DERIVED, time_us=np.array([end - 1 for end, _ in rows]))
    made.in_order = in_order
    return made


def rows_of(source: TimeOrderedInput) -> list[list[tuple[int, int]]]:
    """The rows of each batch that is ready."""
    found = []
    while (message := source.poll()) is not None:
        if isinstance(message, Batch):
            ends = message.columns["end"].cast("int64").to_pylist()
            found.append(list(zip(ends, message.columns["k"].to_pylist(), strict=True)))
    return found


@pytest.fixture
def channels() -> list[Channel]:
    return [Channel(threading.Event(), threading.Event()) for _ in range(2)]


def test_windows_of_two_tasks_that_follow_each_other_are_not_sorted(
    channels: list[Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "canonical_order", lambda *_: pytest.fail("they were sorted again"))
    source = TimeOrderedInput(channels, KIND, positions=False, state_name=None)
    channels[0].put(batch((20, 1), (20, 5)))
    channels[1].put(batch((10, 2), (10, 7), (30, 1)))
    for channel in channels:
        channel.put(Watermark(20))
    assert rows_of(source) == [[(10, 2), (10, 7), (20, 1), (20, 5)]]
    for channel in channels:
        channel.put(End(flush=True))
    assert rows_of(source) == [[(30, 1)]]


def test_windows_that_two_tasks_share_are_put_into_order(channels: list[Channel]) -> None:
    source = TimeOrderedInput(channels, KIND, positions=False, state_name=None)
    channels[0].put(batch((10, 2), (10, 7)))
    channels[1].put(batch((10, 5)))
    channels[1].put(batch((20, 3), (20, 1), in_order=None))
    for channel in channels:
        channel.put(Watermark(20))
    assert rows_of(source) == [[(10, 2), (10, 5), (10, 7), (20, 1), (20, 3)]]


def test_a_batch_whose_key_was_replaced_is_no_longer_known_to_be_in_order() -> None:
    made = batch((10, 1), (10, 2))
    assert made.with_columns({**made.columns, "more": made.columns["k"]}).in_order == ("k",)
    assert made.slice(1, 1).in_order == made.filter(pa.array([True, False]), 1).in_order == ("k",)
    assert made.with_columns({**made.columns, "k": pa.array([9, 1])}).in_order is None
    assert made.take(np.array([1, 0])).in_order is None


@pytest.mark.parametrize("kind", ["merged", "in sequence"])
@pytest.mark.parametrize("end_first", [True, False])
def test_a_barrier_finds_the_same_watermark_whether_the_end_of_another_channel_came_before_or_after_it(
    channels: list[Channel], kind: str, end_first: bool
) -> None:
    """Tasks of a step see them in either order; what they keep at the barrier has to fit together."""
    source = MergedInput(channels) if kind == "merged" else OrderedInput(channels, ["a", "b"])
    channels[0].put(Watermark(20))
    channels[1].put(Watermark(10))
    found = [source.poll()]
    late: tuple[tuple[Channel, Barrier | End], ...] = ((channels[1], End(flush=True)), (channels[0], Barrier(7)))
    for channel, message in late if end_first else late[::-1]:
        channel.put(message)
        while (made := source.poll()) is not None:
            found.append(made)
    assert found == [Watermark(10), Watermark(20), Barrier(7)]

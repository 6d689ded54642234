"""Times in columns: floors, saturation, and the watermark before each row."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataflow.kernels.windows import panes_of, running_watermark, scan_times

LOW, HIGH = -(2**63) + 1, 2**63 - 1
some = st.lists(st.integers(LOW, HIGH) | st.integers(-100, 100) | st.sampled_from([LOW, HIGH]), min_size=1)
many = st.tuples(some, st.integers(-100, 100), st.integers(1, 300)).map(lambda p: [*p[0], *([p[1]] * p[2]), *p[0]])
times = some | many
"""A few times of all kinds; or so many alike between them that the kernels take them by blocks."""


factors = st.sampled_from([1_000_000, 1_000, 1, -1_000])


def saturated(ticks: list[int], factor: int) -> list[int]:
    exact = [tick * factor if factor > 0 else tick // -factor for tick in ticks]
    return [min(max(time, LOW), HIGH) for time in exact]


@given(times, factors, st.integers(1, 2**40), st.data())
def test_a_pane_is_the_floor_of_its_time(ticks: list[int], factor: int, size_us: int, data: st.DataObject) -> None:
    offset_us = data.draw(st.integers(0, size_us - 1))
    panes = np.empty(len(ticks), dtype=np.int64)
    panes_of(np.array(ticks), factor, size_us, offset_us, panes)
    assert panes.tolist() == [(time - offset_us) // size_us for time in saturated(ticks, factor)]


@given(times, factors, st.integers(0, 2**40))
def test_times_saturate_and_tell_who_is_behind(ticks: list[int], factor: int, delay_us: int) -> None:
    least, most, behind = scan_times(np.array(ticks), factor, delay_us)
    expected = saturated(ticks, factor)
    assert (least, most) == (min(expected), max(expected))
    assert behind == any(max(expected[: n + 1]) - time > delay_us for n, time in enumerate(expected))


@given(times, st.integers(LOW, HIGH), st.integers(0, 2**40))
def test_the_watermark_before_a_row_knows_only_earlier_rows(found: list[int], before_us: int, delay_us: int) -> None:
    out = np.empty(len(found), dtype=np.int64)
    running_watermark(np.array(found), before_us, delay_us, out)
    assert out.tolist() == [max(max([before_us, *found[:n]]) - delay_us, LOW) for n in range(len(found))]

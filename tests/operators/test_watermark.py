"""The line of a partition: the greatest time before a unit is known once all earlier units have reported."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from dataflow.message import TIME_MAX_US, TIME_MIN_US
from dataflow.operators.watermark import WatermarkLine


@given(st.lists(st.integers(-100, 100), min_size=1), st.randoms())
def test_reports_may_come_in_any_order(maxima: list[int], random: object) -> None:
    line = WatermarkLine(threading.Lock())
    line.register([0])
    order = list(range(len(maxima)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for unit in order:
        line.report(0, unit, maxima[unit])
    for unit in range(len(maxima)):
        assert line.before(0, unit) == max([TIME_MIN_US, *maxima[:unit]])


def test_an_earlier_unit_that_is_missing_holds_the_later_ones() -> None:
    line = WatermarkLine(threading.Lock())
    line.register([0])
    line.report(0, 1, 50)
    assert line.before(0, 1) is None and line.max_us({}) == TIME_MIN_US
    line.report(0, 0, 70)
    assert line.before(0, 2) == 70 and line.max_us({}) == 70 and line.max_us({0: 1}) == 70


def test_a_partition_that_has_ended_holds_nobody_back() -> None:
    line = WatermarkLine(threading.Lock())
    line.register([0, 1])
    line.report(0, 0, 10)
    line.report(1, 0, 99)
    assert line.max_us({}) == 10
    line.finish(0, 1)
    assert line.max_us({}) == 99
    line.finish(1, 1)
    assert line.max_us({}) == TIME_MAX_US

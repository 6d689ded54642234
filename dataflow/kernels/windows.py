"""Event time in columns: panes, and the watermark before each row.

Every sum saturates at the limits of int64: a row at the end of time must not wrap into the past.
"""

from __future__ import annotations

import numpy as np

from dataflow.kernels import helper, kernel
from dataflow.message import Int64Array

_MIN, _MAX = -(2**63) + 1, 2**63 - 1
_BLOCK = 128
"""Rows that are tested together: mostly all of them are alike, and then loops without branches do."""


@helper
def _limits(values: Int64Array, start: np.uint64, end: np.uint64) -> tuple[int, int]:
    """The least and the greatest of some values."""
    low = _MAX
    high = -(2**63)
    for row in range(start, end):
        low = min(low, values[row])
        high = max(high, values[row])
    return low, high


@helper
def _time_us(ticks: int, factor: int) -> int:
    """A time in microseconds: ticks times `factor`, or, when it is negative, divided by its size and floored."""
    if factor < 0:
        return ticks // -factor
    limit = _MAX // factor
    return _MAX if ticks > limit else (_MIN if ticks < -limit else ticks * factor)


@kernel
def panes_of(ticks: Int64Array, factor: int, size_us: int, offset_us: int, panes: Int64Array) -> None:
    """The number of the window of each time: floor((time - offset) / size). Rows of one window come in runs."""
    low = 1
    high = 0
    pane = 0
    for block in range(0, len(ticks), _BLOCK):
        start = np.uint64(block)
        end = np.uint64(min(block + _BLOCK, len(ticks)))
        least, most = _limits(ticks, start, end)
        if _time_us(least, factor) >= low and _time_us(most, factor) < high:
            for row in range(start, end):
                panes[row] = pane
            continue
        for row in range(start, end):
            time = _time_us(ticks[row], factor)
            if time < low or time >= high:
                # floor((time - offset) / size) without the difference, which may not fit
                pane = time // size_us
                if time - pane * size_us < offset_us:
                    pane -= 1
                low = pane * size_us + offset_us
                high = low + size_us
                if high < low:  # a window at the limits wraps: never trust the run
                    low = 1
                    high = 0
            panes[row] = pane


@kernel
def scan_times(ticks: Int64Array, factor: int, delay_us: int) -> tuple[int, int, bool]:
    """The least and the greatest time, and whether a row is more than `delay_us` behind one before it.

    Blocks are tested as a whole: as a rule no row is that far behind all that came before its block ends.
    """
    least = _MAX
    most = _MIN
    behind = False
    for block in range(0, len(ticks), _BLOCK):
        start = np.uint64(block)
        end = np.uint64(min(block + _BLOCK, len(ticks)))
        low, high = _limits(ticks, start, end)
        low = _time_us(low, factor)
        high = _time_us(high, factor)
        least = min(least, low)
        # in unsigned numbers the difference always fits
        if np.uint64(max(most, high)) - np.uint64(low) > np.uint64(delay_us):
            for row in range(start, end):
                time = _time_us(ticks[row], factor)
                most = max(most, time)
                behind |= bool(np.uint64(most) - np.uint64(time) > np.uint64(delay_us))
        most = max(most, high)
    return least, most, behind


@kernel
def running_watermark(time_us: Int64Array, before_us: int, delay_us: int, watermark_us: Int64Array) -> None:
    """The watermark before each row: the greatest time before it (`before_us` at first) less the delay."""
    most = before_us
    for row in range(len(time_us)):
        watermark_us[row] = most - delay_us if most >= _MIN + delay_us else _MIN
        if time_us[row] > most:
            most = time_us[row]

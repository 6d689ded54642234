"""Event time in columns: panes, and the watermark before each row.

Every sum saturates at the limits of int64: a row at the end of time must not wrap into the past.
"""

from __future__ import annotations

import numpy as np

from dataflow.kernels import kernel
from dataflow.message import Int64Array

_MIN, _MAX = -(2**63) + 1, 2**63 - 1


@kernel
def panes_of(time_us: Int64Array, size_us: int, offset_us: int, panes: Int64Array) -> None:
    """The number of the window of each time: floor((time - offset) / size). Rows of one window come in runs."""
    low = 1
    high = 0
    pane = 0
    for row in range(len(time_us)):
        time = time_us[row]
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
def event_times(ticks: Int64Array, factor: int, delay_us: int, time_us: Int64Array) -> tuple[int, int, bool]:
    """Times in microseconds: ticks times `factor`, or, when it is negative, divided by its size and floored.

    Returns the least and the greatest, and whether a row is more than `delay_us` behind one before it.
    """
    limit = _MAX // factor if factor > 0 else _MAX
    least = _MAX
    most = _MIN
    behind = False
    for row in range(len(ticks)):
        time = ticks[row]
        if factor < 0:
            time = time // -factor
        else:
            time = _MAX if time > limit else (_MIN if time < -limit else time * factor)
        time_us[row] = time
        least = min(least, time)
        most = max(most, time)
        # in unsigned numbers the difference always fits
        behind |= bool(np.uint64(most) - np.uint64(time) > np.uint64(delay_us))
    return least, most, behind


@kernel
def running_watermark(time_us: Int64Array, before_us: int, delay_us: int, watermark_us: Int64Array) -> None:
    """The watermark before each row: the greatest time before it (`before_us` at first) less the delay."""
    most = before_us
    for row in range(len(time_us)):
        watermark_us[row] = most - delay_us if most >= _MIN + delay_us else _MIN
        if time_us[row] > most:
            most = time_us[row]

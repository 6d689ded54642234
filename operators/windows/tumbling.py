"""Tumbling windows: equal lengths that do not overlap, cut at multiples of the size from 1970 UTC on.

Rows before 1970 have negative pane numbers: division floors, so no window is cut at zero twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflow.errors import PlanError
from dataflow.event_time import format_duration
from dataflow.message import TIME_MAX_US, TIME_MIN_US, Int64Array


@dataclass(frozen=True, kw_only=True)
class TumblingWindow:
    """Windows of `size_us`, moved by `offset_us`.

    >>> TumblingWindow(size_us=60_000_000).start_us(np.array([1, -1])).tolist()
    [60000000, -60000000]
    """

    size_us: int
    offset_us: int = 0

    def __post_init__(self) -> None:
        if self.size_us <= 0:
            raise PlanError("a tumbling window needs a size above zero", help='write it as in `flow.tumbling("1m")`')

    def panes_of(self, ticks: Int64Array, factor: int) -> Int64Array:
        from dataflow.kernels.windows import panes_of

        panes = np.empty(len(ticks), dtype=np.int64)
        panes_of(ticks, factor, self.size_us, self.offset_us % self.size_us, panes)
        return panes

    def start_us(self, panes: Int64Array) -> Int64Array:
        return self._edge_us(panes, 0)

    def end_us(self, panes: Int64Array) -> Int64Array:
        return self._edge_us(panes, 1)

    def last_ended(self, time_us: int) -> int:
        return (time_us - self.offset_us % self.size_us) // self.size_us - 1

    def _edge_us(self, panes: Int64Array, after: int) -> Int64Array:
        offset_us = self.offset_us % self.size_us
        low, high = -((-TIME_MIN_US + offset_us) // self.size_us), (TIME_MAX_US - offset_us) // self.size_us
        numbers = panes + after
        edges = np.clip(numbers, low, high) * self.size_us + offset_us
        edges[numbers < low] = TIME_MIN_US
        edges[numbers > high] = TIME_MAX_US
        return edges

    def describe(self) -> str:
        moved = f", offset={format_duration(self.offset_us)}" if self.offset_us else ""
        return f"tumbling {format_duration(self.size_us)}{moved}"

    def identity(self) -> tuple[object, ...]:
        return ("tumbling", self.size_us, self.offset_us % self.size_us)

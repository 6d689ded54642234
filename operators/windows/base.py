"""What a kind of window is: how it assigns rows to panes, and when a pane is final.

A pane is the smallest slice of event time that overlapping windows share; a tumbling window is one pane. Panes
are numbered, so that state needs one integer a group whatever the window's kind.
"""

from __future__ import annotations

from typing import Protocol

from dataflow.message import Int64Array


class Window(Protocol):
    """Frozen and checked when built."""

    def panes_of(self, ticks: Int64Array, factor: int) -> Int64Array:
        """The pane of each event time; `factor` makes microseconds of the ticks (negative: it divides)."""
        ...

    def start_us(self, panes: Int64Array) -> Int64Array:
        """The first tick of each pane's window, saturating at the limits of int64."""
        ...

    def end_us(self, panes: Int64Array) -> Int64Array:
        """The tick after each pane's window, saturating at the limits of int64."""
        ...

    def last_ended(self, time_us: int) -> int:
        """The last pane whose windows have all ended at this time, of panes numbered without limits."""
        ...

    def describe(self) -> str: ...

    def identity(self) -> tuple[object, ...]: ...

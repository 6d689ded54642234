"""Torture: the promises of the store, each with the fault that is meant to break it (`dataflow torture`).

A row of the scoreboard is one module here with a `ROW`; a new one needs its module and its line in MODULES. All of
them follow the same rules: the seed is told first and decides everything, acknowledgements are kept by a process
outside of the killed group, a fault counts when it really fired, and what cannot run on a machine is not proven
there.
"""

from __future__ import annotations

from importlib import import_module

from dataflow.torture.frame import Budget, Plan, Result, Row, Tally

__all__ = ["Budget", "Plan", "Result", "Row", "Tally", "all_rows", "row"]

MODULES = {
    1: "kills",
    2: "end_to_end",
    3: "crash_points",
    4: "crash_images",
    5: "power_cuts",
    6: "failed_syncs",
    7: "full_disk",
    8: "bit_flips",
    11: "fast_recovery",
    12: "stops",
    13: "one_writer",
    14: "simulation",
    17: "conservation",
    22: "no_code_from_data",
    25: "teeth",
}
"""The rows that there are, by their numbers."""


def row(number: int) -> Row:
    """A row by its number."""
    found: Row = import_module(f"dataflow.torture.{MODULES[number]}").ROW
    assert found.number == number
    return found


def all_rows() -> list[Row]:
    return [row(number) for number in MODULES]

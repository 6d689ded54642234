"""Where each row of a run went, by step; summed over the tasks when the run is over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dataflow.operators.base import StepCounts


@dataclass(slots=True)
class UnreadRows:
    """Late or error rows that no later step reads: how many, and the first ones for the message."""

    step: str
    port: str
    rows: int = 0
    first: list[str] = field(default_factory=list)


SHOWN_MAX = 10
"""Unread rows that are told one by one; the others are counted."""


def summed(counts: Iterable[tuple[str, StepCounts]]) -> dict[str, StepCounts]:
    """The counts of equal steps added up, in the order of their first task."""
    total: dict[str, StepCounts] = {}
    for step, one in counts:
        total.setdefault(step, StepCounts()).add(one)
    return total

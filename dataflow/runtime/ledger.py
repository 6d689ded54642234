"""Where each row went, by step: summed over the tasks, for each epoch and for the whole run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dataflow.errors import RunError
from dataflow.operators.base import StepCounts


def summed(counts: Iterable[tuple[str, StepCounts]]) -> dict[str, StepCounts]:
    """The counts of equal steps added up, in the order of their first task."""
    total: dict[str, StepCounts] = {}
    for step, one in counts:
        total.setdefault(step, StepCounts()).add(one)
    return total


def require_balance(ledger: Mapping[str, StepCounts]) -> None:
    """Raise unless every row that came into a step is accounted for. It would be our own mistake."""
    for step, counts in ledger.items():
        if not counts.is_balanced:
            raise RunError(
                f"{step}: rows are not accounted for ({counts}); the epoch was not committed",
                code="DF0901",
                help="this is a mistake of dataflow: please report it with the pipeline; the last commit stands",
            )

"""Row 25: the other rows have teeth.

Each mutant is planted in turn, and the row that is meant for it runs until it finds something wrong. One that is not
found within a CI run of that row is damage here: the row's green would mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dataflow.torture import row as row_by_number
from dataflow.torture.frame import Budget, Plan, Result, Row
from dataflow.torture.mutants import MUTANTS, Mutant
from dataflow.torture.processes import STOPPED

NUMBER = 25


def row_of_mutants(rows: Sequence[int] | None = None) -> Row:
    """Row 25, with the mutants of some rows only."""
    mutants = [mutant for mutant in MUTANTS if rows is None or mutant.row in rows or NUMBER in rows]

    def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
        for mutant in mutants[: budget.trials]:
            run_mutant(mutant, plan, result)

    return Row(number=NUMBER, promise="each planted bug is caught", trials_ci=len(MUTANTS), run_plan=run_plan)


def run_mutant(mutant: Mutant, plan: Plan, result: Result) -> None:
    """Run the row that is meant for a mutant, and note how many cycles it took; where it can run."""
    reason = skip_reason(mutant)
    if reason is not None:
        result.skipped_parts.append(f"{mutant.name} ({reason})")
        return
    caught = caught_by(mutant, plan)
    tally = result.tally
    tally.trials += 1
    tally.faults += 1
    if STOPPED in caught.tally.counts:
        result.notes.append(f"{mutant.name}: caught by row {mutant.row} in {caught.tally.trials:,} cycles")
    else:
        cycles = f"{caught.tally.trials} cycles of row {mutant.row}"
        tally.find("undetected", f"the mutant `{mutant.name}` was not caught in {cycles}", group=mutant.name)


def skip_reason(mutant: Mutant) -> str | None:
    """Why a mutant cannot be caught on this machine."""
    return mutant.skip_reason() or row_by_number(mutant.row).skip_reason()


def caught_by(mutant: Mutant, plan: Plan) -> Result:
    """What the row that is meant for a mutant says of it."""
    own = replace(plan, trials=None, minutes=None, mutant=mutant.name, stop_at=mutant.sign, lanes=1)
    return row_by_number(mutant.row).run(own)


ROW = row_of_mutants()

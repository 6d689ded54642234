"""Each planted bug is caught by the row that is meant for it: without that, a green row means nothing."""

from __future__ import annotations

import pytest

from dataflow.state.log.segment import GrowingSegment
from dataflow.torture import MODULES, Plan
from dataflow.torture.mutants import MUTANTS, Mutant, planted
from dataflow.torture.processes import STOPPED
from dataflow.torture.teeth import caught_by, skip_reason

SEED = 20_261


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_caught(mutant: Mutant) -> None:
    reason = skip_reason(mutant)
    if reason is not None:
        pytest.skip(reason)
    result = caught_by(mutant, Plan(seed=SEED))
    assert result.tally.counts.get(STOPPED), f"not in {result.tally.trials} cycles: {result.details()}"


def test_a_bug_is_there_only_while_it_is_planted() -> None:
    right = GrowingSegment.sync
    with planted("no fsync of a segment"):
        assert GrowingSegment.sync is not right
    assert GrowingSegment.sync is right


def test_every_mutant_has_a_row() -> None:
    assert {mutant.row for mutant in MUTANTS} <= set(MODULES)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)

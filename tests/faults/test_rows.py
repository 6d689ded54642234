"""Each row of the scoreboard at a small size; `dataflow torture` runs them longer."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from dataflow.torture import Plan, Result, row

SEED = 20_261
TRIALS = {1: 60, 2: 6, 3: 250, 4: 700, 5: 30, 6: 40, 7: 40, 8: 3_000, 11: 1, 12: 10, 13: 60, 14: 150, 17: 40, 22: 4}
ROOT = Path(__file__).parents[2]


@cache
def result_of(number: int) -> Result:
    return row(number).run(Plan(seed=SEED, trials=TRIALS[number]))


def told(result: Result) -> str:
    return "\n".join([result.line(), *result.details()])


@pytest.mark.slow
@pytest.mark.parametrize("number", sorted(TRIALS))
def test_the_promise_of_a_row_holds(number: int) -> None:
    result = result_of(number)
    if result.skipped is not None:
        pytest.skip(result.skipped)
    assert result.status == "ok", told(result)
    assert result.tally.trials >= TRIALS[number]


@pytest.mark.slow
def test_there_are_never_two_writers() -> None:
    tally = result_of(13).tally
    assert (tally.lost, tally.duplicated, tally.hung, tally.signals) == (0, 0, 0, 0), told(result_of(13))
    assert {"holder left", "holder stopped", "holder killed", "raced to make a store"} <= set(tally.counts)


@pytest.mark.slow
def test_kills_hit_the_inside_of_commits() -> None:
    assert result_of(1).tally.counts["killed inside of a commit"] > 20


@pytest.mark.slow
def test_a_full_disk_loses_nothing_and_doubles_nothing() -> None:
    tally = result_of(7).tally
    assert (tally.lost, tally.duplicated, tally.out_of_order, tally.hung, tally.signals) == (0, 0, 0, 0, 0)
    assert tally.faults > 20
    assert tally.counts["targets of a pipeline were full"] > 1


@pytest.mark.slow
def test_damaged_bytes_of_every_kind_of_file_are_noticed() -> None:
    counts = result_of(8).tally.counts
    assert counts["segment: detected"] > 500
    assert counts["state: detected"] > 100
    assert counts["catalog.db: detected"] > 50
    assert counts["catalog.db-wal: detected"] > 50


@pytest.mark.slow
def test_a_run_that_is_killed_hits_the_middle_of_its_work() -> None:
    tally = result_of(2).tally
    assert tally.counts["killed between the first commit and the last"] >= TRIALS[2] - 2, told(result_of(2))
    assert tally.counts["rows that the follower saw"] > 10_000


@pytest.mark.slow
def test_runs_are_stopped_with_every_kind_of_input_and_number_of_workers() -> None:
    counts = result_of(12).tally.counts
    assert sum(counts[name] for name in counts if "bounded input" in name) >= 3, told(result_of(12))
    assert sum(counts[name] for name in counts if "endless input" in name) >= 3, told(result_of(12))
    assert counts["rows compared, topic"] > 1_000


TRACE = """
import random
from dataflow.torture.simulation import Job, silent, undisturbed
with silent():
    print([undisturbed(Job(random.Random(seed)), seed)[0] for seed in range(6)])
"""


@pytest.mark.slow
def test_a_seed_leaves_the_same_trace_in_every_process() -> None:
    """Where order comes from hashes of text, Python gives each process another one."""
    traces = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", TRACE]
        traces.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(traces) == 1
    assert len(set(traces.pop().split())) == 6

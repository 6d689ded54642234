"""Row 17: no row vanishes between a source and a sink, and each epoch says where its rows went.

Pipelines drawn by lot run on a simulated machine, with faults. After every run, however it came to its end, the ledger
in the store is held against its sources and sinks (`books.py`, which is also what the other rows do that run
pipelines). The answers themselves are row 14's.
"""

from __future__ import annotations

from random import Random

from dataflow.system import SimulatedSystem
from dataflow.torture import simulation
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally
from dataflow.torture.processes import Reporter, run_lanes


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.conservation:lane")


ROW = Row(
    number=17,
    promise="rows in = out + filtered + late + dead + in state, by step and epoch",
    trials_ci=40,
    run_plan=run_plan,
)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    done, number = 0, first
    while reporter.goes_on(done):
        with reporter.trial(number) as tally:
            try_once(seed + number * lanes + lane, tally)
        done, number = done + 1, number + 1


def try_once(seed: int, tally: Tally) -> None:
    """One pipeline with faults, looked at after each run."""
    where = f"seed {seed}"
    job = simulation.Job(Random(seed))

    def look(system: SimulatedSystem, number: int) -> None:
        simulation.check_ledger(system, job, tally, f"{where}, after run {number}")

    with simulation.machine_of(job):
        system = simulation.disturbed(job, seed, tally, where, after_run=look)
        if system is not None:
            simulation.check_ledger(system, job, tally, f"{where}, at the end", has_ended=True)

"""The rows of `dataflow torture` at the sizes of the acceptance list, and the mutants that they have to catch."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.lines import Line, Options

SEED = 20_261
TRIALS = {2: 60, 1: 300, 3: 980, 4: 5_000, 5: 60, 6: 40, 7: 30, 8: 20_000, 12: 20, 13: 200, 14: 500, 17: 40}
"""By row: kills end to end, kills of the log, crash points, crash images, power cuts (which need root), failed fsyncs,
full disks, damaged bytes, stops, racing openers, simulated runs, and the ledgers of such runs. Rows 11 and 22 have
modules of their own: `recovery` and `audit`."""
KILLS_INSIDE_MIN = 50
MUTANTS_MIN = 10


def lines(options: Options) -> Iterator[Line]:
    from dataflow.torture import Plan, row

    for number, trials in TRIALS.items():
        result = row(number).run(Plan(seed=SEED, trials=trials))
        tally = result.tally
        told = "; ".join(result.details()[:8])
        what = f"row {number}, {result.promise}: {tally.trials:,} trials, {tally.faults:,} faults fired ({told})"
        figure = f"{tally.damage} bad, {tally.undetected} undetected, {tally.signals} signals, {result.seconds:.0f} s"
        yield Line(what, figure, f"{trials:,} trials, 0 bad", result.status == "ok" and tally.trials >= trials)
        if number == 2:
            inside = tally.counts.get("killed between the first commit and the last", 0)
            what = f"of {tally.faults} SIGKILLs, between the first commit and the last"
            yield Line(what, str(inside), f"≥ {KILLS_INSIDE_MIN}", inside >= KILLS_INSIDE_MIN)
    yield _mutants()


def _mutants() -> Line:
    from dataflow.torture import Plan
    from dataflow.torture.mutants import MUTANTS
    from dataflow.torture.processes import STOPPED
    from dataflow.torture.teeth import caught_by

    began, told, caught = time.perf_counter(), [], 0
    for mutant in MUTANTS:
        tally = caught_by(mutant, Plan(seed=SEED)).tally
        is_caught = STOPPED in tally.counts
        caught += is_caught
        told.append(f"{mutant.name}: {tally.trials if is_caught else 'NOT CAUGHT'}")
    what = f"mutants caught, cycles to catch ({'; '.join(told)}; {time.perf_counter() - began:.0f} s)"
    enough = caught == len(MUTANTS) >= MUTANTS_MIN
    return Line(what, f"{caught} of {len(MUTANTS)}", f"all of ≥ {MUTANTS_MIN}", enough)

"""How soon a killed run with 100 MB of open windows gives its first new row: row 11 of `dataflow torture`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.lines import Line, Options, at_most

STATE_BYTES_MIN, SECONDS_MAX = 100e6, 2.0
ROUNDS, SEED = 5, 20_261


def lines(options: Options) -> Iterator[Line]:
    from dataflow.torture import Plan, row
    from dataflow.torture.fast_recovery import STATE_BYTES, TIME_TO_ROW

    del options
    result = row(11).run(Plan(seed=SEED, trials=ROUNDS))
    tally = result.tally
    state = tally.counts[STATE_BYTES] / tally.trials
    what = f"{state / 1e6:.0f} MB of state, {tally.trials} kills: {TIME_TO_ROW}"
    yield at_most(what, statistics.median(tally.seconds[TIME_TO_ROW]), SECONDS_MAX, "s", 2)
    yield Line("state that was restored", f"{state / 1e6:.0f} MB", "≥ 100 MB", state >= STATE_BYTES_MIN)
    yield Line(
        f"what came of it ({'; '.join(result.details())})", f"{tally.damage} bad", "0 bad", result.status == "ok"
    )

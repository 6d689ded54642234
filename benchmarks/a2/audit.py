"""No code comes out of a store or a file: row 22 of `dataflow torture`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.lines import Line, Options

SEED, TRIALS = 20_261, 6


def lines(options: Options) -> Iterator[Line]:
    from dataflow.torture import Plan, row

    del options
    result = row(22).run(Plan(seed=SEED, trials=TRIALS))
    what = "import, exec, compile, unpickling and the like while a store is restored, read, verified and explained"
    told = f"{what} ({result.tally.trials} stores; {'; '.join(result.details())})"
    yield Line(told, f"{result.tally.damage} events", "0 events", result.status == "ok")

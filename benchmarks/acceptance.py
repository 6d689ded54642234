"""Prints every line of an acceptance list with its figure and its bar.

    python benchmarks/acceptance.py A1|A2 [--only NAME …] [--flights flights.csv] [--rows N] [--rounds N]

Without --only everything runs but `fresh` (clones the repository and runs make there: some minutes), which is asked
for by name. Nothing else should run meanwhile. Exits with 1 when a line falls short.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import tumbling, workload
from benchmarks.lines import Line, Options

CHECKS: dict[str, Sequence[str]] = {
    "A1": ("flights", "cuts", "speed", "cost", "startup", "memory", "slow_sink", "fresh"),
    "A2": ("torture", "checkpoints", "recovery", "latency", "audit"),
}
"""By issue, the modules of benchmarks/<issue>/; each has `lines(options)`."""
BY_NAME_ONLY = {"fresh"}


def main() -> int:
    arguments = _arguments()
    options = Options(
        arguments.flights, arguments.work, arguments.rows, arguments.rounds, arguments.seconds
    )  # fmt: skip
    names = arguments.only or [name for name in CHECKS[arguments.issue] if name not in BY_NAME_ONLY]
    print("| | promise | measured | bar |\n|---|---|---:|---:|", flush=True)
    short = 0
    for name in names:
        check = importlib.import_module(f"benchmarks.{arguments.issue.lower()}.{name}")
        for line in check.lines(options):
            print(_row(line), flush=True)
            short += not line.ok
    print(f"\n{short} of the lines above fall short" if short else "\nall lines above are met")
    return 1 if short else 0


def _row(line: Line) -> str:
    return f"| {'ok' if line.ok else 'SHORT'} | {line.text} | {line.figure} | {line.bar} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("issue", choices=CHECKS)
    names = "; ".join(f"{issue}: {', '.join(checks)}" for issue, checks in CHECKS.items())
    parser.add_argument("--only", nargs="+", metavar="NAME", help=names)
    parser.add_argument("--flights", type=Path, help="all flights of 2013 as a CSV file (not in the repository)")
    parser.add_argument("--work", type=Path, default=workload.default_work(), help="where data are made and kept")
    parser.add_argument("--rows", type=int, default=tumbling.ROWS)
    parser.add_argument("--rounds", type=int, default=tumbling.ROUNDS)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the slow sink is fed")
    arguments = parser.parse_args()
    if unknown := set(arguments.only or ()) - set(CHECKS[arguments.issue]):
        parser.error(f"{arguments.issue} has no {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

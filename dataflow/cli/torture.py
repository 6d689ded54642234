"""`dataflow torture`: the promises of the store, tried on this machine.

Without --row every row runs at the size of a CI run; with --minutes or --trials as long as one likes. The seed comes
first, so that whatever happens can be done again. The exit code is 1 when any row is bad; one that cannot run here is
told as SKIPPED, and counts as not proven.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING

import dataflow
from dataflow.errors import ProgramError

if TYPE_CHECKING:
    from dataflow.cli import Commands
    from dataflow.torture import Plan, Result, Row

SEED_MAX = 2**31


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("torture", help="try the promises of the store on this machine")
    parser.add_argument("--row", type=int, action="append", metavar="N", help="only this row; may be given again")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--trials", type=_positive(int), metavar="T", help="so many trials of each row")
    length.add_argument("--minutes", type=_positive(float), metavar="M", help="go on with each row for so long")
    parser.add_argument("--seed", type=int, metavar="S", help="the seed of an earlier run, to do it again")
    parser.add_argument("--mutants", action="store_true", help="plant a bug for each row: does it catch its own?")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--report", action="store_true", help="print a table in Markdown")
    shape.add_argument("--json", action="store_true", help="print one JSON object a row")
    parser.set_defaults(command=torture)


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
        return value

    return number


def torture(arguments: argparse.Namespace) -> int:
    from dataflow.torture import Plan

    seed = random.SystemRandom().randrange(SEED_MAX) if arguments.seed is None else arguments.seed
    rows = _rows(arguments.row, mutants=arguments.mutants)
    plan = Plan(seed=seed, trials=arguments.trials, minutes=arguments.minutes)
    if not arguments.json:
        print(f"seed {seed}", flush=True)
    results = [_run(row, plan, arguments) for row in rows]
    if arguments.report:
        print(_table(results, seed))
    elif not arguments.json:
        print(_summary(results))
    return int(any(result.is_bad for result in results))


def _rows(numbers: list[int] | None, *, mutants: bool) -> list[Row]:
    from dataflow.torture import MODULES, row
    from dataflow.torture.teeth import row_of_mutants

    unknown = [number for number in numbers or () if number not in MODULES]
    if unknown:
        raise ProgramError(
            f"there is no row {unknown[0]}", code="DF0222", help=f"the rows are {', '.join(map(str, MODULES))}"
        )
    if mutants:
        return [row_of_mutants(numbers)]
    return [row(number) for number in numbers or MODULES]


def _run(row: Row, plan: Plan, arguments: argparse.Namespace) -> Result:
    result = row.run(plan)
    if arguments.json:
        print(json.dumps(result.as_json()), flush=True)
    elif not arguments.report:
        print(result.line())
        for line in result.details():
            print(f"          {line}")
    return result


def _summary(results: list[Result]) -> str:
    proven = sum(result.status == "ok" for result in results)
    others = [f"row {result.row} {result.status}" for result in results if result.status != "ok"]
    return f"{proven} of {len(results)} rows hold" + (f"; {', '.join(others)}" if others else "")


def _table(results: list[Result], seed: int) -> str:
    head = [
        f"Made by `dataflow torture --report` on {date.today()}: dataflow {dataflow.__version__}, Python "
        f"{platform.python_version()}, {platform.system()} {platform.release()}, seed {seed}.",
        "",
        "| row | promise | result | trials | faults | lost | duplicated | out of order | wrong | undetected "
        "| signals, hung | below (95 %) | seconds |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    measured = [f"Row {result.row}, {line}." for result in results for line in result.measured()]
    return "\n".join([*head, *(_table_line(result) for result in results), *([""] if measured else []), *measured])


def _table_line(result: Result) -> str:
    tally = result.tally
    if result.skipped is not None:
        return f"| {result.row} | {result.promise} | not proven: {result.skipped} |" + " |" * 10
    status = result.status
    if tally.limits:
        status += f": {tally.limits:,} that the format cannot notice"
    if result.skipped_parts:
        status += f", SKIPPED in part: {'; '.join(result.skipped_parts)}"
    counts = [tally.trials, tally.faults, tally.lost, tally.duplicated, tally.out_of_order, tally.wrong]
    counts += [tally.undetected, tally.signals + tally.hung]
    bound = "" if result.bound is None else f"{result.bound:.2%}"
    cells = [
        str(result.row),
        result.promise,
        status,
        *(f"{count:,}" for count in counts),
        bound,
        f"{result.seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"

"""`dataflow run FILE.py[:name]`: run a program until its input ends or a signal stops it.

The runtime owns the signals (the first one commits and leaves); this file turns what it reports into an exit code
and one line for people on stderr, or one JSON object for machines on stdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dataflow.cli.program import add_program_to, load_pipeline, user_traceback
from dataflow.command_signals import CommandSignals
from dataflow.errors import DataflowError, ProgramError
from dataflow.event_time import duration_us

if TYPE_CHECKING:
    from dataflow.cli import Commands
    from dataflow.pipeline import RunResult

EXIT_FAILED = 1
EXIT_CUT_SHORT = 3
EXIT_INTERRUPTED = 130


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("run", help="run a program")
    add_program_to(parser)
    parser.add_argument("--store", type=Path, metavar="DIR", help="where topics and commits are kept")
    parser.add_argument("--workers", type=_workers, metavar="N", help="worker threads (default: the number of cores)")
    parser.add_argument(
        "--checkpoint-interval",
        type=_interval,
        default="1s",
        metavar="TIME",
        help="how often results and progress are committed, as in 100ms or 10s (default: 1s)",
    )
    parser.add_argument(
        "--until", choices=["head"], help="head: read what is there now, commit, and leave windows open"
    )
    parser.add_argument(
        "--restarts",
        type=_restarts,
        default=0,
        metavar="N",
        help="after a failure begin again from the last commit, up to N times (needs --store; default: 0)",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="forget what an earlier run has kept and read the inputs from their start; rows that it has written stay, "
        "and are written once more (needs --store)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.store is None and (arguments.restart or arguments.restarts):
        raise ProgramError(
            f"{'--restart' if arguments.restart else '--restarts'} needs a store: without one nothing is kept to go on "
            "from",
            code="DF0505",
            help="say where: `--store run/store`",
        )
    signals: CommandSignals = arguments.signals
    pipeline = load_pipeline(arguments.program)
    signals.let_go(signal.SIGTERM)
    _show_log()
    try:
        result = pipeline.run(
            store=arguments.store,
            workers=arguments.workers,
            checkpoint_interval=arguments.checkpoint_interval,
            until=arguments.until,
            restarts=arguments.restarts,
            restart=arguments.restart,
        )
    except DataflowError:
        raise
    except Exception as error:  # noqa: BLE001 - it came out of the user's program
        print(user_traceback(error), end="", file=sys.stderr)
        return EXIT_FAILED
    signals.ignore()
    if arguments.json:
        print(json.dumps(_facts(pipeline.name, result)))
    elif not result.already_finished:  # the run itself has told of that
        print(_summary(pipeline.name, result), file=sys.stderr)
    return exit_code(result.stopped, bounded=result.bounded)


def _show_log() -> None:
    """What runs have to say on their way goes to stderr, as it is."""
    log = logging.getLogger("dataflow")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [logging.StreamHandler()]


def exit_code(stopped: str | None, *, bounded: bool) -> int:
    """What a run that did not fail exits with.

    >>> exit_code(None, bounded=True), exit_code("SIGTERM", bounded=False), exit_code("SIGTERM", bounded=True)
    (0, 0, 3)
    """
    if stopped == "SIGINT":
        return EXIT_INTERRUPTED
    return EXIT_CUT_SHORT if stopped is not None and bounded else 0


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers: give 1 or more")
    return int(text)


def _restarts(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of restarts: give 0 or more")
    return int(text)


def _interval(text: str) -> str:
    try:
        if duration_us(text, "--checkpoint-interval") > 0:
            return text
    except DataflowError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not an interval: give a duration such as 100ms or 10s")


def _facts(name: str, result: RunResult) -> dict[str, object]:
    return {
        "pipeline": name,
        "rows_in": result.rows_in,
        "rows_out": result.rows_out,
        "seconds": round(result.seconds, 6),
        "epochs": result.epochs,
        "stopped": result.stopped,
        "restarts": result.restarts,
        "ledger": result.ledger,
    }


def _summary(name: str, result: RunResult) -> str:
    how = f", stopped by {result.stopped} (open windows stay open)" if result.stopped else ""
    epochs = "1 epoch" if result.epochs == 1 else f"{result.epochs:,} epochs"
    return f"{name}: {result.rows_in:,} rows in, {result.rows_out:,} rows out, {epochs}, {result.seconds:.2f} s{how}"

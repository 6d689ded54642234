"""The command line: `dataflow run | explain | log … | torture`, one file a command.

Messages go to stderr and results to stdout. The exit code is the hard part, since scripts and service managers
act on it: 0 all input read, or endless input stopped by SIGTERM and committed; 1 the run failed; 2 wrong program
or wrong use; 3 bounded input stopped by SIGTERM, or a run that had not begun; 130 after Ctrl-C; 143 after a second
SIGTERM. A user's exception shows the user's traceback, ours show none.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from signal import SIGINT, SIGTERM
from typing import TypeAlias

from dataflow import __version__
from dataflow.cli import explain, log, run, torture
from dataflow.cli.program import has_users_line, user_traceback
from dataflow.command_signals import CommandSignals
from dataflow.errors import DataflowError, ProgramError, RunError, disk_fix, disk_reason

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command adds its parser; argparse has no public name for it."""
EXIT_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None, *, signals: CommandSignals | None = None) -> int:
    """Run one command and return its exit code; `argv` is without the program's name. `signals` are those of a process
    that is the command's own."""
    signals = signals or CommandSignals()
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as asked:  # argparse has printed help (0) or what is wrong (2)
        return int(asked.code or 0)
    signals.let_go(SIGINT)
    if arguments.command is not run.run:  # until it has loaded its program
        signals.let_go(SIGTERM)
    arguments.signals = signals
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has seen enough; nothing more may be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:  # of stdout: what sources and sinks raise is a DataflowError
        print(f"error: the output cannot be written: {disk_reason(error)}\n = help: {disk_fix(error)}", file=sys.stderr)
        return EXIT_FAILED
    except DataflowError as error:
        print(_told(error), file=sys.stderr)
        return EXIT_WRONG_USE if isinstance(error, ProgramError) else EXIT_FAILED


def _told(error: DataflowError) -> str:
    """The error, after the traceback of the user's exception that caused it, if one did."""
    cause = error.__cause__
    if not isinstance(error, RunError) or cause is None or not has_users_line(cause):
        return str(error)
    return f"{user_traceback(cause)}{error}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dataflow", description="Event-time pipelines, run from a file.")
    parser.add_argument("--version", action="version", version=f"dataflow {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (run, explain, log, torture):
        command.add_to(commands)
    return parser

"""`dataflow explain FILE.py[:name]`: what a program means and how it would run, without running it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dataflow.cli.program import add_program_to, load_pipeline

if TYPE_CHECKING:
    from dataflow.cli import Commands


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("explain", help="show the graph and the plan of a program")
    add_program_to(parser)
    parser.set_defaults(command=explain)


def explain(arguments: argparse.Namespace) -> int:
    print(load_pipeline(arguments.program).explain())
    return 0

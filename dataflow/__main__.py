"""The command `dataflow`, also as `python -m dataflow`."""

import sys
from signal import SIGINT, SIGTERM

from dataflow.command_signals import CommandSignals


def main() -> int:
    """Run the command of this process; what it needs is imported once signals are minded."""
    signals = CommandSignals(SIGTERM, SIGINT)
    from dataflow import cli

    code = cli.main(signals=signals)
    signals.ignore()
    return code


if __name__ == "__main__":
    sys.exit(main())

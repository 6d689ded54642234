"""The command `dataflow`, and `python -m dataflow`.

Signals are its own from here on, before the rest is imported, which takes longest: a SIGTERM is noted until there is a
run to stop, and one that comes after the run has ended no longer changes what is told of it.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

EXIT_INTERRUPTED = 130


class ProcessSignals:
    """What a signal does while no run listens to it."""

    def __init__(self) -> None:
        self.is_stop_asked = False
        """Whether SIGTERM has come already."""
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Not raised where it comes: a program may take any exception for one of its own, and an import that is left
        in the middle may leave a lock behind. The next one ends the process."""
        self.is_stop_asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def are_heard(self) -> None:
        """From now on somebody else listens, or they end the process: one that came before, too."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.is_stop_asked:
            signal.raise_signal(signal.SIGTERM)

    def come_too_late(self) -> None:
        """All is done but the leaving."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def main() -> int:
    """Run the command of this process and return its exit code."""
    signals = ProcessSignals()
    try:
        from dataflow.cli import main as run_command

        return run_command(signals=signals)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        signals.come_too_late()


if __name__ == "__main__":
    sys.exit(main())

"""SIGTERM and Ctrl-C of the command `dataflow` while no run minds them: before one begins, and after its work is done.

Imported before the rest of the package, whose imports take a fifth of a second, so it needs nothing of it. A signal is
not raised where it comes: a program may take any exception for one of its own. Nothing has been done yet, so the
process leaves at once, as it would by default, but with a word and an exit code. (One that comes before the interpreter
itself has started ends it without.)
"""

from __future__ import annotations

import os
import signal
from types import FrameType

EXIT_CODES = {signal.SIGTERM: 3, signal.SIGINT: 130}


class CommandSignals:
    """Minds these signals from now on. In a process that is not the command's own there are none."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._before = {number: signal.getsignal(number) for number in numbers}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # as in a shell's background
                signal.signal(number, self._leave)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        sent = signal.Signals(number)
        os.write(2, f"stopped by {sent.name} before the run began: nothing was read, nothing was written\n".encode())
        os._exit(EXIT_CODES[sent])

    def let_go(self, number: signal.Signals) -> None:
        """Let it do what it does in any program."""
        if number in self._before:
            signal.signal(number, self._before[number])

    def ignore(self) -> None:
        """The work is done, and its exit code known: a signal that comes now is too late to change it."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

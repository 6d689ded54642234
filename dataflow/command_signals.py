"""SIGTERM and Ctrl-C of the command `dataflow` while no run minds them: before one begins, and after its work is done.

Imported before the rest of the package, whose imports take a fifth of a second, so it needs nothing of it. A signal is
noted, not raised where it comes: a program may take any exception for one of its own, and an import that is left in the
middle may leave a lock behind. (One that comes before the interpreter itself has started ends the process.)
"""

from __future__ import annotations

import signal
from types import FrameType


class CommandSignals:
    """Notes these signals from now on. In a process that is not the command's own there are none."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._before = {number: signal.getsignal(number) for number in numbers}
        self.noted: str | None = None
        """The name of the one that has come."""
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # as in a shell's background
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # the second one ends the process
        self.noted = signal.Signals(number).name

    def let_go(self, number: signal.Signals) -> None:
        """Let it do what it does in any program."""
        if number in self._before:
            signal.signal(number, self._before[number])

    def ignore(self) -> None:
        """The work is done, and its exit code known: a signal that comes now is too late to change it."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

"""Lanes that go wrong on purpose: what tests of the driver run."""

from __future__ import annotations

import os
import signal

from dataflow.torture.processes import Reporter


def dies_at_the_third(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    for number in range(first, 6):
        with reporter.trial(number) as tally:
            tally.faults += 1
            if number == 2:
                os.kill(os.getpid(), signal.SIGSEGV)


def dies_at_its_second(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    done = 0
    while reporter.goes_on(done):
        with reporter.trial(first + done) as tally:
            tally.faults += 1
            if first == 0 and done == 1:
                os.kill(os.getpid(), signal.SIGSEGV)
        done += 1


def falls_silent(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    for number in range(first, 2):
        with reporter.trial(number):
            if number == 0:
                signal.pause()


def raises(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    with reporter.trial(first):
        raise RuntimeError("a bug of the rig")

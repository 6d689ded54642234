"""What a row of the scoreboard is, what it is asked, and what it answers.

A row is one promise and the fault that is meant to break it. The hard part of such a rig is to know that it bites: a
row counts the faults that really fired (without any it proves nothing, and is bad), and takes the name of a mutant, a
bug that is planted where the work is done, under which it has to come out bad.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dataflow.system import Clock, RealSystem

FINDINGS_MAX, FINDINGS_PER_GROUP_MAX = 20, 2
"""Told in full, of those that are alike; all are counted."""
BOUND_TRIALS = 3.0
"""No failure in N trials bounds the rate at about 3/N, with 95 % confidence."""
SHARED_MEMORY = Path("/dev/shm")
SCRATCH_BYTES_MIN = 256 << 20
DAMAGES = ("lost", "duplicated", "out_of_order", "wrong", "undetected", "signals", "hung")


@dataclass
class Tally:
    """Counts of a row, or of a part of one; parts are added up."""

    trials: int = 0
    faults: int = 0
    """Those that really fired."""
    lost: int = 0
    """Rows that were acknowledged and are not there (or cannot be read)."""
    duplicated: int = 0
    out_of_order: int = 0
    wrong: int = 0
    """Anything else that must not be: half a commit, a row that nobody wrote, an error without a code."""
    undetected: int = 0
    """Damaged bytes that were read as if they were good."""
    signals: int = 0
    """Processes that died of a signal that nobody sent."""
    hung: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """What a row counts besides, by its name."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """What a row measures, by its name: told as quantiles, and no promise by itself."""
    limits: int = 0
    """Damages that the format is known not to notice: measured and told, and no promise is made."""
    findings: list[tuple[str, str]] = field(default_factory=list)
    """What was found, each with the group of its likes."""

    @property
    def damage(self) -> int:
        return sum(getattr(self, name) for name in DAMAGES)

    def find(self, kind: str, what: str, count: int = 1, *, group: str | None = None) -> None:
        """Count a damage and say what it was; few of one group are told."""
        assert kind in (*DAMAGES, "limits"), kind
        setattr(self, kind, getattr(self, kind) + count)
        self._tell(group or kind, f"{kind.replace('_', ' ')}: {what}")

    def _tell(self, group: str, text: str) -> None:
        alike = sum(other == group for other, _ in self.findings)
        if alike < FINDINGS_PER_GROUP_MAX and len(self.findings) < FINDINGS_MAX:
            self.findings.append((group, text))

    def says(self, what: str | None) -> bool:
        """Whether something was found that says this."""
        return what is not None and any(what in text for _, text in self.findings)

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def measure(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)

    def add(self, other: Tally) -> None:
        for name in ("trials", "faults", "limits", *DAMAGES):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, count in other.counts.items():
            self.count(name, count)
        for name, seconds in other.seconds.items():
            self.seconds.setdefault(name, []).extend(seconds)
        for group, text in other.findings:
            self._tell(group, text)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a row is asked to do."""

    seed: int
    trials: int | None = None
    """How many; None: as many as fit into a CI run."""
    minutes: float | None = None
    """Go on for so long instead."""
    mutant: str | None = None
    """The bug to plant in every process that does the work."""
    lanes: int = field(default_factory=lambda: max(1, len(os.sched_getaffinity(0))))
    """Processes side by side."""
    stop_at: str | None = None
    """End with the first finding that says this: how many cycles does it take?"""


class Budget:
    """How long to go on: for a number of trials, or until a time."""

    def __init__(self, plan: Plan, trials_ci: int, clock: Clock | None = None) -> None:
        self._clock = clock or RealSystem().clock
        self.trials = plan.trials or trials_ci
        self.deadline = None if plan.minutes is None else self._clock.monotonic() + plan.minutes * 60
        """On the machine's monotonic clock, which all processes share."""

    def goes_on(self, done: int) -> bool:
        if self.deadline is not None:
            return self._clock.monotonic() < self.deadline
        return done < self.trials


@dataclass
class Result:
    """What a row found."""

    row: int
    promise: str
    seed: int
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    skipped: str | None = None
    """Why the row could not run here at all; then it is not proven."""
    skipped_parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_bad(self) -> bool:
        return self.skipped is None and (self.tally.damage > 0 or self.tally.faults == 0)

    @property
    def status(self) -> str:
        if self.skipped is not None:
            return "SKIPPED"
        if self.is_bad:
            return "BAD"
        return "LIMIT" if self.tally.limits else "ok"

    @property
    def bound(self) -> float | None:
        """The rate of failures is below this (95 %); None when there were failures or no trials."""
        trials = self.tally.trials
        return None if self.is_bad or not trials else min(1.0, BOUND_TRIALS / trials)

    def line(self) -> str:
        """The result on one line."""
        head = f"row {self.row:>2}  {self.status:<7}"
        if self.skipped is not None:
            return f"{head}  {self.promise}: not proven, {self.skipped}"
        tally = self.tally
        damages = ", ".join(f"{getattr(tally, name)} {name.replace('_', ' ')}" for name in DAMAGES)
        if tally.limits:
            damages += f", {tally.limits} beyond what the format can notice"
        bound = "" if self.bound is None else f", below {self.bound:.2%} (3/N)"
        return (
            f"{head}  {self.promise}: {tally.trials:,} trials, {tally.faults:,} faults fired, {damages}{bound}, "
            f"seed {self.seed}, {self.seconds:.1f} s"
        )

    def details(self) -> list[str]:
        """What else there is to say: counts, what was measured, notes, parts that could not run, and what was found."""
        counts = [f"{name}: {count:,}" for name, count in sorted(self.tally.counts.items())]
        skipped = [f"SKIPPED, not proven: {part}" for part in self.skipped_parts]
        vacuous = ["no fault fired: this proves nothing"] if self.is_bad and not self.tally.faults else []
        return [*counts, *self.measured(), *self.notes, *skipped, *vacuous, *(text for _, text in self.tally.findings)]

    def measured(self) -> list[str]:
        """Quantiles of what was measured."""
        return [_quantiles(name, seconds) for name, seconds in sorted(self.tally.seconds.items())]

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "status": self.status, "bound": self.bound}


def _quantiles(name: str, seconds: list[float]) -> str:
    """
    >>> _quantiles("to leave", [0.1, 0.3, 0.2])
    'to leave: p50 0.20 s, p99 0.30 s (3)'
    """
    ordered = sorted(seconds)
    p50, p99 = (ordered[int(share * len(ordered))] for share in (0.5, 0.99))
    return f"{name}: p50 {p50:.2f} s, p99 {p99:.2f} s ({len(ordered)})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One promise and its proof."""

    number: int
    promise: str
    trials_ci: int
    run_plan: Callable[[Plan, Budget, Result], None]
    """Fills in the result."""
    skip_reason: Callable[[], str | None] = lambda: None

    def run(self, plan: Plan) -> Result:
        clock = RealSystem().clock
        started_at = clock.monotonic()
        result = Result(self.number, self.promise, plan.seed, skipped=self.skip_reason())
        if result.skipped is None:
            self.run_plan(plan, Budget(plan, self.trials_ci), result)
        result.seconds = clock.monotonic() - started_at
        return result


_scratch_parents: list[Path] = []
"""Where `scratch` makes its directories; the last one counts."""


@contextmanager
def scratch_below(parent: Path) -> Iterator[None]:
    """Have `scratch` make its directories in one that somebody else clears, who outlives this process."""
    _scratch_parents.append(parent)
    try:
        yield
    finally:
        _scratch_parents.pop()


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for stores that are thrown away: in memory where there is room, since the faults are ours to make."""
    in_memory = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    has_room = in_memory and shutil.disk_usage(SHARED_MEMORY).free >= SCRATCH_BYTES_MIN
    parent = _scratch_parents[-1] if _scratch_parents else SHARED_MEMORY if has_room else None
    with tempfile.TemporaryDirectory(prefix="dataflow-torture-", dir=parent, ignore_cleanup_errors=True) as path:
        yield Path(path)

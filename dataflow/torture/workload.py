"""One run of everything that the log does to a disk: what rows 3, 4, 6 and 7 break at each of its changes.

Short, since it is broken at every place; yet a store is made, topics and segments are, commits of several topics
carry epochs, rows are taken back, two epochs are prepared at once, a tail is left torn and cut off by the next
writer, and the catalog's own log is folded into the catalog when the store is closed, twice.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

from dataflow.errors import DataflowError
from dataflow.state.store import Store
from dataflow.system import System
from dataflow.torture.frame import Tally
from dataflow.torture.images import Acks, Check, Workload
from dataflow.torture.seam import QuickSystem
from dataflow.torture.truth import LANES, Author, Marks, Note, judge, judge_and_go_on, small_segments

SEGMENT_BYTES_SMALL = 1500
STORE = "store"
"""Below the directory that a workload gets."""
TRIES_MAX = 12
"""In a row, by who does not give up; more than any fault lasts."""


class GivenUpError(Exception):
    """The store did not go on, though nothing is in its way any more."""


def log_workload(system: System, root: Path, seed: int, note: Note) -> None:
    """Make a store below `root` and put commits of both lanes into it, in two runs."""
    with small_segments(SEGMENT_BYTES_SMALL):
        with Store(root / STORE, system) as store:
            author = Author(store, seed, note)
            author.publish(1)
            author.append(1)
            author.roll_back(2)
            author.publish(2)
            author.publish_two(3)
            author.append(2)
            author.abandon(5)
        with Store(root / STORE, system) as store:
            author = Author(store, seed, note)
            author.append(3)
            author.publish(5)
            author.publish(6)
            author.append(4)
            author.roll_back(7)
            author.publish(7)
            author.close()


def log_and_check(seed: int, *, verifies_each: int = 1) -> tuple[Workload, Check]:
    """The workload of the log, and what must hold wherever it was cut off.

    The verifier, which takes as long as the rest, comes to one of so many checks.
    """
    checking, checks = QuickSystem(seed), count()

    def workload(system: System, root: Path, acks: Acks) -> None:
        log_workload(system, root, seed, lambda kind, lane, commit: acks.note((kind, lane, commit)))

    def check(root: Path, notes: list[object], tally: Tally, where: str) -> None:
        marks = Marks(notes)  # type: ignore[arg-type]
        store = opened(root, checking, marks, tally, where)
        if store is not None:
            with store:
                judge_and_go_on(store, seed, marks, tally, where, verifies=next(checks) % verifies_each == 0)

    return workload, check


def opened(root: Path, system: System, marks: Marks, tally: Tally, where: str) -> Store | None:
    """The store of a workload; None, and a finding, when it does not open."""
    try:
        return Store(root / STORE, system)
    except Exception as error:  # noqa: BLE001 (whatever it is)
        tally.find("lost" if any(marks.acked.values()) else "wrong", f"{where}: cannot be opened: {error}")
        return None


class StubbornRun:
    """The same kind of work by somebody who goes on after each error, as far as the store lets them.

    After the first error in a row with the same writers, which took back what was not published; after the second one
    with new writers; after the third one with a new store, as a program does that is started again.
    """

    def __init__(self, system: System, root: Path, seed: int, tally: Tally, where: str) -> None:
        self.marks = Marks()
        self.errors: list[Exception] = []
        self._in_a_row = 0
        self._system, self._root, self._seed = system, root, seed
        self._tally, self._where = tally, where
        self._store: Store | None = None
        self._author: Author | None = None

    def run(self, commits: int, on_error: Callable[[Exception], None]) -> None:
        """Get so many more commits done in each lane; `on_error` is called after each error."""
        goal = {lane: self.marks.acked[lane] + commits for lane in LANES}
        with small_segments(SEGMENT_BYTES_SMALL):
            while any(self.marks.acked[lane] < goal[lane] for lane in LANES):
                for lane in LANES:
                    if self.marks.acked[lane] < goal[lane]:
                        self._commit(lane, on_error)

    def close(self) -> None:
        """End as a program does that was told to stop."""
        for opened in (self._author, self._store):
            if opened is not None:
                self._told(opened.close)
        self._author = self._store = None

    def _commit(self, lane: str, on_error: Callable[[Exception], None]) -> None:
        error = self._told(lambda: self._next_commit(lane))
        if error is None:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        on_error(error)
        self._prepare_next_try()
        self._ask_the_disk()
        if self._in_a_row > TRIES_MAX:
            raise GivenUpError(error)

    def _next_commit(self, lane: str) -> None:
        if self._store is None:
            self._store = Store(self._root / STORE, self._system)
        if self._author is None:
            self._author = Author(self._store, self._seed, self.marks)
        do = self._author.publish if lane == "epochs" else self._author.append
        do(self.marks.acked[lane] + 1)

    def _prepare_next_try(self) -> None:
        if self._in_a_row >= 3:
            self.close()
        elif self._author is not None:
            self._told(self._author.close if self._in_a_row == 2 else self._author.take_back)
            self._author = self._author if self._in_a_row == 1 else None

    def _ask_the_disk(self) -> None:
        """Which commits are there? An error may have come after the commit was durable."""
        reading = opened(self._root, self._system, self.marks, self._tally, self._where)
        if reading is not None:
            with reading:
                durable = judge(
                    reading, self._seed, self.marks, self._tally, f"{self._where}, after an error", is_broken=True
                )
            for lane, commit in (durable or {}).items():
                self.marks("acked", lane, commit)

    def _told(self, work: Callable[[], None]) -> Exception | None:
        """Do it; return the error, if it fails. One without a code is counted."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 (whatever it is)
            self.errors.append(error)
            self._tally.count("errors told")
            if not isinstance(error, DataflowError):
                self._tally.find("wrong", f"{self._where}: an error without a code: {error!r}", group=repr(error))
            return error
        return None

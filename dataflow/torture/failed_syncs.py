"""Row 6: an fsync that fails is fatal, and nothing is acknowledged that it covers.

After a failed fsync the kernel takes the pages for clean: the next fsync succeeds, reads show the bytes, and once the
cache is dropped they are gone. So here: the k-th fsync (of a file, of a directory, by SQLite) fails, whoever works
goes on as far as the store lets them, and then what that fsync covered is taken away unless it was written anew. What
was acknowledged must still be there. (Names in a directory are the file system's own journal's: of those a later sync
that succeeds is believed.)
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from dataflow.torture.crash_points import CountChanges
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.processes import Reporter, run_lanes
from dataflow.torture.seam import Change, FaultySystem, QuickSystem, Refusal, closing_quietly
from dataflow.torture.truth import judge_and_go_on
from dataflow.torture.workload import GivenUpError, StubbornRun, opened

COMMITS_BEFORE_REOPEN, COMMITS_AFTER = 3, 2


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.failed_syncs:lane")
    result.skipped_parts.append("a real disk whose writeback fails: the kernel's part is only modelled here")


ROW = Row(number=6, promise="a failed fsync is fatal, and honest", trials_ci=40, run_plan=run_plan)


@dataclass
class FailedSync:
    """Fails one fsync, and knows what the kernel would have dropped then."""

    fails_at: int
    syncs: int = 0
    failed: Change | None = None
    repeated: bool = False
    """Whether the same segment was synced again after that, with the lost bytes in it."""
    lost: dict[int, int] = field(default_factory=dict)
    """Of the file whose sync failed: what was there before, by position, where it was not written anew."""
    lost_names: set[str] = field(default_factory=set)
    _unsynced: dict[str, dict[int, int]] = field(default_factory=dict)
    _fresh_names: dict[str, set[str]] = field(default_factory=dict)

    def before(self, change: Change) -> Refusal | None:
        match change.kind:
            case "write":
                self._note_write(change)
            case "create" | "make_dirs":
                self._fresh_names.setdefault(os.path.dirname(change.path), set()).add(change.path)
                self.lost_names.discard(change.path)
            case "sync" | "sync_dir":
                return self._sync(change)
            case "remove":
                self.lost_names.discard(change.path)
            case "truncate" if self._is_failed(change.path):
                self.lost = {at: byte for at, byte in self.lost.items() if at < change.size}
        return None

    def _note_write(self, change: Change) -> None:
        span = range(change.position, change.position + change.size)
        before = _bytes_at(change.path, change.position, change.size)
        unsynced = self._unsynced.setdefault(change.path, {})
        for at, byte in zip(span, before.ljust(change.size, b"\0"), strict=True):
            unsynced.setdefault(at, byte)
        if self._is_failed(change.path):
            for at in span:
                self.lost.pop(at, None)

    def _sync(self, change: Change) -> Refusal | None:
        self.syncs += 1
        unsynced = self._unsynced.pop(change.path, {})
        fresh = self._fresh_names.pop(change.path, set())
        if self._is_failed(change.path) and change.path.endswith(".arrow") and self.lost:
            self.repeated = True  # SQLite may: it writes what its log holds into the database first
        if self.syncs != self.fails_at:
            if self._is_failed(change.path):
                self.lost_names = set()
            return None
        self.failed, self.lost, self.lost_names = change, unsynced, fresh
        return Refusal(errno.EIO)

    def _is_failed(self, path: str) -> bool:
        return self.failed is not None and self.failed.path == path

    def drop_caches(self) -> None:
        """Show on the disk what really reached it."""
        if self.failed is not None and self.lost and os.path.exists(self.failed.path):
            with open(self.failed.path, "r+b") as file:
                for at, byte in self.lost.items():
                    if at < os.path.getsize(self.failed.path):
                        file.seek(at)
                        file.write(bytes([byte]))
        for path in self.lost_names:
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.remove(path)


def _is_of_sqlite(path: str) -> bool:
    """Of these SQLite keeps quiet about what fails while it is closed: its log stays, and loses nothing."""
    return os.path.basename(path).startswith("catalog.db")


def _bytes_at(path: str, position: int, size: int) -> bytes:
    if not os.path.exists(path):
        return b""
    with open(path, "rb") as file:
        file.seek(position)
        return file.read(size)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    done, number = 0, 0
    with scratch() as folder, closing_quietly():
        while reporter.goes_on(done):
            this_seed = seed + number
            syncs = syncs_of(folder, this_seed)
            # The budget first takes every so-many-th; what it leaves out comes with the next seed.
            for fails_at in spread(syncs, lane, lanes):
                number += 1
                if number > first and reporter.goes_on(done):
                    done += 1
                    with reporter.trial(number - 1) as tally:
                        try_failed_sync(folder, this_seed, fails_at, tally)


def spread(count: int, lane: int, lanes: int) -> list[int]:
    """The numbers 1 to `count` of this lane, in an order that reaches all parts early."""
    own = range(1 + lane, count + 1, lanes)
    return [number for start in range(4) for number in own[start::4]]


def syncs_of(folder: Path, seed: int) -> int:
    counting = CountChanges()
    root = folder / "counted"
    root.mkdir()
    run = StubbornRun(FaultySystem(QuickSystem(seed), counting), root, seed, Tally(), "without a fault")
    _work(run)
    shutil.rmtree(root)
    assert not run.errors, run.errors
    return sum(change.kind in ("sync", "sync_dir") for change in counting.changes)


def _work(run: StubbornRun) -> None:
    run.run(COMMITS_BEFORE_REOPEN, lambda _: None)
    run.close()
    run.run(COMMITS_AFTER, lambda _: None)
    run.close()


def try_failed_sync(folder: Path, seed: int, fails_at: int, tally: Tally) -> None:
    root = folder / "failed"
    root.mkdir()
    fault = FailedSync(fails_at)
    where = f"seed {seed}, fsync {fails_at} failed"
    run = StubbornRun(FaultySystem(QuickSystem(seed), fault), root, seed, tally, where)
    try:
        _work(run)
    except GivenUpError as error:
        tally.find("wrong", f"{where}: it does not go on after a restart: {error.__cause__ or error}")
    if fault.failed is not None:
        tally.faults += 1
        kind = "of a directory" if fault.failed.kind == "sync_dir" else f"of {os.path.basename(fault.failed.path)}"
        tally.count(f"failed fsync {kind if 'arrow' not in kind else 'of a segment'}")
        where = f"{where} ({fault.failed.kind} of {os.path.relpath(fault.failed.path, root)})"
        if not run.errors and not _is_of_sqlite(fault.failed.path):
            tally.find("wrong", f"{where}: nobody was told")
    if fault.repeated:
        tally.find("wrong", f"{where}: the fsync was repeated, and believed")
    fault.drop_caches()
    store = opened(root, QuickSystem(seed), run.marks, tally, where)
    if store is not None:
        with store:
            judge_and_go_on(store, seed, run.marks, tally, f"{where}, after the caches were dropped")
    shutil.rmtree(root)

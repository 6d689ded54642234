"""Row 6: an fsync that fails is fatal, and nothing is acknowledged that it covers.

After a failed fsync the kernel takes the pages for clean: the next fsync succeeds, reads show the bytes, and once the
cache is dropped they are gone. So here: the k-th fsync (of a file, of a directory, by SQLite) fails, whoever works
goes on as far as the store lets them, and then what that fsync covered is taken away unless it was written anew. What
was acknowledged must still be there. (Names in a directory are the file system's own journal's: of those a later sync
that succeeds is believed.) Where disks can be mounted, some trials are done on a real one: on a loop device whose file
has no room to grow, so that the kernel itself fails to write back, and forgets.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from dataflow.torture.crash_points import CountChanges
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.mounts import LoopDisk, in_own_mounts, run, why_no_disk
from dataflow.torture.processes import Reporter, run_lanes
from dataflow.torture.seam import Change, FaultySystem, QuickSystem, Refusal, closing_quietly
from dataflow.torture.truth import judge_and_go_on
from dataflow.torture.workload import STORE, GivenUpError, StubbornRun, opened

COMMITS_BEFORE_REOPEN, COMMITS_AFTER = 3, 2
REAL_TRIALS_SHARE = 10
"""One in so many trials is done on a real disk."""
TMPFS_BYTES = 32 << 20
"""Room for a disk's image, and to spare."""
COMMITS_BEFORE_FULL, COMMITS_WHILE_FULL, PAGES_LEFT_MAX = 20, 20, 30
ERRORS_MAX = 3
"""So often at most somebody goes on before there is room again."""


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.failed_syncs:lane")
    why = why_no_disk("ext4")
    if why is not None:
        result.skipped_parts.append(
            f"a real disk whose writeback fails ({why}): the kernel's part is only modelled here"
        )


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
    can_be_real = why_no_disk("ext4") is None
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
                        if can_be_real and done % REAL_TRIALS_SHARE == 0:
                            try_real_writeback(folder, this_seed + number, tally)
                        else:
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


# ── on a real one ──


def try_real_writeback(folder: Path, seed: int, tally: Tally) -> None:
    """The same on a disk that cannot write back, in a process with mounts of its own."""
    where = f"seed {seed}, on a real disk"
    in_own_mounts(lambda part: _fail_writeback(folder / "real", seed, part, where), tally, where)


def _fail_writeback(outer: Path, seed: int, tally: Tally, where: str) -> None:
    outer.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(outer))
    disk = LoopDisk(outer / "loop")
    disk.make_without_room()
    chance = random.Random(seed)
    worker = StubbornRun(QuickSystem(seed), disk.root, seed, tally, where)
    worker.run(COMMITS_BEFORE_FULL, lambda _: None)
    catalog = _begin_log_again(disk.root / STORE / "catalog.db")
    filler, frees_at = outer / "filler", chance.randint(1, ERRORS_MAX)
    _fill(filler, chance.choice((0, 0, 0, chance.randint(1, PAGES_LEFT_MAX))))

    def on_error(error: Exception) -> None:
        tally.count(f"a real disk failed: {_kernel_says(error)}")
        if len(worker.errors) >= frees_at:
            filler.unlink(missing_ok=True)

    try:
        worker.run(COMMITS_WHILE_FULL, on_error)
    except GivenUpError:
        tally.count("a real disk was given up by its own file system")
    if worker.errors:
        tally.faults += 1
    worker.close()
    catalog.close()
    filler.unlink(missing_ok=True)
    disk.unmount()  # with it goes what the kernel has in memory
    disk.mount()
    store = opened(disk.root, QuickSystem(seed), worker.marks, tally, where)
    if store is not None:
        with store:
            judge_and_go_on(store, seed, worker.marks, tally, f"{where}, after it was mounted again")


def _begin_log_again(path: Path) -> apsw.Connection:
    """SQLite writes its log from the start once more, where there is room: else it would fail before all others do."""
    connection = apsw.Connection(str(path))
    list(connection.execute("PRAGMA wal_checkpoint(RESTART)"))
    return connection


def _fill(filler: Path, pages_left: int) -> None:
    """Take all room of a tmpfs but some pages."""
    page = os.sysconf("SC_PAGE_SIZE")
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(page))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(max(0, file.tell() - pages_left * page))


def _kernel_says(error: BaseException) -> str:
    """What was below an error: the system's word, or SQLite's."""
    below = error
    while (deeper := below.__cause__ or below.__context__) is not None:
        below = deeper
    if isinstance(below, OSError) and below.errno is not None:
        return errno.errorcode.get(below.errno, str(below.errno))
    return type(below).__name__

"""Row 5: a power cut takes nothing that was acknowledged.

The same work as in row 1, on a real file system on a loop device. At a random moment the file system is shut down by
the kernel's own call for that: what was not synced is gone, names and bytes, unlike after a kill. What was acknowledged
is read from the pipe *before* that call, since an fsync that is under way during it may succeed and be lost. Then the
disk is mounted again, its journal recovers, and the store is judged. A file that nobody synced shows each time that the
power was really cut: it must have lost its bytes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.kills import Notes, commit_for_ever, kill_once
from dataflow.torture.mounts import LoopDisk, enter_own_mounts, why_no_disk
from dataflow.torture.processes import Channel, Reporter, Victim, run_lanes
from dataflow.torture.truth import Marks, small_segments
from dataflow.torture.workload import SEGMENT_BYTES_SMALL

KINDS = ("ext4", "xfs")
CUTS_PER_DISK_MAX = 12
NOTES_PENDING_MAX = 1_000
"""Read at most before a cut; a group that works on has always another one."""
PENDING_SECONDS = 0.0005
UNSYNCED_BYTES = 100_000


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    kinds = []
    for kind in KINDS:
        why = why_no_disk(kind)
        if why is None:
            kinds.append(kind)
        else:
            result.skipped_parts.append(f"{kind} ({why})")
    result.tally = run_lanes(plan, budget, "dataflow.torture.power_cuts:lane", kinds=kinds)


def skip_reason() -> str | None:
    reasons = [why_no_disk(kind) for kind in KINDS]
    return None if None in reasons else reasons[0]


ROW = Row(
    number=5,
    promise="a power cut takes nothing that was acknowledged",
    trials_ci=60,
    run_plan=run_plan,
    skip_reason=skip_reason,
)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int, kinds: Sequence[str]) -> None:
    done, number, disks = 0, first, lane
    enter_own_mounts()
    with scratch() as folder, small_segments(SEGMENT_BYTES_SMALL):
        while reporter.goes_on(done):
            chance = random.Random(f"{seed}/{lane}/{number}")
            disk = LoopDisk(folder / str(number), kinds[disks % len(kinds)])
            disks += 1
            disk.make()
            disk.mount()
            marks = Marks()
            for _ in range(chance.randint(1, CUTS_PER_DISK_MAX)):
                if reporter.goes_on(done):
                    with reporter.trial(number) as tally:
                        where = f"seed {seed}, lane {lane}, cut {number} ({disk.kind})"
                        cut = Cut(disk, tally)
                        marks = kill_once(disk.root, seed, marks, chance, tally, where, work=work, end=cut.end)
                    done, number = done + 1, number + 1
            disk.unmount()
            disk.image.unlink()


def work(root: Path, seed: int, durable: dict[str, int], channel: Channel) -> None:
    """As in row 1; what the group complains of when its disk is dead is read by nobody."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    commit_for_ever(root, seed, durable, channel)


class Cut:
    """The end of a group: not a kill, but no power."""

    def __init__(self, disk: LoopDisk, tally: Tally) -> None:
        self._disk, self._tally = disk, tally

    def end(self, victim: Victim) -> Notes:
        """Cut the power, and be there again. What was said after the cut is begun at most."""
        unsynced = self._disk.root / "unsynced"
        unsynced.write_bytes(bytes(range(1, 101)) * (UNSYNCED_BYTES // 100))
        notes = _pending(victim)
        self._disk.cut_power()
        after, _ = victim.end()
        self._disk.unmount()
        self._disk.mount()
        if _has_bytes(unsynced):
            self._tally.count("cuts that took nothing")
            self._tally.faults -= 1
        unsynced.unlink(missing_ok=True)
        self._tally.count(f"power cut on {self._disk.kind}")
        return [*notes, *(note for note in after if note[0] == "begun")]


def _pending(victim: Victim) -> Notes:
    """What the group has said by now."""
    notes: Notes = []
    while len(notes) < NOTES_PENDING_MAX:
        try:
            message = victim.channel.receive(PENDING_SECONDS)
        except TimeoutError:
            break
        if message is None:
            break
        notes.append(message)
    return notes


def _has_bytes(path: Path) -> bool:
    return path.exists() and any(path.read_bytes())

"""Row 1: kill -9 loses and duplicates nothing of the log.

A group of two processes works on one store, one commits epochs of two topics, the other appends to a third. The group
is killed at a random moment, what it had acknowledged is with the driver by then, and the store is read. Then the
next group goes on in the same store; now and then with a new one, so that its making is hit too.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dataflow.state.store import Store
from dataflow.system import RealSystem
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.processes import SILENCE_SECONDS_MAX, Channel, Reporter, Victim, die_with_parent, fork, run_lanes
from dataflow.torture.seam import QuickSystem
from dataflow.torture.truth import LANES, Author, Marks, judge, small_segments
from dataflow.torture.workload import SEGMENT_BYTES_SMALL, STORE, opened

KILLS_PER_STORE_MAX = 12
NOTES_MAX = 24
"""Up to so many notes of the group are awaited before it is killed, and then up to so long."""
SECONDS_MAX = 0.004
SECONDS_AT_START_MAX = 0.03
"""When none is awaited: a store is being made or opened."""


Notes = list[tuple[str, str, int]]
"""What a group says: of each commit that it has begun and that was acknowledged."""
Work = Callable[[Path, int, dict[str, int], Channel], None]
"""What a group does: where, with which seed, and behind which commits."""


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.kills:lane")


ROW = Row(number=1, promise="kill -9 loses and duplicates nothing (log)", trials_ci=300, run_plan=run_plan)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    done, number = 0, first
    with scratch() as folder, small_segments(SEGMENT_BYTES_SMALL):
        while reporter.goes_on(done):
            chance = random.Random(f"{seed}/{lane}/{number}")
            root = folder / str(number)
            root.mkdir()
            marks = Marks()
            for _ in range(chance.randint(1, KILLS_PER_STORE_MAX)):
                if reporter.goes_on(done):
                    with reporter.trial(number) as tally:
                        marks = kill_once(root, seed, marks, chance, tally, f"seed {seed}, lane {lane}, kill {number}")
                    done, number = done + 1, number + 1
            shutil.rmtree(root)


def kill_once(
    root: Path,
    seed: int,
    before: Marks,
    chance: random.Random,
    tally: Tally,
    where: str,
    *,
    work: Work | None = None,
    end: Callable[[Victim], Notes] = lambda victim: victim.end()[0],
) -> Marks:
    """Let a group work from where the store is, end it, and judge; return what is durable now."""
    victim = fork(partial(work or commit_for_ever, root, seed, dict(before.acked)))
    notes = [*_await(victim, chance), *end(victim)]
    marks = Marks()
    marks.acked, marks.begun = dict(before.acked), dict(before.acked)
    for kind, lane, commit in notes:
        if kind == "failed":
            tally.find("wrong", f"{where}: {lane}")
        else:
            marks(kind, lane, commit)
    tally.faults += 1
    store = opened(root, QuickSystem(seed), marks, tally, where)
    if store is None:
        return marks
    with store:
        durable = judge(store, seed, marks, tally, where)
    if marks.begun != marks.acked:
        tally.count("killed inside of a commit")
    if durable is not None and durable != marks.acked:
        tally.count("durable, and killed before it was acknowledged")
    tally.count("commits acknowledged", sum(marks.acked.values()) - sum(before.acked.values()))
    after = Marks()
    after.acked = after.begun = durable or marks.acked
    return after


def _await(victim: Victim, chance: random.Random) -> Notes:
    """Wait for a random moment; return what was said until then."""
    notes_max = chance.choice((0, chance.randint(1, NOTES_MAX)))
    notes: Notes = []
    for _ in range(notes_max):
        message = victim.channel.receive()
        if message is None:
            break
        notes.append(message)
        if message[0] == "failed":
            break
    RealSystem().scheduler.sleep(chance.random() * (SECONDS_MAX if notes_max else SECONDS_AT_START_MAX))
    return notes


def commit_for_ever(root: Path, seed: int, durable: dict[str, int], channel: Channel) -> None:
    """The group: a process for each lane, until they are killed. A store is made by one (row 13 has them race)."""
    lanes = list(LANES)
    if not Store(root / STORE).exists:
        lanes = lanes[seed % len(lanes) :][:1]
    if len(lanes) > 1 and os.fork() == 0:
        die_with_parent()
        lanes.reverse()
    try:
        _commit(root, seed, lanes[0], durable[lanes[0]], channel)
    except Exception as error:  # noqa: BLE001 (whatever it is: nothing was in its way)
        channel.send(("failed", f"{lanes[0]}: {error}", 0))
    RealSystem().scheduler.sleep(SILENCE_SECONDS_MAX)


def _commit(root: Path, seed: int, lane: str, commit: int, channel: Channel) -> None:
    with Store(root / STORE, QuickSystem(seed)) as store:
        author = Author(store, seed, lambda kind, lane, commit: channel.send((kind, lane, commit)))
        while True:
            commit += 1
            (author.publish if lane == "epochs" else author.append)(commit)

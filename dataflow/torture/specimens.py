"""Stores to be damaged, each made anew from a seed: two by hand, two by real pipelines, quiet ones and killed ones.

A killed one has its last commits in SQLite's log alone. The hard part is to get such a store of a pipeline twice from
one seed: it runs on the simulated machine, is killed before a change of the disk that the seed tells, and then what
that disk holds is written to a real one.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from dataflow.errors import DataflowError
from dataflow.state.store import Store
from dataflow.system import SimulatedSystem
from dataflow.torture import simulation
from dataflow.torture.seam import FaultySystem, QuickSystem, closing_quietly
from dataflow.torture.simulation import Fault, Job, KilledError, silent
from dataflow.torture.truth import PIPELINE, Author, Marks, small_segments
from dataflow.torture.workload import SEGMENT_BYTES_SMALL

COMMITS = 12
EPOCHS_MIN, COMMITS_MAX = 5, 40
"""Of a pipeline's store that is worth damaging, and can be read thousands of times."""
DRAWS_MAX = 500
INTERVAL, BATCH_ROWS = "3ms", 20


def author_store(root: Path, seed: int, *, is_closed: bool) -> str:
    """A store with all that commits can be; returns the name of its pipeline."""
    grown = root.with_suffix(".grown")
    with small_segments(SEGMENT_BYTES_SMALL), Store(grown, QuickSystem(seed)) as store:
        author = Author(store, seed, Marks())
        for commit in range(1, COMMITS + 1):
            author.publish(commit)
            author.append(commit)
        if is_closed:
            author.close()
            store.close()
        shutil.copytree(grown, root, ignore=shutil.ignore_patterns("*-shm"))
        author.close()
    return PIPELINE


def pipeline_store(root: Path, seed: int, *, is_closed: bool) -> str:
    """A store of a pipeline drawn by lot, which was stopped while it had state; returns the pipeline's name."""
    chance = random.Random(f"{seed} {is_closed}")
    for _ in range(DRAWS_MAX):
        system = SimulatedSystem(chance.randrange(2**32))
        _run(system, chance, is_closed=is_closed)
        if _is_worth_it(system, is_closed=is_closed):
            _write_down(system, simulation.STORE, root)
            return simulation.NAME
    raise AssertionError(f"seed {seed}: no run of {DRAWS_MAX} left a store with state")


def _run(system: SimulatedSystem, chance: random.Random, *, is_closed: bool) -> None:
    """One run that breaks off: its reader fails and it closes its store, or it is killed and does nothing more."""
    fault = Fault("none") if is_closed else Fault("kill", chance.randint(100, 600))
    job = Job(chance, BATCH_ROWS, reads_left=chance.randint(5, 60) if is_closed else None)
    with closing_quietly(), silent(), suppress(DataflowError, KilledError):
        broken = FaultySystem(system, fault)
        job.pipeline().run(store=simulation.STORE, system=broken, workers=2, checkpoint_interval=INTERVAL)
    system.disk.kill_processes()
    system.scheduler.forget_threads()


def _is_worth_it(system: SimulatedSystem, *, is_closed: bool) -> bool:
    disk, log = system.disk, f"{simulation.STORE}/catalog.db-wal"
    has_log = disk.exists(log) and disk.size(log) > 0
    if has_log == is_closed or not disk.exists(f"{simulation.STORE}/catalog.db"):
        return False
    kept = {path: disk.read_bytes(path) for path in disk.glob(f"{simulation.STORE}/catalog.db*")}
    is_worth_it = False
    with suppress(DataflowError), Store(simulation.STORE, system) as store:
        state = store.pipeline(simulation.NAME)
        is_worth_it = state is not None and bool(state.frames) and EPOCHS_MIN <= state.commit_id <= COMMITS_MAX
        is_worth_it = is_worth_it and any(info.rows for info in store.topics())
    _put_back(system, kept)
    return is_worth_it


def _put_back(system: SimulatedSystem, kept: dict[str, bytes]) -> None:
    """As it was before it was looked at: that folds the log in."""
    for path in system.disk.glob(f"{simulation.STORE}/catalog.db*"):
        if path not in kept:
            system.disk.remove(path)
    for path, content in kept.items():
        system.disk.write_bytes(path, content)


def _write_down(system: SimulatedSystem, directory: str, root: Path) -> None:
    """A directory of the simulated disk as one of the real disk."""
    root.mkdir(mode=0o700)
    for name in system.disk.list_dir(directory):
        path = os.path.join(directory, name)
        if system.disk.is_dir(path):
            _write_down(system, path, root / name)
        else:
            (root / name).write_bytes(system.disk.read_bytes(path))
            (root / name).chmod(0o600)


SPECIMENS: dict[str, Callable[[Path, int], str]] = {
    "closed": partial(author_store, is_closed=True),
    "killed": partial(author_store, is_closed=False),
    "pipeline-closed": partial(pipeline_store, is_closed=True),
    "pipeline-killed": partial(pipeline_store, is_closed=False),
}
"""What there is to be damaged: makes a store at a path from a seed, and returns the name of its pipeline."""

"""Row 4: all legal disks after a power cut recover.

The workload runs once, recorded; every distinct disk that a power cut at any moment could have left is then made,
opened, judged, written to, and judged again. `image_trials` does the same for any other workload.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from dataflow.system import System
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.images import Check, Image, Recording, Workload, images, record
from dataflow.torture.processes import Reporter, run_lanes
from dataflow.torture.seam import QuickSystem, SeededDisk
from dataflow.torture.workload import log_and_check

VERIFIES_EACH = 8
Trial = Callable[[Tally], None]


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.crash_images:lane")


ROW = Row(number=4, promise="legal disks after a power cut all recover", trials_ci=5_000, run_plan=run_plan)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    """The images whose digest is this lane's, of one recording after another; what comes before `first` is skipped."""
    done, number = 0, 0
    with scratch() as folder:
        disk = SeededDisk(seed)  # before any other use of SQLite: it draws its randomness once a process
        while reporter.goes_on(done):
            workload, check = log_and_check(seed + number, verifies_each=VERIFIES_EACH)
            for trial in image_trials(workload, check, QuickSystem(seed, disk), seed, folder, (lane, lanes)):
                number += 1
                if number > first and reporter.goes_on(done):
                    done += 1
                    with reporter.trial(number - 1) as tally:
                        trial(tally)


def image_trials(
    workload: Workload, check: Check, system: System, seed: int, folder: Path, share: tuple[int, int] = (0, 1)
) -> Iterator[Trial]:
    """Record a workload, and yield a check of each of its images (of a share of them: the first of two is (0, 2))."""
    recorded_root, root = folder / "recorded", folder / "image"
    recorded_root.mkdir()
    recording = record(workload, system, recorded_root)
    shutil.rmtree(recorded_root)
    lane, lanes = share
    for image, digest in images(recording, seed):
        if digest % lanes == lane:
            yield partial(_try_image, image, recording, check, root)


def _try_image(image: Image, recording: Recording, check: Check, root: Path, tally: Tally) -> None:
    tally.faults += 1
    root.mkdir()
    image.make(root, recording.root)
    where = f"power cut after change {image.moment} of {len(recording.operations)}, {image.what}"
    check(root, recording.acks.until(image.moment), tally, where)
    shutil.rmtree(root)

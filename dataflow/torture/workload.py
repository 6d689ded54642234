"""One run of everything that the log does to a disk: what rows 3, 4, 6 and 7 break at each of its changes.

Short, since it is broken at every place; yet a store is made, topics and segments are, commits of several topics
carry epochs, rows are taken back, two epochs are prepared at once, a tail is left torn and cut off by the next
writer, and the catalog's own log is folded into the catalog when the store is closed, twice.
"""

from __future__ import annotations

from pathlib import Path

from dataflow.state.store import Store
from dataflow.system import System
from dataflow.torture.images import Acks
from dataflow.torture.truth import Author, Note, small_segments

SEGMENT_BYTES_SMALL = 1500
STORE = "store"
"""Below the directory that a workload gets."""


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


def noting(acks: Acks) -> Note:
    """A note for a recording: what was begun and acknowledged, each at its moment."""
    return lambda kind, lane, commit: acks.note((kind, lane, commit))

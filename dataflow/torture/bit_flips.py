"""Row 8: no damaged byte is read as if it were good.

A small store is damaged in one place of one of its files, opened and read: a bit flipped, a file cut, 4 KiB of zeros,
two segments swapped, an older one copied over. What is read must be the truth (the damage was in bytes that mean
nothing), or an error with a code, which for a segment names the file. It runs in processes of its own, so that a
crash is counted. The hard part are the catalog's files: SQLite has no checksum of its pages, and takes a damaged
frame of its log for the end of it. What passes there is measured by itself: it is no promise, and told as a limit.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dataflow.errors import DataflowError
from dataflow.state.frames import CorruptFrameError
from dataflow.state.log.segment import CorruptSegmentError
from dataflow.state.store import Store
from dataflow.system import System
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.processes import Reporter, run_lanes
from dataflow.torture.seam import QuickSystem
from dataflow.torture.truth import LANES, PIPELINE, SCHEMA, Author, Marks, small_segments, values_of
from dataflow.torture.workload import SEGMENT_BYTES_SMALL

COMMITS = 12
BLOCK_BYTES = 4096
CATALOG, WAL = "catalog.db", "catalog.db-wal"
WEIGHTS = {"segment": 8, "state": 3, CATALOG: 5, WAL: 4, "lock": 1}
"""How often a file of each class is damaged."""
KINDS = {"flip": 17, "cut": 2, "zeros": 1}
"""How often each kind of damage is done; segments are now and then swapped, too."""
SWAPS_SHARE = 50
NOTE = (
    "SQLite keeps no checksum of its pages, and reads its log up to the first frame that does not have its own: what "
    "is `not noticed` in catalog.db and catalog.db-wal is a limit of the format, known and not solved"
)


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.bit_flips:lane")
    if result.tally.limits:
        result.notes.append(NOTE)


ROW = Row(number=8, promise="no damaged byte is read as if it were good", trials_ci=20_000, run_plan=run_plan)

Truth = dict[str, object]


@dataclass(frozen=True)
class Damage:
    """What is done to a store: new bytes for some of its files."""

    file_class: str
    what: str
    files: dict[str, bytes]


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    with scratch() as folder:
        victims = [Specimen(folder / name, seed, is_closed=name == "closed") for name in ("closed", "killed")]
        number = first
        while reporter.goes_on(number):
            chance = random.Random(f"{seed}/{lane}/{number}")
            specimen = victims[number % 2]
            damage = specimen.damage(chance)
            with reporter.trial(number) as tally:
                specimen.try_damage(damage, tally, f"seed {seed}, lane {lane}, trial {number}")
            number += 1


class Specimen:
    """A store to be damaged, over and over: its files as they should be, and what is read from them."""

    def __init__(self, root: Path, seed: int, *, is_closed: bool) -> None:
        self._root, self._system = root, QuickSystem(seed)
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
        self._files = {
            os.path.relpath(path, root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
        }
        self._by_class: dict[str, list[str]] = {}
        for name in self._files:
            self._by_class.setdefault(class_of(name), []).append(name)
        self._truth = read_all(root, self._system)
        self._dirty: set[str] = set()
        assert self._truth["rows of a"] and self._truth["epoch"] == COMMITS

    def damage(self, chance: random.Random) -> Damage:
        """A damage by chance."""
        classes = [name for name in WEIGHTS if name in self._by_class]
        file_class = chance.choices(classes, [WEIGHTS[name] for name in classes])[0]
        if file_class == "segment" and chance.randrange(SWAPS_SHARE) == 0:
            return self._swap(chance)
        name = chance.choice(self._by_class[file_class])
        content = bytearray(self._files[name])
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0] if content else "flip"
        if file_class == "lock":
            content = bytearray(chance.randbytes(chance.randrange(1, 200)))
        elif kind == "flip":
            at, bit = chance.randrange(len(content)), chance.randrange(8)
            content[at] ^= 1 << bit
            kind = f"bit {bit} of byte {at} flipped"
        elif kind == "cut":
            size = chance.randrange(len(content))
            del content[size:]
            kind = f"cut to {size} bytes"
        else:
            at = chance.randrange(len(content))
            content[at : at + BLOCK_BYTES] = bytes(len(content[at : at + BLOCK_BYTES]))
            kind = f"zeros from byte {at} on"
        return Damage(file_class, f"{name}: {kind}", {name: bytes(content)})

    def _swap(self, chance: random.Random) -> Damage:
        one, other = chance.sample(self._by_class["segment"], 2)
        if chance.random() < 0.5:
            return Damage("segment", f"{one} is a copy of {other}", {one: self._files[other]})
        return Damage("segment", f"{one} and {other} swapped", {one: self._files[other], other: self._files[one]})

    def try_damage(self, damage: Damage, tally: Tally, where: str) -> None:
        """Do the damage, read everything, and compare."""
        where = f"{where}, {damage.what}"
        self._restore()
        for name, content in damage.files.items():
            (self._root / name).write_bytes(content)
            self._dirty.add(name)
        has_changed = any(self._files[name] != content for name, content in damage.files.items())
        tally.faults += has_changed
        try:
            found = read_all(self._root, self._system)
            if damage.file_class == "lock":
                take_locks(self._root, self._system)
        except DataflowError as error:
            self._judge_error(error, damage, tally, where)
        except Exception as error:  # noqa: BLE001 (anything without a code is a finding)
            tally.count(f"{damage.file_class}: an error without a code")
            tally.find("wrong", f"{where}: an error without a code: {error!r}", group=repr(error))
        else:
            self._judge_rows(found, damage, tally, where)

    def _judge_error(self, error: DataflowError, damage: Damage, tally: Tally, where: str) -> None:
        path = error.path if isinstance(error, (CorruptSegmentError, CorruptFrameError)) else None
        names_file = path is not None and any(os.path.join(self._root, path).endswith(name) for name in damage.files)
        if damage.file_class in ("segment", "state") and not names_file:
            tally.find("wrong", f"{where}: the error does not name the file: {error.message}")
        elif damage.file_class == "lock":
            tally.find("wrong", f"{where}: what a lock file holds must mean nothing: {error.message}")
        else:
            tally.count(f"{damage.file_class}: detected")

    def _judge_rows(self, found: Truth, damage: Damage, tally: Tally, where: str) -> None:
        differing = [name for name, value in self._truth.items() if found.get(name) != value]
        differing += [name for name in found if name not in self._truth]
        if not differing:
            tally.count(f"{damage.file_class}: harmless")
            return
        if all(_is_end_cut(name, self._truth[name], found.get(name)) for name in self._truth if "rows of" in name):
            how = (
                "the last commits are gone" if "rows of" in " ".join(differing) else "rows are right, other values not"
            )
        else:
            how = "rows differ"
        tally.count(f"{damage.file_class}: not noticed, {how}")
        kind = "limits" if damage.file_class in (CATALOG, WAL) else "undetected"
        tally.find(kind, f"{where}: {how}: {', '.join(differing)}", group=f"{damage.file_class} {how}")

    def _restore(self) -> None:
        """Undo the damage, and what reading does to the catalog (its log is folded in when it is closed)."""
        for name in {*self._dirty, CATALOG}:
            (self._root / name).write_bytes(self._files[name])
        for name in (WAL, f"{CATALOG}-shm", f"{CATALOG}-journal"):
            if name in self._files:
                (self._root / name).write_bytes(self._files[name])
            elif (self._root / name).exists():
                (self._root / name).unlink()
        self._dirty.clear()


def _is_end_cut(name: str, truth: object, found: object) -> bool:
    """Whether what was found are the first of the true rows, all or some."""
    assert isinstance(truth, list), name
    return found is None or (isinstance(found, list) and found == truth[: len(found)])


def class_of(name: str) -> str:
    """The class of a file of a store."""
    if name.endswith(".arrow"):
        return "segment"
    if name.endswith(".lock"):
        return "lock"
    return "state" if name.endswith(".state") else os.path.basename(name)


def read_all(root: Path, system: System) -> Truth:
    """All that a reader can be told of a store."""
    with Store(root, system) as store:
        state = store.pipeline(PIPELINE)
        truth: Truth = {"epoch": None if state is None else state.epoch, "pipeline": repr(state)}
        for info in store.topics():
            truth[f"topic {info.name}"] = (info.partitions, info.rows, info.bytes, info.schema)
            truth[f"rows of {info.name}"] = values_of(store.read(info.name))
            truth[f"commits of {info.name}"] = [
                (entry.commit_id, entry.epoch, entry.first_offset) for entry in store.batches(info.name)
            ]
        if state is not None:
            files = store.frames(state, PIPELINE)
            truth["frames"] = [values_of(pa.Table.from_batches(files.read(frame))) for frame in state.frames]
        truth["ledger"] = store.ledger(PIPELINE)
        return truth


def take_locks(root: Path, system: System) -> None:
    """Open what has a lock, whatever is in the file."""
    with Store(root, system) as store:
        store.lock_pipeline(PIPELINE).release()
        for topic in LANES["epochs"]:
            store.writer(topic, SCHEMA).close()

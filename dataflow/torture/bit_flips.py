"""Row 8: no damaged byte is read as if it were good.

A small store is damaged in one place of one of its files, opened and read: a bit flipped, a file cut, 4 KiB of zeros,
two segments swapped, an older one copied over. What is read must be the truth (the damage was in bytes that mean
nothing), or an error with a code, which for a segment names the file. It runs in processes of its own, so that a
crash is counted. The hard part are the catalog's files: SQLite takes a damaged frame of its log for the end of it, and
a reader does not add up checksums of rows that it does not need. There the verifier has to tell of it. What it cannot
tell either is undetected; but for a log cut exactly at the end of a transaction, whose bytes are those that a crash
before the later ones leaves: that is beyond any format, and told as a limit.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dataflow.errors import DataflowError
from dataflow.state.frames import CorruptFrameError
from dataflow.state.log.segment import CorruptSegmentError
from dataflow.state.store import Store
from dataflow.state.verify import verify
from dataflow.system import System
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.processes import Reporter, run_lanes
from dataflow.torture.seam import QuickSystem
from dataflow.torture.specimens import SPECIMENS

BLOCK_BYTES = 4096
CATALOG, WAL = "catalog.db", "catalog.db-wal"
WEIGHTS = {"segment": 8, "state": 3, CATALOG: 5, WAL: 4, "lock": 1}
"""How often a file of each class is damaged."""
KINDS = {"flip": 17, "cut": 2, "zeros": 1}
"""How often each kind of damage is done; segments are now and then swapped, too."""
SWAPS_SHARE = 50
NOTE = (
    "a log of SQLite that is cut exactly at the end of a transaction is what a crash before the later ones leaves: no "
    "format can tell"
)
WAL_HEADER_BYTES, WAL_FRAME_HEADER_BYTES = 32, 24
"""Of SQLite's log (sqlite.org/fileformat2.html#walformat); a frame holds a page."""


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
        victims = [Specimen(folder / name, seed, make) for name, make in SPECIMENS.items()]
        done, number = 0, first
        while reporter.goes_on(done):
            chance = random.Random(f"{seed}/{lane}/{number}")
            specimen = victims[number % len(victims)]
            damage = specimen.damage(chance)
            with reporter.trial(number) as tally:
                specimen.try_damage(damage, tally, f"seed {seed}, lane {lane}, trial {number}")
            done, number = done + 1, number + 1


class Specimen:
    """A store to be damaged, over and over: its files as they should be, and what is read from them."""

    def __init__(self, root: Path, seed: int, make: Callable[[Path, int], str]) -> None:
        self._root, self._system = root, QuickSystem(seed)
        self._pipeline = make(root, seed)
        report = verify(root)
        assert report.ok, report.findings
        self._findings = report.findings
        """Of the good store: its last transaction may have been cut off when it was killed."""
        self._files = {
            os.path.relpath(path, root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
        }
        self._by_class: dict[str, list[str]] = {}
        for name in self._files:
            self._by_class.setdefault(class_of(name), []).append(name)
        self._truth = read_all(root, self._pipeline, self._system)
        self._dirty: set[str] = set()
        assert self._truth["epoch"] and self._truth["frames"]

    def damage(self, chance: random.Random) -> Damage:
        """A damage by chance."""
        classes = [name for name in WEIGHTS if name in self._by_class]
        file_class = chance.choices(classes, [WEIGHTS[name] for name in classes])[0]
        if file_class == "segment" and len(self._by_class["segment"]) > 1 and chance.randrange(SWAPS_SHARE) == 0:
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
        self._apply(damage)
        has_changed = any(self._files[name] != content for name, content in damage.files.items())
        tally.faults += has_changed
        try:
            found = read_all(self._root, self._pipeline, self._system)
            if damage.file_class == "lock":
                take_locks(self._root, self._pipeline, self._system)
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
        where = f"{where}: {how}: {', '.join(differing)}"
        told = self._told(damage) if damage.file_class in (CATALOG, WAL) else None
        if told is not None:
            tally.count(f"{damage.file_class}: told by the verifier as a {told}, {how}")
        elif _ends_with_a_transaction(damage, self._files):
            tally.find("limits", where, group="cut")
        else:
            tally.find("undetected", where, group=f"{damage.file_class} {how}")

    def _told(self, damage: Damage) -> str | None:
        """What the verifier says of a damage that a reader has not noticed."""
        self._apply(damage)
        kinds = {finding.kind for finding in verify(self._root).findings if finding not in self._findings}
        return "damage" if "damage" in kinds else "warning" if kinds else None

    def _apply(self, damage: Damage) -> None:
        self._restore()
        for name, content in damage.files.items():
            (self._root / name).write_bytes(content)
            self._dirty.add(name)

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


def _ends_with_a_transaction(damage: Damage, files: dict[str, bytes]) -> bool:
    """Whether the damaged file is SQLite's log as it was at the end of an earlier transaction."""
    content = damage.files.get(WAL)
    if content is None or not files[WAL].startswith(content):
        return False
    if not content:
        return True
    frame_bytes = WAL_FRAME_HEADER_BYTES + int.from_bytes(content[8:12], "big")
    frames, rest = divmod(len(content) - WAL_HEADER_BYTES, frame_bytes)
    last = WAL_HEADER_BYTES + (frames - 1) * frame_bytes
    return rest == 0 and (frames == 0 or any(content[last + 4 : last + 8]))


def class_of(name: str) -> str:
    """The class of a file of a store."""
    if name.endswith(".arrow"):
        return "segment"
    if name.endswith(".lock"):
        return "lock"
    return "state" if name.endswith(".state") else os.path.basename(name)


def read_all(root: Path, pipeline: str, system: System) -> Truth:
    """All that a reader can be told of a store."""
    with Store(root, system) as store:
        state = store.pipeline(pipeline)
        truth: Truth = {"epoch": None if state is None else state.epoch, "pipeline": repr(state)}
        for info in store.topics():
            truth[f"topic {info.name}"] = (info.partitions, info.rows, info.bytes, info.schema)
            truth[f"rows of {info.name}"] = _values_of(store.read(info.name))
            truth[f"commits of {info.name}"] = [
                (entry.commit_id, entry.epoch, entry.first_offset) for entry in store.batches(info.name)
            ]
        if state is not None:
            files = store.frames(state, pipeline)
            truth["frames"] = [_values_of(pa.Table.from_batches(files.read(frame))) for frame in state.frames]
        truth["ledger"] = store.ledger(pipeline)
        return truth


def _values_of(table: pa.Table) -> list[tuple[object, ...]]:
    """The rows as Python values; times as numbers, since not every one is a date."""
    times = [number for number, field in enumerate(table.schema) if pa.types.is_timestamp(field.type)]
    columns = [column.cast("int64") if number in times else column for number, column in enumerate(table.columns)]
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


def take_locks(root: Path, pipeline: str, system: System) -> None:
    """Open what has a lock, whatever is in the file."""
    with Store(root, system) as store:
        store.lock_pipeline(pipeline).release()
        for info in store.topics():
            store.writer(info.name, info.schema).close()

"""What a store must hold: rows that follow from a seed, so that nobody has to remember them.

Work is a row of numbered commits in each of two lanes: `epochs` publishes two topics with a pipeline's epoch in one
commit, `appends` appends to a third topic. Whoever works notes each commit before it begins and after it was
acknowledged. The judge then knows, for any state of the disk: all commits up to some number between the last
acknowledged and the last begun have to be there, each whole and once, in order, and nothing else.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain

import pyarrow as pa

from dataflow.errors import DataflowError
from dataflow.state import frames as frame_files
from dataflow.state.frames import Frame, FrameFiles
from dataflow.state.log import writer as log_writer
from dataflow.state.log.writer import Pending, TopicWriter
from dataflow.state.store import EpochRecord, Store
from dataflow.state.verify import verify
from dataflow.system import Lock
from dataflow.torture.frame import Tally

PIPELINE = "torture"
LANES = {"epochs": ("a", "b"), "appends": ("c",)}
"""The topics that one commit of a lane writes."""
CORRUPT = "DF0603"
STEP = "totals"
"""The step whose state is in the frames: the rows that a topic of this name would have."""
OWNER = f"state {STEP}"
FRAMES_KEPT = 2
TOPICS = tuple(chain.from_iterable(LANES.values()))
SCHEMA = pa.schema({"commit": pa.int64(), "n": pa.int64(), "text": pa.string()})
ROWS_MAX, TEXT_CHARS_MAX = 8, 120

Note = Callable[[str, str, int], None]
"""Takes `begun` or `acked`, the lane, and the number of the commit (from 1)."""
Value = tuple[int, int, str]
Prepared = tuple[list[Pending], Frame]


@lru_cache(maxsize=4096)
def rows_of(seed: int, topic: str, commit: int) -> tuple[Value, ...]:
    """The rows that a commit has in a topic."""
    chance = random.Random(f"{seed}/{topic}/{commit}")
    return tuple(
        (commit, n, f"{topic}{commit}.{n} " + "x" * chance.randint(0, TEXT_CHARS_MAX))
        for n in range(chance.randint(1, ROWS_MAX))
    )


def batch_of(seed: int, topic: str, commit: int) -> pa.RecordBatch:
    """The same rows, to be written."""
    columns = zip(*rows_of(seed, topic, commit), strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


class Marks:
    """What was begun and what was acknowledged, by lane."""

    def __init__(self, notes: Iterable[tuple[str, str, int]] = ()) -> None:
        self.begun = dict.fromkeys(LANES, 0)
        self.acked = dict.fromkeys(LANES, 0)
        for note in notes:
            self(*note)

    def __call__(self, kind: str, lane: str, commit: int) -> None:
        marks = self.acked if kind == "acked" else self.begun
        marks[lane] = max(marks[lane], commit)


class Author:
    """Writes the commits of both lanes into one store; an epoch has one frame, and keeps the one before."""

    def __init__(self, store: Store, seed: int, note: Note) -> None:
        self._store, self._seed, self._note = store, seed, note
        self._writers: dict[str, TopicWriter] = {}
        self._lock: Lock | None = None
        self._files: FrameFiles | None = None
        self._frames: list[Frame] = []

    def publish(self, commit: int) -> None:
        """The commit of that number in `epochs`: two topics and the epoch, at once."""
        self._note("begun", "epochs", commit)
        self._publish(commit, self.prepare(commit))
        self._note("acked", "epochs", commit)

    def publish_two(self, commit: int) -> None:
        """Two commits in `epochs`: the second is prepared while the first still waits to be published."""
        prepared = [self.prepare(commit), self.prepare(commit + 1)]
        for number, one in enumerate(prepared, commit):
            self._note("begun", "epochs", number)
            self._publish(number, one)
            self._note("acked", "epochs", number)

    def append(self, commit: int) -> None:
        """The commit of that number in `appends`."""
        self._note("begun", "appends", commit)
        self._store.append("c", batch_of(self._seed, "c", commit))
        self._note("acked", "appends", commit)

    def prepare(self, commit: int) -> Prepared:
        """Make an epoch's rows and its state durable."""
        files = self._open_files()
        frame = files.write(OWNER, [batch_of(self._seed, STEP, commit)], SCHEMA)
        files.sync()
        pendings = []
        for topic in LANES["epochs"]:
            writer = self._writer(topic)
            writer.append(batch_of(self._seed, topic, commit))
            pending = writer.prepare()
            assert pending is not None
            pendings.append(pending)
        return pendings, frame

    def _publish(self, commit: int, prepared: Prepared) -> None:
        pendings, frame = prepared
        kept = [*self._frames[-FRAMES_KEPT + 1 :], frame]
        record = EpochRecord(
            pipeline=PIPELINE,
            epoch=commit,
            finished=False,
            graph_hash=PIPELINE,
            checkpoint=checkpoint_of(commit),
            ledger={STEP: {"rows_in": commit, "passed": commit}},
            added=[frame],
            dropped=[one.number for one in self._frames if one not in kept],
        )
        self._store.publish(pendings, epoch=record)
        self._frames = kept
        self._open_files().forget(kept)

    def roll_back(self, commit: int) -> None:
        """Write what belongs to a commit, and take it back."""
        self.prepare(commit)
        self.take_back()

    def take_back(self) -> None:
        """Take back what was written and is not published."""
        for writer in self._writers.values():
            writer.rollback()

    def abandon(self, commit: int) -> None:
        """Leave with rows that were prepared and never published, as a process does that is killed."""
        self.prepare(commit)
        for writer in self._writers.values():
            writer.fail()  # so that closing does not cut
        self.close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._files is not None:
            self._files.close()
        if self._lock is not None:
            self._lock.release()
        self._files = self._lock = None

    def _writer(self, topic: str) -> TopicWriter:
        if topic not in self._writers:
            self._writers[topic] = self._store.writer(topic, SCHEMA)
        return self._writers[topic]

    def _open_files(self) -> FrameFiles:
        """As a pipeline does when it starts: its lock, then what its last checkpoint refers to."""
        if self._files is None:
            self._lock = self._store.lock_pipeline(PIPELINE)
            state = self._store.pipeline(PIPELINE)
            self._frames = [] if state is None else sorted(state.frames, key=lambda frame: frame.number)
            self._files = self._store.frames(state, PIPELINE)
            self._files.forget(self._frames)
        return self._files


def checkpoint_of(commit: int) -> dict[str, object]:
    """What an epoch says of itself, as the format wants it."""
    sources = {"numbers": {"0": {"position": commit}}}
    return {
        "sources": sources,
        "states": {STEP: [{"epoch": commit}]},
        "sinks": {},
        "steps": {"read numbers": {"does": "numbers", "columns": {"n": "int64"}, "paths": [], "hash": ""}},
    }


@contextmanager
def small_segments(bytes_max: int) -> Iterator[None]:
    """Begin new segments and files of frames far sooner, so that a short run sees what else takes 256 and 64 MiB."""
    limits = ((log_writer, "SEGMENT_BYTES_MAX"), (frame_files, "FRAME_FILE_BYTES_MAX"))
    usual = [getattr(module, name) for module, name in limits]
    for module, name in limits:
        setattr(module, name, bytes_max)
    try:
        yield
    finally:
        for (module, name), value in zip(limits, usual, strict=True):
            setattr(module, name, value)


# ── the judge ──


def judge(
    store: Store, seed: int, marks: Marks, tally: Tally, where: str, *, verifies: bool = True, is_broken: bool = False
) -> dict[str, int] | None:
    """Compare a store with what it must hold; return the last commit of each lane, None if it cannot be read.

    While the disk is broken, reading may be refused, with an error that does not speak of damage.
    """
    try:
        found, epochs = _read(store)
    except DataflowError as error:
        if not any(marks.acked.values()):
            return dict.fromkeys(LANES, 0)  # making it was cut off: whether it can be made anew, going on will tell
        if is_broken and error.code != CORRUPT:
            tally.count("reading was refused meanwhile")
        else:
            tally.find("lost", f"{where}: cannot be read: {error.message}")
        return None
    except Exception as error:  # noqa: BLE001 (anything without a code is a finding)
        tally.find("wrong", f"{where}: reading failed without a code: {error!r}", group="reading")
        return None
    durable = {lane: max((row[0] for name in LANES[lane] for row in found[name]), default=0) for lane in LANES}
    for lane, topics in LANES.items():
        for topic in topics:
            judge_rows(seed, topic, found[topic], durable[lane], marks.acked[lane], tally, where)
        if durable[lane] > marks.begun[lane]:
            tally.find("wrong", f"{where}: commit {durable[lane]} of {lane} is there, and was never begun")
        if durable[lane] < marks.acked[lane]:
            count = sum(len(rows_of(seed, topics[0], n)) for n in range(durable[lane] + 1, marks.acked[lane] + 1))
            tally.find("lost", f"{where}: {lane} ends at commit {durable[lane]}, acked {marks.acked[lane]}", count)
    kept = list(range(1, durable["epochs"] + 1))[-FRAMES_KEPT:]
    if epochs != [durable["epochs"], *kept]:
        what = f"the pipeline is at epoch {epochs[0]} with frames of {epochs[1:]}"
        tally.find("wrong", f"{where}: {what}, its rows are at {durable['epochs']}")
    if verifies:
        _verify(store, tally, where)
    return durable


def _verify(store: Store, tally: Tally, where: str) -> None:
    """Ask the verifier, which shares no code with the store."""
    if store.exists:
        report = verify(store.path)
        if not report.ok:
            tally.find("wrong", f"{where}: the verifier says: {report.findings[0]}", group="verifier")


def judge_rows(seed: int, topic: str, found: list[Value], durable: int, acked: int, tally: Tally, where: str) -> None:
    """Compare the rows of a topic with those of all commits up to `durable`, and say how they differ."""
    expected = [row for commit in range(1, durable + 1) for row in rows_of(seed, topic, commit)]
    if found == expected:
        return
    counted, wanted = Counter(found), set(expected)
    missing = [row for row in expected if row not in counted]
    lost = [row for row in missing if row[0] <= acked]
    problems = {
        "lost": lost,
        "duplicated": [row for row, count in counted.items() if count > 1],
        "wrong": [row for row in counted if row not in wanted] + [row for row in missing if row[0] > acked],
    }
    if not any(problems.values()):
        problems["out_of_order"] = [one for one, other in zip(found, expected, strict=True) if one != other]
    for kind, rows in problems.items():
        if rows:
            tally.find(kind, f"{where}: topic {topic}: {rows[0][:2]} and {len(rows) - 1} more", len(rows))


def _read(store: Store) -> tuple[dict[str, list[Value]], list[int]]:
    """All rows of each topic; the epoch of the pipeline, and those whose state its frames have."""
    found: dict[str, list[Value]] = {topic: [] for topic in TOPICS}
    if not store.exists:
        return found, [0]
    state = store.pipeline(PIPELINE)
    for info in store.topics():
        found[info.name] = values_of(store.read(info.name))
    if state is None:
        return found, [0]
    files = store.frames(state, PIPELINE)
    frames = sorted(state.frames, key=lambda frame: frame.number)
    return found, [state.epoch, *(_epoch_of(files.read(frame)) for frame in frames)]


def _epoch_of(batches: list[pa.RecordBatch]) -> int:
    return int(batches[0]["commit"][0].as_py())


def values_of(table: pa.Table) -> list[Value]:
    """The rows as Python values."""
    return list(zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True))


def judge_and_go_on(store: Store, seed: int, marks: Marks, tally: Tally, where: str, *, verifies: bool = True) -> None:
    """Judge a store, write the next commit of each lane into it, and judge again."""
    # A log of SQLite that was torn when it began is no damage, and goes with the next commit: the verifier comes then.
    durable = judge(store, seed, marks, tally, where, verifies=False)
    if durable is None:
        return
    after = Marks()
    after.acked, after.begun = dict(durable), dict(durable)
    author = Author(store, seed, after)
    try:
        author.publish(durable["epochs"] + 1)
        author.append(durable["appends"] + 1)
        author.close()
    except Exception as error:  # noqa: BLE001 (whatever it is: the store did not go on)
        tally.find("wrong", f"{where}: it does not go on: {error!r}")
        return
    judge(store, seed, after, tally, f"{where}, then two commits more", verifies=verifies)

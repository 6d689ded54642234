"""Where an epoch becomes durable: one transaction of the run's store, or nowhere when there is none.

The transaction has everything of the epoch: rows for topics of the store, positions of the sources, what the steps and
the sinks keep, and the ledger. So results and progress can never differ, and a run that finds it goes on from there.
What is too large for a transaction is written before it, into frames, and the transaction says where they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from dataflow.errors import ConnectorError, PlanError
from dataflow.graph.identity import KeptStep, difference, other_place
from dataflow.operators.base import Piece, Position, SinkStaging, StepCounts
from dataflow.runtime.epoch import Commit, Resume, SavedState, TaskAck
from dataflow.runtime.ledger import require_balance, summed
from dataflow.runtime.unread import UnreadTopics
from dataflow.system import System

if TYPE_CHECKING:
    from dataflow.state.frames import Frame, FrameFiles
    from dataflow.state.log.writer import Pending
    from dataflow.state.records import EpochRecord, PipelineState
    from dataflow.state.store import Store
    from dataflow.system import Lock

RUN_BITS = 48
"""Of chance in a run's name: two runs of one pipeline never share it."""


@contextmanager
def open_store(given: Store | str | PathLike[str] | None, system: System) -> Iterator[Store | None]:
    """The store of a run; opened and closed here when a path was given."""
    if given is None:
        yield None
        return
    from dataflow.state.store import Store

    if isinstance(given, Store):
        yield given
        return
    with Store(given, system=system) as store:
        yield store


@dataclass(frozen=True, slots=True)
class Program:
    """What a pipeline is to its store: equal `state_hash` means that it may go on from the other's checkpoint."""

    name: str
    graph_hash: str
    state_hash: str
    steps: Mapping[str, KeptStep]


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An epoch that is ready to be committed."""

    pendings: Sequence[Pending]
    record: EpochRecord
    frames: Mapping[int, Frame]
    has_others: bool
    """Whether sinks take part in it that commit after the store."""


class StoreCommitter:
    """Commits the epochs of one pipeline. Used with `with`: holds the pipeline's lock in its store.

    Without a store (also for `collect` and `head`, which read one and leave no trace in it) nothing is kept.
    """

    def __init__(self, store: Store | None, program: Program, system: System) -> None:
        self.store, self.program, self.system = store, program, system
        self._lock: Lock | None = None
        self._files: FrameFiles | None = None
        self._unread: UnreadTopics | None = None
        self._attempt: _Attempt | None = None
        self._in_use: Mapping[int, Frame] = {}
        """The frames of the last committed epoch, by number."""
        self._counted: Mapping[str, StepCounts] = {}
        """The ledger up to the last committed epoch of this run."""
        self._unfinished: EpochRecord | None = None
        """The last epoch of a run whose input has ended, until its sinks have committed it."""

    def __enter__(self) -> StoreCommitter:
        if self.store is not None:
            self._lock = self.store.lock_pipeline(self.program.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self._lock is not None:
            self._lock.release()

    def _close(self) -> None:
        if self._files is not None:
            self._files.close()
        if self._unread is not None:
            self._unread.close()
        self._files = self._unread = None

    # ── where a run begins ──

    def before(self) -> PipelineState | None:
        """What the last run of this pipeline left in the store; raises when it was another program."""
        state = None if self.store is None else self.store.pipeline(self.program.name)
        if state is None:
            return None
        known = cast(Mapping[str, KeptStep], state.checkpoint.get("steps", {}))
        if state.state_hash != self.program.state_hash:
            raise PlanError(
                f"pipeline `{self.program.name}` has run in this store before, as another program: "
                f"{difference(self.program.steps, known)}; nothing was changed",
                code="DF0406",
                help="give the pipeline another name, or another store; or begin again with `restart`: its rows are "
                "then written once more, behind those that are there",
            )
        if (moved := other_place(self.program.steps, known)) is not None:
            raise PlanError(
                f"pipeline `{self.program.name}` has run in this store before: {moved}; nothing was changed",
                code="DF0406",
                help="start it in the same working directory, or name the path from the root on; a target that was "
                "moved goes on where it is if the store is moved with it",
            )
        return state

    def resume(self, state: PipelineState | None, *, restart: bool = False) -> Resume:
        """Where a run goes on from; `restart` begins at the inputs' start."""
        if self.store is None:
            return Resume(run=self._new_name(self.system.clock.wall_us() // 1_000_000))
        self._close()
        self._files = files = self.store.frames(state, self.program.name)
        self._unread = UnreadTopics(self.store, self.program.name)
        self._counted, self._unfinished, self._attempt = {}, None, None
        frames = state.frames if state is not None else ()
        self._in_use = {frame.number: frame for frame in frames}
        files.forget(frames)
        checkpoint = state.checkpoint if state is not None else {}
        is_kept = state is not None and not restart
        states = cast(Mapping[str, Sequence[Mapping[str, object]]], checkpoint.get("states", {}) if is_kept else {})
        return Resume(
            durable=True,
            epoch=state.epoch if state is not None else 0,
            run=self._new_name(state.epoch + 1 if state is not None else 1),
            home=self.store.id,
            restart=restart,
            positions=cast(Mapping[str, Mapping[str, Position]], checkpoint.get("sources", {}) if is_kept else {}),
            states={
                name: SavedState(values, [_piece(files, one) for one in frames if one.owner == f"state {name}"])
                for name, values in states.items()
            },
            handles=cast(Mapping[str, object], checkpoint.get("sinks", {})),
            staging=partial(self._staging, frames),
        )

    def _staging(self, frames: Sequence[Frame], sink: str, schema: pa.Schema) -> SinkStaging:
        from dataflow.state.frames import Staging

        assert self._files is not None
        owner = f"sink {sink}"
        return Staging(self._files, owner, schema, [frame for frame in frames if frame.owner == owner])

    def _new_name(self, number: int) -> str:
        """The names of later runs sort behind, as their files are to be read."""
        return f"{number:012}-{self.system.chance.getrandbits(RUN_BITS):0{RUN_BITS // 4}x}"

    # ── epochs ──

    def stage(self, acks: Sequence[TaskAck]) -> None:
        """Write what these tasks keep, durably: while the sinks still prepare."""
        if self._files is not None:
            self._written(acks)
            self._files.sync()

    def commit(self, commit: Commit) -> None:
        """Make the epoch durable; raises when the store cannot, and then nothing of it is visible.

        A run has finished with its last epoch if only topics of the store take part in it; sinks of other kinds
        commit after the store, and might fail.
        """
        ledger = summed(one for ack in commit.acks for one in ack.counts)
        require_balance(ledger)
        if self.store is None:
            return
        if self._attempt is None or self._attempt.record.epoch != commit.epoch:
            self._attempt = self._attempted(self.store, commit, ledger)
        attempt = self._attempt
        self.store.publish(attempt.pendings, epoch=attempt.record)
        self._attempt = None
        self._in_use, self._counted = attempt.frames, ledger
        if self._files is not None:
            self._files.forget(attempt.frames.values())
        done = replace(attempt.record, epoch=commit.epoch + 1, finished=True, ledger={}, added=(), dropped=())
        self._unfinished = done if commit.finished and attempt.has_others else None

    def _attempted(self, store: Store, commit: Commit, ledger: Mapping[str, StepCounts]) -> _Attempt:
        """Everything of an epoch but its commit, which may have to be tried again."""
        from dataflow.state.log.writer import Pending

        assert self._files is not None and self._unread is not None
        frames = self._written(commit.acks)
        self._unread.rollback()  # what an attempt before this one has written
        unread = self._unread.prepare([batch for ack in commit.fresh for batch in ack.unread])
        self._files.sync()
        handles = {ack.sink: ack.handle for ack in commit.acks if ack.sink is not None}
        others = {name: _checked(name, one) for name, one in handles.items() if not isinstance(one, Pending)}
        record = self._record(commit, ledger, frames, others, finished=commit.finished and not others)
        pendings = [ack.handle for ack in commit.fresh if isinstance(ack.handle, Pending)]
        return _Attempt([*pendings, *unread], record, frames, bool(others))

    def _written(self, acks: Sequence[TaskAck]) -> dict[int, Frame]:
        """All frames that the epoch needs; what is in none yet is written."""
        from dataflow.state.frames import Frame

        assert self._files is not None
        frames: list[Frame] = []
        for ack in acks:
            for name, snapshot in ack.states:
                for piece in snapshot.pieces:
                    if piece.frame is None:
                        batches = piece.load()
                        frame = self._files.write(f"state {name}", batches, batches[0].schema)
                        piece.stored(frame, partial(self._files.read, frame))
                    frames.append(cast(Frame, piece.frame))
            frames += cast(Sequence[Frame], ack.staged)
        return {frame.number: frame for frame in frames}

    def _record(
        self,
        commit: Commit,
        ledger: Mapping[str, StepCounts],
        frames: Mapping[int, Frame],
        handles: Mapping[str, object],
        *,
        finished: bool,
    ) -> EpochRecord:
        from dataflow.state.records import EpochRecord

        states: dict[str, list[Mapping[str, object]]] = {}
        for ack in commit.acks:
            for name, snapshot in ack.states:
                states.setdefault(name, []).append(snapshot.values)
        since = {step: counts.since(self._counted.get(step, StepCounts())) for step, counts in ledger.items()}
        return EpochRecord(
            pipeline=self.program.name,
            epoch=commit.epoch,
            finished=finished,
            graph_hash=self.program.graph_hash,
            state_hash=self.program.state_hash,
            checkpoint={
                "sources": commit.positions,
                "states": states,
                "sinks": handles,
                "steps": self.program.steps,
            },
            ledger={
                step: {name: number for name, number in asdict(counts).items() if number}
                for step, counts in since.items()
            },
            added=[frame for number, frame in frames.items() if number not in self._in_use],
            dropped=[number for number in self._in_use if number not in frames],
        )

    def finish(self) -> None:
        """All sinks have committed the last epoch, and nothing has failed."""
        if self.store is not None and self._unfinished is not None:
            self.store.publish([], epoch=self._unfinished)


def _piece(files: FrameFiles, frame: Frame) -> Piece:
    """The rows of a frame that is there already."""
    piece = Piece([])
    piece.rows = frame.rows
    piece.stored(frame, partial(files.read, frame))
    return piece


def _checked(sink: str, handle: object) -> object:
    """A sink's handle as it will be read back."""
    try:
        return json.loads(json.dumps(handle, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConnectorError(
            f"sink `{sink}`: prepare() returned {handle!r}, which is not a JSON value ({error})",
            code="DF0504",
            help="return None, a number, a text, or lists and dicts of these: it is kept in the store, and a later run "
            "gives it to commit()",
        ) from None

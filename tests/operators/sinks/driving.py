"""Drives a sink as a run with a store does, on a simulated disk, and can die between any two calls.

`Pipeline` is what survives a death: the input, how far it was committed, the last handle (as JSON), the frames. `life`
is one process: it goes on from there, and dies before the step whose number it was given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dataflow.operators.base import Sink, SinkContext
from dataflow.state.frames import Frame, FrameFiles, Staging
from dataflow.system import SimulatedSystem
from dataflow.system.simulated import SimulatedDisk, SimulatedFile

HOME = "/home/me"
SCHEMA = pa.schema({"n": pa.int64(), "word": pa.string()})
Epoch = Sequence[pa.RecordBatch]


class Death(BaseException):
    """The process is killed here."""


def rows(*numbers: int) -> pa.RecordBatch:
    words = [None if number % 5 == 0 else f"w{number % 3}" for number in numbers]
    return pa.record_batch({"n": pa.array(numbers, pa.int64()), "word": pa.array(words, pa.string())}, schema=SCHEMA)


class DyingDisk(SimulatedDisk):
    """A disk whose process dies before the change with that number; what it does afterwards changes nothing."""

    corpse: SimulatedSystem | None = None
    """The machine at that moment."""

    def __init__(self, system: SimulatedSystem, dies_at: int | None) -> None:
        super().__init__(system)
        self._machine, self._left = system, dies_at

    def _changes(self, kind: str, path: str) -> None:
        if self._left == 0:
            self._left = None
            self.corpse = kill(self._machine)
            raise Death
        if self._left is not None:
            self._left -= 1
        super()._changes(kind, path)


def dying(system: SimulatedSystem, dies_at: int | None) -> SimulatedSystem:
    """The machine, which has no files yet, with a disk that dies."""
    made = kill(system)
    assert not _files(made.disk)
    disk = DyingDisk(made, dies_at)
    disk._entries, disk._durable = made.disk._entries, made.disk._durable
    made.disk = disk
    return made


def _files(disk: SimulatedDisk) -> list[SimulatedFile]:
    return [one for one in (*disk._entries.values(), *disk._durable.values()) if one is not None]


def kill(system: SimulatedSystem, *, power: bool = False) -> SimulatedSystem:
    """The machine after the process that used it has died, or the power has. What it still had open is out of reach."""
    made = SimulatedSystem(system.chance.getrandbits(32))
    made.clock.advance(system.clock.monotonic())
    old, new = system.disk, made.disk
    files = {id(one): _copy(one) for one in _files(old)}
    new._entries = {path: file and files[id(file)] for path, file in old._entries.items()}
    new._durable = {path: file and files[id(file)] for path, file in old._durable.items()}
    if power:
        new.lose_power()
    return made


def _copy(file: SimulatedFile) -> SimulatedFile:
    made = SimulatedFile()
    made.content, made.durable = bytearray(file.content), file.durable
    return made


@dataclass
class Pipeline:
    """A run with a store, as far as a sink can tell."""

    make: Callable[[SinkContext], Sink]
    epochs: Sequence[Epoch]
    bounded: bool = True
    system: SimulatedSystem = field(default_factory=lambda: SimulatedSystem(seed=7))
    name: str = "my pipe"
    seconds_between: float = 0.1
    committed: int = 0
    """Epochs that the store has."""
    handle: str = "null"
    frames: tuple[Frame, ...] = ()
    next_number: int = 1
    lives: int = 0
    steps: int = 0
    """Of the life that is lived last."""

    def __post_init__(self) -> None:
        if not self.system.disk.exists(HOME):
            self.system.disk.make_dirs(HOME)
            self.system.disk.sync_dir("/home")
            self.system.disk.sync_dir("/")

    @property
    def committed_rows(self) -> list[dict[str, Any]]:
        return [row for epoch in self.epochs[: self.committed] for batch in epoch for row in batch.to_pylist()]

    def life(self, dies_at: int | None = None) -> Sink:
        """One process, from the last commit to the end or to its death."""
        self.lives += 1
        self.steps = 0
        files = FrameFiles(self.system, HOME, f"{HOME}/frames", self.next_number)
        staging = Staging(files, "sink", SCHEMA, self.frames)
        context = SinkContext(
            SCHEMA,
            self.system,
            None,
            self.name,
            "sink",
            f"run{self.lives}",
            bounded=self.bounded,
            staging=staging,
            home="store",
        )

        def step(call: Callable[..., Any], *arguments: object) -> Any:
            if self.steps == dies_at:
                raise Death
            self.steps += 1
            return call(*arguments)

        sink: Any = step(self.make, context)
        step(sink.recover, json.loads(self.handle))
        for number in range(self.committed, len(self.epochs)):
            self._epoch(number, sink, step, files, staging)
        if self.committed == len(self.epochs) and not self.bounded:
            self._epoch(self.committed, sink, step, files, staging)  # what the stop makes
        if hasattr(sink, "close"):
            step(sink.close)
        return sink  # type: ignore[no-any-return]

    def _epoch(self, number: int, sink: Any, step: Callable[..., Any], files: FrameFiles, staging: Staging) -> None:
        step(sink.open, number + 1)
        for batch in self.epochs[number] if number < len(self.epochs) else ():
            step(sink.write, batch)
        self.system.scheduler.sleep(self.seconds_between)
        if self.bounded and number == len(self.epochs) - 1 and hasattr(sink, "end"):
            step(sink.end)
        handle = json.dumps(step(sink.prepare, number + 1))

        def commit() -> None:
            files.sync()
            self.handle, self.frames, self.committed = handle, tuple(staging.frames), min(number + 1, len(self.epochs))
            self.next_number = max((frame.number for frame in self.frames), default=self.next_number) + 1

        step(commit)
        files.forget(self.frames)
        step(sink.commit, json.loads(handle))
        step(sink.commit, json.loads(handle))

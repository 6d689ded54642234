"""Hands out the units of a source to its tasks, in order and each once.

An epoch must be a prefix of every partition, although several tasks read ahead at different speeds. So the cut
is made here: once an epoch has begun, a task gets the barrier before it gets another unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dataflow.message import Barrier, End, Place
from dataflow.operators.base import Idle, ReadRequest, Split, SplitSource
from dataflow.system import Mutex


@dataclass(frozen=True, slots=True)
class Unit:
    """A split and its place."""

    split: Split
    place: Place


@dataclass(frozen=True, slots=True)
class PartitionEnd:
    """A partition has ended after so many units."""

    partition: int
    units_total: int


@dataclass(slots=True)
class _Partition:
    number: int
    splits: Iterator[Split | Idle]
    units: int = 0


class Dispenser:
    """The units of one source. `first_partition` is the number of its first partition in the job."""

    def __init__(
        self, source: SplitSource, request: ReadRequest, first_partition: int, tasks: int, lock: Mutex
    ) -> None:
        self.names = list(source.partitions(request))
        self.partitions = range(first_partition, first_partition + len(self.names))
        self._turns = [_Partition(p, source.splits(i, request)) for i, p in enumerate(self.partitions)]
        self._lock = lock
        self._next = 0
        self.sequence = 0
        self._barrier = Barrier(0)
        self._given = [0] * tasks
        """The last epoch whose barrier each task has got."""

    def begin_epoch(self, barrier: Barrier) -> dict[str, int]:
        """Cut here: what was handed out belongs to the epoch. Returns the units of each partition before the cut."""
        with self._lock:
            self._barrier = barrier
            return self.units()

    def units(self) -> dict[str, int]:
        """The units handed out so far of the partitions that have not ended."""
        return {self.names[p.number - self.partitions.start]: p.units for p in self._turns}

    def barrier_inside(self, task: int) -> Barrier | None:
        """A barrier that this task may take before its unit is done.

        With one task, what it has handed on is a prefix of the input wherever it is cut. With several, a task in
        the middle of a unit may be waited for; only a stop, after which nobody goes on, cuts there.
        """
        if self._given[task] == self._barrier.epoch or (len(self._given) > 1 and not self._barrier.stop):
            return None
        self._given[task] = self._barrier.epoch
        return self._barrier

    def take(self, task: int) -> Unit | PartitionEnd | Barrier | End | None:
        """What a task does next; None when there is nothing to read now. Only this may run a source's iterator."""
        with self._lock:
            if self._given[task] < self._barrier.epoch:
                self._given[task] = self._barrier.epoch
                return self._barrier
            if self._barrier.stop:
                return End(flush=False)
            for _ in range(len(self._turns)):
                found = self._take_from(self._turns[self._next])
                if found is not None:
                    return found
            return None if self._turns else End(flush=True)

    def _take_from(self, partition: _Partition) -> Unit | PartitionEnd | None:
        split = next(partition.splits, None)
        if split is None:
            self._turns.pop(self._next)
            self._next = self._next % len(self._turns) if self._turns else 0
            return PartitionEnd(partition.number, partition.units)
        self._next = (self._next + 1) % len(self._turns)
        if isinstance(split, Idle):
            return None
        unit = Unit(split, Place(partition.number, partition.units, self.sequence))
        partition.units += 1
        self.sequence += 1
        return unit

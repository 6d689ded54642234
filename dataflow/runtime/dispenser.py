"""Hands out the units of a source to its tasks, in order and each once, and cuts the input into epochs.

An epoch must be a prefix of every partition, although several tasks read ahead at different speeds. So the cut is made
here: once an epoch has begun, each task gets the barrier after the units that belong to it and before all others. The
hard part is a slow sink, where one unit may take minutes: then a task *enters* a unit only when all earlier ones are
through, so that the cut can be in the middle of it, and what other tasks have decoded already is not in the epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from dataflow.message import Barrier, End, Place
from dataflow.operators.base import Idle, Position, ReadRequest, Split, SplitSource
from dataflow.system import Mutex


@dataclass(slots=True, eq=False)
class Unit:
    """A split and its place. `rows` of it have been entered into the steps of its task."""

    split: Split
    place: Place
    rows: int = 0
    is_entered: bool = False
    by_turn: bool = False
    """Whether it may be cut in the middle, and nobody may overtake it."""


@dataclass(frozen=True, slots=True)
class PartitionEnd:
    """A partition has ended after so many units."""

    partition: int
    units_total: int


@dataclass(slots=True)
class _Partition:
    number: int
    name: str
    splits: Iterator[Split | Idle]
    position: Position
    """Before the first unit that belongs to the epoch after the last cut."""
    ends: deque[tuple[int, Position]] = field(default_factory=deque)
    """The sequence and the end of each unit handed out since the last cut."""
    units: int = 0


class Dispenser:
    """The units of one source. `first_partition` is the number of its first partition in the job; `positions`, by the
    partition's name, are where an earlier run left off."""

    def __init__(
        self,
        source: SplitSource,
        request: ReadRequest,
        first_partition: int,
        tasks: int,
        locks: tuple[Mutex, Mutex],
        *,
        positions: Mapping[str, Position] | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        known = positions or {}
        self.source = source
        names = list(source.partitions(request))
        self.partitions = {first_partition + i: name for i, name in enumerate(names)}
        self._partitions = [
            _Partition(number, name, source.splits(number - first_partition, request, known.get(name)), known.get(name))
            for number, name in self.partitions.items()
        ]
        self._turns = list(self._partitions)
        self._gone = {name: position for name, position in known.items() if name not in names}
        """Positions of partitions that are not there now: they may come back."""
        self._lock, self._wake, self._to_head = locks[0], wake, request.to_head
        self._reading = locks[1]
        """Held while the source is asked, which may take long; the other one never is."""
        self._next = 0
        self.sequence = 0
        self._barrier = Barrier(0)
        self._given = [0] * tasks
        """The last epoch whose barrier each task has got."""
        self._last_entered = -1
        self._limit = -1
        """Units up to this sequence belong to the epoch whose barrier is on its way."""
        self._outstanding: dict[int, Unit] = {}
        """Handed out and not through, by sequence."""
        self._is_awaited = False

    @property
    def at_head(self) -> bool:
        """Whether all that is there has been handed on; only in a run that ends there."""
        return self._to_head and not self._turns and not self._outstanding

    def close(self) -> None:
        """Read no more. After all tasks have left."""
        for partition in self._partitions:
            close = getattr(partition.splits, "close", None)
            if close is not None:
                close()

    def left_behind(self) -> int:
        """How many rows the source has given that are in no epoch and will not come again."""
        count = getattr(self.source, "left_behind", None)
        return 0 if count is None else sum(count(partition.position) for partition in self._partitions)

    # ── epochs ──

    def begin_epoch(self, barrier: Barrier) -> None:
        """Cut here: what has been entered belongs to the epoch."""
        with self._lock:
            self._barrier, self._limit = barrier, self._last_entered
            for partition in self._partitions:
                while partition.ends and partition.ends[0][0] <= self._limit:
                    partition.position = partition.ends.popleft()[1]

    def positions(self, *, ended: bool) -> dict[str, Position]:
        """Where each partition is cut, after every task has got the barrier or has ended; with `ended`, its end."""
        with self._lock:
            for partition in self._partitions if ended else ():
                if partition.ends:
                    partition.position = partition.ends.pop()[1]
                    partition.ends.clear()
            return self._gone | {partition.name: partition.position for partition in self._partitions}

    def barrier_for(self, task: int, unit: Unit) -> Barrier | None:
        """The barrier, if the task is to get it before it goes on with its unit."""
        if self._given[task] == self._barrier.epoch:
            return None
        with self._lock:
            sequence = unit.place.sequence
            if unit.is_entered and (sequence != self._limit or not unit.rows):
                return None
            if not unit.is_entered and sequence <= self._limit:
                return None
            if unit.is_entered:
                self._cut_inside(unit)
            self._given[task] = self._barrier.epoch
            return self._barrier

    def _cut_inside(self, unit: Unit) -> None:
        partition = self._partitions[unit.place.partition - self._partitions[0].number]
        partition.position = unit.split.position(unit.rows)
        # Its end belongs to an epoch to come.
        partition.ends.appendleft((unit.place.sequence, unit.split.end))

    # ── units ──

    def enter(self, task: int, unit: Unit, by_turn: bool) -> bool:
        """Whether the task may hand rows of the unit to its steps now; asked before the first of them."""
        with self._lock:
            if self._given[task] < self._barrier.epoch and unit.place.sequence > self._limit:
                return False  # an epoch has begun meanwhile
            for sequence, other in self._outstanding.items():
                if sequence < unit.place.sequence and (by_turn or (other.is_entered and other.by_turn)):
                    self._is_awaited = True
                    return False
            unit.is_entered, unit.by_turn = True, by_turn
            self._last_entered = max(self._last_entered, unit.place.sequence)
            return True

    def let_pass(self, unit: Unit) -> None:
        """The rest of the unit will not take long: others may overtake it."""
        unit.by_turn = False
        self._tell()

    def through(self, unit: Unit) -> None:
        """All rows of the unit have been entered, and handed on by the steps of the task."""
        with self._lock:
            del self._outstanding[unit.place.sequence]
        self._tell()

    def _tell(self) -> None:
        if self._is_awaited:
            self._is_awaited = False
            self._wake()

    def take(self, task: int) -> Unit | PartitionEnd | Barrier | End | None:
        """What a task does next; None when there is nothing to read now. Only this may run a source's iterator."""
        if (control := self._control_for(task)) is not None:
            return control
        with self._reading:
            if (control := self._control_for(task)) is not None:  # a slow source was read meanwhile
                return control
            for _ in range(len(self._turns)):
                if self._turns and (found := self._take_from(self._turns[self._next])) is not None:
                    return found
            if not self._turns and not self._to_head:
                return End(flush=True)
        if self.at_head:
            self._wake()
        return None

    def _control_for(self, task: int) -> Barrier | End | None:
        with self._lock:
            if self._given[task] < self._barrier.epoch:
                self._given[task] = self._barrier.epoch
                return self._barrier
            return End(flush=False, at_head=self.at_head) if self._barrier.stop else None

    def _take_from(self, partition: _Partition) -> Unit | PartitionEnd | None:
        split = next(partition.splits, None)
        if split is None:
            self._turns.pop(self._next)
            self._next = self._next % len(self._turns) if self._turns else 0
            return None if self._to_head else PartitionEnd(partition.number, partition.units)
        self._next = (self._next + 1) % len(self._turns)
        if isinstance(split, Idle):
            return None
        with self._lock:
            unit = Unit(split, Place(partition.number, partition.units, self.sequence))
            self._outstanding[self.sequence] = unit
            partition.ends.append((self.sequence, split.end))
            partition.units += 1
            self.sequence += 1
        return unit

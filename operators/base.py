"""The contract of operators, told by the life of one.

A *spec* (frozen, checked when built) says what a step means: its output type, the columns it needs, how
`explain` shows it. The planner fuses specs into stages; every task of a stage builds its own *operator* from
the spec. An operator gets batches and watermarks in order from one thread at a time and hands on what it
makes through an `Output`; it never blocks, opens a file, or reads a clock. A source hands out *splits*: the
ordered parts of a partition, which any worker may decode; a sink writes, prepares, and commits by epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa

from dataflow.errors import NameNotFoundError
from dataflow.event_time import to_us
from dataflow.expr import Bad
from dataflow.kernels.gateway import ints_of
from dataflow.message import TIME_MIN_US, Batch, BoolArray, Int64Array, UnreadTimes
from dataflow.system import System

Made = TypeVar("Made")

UNIT_ROWS = 262_144
"""Rows of a unit where a source may choose: large enough that Python per batch does not show."""


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Rows:
    """Some decoded rows of a split.

    `first_position` orders the rows inside their partition (row i stands at `first_position + i`, and rows of
    later parts stand higher); it need not be dense.
    """

    columns: dict[str, pa.Array]
    num_rows: int
    first_position: int
    unread: UnreadTimes | None = None
    """Set where `columns` lacks the event time, as `ReadRequest.times` allows."""


Position: TypeAlias = object
"""Where reading of a partition goes on: a JSON value that only its source understands. None is the beginning."""


class Split(Protocol):
    """An ordered part of a partition (a Parquet row group, a block of a CSV file). Any worker may decode it."""

    @property
    def end(self) -> Position:
        """The position after its last row."""
        ...

    def position(self, rows: int) -> Position:
        """The position after so many of its rows (fewer than all), after they were read."""
        ...

    def read(self) -> Iterator[Rows]:
        """Decode the part; at least one `Rows` of any size, in order. Called once, from one thread."""
        ...


@dataclass(frozen=True, slots=True)
class Idle:
    """A source's answer when there is nothing to read now, but there may be later."""


@dataclass(frozen=True, slots=True)
class TimesRequest:
    """A column that only tells event time, of which a source need not decode what it knows enough about."""

    column: str
    is_enough: Callable[[int, int], bool]
    """Whether it is enough to know between which two times (microseconds) some rows lie."""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What a run needs of a source: the columns (in this order), and which may stay dictionary-encoded."""

    columns: tuple[str, ...]
    dictionary: frozenset[str]
    system: System
    store: object | None = None
    """The run's store, for topics read without one of their own."""
    times: TimesRequest | None = None
    unit_rows: Callable[[], int] = lambda: UNIT_ROWS
    """How many rows a split should have now, where the source may choose: fewer under a slow sink."""
    to_head: bool = False
    """Whether the run ends with what is there now, though the source may be endless."""
    durable: bool = True
    """Whether positions are kept, so that a later run can go on from them."""
    exactly_once: bool = False
    """Whether a sink of its rows was asked to get each one exactly once, in a store: positions are needed then."""


def paced(rows: int, request: ReadRequest) -> Iterator[tuple[int, int]]:
    """Cut so many rows into splits of the size that the run wants now: start and length; one even for no rows."""
    start = 0
    while True:
        length = min(request.unit_rows(), rows - start)
        yield start, length
        start += length
        if start >= rows:
            return


class SplitSource(Protocol):
    """A source inside dataflow. `name` is user-visible; `schema` has the logical (plain) types."""

    @property
    def name(self) -> str: ...
    @property
    def bounded(self) -> bool: ...
    @property
    def blocking(self) -> bool:
        """True when it waits for somebody else (a generator, a socket), and so is read by a thread of its own."""
        ...

    @property
    def gives_rows_once(self) -> bool:
        """True when a row that it has given can never be had again: it has no positions to go on from."""
        ...

    @property
    def knows_times(self) -> bool:
        """True when it may know between which times rows lie without decoding them (`ReadRequest.times`)."""
        ...

    def schema(self, system: System) -> pa.Schema:
        """The columns and their logical types. Called when the pipeline is built; may read the head of a file."""
        ...

    def partitions(self, request: ReadRequest) -> Sequence[str]:
        """The names of the partitions, in order."""
        ...

    def splits(self, partition: int, request: ReadRequest, position: Position = None) -> Iterator[Split | Idle]:
        """The parts of a partition from a position on, in order. The iterator is advanced by one thread at a time.

        Raises ConnectorError when what was read before that position is not there now, PlanError (DF0407) when it has
        changed.
        """
        ...

    def identity(self) -> tuple[object, ...]:
        """What makes it the same source in another run (for the graph hash): paths, topic, options; not the data."""
        ...


# The protocol for sources of users (`flow.read(source)`): one reader a partition, no splits.


@dataclass(frozen=True, slots=True)
class EndOfInput:
    """A reader's answer when its partition has ended for good."""


@runtime_checkable
class SourceReader(Protocol):
    """One open partition of a user's source. Driven by one task at a time; should not block."""

    def read(self, rows_max: int) -> pa.RecordBatch | Idle | EndOfInput: ...
    def position(self) -> object: ...


@runtime_checkable
class Source(Protocol):
    """A user's source: `schema`, named partitions, a reader for each.

    A reader's `position()` is a JSON value: `open` with it gives the rows after those that were read. A source that
    cannot do that returns None; a run that goes on then opens it anew.
    Optional attributes: `name` (str), `bounded` (bool, default True), `blocking` (bool, default False).
    """

    @property
    def schema(self) -> pa.Schema: ...
    def partitions(self) -> Sequence[str]: ...
    def open(self, partition: str, position: object | None) -> SourceReader: ...


# ── sinks ────────────────────────────────────────────────────────────────────────────────────────────────


@runtime_checkable
class Sink(Protocol):
    """Where results go. Driven by one thread of its own, so `write` may block.

    An epoch is `write*` then `prepare(epoch)`, which makes what was written durable but not visible and
    returns a handle; after the store's commit `commit(handle)` makes it visible and must be repeatable: it is asked
    again when it has failed, since an epoch that the store has committed is never taken back.
    `abort(handle)` takes an epoch back; `None` means what was written but not prepared.

    In a run with a store the handle is a JSON value (or rows for the run's store): it is kept with the epoch, and a
    later run that finds it asks for the commit again. Optional methods, in the order of a run:

    - `recover(handle)`: before the first `open` of a run with a store. `handle` is that of the last epoch that the
      store has committed (None: there is none). Make it visible if it is not, as `commit` would, and remove what else
      an earlier run of this pipeline has left behind.
    - `end()`: the input has ended for good, and the `prepare` that follows is the last one.
    - `leave()`: the run ends with the `prepare` that follows, and a later one may go on.
    - `close()`: the run is over. What it raises ends the run with DF0702, though all is committed.

    With the attribute `waits_for_room = True` a `write` that raises DiskFullError has left nothing behind, and is asked
    again until there is room.
    """

    def open(self, epoch: int) -> None: ...
    def write(self, batch: pa.RecordBatch) -> None: ...
    def prepare(self, epoch: int) -> object: ...
    def commit(self, handle: object) -> None: ...
    def abort(self, handle: object) -> None: ...


class SinkRoom(Protocol):
    """A full disk is a pause for a sink too. Used by the sink's thread."""

    def attempt(self, write: Callable[[], Made]) -> Made:
        """Do what leaves nothing behind when there is no room for it (a DiskFullError, or an OSError that says so);
        again, until there is. Raises that error when the run is over, has not begun, or has waited for too long.

        Never for a sync: once one has failed, nobody knows what the next one would be worth.
        """
        ...


class NoWaiting:
    """The room of a sink outside of a run."""

    def attempt(self, write: Callable[[], Made]) -> Made:
        return write()


NO_WAITING = NoWaiting()


class SinkStaging(Protocol):
    """Rows that a sink keeps in the store until it can write them where they belong. Used by the sink's thread.

    What `keep` adds is durable with the epoch that the next `prepare` ends; what `drop` lets go, likewise. So a sink
    that writes in `commit` keeps rows in `write`, reads them in `commit`, and drops them after it; a later run finds
    them again.
    """

    @property
    def frames(self) -> Sequence[object]:
        """What is kept, as the store knows it."""
        ...

    @property
    def rows(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """On disk."""
        ...

    def keep(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Keep these rows behind the others."""
        ...

    def batches(self) -> Iterable[pa.RecordBatch]:
        """All rows that are kept, oldest first, checked against their checksums."""
        ...

    def drop(self) -> None:
        """None of these rows is needed any more."""
        ...


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class EventTime:
    """The column that tells when a row happened; the rows of a closed window happened one tick before its end."""

    column: str
    minus_us: int = 0


@dataclass(frozen=True, slots=True)
class StreamType:
    """What is known of a stream before it runs.

    `order_keys` is None for rows in the order of their source; rows that a keyed step made have no source
    position: they are ordered by event time and then by these columns.
    """

    schema: pa.Schema
    event_time: EventTime | None = None
    bounded: bool = True
    order_keys: tuple[str, ...] | None = None


@dataclass(slots=True)
class StepCounts:
    """The ledger of one step: where each of its input rows went, and what came out.

    in = passed + filtered + late + dead + folded + held, and out = passed + produced.
    """

    rows_in: int = 0
    passed: int = 0
    filtered: int = 0
    late: int = 0
    dead: int = 0
    folded: int = 0
    held: int = 0
    produced: int = 0

    def add(self, other: StepCounts) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def since(self, before: StepCounts) -> StepCounts:
        """What came after an earlier count."""
        return StepCounts(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))

    @property
    def is_balanced(self) -> bool:
        """Whether every row that came in is accounted for."""
        return self.rows_in == self.passed + self.filtered + self.late + self.dead + self.folded + self.held


class Receiver:
    """Whatever batches can be handed to: an operator, an edge to other tasks, or nobody (this class)."""

    owners = 1
    """Over how many tasks it spreads the rows, by their keys."""

    def on_batch(self, batch: Batch) -> None:
        """Some more rows; empty batches come too, since they tell that a unit is complete."""

    def on_watermark(self, time_us: int) -> None:
        """No more rows with an event time before `time_us` will come."""

    def on_progress(self, sequence: int) -> None:
        """No more rows of units before `sequence` will come."""

    def on_partition_end(self, partition: int, units_total: int) -> None:
        """The partition has ended after so many units."""

    def on_end(self) -> None:
        """The input has ended for good: emit all that is held. Not called when a run is stopped."""


class Piece:
    """Rows of an operator's state. Once the run has written them as a frame of the store, they are let go."""

    def __init__(self, batches: list[pa.RecordBatch]) -> None:
        self.rows = sum(batch.num_rows for batch in batches)
        self.frame: object | None = None
        self._load: Callable[[], list[pa.RecordBatch]] = lambda: batches

    def load(self) -> list[pa.RecordBatch]:
        """The rows, from wherever they are."""
        return self._load()

    def stored(self, frame: object, load: Callable[[], list[pa.RecordBatch]]) -> None:
        """They are in a frame now."""
        self.frame, self._load = frame, load


@dataclass(slots=True)
class Snapshot:
    """What an operator keeps over a restart: a JSON object, and rows that say themselves whose they are.

    Pieces that an earlier snapshot had may be in it again: what has not changed is not written again.
    """

    values: dict[str, object]
    pieces: list[Piece] = field(default_factory=list)


class Saved(Protocol):
    """What all tasks of a step had kept; each takes its share of the rows."""

    @property
    def values(self) -> Sequence[Mapping[str, object]]: ...
    @property
    def pieces(self) -> Sequence[Piece]: ...


@dataclass(slots=True)
class OperatorContext:
    """What a task gives to an operator when it builds it.

    `step` is how the ledger and errors call the step, `name` its stable name.
    `partitions` are those that may reach it, by number, with names that are the same in every run. `task` of `tasks` is
    the number of the task among those of its stage. `shared(make)` returns one object for the
    operators of all tasks that do the same; `wake()` lets sleeping workers look again. `durable` says whether
    snapshots are asked for; `epoch_wanted()` asks for one soon, since much is kept for it.
    """

    system: System
    step: str
    counts: StepCounts
    partitions: Mapping[int, str]
    wake: Callable[[], None]
    shared: Callable[[Callable[[], object]], object]
    name: str = ""
    task: int = 0
    tasks: int = 1
    durable: bool = False
    epoch_wanted: Callable[[], None] = lambda: None


class Operator(Receiver):
    """The running logic of one step in one task. By default everything passes."""

    may_hold: ClassVar[bool] = False
    """Whether rows may wait here for another task. Then `held` and `turn` say more than below."""
    state_name: str | None = None
    """The name under which its snapshot is kept; None for an operator without state."""

    def __init__(self, context: OperatorContext) -> None:
        self.context = context
        self.counts = context.counts
        self.out: Receiver = Receiver()
        self.late: Receiver = Receiver()
        self.errors: Receiver = Receiver()

    @property
    def held(self) -> int:
        """How many batches or messages wait for another task; a barrier waits until there is none."""
        return 0

    def turn(self) -> bool:
        """Move rows that waited for another task; true when some moved."""
        return False

    def on_barrier(self) -> None:
        """An epoch ends here: hand on what is not part of the snapshot. Only in durable runs."""

    def snapshot(self, epoch: int) -> Snapshot:
        """What is kept over a restart, as it is now; later changes must not show in it. After `on_barrier`."""
        raise NotImplementedError

    def restore(self, saved: Saved) -> None:
        """Go on from what was kept. Before any batch."""
        raise NotImplementedError

    def on_watermark(self, time_us: int) -> None:
        self.out.on_watermark(time_us)

    def on_progress(self, sequence: int) -> None:
        for port in (self.out, self.late, self.errors):
            port.on_progress(sequence)

    def on_partition_end(self, partition: int, units_total: int) -> None:
        for port in (self.out, self.late, self.errors):
            port.on_partition_end(partition, units_total)

    def on_end(self) -> None:
        for port in (self.out, self.late, self.errors):
            port.on_end()


class OperatorSpec:
    """What a step means. Frozen; a wrong one fails here, when the pipeline is built."""

    verb: ClassVar[str]
    """The name users type."""
    keeps_state: ClassVar[bool] = True
    """Whether something of it outlives a run."""

    def output_type(self, inputs: Sequence[StreamType]) -> StreamType:
        """The type of the main output; raises ProgramError when the step does not fit its inputs."""
        raise NotImplementedError

    def side_type(self, port: str, inputs: Sequence[StreamType]) -> StreamType:
        """The type of `late` or `errors`; every step has errors."""
        if port != "errors":
            raise NameNotFoundError(f"`{self.verb}` has no `{port}` rows")
        return error_type(inputs[0])

    def columns_needed(self, wanted: frozenset[str], input_type: StreamType) -> frozenset[str]:
        """The input columns that are needed when only `wanted` of the output are."""
        raise NotImplementedError

    def describe(self) -> str:
        """The step as `explain` shows it, without its verb."""
        raise NotImplementedError

    def identity(self) -> tuple[object, ...]:
        """What makes it the same step in another run; plain values only."""
        return (self.verb, self.describe())


@dataclass(frozen=True)
class SourceSpec(OperatorSpec):
    """Where rows come from."""

    source: SplitSource
    schema: pa.Schema
    verb: ClassVar[str] = "read"

    def output_type(self, inputs: Sequence[StreamType]) -> StreamType:
        return StreamType(self.schema, None, self.source.bounded)

    def side_type(self, port: str, inputs: Sequence[StreamType]) -> StreamType:
        raise NameNotFoundError(
            f"a source has no `{port}` rows", help='rows that cannot be read fail the run (on_error="fail")'
        )

    def columns_needed(self, wanted: frozenset[str], input_type: StreamType) -> frozenset[str]:
        return wanted

    def describe(self) -> str:
        return self.source.name

    def identity(self) -> tuple[object, ...]:
        fields = tuple((f.name, str(f.type)) for f in self.schema)
        return (self.verb, type(self.source).__name__, self.source.identity(), fields)


EXACTLY_ONCE, AT_LEAST_ONCE, OWN_GUARANTEE = "exactly once", "at least once", "what the sink makes of each epoch"


@dataclass(frozen=True)
class SinkContext:
    """What a run gives to a sink when it makes it.

    `name` is the sink's stable name; `run` tells this run from every other one (for names of files); `bounded` says
    whether the input has an end. `staging` is None in a run without a store; `room` waits while a disk is full.
    `restart` says that all rows come again. `home` is the same for all runs of one store, and empty without one.
    """

    schema: pa.Schema
    system: System
    store: object | None
    pipeline: str
    name: str = ""
    run: str = ""
    bounded: bool = True
    staging: SinkStaging | None = None
    room: SinkRoom = NO_WAITING
    restart: bool = False
    home: str = ""


@dataclass(frozen=True)
class SinkSpec(OperatorSpec):
    """Where rows go; `make` builds the sink of one run."""

    name: str
    kind: str
    make: Callable[[SinkContext], Sink]
    needs_store: bool = False
    blocking: bool = True
    """Whether `write` or `prepare` may wait for somebody else (a disk, a server): the sink then has a thread."""
    guarantee: str = OWN_GUARANTEE
    """How often a row arrives in runs with a store, restarts included."""
    all_or_nothing: bool = False
    """Without a store, whether a bounded run shows all of its rows, once, or none."""
    delivery: str | None = None
    """What the user asked for: `exactly_once` or `at_least_once`."""
    target: tuple[object, ...] = ()
    """What makes it the same place in another run, beside the name."""
    place: tuple[str, ...] = ()
    """A file, or a file and a table in it, that no other sink of the pipeline may write. Sinks of one file share a
    thread, and so take turns: only one at a time can write there."""
    path: str = ""
    """The file, directory or store that it writes, absolute; empty for the run's store, and for what is none."""
    verb: ClassVar[str] = "to"

    def output_type(self, inputs: Sequence[StreamType]) -> StreamType:
        return inputs[0]

    def columns_needed(self, wanted: frozenset[str], input_type: StreamType) -> frozenset[str]:
        return frozenset(input_type.schema.names)

    def describe(self) -> str:
        return f"{self.kind} {self.name}" if self.name else self.kind

    def identity(self) -> tuple[object, ...]:
        return (self.verb, self.kind, self.name, *self.target)

    def promise(self, has_store: bool, bounded: bool) -> str | None:
        """The delivery in words: how often each row arrives; None when nobody can promise anything."""
        if self.guarantee == OWN_GUARANTEE:
            return None
        if has_store:
            return self.guarantee
        return EXACTLY_ONCE if self.all_or_nothing and bounded else None


class StatelessSpec(OperatorSpec):
    """A step that treats each row alone; it is fused into the stage of its input."""

    keeps_state = False

    def column_origin(self, name: str) -> str | None:
        """The input column that an output column is, unchanged; None when it is computed."""
        return name

    def leaves_alone(self, name: str) -> bool:
        """Whether rows keep that input column, under its name, and nothing else depends on it."""
        return False

    def build(self, input_type: StreamType, wanted: frozenset[str], context: OperatorContext) -> Operator:
        """The running logic; `input_type` has the columns that were read, `wanted` the output columns that are used."""
        raise NotImplementedError


def event_time_us(batch: Batch, event_time: EventTime | None) -> Int64Array:
    """The event time of each row of a batch that passed a watermark (no nulls).

    It stays with the rows when a later select leaves its column out; rows that never had one come first.
    """
    if batch.time_us is None:
        if event_time is None:
            batch.time_us = np.full(batch.num_rows, TIME_MIN_US, dtype=np.int64)
        else:
            batch.time_us = to_us(batch.columns[event_time.column])[0] - event_time.minus_us
    return batch.time_us


def event_ticks(batch: Batch, event_time: EventTime) -> tuple[Int64Array, int]:
    """The event time of each row in ticks, and what makes microseconds of them (negative: divide and floor).

    Kernels go over the ticks themselves: making microseconds of them first would cost as much again.
    """
    column = batch.columns[event_time.column]
    if batch.time_us is None and not event_time.minus_us and pa.types.is_timestamp(column.type):
        return ints_of(column), TICKS_US[column.type.unit]
    return event_time_us(batch, event_time), 1


TICKS_US = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": -1_000}
"""Microseconds of a tick; negative: ticks of a microsecond."""
ERROR_FIELDS = (
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("error_step", pa.string()),
    pa.field("error_position", pa.string()),
    pa.field("error_raw", pa.binary()),
)


def error_type(input_type: StreamType) -> StreamType:
    """Rows that a step could not compute: their columns, and why."""
    fields = [f for f in input_type.schema if not f.name.startswith("error_")]
    return StreamType(pa.schema([*fields, *ERROR_FIELDS]), None, input_type.bounded, input_type.order_keys)


def send_errors(batch: Batch, bad: Sequence[Bad], operator: Operator) -> BoolArray | None:
    """Send the bad rows of a batch, in their order, to the operator's errors; returns which rows those are, None for
    none. To be called once a batch.

    A row that failed in several ways is reported once, with the first reason.
    """
    reason = np.full(batch.num_rows, len(bad))
    for number, one in reversed(list(enumerate(bad))):
        reason[one.mask] = number
    seen = reason < len(bad)
    if count := int(np.count_nonzero(seen)):
        batch.read_times()
        operator.counts.dead += count
        rows = batch.filter(pa.array(seen), count)
        operator.errors.on_batch(_error_rows(rows, bad, reason[seen], operator.context.step))
    return seen if count else None


def _error_rows(batch: Batch, bad: Sequence[Bad], reason: Int64Array, step: str) -> Batch:
    """The rows with what failed in each: `reason` is its number in `bad`."""
    why = {
        "error_code": pa.array([one.code for one in bad]).take(pa.array(reason)),
        "error_message": pa.array([one.message for one in bad]).take(pa.array(reason)),
        "error_step": pa.repeat(pa.scalar(step), batch.num_rows),
    }
    columns = {name: column for name, column in batch.columns.items() if not name.startswith("error_")}
    for f in ERROR_FIELDS:
        columns[f.name] = why[f.name] if f.name in why else pa.nulls(batch.num_rows, f.type)
    return batch.with_columns(columns)

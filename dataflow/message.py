"""What travels in a channel: batches of rows, and the control items between them.

A batch is a set of Arrow columns of equal length. Columns are kept in a dict, not in a RecordBatch: select,
derive, drop and rename then cost nothing, and a column may be dictionary-encoded inside the engine though its
logical type is plain. The hard part is *where a row stands*: results must not depend on how a partition was
cut or who decoded which part, so a batch says which unit of which partition it is, and (only where a later
step asks for it) the position of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NewType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

TimeUs = NewType("TimeUs", int)
"""Event time: microseconds since 1970 UTC."""
Offset = NewType("Offset", int)
"""A record's number in its partition."""

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
SlotArray = Int32Array | Int64Array
"""Numbers of groups: in 32 bits as a table gives them for rows, in 64 as numpy selects them."""
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

TIME_MIN_US = TimeUs(-(2**63) + 1)
TIME_MAX_US = TimeUs(2**63 - 1)
"""The watermark of an input that has ended."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch comes from: the unit (an ordered part) of a partition (a number unique in the job).

    Units are handed out to workers in order and may be decoded in any. `sequence` counts the units of all
    partitions of a source in the order of handing out; `last` marks a unit's final batch.
    """

    partition: int
    unit: int
    sequence: int
    last: bool = True


DERIVED = Place(partition=-1, unit=0, sequence=0)
"""The place of rows that a keyed step made: they belong to no partition of a source."""


@dataclass(slots=True)
class UnreadTimes:
    """The event times of a batch, not decoded yet: mostly it is enough to know between which they lie."""

    column: str
    place: int
    """Where the column stands among the others."""
    least_us: int
    most_us: int
    """The least and the greatest, exactly; of rows that were filtered, those before."""
    read: Callable[[Batch], None]
    """Give a batch its event-time column, and the watermark before its rows if there is one already."""
    watermark_max_us: int | None = None
    """No row has a greater watermark before it; None until watermarks are assigned."""


@dataclass(slots=True)
class Batch:
    """Rows of one unit of one partition, as columns.

    `watermark_before_us` is None when no row is behind the watermark of its own partition (the usual case),
    else W_p before each row. `positions` (order inside the partition, unique in the job) is None unless the
    plan asked for it.
    """

    columns: dict[str, pa.Array]
    num_rows: int
    place: Place
    watermark_before_us: Int64Array | None = None
    positions: Int64Array | None = None
    time_us: Int64Array | None = field(default=None, repr=False)
    """Event time of each row, where a step has computed it already."""
    owner_bounds: Sequence[int] | None = field(default=None, repr=False)
    """Where the rows of each task of the next stage begin and end, where a step has put them in that order already."""
    in_order: tuple[str, ...] | None = field(default=None, repr=False)
    """The columns of the key, where the rows are known to be in the order of event time and key."""
    unread: UnreadTimes | None = field(default=None, repr=False)
    """Set where `columns` lacks the event time, since no step may need it."""
    _nbytes: int = field(default=-1, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns; asked for often, so it is kept."""
        if self._nbytes < 0:
            self._nbytes = sum(map(_nbytes, self.columns.values()))
        return self._nbytes

    def read_times(self) -> None:
        """Decode the event times, if they are not there."""
        unread, self.unread = self.unread, None
        if unread is not None:
            unread.read(self)
            others = [item for item in self.columns.items() if item[0] != unread.column]
            others.insert(unread.place, (unread.column, self.columns[unread.column]))
            self.columns = dict(others)

    def with_columns(self, columns: dict[str, pa.Array]) -> Batch:
        """The same rows with other columns."""
        made = Batch(columns, self.num_rows, self.place, self.watermark_before_us, self.positions, self.time_us)
        made.unread = self.unread
        if self.in_order is not None and all(columns.get(key) is self.columns[key] for key in self.in_order):
            made.in_order = self.in_order
        return made

    def filter(self, mask: pa.BooleanArray, kept: int) -> Batch:
        """The rows where `mask` is true (null is not); `kept` is their number."""
        unread = self.unread
        if unread is not None and unread.watermark_max_us is not None:
            made = replace(self, unread=None).filter(mask, kept)
            made.unread = replace(unread, read=lambda batch: self._read_filtered(batch, unread.column, mask, kept))
            return made
        self.read_times()
        keep = None

        def plain(array: Int64Array) -> Int64Array:
            nonlocal keep
            keep = mask.fill_null(False).to_numpy(zero_copy_only=False) if keep is None else keep
            kept: Int64Array = array[keep]
            return kept

        return self._rows(lambda column: column.filter(mask), plain, kept)

    def _read_filtered(self, made: Batch, column: str, mask: pa.BooleanArray, kept: int) -> None:
        """Read the times of all rows, and give those that the filter left to `made`."""
        self.read_times()
        part = self.filter(mask, kept)
        made.columns[column], made.watermark_before_us = part.columns[column], part.watermark_before_us

    def without(self, rows: BoolArray) -> Batch:
        """The rows where `rows` is false."""
        keep = ~rows
        return self.filter(pa.array(keep), int(np.count_nonzero(keep)))

    def take(self, rows: Int64Array) -> Batch:
        """The rows with these numbers, in this order."""
        self.read_times()
        # One call for all columns: pyarrow's wrapper costs as much as taking ten thousand values.
        taken = pa.RecordBatch.from_arrays(list(self.columns.values()), list(self.columns)).take(pa.array(rows))
        columns = dict(zip(self.columns, taken.columns, strict=True))
        made = self._rows(lambda column: column, lambda array: array[rows], len(rows))
        made.columns, made.in_order = columns, None
        return made

    def slice(self, start: int, length: int) -> Batch:
        """`length` rows from `start` on, without a copy."""
        self.read_times()
        end = start + length
        part = self._rows(lambda column: column.slice(start, length), lambda array: array[start:end], length)
        if self.place.last and end < self.num_rows:
            part.place = replace(self.place, last=False)
        return part

    def _rows(
        self, arrow: Callable[[pa.Array], pa.Array], plain: Callable[[Int64Array], Int64Array], num_rows: int
    ) -> Batch:
        return Batch(
            {name: arrow(column) for name, column in self.columns.items()},
            num_rows,
            self.place,
            None if self.watermark_before_us is None else plain(self.watermark_before_us),
            None if self.positions is None else plain(self.positions),
            None if self.time_us is None else plain(self.time_us),
            in_order=self.in_order,
        )

    def to_record_batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """The rows with plain columns in the order and types of `schema`."""
        return pa.RecordBatch.from_arrays([plain(self.columns[f.name], f.type) for f in schema], schema=schema)


def _nbytes(column: pa.Array) -> int:
    """About how much memory the column holds; where the type tells, Arrow is not asked (it takes 2 µs)."""
    kind = column.type
    if pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind):
        return (len(column) * int(kind.bit_width) + 7) // 8
    return int(column.nbytes)


def plain(column: pa.Array, logical: pa.DataType) -> pa.Array:
    """The column in its logical type: decoded, if it is dictionary-encoded inside the engine."""
    if column.type.equals(logical):
        return column
    if pa.types.is_dictionary(column.type) and not column.type.value_type.equals(logical):  # Arrow cannot take views
        column = pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(logical))
    return column.cast(logical)


@dataclass(frozen=True, slots=True)
class Watermark:
    """No more rows with an event time before `time_us` come through this channel."""

    time_us: int


@dataclass(frozen=True, slots=True)
class Progress:
    """No more batches of units before `sequence` come through this channel."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """The border between epoch `epoch` and the next one; with `stop`, no next one comes."""

    epoch: int
    stop: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """Nothing more comes through this channel.

    `flush` is true when the input has ended for good (open windows close), false when the run was stopped; `at_head`
    when it was stopped because all that was there has been read.
    """

    flush: bool
    at_head: bool = False


Message = Batch | Watermark | Progress | Barrier | End

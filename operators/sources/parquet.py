"""Rows of Parquet files, a row group at a time; any worker decodes any row group.

Decoding is most of the work of many pipelines, so it must run at the speed of Arrow's decoder: a reader a thread
over row groups (Arrow's own threads would compete with our workers), and text columns that are keys stay
dictionaries, so that each value is hashed once and not once a row. The hard part is a row group of any size: a
large one is decoded in pieces, and an array of text holds no more than 2 GiB.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.errors import ConnectorError, NameNotFoundError
from dataflow.event_time import ticks_us
from dataflow.message import Batch, UnreadTimes
from dataflow.operators.base import Position, ReadRequest, Rows, TimesRequest
from dataflow.operators.sources.arrow import as_asked, asked_types
from dataflow.operators.sources.files import FilePaths, Files, check_on_error, selected
from dataflow.operators.sources.marks import FileMark, MarkedFile, Marks
from dataflow.schema import plain_schema, type_name
from dataflow.system import System

GROUP_ROWS_MAX = 262_144
"""Row groups up to this size are decoded at once, larger ones in pieces: decoded rows must fit into memory."""
SMALL_ROWS = 16_384
"""Row groups are decoded together up to so many rows: each call costs as much as thousands of rows."""
PIECE_ROWS = 131_072
ARRAY_BYTES_MAX = 2**31 - 1
"""Of text or binary values: Arrow counts them in 32 bits."""


class ParquetSource:
    """Reads the row groups of files with equal columns, in order."""

    bounded = True
    blocking = False
    gives_rows_once = False
    knows_times = True

    def __init__(
        self,
        path: FilePaths,
        *,
        name: str | None = None,
        columns: Sequence[str] | None = None,
        on_error: str = "fail",
    ) -> None:
        check_on_error(on_error)
        self.files = Files(path, ".parquet")
        self.name = name or self.files.name
        self.columns = columns
        self._planned: pa.Schema | None = None

    def schema(self, system: System) -> pa.Schema:
        first, *others = self.files.paths(system)
        known = plain_schema(_opened(first, system).schema_arrow)
        if twice := next((one for one in known.names if known.names.count(one) > 1), None):
            raise NameNotFoundError(f"{first} has two columns `{twice}`", code="DF0203", help="rename one of them")
        for path in others:
            _require_equal(first, known, path, plain_schema(_opened(path, system).schema_arrow))
        self._planned = known
        return selected(known, self.columns, f" in {first}")

    def partitions(self, request: ReadRequest) -> Sequence[str]:
        return [self.name]

    def splits(self, partition: int, request: ReadRequest, position: Position = None) -> Iterator[RowGroups]:
        paths = self.files.paths(request.system)
        at = None if position is None else _At(**cast(dict[str, Any], position))
        marks = Marks(paths, request.system, durable=request.durable)
        start = 0 if at is None else marks.go_on(at.mark)
        first, begin = (0, 0) if at is None else (at.first, at.rows)
        known: tuple[str, pa.Schema] | None = None
        for number in range(start, len(paths)):
            path, marked = paths[number], marks.open(number)
            readers = _Readers(path, request)
            _require_planned(path, readers.schema, self._planned, request.columns)
            known = known or (path, readers.schema)
            _require_equal(*known, path, readers.schema)
            rows_total = readers.metadata.num_rows
            if at is not None and number == start and rows_total != at.rows_total:
                raise ConnectorError(
                    f"{path} has {rows_total} rows now, and had {at.rows_total} when the last run stopped in it",
                    help="restore it; or start from the beginning with `restart`",
                )
            place = _Place(marked, rows_total, first - begin)
            for numbers, rows in _together(readers.metadata):
                skipped, begin = min(begin, rows), max(begin - rows, 0)
                if skipped < rows or (not rows and not skipped):
                    yield RowGroups(readers, numbers, rows, first, place, skipped)
                    first += rows - skipped
            begin = 0

    def identity(self) -> tuple[object, ...]:
        return ("parquet", self.name, self.files.identity())


@dataclass(frozen=True, slots=True)
class _Place:
    """A file among the others: `first` is the number of its first row in the partition."""

    marked: MarkedFile
    rows_total: int
    first: int

    def position(self, until: int, bytes_read: int) -> Position:
        """After the rows of the partition up to, not including, number `until`, which is in this file."""
        mark = self.marked.mark_after(bytes_read)
        return {"mark": mark, "rows_total": self.rows_total, "rows": until - self.first, "first": until}


class _At:
    """A position, read back: so many `rows` of the marked file have been read, and `first` of all files."""

    def __init__(self, mark: dict[str, Any], rows_total: int, rows: int, first: int) -> None:
        self.mark, self.rows_total, self.rows, self.first = FileMark(**mark), rows_total, rows, first


class _Readers:
    """A reader of one file for each thread: `ParquetFile` may not be used by two at once."""

    def __init__(self, path: str, request: ReadRequest) -> None:
        self.path, self.system = path, request.system
        opened = _opened(path, request.system)
        self.metadata, self.schema = opened.metadata, plain_schema(opened.schema_arrow)
        if missing := next((name for name in request.columns if name not in self.schema.names), None):
            raise ConnectorError(f"{path} has no column `{missing}` any more", help="the file was changed: start anew")
        self.types = asked_types(self.schema, request)
        self.bounds = _TimeBounds(self.metadata, self.schema, request.times) if request.times else None
        self._dictionary = [name for name, type in self.types.items() if type is None]
        self._own = threading.local()

    def reader(self) -> pq.ParquetFile:
        if not hasattr(self._own, "reader"):
            file = self.system.disk.open_arrow(self.path, memory_map=True)
            self._own.reader = pq.ParquetFile(file, metadata=self.metadata, read_dictionary=self._dictionary)
        return self._own.reader


class _TimeBounds:
    """What a file's statistics tell about the event time of its row groups."""

    def __init__(self, metadata: pq.FileMetaData, schema: pa.Schema, times: TimesRequest) -> None:
        self.times = times
        self._metadata = metadata
        self._kind = schema.field(times.column).type
        leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
        self._leaf = next((n for n, one in enumerate(leaves) if one.path == times.column and self._is_plain(one)), None)

    def _is_plain(self, leaf: pq.ColumnSchema) -> bool:
        """Whether the numbers in the statistics are the ticks of the column."""
        if not pa.types.is_timestamp(self._kind) or leaf.physical_type != "INT64":
            return False
        unit = json.loads(leaf.logical_type.to_json()).get("timeUnit")
        return bool(unit == {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}.get(self._kind.unit))

    def of(self, groups: range) -> tuple[int, int] | None:
        """Between which times (microseconds) all rows of row groups lie, if that is known and is enough."""
        if self._leaf is None:
            return None
        least, most = _MAX, -_MAX
        for number in groups:
            told = self._metadata.row_group(number).column(self._leaf).statistics
            if told is None or not told.has_min_max or not told.has_null_count or told.null_count:
                return None
            least = min(least, ticks_us(told.min_raw, self._kind.unit))
            most = max(most, ticks_us(told.max_raw, self._kind.unit))
        return (least, most) if least <= most and self.times.is_enough(least, most) else None


_MAX = 2**63 - 1


def _together(metadata: pq.FileMetaData) -> Iterator[tuple[range, int]]:
    """Row groups that are decoded together, and their rows: each alone, but small ones."""
    start = rows = 0
    for number in range(metadata.num_row_groups):
        more = metadata.row_group(number).num_rows
        if number > start and rows + more > SMALL_ROWS:
            yield range(start, number), rows
            start, rows = number, 0
        rows += more
    if metadata.num_row_groups:
        yield range(start, metadata.num_row_groups), rows


@dataclass(frozen=True, slots=True)
class RowGroups:
    """A row group of a file, or some small ones that follow each other."""

    readers: _Readers
    numbers: range
    rows: int
    first: int
    place: _Place
    skipped: int = 0
    """So many rows at its beginning have been read before."""

    @property
    def end(self) -> Position:
        return self.position(self.rows - self.skipped)

    def position(self, rows: int) -> Position:
        return self.place.position(self.first + rows, _bytes_end(self.readers.metadata.row_group(self.numbers[-1])))

    def read(self) -> Iterator[Rows]:
        first, types, unread = self.first, self.readers.types, self._unread_times()
        names = [name for name in types if unread is None or name != unread.column]
        skipped = self.skipped
        with self._told_errors():
            for table in self._tables(names):
                if skipped:
                    table, skipped = table.slice(skipped), max(skipped - table.num_rows, 0)
                    if not table.num_rows and skipped:
                        continue
                columns = {name: as_asked(whole(table[name]), types[name]) for name in names}
                yield Rows(columns, table.num_rows, first, unread)
                first += table.num_rows

    def _unread_times(self) -> UnreadTimes | None:
        """What stands for the event times, if they need not be decoded."""
        bounds = self.readers.bounds
        is_cut = self.skipped or self.rows > GROUP_ROWS_MAX
        between = None if bounds is None or is_cut else bounds.of(self.numbers)
        if bounds is None or between is None:
            return None
        column = bounds.times.column
        return UnreadTimes(column, list(self.readers.types).index(column), *between, self._read_times)

    def _read_times(self, batch: Batch) -> None:
        column = cast(_TimeBounds, self.readers.bounds).times.column
        with self._told_errors():
            (table,) = self._tables([column])
            batch.columns[column] = as_asked(whole(table[column]), self.readers.types[column])

    @contextmanager
    def _told_errors(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise ConnectorError(
                f"{self.readers.path}: row group {self._damaged()} cannot be read: {str(error).strip()}",
                help="the file is damaged or was changed while it was read; restore it",
            ) from None

    def _damaged(self) -> int:
        """The first of the row groups that cannot be read alone."""
        for number in self.numbers[:-1]:
            try:
                self.readers.reader().read_row_group(number, columns=list(self.readers.types), use_threads=False)
            except (pa.ArrowException, OSError):
                return number
        return self.numbers[-1]

    def _tables(self, names: Sequence[str]) -> Iterator[pa.Table | pa.RecordBatch]:
        reader = self.readers.reader()
        if self.rows > GROUP_ROWS_MAX:
            yield from reader.iter_batches(PIECE_ROWS, row_groups=list(self.numbers), columns=names, use_threads=False)
            return
        table = reader.read_row_groups(self.numbers, columns=names, use_threads=False)
        if all(column.num_chunks == 1 for column in table.columns) or table.nbytes <= ARRAY_BYTES_MAX:
            yield table
        else:  # its chunks cannot be made one
            yield from table.to_batches()


def _bytes_end(group: pq.RowGroupMetaData) -> int:
    """Where a row group ends in its file."""
    if not group.num_columns:
        return 0
    last = group.column(group.num_columns - 1)
    start = last.dictionary_page_offset if last.has_dictionary_page else last.data_page_offset
    return int(start + last.total_compressed_size)


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array."""
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column


def _opened(path: str, system: System) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(system.disk.open_arrow(path, memory_map=True))
    except (pa.ArrowException, OSError) as error:
        raise ConnectorError(
            f"{path} cannot be read as Parquet: {error}", help="check that it is complete, and that it is Parquet"
        ) from None


def _require_planned(path: str, schema: pa.Schema, planned: pa.Schema | None, columns: Sequence[str]) -> None:
    """Refuse a file whose columns have other types than when the pipeline was built."""
    if planned is None:
        return
    for name in columns:
        found, expected = schema.field(name).type, planned.field(name).type
        if not found.equals(expected):
            raise ConnectorError(
                f"column `{name}` of {path} is {type_name(found)} now, and was {type_name(expected)} when the pipeline "
                "was built",
                help="the file was changed: start anew",
            )


def _require_equal(first_path: str, first: pa.Schema, path: str, schema: pa.Schema) -> None:
    """Refuse a file whose columns differ from the first one's, with the first difference."""
    if schema.equals(first):
        return
    columns, others = [_told(field) for field in first], [_told(field) for field in schema]
    number = next(n for n, pair in enumerate(zip((*columns, ""), (*others, ""), strict=False)) if pair[0] != pair[1])
    raise ConnectorError(
        f"the columns of {path} differ from those of {first_path}: column {number + 1} is "
        f"{_at(others, number)} instead of {_at(columns, number)}",
        help="read files with other columns as a stream of their own, cast them and union the two",
    )


def _told(field: pa.Field) -> str:
    return f"`{field.name}` ({type_name(field.type)})"


def _at(columns: Sequence[str], number: int) -> str:
    return columns[number] if number < len(columns) else "nothing"

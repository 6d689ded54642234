"""Rows of CSV files, in blocks that any worker may decode.

Arrow's own reader of files takes one thread from block to block; blocks of ours are cut where a row ends
(`csv_blocks`), so each worker decodes one with Arrow's parser (`csv_format`) at its own pace. The hard part is
that nothing may depend on the cut: types are known before the first block, and a row's position is its block's
place in the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa

from dataflow.errors import ConnectorError, NameNotFoundError
from dataflow.operators.base import Position, ReadRequest, Rows
from dataflow.operators.sources.csv_blocks import (
    BLOCK_BYTES,
    NEWLINE,
    RETURN,
    ROW_BYTES_MAX,
    ByteArray,
    blocks,
    head_end,
)
from dataflow.operators.sources.csv_format import SAMPLE_BYTES_MAX, SAMPLE_ROWS, Columns, CsvFormat
from dataflow.operators.sources.files import FilePaths, Files, check_on_error, selected
from dataflow.operators.sources.marks import FileMark, MarkedFile, Marks
from dataflow.operators.sources.parquet import whole
from dataflow.schema import column_not_found, to_schema
from dataflow.system import System

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSED = {".gz": "gunzip -k", ".zst": "unzstd", ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zip": "unzip"}
"""Endings that cannot be read, and what makes a file that can."""


class CsvSource:
    """Reads files with equal headers, in order. Types that `schema` does not give are inferred, once."""

    bounded = True
    blocking = False
    gives_rows_once = False
    knows_times = False

    def __init__(
        self,
        path: FilePaths,
        *,
        schema: object = None,
        null_values: Sequence[str] = ("",),
        delimiter: str = ",",
        header: bool = True,
        encoding: str = "utf-8",
        name: str | None = None,
        columns: Sequence[str] | None = None,
        on_error: str = "fail",
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        check_on_error(on_error)
        assert block_bytes > 0
        nulls = (null_values,) if isinstance(null_values, str) else tuple(null_values)
        self.format = CsvFormat(delimiter, nulls, encoding)
        self.files = Files(path, ".csv")
        self.name = name or self.files.name
        self.given = pa.schema([]) if schema is None else to_schema(schema)
        self.header, self.columns, self.block_bytes = header, columns, block_bytes
        self._resolved: Columns | None = None
        for field in self.given:
            self.format.check_readable(field.name, field.type)

    def schema(self, system: System) -> pa.Schema:
        known = pa.schema(list(self._columns(system).types.items()))
        return selected(known, self.columns, f" in {self.files.given[0]}")

    def partitions(self, request: ReadRequest) -> Sequence[str]:
        return [self.name]

    def splits(self, partition: int, request: ReadRequest, position: Position = None) -> Iterator[CsvBlock]:
        known = self._columns(request.system)
        types = {name: _asked(known.types[name], name in request.dictionary) for name in request.columns}
        # Without columns Arrow would decode all; one as bytes is enough to count the rows.
        types = types or {known.names[0]: pa.binary()}
        reading = _Reading(self.format, Columns(known.names, types, known.expected_by, known.inferred), request.columns)
        paths = self._paths(request.system)
        at = None if position is None else _At(**cast(dict[str, Any], position))
        marks = Marks(paths, request.system, durable=request.durable)
        begin = 0 if at is None else marks.go_on(at.mark, at.byte)
        before = 0 if at is None else at.before
        for number in range(begin, len(paths)):
            marked = marks.open(number)
            file = self._open(paths[number], marked.content)
            if file.names is not None:
                self._require_same(file.path, file.names, known)
            start, skipped = (file.start, 0) if at is None else at.in_file(file)
            place, delimiter = _Place(marked, before), ord(self.format.delimiter)
            grows = request.to_head and number == len(paths) - 1
            for first, end in blocks(file.path, file.content, start, delimiter, self.block_bytes, grows=grows):
                yield CsvBlock(reading, file, first, end, place, skipped)
                skipped = 0
            before += len(file.content)
            at = None

    def identity(self) -> tuple[object, ...]:
        """Without the types: those given and those inferred are the same ones where they are equal."""
        options = (self.format.delimiter, self.format.null_values, self.format.encoding, self.header)
        return ("csv", self.name, options, self.files.identity())

    # ── files ──

    def _paths(self, system: System) -> list[str]:
        paths = self.files.paths(system)
        for path in paths:
            for ending, command in COMPRESSED.items():
                if path.lower().endswith(ending):
                    raise ConnectorError(
                        f"{path} is compressed, which cannot be read yet",
                        help=f"unpack it first ({command} {path}) and read the file without `{ending}`",
                    )
        return paths

    def _open(self, path: str, buffer: pa.Buffer) -> CsvFile:
        """Read the header of a mapped file."""
        content = np.frombuffer(buffer, np.uint8) if buffer.size else np.zeros(0, np.uint8)
        start = len(BYTE_ORDER_MARK) if content[:3].tobytes() == BYTE_ORDER_MARK else 0
        if content[:2].tobytes() in (b"\xff\xfe", b"\xfe\xff"):
            raise ConnectorError(f"{path} is UTF-16", help=f"convert it first: iconv -f utf-16 -t utf-8 {path}")
        if not self.header:
            return CsvFile(path, buffer, content, start, None)
        end, rows = head_end(path, content, start, ord(self.format.delimiter), 1, ROW_BYTES_MAX)
        names = self.format.fields(content[start:end].tobytes()) if rows else None
        return CsvFile(path, buffer, content, end, names)

    def _opened(self, system: System) -> Iterator[CsvFile]:
        """All files, one after the other: a thousand open at once would be too many."""
        return (self._open(path, system.disk.map(path)) for path in self._paths(system))

    # ── columns ──

    def _columns(self, system: System) -> Columns:
        """The columns and types of all files; looked up once, since a run must not see others than the plan."""
        if self._resolved is None:
            names = self._names(system)
            expected_by = "the header" if self.header else "the first row"
            missing = [name for name in names if name not in self.given.names]
            found = self.format.inferred(self._sample(system) if missing else b"", names, missing)
            types = {name: found[name] if name in found else self.given.field(name).type for name in names}
            resolved = Columns(names, types, expected_by, frozenset(missing))
            for file in self._opened(system):
                if file.names is not None:
                    self._require_same(file.path, file.names, resolved)
            self._resolved = resolved
        return self._resolved

    def _names(self, system: System) -> tuple[str, ...]:
        """The names of all columns, by the first file that tells any."""
        if not self.header:
            return self._positional_names(system)
        first = next((file for file in self._opened(system) if file.names is not None), None)
        if first is None:
            return self._given_names()
        names = first.names or ()
        for name in names:
            if names.count(name) > 1:
                raise NameNotFoundError(
                    f"{first.path} has two columns `{name}`",
                    code="DF0203",
                    help="rename one in the file, or read it with header=False and a schema",
                )
        for name in self.given.names:
            if name not in names:
                raise column_not_found(name, names, f" in {first.path}, but the schema names it")
        return names

    def _positional_names(self, system: System) -> tuple[str, ...]:
        """The schema's names, in order; or column_1, column_2 …"""
        for file in self._opened(system):
            end, rows = head_end(file.path, file.content, file.start, ord(self.format.delimiter), 1, ROW_BYTES_MAX)
            if rows:
                width = len(self.format.fields(file.content[file.start : end].tobytes()))
                numbered = tuple(f"column_{number}" for number in range(1, width + 1))
                if set(self.given.names) <= set(numbered):
                    return numbered
                if len(self.given.names) != width:
                    raise ConnectorError(
                        f"the schema has {len(self.given.names)} columns, but the first row of {file.path} has {width}",
                        code="DF0502",
                        help="without a header the schema names every column, in order",
                    )
                return tuple(self.given.names)
        return self._given_names()

    def _given_names(self) -> tuple[str, ...]:
        """The schema's names, where all files are empty."""
        if not self.given.names:
            raise ConnectorError(
                f"{self.files.given[0]} is empty: there are no columns",
                help='give them: schema={"id": "int", "price": "float"}',
            )
        return tuple(self.given.names)

    def _require_same(self, path: str, names: tuple[str, ...], known: Columns) -> None:
        if names == known.names:
            return
        pairs = zip((*names, None), (*known.names, None), strict=False)
        number, (found, expected) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        raise ConnectorError(
            f"the header of {path} differs from the first file's: column {number} is "
            f"{_quoted(found)} instead of {_quoted(expected)}",
            code="DF0502",
            help="read files with other columns as a stream of their own, and union the two",
        )

    def _sample(self, system: System) -> bytes:
        """The first rows of all files together, as far as types are inferred from them."""
        parts: list[bytes] = []
        rows = 0
        for file in self._opened(system):
            end, found = head_end(
                file.path, file.content, file.start, ord(self.format.delimiter), SAMPLE_ROWS - rows, SAMPLE_BYTES_MAX
            )
            part = file.content[file.start : end].tobytes()
            parts += [part] if part.endswith(b"\n") else [part, b"\n"]
            rows += found
            if rows >= SAMPLE_ROWS or sum(map(len, parts)) >= SAMPLE_BYTES_MAX:
                break
        return b"".join(parts) if rows else b""


@dataclass(frozen=True, slots=True)
class CsvFile:
    """A mapped file: where its rows start, and the names in its header (None: it has none)."""

    path: str
    buffer: pa.Buffer
    content: ByteArray
    start: int
    names: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class _Reading:
    """What all blocks of a run share. `asked` are the columns to hand out."""

    format: CsvFormat
    columns: Columns
    asked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """A file among the others, and how many bytes those before it have."""

    marked: MarkedFile
    before: int

    def position(self, byte: int, rows: int, bytes_read: int) -> Position:
        """After so many rows of the block that begins at a byte."""
        return {"mark": self.marked.mark_after(bytes_read), "before": self.before, "byte": byte, "rows": rows}


class _At:
    """A position, read back."""

    def __init__(self, mark: dict[str, Any], before: int, byte: int, rows: int) -> None:
        self.mark, self.before, self.byte, self.rows = FileMark(**mark), before, byte, rows

    def in_file(self, file: CsvFile) -> tuple[int, int]:
        """Where the next block begins, and how many of its rows have been read."""
        is_longer = file.start < self.byte < len(file.content)
        if is_longer and not any(one in (NEWLINE, RETURN) for one in file.content[self.byte - 1 : self.byte + 1]):
            raise ConnectorError(
                f"{file.path} went on in the middle of a row: its last row had no line end when it was read, and more "
                "was written behind it",
                help="write whole lines; or start from the beginning with `restart`",
            )
        return self.byte, self.rows


@dataclass(frozen=True, slots=True)
class CsvBlock:
    """Some whole rows of a file, of which the first `skipped` have been read before."""

    reading: _Reading
    file: CsvFile
    start: int
    bytes_end: int
    place: _Place
    skipped: int

    @property
    def end(self) -> Position:
        return self.place.position(self.bytes_end, 0, self.bytes_end)

    def position(self, rows: int) -> Position:
        rows += self.skipped
        content, delimiter = self.file.content[: self.bytes_end], ord(self.reading.format.delimiter)
        # What is behind these rows may still be mended.
        bytes_read, _ = head_end(self.file.path, content, self.start, delimiter, rows, self.bytes_end - self.start)
        return self.place.position(self.start, rows, bytes_read)

    def read(self) -> Iterator[Rows]:
        raw = self.file.buffer.slice(self.start, self.bytes_end - self.start)
        format, columns = self.reading.format, self.reading.columns
        try:
            table = format.table(raw, columns.names, columns.types)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            file = self.file
            raise format.explained(file.path, file.content, self.start, self.bytes_end, columns, error) from None
        table = table.slice(self.skipped)
        first = self.place.before + self.start + self.skipped
        yield Rows({name: whole(table[name]) for name in self.reading.asked}, table.num_rows, first)


def _asked(type: pa.DataType, as_dictionary: bool) -> pa.DataType:
    return pa.dictionary(pa.int32(), type) if as_dictionary and pa.types.is_string(type) else type


def _quoted(name: str | None) -> str:
    return "nothing" if name is None else f"`{name}`"

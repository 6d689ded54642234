"""How the text of a CSV file becomes columns: options, decoding, types by a sample, and what is wrong with a row.

Decoding is Arrow's, with every type said beforehand, so nothing is widened or guessed while a run is under way.
The hard part is to say what is wrong when a block of a hundred thousand rows does not decode. Arrow's message is
not read: prefixes of the block are decoded again until the first bad row is found, and then its columns one by one.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pc

from dataflow.errors import ConnectorError, TypeMismatchError
from dataflow.operators.sources.csv_blocks import ByteArray, line_of, row_bounds
from dataflow.schema import is_text_type, type_name

SAMPLE_ROWS = 10_000
"""Types are inferred from so many rows."""
SAMPLE_BYTES_MAX = 32 << 20
"""And from no more than this, however long the rows are."""
SHOWN_MAX = 60
"""Characters of a row or a value in an error."""
_NOT_LIKE_ASCII = ("utf-16", "utf-32", "utf-7", "iso2022", "hz")
_CANNOT_DECODE = (pa.ArrowException, UnicodeDecodeError)


@dataclass(frozen=True)
class CsvFormat:
    """How the fields of a file are written. Checks itself."""

    delimiter: str
    null_values: tuple[str, ...]
    encoding: str

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in '"\r\n':
            raise TypeMismatchError(
                f"the delimiter is one ASCII character, got {self.delimiter!r}", help='as in delimiter=";" or "\\t"'
            )
        if not all(isinstance(one, str) for one in self.null_values):
            raise TypeMismatchError(
                f"null_values are texts, got {self.null_values!r}", help='as in null_values=("NA",)'
            )
        name = _codec(self.encoding)
        if name.startswith(_NOT_LIKE_ASCII) or _ASCII.encode(name) != _ASCII.encode("ascii"):
            raise TypeMismatchError(
                f"encoding {self.encoding!r} cannot be read: its line ends are not those of ASCII",
                help=f"convert the file first: iconv -f {self.encoding} -t utf-8",
            )

    @property
    def is_utf8(self) -> bool:
        return _codec(self.encoding) in ("utf-8", "ascii", "utf-8-sig")

    def text(self, raw: bytes) -> str:
        """Bytes of a file as text, for names and errors; what cannot be decoded is shown so."""
        return raw.decode("utf-8" if self.is_utf8 else self.encoding, "backslashreplace")

    def table(self, raw: pa.Buffer, names: Sequence[str], types: Mapping[str, pa.DataType]) -> pa.Table:
        """The columns in `types` of some whole rows. `names` are all columns that the rows have.

        What stands in quotes is a text, never null; a number in quotes may be null. Arrow asks the same of all columns,
        so a block that has such fields is read twice.
        """
        texts = {name: type for name, type in types.items() if _is_text(type)}
        if len(texts) in (0, len(types)) or not self._has_quoted_null(raw):
            return self._converted(raw, names, types, quoted_is_null=not texts)
        others = {name: type for name, type in types.items() if name not in texts}
        parts = (self._converted(raw, names, one, quoted_is_null=one is others) for one in (texts, others))
        columns = {name: column for part in parts for name, column in zip(part.column_names, part.columns, strict=True)}
        return pa.table({name: columns[name] for name in types})

    def _has_quoted_null(self, raw: pa.Buffer) -> bool:
        """Whether a field may be one of the null values in quotes (or have these bytes in it). Most blocks have no
        quote at all, and one byte is found sixteen times as fast as two."""
        block = raw.to_pybytes()
        if '"'.encode(self.encoding) not in block:
            return False
        return any(f'"{one}"'.encode(self.encoding, "replace") in block for one in self.null_values)

    def _converted(
        self, raw: pa.Buffer, names: Sequence[str], types: Mapping[str, pa.DataType], *, quoted_is_null: bool
    ) -> pa.Table:
        options = self._converting(types, quoted_is_null=quoted_is_null)
        return self._read(raw, names, pc.ConvertOptions(include_columns=list(types), **options))

    def fields(self, row: bytes) -> tuple[str, ...]:
        """The fields of one row as text."""
        parsing = pc.ParseOptions(delimiter=self.delimiter, newlines_in_values=True)
        text = self.text(row).encode() + b"\n"
        reading = pc.ReadOptions(use_threads=False, block_size=len(text))
        # Arrow takes the first row for names, so they are the fields.
        return tuple(pc.read_csv(pa.BufferReader(text), reading, parsing).column_names)

    def _read(
        self, raw: pa.Buffer, names: Sequence[str], converting: pc.ConvertOptions, on_ragged: object = None
    ) -> pa.Table:
        if not self.is_utf8:
            raw = pa.py_buffer(raw.to_pybytes().decode(self.encoding).encode())
        reading = pc.ReadOptions(use_threads=False, column_names=names, block_size=max(raw.size, 1))
        parsing = pc.ParseOptions(delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=on_ragged)
        return pc.read_csv(pa.BufferReader(raw), reading, parsing, converting)

    def _converting(self, types: Mapping[str, pa.DataType], *, quoted_is_null: bool = True) -> dict[str, object]:
        return {
            "column_types": types,
            "strings_can_be_null": True,
            "quoted_strings_can_be_null": quoted_is_null,
            "null_values": self.null_values,
        }

    # ── types ──

    def inferred(self, sample: bytes, names: Sequence[str], wanted: Sequence[str]) -> dict[str, pa.DataType]:
        """The types of the `wanted` columns of a sample.

        They are int64, float64, bool, date, timestamp (microseconds unless a value has more digits; with a zone in
        UTC) and string. A column without any value is string: every text fits.
        """
        if not sample or not wanted:
            return {name: pa.string() for name in wanted}
        raw = pa.py_buffer(sample if self.is_utf8 else self.text(sample).encode())
        converting = pc.ConvertOptions(
            include_columns=list(wanted), strings_can_be_null=True, null_values=self.null_values
        )
        utf8 = CsvFormat(self.delimiter, self.null_values, "utf-8")
        # Rows that are wrong are left to the run, which tells their file and line.
        table = utf8._read(raw, names, converting, lambda _: "skip")
        t = pa.types
        texts = {f.name: pa.string() for f in table.schema if t.is_floating(f.type) or t.is_timestamp(f.type)}
        keep = pc.ConvertOptions(include_columns=list(texts), **self._converting(texts))
        as_text = utf8._read(raw, names, keep, lambda _: "skip") if texts else {}
        found = {f.name: _settled(f.type, as_text[f.name].to_pylist() if f.name in texts else ()) for f in table.schema}
        # Arrow takes times that do not fit into nanoseconds (before 1677, after 2262) for text.
        text = [f.name for f in table.schema if t.is_string(f.type)]
        times = {name: _times_type(table[name], [one for one in _TIMES if one.unit == "us"]) for name in text}
        return found | {name: type for name, type in times.items() if type is not None}

    def check_readable(self, name: str, type: pa.DataType) -> None:
        """Refuse a type that no text can be decoded to."""
        try:
            self.table(pa.py_buffer(b"\n"), [name], {name: type})
        except pa.ArrowNotImplementedError:
            raise TypeMismatchError(
                f"column `{name}`: {type_name(type)} cannot be read from CSV",
                help='read it as "string" and compute the value from it',
            ) from None

    # ── errors ──

    def explained(
        self, path: str, content: ByteArray, start: int, end: int, columns: Columns, cause: Exception
    ) -> ConnectorError:
        """The error for a block that cannot be decoded: the first bad row of it, and what is wrong there."""
        block = content[start:end].tobytes()
        starts, ends = row_bounds(block if block.endswith(b"\n") else block + b"\n", ord(self.delimiter))
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high) // 2
            if self._decodes(block[: ends[middle]], columns):
                low = middle + 1
            else:
                high = middle
        if low == len(ends):
            return _error(f"{path}, from line {line_of(content, start)} on: {cause}", "repair the file")
        row = block[starts[low] : ends[low]]
        message, help = self._wrong_in(row, columns, cause)
        return _error(f"{path}, line {line_of(content, start + int(starts[low]))}: {message}", help)

    def _decodes(self, rows: bytes, columns: Columns) -> bool:
        try:
            self.table(pa.py_buffer(rows), columns.names, columns.types)
        except _CANNOT_DECODE:
            return False
        return True

    def _wrong_in(self, row: bytes, columns: Columns, cause: Exception) -> tuple[str, str]:
        """What is wrong in one row, and what to do about it."""
        names = columns.names
        if not self.is_utf8 and (bad := _undecodable(row, self.encoding)):
            return f"the row is not text in {self.encoding}: {bad}", "say which encoding the file has: encoding=…"
        ragged: list[pc.InvalidRow] = []
        keep = pc.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=True, null_values=[]
        )

        def skip(one: pc.InvalidRow) -> str:
            ragged.append(one)
            return "skip"

        values = self._read(pa.py_buffer(row), names, keep, skip)
        if ragged:
            return (
                f"{_count(ragged[0].actual_columns, 'field')} where {columns.expected_by} has {len(names)}: "
                f"{_shown(self.text(row).strip())}",
                f"a value that holds {self.delimiter!r} or a line end stands in quotes; or is the delimiter another?",
            )
        for name, type in columns.types.items():
            if not self._decodes(row, Columns(names, {name: type}, "", frozenset())):
                return self._wrong_value(name, type, values[name][0].as_py(), name in columns.inferred)
        return str(cause), "repair the row"

    def _wrong_value(self, name: str, type: pa.DataType, raw: bytes, is_inferred: bool) -> tuple[str, str]:
        if bad := _undecodable(raw, "utf-8"):
            return f"column `{name}` is not text in UTF-8: {bad}", 'say which encoding the file has: encoding="cp1252"'
        value = raw.decode()
        logical = type.value_type if pa.types.is_dictionary(type) else type
        better = "string"
        if pa.types.is_integer(logical) and _is_number(value):
            better = "int64" if _is_int64(value) else "float64"
        elif pa.types.is_timestamp(logical) or pa.types.is_date(logical):
            has_zone = getattr(logical, "tz", None) is not None
            kind = _times_type(pa.array([value]), [one for one in _TIMES if one.tz or not has_zone])
            better = better if kind is None else type_name(kind)
        nulls = ", ".join(repr(one) for one in (*self.null_values, value))
        since = f" (so are the first {SAMPLE_ROWS:,} rows)" if is_inferred else ""
        advice = f'give its type: schema={{"{name}": "{better}"}}'
        help = (
            advice
            if _is_number(value)
            else f"{advice}; or, if {_shown(value)} stands for no value: null_values=({nulls})"
        )
        return f"column `{name}` is {type_name(logical)}{since}, but here is {_shown(value)}", help


@dataclass(frozen=True)
class Columns:
    """The columns of a file: all `names`, the `types` of those that are read, which of these were `inferred`.

    `expected_by` says who told how many there are ("the header").
    """

    names: tuple[str, ...]
    types: Mapping[str, pa.DataType]
    expected_by: str
    inferred: frozenset[str]


_ASCII = "".join(map(chr, range(128)))
_INTEGER = re.compile(r"\s*-?\d+\s*")
_NANOSECONDS = re.compile(r".*\.\d{7}")


def _settled(found: pa.DataType, texts: Sequence[str | None]) -> pa.DataType:
    """The type of a column by what Arrow infers and how the values are written."""
    if pa.types.is_floating(found) and any(text and _rounds(text) for text in texts):
        return pa.string()  # numbers of 20 digits are names of something
    if pa.types.is_timestamp(found):
        unit = "ns" if any(text and _NANOSECONDS.match(text) for text in texts) else "us"
        return pa.timestamp(unit, tz=found.tz)
    is_kept = pa.types.is_int64(found) or pa.types.is_floating(found) or pa.types.is_boolean(found)
    return found if is_kept or pa.types.is_date32(found) else pa.string()


_TIMES = tuple(pa.timestamp(unit, tz=zone) for zone in (None, "UTC") for unit in ("us", "ns"))


def _times_type(texts: pa.Array | pa.ChunkedArray, kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    """The first of these types of times that all values can have; None where none can, or there are no values."""
    texts = texts.drop_null()
    for kind in kinds if len(texts) else ():
        with suppress(pa.ArrowInvalid):
            texts.slice(0, 1).cast(kind)  # mostly this tells that they are no times
            texts.cast(kind)
            return kind
    return None


def _rounds(text: str) -> bool:
    """Whether a whole number would be another one as a float."""
    return _INTEGER.fullmatch(text) is not None and int(float(text)) != int(text)


def _codec(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        raise TypeMismatchError(
            f"there is no encoding {encoding!r}", help='as in "utf-8", "latin-1", "cp1252"'
        ) from None


def _undecodable(raw: bytes, encoding: str) -> str:
    """The bytes around the first one that is no text; "" if there is none."""
    try:
        raw.decode(encoding)
    except UnicodeDecodeError as error:
        return _shown(raw[max(error.start - 10, 0) : error.start + 10])
    return ""


def _is_text(type: pa.DataType) -> bool:
    return is_text_type(type.value_type if pa.types.is_dictionary(type) else type)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _is_int64(value: str) -> bool:
    return _INTEGER.fullmatch(value) is not None and -(2**63) <= int(value) < 2**63


def _shown(value: str | bytes) -> str:
    return repr(value) if len(value) <= SHOWN_MAX else f"{value[:SHOWN_MAX]!r} …"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _error(message: str, help: str) -> ConnectorError:
    return ConnectorError(message, code="DF0502", help=help)

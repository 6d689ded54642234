"""Rows as text, for CSV and JSON Lines: whole columns become texts, and one call joins them into lines.

No Python runs per row, and a value means the same in both formats: times are ISO 8601 (instants in UTC), durations are
ISO 8601 too (`PT1.5S`). The hard part is what text cannot say: it is refused, by column, before a row is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflow.errors import ConnectorError, TypeMismatchError
from dataflow.schema import is_bytes_type, is_text_type, type_name

LINES_ROWS_MAX = 65_536
LINES_BYTES_MAX = 64 << 20
"""Of the rows that are joined at once: their text, a few times as long, has to stay below 2 GiB."""
_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The years 1 to 9999, which ISO 8601 and every reader can tell."""
_TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_JOIN = pc.JoinOptions(null_handling="replace", null_replacement="")
_JOIN_NULL = pc.JoinOptions(null_handling="replace", null_replacement="null")
_CSV_SPECIAL = np.isin(np.arange(256), [ord(char) for char in '",\r\n'])
_JSON_SPECIAL = np.isin(np.arange(256), [*range(32), ord('"'), ord("\\")])
_SHORT_ESCAPES = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}


# ── what text can say ────────────────────────────────────────────────────────────────────────────────────


def check_text_types(schema: pa.Schema, verb: str, *, nested: bool) -> None:
    """Refuse the columns that have no form as text; lists, structs and maps have one only where `nested`."""
    for field in schema:
        reason = _reason_against(field.type, nested)
        if reason is not None:
            raise TypeMismatchError(
                f"{verb}: column `{field.name}` is {type_name(field.type)}, {reason[0]}", code="DF0303", help=reason[1]
            )


def _reason_against(kind: pa.DataType, nested: bool) -> tuple[str, str] | None:
    t = pa.types
    if is_bytes_type(kind):
        return (
            "and text cannot hold any bytes",
            "leave it out, cast it to string if it is UTF-8, or use `write_parquet`",
        )
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind) or t.is_struct(kind) or t.is_map(kind):
        if not nested:
            return "and CSV has no nested values", "select the fields that you need, or use `write_jsonl`"
        if t.is_map(kind) and not is_text_type(kind.key_type):
            return "and the keys of a JSON object are texts", "use `write_parquet`"
        inner = [kind.field(n).type for n in range(kind.num_fields)]
        inner = [kind.item_type] if t.is_map(kind) else inner
        return next((reason for one in inner if (reason := _reason_against(one, nested))), None)
    if t.is_interval(kind) or t.is_union(kind) or t.is_dictionary(kind):
        return "which has no form as text", "leave it out, or cast it"
    return None


def check_times(batch: pa.RecordBatch, what: str) -> None:
    """Refuse times outside of the years 1 to 9999, before any row of the batch is taken."""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        for times in _times_in(column):
            if (first := _time_beyond(times)) is not None:
                raise ConnectorError(
                    f"{what}: column `{field.name}` has a time outside of the years 1 to 9999 ({first}), which ISO "
                    "8601 cannot tell; the rows of this epoch were not written",
                    code="DF0502",
                    help="filter such rows out, or use `write_parquet`",
                )


def check_csv_rows(batch: pa.RecordBatch, what: str) -> None:
    """Refuse what CSV cannot tell: such times, and a null as the only text of a row, which is no empty line."""
    check_times(batch, what)
    if batch.num_columns == 1 and is_text_type(batch.schema.field(0).type) and batch.column(0).null_count:
        name = batch.schema.names[0]
        raise ConnectorError(
            f"{what}: column `{name}` is the only one and has a null, whose line would be that of an empty text; the "
            "rows of this epoch were not written",
            code="DF0502",
            help=f'write another column beside it, make a text of it (`coalesce(col.{name}, "none")`), or use '
            "`write_jsonl`",
        )


def _times_in(column: pa.Array) -> Iterator[pa.Array]:
    """The arrays of times and dates in a column, at any depth."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        yield column
    elif pa.types.is_struct(kind):
        for part in column.flatten():
            yield from _times_in(part)
    elif pa.types.is_map(kind):
        yield from _times_in(_entries(column))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _times_in(column.flatten())


def _time_beyond(times: pa.Array) -> str | None:
    """The least or greatest time, as a number with its unit, if it is outside of what text can say."""
    kind = times.type
    if pa.types.is_timestamp(kind):
        unit, ticks = kind.unit, _TICKS[kind.unit]
        numbers = times.view(pa.int64())
        low, high = _FIRST_US * ticks // 1_000_000, (_LAST_US + 1) * ticks // 1_000_000
    else:
        unit = "days" if pa.types.is_date32(kind) else "ms"
        numbers = times.view(pa.int32() if unit == "days" else pa.int64())
        day = 1 if unit == "days" else 86_400_000
        low, high = -719_162 * day, 2_932_897 * day
    found = pc.min_max(numbers)
    least, most = found["min"].as_py(), found["max"].as_py()
    if least is None or (low <= least and most < high):
        return None
    return f"{least if least < low else most} {unit} since 1970"


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────


def csv_header(schema: pa.Schema) -> bytes:
    names = _csv_texts(pa.array(schema.names, pa.string())).to_pylist()
    return (",".join(names) + "\n").encode()


def csv_lines(batch: pa.RecordBatch) -> pa.Buffer:
    """The rows as CSV (RFC 4180, with `\\n`): nulls are empty, an empty text is `""`.

    >>> csv_lines(pa.record_batch({"a": ["x", "", None], "b": [1.5, None, 2.0]})).to_pybytes()
    b'x,1.5\\n"",\\n,2\\n'
    """
    parts: list[object] = []
    for column in batch.columns:
        parts += [_csv_texts(column), ","]
    if len(parts) == 2:  # a line without anything on it would not be read as a row; texts have no nulls here
        parts[0] = pc.fill_null(parts[0], '""')
    return _joined([*parts[:-1], "\n"], batch.num_rows, _JOIN)


def json_lines(batch: pa.RecordBatch) -> pa.Buffer:
    """The rows as JSON objects, a line each; numbers that JSON lacks (NaN, infinity) are null.

    >>> json_lines(pa.record_batch({"a": ['say "hi"', None], "b": [[1, None], []]})).to_pybytes()
    b'{"a":"say \\\\"hi\\\\"","b":[1,null]}\\n{"a":null,"b":[]}\\n'
    """
    return _joined([*_object_parts(batch.schema.names, batch.columns), "}\n"], batch.num_rows, _JOIN_NULL)


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The rows in slices whose text fits into one buffer."""
    rows = max(1, min(LINES_ROWS_MAX, LINES_BYTES_MAX * batch.num_rows // max(batch.nbytes, 1)))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _joined(parts: list[object], rows: int, options: pc.JoinOptions) -> pa.Buffer:
    if not rows:
        return pa.py_buffer(b"")
    return pc.binary_join_element_wise(*parts, "", options=options).buffers()[2]


def _object_parts(names: list[str], columns: list[pa.Array]) -> list[object]:
    parts: list[object] = []
    for name, column in zip(names, columns, strict=True):
        key = _json_texts(pa.array([name], pa.string()))[0].as_py()
        parts += [f"{',' if parts else '{'}{key}:", _json_texts(column)]
    return parts


# ── columns as texts ─────────────────────────────────────────────────────────────────────────────────────


def plain_texts(column: pa.Array) -> pa.Array:
    """The values of a column without inner values, as they are told in any text format; nulls stay null."""
    kind, t = column.type, pa.types
    if t.is_timestamp(kind):
        return _timestamps(column)
    if t.is_duration(kind):
        return _durations(column)
    if t.is_float16(kind):
        column = column.cast(pa.float32())
    return column.cast(pa.string())


def _timestamps(times: pa.Array) -> pa.Array:
    zone = times.type.tz
    if zone is not None:
        times = times.cast(pa.timestamp(times.type.unit, "UTC"))
    return pc.binary_replace_slice(times.cast(pa.string()), 10, 11, "T")


def _durations(column: pa.Array) -> pa.Array:
    per_second = _TICKS[column.type.unit]
    ticks = column.view(pa.int64()).fill_null(0).to_numpy()
    size = np.abs(ticks).view(np.uint64)  # right for the least int64, too
    seconds, rest = pa.array(size // per_second).cast(pa.string()), size % per_second
    sign = pa.array(np.where(ticks < 0, "-PT", "PT"))
    if rest.any():
        digits = pc.utf8_lpad(pa.array(rest).cast(pa.string()), len(str(per_second)) - 1, "0")
        told = pc.binary_join_element_wise(sign, seconds, ".", digits, "S", "")
    else:
        told = pc.binary_join_element_wise(sign, seconds, "S", "")
    return _where_valid(column, told)


def _csv_texts(column: pa.Array) -> pa.Array:
    if not is_text_type(column.type):
        return plain_texts(column)
    texts = column.cast(pa.string())
    special = _has(texts, _CSV_SPECIAL)
    if not special and not pc.any(pc.equal(pc.binary_length(texts), 0)).as_py():
        return texts
    quoted = pc.replace_substring(texts, '"', '""') if special else texts
    quoted = pc.binary_join_element_wise('"', quoted, '"', "")
    return pc.if_else(pc.match_substring_regex(texts, '[",\r\n]|^$'), quoted, texts)


def _json_texts(column: pa.Array) -> pa.Array:
    """The values as JSON; nulls stay null."""
    kind, t = column.type, pa.types
    if is_text_type(kind):
        return _quoted(_escaped(column.cast(pa.string())))
    if t.is_floating(kind):
        return _where(pc.is_finite(column), plain_texts(column))
    if t.is_temporal(kind):
        return _quoted(plain_texts(column))
    if t.is_struct(kind):
        return _where_valid(column, _object_texts(column))
    if t.is_map(kind):
        return _list_texts(_entries(column), _entry_texts, "{", "}")
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return _list_texts(column.cast(pa.list_(kind.value_type)), _json_texts, "[", "]")
    return plain_texts(column)


def _quoted(texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise('"', texts, '"', "")


def _escaped(texts: pa.Array) -> pa.Array:
    """Texts as they may stand between the quotes of JSON."""
    if not _has(texts, _JSON_SPECIAL):
        return texts
    texts = pc.replace_substring(texts, "\\", "\\\\")
    texts = pc.replace_substring(texts, '"', '\\"')
    for byte in np.unique(_bytes_of(texts)):
        if byte < 32:
            texts = pc.replace_substring(texts, chr(byte), _SHORT_ESCAPES.get(int(byte), f"\\u{byte:04x}"))
    return texts


def _object_texts(column: pa.Array) -> pa.Array:
    names = [column.type.field(n).name for n in range(column.type.num_fields)]
    if not names:
        return pa.repeat(pa.scalar("{}"), len(column))
    parts = _object_parts(names, column.flatten())
    return pc.binary_join_element_wise(*parts, "}", "", options=_JOIN_NULL)


def _entries(column: pa.Array) -> pa.Array:
    """A map as a list of structs of a key and a value."""
    kind = column.type
    return column.cast(pa.list_(pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)])))


def _entry_texts(entries: pa.Array) -> pa.Array:
    keys, values = entries.flatten()
    return pc.binary_join_element_wise(_json_texts(keys), ":", _json_texts(values), "", options=_JOIN_NULL)


def _list_texts(column: pa.Array, texts_of: Callable[[pa.Array], pa.Array], begin: str, end: str) -> pa.Array:
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    texts = pc.fill_null(texts_of(column.flatten()), "null")
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ",")
    return _where_valid(column, pc.binary_join_element_wise(begin, joined, end, ""))


def _where_valid(column: pa.Array, texts: pa.Array) -> pa.Array:
    return texts if not column.null_count else _where(column.is_valid(), texts)


def _where(mask: pa.Array, texts: pa.Array) -> pa.Array:
    return pc.if_else(mask, texts, pa.scalar(None, pa.string()))


def _has(texts: pa.Array, special: np.ndarray[Any, Any]) -> bool:
    return bool(special[_bytes_of(texts)].any())


def _bytes_of(texts: pa.Array) -> np.ndarray[Any, Any]:
    """All bytes of some texts, one behind the other."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return np.zeros(0, np.uint8)
    ends = np.frombuffer(offsets, np.int32)
    return np.frombuffer(data, np.uint8)[ends[texts.offset] : ends[texts.offset + len(texts)]]

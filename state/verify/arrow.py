"""Arrow messages, once their bytes have the checksum that the catalog gives.

A checksum may be as wrong as the bytes that it vouches for, when both come from a stranger. So the frame of a message
is read without Arrow first: what kind it is, how long, of how many rows, and whether its buffers are compressed.

Part of the verifier: imports nothing of the store (see __init__.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from dataflow.state.verify.files import Unreadable

ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, NotImplementedError, MemoryError)
"""What pyarrow raises for bytes that it cannot make sense of."""

SCHEMA_MESSAGE, RECORD_BATCH_MESSAGE = 1, 3
CODECS = ("LZ4", "ZSTD")
_CONTINUATION = 0xFFFF_FFFF


@dataclass(frozen=True)
class MessageFrame:
    """What an encapsulated message says of itself, read from its flatbuffer without Arrow."""

    kind: int
    length: int
    """Of the whole: prefix, metadata, padding, body."""
    rows: int = 0
    codec: str | None = None
    """How the buffers of a record batch are compressed."""


def message_frame(content: bytes, position: int = 0) -> MessageFrame:
    """The frame of the message that starts at a position; Unreadable when it is none, or does not fit in."""
    try:
        continuation, metadata_bytes = struct.unpack_from("<Ii", content, position)
        if continuation != _CONTINUATION or metadata_bytes <= 0:
            raise Unreadable("no Arrow message starts there")
        start = position + 8
        metadata = memoryview(content)[start : start + metadata_bytes]
        if len(metadata) != metadata_bytes:
            raise Unreadable("an Arrow message ends too early")
        table = struct.unpack_from("<I", metadata, 0)[0]
        kind = _number(metadata, _field(metadata, table, 1), "<B")
        body_bytes = _number(metadata, _field(metadata, table, 3), "<q")
        length = 8 + metadata_bytes + body_bytes
        if body_bytes < 0 or position + length > len(content):
            raise Unreadable("an Arrow message ends too early")
        if kind != RECORD_BATCH_MESSAGE:
            return MessageFrame(kind, length)
        at = _field(metadata, table, 2)
        batch = at + struct.unpack_from("<I", metadata, at)[0]
        rows = _number(metadata, _field(metadata, batch, 0), "<q")
        return MessageFrame(kind, length, rows, _codec(metadata, _field(metadata, batch, 3)))
    except struct.error:
        raise Unreadable("the metadata of an Arrow message reaches beyond it") from None


def _field(buffer: memoryview, table: int, index: int) -> int:
    """Position of a field of a flatbuffer's table; 0 when it is not there."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if vtable < 0:
        raise struct.error
    if 4 + 2 * index >= struct.unpack_from("<H", buffer, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", buffer, vtable + 4 + 2 * index)[0]
    return table + offset if offset else 0


def _number(buffer: memoryview, position: int, format: str) -> int:
    number: int = struct.unpack_from(format, buffer, position)[0] if position else 0
    return number


def _codec(buffer: memoryview, position: int) -> str | None:
    if not position:
        return None
    number = _number(buffer, _field(buffer, position + struct.unpack_from("<I", buffer, position)[0], 0), "<b")
    return CODECS[number] if 0 <= number < len(CODECS) else f"codec {number}"


# ── Arrow: only bytes whose checksum agreed come here ────────────────────────────────────────────────────


def read_schema(content: bytes, length: int) -> pa.Schema:
    """The schema of a message that fills the bytes exactly."""
    frame = message_frame(content)
    if frame.kind != SCHEMA_MESSAGE or frame.length != length:
        raise Unreadable("these bytes are not one schema message")
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(content))
        encoded = [column.name for column in schema if _has_dictionary(column)]
    except ARROW_ERRORS as error:
        raise Unreadable(f"Arrow cannot read the schema: {error}") from None
    if encoded:
        raise Unreadable(f"columns are dictionary-encoded: {', '.join(encoded)}")
    return schema


def _has_dictionary(column: pa.Field) -> bool:
    type = column.type
    _ = column.name, getattr(type, "tz", None)  # what is no UTF-8 shows itself here, as a ValueError
    inner = [_has_dictionary(type.field(number)) for number in range(type.num_fields)]
    return pa.types.is_dictionary(type) or any(inner)


def read_batch(content: bytes, schema: pa.Schema | None, rows: int) -> pa.RecordBatch | None:
    """The batch of a message that fills the bytes exactly; None where the schema is not known."""
    frame = message_frame(content)
    if frame.kind != RECORD_BATCH_MESSAGE or frame.length != len(content):
        raise Unreadable("these bytes are not one record batch message")
    if frame.codec is not None:
        raise Unreadable(f"the buffers are compressed ({frame.codec})")
    if frame.rows != rows:
        raise Unreadable(f"the message has {frame.rows} rows, the catalog says {rows}")
    if schema is None:
        return None
    try:
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(content)), schema)
        batch.validate(full=True)
    except ARROW_ERRORS as error:
        raise Unreadable(f"does not decode: {error}") from None
    for column, values in zip(schema, batch.columns, strict=True):
        if not column.nullable and values.null_count:
            raise Unreadable(f"column {column.name!r} has nulls, which its schema rules out")
    return batch


def check_frame(content: bytes, rows: int) -> None:
    """A frame is one Arrow stream: schema, batches (LZ4 or plain), end marker, and nothing after it."""
    first = message_frame(content)
    schema = read_schema(content[: first.length], first.length)
    position, found = first.length, 0
    while len(content) - position > 8:
        message = message_frame(content, position)
        if message.kind != RECORD_BATCH_MESSAGE:
            raise Unreadable("the frame has a message that is no record batch")
        if message.codec not in (None, "LZ4"):
            raise Unreadable(f"the buffers are compressed ({message.codec})")
        try:
            whole = pa.py_buffer(content[position : position + message.length])
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(whole), schema)
            batch.validate(full=True)
        except ARROW_ERRORS as error:
            raise Unreadable(f"does not decode: {error}") from None
        position += message.length
        found += batch.num_rows
    if content[position:] != b"\xff\xff\xff\xff\0\0\0\0":
        raise Unreadable("the frame does not end with the end-of-stream marker")
    if found != rows:
        raise Unreadable(f"the frame has {found} rows, the catalog says {rows}")


def wrong_change(earlier: pa.Schema, later: pa.Schema) -> Iterator[str]:
    for column in earlier:
        found = later.get_all_field_indices(column.name)
        if not found:
            yield f"column {column.name!r} is gone"
        elif all(later.field(number).type != column.type for number in found):
            yield f"column {column.name!r} was {column.type} and is {later.field(found[0]).type}"


def widened(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch of an earlier schema version in a later one: columns that it does not have are null."""
    if batch.schema.equals(schema):
        return batch
    columns = [
        pa.nulls(batch.num_rows, column.type)
        if batch.schema.get_field_index(column.name) < 0
        else batch.column(batch.schema.get_field_index(column.name))
        for column in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)

"""Type names and schemas: `"int"`, `"timestamp[us, UTC]"`, `"list[string]"`, a dataclass, a dict of names.

Users write types in many ways; inside there are only Arrow's. The hard part is to be generous with spellings
and strict with what the engine cannot do: a dictionary is an encoding, never a logical type, and some types
cannot be keys. Every column may hold nulls, so `"int?"` is the same type as `"int"`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import types
import typing
from collections.abc import Callable, Mapping
from decimal import Decimal

import pyarrow as pa

from dataflow.errors import NameNotFoundError, TypeMismatchError, did_you_mean

UNITS = ("s", "ms", "us", "ns")

_PLAIN_NAMES: dict[str, pa.DataType] = {
    **{str(type_()): type_() for type_ in (pa.int8, pa.int16, pa.int32, pa.int64)},
    **{str(type_()): type_() for type_ in (pa.uint8, pa.uint16, pa.uint32, pa.uint64)},
    "int": pa.int64(),
    "integer": pa.int64(),
    "float16": pa.float16(),
    "halffloat": pa.float16(),
    "float32": pa.float32(),
    "float": pa.float64(),
    "float64": pa.float64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "str": pa.string(),
    "utf8": pa.string(),
    "large_string": pa.large_string(),
    "large_utf8": pa.large_string(),
    "string_view": pa.string_view(),
    "bytes": pa.binary(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "date": pa.date32(),
    "date32": pa.date32(),
    "date32[day]": pa.date32(),
    "date64": pa.date64(),
    "date64[ms]": pa.date64(),
    "datetime": pa.timestamp("us"),
    "timestamp": pa.timestamp("us"),
    "time": pa.time64("us"),
    "time32[s]": pa.time32("s"),
    "time32[ms]": pa.time32("ms"),
    "time64[us]": pa.time64("us"),
    "time64[ns]": pa.time64("ns"),
    "duration": pa.duration("us"),
    "null": pa.null(),
    **{f"duration[{unit}]": pa.duration(unit) for unit in UNITS},
}
_PYTHON_TYPES: dict[object, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
    dt.datetime: pa.timestamp("us"),
    dt.date: pa.date32(),
    dt.time: pa.time64("us"),
    dt.timedelta: pa.duration("us"),
}
_SHOWN_NAMES = {
    "double": "float64",
    "float": "float32",
    "halffloat": "float16",
    "binary": "bytes",
    "date32[day]": "date",
    "date64[ms]": "date64",
    "time64[us]": "time",
    "duration[us]": "duration",
}
_SUGGESTED = (
    "int64",
    "float64",
    "string",
    "bool",
    "bytes",
    "timestamp[us]",
    "date",
    "time",
    "duration",
    "decimal(18, 2)",
)


# ── types ────────────────────────────────────────────────────────────────────────────────────────────────


def to_type(obj: object, what: str = "the type") -> pa.DataType:
    """The Arrow type for a name, a Python type or an Arrow type; `what` names it in an error.

    >>> to_type("list[int?]")
    ListType(list<item: int64>)
    """
    if isinstance(obj, pa.DataType):
        return _logical(obj, what)
    if isinstance(obj, str):
        return _logical(_parsed(obj.strip(), obj, what), what)
    return _from_annotation(obj, what)


def type_name(type: pa.DataType) -> str:
    """The name of a type as users write it; `to_type` reads it back."""
    if pa.types.is_timestamp(type):
        return f"timestamp[{type.unit}]" if type.tz is None else f"timestamp[{type.unit}, {type.tz}]"
    if pa.types.is_decimal(type):
        name = "decimal" if pa.types.is_decimal128(type) else f"decimal{type.bit_width}"
        return f"{name}({type.precision}, {type.scale})"
    if pa.types.is_list(type):
        return f"list[{type_name(type.value_type)}]"
    if pa.types.is_struct(type):
        return f"struct[{', '.join(f'{f.name}: {type_name(f.type)}' for f in type)}]"
    if pa.types.is_fixed_size_binary(type):
        return f"bytes[{type.byte_width}]"
    return _SHOWN_NAMES.get(str(type), str(type))


def _logical(type: pa.DataType, what: str) -> pa.DataType:
    if pa.types.is_dictionary(type):
        raise TypeMismatchError(
            f"{what} is a dictionary, which is an encoding and not a type",
            help=f'write the type of its values: "{type_name(type.value_type)}"',
        )
    return type


def _parsed(name: str, whole: str, what: str) -> pa.DataType:
    """The type that a name means. `whole` is the text the user wrote, for the error."""
    name = name.strip()
    if name.endswith("?"):
        return _parsed(name[:-1], whole, what)
    if (type := _PLAIN_NAMES.get(name.lower())) is not None:
        return type
    match = re.fullmatch(r"(\w+)\s*([\[(<])(.*)[\])>]", name, re.DOTALL)
    make = _WITH_ARGUMENTS.get(match[1].lower()) if match else None
    if match is None or make is None:
        raise _unknown_type(name, whole, what)
    try:
        return make(_split_arguments(match[3]), lambda inner: _parsed(inner, whole, what))
    except (ValueError, TypeError, pa.ArrowInvalid) as error:
        raise TypeMismatchError(f"{what}: {whole!r} is not a type: {error}") from error


def _unknown_type(name: str, whole: str, what: str) -> NameNotFoundError:
    bare = re.split(r"[\[(<]", name)[0].strip()
    near = did_you_mean(name, _SUGGESTED) or did_you_mean(bare, [*_PLAIN_NAMES, *_WITH_ARGUMENTS])
    shown = f"did you mean {near!r}? " if near else ""
    inside = f" in {whole!r}" if name != whole.strip() else ""
    return NameNotFoundError(
        f"{what}: there is no type {name!r}{inside}", help=f"{shown}(types: {', '.join(_SUGGESTED)}, list[T] …)"
    )


def _split_arguments(text: str) -> list[str]:
    """Split at the commas that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "[(<") - (char in "])>")
        if char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def _timestamp(args: list[str], _: object) -> pa.DataType:
    unit, zones = args[0], args[1:]
    if unit not in UNITS or len(zones) > 1:
        raise ValueError("write `timestamp[us]` or `timestamp[us, UTC]`; the units are s, ms, us, ns")
    return pa.timestamp(unit, tz=zones[0].removeprefix("tz=") if zones else None)


def _struct(args: list[str], inner: Callable[[str], pa.DataType]) -> pa.DataType:
    named = [arg.partition(":") for arg in args]
    if not all(colon for _, colon, _ in named):
        raise ValueError("write `struct[name: type, …]`")
    return pa.struct([(name.strip(), inner(type)) for name, _, type in named])


def _list(args: list[str], inner: Callable[[str], pa.DataType]) -> pa.DataType:
    (item,) = args
    return pa.list_(inner(item.removeprefix("item:")))


def _map(args: list[str], inner: Callable[[str], pa.DataType]) -> pa.DataType:
    key, value = args
    return pa.map_(inner(key), inner(value))


def _decimal(make: Callable[[int, int], pa.DataType]) -> Callable[[list[str], object], pa.DataType]:
    def decimal(args: list[str], _: object) -> pa.DataType:
        precision, *scale = (int(arg) for arg in args)
        return make(precision, *scale)

    return decimal


_WITH_ARGUMENTS: dict[str, Callable[[list[str], Callable[[str], pa.DataType]], pa.DataType]] = {
    "timestamp": _timestamp,
    "list": _list,
    "struct": _struct,
    "map": _map,
    "bytes": lambda args, _: pa.binary(int(args[0])),
    "fixed_size_binary": lambda args, _: pa.binary(int(args[0])),
    "decimal": _decimal(pa.decimal128),
    "decimal128": _decimal(pa.decimal128),
    "decimal256": _decimal(pa.decimal256),
}


_WRAPPERS = (typing.Annotated, typing.NotRequired, typing.Required)
_NONE = type(None)


def _from_annotation(obj: object, what: str) -> pa.DataType:
    """The Arrow type of a Python annotation."""
    if isinstance(obj, str | pa.DataType):
        return to_type(obj, what)
    if isinstance(obj, type) and (found := _PYTHON_TYPES.get(obj)) is not None:
        return found
    origin, args = typing.get_origin(obj), typing.get_args(obj)
    if origin is list:
        return pa.list_(_from_annotation(args[0], what))
    if origin in _WRAPPERS:
        return _from_annotation(args[0], what)
    if origin in (typing.Union, types.UnionType):
        others = [arg for arg in args if arg is not _NONE]
        if len(others) == 1:
            return _from_annotation(others[0], what)
    if obj is Decimal:
        help = 'write its digits: "decimal(18, 2)"'
    else:
        help = f"write a type name such as {', '.join(map(repr, _SUGGESTED[:4]))}"
    raise TypeMismatchError(f"{what}: {_shown(obj)} is not a type", help=help)


def _shown(obj: object) -> str:
    return f"`{obj.__name__}`" if isinstance(obj, type) else f"`{obj!r:.60}`"


# ── schemas ──────────────────────────────────────────────────────────────────────────────────────────────


def to_schema(obj: object) -> pa.Schema:
    """The schema of a pa.Schema, a dict of names and types, a dataclass or a TypedDict.

    >>> to_schema({"id": "int", "at": "timestamp[us, UTC]"}).names
    ['id', 'at']
    """
    if isinstance(obj, pa.Schema):
        fields = {field.name: field.type for field in obj}
        if len(fields) != len(obj):
            twice = next(name for name in obj.names if obj.names.count(name) > 1)
            raise TypeMismatchError(f"the schema names the column `{twice}` twice", help="rename one of them")
    elif isinstance(obj, Mapping):
        fields = dict(obj)
    elif isinstance(obj, type) and (dataclasses.is_dataclass(obj) or typing.is_typeddict(obj)):
        fields = _annotations(obj)
    else:
        raise TypeMismatchError(
            f"{_shown(obj)} is not a schema",
            help='write a dict such as {"id": "int", "price": "float"}, a pa.Schema, a dataclass or a TypedDict',
        )
    for name in fields:
        if not isinstance(name, str):
            raise TypeMismatchError(f"the schema names a column {name!r}: names are text")
    return pa.schema([new_field(name, to_type(type, f"column `{name}`")) for name, type in fields.items()])


def _annotations(cls: type) -> dict[str, object]:
    """The fields of a class with their types; quoted names are looked up where the class was made."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise TypeMismatchError(
            f"the types of `{cls.__name__}` cannot be looked up: {error}",
            help="define the class at the top of a module, or write the schema as a dict",
        ) from error
    if dataclasses.is_dataclass(cls):
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return hints


# ── columns and keys ─────────────────────────────────────────────────────────────────────────────────────

COLUMNS_SHOWN_MAX = 20
"""In an error; more hide the one that was meant."""


def column_not_found(name: str, known: typing.Sequence[str], where: str = "") -> NameNotFoundError:
    """The error for a column that is not there: the nearest one, and all of them."""
    return NameNotFoundError(f"there is no column `{name}`{where}", help=columns_told(known, name))


def columns_told(known: typing.Sequence[str], name: str = "") -> str:
    """Which columns there are, and which one was perhaps meant by `name`: for the help of an error."""
    near = did_you_mean(name, known)
    shown = ", ".join(known[:COLUMNS_SHOWN_MAX]) + (f" … {len(known)} in all" if len(known) > COLUMNS_SHOWN_MAX else "")
    listed = f"(columns: {shown})" if known else "(there are no columns)"
    return f"did you mean `{near}`? {listed}" if near else listed


def new_field(name: str, kind: pa.DataType) -> pa.Field:
    """A column that a program names."""
    try:
        return pa.field(name, kind)
    except (UnicodeEncodeError, TypeError):  # half of a character (a surrogate alone); no text at all
        raise NameNotFoundError(
            f"a column cannot be named {name!r}: a name is text that UTF-8 can hold",
            code="DF0203",
            help="take another name",
        ) from None


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type with dictionaries replaced by what they encode, and views by what they view, at any depth."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):  # Arrow can neither filter nor take them
        return pa.string() if pa.types.is_string_view(kind) else pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(kind.field(i)) for i in range(kind.num_fields)])
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain_field(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), _plain_field(kind.item_field), keys_sorted=kind.keys_sorted)
    return kind


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The logical columns: without dictionaries, metadata that some reader left, or promises about nulls.

    >>> plain_schema(pa.schema({"carrier": pa.dictionary(pa.int32(), pa.string())})).field("carrier").type
    DataType(string)
    """
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])


def _plain_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, plain_type(field.type), nullable=field.nullable)


def is_text_type(type: pa.DataType) -> bool:
    """Any of the string types."""
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def is_number_type(type: pa.DataType) -> bool:
    """Integers, floats and decimals."""
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type))


def is_bytes_type(type: pa.DataType) -> bool:
    """Any of the binary types."""
    t = pa.types
    return bool(t.is_binary(type) or t.is_large_binary(type) or t.is_binary_view(type) or t.is_fixed_size_binary(type))


def is_key_type(type: pa.DataType) -> bool:
    """Whether rows can be grouped by a column of this type.

    Structs can (they are flattened), if all of their fields can.
    """
    t = pa.types
    if t.is_struct(type):
        return all(is_key_type(field.type) for field in type)
    if t.is_dictionary(type):
        return is_key_type(type.value_type)
    return (
        t.is_primitive(type)  # bool, integers, floats, dates, times, timestamps, durations
        or t.is_decimal(type)
        or t.is_null(type)
        or is_text_type(type)
        or is_bytes_type(type)
    ) and not t.is_interval(type)


def check_key_type(name: str, type: pa.DataType) -> None:
    """Refuse a key column that rows cannot be grouped by, with the way out."""
    if is_key_type(type) and not pa.types.is_struct(type) and not pa.types.is_float16(type):
        return
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        help = f"group by one of its elements or by a text made from them: derive a column from `{name}` first"
    elif pa.types.is_float16(type):
        help = f'cast it: `derive({name}=col.{name}.cast("float64"))`'
    elif pa.types.is_struct(type) and is_key_type(type):
        help = f"derive columns from the fields of `{name}` and use those"
    elif pa.types.is_struct(type):
        part = next(field for field in type if not is_key_type(field.type))
        help = f"its field `{part.name}` is {type_name(part.type)}: derive columns from the other fields and use those"
    elif pa.types.is_map(type):
        help = f"derive a column with the entry of `{name}` that tells the groups apart, and use that"
    else:
        help = "derive a column with one plain type first, and use that"
    raise TypeMismatchError(f"`{name}` is {type_name(type)}, which cannot be a key", code="DF0302", help=help)


def shown_values(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """The values as Python's, for people; times and durations that Python cannot hold (the year 10000) as text.

    >>> shown_values(pa.array([0, 2**62], pa.timestamp("us")))
    ['1970-01-01 00:00:00.000000', '<value out of range: 4611686018427387904>']
    """
    try:
        values: list[object] = column.to_pylist()
    except (OverflowError, ValueError):
        if pa.types.is_duration(column.type):
            unit = column.type.unit
            values = [None if one is None else f"{one} {unit}" for one in column.cast(pa.int64()).to_pylist()]
        elif pa.types.is_temporal(column.type):
            values = column.cast(pa.string()).to_pylist()
        elif is_text_type(column.type):  # that is no UTF-8
            stored = column.cast(pa.large_binary()).to_pylist()
            values = [None if one is None else one.decode(errors="replace") for one in stored]
        else:  # inside of a list or struct
            values = [column.slice(n, 1).to_string() if one.is_valid else None for n, one in enumerate(column)]
    return values

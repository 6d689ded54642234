"""The function library: one table with each function's name, types, kernel, and an example that runs.

The API (`col.at.dt.hour()`), the language (`hour(at)`) and the docs read it; a new function is one entry. The
kernels are in `dataflow/compute`. The hard part is that a wrong name or option is found when the user's line
runs, not when the stream is built: `.str` and `.dt` look into the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dataflow.compute.evaluate import Kernel
from dataflow.compute.number_functions import absolute, rounded
from dataflow.compute.text_functions import Build, length, slice_options, text_test, text_to_text, to_timestamp
from dataflow.compute.time_functions import part, strftime, truncate, weekday_options
from dataflow.errors import NameNotFoundError, TypeMismatchError, did_you_mean
from dataflow.event_time import is_time_type
from dataflow.schema import is_number_type, is_text_type, type_name

t = pa.types
REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Option:
    """A constant argument of a function."""

    name: str
    types: tuple[type, ...]
    default: object = REQUIRED


@dataclass(frozen=True, slots=True)
class Function:
    """A function of one column. `takes` is one of the families in `FAMILIES`."""

    name: str
    takes: str
    gives: str
    build: Build
    doc: str
    example: str
    options: tuple[Option, ...] = field(default=())

    @property
    def signature(self) -> str:
        """As the docs show it: `dt.truncate(every) -> timestamp`."""
        shown = (o.name if o.default is REQUIRED else f"{o.name}={o.default!r}" for o in self.options)
        return f"{self.name}({', '.join(shown)}) -> {self.gives}"


FAMILIES: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "text": (is_text_type, "a text"),
    "time": (is_time_type, "a timestamp or a date"),
    "clock": (t.is_timestamp, "a timestamp"),
    "number": (is_number_type, "a number"),
}


def find_function(name: str) -> Function:
    """The function of this name, such as "dt.hour"; raises NameNotFoundError with the nearest one."""
    if (function := FUNCTIONS.get(name)) is not None:
        return function
    space, dot, last = name.rpartition(".")
    known = [one for one in FUNCTIONS if one.rpartition(".")[0] == space]
    near = did_you_mean(last, [one.removeprefix(space + dot) for one in known])
    elsewhere = [one for one in FUNCTIONS if one.rpartition(".")[2] == last]
    better = elsewhere[0] if elsewhere else near and f"{space}{dot}{near}"
    listed = f"(functions: {', '.join(known)})"
    raise UnknownFunctionError(
        f"there is no function `{name}`", help=f"did you mean `{better}`? {listed}" if better else listed
    )


class UnknownFunctionError(NameNotFoundError, AttributeError):
    """An AttributeError too, so that `hasattr` and completion work on `.str` and `.dt`."""


class Namespace:
    """`.str` and `.dt` of an expression: the functions of the table whose names start so."""

    __slots__ = ("_call", "_prefix")

    def __init__(self, prefix: str, call: Callable[[str, tuple[object, ...]], Any]) -> None:
        self._prefix, self._call = prefix, call

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        function = find_function(f"{self._prefix}.{name}")

        def call(*args: object, **named: object) -> Any:
            return self._call(function.name, checked_options(function, args, named))

        call.__name__, call.__doc__ = name, f"{function.signature}: {function.doc}"
        return call

    def __dir__(self) -> list[str]:
        start = f"{self._prefix}."
        return [name.removeprefix(start) for name in FUNCTIONS if name.startswith(start)]


def checked_options(function: Function, args: Sequence[object], named: dict[str, object]) -> tuple[object, ...]:
    """The options in order, without defaults at the end; raises TypeMismatchError for wrong ones."""
    call = f"`{function.signature.partition(' ->')[0]}`"
    names = [option.name for option in function.options]
    if len(args) > len(names):
        raise TypeMismatchError(f"{call} takes {len(names)} values, got {len(args)}")
    given = dict(zip(names, args, strict=False))
    for name, value in named.items():
        if name not in names:
            raise NameNotFoundError(f"{call} has no option `{name}`", help=f"(options: {', '.join(names)})")
        given[name] = value
    values: list[object] = []
    for option in function.options:
        value = given.get(option.name, option.default)
        if value is REQUIRED:
            raise TypeMismatchError(f"{call} needs `{option.name}`")
        if value is not option.default and (isinstance(value, bool) or not isinstance(value, option.types)):
            wanted = " or ".join(_TYPE_WORDS.get(one, one.__name__) for one in option.types)
            raise TypeMismatchError(f"{call}: `{option.name}` is a constant {wanted}, got {value!r}")
        values.append(value)
    while values and values[-1] == function.options[len(values) - 1].default:
        values.pop()
    return tuple(values)


_TYPE_WORDS = {str: "text", int: "whole number"}


def bind_function(name: str, source: pa.DataType, options: tuple[object, ...], text: str) -> tuple[pa.DataType, Kernel]:
    """The result's type and the kernel of a function on a column of this type."""
    function = find_function(name)
    accepts, words = FAMILIES[function.takes]
    if not accepts(source):
        help = _ADVICE.get((function.takes, "text" if is_text_type(source) else ""))
        raise TypeMismatchError(f"`{text}`: `{name}` takes {words}, not {type_name(source)}", help=help)
    defaults = tuple(option.default for option in function.options[len(options) :])
    return function.build(source, (*options, *defaults), text)


_ADVICE = {
    ("time", "text"): 'parse it first: `.cast("timestamp")` or `.str.to_timestamp("%d/%m/%Y")`',
    ("clock", "text"): 'parse it first: `.cast("timestamp")` or `.str.to_timestamp("%d/%m/%Y %H:%M")`',
    ("text", ""): 'make it a text first: `.cast("string")`',
    ("number", "text"): 'make it a number first: `.cast("int64")` or `.cast("float64")`',
}


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────

FUNCTIONS: dict[str, Function] = {
    function.name: function
    for function in (
        Function("abs", "number", "number", absolute, "The distance from zero.", "lit(-3).abs() == 3"),
        Function(
            "round",
            "number",
            "number",
            rounded,
            "The nearest number with so many digits after the point; halves go to the even neighbour.",
            "lit(2.5).round() == 2.0",
            (Option("digits", (int,), 0),),
        ),
        Function(
            "str.lower",
            "text",
            "text",
            text_to_text("utf8_lower"),
            "In small letters.",
            'lit("Ab").str.lower() == "ab"',
        ),
        Function(
            "str.upper", "text", "text", text_to_text("utf8_upper"), "In capitals.", 'lit("Ab").str.upper() == "AB"'
        ),
        Function(
            "str.strip",
            "text",
            "text",
            text_to_text("utf8_trim_whitespace"),
            "Without white space at the ends.",
            'lit(" a ").str.strip() == "a"',
        ),
        Function("str.length", "text", "int64", length, "The number of characters.", 'lit("né").str.length() == 2'),
        Function(
            "str.contains",
            "text",
            "bool",
            text_test("match_substring"),
            "Whether it contains a text, taken literally.",
            'lit("a.b").str.contains(".")',
            (Option("part", (str,)),),
        ),
        Function(
            "str.starts_with",
            "text",
            "bool",
            text_test("starts_with"),
            "Whether it starts with a text.",
            'lit("abc").str.starts_with("ab")',
            (Option("part", (str,)),),
        ),
        Function(
            "str.ends_with",
            "text",
            "bool",
            text_test("ends_with"),
            "Whether it ends with a text.",
            'lit("abc").str.ends_with("bc")',
            (Option("part", (str,)),),
        ),
        Function(
            "str.slice",
            "text",
            "text",
            text_to_text("utf8_slice_codeunits", slice_options),
            "The characters from `start` on (from the end, if negative), `length` of them or all.",
            'lit("abcd").str.slice(1, 2) == "bc"',
            (Option("start", (int,)), Option("length", (int,), None)),
        ),
        Function(
            "str.to_timestamp",
            "text",
            "timestamp[us]",
            to_timestamp,
            "The time that a text tells, in ISO 8601 or in a strptime format; one that does not fit is a bad row.",
            'lit("31/12/2013").str.to_timestamp("%d/%m/%Y") == "2013-12-31"',
            (Option("format", (str,), None),),
        ),
        Function(
            "dt.year", "time", "int64", part("year"), "The year.", 'lit("2013-07-04").cast("date").dt.year() == 2013'
        ),
        Function(
            "dt.month",
            "time",
            "int64",
            part("month"),
            "The month, 1 to 12.",
            'lit("2013-07-04").cast("date").dt.month() == 7',
        ),
        Function(
            "dt.day",
            "time",
            "int64",
            part("day"),
            "The day of the month.",
            'lit("2013-07-04").cast("date").dt.day() == 4',
        ),
        Function(
            "dt.weekday",
            "time",
            "int64",
            part("day_of_week", weekday_options),
            "The day of the week: Monday is 1, Sunday 7.",
            'lit("2013-07-04").cast("date").dt.weekday() == 4',
        ),
        Function(
            "dt.hour",
            "clock",
            "int64",
            part("hour"),
            "The hour on the zone's clock.",
            'lit("2013-07-04 15:30").cast("timestamp").dt.hour() == 15',
        ),
        Function(
            "dt.minute",
            "clock",
            "int64",
            part("minute"),
            "The minute of the hour.",
            'lit("2013-07-04 15:30").cast("timestamp").dt.minute() == 30',
        ),
        Function(
            "dt.truncate",
            "time",
            "its own type",
            truncate,
            "The last multiple of a duration on the zone's clock; weeks start on Mondays.",
            'lit("2013-07-04 15:30").cast("timestamp").dt.truncate("1h") == "2013-07-04 15:00"',
            (Option("every", (str,)),),
        ),
        Function(
            "dt.strftime",
            "time",
            "text",
            strftime,
            "The time as a text, in a strftime format; seconds are whole.",
            'lit("2013-07-04").cast("date").dt.strftime("%d.%m.") == "04.07."',
            (Option("format", (str,)),),
        ),
    )
}

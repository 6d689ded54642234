"""The function library: one table with each function's name, types, kernel, and an example that runs.

The API (`col.at.dt.hour()`), the language (`hour(at)`) and the docs read it; a new function is one entry. The
hard part is the calendar: Arrow's years have 16 bits, so times further out are bad rows, not wrong numbers;
and a timestamp with a zone is taken apart, and truncated, on that zone's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow.arithmetic import BAD_CAST, TIME_RANGE, abs_kernel, plain_kernel
from dataflow.errors import NameNotFoundError, TypeMismatchError, did_you_mean
from dataflow.evaluate import Bad, Kernel, arrow, as_array, mask_of, null_where_bad, valid_mask
from dataflow.event_time import UNITS_US, duration_us, values_of
from dataflow.schema import type_name

t = pa.types
REQUIRED = object()
Build = Callable[[pa.DataType, tuple[Any, ...], str], tuple[pa.DataType, Kernel]]
"""From the input's type, the options and the expression's text: the result's type and the kernel."""


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
    "text": (lambda type: t.is_string(type) or t.is_large_string(type) or t.is_string_view(type), "a text"),
    "time": (lambda type: t.is_timestamp(type) or t.is_date(type), "a timestamp or a date"),
    "clock": (t.is_timestamp, "a timestamp"),
    "number": (lambda type: t.is_integer(type) or t.is_floating(type) or t.is_decimal(type), "a number"),
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
        help = _ADVICE.get((function.takes, "text" if FAMILIES["text"][0](source) else ""))
        raise TypeMismatchError(f"`{text}`: `{name}` takes {words}, not {type_name(source)}", help=help)
    defaults = tuple(option.default for option in function.options[len(options) :])
    return function.build(source, (*options, *defaults), text)


_ADVICE = {
    ("time", "text"): 'parse it first: `.cast("timestamp")` or `.str.to_timestamp("%d/%m/%Y")`',
    ("clock", "text"): 'parse it first: `.cast("timestamp")` or `.str.to_timestamp("%d/%m/%Y %H:%M")`',
    ("text", ""): 'make it a text first: `.cast("string")`',
    ("number", "text"): 'make it a number first: `.cast("int64")` or `.cast("float64")`',
}


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────


def _abs(source: pa.DataType, options: tuple[Any, ...], text: str) -> tuple[pa.DataType, Kernel]:
    if t.is_signed_integer(source):
        widen = arrow("cast") if source != pa.int64() else None
        checked = abs_kernel(text)
        if widen is None:
            return pa.int64(), checked
        return pa.int64(), lambda args, num_rows, bad: checked([args[0].cast(pa.int64())], num_rows, bad)
    return source, plain_kernel("abs")


FLOAT_WHOLE_FROM = 2.0**52
"""From here on every float is a whole number."""


def _round(source: pa.DataType, options: tuple[Any, ...], text: str) -> tuple[pa.DataType, Kernel]:
    import pyarrow.compute as pc

    digits = options[0]
    if t.is_integer(source):
        if digits < 0:
            raise TypeMismatchError(f"`{text}`: integers have no digits to round away", help="use `x // 100 * 100`")
        return source, lambda args, num_rows, bad: args[0]
    call = arrow("round")
    rounding = pc.RoundOptions(digits, "half_to_even")
    if t.is_decimal(source):
        try:
            call([pa.array([], source)], rounding)
        except pa.ArrowInvalid as error:
            raise TypeMismatchError(f"`{text}`: {error}") from error
        return source, _round_decimals(call, rounding, text)
    if t.is_float16(source):
        return pa.float64(), lambda args, n, bad: call([args[0].cast(pa.float64())], rounding)

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        try:
            return call(args, rounding)
        except pa.ArrowInvalid:  # it overflows where there is nothing to round
            values = as_array(args[0], num_rows)
            large = arrow("greater_equal")([arrow("abs")([values]), pa.scalar(FLOAT_WHOLE_FROM, values.type)])
            rest = arrow("if_else")([large, pa.scalar(0.0, values.type), values])
            return arrow("if_else")([large, values, call([rest], rounding)])

    return source, kernel


def _round_decimals(call: Callable[..., Any], rounding: object, text: str) -> Kernel:
    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        try:
            return call(args, rounding)
        except pa.ArrowInvalid:  # 99.95 rounds to a digit more than its type has
            values = as_array(args[0], num_rows)
            mask = np.array([not _rounds(call, one, rounding) for one in values], dtype=np.bool_)
            found = [Bad(mask, BAD_CAST, f"`{text}`: the rounded value does not fit into {type_name(values.type)}")]
            bad.extend(found)
            return call([null_where_bad(values, found)], rounding)

    return kernel


def _rounds(call: Callable[..., Any], value: pa.Scalar, rounding: object) -> bool:
    try:
        call([value], rounding)
    except pa.ArrowInvalid:
        return False
    return True


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────


def _text_in(source: pa.DataType, kernel: Kernel) -> Kernel:
    """Arrow's text functions know no views yet."""
    if not t.is_string_view(source):
        return kernel
    return lambda args, num_rows, bad: kernel([args[0].cast(pa.string()), *args[1:]], num_rows, bad)


def _text_to_text(name: str, make_options: Callable[..., Any] | None = None) -> Build:
    def build(source: pa.DataType, options: tuple[Any, ...], text: str) -> tuple[pa.DataType, Kernel]:
        made = None if make_options is None else make_options(*options)
        result = pa.string() if t.is_string_view(source) else source
        return result, _text_in(source, plain_kernel(name, made))

    return build


def _text_test(name: str) -> Build:
    def build(source: pa.DataType, options: tuple[Any, ...], text: str) -> tuple[pa.DataType, Kernel]:
        import pyarrow.compute as pc

        return pa.bool_(), _text_in(source, plain_kernel(name, pc.MatchSubstringOptions(options[0])))

    return build


def _length(source: pa.DataType, options: tuple[Any, ...], text: str) -> tuple[pa.DataType, Kernel]:
    call = arrow("utf8_length")
    return pa.int64(), _text_in(source, lambda args, n, bad: call(args).cast(pa.int64()))


def _slice_options(start: int, length: int | None) -> Any:
    import pyarrow.compute as pc

    if length is not None and length < 0:
        raise TypeMismatchError(f"`str.slice`: a length of {length} is less than nothing")
    stop = None if length is None else start + length
    if start < 0 and stop is not None and stop >= 0:
        stop = None  # from the end on: the text ends first
    return pc.SliceOptions(start, stop)


def _to_timestamp(source: pa.DataType, options: tuple[Any, ...], text: str) -> tuple[pa.DataType, Kernel]:
    import pyarrow.compute as pc

    (format,) = options
    if format is None:
        from dataflow.casts import cast_kernel

        return pa.timestamp("us"), cast_kernel(source, pa.timestamp("us"), text)
    _check_format(format, "%Y %m %d %H %M %S %y %j %b %p %I", text)
    call, parsing = arrow("strptime"), pc.StrptimeOptions(format, "us", True)
    days = pc.ExtractRegexOptions(_day_pattern(format)) if "%d" in format else None

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        values = as_array(args[0], num_rows)
        result = call([values], parsing)
        failed = mask_of(result.is_null()) & valid_mask(values)
        if days is not None:
            failed |= _rolled_over(values, result, days)
        if not failed.any():
            return result
        found = [Bad(failed, BAD_CAST, f"`{text}`: the text does not fit the format {format!r}")]
        bad.extend(found)
        return null_where_bad(result, found)

    return pa.timestamp("us"), _text_in(source, kernel)


def _check_format(format: str, known: str, text: str) -> None:
    """Refuse the parts of a format that Arrow would misread."""
    for letter in (format[i + 1 : i + 2] for i in range(len(format)) if format[i] == "%"):
        if letter == "f":
            raise TypeMismatchError(
                f"`{text}`: `%f` is not known here", help='`.cast("timestamp")` reads ISO 8601 with fractions'
            )
    if format.rstrip("%").count("%") == 0:
        raise TypeMismatchError(f"`{text}`: the format {format!r} has no `%` part", help=f"write parts such as {known}")


def _day_pattern(format: str) -> str:
    """A regular expression that finds what stood for `%d`."""
    import re

    numbers = {"%d": r"(?P<day>[0-9]{1,2})", "%Y": "[0-9]{4}", "%%": "%"}
    parts = re.split(r"(%.|\s+)", format)
    return "^" + "".join(
        r"\s*" if part.isspace() else numbers.get(part, r"[0-9A-Za-z]+") if part.startswith("%") else re.escape(part)
        for part in parts
        if part
    )


def _rolled_over(values: pa.Array, result: pa.Array, days: object) -> np.ndarray[Any, Any]:
    """Where a day was beyond its month's end, as 30 February: strptime rolls on into the next month."""
    day = arrow("day")([result])
    suspect = mask_of(arrow("less_equal")([day, pa.scalar(3)]).fill_null(False))
    if not suspect.any():
        return suspect
    written = arrow("extract_regex")([values.filter(pa.array(suspect))], days).field("day").cast(pa.int64())
    differs = arrow("not_equal")([written, day.filter(pa.array(suspect))]).fill_null(False)
    suspect[suspect] = mask_of(differs)
    return suspect


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────

YEAR_MAX = 32_766
"""Arrow's calendar counts years in 16 bits and would wrap beyond; one year is left for the zone's offset."""
_CALENDAR_DAYS = int((np.datetime64(f"{YEAR_MAX}-01-01") - np.datetime64("1970-01-01")) // np.timedelta64(1, "D"))
_PER_DAY = {"s": 86_400, "ms": 86_400 * 10**3, "us": 86_400 * 10**6, "ns": 86_400 * 10**9}


def calendar_kernel(source: pa.DataType, kernel: Kernel, text: str) -> Kernel:
    """The kernel with times outside of Arrow's calendar as bad rows."""
    per_day = 1 if t.is_date32(source) else _PER_DAY["ms" if t.is_date64(source) else source.unit]
    dtype, limit = (np.int32 if t.is_date32(source) else np.int64), _CALENDAR_DAYS * per_day
    if limit >= np.iinfo(dtype).max:
        return kernel

    def guarded(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        values = as_array(args[0], num_rows)
        numbers = values_of(values, dtype)
        if len(numbers) and (numbers.min() < -limit or numbers.max() > limit):
            mask = ((numbers < -limit) | (numbers > limit)) & valid_mask(values)
            found = (
                [Bad(mask, TIME_RANGE, f"`{text}`: the time is more than {YEAR_MAX} years away")] if mask.any() else []
            )
            bad.extend(found)
            # Garbage in a null's place may be out of range too; Arrow does not look there.
            return kernel([null_where_bad(values, found)], num_rows, bad)
        return kernel([values], num_rows, bad)

    return guarded


def _part(name: str, arrow_options: Callable[[], Any] | None = None) -> Build:
    def build(source: pa.DataType, options: tuple[Any, ...], text: str) -> tuple[pa.DataType, Kernel]:
        made = None if arrow_options is None else arrow_options()
        return pa.int64(), calendar_kernel(source, plain_kernel(name, made), text)

    return build


def _weekday_options() -> Any:
    import pyarrow.compute as pc

    return pc.DayOfWeekOptions(count_from_zero=False, week_start=1)


def _strftime(source: pa.DataType, options: tuple[Any, ...], text: str) -> tuple[pa.DataType, Kernel]:
    import pyarrow.compute as pc

    from dataflow.casts import cast_kernel

    (format,) = options
    _check_format(format, "%Y %m %d %H %M %S", text)
    # Whole seconds: Arrow's %S would print the fraction that the unit allows.
    seconds = pa.timestamp("s", tz=source.tz if t.is_timestamp(source) else None)
    floor, call, formatting = cast_kernel(source, seconds, text), arrow("strftime"), pc.StrftimeOptions(format)
    try:
        call([pa.array([0], seconds)], formatting)
    except pa.ArrowInvalid as error:
        raise TypeMismatchError(f"`{text}`: {error}") from error
    return pa.string(), calendar_kernel(source, lambda args, n, bad: call([floor(args, n, bad)], formatting), text)


MONDAY_US = 4 * UNITS_US["d"]
"""1970-01-05: weeks start on Mondays."""


def _truncate(source: pa.DataType, options: tuple[Any, ...], text: str) -> tuple[pa.DataType, Kernel]:
    every_us = duration_us(options[0], f"`{text}`")
    if every_us <= 0:
        raise TypeMismatchError(f"`{text}`: the length must be greater than zero")
    tick_us = UNITS_US["d"] if t.is_date32(source) else {"s": 10**6, "ms": 10**3}.get(_unit(source), 1)
    if every_us % tick_us:
        raise TypeMismatchError(
            f"`{text}`: {type_name(source)} has no such fine steps", help='`.cast("timestamp[us]")` has'
        )
    per_us = 1_000 if _unit(source) == "ns" else 1
    every = every_us * per_us // tick_us
    origin = MONDAY_US * per_us // tick_us if every_us % UNITS_US["w"] == 0 else 0
    zone = source.tz if t.is_timestamp(source) else None
    if zone in (None, "UTC", "Etc/UTC", "Z", "+00:00"):
        return source, _floor_times(every, origin, text)
    return source, calendar_kernel(source, _floor_on_clock(source, every, origin, every_us < UNITS_US["d"]), text)


def _unit(source: pa.DataType) -> str:
    return source.unit if t.is_timestamp(source) else "ms" if t.is_date64(source) else "d"


def _floor_times(every: int, origin: int, text: str) -> Kernel:
    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        values = as_array(args[0], num_rows)
        numbers = values_of(values, np.int32 if t.is_date32(values.type) else np.int64)
        rest = (numbers - numbers.dtype.type(origin)) % every if origin else numbers % every
        with np.errstate(over="ignore"):
            floored = numbers - rest.astype(numbers.dtype, copy=False)
        valid = valid_mask(values)
        if len(numbers) and floored.max() > numbers.max() or np.any(floored > numbers):
            mask = (floored > numbers) & valid
            if mask.any():
                bad.append(Bad(mask, TIME_RANGE, f"`{text}`: the time is out of range"))
            valid = valid & ~mask
        return pa.array(floored, mask=None if valid is True else np.logical_not(valid)).view(values.type)

    return kernel


def _floor_on_clock(source: pa.DataType, every: int, origin: int, within_day: bool) -> Kernel:
    """Truncate on the clock of a zone. Within a day the remainder is taken off the instant, so an hour that
    comes twice stays two hours; from a day on the result is the first instant that the clock shows so."""
    import pyarrow.compute as pc

    local, assume = arrow("local_timestamp"), arrow("assume_timezone")
    zone = pc.AssumeTimezoneOptions(source.tz, ambiguous="earliest", nonexistent="latest")

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        values = as_array(args[0], num_rows)
        clock = values_of(local([values]), np.int64)
        rest = (clock - origin) % every
        mask = None if (valid := valid_mask(values)) is True else np.logical_not(valid)
        if within_day:
            return pa.array(values_of(values, np.int64) - rest, mask=mask).view(source)
        return assume([pa.array(clock - rest, mask=mask).view(pa.timestamp(source.unit))], zone)

    return kernel


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────

FUNCTIONS: dict[str, Function] = {
    function.name: function
    for function in (
        Function("abs", "number", "number", _abs, "The distance from zero.", "lit(-3).abs() == 3"),
        Function(
            "round",
            "number",
            "number",
            _round,
            "The nearest number with so many digits after the point; halves go to the even neighbour.",
            "lit(2.5).round() == 2.0",
            (Option("digits", (int,), 0),),
        ),
        Function(
            "str.lower",
            "text",
            "text",
            _text_to_text("utf8_lower"),
            "In small letters.",
            'lit("Ab").str.lower() == "ab"',
        ),
        Function(
            "str.upper", "text", "text", _text_to_text("utf8_upper"), "In capitals.", 'lit("Ab").str.upper() == "AB"'
        ),
        Function(
            "str.strip",
            "text",
            "text",
            _text_to_text("utf8_trim_whitespace"),
            "Without white space at the ends.",
            'lit(" a ").str.strip() == "a"',
        ),
        Function("str.length", "text", "int64", _length, "The number of characters.", 'lit("né").str.length() == 2'),
        Function(
            "str.contains",
            "text",
            "bool",
            _text_test("match_substring"),
            "Whether it contains a text, taken literally.",
            'lit("a.b").str.contains(".")',
            (Option("part", (str,)),),
        ),
        Function(
            "str.starts_with",
            "text",
            "bool",
            _text_test("starts_with"),
            "Whether it starts with a text.",
            'lit("abc").str.starts_with("ab")',
            (Option("part", (str,)),),
        ),
        Function(
            "str.ends_with",
            "text",
            "bool",
            _text_test("ends_with"),
            "Whether it ends with a text.",
            'lit("abc").str.ends_with("bc")',
            (Option("part", (str,)),),
        ),
        Function(
            "str.slice",
            "text",
            "text",
            _text_to_text("utf8_slice_codeunits", _slice_options),
            "The characters from `start` on (from the end, if negative), `length` of them or all.",
            'lit("abcd").str.slice(1, 2) == "bc"',
            (Option("start", (int,)), Option("length", (int,), None)),
        ),
        Function(
            "str.to_timestamp",
            "text",
            "timestamp[us]",
            _to_timestamp,
            "The time that a text tells, in ISO 8601 or in a strptime format; one that does not fit is a bad row.",
            'lit("31/12/2013").str.to_timestamp("%d/%m/%Y") == "2013-12-31"',
            (Option("format", (str,), None),),
        ),
        Function(
            "dt.year", "time", "int64", _part("year"), "The year.", 'lit("2013-07-04").cast("date").dt.year() == 2013'
        ),
        Function(
            "dt.month",
            "time",
            "int64",
            _part("month"),
            "The month, 1 to 12.",
            'lit("2013-07-04").cast("date").dt.month() == 7',
        ),
        Function(
            "dt.day",
            "time",
            "int64",
            _part("day"),
            "The day of the month.",
            'lit("2013-07-04").cast("date").dt.day() == 4',
        ),
        Function(
            "dt.weekday",
            "time",
            "int64",
            _part("day_of_week", _weekday_options),
            "The day of the week: Monday is 1, Sunday 7.",
            'lit("2013-07-04").cast("date").dt.weekday() == 4',
        ),
        Function(
            "dt.hour",
            "clock",
            "int64",
            _part("hour"),
            "The hour on the zone's clock.",
            'lit("2013-07-04 15:30").cast("timestamp").dt.hour() == 15',
        ),
        Function(
            "dt.minute",
            "clock",
            "int64",
            _part("minute"),
            "The minute of the hour.",
            'lit("2013-07-04 15:30").cast("timestamp").dt.minute() == 30',
        ),
        Function(
            "dt.truncate",
            "time",
            "its own type",
            _truncate,
            "The last multiple of a duration on the zone's clock; weeks start on Mondays.",
            'lit("2013-07-04 15:30").cast("timestamp").dt.truncate("1h") == "2013-07-04 15:00"',
            (Option("every", (str,)),),
        ),
        Function(
            "dt.strftime",
            "time",
            "text",
            _strftime,
            "The time as a text, in a strftime format; seconds are whole.",
            'lit("2013-07-04").cast("date").dt.strftime("%d.%m.") == "04.07."',
            (Option("format", (str,)),),
        ),
    )
}

"""Functions of texts: `.str.*`.

The hard part is reading times: strptime accepts 30 February and rolls on into March, so days are checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow.compute.arithmetic import BAD_CAST, plain_kernel
from dataflow.compute.casts import cast_kernel
from dataflow.compute.evaluate import Bad, Kernel, arrow, mask_of, null_where_bad, valid_mask
from dataflow.compute.number_functions import Typed
from dataflow.errors import TypeMismatchError
from dataflow.message import BoolArray

t = pa.types
Build = Callable[[pa.DataType, tuple[Any, ...], str], Typed]
"""From the input's type, the options and the expression's text."""


def text_to_text(name: str, make_options: Callable[..., Any] | None = None) -> Build:
    """An Arrow function from texts to texts."""

    def build(source: pa.DataType, options: tuple[Any, ...], text: str) -> Typed:
        kernel = plain_kernel(name, None if make_options is None else make_options(*options))
        return (pa.string() if t.is_string_view(source) else source), _without_views(source, kernel)

    return build


def text_test(name: str) -> Build:
    """An Arrow function that looks for a constant text."""

    def build(source: pa.DataType, options: tuple[Any, ...], text: str) -> Typed:
        import pyarrow.compute as pc

        return pa.bool_(), _without_views(source, plain_kernel(name, pc.MatchSubstringOptions(options[0])))

    return build


def length(source: pa.DataType, options: tuple[Any, ...], text: str) -> Typed:
    """`str.length`, in characters."""
    call = arrow("utf8_length")
    return pa.int64(), _without_views(source, lambda args, num_rows, bad: call(args).cast(pa.int64()))


def slice_options(start: int, length: int | None) -> Any:
    """What `str.slice` takes; a negative start counts from the end."""
    import pyarrow.compute as pc

    if length is not None and length < 0:
        raise TypeMismatchError(f"`str.slice`: a length of {length} is less than nothing")
    stop = None if length is None else start + length
    if start < 0 and stop is not None and stop >= 0:
        stop = None  # from the end on: the text ends first
    return pc.SliceOptions(start, stop)


def _without_views(source: pa.DataType, kernel: Kernel) -> Kernel:
    """Arrow's text functions know no views yet."""
    if not t.is_string_view(source):
        return kernel
    return lambda args, num_rows, bad: kernel([args[0].cast(pa.string())], num_rows, bad)


# ── times in texts ───────────────────────────────────────────────────────────────────────────────────────

_COMPOSITES = {"%F": "%Y-%m-%d", "%D": "%m/%d/%y", "%T": "%H:%M:%S", "%R": "%H:%M", "%e": "%d", "%h": "%b"}
_PARSED = "%Y %m %d %H %M %S %y %j %b %B %a %A %I %p %%"


def to_timestamp(source: pa.DataType, options: tuple[Any, ...], text: str) -> Typed:
    """`str.to_timestamp`: ISO 8601 without a format."""
    import pyarrow.compute as pc

    (format,) = options
    if format is None:
        return pa.timestamp("us"), cast_kernel(source, pa.timestamp("us"), text)
    for short, long in _COMPOSITES.items():
        format = format.replace(short, long)
    check_format(format, _PARSED, text)
    strptime, parsing = arrow("strptime"), pc.StrptimeOptions(format, "us", True)
    days = pc.ExtractRegexOptions(_day_pattern(format)) if "%d" in format else None

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        values = args[0]
        result = strptime([values], parsing)
        failed = mask_of(result.is_null()) & valid_mask(values)
        if days is not None:
            failed |= _rolled_over(values, result, days)
        if not failed.any():
            return result
        found = [Bad(failed, BAD_CAST, f"`{text}`: the text does not fit the format")]
        bad.extend(found)
        return null_where_bad(result, found)

    return pa.timestamp("us"), _without_views(source, kernel)


def check_format(format: str, known: str, text: str) -> None:
    """Refuse the parts of a format that are not among the known ones."""
    parts = re.findall("%.?", format)
    for part in parts:
        if part not in known.split():
            raise TypeMismatchError(
                f"`{text}`: `{part}` is not a known part of a format",
                help=f'(parts: {known}); `.cast("timestamp")` and `.cast("string")` know fractions of seconds',
            )
    if not parts:
        raise TypeMismatchError(f"`{text}`: the format has no part such as `%Y`", help=f"(parts: {known})")


def _day_pattern(format: str) -> str:
    """A regular expression that finds what stood for `%d`."""
    numbers = {"%d": r"\s*(?P<day>[0-9]{1,2})", "%Y": r"\s*[0-9]{4}", "%%": "%"}
    return "^" + "".join(
        r"\s*" if part.isspace() else numbers.get(part, r"\s*[0-9A-Za-z]+") if part[0] == "%" else re.escape(part)
        for part in re.split(r"(%.|\s+)", format)
        if part
    )


def _rolled_over(values: pa.Array, times: pa.Array, days: object) -> BoolArray:
    """Where a day was beyond its month's end, as 30 February: strptime rolls on into the next month."""
    day = arrow("day")([times])
    suspect = mask_of(arrow("less_equal")([day, pa.scalar(3)]).fill_null(False)).copy()
    if not suspect.any():
        return suspect
    rows = pa.array(np.flatnonzero(suspect))
    written = arrow("extract_regex")([values.take(rows)], days).field("day").cast(pa.int64())
    suspect[suspect] = mask_of(arrow("not_equal")([written, day.take(rows)]).fill_null(False))
    return suspect

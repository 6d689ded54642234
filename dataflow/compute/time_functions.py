"""Functions of timestamps and dates: `.dt.*`.

A timestamp with a zone is taken apart, and truncated, on that zone's clock. The hard part is an hour that comes
twice, or never, when clocks are changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow.compute.arithmetic import TIME_RANGE, plain_kernel
from dataflow.compute.calendar import UTC_NAMES, ticks_of, ticks_per_day, within_calendar, zone_of
from dataflow.compute.casts import cast_kernel
from dataflow.compute.evaluate import Bad, Kernel, arrow, valid_mask
from dataflow.compute.number_functions import Typed
from dataflow.compute.text_functions import Build, check_format
from dataflow.errors import TypeMismatchError
from dataflow.event_time import UNITS_US, duration_us, values_of
from dataflow.schema import type_name

t = pa.types
MONDAY_US = 4 * UNITS_US["d"]
"""1970-01-05: weeks start on Mondays."""
_FORMATTED = "%Y %m %d %H %M %S %y %j %b %B %a %A %I %p %u %V %G %F %T %R %Z %z %%"


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────


def part(name: str, make_options: Callable[[], Any] | None = None) -> Build:
    """An Arrow function that takes a part out of a time, as int64."""

    def build(source: pa.DataType, options: tuple[Any, ...], text: str) -> Typed:
        kernel = plain_kernel(name, None if make_options is None else make_options())
        return pa.int64(), within_calendar(source, kernel, text)

    return build


def weekday_options() -> Any:
    """Monday is 1, as in ISO 8601 and Polars."""
    import pyarrow.compute as pc

    return pc.DayOfWeekOptions(count_from_zero=False, week_start=1)


def strftime(source: pa.DataType, options: tuple[Any, ...], text: str) -> Typed:
    """`dt.strftime`, on whole seconds: Arrow's %S would print the fraction that the unit allows."""
    import pyarrow.compute as pc

    (format,) = options
    check_format(format, _FORMATTED, text)
    if ("%Z" in format or "%z" in format) and zone_of(source) is None:
        raise TypeMismatchError(f"`{text}`: {type_name(source)} has no zone to print")
    floor = cast_kernel(source, pa.timestamp("s", tz=zone_of(source)), text)
    call, formatting = arrow("strftime"), pc.StrftimeOptions(format)

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        return call([floor(args, num_rows, bad)], formatting)

    return pa.string(), within_calendar(source, kernel, text)


# ── truncating ───────────────────────────────────────────────────────────────────────────────────────────


def truncate(source: pa.DataType, options: tuple[Any, ...], text: str) -> Typed:
    """`dt.truncate`: down to a multiple of a duration on the zone's clock; weeks start on Mondays."""
    every_us = duration_us(options[0], f"`{text}`")
    if every_us <= 0:
        raise TypeMismatchError(f"`{text}`: the length must be greater than zero")
    every, rest = divmod(every_us * ticks_per_day(source), UNITS_US["d"])
    if rest or (t.is_date(source) and every_us % UNITS_US["d"]):
        raise TypeMismatchError(
            f"`{text}`: {type_name(source)} has no such fine steps", help='`.cast("timestamp[us]")` first'
        )
    in_weeks = every_us % UNITS_US["w"] == 0
    origin = MONDAY_US * ticks_per_day(source) // UNITS_US["d"] if in_weeks else 0
    if zone_of(source) in UTC_NAMES:
        return source, _floor(every, origin, text)
    kernel = _floor_on_clock(source, every, origin, within_day=every_us < UNITS_US["d"])
    return source, within_calendar(source, kernel, text)


def _floor(every: int, origin: int, text: str) -> Kernel:
    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        times, valid = args[0], valid_mask(args[0])
        ticks = ticks_of(times).astype(np.int64, copy=False)
        # Near the least number this wraps; the result is then greater than the time, which cannot be otherwise.
        floored = (ticks - origin) // every * every + origin
        limits = np.iinfo(np.int32 if t.is_date32(times.type) else np.int64)
        outside = (floored > ticks) | (floored < limits.min)
        if outside.any():
            mask = outside & valid
            if mask.any():
                bad.append(Bad(mask, TIME_RANGE, f"`{text}`: the time is out of range"))
            valid = valid & ~mask
        nulls = None if valid is True else np.logical_not(valid)
        return pa.array(floored.astype(limits.dtype, copy=False), mask=nulls).view(times.type)

    return kernel


def _floor_on_clock(source: pa.DataType, every: int, origin: int, within_day: bool) -> Kernel:
    """On the clock of a zone.

    Within a day the remainder is taken off the instant, so an hour that comes twice stays two hours; from a day
    on the result is the first instant at which the clock shows it.
    """
    import pyarrow.compute as pc

    local, assume = arrow("local_timestamp"), arrow("assume_timezone")
    zone = pc.AssumeTimezoneOptions(source.tz, ambiguous="earliest", nonexistent="latest")

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        times, valid = args[0], valid_mask(args[0])
        clock = values_of(local([times]), np.int64)
        rest = (clock - origin) % every
        nulls = None if valid is True else np.logical_not(valid)
        if within_day:
            return pa.array(values_of(times, np.int64) - rest, mask=nulls).view(source)
        return assume([pa.array(clock - rest, mask=nulls).view(pa.timestamp(source.unit))], zone)

    return kernel

"""Where Arrow's calendar ends, and times beyond become bad rows instead of wrong numbers.

Its years have 16 bits and wrap after that. The hard part is zones: depending on how Arrow was built, its tables may
know no summer time after 2037, so what it says of a far summer is compared with Python's own tables when bound.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow.compute.arithmetic import TIME_RANGE
from dataflow.compute.evaluate import Bad, Kernel, arrow, null_where_bad, valid_mask
from dataflow.errors import TypeMismatchError
from dataflow.event_time import values_of

t = pa.types
INT64 = np.iinfo(np.int64)
YEAR_MAX = 32_766
"""Arrow's calendar counts years in 16 bits and would wrap beyond; one year is left for the zone's offset."""
ZONE_YEAR_MAX = 2037
"""Arrow's tables of time zones may end here: it then knows no more summer times, and such times are bad rows."""
YEAR_DAYS = 365.2425
DAY_SECONDS = 86_400
TICKS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
UTC_NAMES: tuple[str | None, ...] = (None, "UTC", "Etc/UTC", "Z", "+00:00")


def within_calendar(source: pa.DataType, kernel: Kernel, text: str) -> Kernel:
    """The kernel with times outside of Arrow's calendar as bad rows."""
    per_day, zone = ticks_per_day(source), zone_of(source)
    high = int((YEAR_MAX - 1970) * YEAR_DAYS) * per_day
    if high > INT64.max:  # nanoseconds end in 2262; only the zone's offset may lead beyond
        if zone in UTC_NAMES:
            return kernel
        high = INT64.max - 2 * per_day
    low = -high
    if zone is not None and zone not in UTC_NAMES and not _knows_future_of(zone, text):
        high = int((ZONE_YEAR_MAX + 1 - 1970) * YEAR_DAYS) * per_day

    def guarded(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        times = args[0]
        ticks = ticks_of(times)
        if not len(ticks) or (ticks.min() >= low and ticks.max() < high):
            return kernel(args, num_rows, bad)
        mask = ((ticks < low) | (ticks >= high)) & valid_mask(times)
        found = [Bad(mask, TIME_RANGE, f"`{text}`: the time is beyond the calendar")] if mask.any() else []
        bad.extend(found)
        return kernel([null_where_bad(times, found)], num_rows, bad)

    return guarded


def _knows_future_of(zone: str, text: str) -> bool:
    """Whether Arrow agrees with Python on a zone's clock in a far summer and winter."""
    local = arrow("local_timestamp")
    for moment in (dt.datetime(2045, 1, 15, tzinfo=dt.UTC), dt.datetime(2045, 7, 15, tzinfo=dt.UTC)):
        try:
            clock = local([pa.scalar(moment, pa.timestamp("s", tz=zone))]).as_py()
            known = moment.astimezone(pa.lib.string_to_tzinfo(zone)).replace(tzinfo=None)
        except (pa.ArrowInvalid, ValueError, KeyError) as error:
            raise TypeMismatchError(f"`{text}`: there is no time zone {zone!r}", help="as in `Europe/Rome`") from error
        if clock != known:
            return False
    return True


def zone_of(source: pa.DataType) -> str | None:
    """The zone of a timestamp, None for others."""
    return source.tz if t.is_timestamp(source) else None


def ticks_per_day(source: pa.DataType) -> int:
    """How finely a timestamp or a date counts."""
    if t.is_date32(source):
        return 1
    return DAY_SECONDS * TICKS_PER_SECOND["ms" if t.is_date64(source) else source.unit]


def ticks_of(times: pa.Array) -> np.ndarray[Any, Any]:
    """Times as the integers that they are stored as."""
    return values_of(times, np.int32 if t.is_date32(times.type) else np.int64)

"""The order of rows that keyed steps made: by event time, then by key. It hides how many tasks there were."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dataflow.kernels.gateway import column_of, values_of
from dataflow.message import Int64Array


def canonical_order(time_us: Int64Array, keys: Sequence[pa.Array]) -> Int64Array:
    """The order by time, then by the keys (nulls last)."""
    import pyarrow.compute as pc

    if len(keys) == 1 and _is_int64(keys[0].type) and not keys[0].null_count:
        values = values_of(keys[0])[0]
        one_time = time_us[0] == time_us[-1] and bool((time_us == time_us[0]).all())
        return _order_of_different(values) if one_time else np.lexsort((values, time_us))
    columns = {"time": column_of(time_us)} | {f"key {number}": key for number, key in enumerate(keys)}
    order = pc.sort_indices(pa.table(columns), sort_keys=[(name, "ascending") for name in columns])
    found: Int64Array = order.to_numpy().astype(np.int64)
    return found


def _order_of_different(values: Int64Array) -> Int64Array:
    """The order of values that mostly differ, as the keys of one time do."""
    low, high = int(values.min()), int(values.max())
    if high - low < RANGE_MAX * len(values):
        places = np.full(high - low + 1, -1, dtype=np.int64)
        places[values - low] = np.arange(len(values))
        order = places[places >= 0]
        if len(order) == len(values):  # they do differ
            return order
    return np.argsort(values, kind="stable")


RANGE_MAX = 4
"""Up to so many times as many places as values, each is put into its own place (pigeonhole sort)."""


def _is_int64(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) and not pa.types.is_uint64(kind))

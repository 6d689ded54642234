"""The order of rows that keyed steps made: by time, then by key. It hides how many tasks there were."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dataflow.kernels.gateway import column_of
from dataflow.message import Int64Array

RANGE_MAX = 4
"""Up to so many times as many places as values, each is put into its own place (pigeonhole sort)."""


def canonical_order(times: Int64Array, keys: Sequence[pa.Array]) -> Int64Array:
    """The order by time, then by the keys (nulls last)."""
    import pyarrow.compute as pc

    columns = {"time": column_of(times)} | {f"key {number}": key for number, key in enumerate(keys)}
    order = pc.sort_indices(pa.table(columns), sort_keys=[(name, "ascending") for name in columns])
    found: Int64Array = order.to_numpy().astype(np.int64)
    return found


def ranked_order(times: Int64Array, ranks: Sequence[Int64Array]) -> Int64Array:
    """The order by time, then by ints that stand for the keys."""
    if not len(times):
        return np.zeros(0, dtype=np.int64)
    folded = np.zeros(len(times), dtype=np.int64)
    places = 1
    for column in (times, *ranks):
        low = int(column.min())
        span = int(column.max()) - low + 1
        places *= span
        if places >= 1 << 62:
            return np.lexsort((*reversed(ranks), times))
        if span > 1:
            folded = folded * span + (column - low)
    return _order_of_different(folded, places)


def _order_of_different(values: Int64Array, places: int) -> Int64Array:
    """The order of values from 0 up to `places` that mostly differ, as keys of one time do."""
    if places <= RANGE_MAX * len(values):
        at = np.full(places, -1, dtype=np.int64)
        at[values] = np.arange(len(values))
        order = at[at >= 0]
        if len(order) == len(values):  # they do differ
            return order
    return np.argsort(values, kind="stable")

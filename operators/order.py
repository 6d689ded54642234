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
        # Keys of one time differ, so an unstable (and much faster) sort gives the same.
        return np.argsort(values) if one_time else np.lexsort((values, time_us))
    columns = {"time": column_of(time_us)} | {f"key {number}": key for number, key in enumerate(keys)}
    order = pc.sort_indices(pa.table(columns), sort_keys=[(name, "ascending") for name in columns])
    found: Int64Array = order.to_numpy().astype(np.int64)
    return found


def _is_int64(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) and not pa.types.is_uint64(kind))

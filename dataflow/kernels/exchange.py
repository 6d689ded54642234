"""Which task owns a row, and the rows of each task in one counting sort."""

from __future__ import annotations

import numpy as np

from dataflow.kernels import kernel
from dataflow.kernels.hashing import UInt64Array
from dataflow.message import Int64Array

KEY_GROUPS = 128
"""Key groups are the top 7 bits of the key's hash; each task owns a range of them."""


def split_by_group(hashes: UInt64Array, parts: int) -> tuple[Int64Array, list[int]]:
    """Row numbers ordered by owner, rows of one owner in their old order, and where each owner's rows begin and end."""
    order = np.empty(len(hashes), dtype=np.int64)
    bounds = np.zeros(parts + 1, dtype=np.int64)
    _sort_by_owner(hashes, parts, order, bounds)
    return order, bounds.tolist()


@kernel
def _sort_by_owner(hashes: UInt64Array, parts: int, order: Int64Array, bounds: Int64Array) -> None:
    for row in range(len(hashes)):
        bounds[((np.int64(hashes[row] >> np.uint64(57)) * parts) >> 7) + 1] += 1
    for part in range(parts):
        bounds[part + 1] += bounds[part]
    for row in range(len(hashes)):
        owner = (np.int64(hashes[row] >> np.uint64(57)) * parts) >> 7
        order[bounds[owner]] = row
        bounds[owner] += 1
    for part in range(parts, 0, -1):
        bounds[part] = bounds[part - 1]
    bounds[0] = 0

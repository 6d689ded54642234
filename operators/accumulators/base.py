"""What every accumulator keeps and does. State is arrays indexed by slot; the slots are the groups' business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dataflow.expr import Bad
from dataflow.message import BoolArray, Int64Array


class RowOrder(NamedTuple):
    """The order of rows inside a group: event time, then position."""

    time_us: Int64Array
    positions: Int64Array


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a batch as one accumulator sees them; `valid` of length 0 means all."""

    slots: Int64Array
    values: pa.Array | None
    plain: np.ndarray
    """The values as int64 or float64; empty where the type has no such form."""
    valid: BoolArray
    ranks: Int64Array
    """Of the order expression, for max_by and min_by."""
    order: RowOrder | None


class Accumulator:
    """State of one primitive for many groups. `partial` columns say all that `merge` needs."""

    partial_types: Sequence[pa.DataType] = ()

    def __init__(self) -> None:
        self.capacity = 0

    def arrays(self) -> list[str]:
        """The names of the attributes that are indexed by slot; all start as zeros."""
        raise NotImplementedError

    def grow(self, capacity: int) -> None:
        """Make room; new slots are empty groups."""
        for name in self.arrays():
            array = getattr(self, name)
            grown = np.zeros((capacity, *array.shape[1:]), dtype=array.dtype)
            grown[: len(array)] = array
            setattr(self, name, grown)
        self.capacity = capacity

    def keep(self, kept: Int64Array, count: int) -> None:
        """Slot i becomes what slot kept[i] was; the others below `count` are empty again. `kept` ascends."""
        for name in self.arrays():
            array = getattr(self, name)
            array[: len(kept)] = array[kept]
            array[len(kept) : count] = 0

    def update(self, rows: Rows) -> None:
        raise NotImplementedError

    def partial(self, slots: Int64Array) -> list[pa.Array]:
        raise NotImplementedError

    def merge(self, slots: Int64Array, columns: Sequence[pa.Array]) -> None:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self.arrays())


@dataclass(frozen=True, slots=True)
class Finished:
    """Results of some groups, and which of them could not be computed."""

    columns: list[pa.Array]
    bad: tuple[Bad, ...]

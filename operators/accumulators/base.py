"""What every accumulator keeps and does.

The state of a group is one row of 64-bit words, in which each accumulator owns some columns; a row of zeros is an
empty group. So groups are made, moved and sent to another task whatever their aggregates are. Only values of other
types (texts, lists) are kept apart, by the accumulators that need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dataflow.expr import Bad
from dataflow.message import BoolArray, Float64Array, Int64Array, SlotArray


class RowOrder(NamedTuple):
    """The order of rows inside a group: event time, then position."""

    time_us: Int64Array
    positions: Int64Array


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a batch as one accumulator sees them; `valid` of length 0 means all."""

    slots: SlotArray
    values: pa.Array | None
    plain: np.ndarray
    """The values as int64 or float64; empty where the type has no such form."""
    valid: BoolArray
    ranks: Int64Array
    """Of the order expression, for max_by and min_by."""
    order: RowOrder | None


@dataclass(frozen=True, slots=True)
class Taken:
    """Some groups: their slots, and a copy of their words."""

    slots: SlotArray
    words: Int64Array

    @property
    def floats(self) -> Float64Array:
        """The same words, as floats."""
        return self.words.view(np.float64)


class Accumulator:
    """One primitive. `at` is the column of its first word; the `words` of all groups are handed to it."""

    width = 0
    """How many words it keeps for each group."""
    counts_rows = False
    """Whether it knows how many rows it was given, null or not."""
    value_types: Sequence[pa.DataType] = ()
    """The types of what else it hands to other tasks."""

    def __init__(self) -> None:
        self.at = 0

    def update(self, words: Int64Array, rows: Rows) -> None:
        """Take in rows."""
        raise NotImplementedError

    def values(self, taken: Taken) -> list[pa.Array]:
        """What other tasks need of these groups besides their words, which it may change for them."""
        return []

    def merge(self, words: Int64Array, given: Taken, values: Sequence[pa.Array]) -> None:
        """Take in what another task knows of groups: `given` has their words there, and the slots here."""
        raise NotImplementedError

    def keep(self, kept: Int64Array) -> None:
        """Slot i becomes what slot kept[i] was, for what is not in the words. `kept` ascends."""

    @property
    def nbytes(self) -> int:
        """Bytes of what is not in the words."""
        return 0


@dataclass(frozen=True, slots=True)
class Finished:
    """Results of some groups, and which of them could not be computed."""

    columns: list[pa.Array]
    bad: tuple[Bad, ...]

"""The one adversarial input: every operator has to take it.

Two partitions of one stream whose rows are as awkward as rows get: ties in time, disorder within and beyond the
delay, times on the very border of a window, before 1970 and in the year 9999, keys that are null, empty or no
ASCII, floats that are NaN, -0.0 or infinite, integers at the ends of int64. The hard part is that all of it must
happen *often* in a few hundred rows, so the times are a seeded walk with moods rather than uniform noise.

`tables(seed)` gives a table per partition; `cut` cuts one into batches; `ReplaySource` is a user's source
(`operators/base.py`) that hands out exactly those batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from dataflow.operators.base import EndOfInput, Idle

DELAY_US = 5_000_000
WINDOW_US = 10_000_000
"""The walk is made for windows and delays of about this size; others work, with fewer late rows."""

SCHEMA = pa.schema(
    [
        pa.field("at", pa.timestamp("us")),
        pa.field("key", pa.string()),
        pa.field("number", pa.int64()),
        pa.field("ratio", pa.float64()),
        pa.field("flag", pa.bool_()),
        pa.field("value", pa.float64()),
        pa.field("small", pa.int64()),
        pa.field("extreme", pa.int64()),
        pa.field("label", pa.string()),
        pa.field("ordinal", pa.int64()),
    ]
)

ORDINALS_PER_PARTITION = 1_000_000
"""A row's `ordinal` is unique in the whole stream; a partition's first one is a multiple of this."""
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
YEAR_1_US = -62_135_596_800_000_000
YEAR_9999_US = 253_402_300_000_000_000
ERAS_US = (YEAR_1_US, -7_200_000_000, -3_000_000, 1_356_998_400_000_000, YEAR_9999_US)
"""Where the walk jumps to, in order: year 1, 1969, across 1970, 2013, 9999."""

KEYS = (None, "", "a", "a", "a", "b", "é", "e\u0301", "ключ", "鍵" * 40, "a\0b", " a")
NUMBERS = (None, 0, 1, -1, INT64_MIN, INT64_MAX, 1_000_003)
RATIOS = (None, 0.0, -0.0, float("nan"), -float("nan"), 0.5, float("inf"))
VALUES = (None, 0.0, -0.0, float("nan"), 1e15, -1e15, 1e-9, 0.1, -2.5)
LABELS = (None, "", "x", "ü", "long " * 30)


@dataclass
class TimeWalk:
    """Event times in the order of arrival: mostly forward, sometimes not, with a jump to the next era now and then."""

    random: random.Random
    rows: int
    eras_us: Sequence[int] = ERAS_US
    _now_us: int = field(init=False)

    def __iter__(self) -> Iterator[int]:
        starts = {era * self.rows // len(self.eras_us): us for era, us in enumerate(self.eras_us)}
        for row in range(self.rows):
            if row in starts:
                self._now_us = starts[row] + self.random.randrange(-WINDOW_US, WINDOW_US)
            yield self._step()

    def _step(self) -> int:
        mood = self.random.random()
        if mood < 0.25:  # a tie
            return self._now_us
        if mood < 0.45:  # out of order, but in time
            return self._now_us - self.random.randrange(DELAY_US)
        if mood < 0.52:  # late for its window, or nearly so
            return self._now_us - DELAY_US - self.random.randrange(3 * WINDOW_US)
        if mood < 0.60:  # the border of a window, or the last tick before it
            self._now_us += WINDOW_US - self._now_us % WINDOW_US
            return self._now_us - self.random.randrange(2)
        self._now_us += self.random.randrange(2_000_000)
        return self._now_us


def tables(
    seed: int, *, rows: int = 300, null_times: bool = False, floats: Sequence[float | None] = VALUES
) -> dict[str, pa.Table]:
    """The partitions by name. The second is shorter, so that it ends (or lags) while the first goes on."""
    chance = random.Random(seed)
    sizes = {"p0": rows, "p1": chance.randrange(rows // 3, rows)}
    return {
        name: _table(random.Random(f"{seed}/{name}"), size, number * ORDINALS_PER_PARTITION, null_times, floats)
        for number, (name, size) in enumerate(sizes.items())
    }


def _table(chance: random.Random, rows: int, first: int, null_times: bool, floats: Sequence[float | None]) -> pa.Table:
    at: list[int | None] = list(TimeWalk(chance, rows))
    if null_times:
        at = [None if chance.random() < 0.05 else time for time in at]
    columns = {
        "at": at,
        "key": chance.choices(KEYS, k=rows),
        "number": chance.choices(NUMBERS, k=rows),
        "ratio": chance.choices(RATIOS, k=rows),
        "flag": chance.choices((None, True, False), k=rows),
        "value": [chance.choice(floats) if chance.random() < 0.3 else chance.uniform(-1e3, 1e3) for _ in range(rows)],
        "small": [None if chance.random() < 0.1 else chance.randrange(-50, 50) for _ in range(rows)],
        "extreme": chance.choices((None, INT64_MIN, INT64_MAX, 0, -1), k=rows),
        "label": chance.choices(LABELS, k=rows),
        "ordinal": list(range(first, first + rows)),
    }
    return pa.table({f.name: pa.array(columns[f.name], f.type) for f in SCHEMA}, schema=SCHEMA)


def cut(table: pa.Table, sizes: Sequence[int]) -> list[pa.RecordBatch]:
    """The rows of a table as batches of these sizes (0 gives an empty one); the last size repeats as needed."""
    batches, start = [], 0
    for size in sizes:
        batches.append(_rows(table, start, size))
        start += size
    while start < table.num_rows:
        size = max(sizes[-1], 1) if sizes else table.num_rows
        batches.append(_rows(table, start, size))
        start += size
    return batches


def random_cut(table: pa.Table, seed: int) -> list[pa.RecordBatch]:
    """The rows of a table cut anywhere, with empty and one-row batches among them."""
    chance, sizes, left = random.Random(seed), [], table.num_rows
    while left > 0:
        size = min(left, chance.choice((0, 1, 1, 2, 7, 30, 100)))
        sizes.append(size)
        left -= size
    return cut(table, [*sizes, 0])


def _rows(table: pa.Table, start: int, size: int) -> pa.RecordBatch:
    part = table.slice(start, size).combine_chunks()
    batches = part.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


@dataclass(frozen=True)
class ReplaySource:
    """A user's source that hands out given batches, and says "nothing now" before each one if `hesitant`."""

    batches: Mapping[str, Sequence[pa.RecordBatch]]
    hesitant: bool = False
    name: str = "replay"
    bounded: bool = True

    @property
    def schema(self) -> pa.Schema:
        return next(batch.schema for part in self.batches.values() for batch in part)

    def partitions(self) -> Sequence[str]:
        return tuple(self.batches)

    def open(self, partition: str, position: object | None) -> ReplayReader:
        assert position is None or isinstance(position, int)
        return ReplayReader(self.batches[partition], next_=position or 0, hesitates=self.hesitant)


@dataclass
class ReplayReader:
    """One partition being read; the position is the number of the next batch."""

    batches: Sequence[pa.RecordBatch]
    next_: int
    hesitates: bool

    def __post_init__(self) -> None:
        self._hesitated = False

    def read(self, rows_max: int) -> pa.RecordBatch | Idle | EndOfInput:
        if self.hesitates and not self._hesitated:
            self._hesitated = True
            return Idle()
        self._hesitated = False
        if self.next_ == len(self.batches):
            return EndOfInput()
        batch = self.batches[self.next_]
        self.next_ += 1
        return batch

    def position(self) -> object:
        return self.next_

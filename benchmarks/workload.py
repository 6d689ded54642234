"""The keyed tumbling workload: rows 10 a millisecond, each up to 2 s out of order, 10,000 keys, one-minute windows.

Made once into a work folder and kept there: int.parquet, str.parquet, two.parquet (keys of one int64, one string,
two columns), int.csv (the time as an integer in ms), and a store with the same rows in a topic. `Answer` sums a
result up so that wrong keys, windows, counts or sums all show; the expected one is computed by numpy alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

KEYS, WINDOW_MS, BASE_MS = 10_000, 60_000, 1_700_000_000_000
TWO_B = 100
"""The second of two key columns has as many values; together both have as many as the one column."""
DELAY = "2s"
FILTER_BELOW = 0.5
ROW_GROUP_ROWS = 131_072
SEED = 11
FLOAT_TOLERANCE = 1e-9
"""Relative: engines add floats in different orders."""

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """The rows in order of arrival."""

    ts_ms: Int64s
    key: Int64s
    value: Float64s


def rows(count: int) -> Rows:
    random = np.random.default_rng(SEED)
    ts_ms = BASE_MS + np.arange(count) // 10 - random.integers(0, 2000, count)
    return Rows(ts_ms, random.integers(0, KEYS, count), random.random(count))


@dataclass(frozen=True)
class Answer:
    """A result in five numbers. `weighted` mixes key, window and count: a row in a wrong group changes it."""

    groups: int
    rows: int
    total: float
    weighted: int
    others: float

    def agrees_with(self, other: Answer) -> bool:
        same = (self.groups, self.rows, self.weighted) == (other.groups, other.rows, other.weighted)
        floats = ((self.total, other.total), (self.others, other.others))
        return same and all(abs(one - two) <= FLOAT_TOLERANCE * abs(two) for one, two in floats)


def answer_of(key: Int64s, minute: Int64s, n: Int64s, s: Float64s, others: Sequence[Float64s] = ()) -> Answer:
    """Sum up a result given as columns: key number, minutes since 1970, count, sum, and further aggregates if any."""
    weighted = int(((key * 7919 + minute * 104_729) % 1_000_003 * n).sum())
    return Answer(len(key), int(n.sum()), float(s.sum()), weighted, sum(float(other.sum()) for other in others))


def expected(count: int, *, filtered: bool = False, five: bool = False) -> Answer:
    """The right answer by numpy: `filtered` to values below FILTER_BELOW, doubled; with mean, min and max if `five`."""
    made = rows(count)
    keep = made.value < FILTER_BELOW if filtered else np.ones(count, dtype=np.bool_)
    value = made.value[keep] * (2.0 if filtered else 1.0)
    minute, key = made.ts_ms[keep] // WINDOW_MS, made.key[keep]
    group, row_group = np.unique(minute * KEYS + key, return_inverse=True)
    n = np.bincount(row_group).astype(np.int64)
    s = np.bincount(row_group, value).astype(np.float64)
    others = []
    if five:
        low, high = np.full(len(group), np.inf), np.full(len(group), -np.inf)
        np.minimum.at(low, row_group, value)
        np.maximum.at(high, row_group, value)
        others = [s / n, low, high]
    return answer_of(group % KEYS, group // KEYS, n, s, others)


def default_work() -> Path:
    return Path(tempfile.gettempdir()) / "dataflow-benchmarks"


def prepare(work: Path, count: int, *, csv: bool = True, topic: bool = True) -> Path:
    """The folder with the data of `count` rows; what is there already is kept."""
    folder = work / f"rows-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    table = None
    for name in ("int.parquet", "str.parquet", "two.parquet", *(["int.csv"] if csv else [])):
        if not (folder / name).exists():
            table = table or _table(count)
            _write(table, folder / name)
    if topic and not (folder / "store").exists():
        _write_topic(table or _table(count), folder / "store")
    return folder


def _table(count: int) -> pa.Table:
    made = rows(count)
    return pa.table({"ts": made.ts_ms, "key": made.key, "value": made.value})


def _write(table: pa.Table, path: Path) -> None:
    """Write one of the files under a name of its own first, so that an interrupted run leaves no half file."""
    part = path.with_suffix(".part")
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, part, pyarrow.csv.WriteOptions(quoting_style="none"))
    else:
        pq.write_table(_shaped(table, path.stem), part, row_group_size=ROW_GROUP_ROWS, compression="zstd")
    os.replace(part, path)


def _shaped(table: pa.Table, shape: str) -> pa.Table:
    timed = table.set_column(0, "ts", table["ts"].cast(pa.timestamp("ms")))
    key = table["key"].to_numpy()
    match shape:
        case "str":
            names = pc.binary_join_element_wise("user-", table["key"].cast(pa.string()), "")
            return timed.set_column(1, "key", names)
        case "two":
            pair = timed.set_column(1, "a", pa.array(key // TWO_B))
            return pair.add_column(2, "b", pa.array(key % TWO_B))
        case _:
            return timed


def _write_topic(table: pa.Table, path: Path) -> None:
    import dataflow as flow

    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    flow.Store(part).append("events", _shaped(table, "int"))
    os.replace(part, path)

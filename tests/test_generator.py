"""The generator is as adversarial as it says, and the oracle is right where the answer can be told by hand."""

import math

import pyarrow as pa
import pytest

from dataflow.operators.base import EndOfInput, Idle, Source, SourceReader
from tests import generator, oracle


def test_the_same_seed_gives_the_same_tables() -> None:
    assert bits(generator.tables(7)["p1"]) == bits(generator.tables(7)["p1"])
    assert bits(generator.tables(7)["p0"]) != bits(generator.tables(8)["p0"])


def test_every_awkward_thing_is_in_a_few_hundred_rows() -> None:
    rows = [row for table in generator.tables(1, null_times=True).values() for row in oracle.rows_of(table)]
    times = [row["at"] for row in rows if row["at"] is not None]
    values = [row["value"] for row in rows if row["value"] is not None]

    assert len(times) < len(rows), "null times"
    assert min(times) < 0 < generator.YEAR_9999_US <= max(times)
    assert len(set(times)) < len(times), "ties"
    assert {None, "", "é", "e\u0301"} <= {row["key"] for row in rows}
    assert any(math.isnan(value) for value in values)
    assert any(value == 0 and math.copysign(1, value) < 0 for value in values), "-0.0"
    assert {generator.INT64_MIN, generator.INT64_MAX} <= {row["extreme"] for row in rows}


@pytest.mark.parametrize("seed", range(5))
def test_some_rows_are_late_and_some_only_out_of_order(seed: int) -> None:
    tables = generator.tables(seed)
    answer = count_by_key(tables, delay_us=generator.DELAY_US)
    patient = count_by_key(tables, delay_us=10**18)
    assert 0 < len(answer.late) < sum(row["n"] for row in answer.final)
    assert not patient.late


@pytest.mark.parametrize("seed", range(5))
def test_a_cut_keeps_every_row_in_order(seed: int) -> None:
    table = generator.tables(seed)["p0"]
    for batches in (generator.random_cut(table, seed), generator.cut(table, [1]), generator.cut(table, [0, 7])):
        assert bits(pa.Table.from_batches(batches)) == bits(table)
    assert {0, 1} <= {batch.num_rows for batch in generator.random_cut(table, seed)}


def test_the_replay_source_fulfils_the_protocol_and_hesitates() -> None:
    table = generator.tables(3, rows=12)["p0"]
    source = generator.ReplaySource({"p0": generator.cut(table, [5])}, hesitant=True)
    reader = source.open("p0", None)
    assert isinstance(source, Source)
    assert isinstance(reader, SourceReader)
    answers = [reader.read(100) for _ in range(7)]
    assert [type(answer) for answer in answers] == [
        Idle, pa.RecordBatch, Idle, pa.RecordBatch, Idle, pa.RecordBatch, Idle
    ]  # fmt: skip
    assert isinstance(reader.read(100), EndOfInput)
    assert reader.position() == 3


def test_the_oracle_judges_a_row_by_its_own_partition_before_it_came() -> None:
    tables = {
        "p0": seconds([0, 25, 3, 14]),  # when 3 comes, W_p is 20: its window [0, 10) is final; that of 14 too
        "p1": seconds([3, 1]),
    }
    answer = oracle.tumbling(
        tables, {"n": oracle.count()}, time="at", by=["key"], size_us=10_000_000, delay_us=5_000_000
    )
    assert [(row.partition, row.time_us // 10**6) for row in answer.late] == [("p0", 3), ("p0", 14)]
    assert {row["window_start"] // 10**6: row["n"] for row in answer.final} == {0: 3, 20: 1}


def test_the_oracle_floors_times_before_1970() -> None:
    answer = oracle.tumbling(
        {"p0": seconds([-1, -10, -11])}, {"n": oracle.count()}, time="at", by=[], size_us=10_000_000, delay_us=10**9
    )
    assert {row["window_start"] // 10**6: row["n"] for row in answer.final} == {-10: 2, -20: 1}


def test_the_oracle_interpolates_quantiles() -> None:
    rows = [{"x": value} for value in (4.0, 1.0, None, 2.0)]
    assert oracle.quantile("x", 0.5)(rows) == 2.0
    assert oracle.quantile("x", 0.75)(rows) == 3.0
    assert oracle.quantile("x", 0.5)([{"x": None}]) is None


def count_by_key(tables: dict[str, pa.Table], delay_us: int) -> oracle.Answer:
    return oracle.tumbling(
        tables, {"n": oracle.count()}, time="at", by=["key"], size_us=generator.WINDOW_US, delay_us=delay_us
    )


def seconds(at: list[int]) -> pa.Table:
    times = pa.array([second * 10**6 for second in at], pa.timestamp("us"))
    return pa.table({"at": times, "key": pa.array(["k"] * len(at))})


def bits(table: pa.Table) -> str:
    """The rows as text: NaN is equal to itself there."""
    return repr(oracle.rows_of(table))

"""Parquet: row groups in order, read by any thread, pieces of large ones, and damage told by its file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.errors import ConnectorError, DataflowError, NameNotFoundError
from dataflow.message import Batch, Place
from dataflow.operators.base import TimesRequest
from dataflow.operators.sources import parquet
from dataflow.operators.sources.parquet import ParquetSource
from dataflow.system import SimulatedSystem
from tests.operators.sources.reading import SYSTEM, columns, parts, request, rows, rows_by_threads


def table(start: int = 0, count: int = 1000) -> pa.Table:
    numbers = range(start, start + count)
    words = [f"w{n % 7}" if n % 5 else None for n in numbers]
    return pa.table({"n": pa.array(numbers, pa.int64()), "word": words, "x": [n / 8 for n in numbers]})


@pytest.fixture(autouse=True)
def each_row_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "SMALL_ROWS", 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pq.write_table(table(), tmp_path / "x.parquet", row_group_size=100)
    return tmp_path / "x.parquet"


def test_row_groups_are_parts_and_positions_count_rows_over_files(tmp_path: Path, path: Path) -> None:
    pq.write_table(table(1000, 50), tmp_path / "y.parquet")
    source = ParquetSource(tmp_path / "*.parquet")
    assert [part.first_position for part in parts(source)] == [*range(0, 1000, 100), 1000]
    assert columns(source) == table(0, 1050).to_pydict()


@pytest.mark.parametrize(("small_rows", "lengths"), [(99, [100] * 10), (250, [200] * 5), (950, [900, 100])])
def test_small_row_groups_are_read_together(
    path: Path, monkeypatch: pytest.MonkeyPatch, small_rows: int, lengths: list[int]
) -> None:
    monkeypatch.setattr(parquet, "SMALL_ROWS", small_rows)
    source = ParquetSource(path)
    assert [part.num_rows for part in parts(source)] == lengths
    assert columns(source) == table().to_pydict()
    asked = request(source, dictionary=["word"])
    assert rows_by_threads(source, asked) == rows(source)


def test_only_the_wanted_columns_are_decoded(path: Path) -> None:
    source = ParquetSource(path)
    assert columns(source, request(source, ["x", "n"])) == table().select(["x", "n"]).to_pydict()
    assert [(part.num_rows, part.columns) for part in parts(source, request(source, []))] == [(100, {})] * 10
    assert columns(ParquetSource(path, columns=["word"])) == table().select(["word"]).to_pydict()
    with pytest.raises(NameNotFoundError, match="did you mean `word`"):
        ParquetSource(path, columns=["words"]).schema(SYSTEM)


def test_text_may_stay_a_dictionary_and_numbers_do_not(path: Path) -> None:
    source = ParquetSource(path)
    asked = request(source, dictionary=["word", "n"])
    assert {str(part.columns["n"].type) for part in parts(source, asked)} == {"int64"}
    assert all(pa.types.is_dictionary(part.columns["word"].type) for part in parts(source, asked))
    assert columns(source, asked) == table().to_pydict()


def test_a_column_that_was_written_as_a_dictionary_is_plain_unless_it_may_stay(tmp_path: Path) -> None:
    encoded = table().set_column(1, "word", table()["word"].dictionary_encode())
    pq.write_table(encoded.append_column("k", pa.array([1, 2] * 500).dictionary_encode()), tmp_path / "d.parquet")
    source = ParquetSource(tmp_path / "d.parquet")
    assert source.schema(SYSTEM).types == [pa.int64(), pa.string(), pa.float64(), pa.int64()]
    assert columns(source)["word"] == table()["word"].to_pylist()
    (part,) = parts(source, request(source, dictionary=["word", "k"]))
    assert pa.types.is_dictionary(part.columns["word"].type)
    assert part.columns["k"].type == pa.int64()


@pytest.mark.parametrize("dictionary", [(), ("word",)])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_any_thread_may_read_any_row_group(path: Path, threads: int, dictionary: tuple[str, ...]) -> None:
    source = ParquetSource(path)
    expected = list(zip(*table().to_pydict().values(), strict=True))
    assert rows_by_threads(source, request(source, dictionary=dictionary), threads) == expected


@pytest.mark.parametrize("asked_columns", [("n", "word"), ()])
def test_a_large_row_group_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_columns: tuple[str, ...]
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS_MAX", 500)
    monkeypatch.setattr(parquet, "PIECE_ROWS", 300)
    pq.write_table(table(), tmp_path / "x.parquet", row_group_size=700)
    source = ParquetSource(tmp_path / "x.parquet")
    for dictionary in ((), ("word",)):
        found = parts(source, request(source, asked_columns, dictionary))
        assert [part.num_rows for part in found] == [300, 300, 100, 300]
        assert [part.first_position for part in found] == [0, 300, 600, 700]
        assert columns(source, request(source, asked_columns, dictionary)) == table().select(asked_columns).to_pydict()


def test_columns_too_large_for_one_array_stay_in_chunks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ARRAY_BYTES_MAX", 10)
    assert columns(ParquetSource(path)) == table().to_pydict()


def test_types_that_nothing_computes_with_pass_through(tmp_path: Path) -> None:
    odd = pa.table(
        {
            "list": pa.array([[1, 2], None, []], pa.list_(pa.int8())),
            "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}]),
            "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
            "ns": pa.array([dt.datetime(1960, 1, 1), None, dt.datetime(2200, 1, 1)], pa.timestamp("ns", "UTC")),
            "time": pa.array([1, 2, None], pa.time64("us")),
            "decimal": pa.array([None, 1, 2], pa.decimal256(50, 3)),
            "large": pa.array(["a", "b", None], pa.large_string()),
            "half": pa.array([np.float16(1.5), None, np.float16(2)], pa.float16()),
        }
    )
    pq.write_table(odd, tmp_path / "odd.parquet")
    source = ParquetSource(tmp_path / "odd.parquet")
    assert source.schema(SYSTEM).types == odd.schema.types
    read = parts(source, request(source, dictionary=odd.column_names))
    assert read[0].columns["struct"].equals(odd["struct"].combine_chunks())
    assert columns(source) == odd.to_pydict()


def test_a_file_without_rows_is_read(tmp_path: Path) -> None:
    pq.write_table(table(0, 0), tmp_path / "e.parquet")
    assert columns(ParquetSource(tmp_path / "e.parquet")) == {"n": [], "word": [], "x": []}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"n": "x"}, "column 1 is `n` (string) instead of `n` (int64)"),
        ({"n": 1, "y": 2.0}, "column 2 is `y` (float64) instead of `x` (float64)"),
        ({"n": 1}, "column 2 is nothing instead of `x` (float64)"),
        ({"n": 1, "x": 1.0, "z": 1}, "column 3 is `z` (int64) instead of nothing"),
    ],
)
def test_files_must_have_the_same_columns(tmp_path: Path, other: dict[str, object], told: str) -> None:
    pq.write_table(pa.table({"n": [1], "x": [1.0]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({name: [value] for name, value in other.items()}), tmp_path / "2.parquet")
    with pytest.raises(ConnectorError) as error:
        ParquetSource(tmp_path / "*.parquet").schema(SYSTEM)
    assert error.value.message == (
        f"the columns of {tmp_path}/2.parquet differ from those of {tmp_path}/1.parquet: {told}"
    )


def test_the_same_columns_with_other_metadata_are_the_same(tmp_path: Path) -> None:
    plain = pa.table({"w": ["a"]})
    pq.write_table(plain, tmp_path / "1.parquet")
    pq.write_table(plain.replace_schema_metadata({"by": "x"}), tmp_path / "2.parquet")
    pq.write_table(pa.table({"w": plain["w"].dictionary_encode()}), tmp_path / "3.parquet")
    assert rows(ParquetSource(tmp_path / "*.parquet")) == [("a",)] * 3


def test_what_is_not_parquet_is_told_by_its_file(tmp_path: Path, path: Path) -> None:
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-100], b"a,b\n1,2\n" * 100):
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(ConnectorError, match=r"bad.parquet cannot be read as Parquet: "):
            ParquetSource(tmp_path / "bad.parquet").schema(SYSTEM)


@pytest.mark.parametrize("small_rows", [1, 500])
def test_a_damaged_row_group_is_told_by_file_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_rows: int
) -> None:
    monkeypatch.setattr(parquet, "SMALL_ROWS", small_rows)
    path = tmp_path / "x.parquet"
    pq.write_table(table(), path, row_group_size=100, compression="zstd")
    metadata = pq.read_metadata(path)
    column = metadata.row_group(3).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    source = ParquetSource(path)
    with pytest.raises(ConnectorError, match=r"x.parquet: row group 3 cannot be read: "):
        columns(source)


def test_a_file_that_was_replaced_after_planning_is_told(path: Path) -> None:
    source = ParquetSource(path)
    asked = request(source)
    pq.write_table(table().drop_columns(["word"]), path)
    with pytest.raises(ConnectorError, match="has no column `word` any more"):
        list(source.splits(0, asked))


def test_a_file_whose_types_changed_after_planning_is_told(path: Path) -> None:
    source = ParquetSource(path)
    asked = request(source)
    pq.write_table(table().set_column(0, "n", pa.array(["5"] * 1000)), path)
    with pytest.raises(ConnectorError, match=r"column `n` of .*x\.parquet is string now, and was int64"):
        list(source.splits(0, asked))
    assert columns(source, request(source, ["word"])) == table().select(["word"]).to_pydict()


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(NameNotFoundError, match="two columns `a`"):
        ParquetSource(tmp_path / "x.parquet").schema(SYSTEM)


def test_names_with_dots_are_names(tmp_path: Path) -> None:
    odd = pa.table({"a.b": [1, 2], "a": [{"b": 3}, {"b": 4}]})
    pq.write_table(odd, tmp_path / "x.parquet")
    source = ParquetSource(tmp_path / "x.parquet")
    assert columns(source, request(source, ["a.b"])) == {"a.b": [1, 2]}
    assert columns(source, request(source, ["a"])) == {"a": [{"b": 3}, {"b": 4}]}


def test_a_simulated_disk_is_read_too(path: Path) -> None:
    system = SimulatedSystem(seed=1)
    system.disk.write_bytes("/x.parquet", path.read_bytes())
    source = ParquetSource("/x.parquet")
    assert columns(source, request(source, system=system)) == table().to_pydict()


def test_the_identity_does_not_tell_contents_apart(tmp_path: Path, path: Path) -> None:
    before = ParquetSource(path).identity()
    assert before == ParquetSource(str(path)).identity()
    pq.write_table(table(5), path)
    assert before == ParquetSource(path).identity()
    with pytest.raises(DataflowError, match="not there yet"):
        ParquetSource(path, on_error="dead_letter")


TIMES = [-5_000, -4_001, 0, 7, 59_999, 60_000, 70_000, 130_000]


def _times_left_out(path: Path) -> list[tuple[int, int] | None]:
    """For each row group between which times it lies, if its times are not decoded; a minute is enough."""
    source = ParquetSource(path)
    asked = replace(request(source), times=TimesRequest("at", lambda a, b: a // 60_000_000 == b // 60_000_000))
    found = [part for split in source.splits(0, asked) for part in split.read()]
    for part in found:
        assert ("at" in part.columns) == (part.unread is None)
    return [None if part.unread is None else (part.unread.least_us, part.unread.most_us) for part in found]


def _write_times(path: Path, kind: pa.DataType, times: Sequence[int | None] = TIMES, **options: Any) -> Path:
    at = pa.array(times, pa.int64()).cast(pa.timestamp("ms")).cast(kind, safe=False)
    names = pa.array([f"n{number}" for number in range(len(times))])
    pq.write_table(pa.table({"n": names, "at": at}), path, row_group_size=2, **options)
    return path


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ns")], ids=str)
def test_times_that_statistics_tell_are_left_out_and_can_be_read_later(tmp_path: Path, kind: pa.DataType) -> None:
    path = _write_times(tmp_path / "x.parquet", kind)
    assert _times_left_out(path) == [(-5_000_000, -4_001_000), (0, 7_000), None, None]
    source = ParquetSource(path)
    asked = replace(request(source), times=TimesRequest("at", lambda a, b: True))
    (part,) = next(iter(source.splits(0, asked))).read()
    batch = Batch(part.columns, part.num_rows, Place(0, 0, 0), unread=part.unread)
    second = batch.slice(1, 1)
    assert second.columns["at"].type == kind
    assert second.columns["at"].cast(pa.timestamp("ms")).cast(pa.int64()).to_pylist() == [-4_001]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (pa.timestamp("ms"), {"write_statistics": False}),
        (pa.timestamp("ns"), {"use_deprecated_int96_timestamps": True}),
        (pa.date32(), {}),
    ],
    ids=["no statistics", "int96", "dates"],
)
def test_times_are_decoded_where_statistics_do_not_tell_them(
    tmp_path: Path, kind: pa.DataType, options: dict[str, Any]
) -> None:
    path = _write_times(tmp_path / "x.parquet", kind, **options)
    assert _times_left_out(path) == [None] * 4


def test_times_with_nulls_and_in_large_row_groups_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write_times(tmp_path / "x.parquet", pa.timestamp("ms"), [1, None, 2, 3])
    assert _times_left_out(path) == [None, (2_000, 3_000)]
    monkeypatch.setattr(parquet, "GROUP_ROWS_MAX", 1)
    assert _times_left_out(path)[:2] == [None, None]


def test_damaged_times_that_are_read_later_are_told_by_their_file(tmp_path: Path) -> None:
    path = _write_times(tmp_path / "x.parquet", pa.timestamp("ms"))
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    source = ParquetSource(path)
    asked = replace(request(source), times=TimesRequest("at", lambda a, b: True))
    (part,) = next(iter(source.splits(0, asked))).read()
    with pytest.raises(ConnectorError, match=r"x\.parquet: row group 0 cannot be read"):
        Batch(part.columns, part.num_rows, Place(0, 0, 0), unread=part.unread).read_times()

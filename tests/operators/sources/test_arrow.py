"""Arrow data in memory: chunks are the batches, and dictionaries come out only where they may."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pytest

from dataflow.errors import ConnectorError, NameNotFoundError, TypeMismatchError
from dataflow.operators.base import UNIT_ROWS
from dataflow.operators.sources.arrow import ArrowSource
from tests.operators.sources.reading import SYSTEM, columns, parts, request

CHUNKED = pa.table({"a": pa.chunked_array([[1, 2], [], [3]], pa.int64()), "b": ["x", "y", "z"]})


def test_the_chunks_of_a_table_are_the_parts() -> None:
    source = ArrowSource(CHUNKED, "t")
    assert columns(source) == CHUNKED.to_pydict()
    read = parts(source, request(source, ["a"]))
    assert [(part.num_rows, part.first_position) for part in read] == [(2, 0), (0, 2), (1, 2)]
    assert source.name == "t"


def test_large_chunks_are_cut() -> None:
    source = ArrowSource(pa.table({"a": range(2 * UNIT_ROWS + 1)}))
    for asked in (["a"], []):
        found = parts(source, request(source, asked))
        assert [part.num_rows for part in found] == [UNIT_ROWS, UNIT_ROWS, 1]
        assert [part.first_position for part in found] == [0, UNIT_ROWS, 2 * UNIT_ROWS]


def test_a_table_without_rows_and_a_batch_are_read() -> None:
    assert columns(ArrowSource(CHUNKED.slice(0, 0))) == {"a": [], "b": []}
    assert columns(ArrowSource(pa.record_batch({"a": [1]}))) == {"a": [1]}


def test_dictionaries_are_plain_unless_they_may_stay() -> None:
    words, numbers = pa.array(["x", None, "x"]).dictionary_encode(), pa.array([1, 2, 1]).dictionary_encode()
    source = ArrowSource(pa.table({"w": words, "n": numbers}))
    assert source.schema(SYSTEM) == pa.schema({"w": pa.string(), "n": pa.int64()})
    assert columns(source) == {"w": ["x", None, "x"], "n": [1, 2, 1]}
    (part,) = parts(source, request(source, dictionary=["w", "n"]))
    assert part.columns["w"].equals(words)
    assert part.columns["n"].type == pa.int64()


@pytest.mark.parametrize("indices", [pa.int8(), pa.uint32(), pa.int64()])
def test_dictionaries_of_other_indices_become_the_one_kind(indices: pa.DataType) -> None:
    given = pa.DictionaryArray.from_arrays(pa.array([1, None, 0, 1], indices), pa.array(["x", "y"], pa.string()))
    source = ArrowSource(pa.table({"w": given}))
    (part,) = parts(source, request(source, dictionary=["w"]))
    assert part.columns["w"].type == pa.dictionary(pa.int32(), pa.string())
    assert part.columns["w"].to_pylist() == ["y", None, "x", "y"]


def test_a_reader_is_read_as_it_comes_and_only_once() -> None:
    given = []

    def batches() -> object:
        for n in range(3):
            given.append(n)
            yield pa.record_batch({"a": [n]})

    source = ArrowSource(pa.RecordBatchReader.from_batches(pa.schema({"a": pa.int64()}), batches()), "r")
    assert source.blocking
    splits = source.splits(0, request(source))
    next(splits)
    assert given == [0], "nothing is read ahead"
    assert len(list(splits)) == 2
    with pytest.raises(ConnectorError, match="`r` has been read already") as error:
        columns(source)
    assert error.value.code == "DF0503"


def test_a_frame_of_polars_is_read() -> None:
    frame = pl.DataFrame({"a": [1, None], "b": ["x", "y"]})
    source = ArrowSource(frame)
    assert columns(source) == {"a": [1, None], "b": ["x", "y"]} == columns(source)


def test_what_is_no_arrow_data_is_refused() -> None:
    with pytest.raises(TypeMismatchError, match="from_arrow needs Arrow data, got list"):
        ArrowSource([{"a": 1}])
    with pytest.raises(NameNotFoundError, match="two columns `a`"):
        ArrowSource(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]))


def test_the_identity_counts_the_rows() -> None:
    found = {ArrowSource(CHUNKED.slice(0, rows), name).identity() for rows in (1, 2) for name in ("a", "b", "a")}
    assert len(found) == 4

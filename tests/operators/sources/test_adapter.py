"""A user's source: what it returns is handed on, and what it must not return is told with its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dataflow as flow
from dataflow.errors import ConnectorError, TypeMismatchError
from dataflow.operators.base import UNIT_ROWS, EndOfInput, Idle, Source
from dataflow.operators.sources.adapter import UserSource
from tests.operators.sources.reading import SYSTEM, columns, parts, request

SCHEMA = pa.schema({"a": pa.int64(), "w": pa.string()})


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch({"a": numbers, "w": [f"w{n}" for n in numbers]}, schema=SCHEMA)


@dataclass
class Reader:
    answers: list[Any]

    def read(self, rows_max: int) -> Any:
        assert 0 < rows_max <= UNIT_ROWS
        return self.answers.pop(0)

    def position(self) -> object:
        return len(self.answers)


@dataclass
class Given:
    """A source that reads the given answers."""

    answers: dict[str, list[Any]]
    schema: Any = SCHEMA
    opened: list[tuple[str, object]] = field(default_factory=list)

    def partitions(self) -> Sequence[str]:
        return list(self.answers)

    def open(self, partition: str, position: object | None) -> Any:
        self.opened.append((partition, position))
        return Reader([*self.answers[partition], EndOfInput()])


def test_batches_are_parts_and_positions_count_rows_in_each_partition() -> None:
    given = Given({"p": [batch(1, 2), batch(), batch(3)], "q": [batch(9)]})
    assert isinstance(given, Source)
    source = UserSource(given)
    assert (source.name, source.bounded, source.blocking) == ("Given", True, False)
    assert source.partitions(request(source)) == ["p", "q"]
    assert [(part.num_rows, part.first_position) for part in parts(source)] == [(2, 0), (0, 2), (1, 2)]
    assert columns(source, request(source, ["w"])) == {"w": ["w1", "w2", "w3"]}
    (split,) = source.splits(1, request(source))
    assert not isinstance(split, Idle)
    assert next(iter(split.read())).columns["a"].to_pylist() == [9]
    assert given.opened[-1] == ("q", None)


def test_idle_is_passed_on() -> None:
    source = UserSource(Given({"p": [Idle(), batch(1), Idle(), Idle()]}))
    assert [isinstance(split, Idle) for split in source.splits(0, request(source))] == [True, False, True, True]


def test_a_batch_larger_than_asked_for_is_cut() -> None:
    source = UserSource(Given({"p": [batch(*range(UNIT_ROWS + 3))]}))
    assert [part.num_rows for part in parts(source)] == [UNIT_ROWS, 3]


@dataclass
class Counting:
    """Reads the numbers up to `total`, in batches of the given sizes, whatever it is asked for."""

    total: int
    sizes: list[int]
    schema: Any = SCHEMA
    name: str = "counting"

    def partitions(self) -> Sequence[str]:
        return ["p"]

    def open(self, partition: str, position: object | None) -> Counting:
        assert position is None or isinstance(position, int)
        self.at = position or 0
        return self

    def read(self, rows_max: int) -> pa.RecordBatch | EndOfInput:
        if self.at >= self.total and not self.sizes:
            return EndOfInput()
        size = min(self.sizes.pop(0) if self.sizes else 3, self.total - self.at)
        self.at += size
        return batch(*range(self.at - size, self.at))

    def position(self) -> object:
        return self.at


@given(st.lists(st.tuples(st.lists(st.integers(0, 12), min_size=4), st.integers(0, 4), st.integers(1, 11)), max_size=8))
def test_a_later_run_goes_on_at_the_row_however_its_batches_are_cut(runs: list[tuple[list[int], int, int]]) -> None:
    total = 40
    position: object = None
    found: list[int] = []
    for sizes, splits, rows in [*runs, ([], 1_000, 0)]:
        source = UserSource(Counting(total, list(sizes)))
        for number, split in enumerate(source.splits(0, request(source), position)):
            assert not isinstance(split, Idle)
            (part,) = split.read()
            numbers = part.columns["a"].to_pylist()
            if number == splits:  # stopped inside of this one
                if rows < len(numbers):
                    found += numbers[:rows]
                    position = split.position(rows)
                break
            assert part.first_position == len(found)
            found += numbers
            position = split.end
    assert found == list(range(total))


def test_a_source_may_tell_its_name_and_kind() -> None:
    given: Any = Given({})
    given.name, given.bounded, given.blocking = "clicks", False, True
    source = UserSource(given)
    assert (source.name, source.bounded, source.blocking) == ("clicks", False, True)
    assert UserSource(given, "mine").name == "mine"


def test_a_dictionary_is_the_type_of_its_values() -> None:
    words = pa.array(["x", "x"]).dictionary_encode()
    encoded = pa.record_batch({"a": pa.array([1, 2]), "w": words})
    for schema in (SCHEMA, encoded.schema, {"a": "int", "w": "string"}):
        source = UserSource(Given({"p": [encoded, batch(3)]}, schema))
        assert source.schema(SYSTEM) == SCHEMA
        assert columns(source)["w"] == ["x", "x", "w3"]
        hinted = parts(source, request(source, dictionary=["w"]))
        assert hinted[0].columns["w"].equals(words)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "read() returned NoneType"),
        (pa.table({"a": [1], "w": ["x"]}), "read() returned Table"),
        (
            pa.record_batch({"a": [1.5], "w": ["x"]}),
            "its schema says (a: int64, w: string), but read() returned (a: float64, w: string)",
        ),
        (
            pa.record_batch({"a": [1]}),
            "its schema says (a: int64, w: string), but read() returned (a: int64)",
        ),
    ],
)
def test_a_wrong_answer_is_told_with_the_source(answer: object, told: str) -> None:
    with pytest.raises(ConnectorError) as error:
        columns(UserSource(Given({"p": [batch(1), answer]}), "mine"))
    assert error.value.message == f"source `mine`: {told}"
    assert error.value.code == "DF0504"


def test_wrong_partitions_and_readers_are_told() -> None:
    with pytest.raises(ConnectorError, match=r"partitions\(\) returned \[1\]"):
        columns(UserSource(Given({1: []})))  # type: ignore[dict-item]

    class NoReader(Given):
        def open(self, partition: str, position: object | None) -> Any:
            return self

    with pytest.raises(ConnectorError, match=r"open\('p', None\) returned NoReader"):
        columns(UserSource(NoReader({"p": []})))


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(TypeMismatchError, match="read needs a source, got list"):
        UserSource([])  # type: ignore[arg-type]
    with pytest.raises(TypeMismatchError, match="read needs a source, got the class Given"):
        UserSource(Given)  # type: ignore[arg-type]


def test_a_source_without_positions_says_that_it_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    source = UserSource(Given({"p": [batch(1, 2)]}))
    list(source.splits(0, request(source), [None, 0, 2]))
    assert "does not say where it was" in capsys.readouterr().err
    list(source.splits(0, request(source), None))
    list(source.splits(0, request(source), [3, 0, 2]))
    assert capsys.readouterr().err == ""


def test_exactly_once_needs_positions(tmp_path: Path) -> None:
    class Unplaced(Given):
        placed = False

        def open(self, partition: str, position: object | None) -> Any:
            reader = super().open(partition, position)
            if not self.placed:
                reader.position = lambda: None
            return reader

    source = Unplaced({"p": [batch(), batch(1, 2)]})
    rows = flow.read(source).write_topic("out")
    with pytest.raises(ConnectorError, match=r"DF0506.*source `Unplaced`.*position\(\) returned None"):
        flow.Pipeline("job", rows).run(store=tmp_path, delivery="exactly_once")
    flow.Pipeline("other", flow.read(source).write_topic("more")).run(store=tmp_path, delivery="at_least_once")
    source.placed = True
    flow.Pipeline("job", rows).run(store=tmp_path, delivery="exactly_once")
    with flow.Store(tmp_path) as store:
        assert store.read("out").num_rows == store.read("more").num_rows == 2

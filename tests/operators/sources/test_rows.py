"""Rows of Python objects: of any kind, in batches by number and time, and a misfit is told by row and column."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from dataflow.errors import ConnectorError, TypeMismatchError
from dataflow.operators.base import UNIT_ROWS, Idle, ReadRequest
from dataflow.operators.sources.pump import HOLD_SECONDS
from dataflow.operators.sources.rows import RowsSource
from dataflow.system import SimulatedSystem
from tests.operators.sources.reading import IDLE_SECONDS, SYSTEM, columns, parts, request

SCHEMA = {"id": "int", "word": "string"}
VALUES = {"id": [1, 2, None], "word": ["a", None, "c"]}


@dataclass
class Event:
    id: int
    word: str | None


class Named(NamedTuple):
    id: int | None
    word: str | None


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": 1, "word": "a"}, {"id": 2}, {"word": "c"}],
        [(1, "a"), [2, None], (None, "c")],
        [Event(1, "a"), Named(2, None), {"word": "c", "id": None}],
    ],
)
def test_dicts_tuples_and_dataclasses_are_rows(rows: list[Any]) -> None:
    assert columns(RowsSource(rows, SCHEMA)) == VALUES
    assert columns(RowsSource(iter(rows), pa.schema({"id": pa.int64(), "word": pa.string()}))) == VALUES
    source = RowsSource(rows, Event)
    assert columns(source, request(source, ["word"])) == {"word": VALUES["word"]}
    assert [(part.num_rows, part.columns) for part in parts(source, request(source, []))] == [(3, {})]


def test_a_list_can_be_read_again_and_a_generator_only_once() -> None:
    listed = RowsSource([(1,)], {"a": "int"})
    assert columns(listed) == columns(listed) == {"a": [1]}
    assert not listed.blocking
    source = RowsSource(((n,) for n in range(3)), {"a": "int"}, "gen")
    assert source.blocking
    assert columns(source) == {"a": [0, 1, 2]}
    with pytest.raises(ConnectorError, match="`gen` has been read already: a generator gives its rows only once"):
        columns(source)


def test_an_iterable_that_begins_anew_can_be_read_again() -> None:
    source = RowsSource(_Anew(), {"a": "int"})
    assert columns(source) == columns(source) == {"a": [0, 1]}


class _Anew:
    def __iter__(self) -> Iterator[tuple[int]]:
        return iter([(0,), (1,)])


def test_batches_end_at_the_unit() -> None:
    source = RowsSource([(n,) for n in range(UNIT_ROWS + 1)], {"a": "int"})
    assert [(part.num_rows, part.first_position) for part in parts(source)] == [(UNIT_ROWS, 0), (1, UNIT_ROWS)]


def test_a_generator_gets_no_further_ahead_than_a_unit() -> None:
    given = 0

    def rows() -> Iterator[tuple[int]]:
        nonlocal given
        for number in range(100):
            given += 1
            yield (number,)

    system = SimulatedSystem(seed=1)
    taken = 0
    for split in RowsSource(rows(), {"a": "int"}).splits(
        0, ReadRequest(("a",), frozenset(), system, None, None, lambda: 10)
    ):
        system.scheduler.event().wait(IDLE_SECONDS)
        taken += 0 if isinstance(split, Idle) else sum(part.num_rows for part in split.read())
        assert given <= taken + 10
    assert taken == 100


def waited(waits: list[float]) -> tuple[list[int], float]:
    """The sizes of the batches of a generator that waits so long before each row; and the longest that a row waited."""
    system = SimulatedSystem(seed=1)
    came_at: list[float] = []

    def rows() -> Iterator[tuple[int]]:
        for number, seconds in enumerate(waits):
            system.clock.advance(seconds)
            came_at.append(system.clock.monotonic())
            yield (number,)

    source = RowsSource(rows(), {"a": "int"})
    sizes: list[int] = []
    longest = 0.0
    for split in source.splits(0, ReadRequest(("a",), frozenset(), system)):
        if isinstance(split, Idle):
            system.scheduler.event().wait(IDLE_SECONDS)
            continue
        longest = max(longest, system.clock.monotonic() - came_at[sum(sizes)])
        sizes.append(sum(part.num_rows for part in split.read()))
    return sizes, longest


@pytest.mark.parametrize("wait", [0.0, HOLD_SECONDS / 10])
def test_the_rows_of_a_generator_wait_only_so_long(wait: float) -> None:
    sizes, longest = waited([wait] * 100)
    assert sum(sizes) == 100
    assert len(sizes) <= 40, "what comes within a moment is handed on together"
    assert longest <= 5 * HOLD_SECONDS + wait, "some turns of a simulated machine take so long"


@pytest.mark.parametrize(
    ("rows", "told", "help"),
    [
        ([(1, "a"), (2, 3)], "row 1 (counted from 0): column `word` is string, but here is 3", "got a 'int' object"),
        ([(1, "a"), (2.5, "b")], "row 1 (counted from 0): column `id` is int64, but here is 2.5", "not an integer"),
        ([(1, "a"), (2.0, "b")], "row 1 (counted from 0): column `id` is int64, but here is 2.0", "not an integer"),
        ([(2**63, "a")], f"row 0 (counted from 0): column `id` is int64, but here is {2**63}", "too large"),
        ([(1, "a", 2)], "row 0 (counted from 0): has 3 values, the schema 2: (1, 'a', 2)", "(columns: id, word)"),
        (
            [{"id": 1, "wrod": "a"}],
            "row 0 (counted from 0): has `wrod`, which the schema does not name",
            "`word`? (columns: id, word)",
        ),
        ([{7: 1}], "row 0 (counted from 0): has `7`, which the schema does not name", "(columns: id, word)"),
        ([(1, "a"), 7], "row 1 (counted from 0): is 7", "a row is a dict, a tuple or a dataclass"),
    ],
)
@pytest.mark.parametrize("as_generator", [False, True])
def test_a_row_that_does_not_fit_is_told(rows: list[Any], told: str, help: str, as_generator: bool) -> None:
    source = RowsSource(iter(rows) if as_generator else rows, SCHEMA, "r")
    with pytest.raises(ConnectorError) as error:
        columns(source)
    assert error.value.message == f"`r`, {told}"
    assert help in str(error.value.help)
    assert error.value.code == "DF0502"


def test_the_number_of_a_misfit_counts_all_batches() -> None:
    source = RowsSource([*((n,) for n in range(UNIT_ROWS + 5)), ("x",)], {"a": "int"})
    with pytest.raises(ConnectorError, match=f"row {UNIT_ROWS + 5} "):
        columns(source)


def test_a_dataclass_without_a_field_is_told() -> None:
    @dataclass
    class Other:
        id: int

    with pytest.raises(ConnectorError, match=r"\(Other\) has no `word`"):
        columns(RowsSource([Other(1)], SCHEMA))


def test_a_time_is_no_date() -> None:
    with pytest.raises(ConnectorError, match="column `d` is date"):
        columns(RowsSource([(dt.datetime(2020, 1, 1, 5),)], {"d": "date"}))


def test_the_schema_of_a_list_is_inferred() -> None:
    def inferred(rows: list[Any]) -> dict[str, str]:
        return {f.name: str(f.type) for f in RowsSource(rows).schema(SYSTEM)}

    assert inferred([Event(1, None)]) == {"id": "int64", "word": "string"}
    assert inferred([{"a": 1}, {"b": 2.5, "a": None}, {"c": None}]) == {"a": "int64", "b": "double", "c": "string"}
    assert inferred([Named(1, "x")]) == {"id": "int64", "word": "string"}
    times = {"x": dt.date(2020, 1, 1), "y": dt.datetime(2020, 1, 1)}
    assert inferred([times]) == {"x": "date32[day]", "y": "timestamp[us]"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "an empty list needs a schema"),
        (iter([{"a": 1}]), "a generator needs a schema"),
        ([(1, 2)], "rows without names needs a schema"),
        ([{"a": 1}, {"a": "x"}], "column `a`: its values have no common type"),
        ("text", "needs an iterable of rows, got str"),
        ({"a": [1]}, "needs an iterable of rows, got dict"),
        (SimpleNamespace(), "needs an iterable of rows, got SimpleNamespace"),
    ],
)
def test_rows_that_need_a_schema_say_so(rows: Any, told: str) -> None:
    with pytest.raises(TypeMismatchError, match=told):
        RowsSource(rows)


def test_a_generator_that_goes_on_says_that_it_cannot_begin_anew(capsys: pytest.CaptureFixture[str]) -> None:
    def read(position: int | None) -> str:
        source = RowsSource(((n,) for n in range(3)), {"a": "int"}, "gen")
        asked = request(source)
        for split in source.splits(0, asked, position):
            asked.system.scheduler.sleep(IDLE_SECONDS if isinstance(split, Idle) else 0.0)
        return capsys.readouterr().err

    assert read(None) == ""
    assert "`gen` is a generator, and 5 rows of it were read before" in read(5)

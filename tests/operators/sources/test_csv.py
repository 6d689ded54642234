"""CSV: any cut into blocks gives the same rows, and what does not fit is told with file, line and column."""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.errors import ConnectorError, DataflowError, NameNotFoundError, PlanError, TypeMismatchError
from dataflow.kernels.csv import pair_quotes
from dataflow.operators.sources.csv import CsvSource
from dataflow.operators.sources.csv_blocks import PLAIN_QUOTES_MAX, last_row_end, quoted_spans, row_bounds
from dataflow.system import SimulatedSystem
from tests.operators.sources.reading import SYSTEM, columns, parts, request, rows, rows_by_threads

TRICKY = (
    b'\xef\xbb\xbf"n","text"\r\n1,"a\nb"\r\n2,"say ""hi"", twice"\r\n\r\n3,plain\r\n4,"","odd"\n5,in"ches\r\n'
    b'6,"""\n"""\n7,"x"y"z"\n8,\n9,"\r\n"\n\n10,last'
).replace(b',"","odd"', b',""')
TRICKY_ROWS = [
    (1, "a\nb"),
    (2, 'say "hi", twice'),
    (3, "plain"),
    (4, ""),
    (5, 'in"ches'),
    (6, '"\n"'),
    (7, 'xy"z"'),
    (8, None),
    (9, "\r\n"),
    (10, "last"),
]


def write(folder: Path, content: str | bytes, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(source: CsvSource) -> ConnectorError:
    with pytest.raises(ConnectorError) as raised:
        columns(source)
    return raised.value


# ── blocks ──


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 7, 11, 16, 29, 64, 1000])
def test_any_block_size_gives_the_same_rows(tmp_path: Path, block_bytes: int) -> None:
    source = CsvSource(write(tmp_path, TRICKY), block_bytes=block_bytes)
    assert rows(source) == TRICKY_ROWS
    assert source.schema(SYSTEM) == pa.schema({"n": pa.int64(), "text": pa.string()})
    assert len(parts(source)) == 1 or block_bytes < 100


def test_small_blocks_are_many_parts(tmp_path: Path) -> None:
    source = CsvSource(write(tmp_path, "a\n" + "1\n" * 100), block_bytes=1)
    assert [part.num_rows for part in parts(source)] == [1] * 100
    assert [part.first_position for part in parts(source)] == list(range(2, 202, 2))


def test_positions_go_on_over_files(tmp_path: Path) -> None:
    for name in ("1.csv", "2.csv", "3.csv"):
        write(tmp_path, "a\n1" if name != "2.csv" else "", name)
    source = CsvSource(tmp_path / "*.csv")
    assert [part.first_position for part in parts(source)] == [2, 5]


SPAN_CHARS = st.sampled_from([b'"', b",", b"\n", b"\r", b"a", b'""', b'"\n'])


@settings(max_examples=500)
@given(st.lists(SPAN_CHARS, max_size=40).map(b"".join))
def test_the_ends_of_rows_are_those_that_reading_char_by_char_finds(text: bytes) -> None:
    ends, opened = row_ends_by_char(text)
    assert last_row_end(text, ord(",")) == (
        max(end for end in ends if text[end - 1] == 10) if b"\n" in ends_of(text, ends) else 0
    )
    starts, found = row_bounds(text, ord(","))
    # A lone \r at the very end may be half of a \r\n: it ends nothing yet.
    assert [int(end) for end in found] == [
        end
        for start, end in zip([0, *ends], ends, strict=False)
        if text[start:end].strip(b"\r\n") or text[start:end] not in (b"\n", b"\r", b"\r\n")
    ]
    assert len(starts) == len(found)
    opens, closes = quoted_spans(text, ord(","))
    assert len(opens) - len(closes) == opened


@settings(max_examples=200, deadline=None)  # the first one compiles
@given(st.lists(SPAN_CHARS, max_size=40).map(b"".join))
def test_compiled_and_plain_walks_pair_the_same_quotes(text: bytes) -> None:
    codes = np.frombuffer(text, np.uint8)
    places = np.flatnonzero(codes == ord('"'))
    may_open = np.array([at == 0 or text[at - 1] in b",\n\r" for at in places.tolist()], np.bool_)
    found = []
    for walk in (pair_quotes, pair_quotes.function):
        opens, closes = np.zeros(len(places), np.int64), np.zeros(len(places), np.int64)
        found.append((walk(places, may_open, opens, closes), opens.tolist(), closes.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("block_bytes", [100_000, 1 << 20])
def test_many_quotes_inside_of_plain_fields_are_read(tmp_path: Path, block_bytes: int) -> None:
    texts = ['5" pipe', "no", 'a "b"\nc', '"', "1,2"]  # a quote in a plain field, and in quoted ones
    line = ",".join(['5" pipe', "no", '"a ""b""\nc"', '""""', '"1,2"']) + "\n"
    count = 6_000
    assert line.count('"') * count > 2 * PLAIN_QUOTES_MAX
    path = tmp_path / "pipes.csv"
    path.write_text(line * count)
    assert rows(CsvSource(path, header=False, block_bytes=block_bytes)) == [tuple(texts)] * count


def ends_of(text: bytes, ends: Sequence[int]) -> bytes:
    return bytes(text[end - 1] for end in ends)


def row_ends_by_char(text: bytes) -> tuple[list[int], int]:
    """Where rows end, by the rules of Arrow's parser, one character after the other; and whether a quote is open."""
    ends, at, inside, field_start = [], 0, False, True
    while at < len(text):
        char = text[at : at + 1]
        if inside:
            if char == b'"' and text[at + 1 : at + 2] == b'"':
                at += 1
            elif char == b'"':
                inside = False
        elif char == b'"' and field_start:
            inside, field_start = True, False
        elif char == b"\n" or (char == b"\r" and text[at + 1 : at + 2] not in (b"\n", b"")):
            ends.append(at + 1)
            field_start = True
        else:
            field_start = char in (b",", b"\r")
        at += 1
    return ends, int(inside)


FIELD = st.text(alphabet=st.sampled_from('ab",;\n\r é\t1'), max_size=6)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=12),
    end=st.sampled_from(["\n", "\r\n"]),
    block_bytes=st.integers(1, 40),
    delimiter=st.sampled_from(",;\t"),
    all_quoted=st.booleans(),
)
def test_what_pythons_writer_wrote_is_read_back(
    tmp_path: Path, table: list[tuple[str, str, str]], end: str, block_bytes: int, delimiter: str, all_quoted: bool
) -> None:
    text = io.StringIO(newline="")
    lone = any("\r" in field for row in table for field in row)  # some Pythons leave it without quotes
    writer = csv.writer(
        text,
        delimiter=delimiter,
        lineterminator=end,
        quoting=csv.QUOTE_ALL if all_quoted or lone else csv.QUOTE_MINIMAL,
    )
    writer.writerows([("a", "b", "c"), *table])
    source = CsvSource(
        write(tmp_path, text.getvalue()),
        schema=dict.fromkeys("abc", "string"),
        delimiter=delimiter,
        block_bytes=block_bytes,
        null_values=(),
    )
    assert rows(source) == table


def test_two_threads_read_the_same_rows(tmp_path: Path) -> None:
    table = [(n, f"text {n}\nmore" if n % 7 == 0 else f"t{n % 5}", n / 8) for n in range(5000)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("n", "t", "x"), *table])
    source = CsvSource(write(tmp_path, text.getvalue()), block_bytes=1000)
    for dictionary in ((), ("t",)):
        assert rows_by_threads(source, request(source, dictionary=dictionary)) == table


def test_a_quote_that_never_closes_is_an_error_at_its_line(tmp_path: Path) -> None:
    source = CsvSource(write(tmp_path, 'a,b\n1,x\n2,"y\n3,z\n'), schema={"a": "int", "b": "string"}, block_bytes=4)
    error = error_of(source)
    assert error.message.endswith("x.csv, line 3: a quote opens here and is never closed")
    assert error.code == "DF0502"


# ── heads and empty files ──


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_file_has_no_rows_if_the_schema_is_given(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert columns(CsvSource(path, schema={"a": "int"})) == {"a": []}
    assert columns(CsvSource(path, schema={"a": "int"}, header=False)) == {"a": []}
    with pytest.raises(ConnectorError, match="empty: there are no columns"):
        CsvSource(path).schema(SYSTEM)


@pytest.mark.parametrize("text", ["a,b", "a,b\r\n", "\n\r\na,b\n\n\n"])
def test_a_header_alone_gives_columns_and_no_rows(tmp_path: Path, text: str) -> None:
    assert columns(CsvSource(write(tmp_path, text))) == {"a": [], "b": []}


def test_without_a_header_the_schema_names_the_columns_or_they_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path, "1,x\n2,y\n")
    assert columns(CsvSource(path, header=False)) == {"column_1": [1, 2], "column_2": ["x", "y"]}
    assert columns(CsvSource(path, header=False, schema={"column_1": "float"}))["column_1"] == [1.0, 2.0]
    assert columns(CsvSource(path, header=False, schema={"n": "int", "t": "str"})) == {"n": [1, 2], "t": ["x", "y"]}
    with pytest.raises(ConnectorError, match=r"the schema has 1 columns, but the first row of .* has 2"):
        CsvSource(path, header=False, schema={"n": "int"}).schema(SYSTEM)


def test_headers_may_hold_quotes_and_line_ends(tmp_path: Path) -> None:
    source = CsvSource(write(tmp_path, '"a ""b""","c\nd"\n1,2\n'))
    assert columns(source) == {'a "b"': [1], "c\nd": [2]}


def test_a_name_twice_in_a_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NameNotFoundError, match="two columns `a`"):
        CsvSource(write(tmp_path, "a,b,a\n1,2,3\n")).schema(SYSTEM)


def test_files_must_have_the_same_header(tmp_path: Path) -> None:
    write(tmp_path, "a,b\n1,2\n", "1.csv")
    write(tmp_path, "a,c\n1,2\n", "2.csv")
    with pytest.raises(ConnectorError, match=r"2.csv differs from the first file's: column 2 is `c` instead of `b`"):
        CsvSource(tmp_path / "*.csv").schema(SYSTEM)
    write(tmp_path, "a\n1\n", "2.csv")
    with pytest.raises(ConnectorError, match="column 2 is nothing instead of `b`"):
        CsvSource(tmp_path / "*.csv").schema(SYSTEM)


def test_a_file_that_comes_between_planning_and_running_is_read_with_the_planned_types(tmp_path: Path) -> None:
    write(tmp_path, "a\n1\n", "1.csv")
    source = CsvSource(tmp_path / "*.csv")
    source.schema(SYSTEM)
    write(tmp_path, "a\n2\n", "2.csv")
    assert columns(source) == {"a": [1, 2]}
    write(tmp_path, "b\n2\n", "2.csv")
    assert "2.csv differs" in error_of(source).message


# ── types ──


def inferred(tmp_path: Path, *values: str) -> str:
    return str(
        CsvSource(write(tmp_path, "\n".join(["a,b", *(f"{one},1" for one in values)]))).schema(SYSTEM).field(0).type
    )


@pytest.mark.parametrize(
    ("values", "type"),
    [
        (("1", "", "-3"), "int64"),
        (("1", "2.5"), "double"),
        (("1e5", "nan", "-inf"), "double"),
        (("true", "FALSE"), "bool"),
        (("2013-01-01", "1969-12-31"), "date32[day]"),
        (("2013-01-01 05:00:00", "2013-01-01T05:00"), "timestamp[us]"),
        (("2013-01-01 05:00:00.123456", "2013-01-01T05:00:00.1"), "timestamp[us]"),
        (("2013-01-01T05:00:00.1234567",), "timestamp[ns]"),
        (("2013-01-01T05:00:00Z", "2013-01-01T05:00:00+02:00"), "timestamp[us, tz=UTC]"),
        (("1500-01-01 00:00:00.5", "2013-01-01T05:00:00"), "timestamp[us]"),
        (("", "9999-12-31T23:59:59Z"), "timestamp[us, tz=UTC]"),
        (("1500-01-01 00:00:00", "x"), "string"),
        (("10:20:30",), "string"),
        (("", ""), "string"),
        (("x", "1"), "string"),
        (("12345678901234567890", "1"), "string"),
        (("18446744073709551616", "1"), "double"),
    ],
)
def test_types_are_inferred(tmp_path: Path, values: tuple[str, ...], type: str) -> None:
    assert inferred(tmp_path, *values) == type


def test_the_schema_may_leave_columns_out_and_wins_where_it_does_not(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,c\n1,2,3\n")
    source = CsvSource(path, schema={"b": "string"})
    assert columns(source) == {"a": [1], "b": ["2"], "c": [3]}
    with pytest.raises(NameNotFoundError, match="no column `bb`") as error:
        CsvSource(path, schema={"bb": "string"}).schema(SYSTEM)
    assert "did you mean `b`?" in str(error.value)


def test_many_types_can_be_given(tmp_path: Path) -> None:
    types = {"d": "decimal(10, 2)", "t": "timestamp[ms, Europe/Berlin]", "b": "bytes", "u": "uint8", "f": "float32"}
    source = CsvSource(
        write(tmp_path, "d,t,b,u,f\n1.25,2020-01-01T00:00:00Z,\xff,255,0.5\n".encode("latin-1")), schema=types
    )
    found = rows(source)[0]
    assert [str(one) for one in (found[0], found[1].astimezone(dt.UTC))] == ["1.25", "2020-01-01 00:00:00+00:00"]
    assert found[2:] == (b"\xff", 255, 0.5)


def test_types_that_no_text_has_are_refused_when_built(tmp_path: Path) -> None:
    with pytest.raises(TypeMismatchError, match=r"column `a`: list\[int64\] cannot be read from CSV"):
        CsvSource("x.csv", schema={"a": "list[int]"})


def test_null_values_stand_for_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\nNA,NA\n1,x\n,\n")
    assert columns(CsvSource(path, null_values=("NA", ""))) == {"a": [None, 1, None], "b": [None, "x", None]}
    assert columns(CsvSource(path, null_values=("NA",), schema={"a": "string"})) == {
        "a": [None, "1", ""],
        "b": [None, "x", ""],
    }


def test_texts_in_quotes_are_never_null_and_other_values_may_be(tmp_path: Path) -> None:
    path = write(tmp_path, 'a,n,b,t\n"",1,,""\n"NA","",x,2020-01-01\nNA,"NA","",\n"x",3,NA,NA\n')
    expected = {
        "a": ["", "NA", None, "x"],
        "n": [1, None, None, 3],
        "b": [None, "x", "", None],
        "t": [None, dt.date(2020, 1, 1), None, None],
    }
    nulls = ("", "NA")
    assert columns(CsvSource(path, null_values=nulls)) == expected
    assert columns(CsvSource(path, null_values=nulls, columns=["n", "a"])) == {one: expected[one] for one in ("n", "a")}
    assert columns(CsvSource(path, null_values=nulls, encoding="latin-1", block_bytes=1)) == expected
    assert columns(CsvSource(path, null_values=nulls, schema={"a": "large_string"}))["a"] == expected["a"]


def test_a_column_of_empty_texts_is_text(tmp_path: Path) -> None:
    source = CsvSource(write(tmp_path, 'a,b\n"",\n"",""\n'))
    assert source.schema(SYSTEM).types == [pa.string(), pa.string()]
    assert columns(source) == {"a": ["", ""], "b": [None, ""]}


def test_types_come_from_the_first_ten_thousand_rows_of_all_files(tmp_path: Path) -> None:
    write(tmp_path, "a\n" + "1\n" * 9_000, "1.csv")
    write(tmp_path, "a\n" + "\n\n1\n" * 999 + "1.5\n", "2.csv")
    assert CsvSource(tmp_path / "*.csv").schema(SYSTEM).field("a").type == pa.float64()
    write(tmp_path, "a\n" + "1\n" * 9_001, "1.csv")
    assert CsvSource(tmp_path / "*.csv").schema(SYSTEM).field("a").type == pa.int64()


def test_other_encodings_are_read(tmp_path: Path) -> None:
    text = 'näme,b\nÄ"€,"é\nü"\n'
    source = CsvSource(write(tmp_path, text.encode("cp1252")), encoding="cp1252", block_bytes=3)
    assert columns(source) == {"näme": ['Ä"€'], "b": ["é\nü"]}


# ── push-down ──


def test_only_the_wanted_columns_are_decoded(tmp_path: Path) -> None:
    source = CsvSource(write(tmp_path, "a,b,c\n1,2,x\n3,oops,y\n"), schema={"a": "int", "b": "int", "c": "string"})
    assert columns(source, request(source, ["c", "a"])) == {"c": ["x", "y"], "a": [1, 3]}
    assert [(part.num_rows, part.columns) for part in parts(source, request(source, []))] == [(2, {})]
    assert "`b`" in error_of(source).message


def test_text_may_stay_a_dictionary(tmp_path: Path) -> None:
    source = CsvSource(write(tmp_path, "a,b\n1,x\n2,y\n3,x\n4,\n"))
    (part,) = parts(source, request(source, dictionary=["a", "b"]))
    assert part.columns["a"].type == pa.int64()
    assert part.columns["b"].type == pa.dictionary(pa.int32(), pa.string())
    assert part.columns["b"].to_pylist() == ["x", "y", "x", None]


def test_columns_of_the_reader_are_its_schema(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,c\n1,2,3\n")
    assert columns(CsvSource(path, columns=["c", "a"])) == {"c": [3], "a": [1]}
    with pytest.raises(NameNotFoundError, match="no column `d`"):
        CsvSource(path, columns=["d"]).schema(SYSTEM)


# ── errors ──


def many_rows_and(*odd: str, quoted: bool = False) -> str:
    last = '"many\nlines"' if quoted else "text"
    return "n,text\n" + "".join(f"{n},{last}\n" for n in range(10_000)) + "\n".join(odd) + "\n5,end\n"


@pytest.mark.parametrize("block_bytes", [100, 1 << 22])
def test_a_value_beyond_the_inferred_type_is_told_with_line_column_and_fix(tmp_path: Path, block_bytes: int) -> None:
    path = write(tmp_path, many_rows_and("7,x", "7.5,y"))
    error = error_of(CsvSource(path, block_bytes=block_bytes))
    assert error.code == "DF0502"
    assert error.message == f"{path}, line 10003: column `n` is int64 (so are the first 10,000 rows), but here is '7.5'"
    assert error.help == 'give its type: schema={"n": "float64"}'


def test_lines_are_counted_in_the_file_with_quotes_and_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, many_rows_and("7,x", "", "\r", "NA,y", quoted=True))
    error = error_of(CsvSource(path))
    assert error.message.startswith(f"{path}, line 20005: column `n` is int64")
    assert (
        error.help
        == "give its type: schema={\"n\": \"string\"}; or, if 'NA' stands for no value: null_values=('', 'NA')"
    )


@pytest.mark.parametrize(
    ("given", "value", "better"),
    [
        ("timestamp[us]", "2024-01-01T00:00:00.123456789", "timestamp[ns]"),
        ("timestamp[ns]", "1600-01-01T00:00:00", "timestamp[us]"),
        ("timestamp[s]", "2024-01-01T00:00:00.5", "timestamp[us]"),
        ("date", "2024-01-01T00:00:00.5", "timestamp[us]"),
        ("timestamp[us]", "2024-01-01T00:00:00Z", "timestamp[us, UTC]"),
        ("timestamp[us, Europe/Berlin]", "2024-01-01T00:00:00", "string"),
        ("timestamp[us]", "31/12/2024", "string"),
        ("int8", "300", "int64"),
        ("int64", "12345678901234567890", "float64"),
    ],
)
def test_a_type_that_would_do_is_told(tmp_path: Path, given: str, value: str, better: str) -> None:
    (tmp_path / "x.csv").write_text(f"a\n{value}\n")
    with pytest.raises(ConnectorError, match=r"x\.csv, line 2: column `a` is ") as caught:
        columns(CsvSource(tmp_path / "x.csv", schema={"a": given}))
    assert f'schema={{"a": "{better}"}}' in (caught.value.help or "")


def test_a_given_type_is_not_called_inferred(tmp_path: Path) -> None:
    error = error_of(CsvSource(write(tmp_path, "a,b\n2020-01-01,1\n2020-02-30,2\n"), schema={"a": "date"}))
    assert error.message.endswith("x.csv, line 3: column `a` is date, but here is '2020-02-30'")


@pytest.mark.parametrize(
    ("row", "told"),
    [("3", "1 field where the header has 2: '3'"), ("3,4,5", "3 fields where the header has 2: '3,4,5'")],
)
def test_a_ragged_row_is_told_with_what_was_expected(tmp_path: Path, row: str, told: str) -> None:
    error = error_of(CsvSource(write(tmp_path, f"a,b\n1,2\n{row}\n5,x\n"), block_bytes=9))
    assert error.message.endswith(f"x.csv, line 3: {told}")
    assert error.code == "DF0502"


def test_a_ragged_row_without_a_header(tmp_path: Path) -> None:
    assert (
        "3 fields where the first row has 2"
        in error_of(CsvSource(write(tmp_path, "1,2\n1,2,3\n"), header=False)).message
    )


@pytest.mark.parametrize("dictionary", [(), ("b",)])
def test_bytes_that_are_no_text_are_told(tmp_path: Path, dictionary: tuple[str, ...]) -> None:
    source = CsvSource(write(tmp_path, b"a,b\n1,ok\n2,caf\xe9\n"))
    with pytest.raises(ConnectorError, match=r"line 3: column `b` is not text in UTF-8: b'caf\\xe9'") as error:
        columns(source, request(source, dictionary=dictionary))
    assert error.value.help == 'say which encoding the file has: encoding="cp1252"'


def test_bytes_that_another_encoding_does_not_have_are_told(tmp_path: Path) -> None:
    error = error_of(CsvSource(write(tmp_path, b"a,b\n1,ok\n2,x\x81\n"), encoding="cp1252"))
    assert error.message.endswith("x.csv, line 3: the row is not text in cp1252: b'2,x\\x81\\n'")


def test_the_first_bad_row_is_told_whatever_its_column(tmp_path: Path) -> None:
    types = {"a": "int", "b": "int"}
    error = error_of(CsvSource(write(tmp_path, "a,b\n1,2\n1,x\ny,2\n1\n"), schema=types))
    assert error.message.endswith("x.csv, line 3: column `b` is int64, but here is 'x'")


def test_compressed_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path, b"\x1f\x8b", "x.csv.gz")
    with pytest.raises(ConnectorError, match="compressed, which cannot be read yet") as error:
        CsvSource(path).schema(SYSTEM)
    assert f"gunzip -k {path}" in str(error.value.help)


def test_utf16_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path, "a\n1\n".encode("utf-16"))
    with pytest.raises(ConnectorError, match="is UTF-16"):
        CsvSource(path).schema(SYSTEM)
    with pytest.raises(TypeMismatchError, match="line ends are not those of ASCII"):
        CsvSource(path, encoding="utf-16")


@pytest.mark.parametrize(
    "options",
    [{"delimiter": ""}, {"delimiter": '"'}, {"delimiter": "é"}, {"encoding": "utf-9"}, {"null_values": [None]}],
)
def test_wrong_options_fail_when_built(options: dict[str, Any]) -> None:
    with pytest.raises(TypeMismatchError):
        CsvSource("x.csv", **options)
    with pytest.raises(DataflowError, match="not there yet"):
        CsvSource("x.csv", on_error="dead_letter")


# ── the rest ──


def test_the_identity_tells_options_apart_and_not_contents(tmp_path: Path) -> None:
    path = write(tmp_path, "a\n1\n")
    assert CsvSource(path).identity() == CsvSource(str(path)).identity()
    options: list[dict[str, Any]] = [
        {},
        {"delimiter": ";"},
        {"header": False},
        {"null_values": ()},
    ]
    found = {CsvSource(path, **one).identity() for one in options}
    write(tmp_path, "a\n2\n")
    assert len(found | {CsvSource(path, schema={"a": "int"}).identity()}) == 4


def test_a_simulated_disk_is_read_too() -> None:
    system = SimulatedSystem(seed=1)
    system.disk.write_bytes("/x.csv", b"a,b\n1,2\n")
    source = CsvSource("/x.csv")
    assert columns(source, request(source, system=system)) == {"a": [1], "b": [2]}


def test_blocks_are_slices_of_the_mapped_file(tmp_path: Path) -> None:
    """Nothing is copied before it is decoded, however large the file."""
    source = CsvSource(write(tmp_path, "a\n" + "1\n" * 1000), block_bytes=100)
    splits = list(source.splits(0, request(source)))
    buffers = {id(split.file.buffer) for split in splits}
    assert len(splits) > 10
    assert len(buffers) == 1
    assert np.shares_memory(splits[0].file.content, splits[-1].file.content)


def test_a_row_may_be_mended_if_the_rows_that_were_read_are_before_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    lines = [b"a,b\n", *(b'"%d\n",%d\n' % (number, number) for number in range(10, 60))]
    path.write_bytes(b"".join(lines))
    source = CsvSource(path)
    asked = request(source, ["b"])
    (block,) = source.splits(0, asked)
    position = block.position(20)

    def changed(number: int) -> list[Any]:
        path.write_bytes(b"".join([*lines[:number], b'"mended\n",7\n', *lines[number + 1 :]]))
        on = CsvSource(path).splits(0, asked, position)
        return [n for split in on for part in split.read() for n in part.columns["b"].to_pylist()]

    with pytest.raises(PlanError, match="DF0407"):
        changed(20)
    assert changed(21)[:2] == [7, 31]

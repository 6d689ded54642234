"""`dataflow log ls | cat | verify`: what is in a store, and whether it is as it was written.

A terminal gets a table; a pipe gets CSV, so that the next program can read it; `--json` gives JSON lines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

import dataflow
from dataflow.errors import ProgramError, StoreError
from dataflow.schema import is_bytes_type, is_text_type, shown_values

if TYPE_CHECKING:
    from dataflow.cli import Commands
    from dataflow.state.verify import Finding, Report

FORMATS = ("table", "csv", "jsonl")
TABLE_WIDTH_MAX = 10_000
EXIT_DAMAGED = 1


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("log", help="look into a store")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    ls = actions.add_parser("ls", help="list the topics")
    ls.set_defaults(command=list_topics)
    cat = actions.add_parser("cat", help="print the rows of a topic")
    cat.add_argument("topic", metavar="TOPIC")
    cat.add_argument("--limit", type=_limit, metavar="N", help="the first N rows only")
    cat.set_defaults(command=cat_topic)
    verify = actions.add_parser("verify", help="check every byte that was committed; changes nothing")
    verify.set_defaults(command=verify_store)
    verify.add_argument("--json", action="store_true", help="one JSON object with all that was found")
    for action in (ls, cat, verify):
        action.add_argument(
            "--store", type=Path, metavar="DIR", help="the store (default: the current folder, if it is one)"
        )
    for action in (ls, cat):
        action.add_argument("--format", choices=FORMATS, help="default: table on a terminal, csv into a pipe")
        action.add_argument(
            "--json", action="store_const", const="jsonl", dest="format", help="short for --format jsonl"
        )


def list_topics(arguments: argparse.Namespace) -> int:
    with _store(arguments.store) as store:
        topics = store.topics()
    listed = pa.table(
        {
            "topic": pa.array([topic.name for topic in topics], pa.string()),
            "rows": pa.array([topic.rows for topic in topics], pa.int64()),
            "bytes": pa.array([topic.bytes for topic in topics], pa.int64()),
            "partitions": pa.array([topic.partitions for topic in topics], pa.int64()),
        }
    )
    _write(listed, arguments.format)
    return 0


def cat_topic(arguments: argparse.Namespace) -> int:
    with _store(arguments.store) as store:
        # Of several partitions each gives so many rows at most; the cut below is the limit.
        rows = store.read(arguments.topic, until=arguments.limit)
        _write(rows if arguments.limit is None else rows.slice(0, arguments.limit), arguments.format)
    return 0


def verify_store(arguments: argparse.Namespace) -> int:
    """Also while a writer runs: what it has not committed yet is not looked at."""
    from dataflow.state.verify import verify

    path = arguments.store or Path()
    _check_is_store(path)
    report = verify(path)
    if arguments.json:
        print(json.dumps({"ok": report.ok} | dataclasses.asdict(report)))
    else:
        totals = {name: value for name, value in dataclasses.asdict(report).items() if name != "findings"}
        _write_table(pa.table({name: pa.array([value], pa.int64()) for name, value in totals.items()}))
        for finding in report.findings:
            print(_told(finding))
        print(_verdict(report))
    return 0 if report.ok else EXIT_DAMAGED


def _told(finding: Finding) -> str:
    """What, where, and what to do."""
    names = ("position", "topic", "partition", "offset", "epoch")
    places = [f"{name} {value}" for name in names if (value := getattr(finding, name)) is not None]
    at = f"\n --> {', '.join(places)}" if places else ""
    return _printable(f"{finding.kind}: {finding.file}: {finding.what}{at}\n = help: {_advice(finding)}")


def _advice(finding: Finding) -> str:
    if finding.kind == "warning":
        return "no committed row is touched by it; mend it, or leave it"
    if finding.file.startswith("topics/"):
        return "readers refuse these rows; restore the file from a copy, or write the topic anew in another store"
    if finding.file.startswith("snapshots/"):
        return "the pipeline cannot go on from here; restore the file from a copy, or start over in another store"
    return "the catalog alone knows what was committed; restore the whole store from a copy"


def _verdict(report: Report) -> str:
    damaged = sum(finding.kind == "damage" for finding in report.findings)
    warnings = len(report.findings) - damaged
    if not report.findings:
        return "the store is as it was written"
    said = f"{damaged} damaged, " if damaged else "nothing is damaged, "
    return f"{said}{warnings} warning{'' if warnings == 1 else 's'}; nothing was changed"


def _printable(text: str) -> str:
    """Names of a store that is not trusted must not reach the terminal as commands."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def _limit(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def _store(path: Path | None) -> dataflow.Store:
    """An existing store; a folder that is none is wrong use, not a damaged store."""
    _check_is_store(path or Path())
    try:
        store = dataflow.Store(path or Path())
    except StoreError as error:
        raise ProgramError(error.message, code=error.code, help=error.help) from None
    if not store.exists:
        raise _no_store(store.path)
    return store


def _check_is_store(path: Path) -> None:
    """Without its catalog it is a damaged store; a folder without topics either is none."""
    if not _names(path) & {"catalog.db", "topics"}:
        raise _no_store(path)


def _names(path: Path) -> set[str]:
    """What a folder holds; nothing when it is none."""
    try:
        return {entry.name for entry in path.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be looked into ({error.strerror}); nothing was changed",
            code="DF0604",
            help="is it another user's? ask for the permission to read it",
        ) from None


def _no_store(path: object) -> ProgramError:
    return ProgramError(
        f"there is no store at {path}",
        code="DF0222",
        help="give --store DIR, the folder that `dataflow run --store DIR` wrote",
    )


def _write(rows: pa.Table, format: str | None) -> None:
    """Print the rows in a format of FORMATS."""
    match format or ("table" if sys.stdout.isatty() else "csv"):
        case "table":
            _write_table(rows)
        case "csv":
            _write_csv(rows)
        case "jsonl":
            for line in json_lines(rows):
                print(line)


def _write_table(rows: pa.Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for field in rows.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        table.add_column(escape(field.name), justify="right" if number else "left", no_wrap=True)
    for values in zip(*(_texts(column) for column in rows.columns), strict=True):
        table.add_row(*map(escape, values))
    # A pipe has no width to fit into; a table takes no more than it needs.
    width = None if sys.stdout.isatty() else TABLE_WIDTH_MAX
    Console(file=sys.stdout, width=width).print(table)


def _texts(column: pa.ChunkedArray) -> list[str]:
    """The values as people read them."""
    if pa.types.is_timestamp(column.type):
        # Arrow writes what a `datetime` cannot hold (years beyond 9999); whole seconds need no fraction.
        texts = column.cast(pa.string()).to_pylist()
        whole = all(text is None or text.rstrip("Z").endswith(".000000") for text in texts)
        return ["" if text is None else text.replace(".000000", "") if whole else text for text in texts]
    if pa.types.is_floating(column.type):
        return ["" if value is None else f"{value:.6g}" for value in column.to_pylist()]
    return ["" if value is None else str(value) for value in shown_values(column)]


def _write_csv(rows: pa.Table) -> None:
    from pyarrow import csv

    columns = [_csv_column(column) for column in rows.columns]
    sys.stdout.flush()
    csv.write_csv(pa.table(columns, names=rows.schema.names), sys.stdout.buffer)


def _csv_column(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """A column as CSV can hold it: what is nested is written as JSON, bytes in hexadecimal as there."""
    kind = column.type
    if pa.types.is_nested(kind):
        texts = [None if value is None else json.dumps(_jsonable(value, kind)) for value in shown_values(column)]
    elif _lacks_csv(kind) or (is_text_type(kind) and not _is_utf8(column)):
        told = [_jsonable(value, kind) for value in shown_values(column)]
        texts = [None if value is None else str(value) for value in told]
    else:
        return column
    return pa.array(texts, pa.string())


def _lacks_csv(kind: pa.DataType) -> bool:
    """Whether Arrow's CSV has no way to write the type, or fails at some of its values."""
    t = pa.types
    return is_bytes_type(kind) or t.is_duration(kind) or t.is_interval(kind) or t.is_string_view(kind)


def _is_utf8(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def json_lines(rows: pa.Table) -> Iterator[str]:
    """A JSON object for each row; times as ISO 8601, what JSON lacks (NaN, infinity, bytes) as text."""
    for batch in rows.to_batches():
        columns = [_json_column(column) for column in batch.columns]
        for values in zip(*columns, strict=True):
            yield json.dumps(dict(zip(rows.schema.names, values, strict=True)), ensure_ascii=False)


def _json_column(column: pa.Array) -> list[object]:
    if pa.types.is_timestamp(column.type):
        # Through Arrow's text, since a `datetime` ends with the year 9999.
        return [None if text is None else text.replace(" ", "T", 1) for text in column.cast(pa.string()).to_pylist()]
    return [_jsonable(value, column.type) for value in shown_values(column)]


def _jsonable(value: object, kind: pa.DataType) -> object:
    """A value of a type of Arrow's as JSON can hold it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return value.hex()
        case Decimal():
            return str(value)
        case list() if pa.types.is_map(kind):
            return _map([(_jsonable(key, kind.key_type), _jsonable(one, kind.item_type)) for key, one in value], kind)
        case list():
            return [_jsonable(one, kind.value_type) for one in value]
        case dict():
            return {str(name): _jsonable(one, kind.field(name).type) for name, one in value.items()}
        case _:
            return str(value)


def _map(pairs: Sequence[tuple[object, object]], kind: pa.DataType) -> object:
    """An object where that says the same: the keys of JSON are texts, and each should be there once."""
    named = {str(key): value for key, value in pairs}
    return named if is_text_type(kind.key_type) and len(named) == len(pairs) else pairs

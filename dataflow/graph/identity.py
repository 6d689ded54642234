"""What a program is to its store: the same one as before, one that may go on from there, or another.

A hash tells it; beside it stands what its steps were, so that a refusal can say which of them has changed. The hard
part is to leave out what may change: steps that keep nothing, names of variables, line numbers.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypedDict

import pyarrow as pa
import xxhash

from dataflow.errors import DataflowError
from dataflow.graph.nodes import Node, in_order
from dataflow.operators.base import SinkSpec, SourceSpec


class KeptStep(TypedDict):
    """A step that keeps something, as the store remembers it (FORMAT.md section 7)."""

    does: str
    columns: dict[str, str]
    """Those it reads (a source: gives), with their types."""
    paths: list[str]
    """Of a sink that writes a file, a directory or another store: where that is, absolute, and seen from the store. It
    is the same one where either is the same: a store may be moved together with its targets, or alone."""
    hash: str


def graph_hash(sinks: Iterable[Node]) -> str:
    """Equal for equal graphs in any process: what the steps do and how they hang together, not where they stand."""
    nodes = in_order(sinks)
    numbers = {id(node): number for number, node in enumerate(nodes)}
    told = [
        [_identity(node), node.given_name, [[numbers[id(one.node)], one.name] for one in node.inputs]] for node in nodes
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(told, default=str).encode())


def kept_steps(sinks: Iterable[Node], store: str | None) -> dict[str, KeptStep]:
    """The steps that keep something from one run to the next in a store (its path), by verb and name (numbered, where
    several share both)."""
    steps: dict[str, KeptStep] = {}
    times: Counter[str] = Counter()
    for node in in_order(sinks):
        if node.is_stateful or node.spec.keeps_state:
            name = f"{node.spec.verb} {node.stable_name}"
            times[name] += 1
            steps[name if times[name] == 1 else f"{name} ({times[name]})"] = _kept(node, store)
    return steps


def _kept(node: Node, store: str | None) -> KeptStep:
    spec = node.spec
    paths = []
    if isinstance(spec, SinkSpec) and spec.path and store is not None:
        paths = [spec.path, os.path.relpath(os.path.realpath(spec.path), os.path.realpath(store))]
    columns = _types(spec.schema) if isinstance(spec, SourceSpec) else _types_read(node)
    told = json.dumps([_identity(node), columns], default=str)
    hash = xxhash.xxh3_128_hexdigest(told.encode())
    return {"does": spec.describe(), "columns": dict(columns), "paths": paths, "hash": hash}


def state_hash(steps: Mapping[str, KeptStep]) -> str:
    """Equal for graphs that may go on from each other's checkpoints.

    They have the same sources, sinks and steps with state, found by the same names; other steps may differ.
    """
    told = "\n".join(f"{name} {steps[name]['hash']}" for name in sorted(steps))
    return xxhash.xxh3_128_hexdigest(told.encode())


def difference(steps: Mapping[str, KeptStep], before: Mapping[str, KeptStep]) -> str:
    """The first thing in which the steps of a program are others than those of the one before it."""
    gone = [f"{_told(name, before[name])} is gone" for name in before if name not in steps]
    new = [f"{_told(name, steps[name])} is new" for name in steps if name not in before]
    changed = [_change(name, steps[name], before[name]) for name in steps if name in before]
    return ", ".join(gone[:1] + new[:1]) or next((one for one in changed if one), "its steps were others")


def other_place(steps: Mapping[str, KeptStep], before: Mapping[str, KeptStep]) -> str | None:
    """A sink that would write somewhere else than the run before it."""
    for name, step in steps.items():
        paths, known = step["paths"], before[name]["paths"]
        if paths and known and not set(paths) & set(known):
            return f"{_told(name, step)} has written {known[0]}, and would write {paths[0]} now"
    return None


def _told(name: str, step: KeptStep) -> str:
    return f"`{name}`" if step["does"] in name else f"`{name}` ({step['does']})"


def _change(name: str, step: KeptStep, before: KeptStep) -> str | None:
    for column, kind in step["columns"].items():
        if before["columns"].get(column) != kind:
            was = f"was {before['columns'][column]}" if column in before["columns"] else "was not there"
            return f"column `{column}` of `{name}` is {kind} now, and {was}{_inferred(name)}"
    if gone := [column for column in before["columns"] if column not in step["columns"]]:
        return f"column `{gone[0]}` of `{name}` is gone"
    if step["does"] != before["does"]:
        return f"`{name}` was `{before['does']}`, and is `{step['does']}` now"
    return f"`{name}` has another target or other options" if step["hash"] != before["hash"] else None


def _inferred(name: str) -> str:
    is_source = name.startswith(f"{SourceSpec.verb} ")
    return ", which its rows have told: keep it by the reader's `schema={…}`, and new rows have to fit" * is_source


def _types_read(node: Node) -> list[tuple[str, str]]:
    """The columns that a step reads, with their types."""
    inputs = [one.type for one in node.inputs]
    needed = [(kind.schema, node.spec.columns_needed(frozenset(), kind)) for kind in inputs]
    return [one for schema, names in needed for one in _types(schema) if one[0] in names]


def _types(schema: pa.Schema) -> list[tuple[str, str]]:
    return [(field.name, str(field.type)) for field in schema]


def _identity(node: Node) -> tuple[object, ...]:
    try:
        return node.spec.identity()
    except DataflowError as error:  # a file that is gone
        raise error.at(node.origin) from None

"""The ledger of a run, held against what others counted: what all rows do that run pipelines.

The runtime checks one step at a time, before it commits. Here, from what was committed: each step in each epoch; along
each edge of the graph, what one step gave out against what the next one took in; and at both ends, what the sources
handed out and what lies in topics and files. The hard part is what may wait between two epochs: only rows before a
sink, which are put in order there, and what a step itself tells that it holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from dataflow.graph.nodes import Node, Port, in_order
from dataflow.operators.base import SinkSpec, SourceSpec
from dataflow.state.store import Store
from dataflow.state.verify import commits
from dataflow.torture.frame import Tally

WENT = ("passed", "filtered", "late", "dead", "folded", "held")
"""Where a row that came into a step may be (FORMAT.md, ledger); the rest of it may not."""
UNREAD = {"late": "late", "errors": "dead"}
"""Rows at these ports that no step reads are in a topic of the pipeline, under these counts."""

Counts = Mapping[str, int]
Steps = Mapping[str, Counts]
"""The counts of each step."""


def check_store(path: Path, nodes: Iterable[Node], name: str, read: Counts | None, tally: Tally, where: str) -> None:
    """The ledger of a real store, against its checkpoint, the rows that were read, and each commit of the topics."""
    with Store(path) as store:
        state, epochs = store.pipeline(name), cast(Mapping[int, Steps], store.ledger(name))
    if state is None:
        return
    books = Books(tuple(nodes), name, epochs, tally, where)
    books.check(has_ended=state.finished)
    if read is not None:
        books.check_sources(read)
    books.check_sources(rows_read(state.checkpoint["sources"]))
    for _, pipeline, epoch, parts in commits(path):
        if pipeline == name and epoch is not None:
            written: Counter[str] = Counter()
            for (topic, _), (_, rows) in parts.items():
                written[topic] += rows
            books.check_sinks(written, epoch)


def rows_read(positions: object) -> dict[str, int]:
    """How many rows of each source a checkpoint says were read: of Parquet files, and of readers that count rows."""
    by_source = cast(Mapping[str, Mapping[str, object]], positions)
    return {name: sum(_rows_before(at) for at in parts.values()) for name, parts in by_source.items()}


def _rows_before(position: object) -> int:
    match position:
        case None:
            return 0
        case {"first": int(rows)}:
            return rows
        case [before, int(rows_of_batch), _]:
            return cast(int, before or 0) + rows_of_batch
    raise AssertionError(position)


def _step(label: str) -> str:
    """A step without its place, which is another one in each version of a program.

    >>> _step("filter 'first' (pricing.py:41)")
    "filter 'first'"
    """
    return re.sub(r" \([^()]*:\d+\)$", "", label)


class Books:
    """The ledger of a pipeline, by epoch, and what it has to agree with."""

    def __init__(self, nodes: Iterable[Node], name: str, epochs: Mapping[int, Steps], tally: Tally, where: str) -> None:
        self._nodes, self._name = in_order(nodes), name
        self._epochs = {epoch: {_step(label): one for label, one in steps.items()} for epoch, steps in epochs.items()}
        steps = [_step(node.label) for node in self._nodes]
        assert len(set(steps)) == len(steps), f"steps share their counts: {steps}"
        self._tally, self._where = tally, where
        self._total: dict[str, Counter[str]] = {step: Counter() for step in steps}

    def check(self, *, has_ended: bool) -> None:
        """Every row of every step, in each epoch; and what waits between two steps."""
        for epoch, steps in self._epochs.items():
            self._tally.count("epochs checked")
            for step, counts in steps.items():
                self._check_step(step, counts, epoch)
                self._total[step].update(counts)
            for node in self._nodes:
                self._check_edges(node, epoch)
        if has_ended:
            for node in self._nodes:
                self._check_end(node)

    def _check_step(self, step: str, counts: Counts, epoch: int) -> None:
        self._tally.count("steps checked")
        rows_in, went = counts.get("rows_in", 0), sum(counts.get(name, 0) for name in WENT)
        self._agree(went, rows_in, f"epoch {epoch}, {step}: of {rows_in} rows it tells of {went}")
        for name, number in counts.items():
            if number < 0 and name != "held":
                self._tally.find("wrong", f"{self._where}, epoch {epoch}, {step}: {name} is {number}")

    def _check_edges(self, node: Node, epoch: int) -> None:
        """Nobody takes in more than was given out by then; only what waits to be put in order may be less."""
        waiting = self._waiting(node)
        if waiting < 0 or (waiting and not isinstance(node.spec, SinkSpec)):
            self._agree(0, waiting, f"epoch {epoch}, {node.label}: {waiting} rows more were given out than it took in")
        held = self._total[_step(node.label)]["held"]
        if held < 0:
            self._agree(held, 0, f"epoch {epoch}, {node.label}: it holds {held} rows")

    def _check_end(self, node: Node) -> None:
        waiting, held = self._waiting(node), self._total[_step(node.label)]["held"]
        self._agree(0, waiting + held, f"{node.label}: at the end {waiting + held} rows have not come out of it")

    def _waiting(self, node: Node) -> int:
        """The rows that were given to a step and that it has not taken in; of sources others know."""
        if not node.inputs or any(isinstance(port.node.spec, SourceSpec) for port in node.inputs):
            return 0
        return sum(self._given(port) for port in node.inputs) - self._total[_step(node.label)]["rows_in"]

    def _given(self, port: Port) -> int:
        counts = self._total[_step(port.node.label)]
        return counts[UNREAD[port.name]] if port.name in UNREAD else counts["passed"] + counts["produced"]

    def check_sources(self, read: Counts) -> None:
        """Who reads a source has taken in all that it handed out, once."""
        for node in self._nodes:
            for port in node.inputs:
                if isinstance(port.node.spec, SourceSpec):
                    handed, taken = read.get(port.node.stable_name, 0), self._total[_step(node.label)]["rows_in"]
                    what = f"{node.label} took in {taken} rows, and the source handed out {handed}"
                    self._agree(taken, handed, what)

    def check_sinks(self, written: Counts, epoch: int | None = None) -> None:
        """What is in the topics, and wherever else, is what the ledger says: of one epoch, or of all."""
        when = "" if epoch is None else f"epoch {epoch}, "
        for place, told in self._told(self._total if epoch is None else self._epochs[epoch]).items():
            is_topic = not place.startswith("(")
            if is_topic or place in written:
                found = written.get(place, 0)
                self._agree(found, told, f"{when}{place} has {found} rows, and the ledger tells of {told}")
                self._tally.count("contents of sinks compared")

    def _told(self, steps: Steps) -> dict[str, int]:
        """The rows that went into each topic and each other sink; the names of the latter are in parentheses."""
        told = {}
        for node in self._nodes:
            if isinstance(node.spec, SinkSpec):
                name = node.stable_name
                place = name.removeprefix("topic ") if name.startswith("topic ") else f"({name})"
                told[place] = steps.get(_step(node.label), {}).get("passed", 0)
        for port, name in UNREAD.items():
            unread = [node for node in self._nodes if not self._is_read(node, port)]
            told[f"{self._name}.{port}"] = sum(steps.get(_step(node.label), {}).get(name, 0) for node in unread)
        return told

    def _is_read(self, node: Node, port: str) -> bool:
        return any(one.node is node and one.name == port for other in self._nodes for one in other.inputs)

    def _agree(self, found: int, expected: int, what: str) -> None:
        if found != expected:
            kind = "lost" if found < expected else "duplicated"
            self._tally.find(kind, f"{self._where}, {what}", abs(found - expected), group=f"books {kind}")

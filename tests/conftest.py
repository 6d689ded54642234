"""Settings of all tests: an example may compile kernels, so none has a deadline; every run's ledger has to add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from dataflow.graph.nodes import Node, in_order
from dataflow.operators.base import SourceSpec
from dataflow.operators.stateless import UnionSpec
from dataflow.pipeline import RunResult, _Run

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def every_ledger_adds_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test is about: in each run that came to its end, every row of every step is accounted for, and what a
    step gave out is what the next ones took in."""
    usual = _Run._result

    def checked(self: _Run, *arguments: Any) -> RunResult:
        result = usual(self, *arguments)
        check_ledger(result, self.pipeline.nodes)
        return result

    monkeypatch.setattr(_Run, "_result", checked)
    yield


def check_ledger(result: RunResult, sinks: tuple[Node, ...]) -> None:
    names = ("passed", "filtered", "late", "dead", "folded", "held")
    for step, counts in result.ledger.items():
        assert counts["rows_in"] == sum(counts[name] for name in names), (step, counts)
    if result.stopped is not None or result.pipeline == "collect":
        return  # what is open, or more than was asked for, is in no later step yet
    nodes = in_order(sinks)
    labels = [node.label for node in nodes]
    if len(set(labels)) < len(labels):
        return  # steps on one line share their counts
    for node in nodes:
        if isinstance(node.spec, SourceSpec | UnionSpec):
            continue
        expected = [given(port.node, port.name, result) for port in node.inputs]
        if None not in expected:
            taken = result.ledger[node.label]["rows_in"]
            assert taken == sum(one for one in expected if one is not None), (node.label, taken, expected)


def given(node: Node, port: str, result: RunResult) -> int | None:
    """The rows that came out of a port; None where that is not counted."""
    if isinstance(node.spec, SourceSpec):
        return None
    if isinstance(node.spec, UnionSpec):
        parts = [given(one.node, one.name, result) for one in node.inputs]
        return None if None in parts else sum(part for part in parts if part is not None)
    counts = result.ledger[node.label]
    if port != "out":
        return None if counts["produced"] else counts["late" if port == "late" else "dead"]
    return counts["passed"] + counts["produced"] if not counts["produced"] or not counts["dead"] else None

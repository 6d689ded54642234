"""A graph as text: one step a line, from its sources down, as the user wrote it."""

from __future__ import annotations

from collections.abc import Sequence

from dataflow.graph.nodes import Node


def step_text(node: Node) -> str:
    """The step with its options, and the line that made it."""
    where = f"  ({node.origin})" if node.origin else ""
    return f"{node.spec.verb} {node.spec.describe()}".rstrip() + where


def schema_text(node: Node) -> str:
    """The columns that come out of a step; event time is marked."""
    time = node.type.event_time
    marked = time.column if time is not None else None
    return ", ".join(f"{f.name}: {f.type}{' (event time)' if f.name == marked else ''}" for f in node.type.schema)


def graph_text(nodes: Sequence[Node]) -> str:
    """All steps, inputs first, numbered; each says what it reads."""
    numbers = {id(node): number for number, node in enumerate(nodes, 1)}
    lines = []
    for node in nodes:
        reads = ", ".join(
            f"{numbers[id(port.node)]}" + ("" if port.name == "out" else f".{port.name}") for port in node.inputs
        )
        lines.append(f"{numbers[id(node)]:>3}  {step_text(node)}" + (f"  ← {reads}" if reads else ""))
        lines.append(f"       {schema_text(node)}")
    return "\n".join(lines)

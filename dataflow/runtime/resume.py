"""Whether the input of a finished pipeline has grown or changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, cast

from dataflow.errors import DataflowError
from dataflow.graph.nodes import Node
from dataflow.operators.base import Idle, Position, ReadRequest, SourceSpec
from dataflow.runtime.commit import open_store
from dataflow.system import System

if TYPE_CHECKING:
    from dataflow.state.records import PipelineState
    from dataflow.state.store import Store


def grown_source(
    nodes: Iterable[Node], before: PipelineState, given_store: Store | str | PathLike[str] | None, system: System
) -> Node | None:
    """The first source that has rows after those that were read; None when all are as they were.

    A source that may wait for somebody is not asked, and one whose beginning is gone has not grown. Raises PlanError
    when one has changed where it was read.
    """
    known = cast(Mapping[str, Mapping[str, Position]], before.checkpoint.get("sources", {}))
    with open_store(given_store, system) as store:
        for node in nodes:
            if isinstance(node.spec, SourceSpec) and not node.spec.source.blocking:
                request = ReadRequest(tuple(node.spec.schema.names), frozenset(), system, store, to_head=True)
                try:
                    if _has_more(node.spec, request, known.get(node.stable_name, {})):
                        return node
                except DataflowError as error:
                    raise error.at(node.origin) from None
    return None


def _has_more(spec: SourceSpec, request: ReadRequest, known: Mapping[str, Position]) -> bool:
    try:
        names = spec.source.partitions(request)
        return any(
            rows.num_rows
            for number, name in enumerate(names)
            for split in spec.source.splits(number, request, known.get(name))
            if not isinstance(split, Idle)
            for rows in split.read()
        )
    except DataflowError as error:
        if error.code == "DF0407":
            raise
        return False

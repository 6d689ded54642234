"""The logical graph: frozen nodes, each made by one verb of the API or one step of the language.

A node is checked when it is made: it asks its spec for the type of its output, so a wrong program fails at the
user's line and not an hour into the stream. The hard part is naming: state will be found again by a node's
*stable name*, so the name comes from what the user can see (sources, windows, `.named`), never from a counter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from dataflow.errors import DataflowError, Origin, PlanError, caller_origin
from dataflow.operators.base import OperatorSpec, SinkSpec, SourceSpec, StatelessSpec, StreamType


@dataclass(frozen=True, eq=False)
class Port:
    """One of the outputs of a node: `out`, `late` or `errors`."""

    node: Node
    name: str = "out"

    @property
    def type(self) -> StreamType:
        return self.node.type if self.name == "out" else self.node.side_type(self.name)


@dataclass(frozen=True, eq=False)
class Node:
    """One step of a pipeline: what it does, what it reads, and the user's line that made it."""

    spec: OperatorSpec
    inputs: tuple[Port, ...]
    type: StreamType
    origin: Origin | None
    given_name: str | None = field(default=None)

    def side_type(self, port: str) -> StreamType:
        return self.spec.side_type(port, [one.type for one in self.inputs])

    @property
    def is_stateful(self) -> bool:
        return not isinstance(self.spec, SourceSpec | SinkSpec | StatelessSpec)

    @property
    def stable_name(self) -> str:
        """The path of user-visible names that leads here; stateless steps do not change it."""
        if self.given_name is not None:
            return self.given_name
        if isinstance(self.spec, SourceSpec | SinkSpec):
            return self.spec.describe()
        above = "+".join(dict.fromkeys(one.node.stable_name for one in self.inputs))
        if not self.is_stateful:
            return above
        return f"{above}/{self.spec.describe().partition(':')[0]}"

    @property
    def label(self) -> str:
        """How errors and the ledger call the step: verb and place."""
        name = self.given_name or (self.spec.describe() if isinstance(self.spec, SourceSpec | SinkSpec) else "")
        named = f" '{name}'" if name else ""
        return f"{self.spec.verb}{named}" + (f" ({self.origin})" if self.origin else "")

    def named(self, name: str) -> Node:
        return replace(self, given_name=name)


def make_node(spec: OperatorSpec, *inputs: Port) -> Node:
    """A checked node; an error gets the line of the user's call."""
    origin = caller_origin()
    try:
        return Node(spec, inputs, spec.output_type([one.type for one in inputs]), origin)
    except DataflowError as error:
        raise error.at(origin) from None


def in_order(sinks: Iterable[Node]) -> list[Node]:
    """All nodes that the sinks depend on, inputs first; each once."""
    seen: dict[int, Node] = {}

    def visit(node: Node) -> Iterator[Node]:
        if id(node) in seen:
            return
        seen[id(node)] = node
        for one in node.inputs:
            yield from visit(one.node)
        yield node

    return [node for sink in sinks for node in visit(sink)]


def check_names(nodes: Iterable[Node]) -> None:
    """Refuse two stateful steps, or two sinks, of the same stable name: their state could not be told apart."""
    known: dict[tuple[str, str], Node] = {}
    for node in nodes:
        if not (node.is_stateful or isinstance(node.spec, SinkSpec)):
            continue
        other = known.setdefault((node.spec.verb, node.stable_name), node)
        if other is not node:
            raise PlanError(
                f"two steps have the name `{node.stable_name}`: here and at {other.origin}",
                code="DF0405",
                help='give one another name: `.agg(…).named("…")` after a step, `name="…"` in `.to()`, another topic',
            ).at(node.origin)


def check_source_names(sinks: Iterable[Node]) -> None:
    """Refuse two sources of the same stable name, where positions are kept."""
    known: set[str] = set()
    for node in in_order(sinks):
        if isinstance(node.spec, SourceSpec):
            if node.stable_name in known:
                raise PlanError(
                    f"two sources have the name `{node.stable_name}`: what was read of each could not be told apart",
                    code="DF0405",
                    help="give one of the readers another `name=`",
                ).at(node.origin)
            known.add(node.stable_name)


def check_places(nodes: Iterable[Node]) -> None:
    """Refuse two sinks on one file, or on one table of a file."""
    known: list[tuple[tuple[str, ...], Node]] = []
    for node in nodes:
        place = node.spec.place if isinstance(node.spec, SinkSpec) else ()
        if not place:
            continue
        for other_place, other in known:
            shared = min(len(place), len(other_place))
            if place[:shared] == other_place[:shared]:
                raise _two_sinks(place[:shared], other).at(node.origin)
        known.append((place, node))


def _two_sinks(place: tuple[str, ...], other: Node) -> PlanError:
    kind, what = ("file", place[0]) if len(place) == 1 else ("table", f"the table `{place[1]}` of {place[0]}")
    return PlanError(
        f"two sinks write {what}: here and at {other.origin}; only one could",
        code="DF0405",
        help=f"name another {kind}; rows of two streams go into one by `.union`",
    )

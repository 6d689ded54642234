"""From the logical graph to stages: what runs fused in one task, and where rows change hands.

A stage is a tree of operators that run in one thread without a channel between them; it ends where rows must
change tasks: at an *exchange* (to the task that owns the key) or a *gather* (to one task, in a defined order,
before a sink). A union makes no stage: the steps after it are attached to each of its branches. The hard part
is that none of this may show in the results, so every rule here is about speed only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import cast

from dataflow.errors import PlanError
from dataflow.graph.delivery import delivery_text
from dataflow.graph.nodes import Node, Port, check_names, check_places, in_order
from dataflow.graph.render import graph_text
from dataflow.operators.accumulators import AggregateSet
from dataflow.operators.base import (
    Operator,
    OperatorContext,
    SinkSpec,
    SourceSpec,
    StatelessSpec,
    StreamType,
    TimesRequest,
)
from dataflow.operators.watermark import WatermarkSpec
from dataflow.operators.windows import window_operator as windows
from dataflow.operators.windows.partial import PartialAggregate
from dataflow.schema import is_text_type


class Order(Enum):
    """How one task reads what several tasks sent."""

    ANY = auto()
    """As it comes: state that does not depend on it."""
    SEQUENCE = auto()
    """As the units were handed out: the order of the source."""
    TIME = auto()
    """By event time, then by key: rows that a keyed step made."""


@dataclass(eq=False)
class OperatorPlan:
    """One operator of a stage; `ports` lists what gets each of its outputs."""

    node: Node
    note: str
    build: Callable[[OperatorContext], Operator]
    ports: dict[str, list[OperatorPlan | EdgePlan]] = field(default_factory=dict)


@dataclass(eq=False)
class EdgePlan:
    """Channels from every task of one stage to every task of another; `keys` spread the rows, if there are several."""

    target: StagePlan
    keys: tuple[str, ...] = ()


@dataclass(eq=False)
class StagePlan:
    """Operators that run in one task, and how many such tasks there are."""

    number: int
    parallelism: int
    source: Node | None = None
    columns: tuple[str, ...] = ()
    dictionary: frozenset[str] = frozenset()
    positions: bool = False
    times: TimesRequest | None = None
    sink: Node | None = None
    gathers_for: Node | None = None
    """The step for which the rows are put in order, where that is not a sink."""
    order: Order = Order.ANY
    order_type: StreamType | None = None
    """Of the rows that are gathered by time."""
    roots: list[OperatorPlan | EdgePlan] = field(default_factory=list)
    senders: list[StagePlan] = field(default_factory=list)
    edges: list[EdgePlan] = field(default_factory=list)
    """The edges that end here and, beside each, the stage that it comes from; one may stand here twice."""
    partitions: set[int] = field(default_factory=set)
    """Numbers of the stages whose sources' rows may come here."""
    own_thread: bool = False


@dataclass(frozen=True)
class Plan:
    """All stages of a job, senders before receivers."""

    stages: tuple[StagePlan, ...]
    nodes: tuple[Node, ...]
    workers: int


@dataclass(frozen=True)
class Branch:
    """A place where the rows of a port come out: a stage, and the list to which their receivers are added."""

    stage: StagePlan
    receivers: list[OperatorPlan | EdgePlan]
    type: StreamType


def make_plan(sinks: Sequence[Node], workers: int) -> Plan:
    """The stages that run these sinks with so many workers."""
    return _Planner(sinks, workers).plan()


class _Planner:
    def __init__(self, sinks: Sequence[Node], workers: int) -> None:
        self.nodes = in_order(sinks)
        check_names(self.nodes)
        check_places(self.nodes)
        self.workers = workers
        self.wanted = columns_wanted(self.nodes)
        self.ordered = _sources_needing_positions(self.nodes)
        self.stages: list[StagePlan] = []
        self.branches: dict[tuple[int, str], list[Branch]] = {}

    def plan(self) -> Plan:
        for node in self.nodes:
            if isinstance(node.spec, SourceSpec):
                self._add_source(node, node.spec)
            elif isinstance(node.spec, SinkSpec):
                self._add_sink(node)
            elif isinstance(node.spec, StatelessSpec):
                self._add_stateless(node, node.spec)
            elif isinstance(node.spec, windows.WindowAggregateSpec):
                self._add_window(node, node.spec)
            else:
                raise PlanError(f"the runtime does not know the step `{node.spec.verb}`").at(node.origin)
        return Plan(tuple(self.stages), tuple(self.nodes), self.workers)

    def _stage(self, parallelism: int, **fields: object) -> StagePlan:
        stage = StagePlan(len(self.stages), parallelism, **fields)  # type: ignore[arg-type]
        self.stages.append(stage)
        return stage

    def _add_source(self, node: Node, spec: SourceSpec) -> None:
        wanted = self.wanted[id(node), "out"]
        names = tuple(name for name in spec.schema.names if name in wanted)
        stage = self._stage(
            1 if spec.source.blocking else self.workers,  # as fast with one: its reader needs a core, too
            source=node,
            columns=names,
            dictionary=_dictionary_columns(node, self.nodes) & wanted,
            positions=id(node) in self.ordered,
            times=_times_request(node, self.nodes) if spec.source.knows_times else None,
        )
        stage.partitions.add(stage.number)
        self.branches[id(node), "out"] = [Branch(stage, stage.roots, _pruned(node.type, wanted))]

    def _inputs(self, node: Node) -> Iterable[Branch]:
        for port in node.inputs:
            yield from self.branches[id(port.node), port.name]

    def _attach(self, branch: Branch, plan: OperatorPlan, node: Node, port: str = "out") -> None:
        """Make `plan` a receiver of the branch, and its output a branch of the node."""
        branch.receivers.append(plan)
        self._expose(branch.stage, plan, node, port)
        self._expose(branch.stage, plan, node, "errors")

    def _expose(self, stage: StagePlan, plan: OperatorPlan, node: Node, port: str) -> None:
        kind = _pruned(Port(node, port).type, self.wanted.get((id(node), port), frozenset()))
        receivers = plan.ports.setdefault(port, [])
        self.branches.setdefault((id(node), port), []).append(Branch(stage, receivers, kind))

    def _add_stateless(self, node: Node, spec: StatelessSpec) -> None:
        wanted = self.wanted[id(node), "out"]
        for branch in self._inputs(node):
            kind = branch.type

            def build(context: OperatorContext, kind: StreamType = kind) -> Operator:
                return spec.build(kind, wanted, context)

            self._attach(branch, OperatorPlan(node, "", build), node)

    def _add_window(self, node: Node, spec: windows.WindowAggregateSpec) -> None:
        source = node.inputs[0].type
        aggregates = spec.bind(source)
        branches = list(self._inputs(node))
        if aggregates.needs_order and source.order_keys is not None:
            branches = [self._gathered(branches, source, node)]
        receiving = self._stage(self.workers if spec.by else 1)
        for branch in branches:
            self._add_window_input(node, spec, source, aggregates, branch, receiving)
        kind = windows.MergeAggregate if aggregates.mergeable else windows.RowAggregate
        note = "merged" if aggregates.mergeable else "aggregated after the exchange"
        last = OperatorPlan(node, note, lambda context: kind(spec, source, aggregates, context))
        receiving.roots.append(last)
        self._expose(receiving, last, node, "out")
        self._expose(receiving, last, node, "errors")

    def _add_window_input(
        self,
        node: Node,
        spec: windows.WindowAggregateSpec,
        source: StreamType,
        aggregates: AggregateSet,
        branch: Branch,
        receiving: StagePlan,
    ) -> None:
        first = OperatorPlan(node, "judge lateness", lambda c: windows.WindowInput(spec, source, aggregates, c))
        self._attach(branch, first, node, "late")
        sender = first
        if aggregates.mergeable:
            sender = OperatorPlan(
                node,
                "aggregated before the exchange",
                lambda c: PartialAggregate(spec.groups(source, aggregates), aggregates, c),
            )
            first.ports["out"] = [sender]
        self._connect(branch.stage, sender.ports.setdefault("out", []), receiving, spec.by)

    def _connect(
        self,
        sending: StagePlan,
        receivers: list[OperatorPlan | EdgePlan],
        receiving: StagePlan,
        keys: tuple[str, ...] = (),
    ) -> None:
        edge = EdgePlan(receiving, keys)
        receivers.append(edge)
        receiving.edges.append(edge)
        receiving.senders.append(sending)
        receiving.partitions |= sending.partitions

    def _gathered(self, branches: Sequence[Branch], kind: StreamType, node: Node) -> Branch:
        """One task that puts derived rows into their order and numbers them."""
        stage = self._stage(1, gathers_for=node, order=Order.TIME, order_type=kind, positions=True)
        for branch in branches:
            self._connect(branch.stage, branch.receivers, stage)
        return Branch(stage, stage.roots, kind)

    def _add_sink(self, node: Node) -> None:
        kind, blocking = node.inputs[0].type, cast(SinkSpec, node.spec).blocking
        order = Order.SEQUENCE if kind.order_keys is None else Order.TIME
        stage = self._stage(1, sink=node, order=order, order_type=kind, own_thread=blocking)
        for branch in self._inputs(node):
            self._connect(branch.stage, branch.receivers, stage)


# ── what is needed of each node ──────────────────────────────────────────────────────────────────────────


def columns_wanted(nodes: Sequence[Node]) -> dict[tuple[int, str], frozenset[str]]:
    """The columns of each port that some later step or sink needs; the others are not read or computed."""
    wanted: dict[tuple[int, str], frozenset[str]] = {}

    def want(port: Port, names: frozenset[str]) -> None:
        known = wanted.get((id(port.node), port.name), frozenset())
        wanted[id(port.node), port.name] = known | (names & frozenset(port.type.schema.names))

    for node in reversed(nodes):
        of_node = wanted.setdefault((id(node), "out"), frozenset())
        sides = frozenset().union(*(wanted.get((id(node), side), frozenset()) for side in ("late", "errors")))
        for port in node.inputs:
            want(port, node.spec.columns_needed(of_node, port.type) | sides)
    return wanted


def _pruned(kind: StreamType, wanted: frozenset[str]) -> StreamType:
    """The type with the columns that are wanted; never without any, since a batch needs a length."""
    import pyarrow as pa

    fields = [f for f in kind.schema if f.name in wanted]
    return StreamType(pa.schema(fields), kind.event_time, kind.bounded, kind.order_keys)


def _sources_needing_positions(nodes: Sequence[Node]) -> set[int]:
    """The sources whose rows' order decides a result: some aggregate behind them is first, last, max_by or min_by."""
    needing: set[int] = set()
    for node in reversed(nodes):
        spec = node.spec
        if (isinstance(spec, windows.WindowAggregateSpec) and spec.bind(node.inputs[0].type).needs_order) or (
            id(node) in needing and isinstance(spec, StatelessSpec)
        ):
            needing.update(id(port.node) for port in node.inputs)
    return needing


def _times_request(source: Node, nodes: Sequence[Node]) -> TimesRequest | None:
    """The column that only tells the panes of a window, if the way from the source leads nowhere else."""
    column: str | None = None
    node: Node | None = _only_consumer(source, nodes)
    while node is not None:
        spec = node.spec
        if isinstance(spec, WatermarkSpec) and column is None:
            column = spec.column
        elif column is None:
            return None
        elif isinstance(spec, windows.WindowAggregateSpec):
            asks_more = spec.bind(node.inputs[0].type).needs_order or not spec.asks_only_for_the_pane(column)
            return None if asks_more else TimesRequest(column, spec.is_one_pane)
        elif not isinstance(spec, StatelessSpec) or not spec.leaves_alone(column):
            return None
        node = _only_consumer(node, nodes)
    return None


def _only_consumer(node: Node, nodes: Sequence[Node]) -> Node | None:
    """The one step that reads these rows, if it is one and reads no others."""
    found = [one for one in nodes if any(port.node is node and port.name == "out" for port in one.inputs)]
    return found[0] if len(found) == 1 and len(found[0].inputs) == 1 else None


def _dictionary_columns(source: Node, nodes: Sequence[Node]) -> frozenset[str]:
    """The text columns of a source that are keys later on: they are read as dictionaries, hashed once a value."""
    found = set()
    for node in nodes:
        if isinstance(node.spec, windows.WindowAggregateSpec):
            for name in node.spec.by:
                origin = _traced(node.inputs[0].node, name, source)
                if origin is not None and is_text_type(source.type.schema.field(origin).type):
                    found.add(origin)
    return frozenset(found)


def _traced(node: Node, name: str, source: Node) -> str | None:
    """The column of `source` that the column of a later node is, unchanged."""
    if node is source:
        return name
    if not isinstance(node.spec, StatelessSpec):
        return None
    origin = node.spec.column_origin(name)
    if origin is None:
        return None
    found = (_traced(port.node, origin, source) for port in node.inputs if origin in port.type.schema.names)
    return next((one for one in found if one is not None), None)


# ── as text ──────────────────────────────────────────────────────────────────────────────────────────────


def explain(name: str, plan: Plan) -> str:
    """The steps as the user wrote them, then the stages that run them."""
    stages = "\n".join(_stage_text(stage) for stage in plan.stages)
    return (
        f"pipeline {name}\n\nsteps\n{graph_text(plan.nodes)}\n\n"
        f"stages ({plan.workers} worker{'s' if plan.workers > 1 else ''})\n{stages}\n\n{delivery_text(plan.nodes)}"
    )


def _shared_by(stage: StagePlan) -> str:
    """For what a thread is, where several sinks may share it."""
    place = cast(SinkSpec, stage.sink.spec).place if stage.sink is not None else ()
    return f" for {place[0].rpartition('/')[2]}" if len(place) > 1 else ""


def _stage_text(stage: StagePlan) -> str:
    tasks = "1 task" if stage.parallelism == 1 else f"{stage.parallelism} tasks"
    thread = f", own thread{_shared_by(stage)}" if stage.own_thread else ""
    lines = [f"  stage {stage.number}  {tasks}{thread}"]
    if stage.source is not None:
        lines.append(f"    read {stage.source.spec.describe()}: {', '.join(stage.columns) or 'no columns'}")
        if stage.times is not None:
            lines.append(f"      {stage.times.column} only where the file's statistics do not tell its window")
        if stage.dictionary:
            lines.append(f"      as dictionary: {', '.join(sorted(stage.dictionary))}")
    elif stage.senders:
        senders = ", ".join(str(sender.number) for sender in stage.senders)
        lines.append(f"    {_ORDER_TEXT[stage.order]} stage {senders}")
    for root in stage.roots:
        lines.extend(_receiver_text(root, "    "))
    if stage.sink is not None:
        lines.append(f"    to {stage.sink.spec.describe()}")
    return "\n".join(lines)


_ORDER_TEXT = {
    Order.ANY: "from",
    Order.SEQUENCE: "in the order of the source, from",
    Order.TIME: "by event time and key, from",
}


def _receiver_text(plan: OperatorPlan | EdgePlan, indent: str) -> list[str]:
    if isinstance(plan, EdgePlan):
        spread = f" by {', '.join(plan.keys)}" if plan.keys and plan.target.parallelism > 1 else ""
        return [f"{indent}→ stage {plan.target.number}{spread}"]
    note = f"  [{plan.note}]" if plan.note else ""
    lines = [f"{indent}{plan.node.spec.verb} {plan.node.spec.describe()}".rstrip() + note]
    for port, receivers in plan.ports.items():
        for one in receivers:
            told = _receiver_text(one, indent + "  ")
            lines.extend(told if port == "out" else [f"{indent}  .{port}", *("  " + line for line in told)])
    return lines

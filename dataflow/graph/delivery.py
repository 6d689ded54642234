"""How often each row arrives at each sink: the best that the ends of a pipeline allow, told, or asked for and refused.

The runtime keeps its own part, epochs, exactly once. The ends may not: a function that is called after a commit may be
called again, and a generator that has died with its process cannot be asked for the rows behind the last commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from dataflow.errors import NameNotFoundError, PlanError, caller_origin, did_you_mean
from dataflow.graph.nodes import Node, in_order
from dataflow.operators.base import AT_LEAST_ONCE, EXACTLY_ONCE, OWN_GUARANTEE, SinkSpec, SourceSpec

DELIVERIES = {"exactly_once": EXACTLY_ONCE, "at_least_once": AT_LEAST_ONCE}
"""What may be asked for, and how it is said."""


def known_delivery(asked: str | None) -> str | None:
    """What was asked for, checked."""
    if asked is None or asked in DELIVERIES:
        return asked
    near = did_you_mean(str(asked), tuple(DELIVERIES))
    raise NameNotFoundError(
        f"there is no delivery {asked!r} (deliveries: {', '.join(DELIVERIES)})",
        code="DF0506",
        help=f"did you mean {near!r}?" if near else "leave it out for the best that the ends of the pipeline allow",
        origin=caller_origin(),
    )


def check_delivery(sinks: Sequence[Node], *, has_store: bool, asked: str | None = None) -> None:
    """Refuse a delivery that was asked for (by the sink, else for the whole run) and that some link cannot keep."""
    for node in sinks:
        spec = node.spec
        assert isinstance(spec, SinkSpec)
        wanted = spec.delivery or asked
        if wanted is None:
            continue
        promise = spec.promise(has_store, node.type.bounded)
        if promise is None or (wanted == "exactly_once" and promise != EXACTLY_ONCE):
            raise _refused(spec, wanted, has_store).at(node.origin)


def check_sources(sinks: Sequence[Node], asked: str | None) -> None:
    """Refuse a delivery in a store if a source cannot give again what a killed run has not committed."""
    for node in sinks:
        spec = node.spec
        assert isinstance(spec, SinkSpec)
        wanted, once = spec.delivery or asked, _read_once(node)
        if wanted is not None and once is not None:
            raise PlanError(
                f'{spec.describe()}: delivery="{wanted}" cannot be kept: `{once.stable_name}` is a generator, and its '
                "rows behind the last commit are lost when the process is",
                code="DF0506",
                help="read a list, a file, a topic, or a source of your own with positions; or leave `delivery` out",
            ).at(once.origin)


def sources_of_exactly_once(sinks: Sequence[Node], asked: str | None) -> frozenset[str]:
    """The names of the sources of sinks that were asked to get each row exactly once."""
    exact = [node for node in sinks if (cast(SinkSpec, node.spec).delivery or asked) == "exactly_once"]
    return frozenset(node.stable_name for node in in_order(exact) if isinstance(node.spec, SourceSpec))


def _refused(spec: SinkSpec, wanted: str, has_store: bool) -> PlanError:
    if spec.guarantee == OWN_GUARANTEE:
        reason, help = "nobody knows what this sink does", "leave `delivery` out"
    elif wanted == "exactly_once" and spec.guarantee != EXACTLY_ONCE:
        reason = f"this sink gets each row {spec.guarantee}"
        help = "leave `delivery` out; the epoch that comes with the rows tells what has been there already"
    else:
        assert not has_store
        reason = "without a store a run that was stopped cannot go on"
        help = 'say where the store is: `.run(store="run/store")`, or `--store run/store` on the command line'
    return PlanError(f'{spec.describe()}: delivery="{wanted}" cannot be kept: {reason}', code="DF0506", help=help)


def _read_once(sink: Node) -> Node | None:
    """A source of this sink that cannot give a row again."""
    for node in in_order([sink]):
        if isinstance(node.spec, SourceSpec) and node.spec.source.gives_rows_once:
            return node
    return None


def delivery_text(nodes: Sequence[Node]) -> str:
    """What `explain` says, with and without a store."""
    sinks = [(node, node.spec) for node in nodes if isinstance(node.spec, SinkSpec)]
    once = next((node for one, _ in sinks if (node := _read_once(one)) is not None), None)
    lost = f"\n  rows of `{once.stable_name}` that a killed run has not committed are lost" if once is not None else ""
    if all(spec.needs_store for _, spec in sinks):
        return f"delivery: each epoch is one commit of the store{lost}"
    if all(spec.guarantee == OWN_GUARANTEE for _, spec in sinks):
        return f"delivery: what a sink makes of each epoch; only topics of the run's store commit with it{lost}"
    told = "\n".join(f"  {spec.describe()}: {_with_and_without_store(node, spec)}" for node, spec in sinks)
    return f"delivery\n{told}{lost}"


def _with_and_without_store(node: Node, spec: SinkSpec) -> str:
    if spec.needs_store:
        return "each epoch is one commit of the store"
    if spec.guarantee == OWN_GUARANTEE:
        return OWN_GUARANTEE
    return f"{spec.guarantee} with a store; without one {_without_store(node, spec)}"


def _without_store(node: Node, spec: SinkSpec) -> str:
    return "all rows or none" if spec.promise(False, node.type.bounded) else "no restart"


def delivery_line(sinks: Sequence[Node], *, has_store: bool) -> str:
    """What a run says when it begins: the promise of each sink, those with the same one together."""
    told: dict[str, list[str]] = {}
    for node in sinks:
        spec = node.spec
        assert isinstance(spec, SinkSpec)
        if spec.guarantee == OWN_GUARANTEE and not spec.needs_store:
            promise = OWN_GUARANTEE
        elif has_store:
            promise = EXACTLY_ONCE if spec.needs_store else spec.guarantee
        else:
            promise = f"{_without_store(node, spec)} (there is no store)"
        if has_store and (once := _read_once(node)) is not None:
            promise += f", but rows of `{once.stable_name}` that are not committed are lost when the process is"
        told.setdefault(promise, []).append(spec.describe())
    return "; ".join(f"{', '.join(names)}: {promise}" for promise, names in told.items())

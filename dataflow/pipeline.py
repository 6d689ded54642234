"""`Pipeline`: some sinks, run together; a value that can be run, explained and compared, never a global.

`run` makes the plan, builds a job and drives its epochs in the calling thread, so that a signal finds a thread
that only waits. The first SIGTERM or Ctrl-C commits what is in flight and returns; the second one is the
system's own again. In a store a run goes on where the last one left off, and after a failure as often as it is allowed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataflow.errors import CloseError, DataflowError, PlanError, ProgramError, RunError, caller_origin
from dataflow.event_time import duration_us
from dataflow.graph.delivery import (
    check_delivery,
    check_sources,
    delivery_line,
    known_delivery,
    sources_of_exactly_once,
)
from dataflow.graph.identity import graph_hash, kept_steps, state_hash
from dataflow.graph.nodes import Node, check_source_names, in_order
from dataflow.operators.base import SinkSpec, StepCounts
from dataflow.runtime.unread import UnreadRows, topic_of
from dataflow.system import RealSystem, System

if TYPE_CHECKING:
    from dataflow.api import Duration, Stream, StreamSink
    from dataflow.plan import Plan
    from dataflow.runtime.commit import Program, StoreCommitter
    from dataflow.runtime.coordinator import Coordinator, EpochCosts
    from dataflow.runtime.epoch import Resume, TaskAck
    from dataflow.runtime.job import Job
    from dataflow.state.records import PipelineState
    from dataflow.state.store import Store

LOG = logging.getLogger("dataflow")
WORKERS_MAX = 128
"""There are 128 key groups: more workers would have none."""
BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 1.0, 60.0
"""Before a run begins again after a failure: the first time, and at most; each time twice as long."""


@dataclass(frozen=True)
class RunResult:
    """What a run did: rows, time, and where every row went.

    `ledger` counts rows by step; `unread` are late and error rows that no step reads, by step. `stopped` is the
    signal's name when the run was stopped before its input had ended, and `bounded` tells whether the input has
    an end at all. `costs` is what the epochs took, in seconds; `restarts` how often the run began again.
    """

    pipeline: str
    rows_in: int
    rows_out: int
    seconds: float
    epochs: int
    ledger: dict[str, dict[str, int]] = field(repr=False)
    unread: tuple[UnreadRows, ...] = field(repr=False, default=())
    stopped: str | None = None
    bounded: bool = True
    already_finished: bool = False
    costs: EpochCosts | None = field(repr=False, default=None)
    restarts: int = 0


class Pipeline:
    """Sinks that run together under one name; common steps run once.

    >>> import dataflow as flow
    >>> from dataflow import col
    >>> numbers = flow.from_rows([{"n": 1}, {"n": 2}], {"n": "int64"})
    >>> result = flow.Pipeline("doubled", numbers.derive(n=col.n * 2).print()).run()
    n
    2
    4
    >>> result.rows_in, result.rows_out
    (2, 2)
    """

    def __init__(self, name: str, *sinks: StreamSink) -> None:
        from dataflow.api import StreamSink

        if not name or not isinstance(name, str):
            raise PlanError(
                "a pipeline needs a name", help='as in `flow.Pipeline("orders", …)`', origin=caller_origin()
            )
        for sink in sinks:
            if not isinstance(sink, StreamSink):
                raise PlanError(
                    f"pipeline `{name}`: {sink!r} is not a sink",
                    help='end a stream with a sink, as in `stream.write_topic("results")`',
                    origin=caller_origin(),
                )
        if not sinks:
            raise PlanError(f"pipeline `{name}` has no sink", help="give it at least one", origin=caller_origin())
        self.name = name
        self.nodes: tuple[Node, ...] = tuple(sink.use() for sink in sinks)
        if len(set(map(id, self.nodes))) < len(sinks):
            raise PlanError(
                f"pipeline `{name}` is given a sink twice", help="give each sink once", origin=caller_origin()
            )

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, {', '.join(node.spec.describe() for node in self.nodes)})"

    def graph_hash(self) -> str:
        """Equal for equal pipelines, in any process."""
        return graph_hash(self.nodes)

    def explain(self, *, workers: int | None = None) -> str:
        """The stages that would run, as text."""
        from dataflow.plan import explain, make_plan

        return explain(self.name, make_plan(self.nodes, _workers(workers, RealSystem())))

    def run(
        self,
        *,
        store: Store | str | PathLike[str] | None = None,
        workers: int | None = None,
        checkpoint_interval: Duration = "1s",
        delivery: str | None = None,
        until: str | None = None,
        restarts: int = 0,
        restart: bool = False,
        system: System | None = None,
    ) -> RunResult:
        """Run until the inputs end, or a signal or failure stops it; blocks.

        With `store` (a directory or a `flow.Store`) results and progress are committed there together, once every
        `checkpoint_interval`; a later run with the same store goes on where the last commit left it, also with another
        number of `workers` (threads; by default one for each core).

        `delivery` ("exactly_once" or "at_least_once") is asked of each sink that does not say its own; where a link
        cannot keep it, the run is refused. Without, each row arrives as often as `explain` tells.

        `until="head"` reads what is there now, commits and returns with windows open: the next run goes on with what
        has come since. After a failure the run begins again from the last commit up to `restarts` times, after 1, 2,
        4 … 60 seconds. `restart=True` forgets what an earlier run has kept, and reads the inputs from their start: rows
        that it wrote stay, and are written once more.

        Raises RunError, with the user's line, when a step fails; the last commit stands then.
        """
        system = system or RealSystem()
        interval_seconds = duration_us(checkpoint_interval, "checkpoint_interval") / 1e6
        if interval_seconds <= 0:
            raise PlanError("checkpoint_interval must be longer than 0s", origin=caller_origin())
        if until not in (None, "head"):
            raise PlanError(
                f"`until` is {until!r}", help='`until="head"` reads what is there now', origin=caller_origin()
            )
        if not isinstance(restarts, int) or isinstance(restarts, bool) or restarts < 0:
            raise PlanError(f"`restarts` is a number from 0 on, got {restarts!r}", origin=caller_origin())
        if not isinstance(restart, bool):
            raise PlanError(f"`restart` is True or False, got {restart!r}", origin=caller_origin())
        if store is None and (restarts or restart):
            raise PlanError(
                f"`{'restarts' if restarts else 'restart'}` needs a store: without one nothing is kept to go on from",
                code="DF0505",
                help='say where: `.run(store="run/store", …)`',
                origin=caller_origin(),
            )
        run = _Run(self, system, _workers(workers, system), interval_seconds, store)
        run.to_head, run.restarts, run.restart = until == "head", restarts, restart
        run.delivery = known_delivery(delivery)
        return run.go()


def collect(stream: Stream, limit: int | None, options: dict[str, Any]) -> pa.Table:
    """All rows of a stream, or the first `limit`."""
    from dataflow.api import StreamSink
    from dataflow.graph.nodes import make_node
    from dataflow.operators.sinks.collect import CollectSink

    if limit is None and not stream._port.type.bounded:
        raise PlanError(
            "collect would never return: the input is endless",
            help="use `.head(n)`, or write into a sink",
            origin=caller_origin(),
        )
    sink = CollectSink(stream.schema, limit)
    node = make_node(SinkSpec("", "collect", lambda context: sink, blocking=False), stream._port)
    pipeline = Pipeline("collect", StreamSink(node))
    system = options.pop("system", None) or RealSystem()
    unknown = options.keys() - {"store", "workers", "checkpoint_interval"}
    if unknown:
        raise TypeError(f"unknown option `{min(unknown)}` (options: store, workers, checkpoint_interval)")
    interval_seconds = duration_us(options.get("checkpoint_interval", "1s"), "checkpoint_interval") / 1e6
    workers = _workers(options.get("workers"), system)
    run = _Run(pipeline, system, workers, interval_seconds, options.get("store"), reads_only=True)
    run.enough = lambda: sink.full
    run.go()
    return sink.table()


def _path_of(store: Store | str | PathLike[str] | None) -> str | None:
    """The path of the store of a run, if there is one."""
    if store is None:
        return None
    from dataflow.state.store import store_path

    try:
        return store_path(store)
    except DataflowError as error:
        raise error.at(caller_origin()) from None


def _workers(workers: int | None, system: System) -> int:
    if workers is None:
        return min(system.scheduler.cores, WORKERS_MAX)
    if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= WORKERS_MAX:
        raise PlanError(
            f"workers must be a whole number from 1 to {WORKERS_MAX}, got {workers!r}",
            help="leave it out for one a core",
            origin=caller_origin(),
        )
    return workers


class _Run:
    """One call of `run`, from plan to result."""

    def __init__(
        self,
        pipeline: Pipeline,
        system: System,
        workers: int,
        interval_seconds: float,
        store: Store | str | PathLike[str] | None,
        reads_only: bool = False,
    ) -> None:
        self.pipeline, self.system, self.workers = pipeline, system, workers
        self.interval_seconds, self.given_store, self.reads_only = interval_seconds, store, reads_only
        self.store_path = _path_of(store)
        self.to_head = self.restart = self.was_stopped = False
        self.restarts = 0
        self.delivery: str | None = None
        self.enough: Callable[[], bool] = lambda: False
        self.committed: Sequence[TaskAck] = ()
        """What the tasks of this attempt had to say of its last committed epoch; and, below, those of earlier ones."""
        self.earlier: list[TaskAck] = []
        self.epochs = self.earlier_epochs = 0
        self.began = system.clock.monotonic()

    def go(self) -> RunResult:
        self._require_store()
        backoff_seconds = BACKOFF_SECONDS_MIN
        for attempt in range(self.restarts + 1):
            try:
                return self._with_earlier(self._attempt(), attempt)
            except (ProgramError, CloseError):  # begun again it would end the same way, or there is nothing left to do
                raise
            except DataflowError as error:
                if attempt == self.restarts or self.was_stopped:
                    raise
                what = f"{error}\nbeginning again from the last commit in {backoff_seconds:g} s"
                sys.stderr.write(f"{what} ({attempt + 1} of {self.restarts})\n")
            self.earlier += self.committed
            self.earlier_epochs += self.epochs
            self.committed, self.epochs = (), 0
            self.system.scheduler.sleep(backoff_seconds)
            backoff_seconds = min(2 * backoff_seconds, BACKOFF_SECONDS_MAX)
        raise AssertionError("the last attempt returns or raises")

    def _with_earlier(self, result: RunResult, attempt: int) -> RunResult:
        """The result of the whole call: also what the attempts before the last one have committed."""
        from dataflow.runtime.ledger import summed

        if not attempt:
            return result
        last = [(step, StepCounts(**counts)) for step, counts in result.ledger.items()]
        before = [one for ack in self.earlier for one in ack.counts]
        ledger = {step: asdict(counts) for step, counts in summed([*last, *before]).items()}
        sinks = [node.label for node in self.pipeline.nodes]
        return replace(
            result,
            restarts=attempt,
            rows_in=result.rows_in + sum(ack.rows_read for ack in self.earlier),
            rows_out=sum(ledger[sink]["passed"] for sink in sinks if sink in ledger),
            epochs=result.epochs + self.earlier_epochs,
            ledger=ledger,
        )

    def _attempt(self) -> RunResult:
        with _Signals() as signals:
            try:
                return self._begun(signals)
            finally:
                self.was_stopped = signals.caught is not None

    def _begun(self, signals: _Signals) -> RunResult:
        from dataflow.plan import make_plan
        from dataflow.runtime.commit import StoreCommitter, open_store

        plan = make_plan(self.pipeline.nodes, self.workers)
        with open_store(self.given_store, self.system) as store:
            kept_in = None if self.reads_only else store
            with StoreCommitter(kept_in, self._program(), self.system) as committer:
                before = None if self.restart and kept_in is not None else committer.before()
                if before is not None and before.finished:
                    return self._finished_before(before)
                if self.restart and kept_in is not None:
                    kept = kept_in.pipeline(self.pipeline.name)
                    self._tell_restart(kept)
                    resume = committer.resume(kept, restart=True)
                else:
                    self._tell_changes(before)
                    resume = committer.resume(before)
                return self._drive(plan, store, committer, resume, signals)

    def _program(self) -> Program:
        from dataflow.runtime.commit import Program

        nodes = self.pipeline.nodes
        if self.given_store is not None and not self.reads_only:
            check_source_names(nodes)
        steps = kept_steps(nodes, self.store_path)
        return Program(self.pipeline.name, graph_hash(nodes), state_hash(steps), steps)

    def _require_store(self) -> None:
        check_delivery(self.pipeline.nodes, has_store=self.given_store is not None, asked=self.delivery)
        if self.given_store is not None:
            check_sources(self.pipeline.nodes, self.delivery)
        for node in self.pipeline.nodes:
            if isinstance(node.spec, SinkSpec) and node.spec.needs_store and self.given_store is None:
                raise PlanError(
                    f"topic `{node.spec.name}` needs a store to be written to",
                    code="DF0505",
                    help='say where: `.run(store="run/store")`, or `--store run/store` on the command line',
                ).at(node.origin)
            self._check_outside(node)

    def _check_outside(self, node: Node) -> None:
        """What a sink writes may not be a part of the run's store."""
        store, path = self.store_path, node.spec.path if isinstance(node.spec, SinkSpec) else ""
        if store is None or not path:
            return
        inside = os.path.join(os.path.realpath(store), "")
        if os.path.join(os.path.realpath(path), "").startswith(inside):
            raise PlanError(
                f"{node.spec.describe()} would write into the store {store} itself; nothing was changed",
                code="DF0505",
                help="name a path outside of it; a topic of the run's store is written without `store=`",
            ).at(node.origin)

    def _tell_restart(self, before: PipelineState | None) -> None:
        if before is not None:
            sys.stderr.write(
                f"pipeline `{self.pipeline.name}` begins again at the start of its inputs: rows that it has written up "
                f"to epoch {before.epoch} stay where they are, and come once more\n"
            )

    def _tell_changes(self, before: PipelineState | None) -> None:
        if before is not None and before.graph_hash != self.pipeline.graph_hash():
            sys.stderr.write(
                f"pipeline `{self.pipeline.name}` has changed since epoch {before.epoch}, in steps that keep nothing: "
                "rows from here on are treated in the new way\n"
            )

    def _drive(
        self, plan: Plan, store: Store | None, committer: StoreCommitter, resume: Resume, signals: _Signals
    ) -> RunResult:
        from dataflow.runtime.coordinator import Coordinator
        from dataflow.runtime.job import Job
        from dataflow.runtime.process import TunedProcess

        coordinator = Coordinator(
            self.system,
            committer,
            self.interval_seconds,
            self.enough,
            first_epoch=resume.epoch + 1,
            to_head=self.to_head,
        )
        job = Job(
            plan,
            self.system,
            name=self.pipeline.name,
            store=store,
            acks=coordinator,
            resume=resume,
            to_head=self.to_head,
            exactly_once=sources_of_exactly_once(self.pipeline.nodes, self.delivery) if resume.durable else frozenset(),
        )
        if not self.reads_only:
            LOG.info("delivery: %s", delivery_line(self.pipeline.nodes, has_store=resume.durable))
        with TunedProcess():
            try:
                signals.stop_with(coordinator.give_up if self.reads_only else coordinator.stop)
                job.start()
                coordinator.run(job)
            finally:
                job.halt()
                job.join(coordinator.join_seconds)
                job.close()
                signals.restore()
                self.restart = self.restart and not coordinator.epochs
                self.epochs = coordinator.epochs
                self.committed = coordinator.committed
        job.raise_failure()
        if self.reads_only:
            signals.pass_on()
        if coordinator.gave_up:
            raise self._given_up(job)
        coordinator.finish()
        job.raise_unclosed()
        stopped = signals.caught if coordinator.stopped and coordinator.stop_asked else None
        if stopped is not None:
            _tell_left_behind(job)
        result = self._result(job, coordinator, stopped)
        _tell_unread(result.unread, self.pipeline.name if resume.durable else None)
        return result

    def _given_up(self, job: Job) -> RunError:
        stopped = f"`{self.pipeline.name}` was stopped, but what was in flight could not be committed"
        if job.lacking is not None:
            return RunError(
                f"{stopped}: the disk is full: {job.lacking}",
                help="the last commit stands; make room, then run again",
            )
        return RunError(
            f"{stopped} in time",
            help="the last commit stands; a source or sink was busy in a call that did not return",
        )

    def _result(self, job: Job, coordinator: Coordinator, stopped: str | None) -> RunResult:
        ledger = {step: asdict(counts) for step, counts in job.ledger().items()}
        return RunResult(
            self.pipeline.name,
            rows_in=sum(source.rows_total for source in job.sources),
            rows_out=sum(ledger[node.label]["passed"] for node in self.pipeline.nodes),
            seconds=self.system.clock.monotonic() - self.began,
            epochs=coordinator.epochs,
            ledger=ledger,
            unread=tuple(one for one in job.unread if one.rows),
            stopped=stopped,
            bounded=all(node.type.bounded for node in self.pipeline.nodes),
            costs=replace(coordinator.costs, stall=max(worker.stalled_seconds for worker in job.workers)),
        )

    def _finished_before(self, before: PipelineState) -> RunResult:
        self._refuse_growth(before)
        sys.stderr.write(f"pipeline `{self.pipeline.name}` has finished in this store before; nothing was done\n")
        seconds = self.system.clock.monotonic() - self.began
        return RunResult(self.pipeline.name, 0, 0, seconds, 0, {}, already_finished=True)

    def _refuse_growth(self, before: PipelineState) -> None:
        """Windows were final when the input had ended: what has come since has no place in them."""
        from dataflow.runtime.resume import grown_source

        grown = grown_source(in_order(self.pipeline.nodes), before, self.given_store, self.system)
        if grown is not None:
            raise PlanError(
                f"pipeline `{self.pipeline.name}` has finished in this store, and `{grown.stable_name}` has more rows "
                "now: its windows were final when it ended; nothing was changed",
                code="DF0407",
                help="give the pipeline another name, or begin again with `restart`; input that grows is read with "
                '`until="head"`, which leaves windows open',
            ).at(grown.origin)


def _tell_left_behind(job: Job) -> None:
    """A generator cannot be asked for its rows again: those that a stop came too early for are told of."""
    for name, dispenser in job.dispensers.items():
        if rows := dispenser.left_behind():
            what = "1 row" if rows == 1 else f"{rows} rows"
            sys.stderr.write(
                f"`{name}`: {what} behind the last commit came from its generator before the run was stopped, and "
                "were not used; a generator gives its rows only once\n"
            )


def _tell_unread(unread: tuple[UnreadRows, ...], kept_by: str | None) -> None:
    """Rows that nobody reads are told of: the number and the first ones, and where they are kept."""
    total: dict[tuple[str, str], UnreadRows] = {}
    for one in unread:
        known = total.setdefault((one.step, one.port), UnreadRows(one.step, one.port))
        known.rows += one.rows
        known.first += one.first
    for one in total.values():
        rows = "row" if one.rows == 1 else "rows"
        what = f"late {rows}" if one.port == "late" else f"{rows} could not be computed and"
        kept = f"; they are in the topic `{topic_of(kept_by, one.port)}`" if kept_by is not None else ""
        sys.stderr.write(f"{one.step}: {one.rows} {what} left the pipeline unread (`.{one.port}` reads them{kept}):\n")
        for row in one.first[:10]:
            sys.stderr.write(f"  {row}\n")


class _Signals:
    """SIGTERM and SIGINT ask a run to stop, once; after that they do what they did before.

    A SIGTERM that comes before there is anything to stop is kept until there is. Ctrl-C is not: whoever waits at a
    terminal for a source that does not open wants to get away.
    """

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}
        self.caught: str | None = None

    def __enter__(self) -> _Signals:
        self._catch(signal.SIGTERM)
        return self

    def stop_with(self, stop: Callable[[], None]) -> None:
        """What to do from now on; at once, if the signal has come."""
        self._stop = stop
        self._catch(signal.SIGINT)
        if self.caught is not None:
            self.restore()
            stop()

    def _catch(self, number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.caught = signal.Signals(number).name
        self.restore()
        if self._stop is not None:
            self._stop()

    def pass_on(self) -> None:
        """Do with what was caught as if it had not been: a table of some rows would pass for one of all."""
        if self.caught is None:
            return
        signal.raise_signal(signal.Signals[self.caught])
        if self.caught == "SIGINT":  # the program has a handler of its own, which has returned
            raise KeyboardInterrupt
        raise RunError(f"{self.caught} came before all rows were read", help="nothing was kept: run it again")

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

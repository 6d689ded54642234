"""A running pipeline: builds the tasks of a plan, starts the workers, ends them all together.

The only place that makes threads. The hard part is the end: a failure in any task must stop every other one,
leave the last commit as it is, and reach the user with the line of the step that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from dataflow.errors import DataflowError, Origin, RunError
from dataflow.graph.nodes import Node
from dataflow.message import Barrier, Batch
from dataflow.operators.base import (
    UNIT_ROWS,
    Operator,
    OperatorContext,
    ReadRequest,
    Receiver,
    Sink,
    SinkContext,
    SinkSpec,
    SourceSpec,
    StepCounts,
)
from dataflow.plan import EdgePlan, OperatorPlan, Order, Plan, StagePlan
from dataflow.runtime.channel import Channel
from dataflow.runtime.dispenser import Dispenser
from dataflow.runtime.exchange import Edge
from dataflow.runtime.inputs import MergedInput, OrderedInput, SourceInput, TimeOrderedInput
from dataflow.runtime.ledger import SHOWN_MAX, UnreadRows, summed
from dataflow.runtime.sink_task import Acks, SinkTask
from dataflow.runtime.task import Input, Task
from dataflow.runtime.worker import Worker
from dataflow.schema import shown_values
from dataflow.system import System, Thread

JOIN_SECONDS = 5.0
"""A worker in a call that does not return (a user's generator) is left behind after this long."""


@dataclass(slots=True)
class Failure:
    """The first error of a job."""

    error: BaseException
    task: str
    step: str | None
    origin: Origin | None


class Job:
    """One run of a plan. `acks` hears of the sinks' epochs."""

    def __init__(self, plan: Plan, system: System, *, name: str, store: object | None, acks: Acks) -> None:
        self.plan, self.system, self.name, self.store, self.acks = plan, system, name, store, acks
        self.failure: Failure | None = None
        self.counts: list[tuple[str, StepCounts]] = []
        self.unread: list[UnreadRows] = []
        self.dispensers: list[Dispenser] = []
        self.sources: list[SourceInput] = []
        self.sinks: list[SinkTask] = []
        self.unsettled: list[str] = []
        """Sinks that could neither commit their part of the last epoch nor take it back."""
        self.workers: list[Worker] = []
        self._threads: list[Thread] = []
        self._shared: dict[object, object] = {}
        self._readers: dict[int, list[SourceInput]] = {}
        self._origins = {node.label: node.origin for node in plan.nodes}
        self._build()

    # ── building ──

    def _build(self) -> None:
        placed = self._place()
        channels = self._channels(placed)
        partitions = self._open_sources()
        tasks: dict[Worker, list[Task]] = {worker: [] for worker in self.workers}
        for stage in self.plan.stages:
            for number, worker in enumerate(placed[stage.number]):
                tasks[worker].append(self._task(stage, number, channels, partitions))
        for worker, own in tasks.items():
            worker.tasks = own[::-1]  # receivers first

    def _place(self) -> dict[int, list[Worker]]:
        """The worker of each task: one of the shared ones, or a thread of its own where a call may block."""
        shared = [self._worker(f"worker-{number}") for number in range(self.plan.workers)]
        placed = {}
        for stage in self.plan.stages:
            if stage.own_thread:
                placed[stage.number] = [self._worker(_stage_name(stage))]
            else:
                placed[stage.number] = [shared[n % len(shared)] for n in range(stage.parallelism)]
        return placed

    def _worker(self, name: str) -> Worker:
        worker = Worker(name, self.system.scheduler.event(), self.fail)
        self.workers.append(worker)
        return worker

    def _channels(self, placed: dict[int, list[Worker]]) -> dict[int, list[list[list[Channel]]]]:
        """For each receiving stage, for each edge that ends there: [sending task][receiving task]."""
        return {
            stage.number: [
                [[Channel(reader.wake, writer.wake) for reader in placed[stage.number]] for writer in placed[s.number]]
                for s in stage.senders
            ]
            for stage in self.plan.stages
        }

    def _open_sources(self) -> dict[int, Dispenser]:
        """By stage; the partitions of all sources are numbered in the order of the sources' names."""
        opened: dict[int, Dispenser] = {}
        first = 0
        sources = [stage for stage in self.plan.stages if stage.source is not None]
        for stage in sorted(sources, key=_stage_name):
            source, request = self._source(stage).source, self._request(stage)
            lock = self.system.scheduler.mutex()
            try:
                opened[stage.number] = Dispenser(source, request, first, stage.parallelism, lock)
            except DataflowError as error:
                raise error.at(cast(Node, stage.source).origin) from None
            first = opened[stage.number].partitions.stop
        self.dispensers = list(opened.values())
        return opened

    def _source(self, stage: StagePlan) -> SourceSpec:
        return cast(SourceSpec, cast(Node, stage.source).spec)

    def _request(self, stage: StagePlan) -> ReadRequest:
        tasks = self._readers.setdefault(stage.number, [])
        return ReadRequest(
            stage.columns,
            stage.dictionary,
            self.system,
            self.store,
            stage.times,
            lambda: min([UNIT_ROWS, *(task.slice_rows for task in tasks)]),
        )

    def _task(
        self,
        stage: StagePlan,
        number: int,
        channels: dict[int, list[list[list[Channel]]]],
        dispensers: dict[int, Dispenser],
    ) -> Task:
        name = f"{_stage_name(stage)}-{number}"
        if stage.sink is not None:
            return self._sink_task(name, stage, self._merging(stage, number, channels[stage.number]))
        partitions = [p for s in stage.partitions for p in dispensers[s].partitions]
        builder = _TaskBuilder(self, number, partitions, channels)
        root = joined([builder.receiver(stage, one) for one in stage.roots])
        source: Input
        if stage.source is not None:
            source = self._reading(stage, number, dispensers[stage.number], builder.edges)
        else:
            source = self._merging(stage, number, channels[stage.number])
        return Task(name, source, root, builder.operators, builder.edges, self.system.clock)

    def _reading(self, stage: StagePlan, number: int, dispenser: Dispenser, edges: Sequence[Edge]) -> Input:
        source = SourceInput(dispenser, self._request(stage), number, stage.positions, edges)
        self.sources.append(source)
        self._readers[stage.number].append(source)
        return source

    def _merging(self, stage: StagePlan, number: int, incoming: list[list[list[Channel]]]) -> Input:
        channels = [to[number] for edge in incoming for to in edge]
        if stage.order is Order.TIME:
            assert stage.order_type is not None
            return TimeOrderedInput(channels, stage.order_type, stage.positions)
        if stage.order is Order.SEQUENCE:
            # Only the tasks of one source hand out units in one order; others are merged as they come.
            groups = [
                sender if sender.source is not None else object()
                for sender, edge in zip(stage.senders, incoming, strict=True)
                for _ in edge
            ]
            return OrderedInput(channels, groups)
        return MergedInput(channels)

    def _sink_task(self, name: str, stage: StagePlan, source: Input) -> SinkTask:
        node = cast(Node, stage.sink)
        spec = cast(SinkSpec, node.spec)
        schema = node.inputs[0].type.schema
        try:
            bounded = node.type.bounded
            sink: Sink = spec.make(
                SinkContext(schema, self.system, self.store, self.name, name=node.stable_name, bounded=bounded)
            )
        except DataflowError as error:
            raise error.at(node.origin) from None
        counts = self.counts_of(node.label)
        task = SinkTask(name, source, sink, schema, counts, self.acks, self.system.clock)
        self.sinks.append(task)
        return task

    def counts_of(self, step: str) -> StepCounts:
        """New counts for one operator."""
        counts = StepCounts()
        self.counts.append((step, counts))
        return counts

    def shared(self, key: object, make: Callable[[], object]) -> object:
        """One object for all tasks."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def wake(self) -> None:
        """Let every worker look again: an operator of another task may be able to go on."""
        for worker in self.workers:
            if not worker.wake.is_set():
                worker.wake.set()

    # ── running ──

    def start(self) -> None:
        self._threads = [
            self.system.scheduler.start_thread(partial(self._run, worker), worker.name) for worker in self.workers
        ]

    def _run(self, worker: Worker) -> None:
        worker.run()
        worker.left = True
        self.acks.look()

    @property
    def over(self) -> bool:
        return self.failure is not None or all(worker.ended for worker in self.workers)

    def begin_epoch(self, barrier: Barrier) -> dict[str, dict[str, int]]:
        """Cut the input of every source; returns the units before the cut by source and partition."""
        cut = {}
        for stage, dispenser in zip(self._source_stages(), self.dispensers, strict=True):
            cut[_stage_name(stage)] = dispenser.begin_epoch(barrier)
        self.wake()
        return cut

    def _source_stages(self) -> list[StagePlan]:
        return sorted((stage for stage in self.plan.stages if stage.source is not None), key=_stage_name)

    def fail(self, task: Task, error: BaseException) -> None:
        """The first failure ends the job; called by a worker."""
        if self.failure is None:
            step, origin = _failed_step(error), None
            if (step is None and isinstance(task, SinkTask)) or task.input in self.sources:
                step = step or self._end_of(task)
            origin = self._origins.get(step) if step else None
            self.failure = Failure(error, task.name, step, origin)
        self.halt()
        self.acks.look()

    def _end_of(self, task: Task) -> str | None:
        """The step of a task without an operator in the failing call: its source or sink."""
        name = task.name.rpartition("-")[0]
        for stage in self.plan.stages:
            node = stage.sink or stage.source
            if node is not None and _stage_name(stage) == name:
                return node.label
        return None

    def halt(self) -> None:
        """Stop all workers where they are."""
        for worker in self.workers:
            worker.stopped = True
            worker.wake.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def close(self) -> None:
        """Finish what the store has committed, take back what it has not, and let the sinks go. The workers have
        stopped; a sink that is still inside of a call is left to it."""
        busy = {id(task) for worker in self.workers if not worker.left for task in worker.tasks}
        for task in self.sinks:
            if self._threads and id(task) in busy:
                continue
            try:
                if not task.ended:
                    task.settle()
                close = getattr(task.sink, "close", None)
                if close is not None:
                    close()
            except Exception as error:  # noqa: BLE001  # the other sinks have to be settled all the same
                self.unsettled.append(self._end_of(task) or task.name)
                if self.failure is None:
                    self.fail(task, error)

    def ledger(self) -> dict[str, StepCounts]:
        return summed(self.counts)

    def raise_failure(self) -> None:
        """Raise what ended the job, as an error that names the user's step and line."""
        failure = self.failure
        if failure is None:
            return
        if isinstance(failure.error, DataflowError):
            raise failure.error.at(failure.origin)
        step = failure.step or failure.task
        raise RunError(
            f"{step} failed: {type(failure.error).__name__}: {failure.error}",
            help=f"the last commit stands; what came after it was taken back{self._told_unsettled()}",
            origin=failure.origin,
        ) from failure.error

    def _told_unsettled(self) -> str:
        if not self.unsettled:
            return ""
        return f", but not by {', '.join(self.unsettled)}: see there what it has of the last epoch"


class _TaskBuilder:
    """Builds the operators and edges of one task."""

    def __init__(
        self, job: Job, number: int, partitions: Sequence[int], channels: dict[int, list[list[list[Channel]]]]
    ) -> None:
        self.job, self.number, self.partitions, self.channels = job, number, partitions, channels
        self.operators: list[Operator] = []
        self.edges: list[Edge] = []

    def receiver(self, stage: StagePlan, plan: OperatorPlan | EdgePlan) -> Receiver:
        if isinstance(plan, EdgePlan):
            return self._edge(stage, plan)
        node, job = plan.node, self.job
        context = OperatorContext(
            job.system,
            node.label,
            job.counts_of(node.label),
            self.partitions,
            job.wake,
            lambda make: job.shared(plan, make),
        )
        operator = plan.build(context)
        self.operators.append(operator)
        for port in ("out", "late", "errors"):
            setattr(operator, port, self._port(stage, plan, port))
        return operator

    def _port(self, stage: StagePlan, plan: OperatorPlan, port: str) -> Receiver:
        receivers = [self.receiver(stage, one) for one in plan.ports.get(port, ())]
        if receivers or port == "out":
            return joined(receivers)
        return Unread(self.job, plan.node.label, port)

    def _edge(self, stage: StagePlan, plan: EdgePlan) -> Edge:
        target = plan.target
        index = target.edges.index(plan)
        edge = Edge(self.channels[target.number][index][self.number], plan.keys, target.order is Order.SEQUENCE)
        self.edges.append(edge)
        return edge


class Fan(Receiver):
    """One output with several receivers."""

    def __init__(self, receivers: Sequence[Receiver]) -> None:
        self.receivers = receivers

    def on_batch(self, batch: Batch) -> None:
        for receiver in self.receivers:
            receiver.on_batch(batch.with_columns(dict(batch.columns)))

    def on_watermark(self, time_us: int) -> None:
        for receiver in self.receivers:
            receiver.on_watermark(time_us)

    def on_progress(self, sequence: int) -> None:
        for receiver in self.receivers:
            receiver.on_progress(sequence)

    def on_partition_end(self, partition: int, units_total: int) -> None:
        for receiver in self.receivers:
            receiver.on_partition_end(partition, units_total)

    def on_end(self) -> None:
        for receiver in self.receivers:
            receiver.on_end()


def joined(receivers: Sequence[Receiver]) -> Receiver:
    """Several receivers as one."""
    return receivers[0] if len(receivers) == 1 else Fan(receivers)


class Unread(Receiver):
    """Late or error rows that no later step reads: counted, and the first ones kept for the user."""

    def __init__(self, job: Job, step: str, port: str) -> None:
        self.rows = UnreadRows(step, port)
        job.unread.append(self.rows)

    def on_batch(self, batch: Batch) -> None:
        room = SHOWN_MAX - len(self.rows.first)
        if room > 0:
            shown = {name: shown_values(column.slice(0, room)) for name, column in batch.columns.items()}
            self.rows.first += [
                ", ".join(f"{name}={value}" for name, value in zip(shown, row, strict=True) if value is not None)
                for row in zip(*shown.values(), strict=True)
            ]
        self.rows.rows += batch.num_rows


def _stage_name(stage: StagePlan) -> str:
    node = stage.source or stage.sink
    return node.stable_name if node is not None else f"stage {stage.number}"


def _failed_step(error: BaseException) -> str | None:
    """The step of the innermost operator in the error's traceback."""
    step = None
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, Operator):
            step = owner.context.step
        trace = trace.tb_next
    return step

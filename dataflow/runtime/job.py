"""A running pipeline: builds the tasks of a plan, starts the workers, ends them all together.

The only place that makes threads. The hard part is the end: a failure in any task must stop every other one,
leave the last commit as it is, and reach the user with the line of the step that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from dataflow.errors import CloseError, DataflowError, Origin, RunError
from dataflow.graph.nodes import Node
from dataflow.message import Barrier, Batch
from dataflow.operators.base import (
    UNIT_ROWS,
    Operator,
    OperatorContext,
    Position,
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
from dataflow.runtime.epoch import Acks, Resume
from dataflow.runtime.exchange import Edge
from dataflow.runtime.inputs import MergedInput, OrderedInput, SourceInput, TimeOrderedInput
from dataflow.runtime.ledger import summed
from dataflow.runtime.room import BlockingRoom
from dataflow.runtime.sink_task import SinkTask
from dataflow.runtime.task import Input, Parts, Task
from dataflow.runtime.unread import Unread, UnreadRows
from dataflow.runtime.worker import Worker
from dataflow.system import System, Thread

USERS_ERRORS = (Exception, SystemExit)
"""What a source or sink may raise in the thread of `run`; one that exits would end the process without a word."""


@dataclass(slots=True)
class Failure:
    """The first error of a job."""

    error: BaseException
    task: str
    step: str | None
    origin: Origin | None


class Job:
    """One run of a plan. `acks` hears of the tasks' epochs; `resume` tells where an earlier run left off."""

    def __init__(
        self,
        plan: Plan,
        system: System,
        *,
        name: str,
        store: object | None,
        acks: Acks,
        resume: Resume | None = None,
        to_head: bool = False,
        exactly_once: Collection[str] = (),
    ) -> None:
        self.plan, self.system, self.name, self.store, self.acks = plan, system, name, store, acks
        self.resume, self.to_head, self._exactly_once = resume or Resume(), to_head, exactly_once
        self.failure: Failure | None = None
        self.dispensers: dict[str, Dispenser] = {}
        """By the name of the source."""
        self.sources: list[SourceInput] = []
        self.tasks: list[Task] = []
        self.sinks: list[SinkTask] = []
        self.unsettled: list[str] = []
        """Sinks that could neither commit their part of the last epoch nor take it back."""
        self.unclosed: list[tuple[SinkTask, BaseException]] = []
        self.workers: list[Worker] = []
        self._threads: list[Thread] = []
        self._over = system.scheduler.event()
        """Set while it does not run: nobody waits for room on a disk then."""
        self._over.set()
        self._shared: dict[object, object] = {}
        self._readers: dict[int, list[SourceInput]] = {}
        self._origins = {node.label: node.origin for node in plan.nodes}
        try:
            self._build()
        except BaseException:
            self.close()  # of what is there already
            raise

    # ── building ──

    def _build(self) -> None:
        placed = self._place()
        channels = self._channels(placed)
        partitions = self._open_sources()
        tasks: dict[Worker, list[Task]] = {worker: [] for worker in self.workers}
        for stage in self.plan.stages:
            for number, worker in enumerate(placed[stage.number]):
                task = self._task(stage, number, channels, partitions)
                tasks[worker].append(task)
                self.tasks.append(task)
        for worker, own in tasks.items():
            worker.tasks = own[::-1]  # receivers first

    def _place(self) -> dict[int, list[Worker]]:
        """The worker of each task: one of the shared ones, or a thread of its own where a call may block. Sinks of one
        file have one thread together, so that no two of them wait for each other's transaction."""
        shared = [self._worker(f"worker-{number}") for number in range(self.plan.workers)]
        own: dict[str, Worker] = {}
        placed = {}
        for stage in self.plan.stages:
            if stage.own_thread:
                thread = _thread_name(stage)
                own[thread] = own.get(thread) or self._worker(_stage_name(stage))
                placed[stage.number] = [own[thread]]
            else:
                placed[stage.number] = [shared[n % len(shared)] for n in range(stage.parallelism)]
        return placed

    def _worker(self, name: str) -> Worker:
        worker = Worker(name, self.system.scheduler.event(), self.fail, self.system.clock)
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
            node, name = cast(Node, stage.source), _stage_name(stage)
            try:
                opened[stage.number] = self.dispensers[name] = Dispenser(
                    source,
                    request,
                    first,
                    stage.parallelism,
                    (self.system.scheduler.mutex(), self.system.scheduler.mutex()),
                    positions=self.resume.positions.get(name),
                    wake=self._look_again,
                )
            except DataflowError as error:
                raise error.at(node.origin) from None
            except USERS_ERRORS as error:
                raise _not_begun(node, error) from error
            first += len(opened[stage.number].partitions)
        return opened

    def _look_again(self) -> None:
        self.wake()
        self.acks.look()

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
            self.to_head,
            self.resume.durable,
            _stage_name(stage) in self._exactly_once,
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
        partitions: dict[int, str] = {}
        for sender in stage.partitions:
            source_name = _stage_name(self.plan.stages[sender])
            partitions |= {p: f"{source_name}/{n}" for p, n in dispensers[sender].partitions.items()}
        builder = _TaskBuilder(self, number, partitions, channels)
        root = joined([builder.receiver(stage, one) for one in stage.roots])
        source: Input
        if stage.source is not None:
            source = self._reading(stage, number, dispensers[stage.number], builder.edges)
        else:
            source = self._merging(stage, number, channels[stage.number])
        parts = Parts(
            name,
            source,
            root,
            builder.operators,
            builder.edges,
            builder.counts,
            builder.unread,
            self.resume.durable,
        )
        return self._restored(Task(parts, self.acks, self.system.clock))

    def _restored(self, task: Task) -> Task:
        """Give what an earlier run has kept to the operators of a task."""
        for one in task.keepers:
            saved = self.resume.states.get(one.state_name) if one.state_name is not None else None
            if saved is not None:
                one.restore(saved)
        return task

    def _reading(self, stage: StagePlan, number: int, dispenser: Dispenser, edges: Sequence[Edge]) -> Input:
        source = SourceInput(dispenser, self._request(stage), number, stage.positions, edges)
        self.sources.append(source)
        self._readers[stage.number].append(source)
        return source

    def _merging(self, stage: StagePlan, number: int, incoming: list[list[list[Channel]]]) -> Input:
        channels = [to[number] for edge in incoming for to in edge]
        if stage.order is Order.TIME:
            assert stage.order_type is not None
            node = cast(Node, stage.sink or stage.gathers_for)
            name = f"{node.stable_name}/order" if self.resume.durable else None
            return TimeOrderedInput(channels, stage.order_type, stage.positions, name)
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
        schema, sink_name = node.inputs[0].type.schema, node.stable_name
        staging = self.resume.staging(sink_name, schema)
        context = SinkContext(
            schema,
            self.system,
            self.store,
            self.name,
            sink_name,
            self.resume.run,
            node.type.bounded,
            staging,
            BlockingRoom(self.system.clock, self._over),
            self.resume.restart,
            self.resume.home,
        )
        try:
            sink: Sink = spec.make(context)
            if self.resume.durable:
                _recover(sink, self.resume.handles.get(sink_name))
            task = SinkTask(
                Parts(name, source, Receiver(), counts=[(node.label, StepCounts())], durable=self.resume.durable),
                self.acks,
                self.system.clock,
                sink=sink,
                sink_name=sink_name,
                schema=schema,
                staging=staging,
                epoch=self.resume.epoch + 1,
            )
        except DataflowError as error:
            raise error.at(node.origin) from None
        except USERS_ERRORS as error:
            raise _not_begun(node, error) from error
        self._restored(task)
        self.sinks.append(task)
        return task

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
        self._over.clear()
        self._threads = [
            self.system.scheduler.start_thread(partial(self._run, worker), worker.name, partial(self._turn, worker))
            for worker in self.workers
        ]

    def _run(self, worker: Worker) -> None:
        worker.run()
        self._leave(worker)

    def _turn(self, worker: Worker) -> bool:
        """One round of a worker that has no thread of its own."""
        if not worker.stopped and not worker.ended:
            return worker.round()
        if not worker.left:
            self._leave(worker)
        return False

    def _leave(self, worker: Worker) -> None:
        worker.left = True
        self.acks.look()

    @property
    def over(self) -> bool:
        return self.failure is not None or all(worker.ended for worker in self.workers)

    def begin_epoch(self, barrier: Barrier) -> None:
        """Cut the input of every source."""
        for dispenser in self.dispensers.values():
            dispenser.begin_epoch(barrier)
        self.wake()

    def positions(self, *, ended: bool) -> dict[str, dict[str, Position]]:
        """Where the sources are cut, by source and partition; when all tasks have got the barrier, or have ended."""
        return {name: dispenser.positions(ended=ended) for name, dispenser in self.dispensers.items()}

    @property
    def at_head(self) -> bool:
        """Whether all that is there has been read; only in a run that ends there."""
        return all(dispenser.at_head for dispenser in self.dispensers.values())

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
        self._over.set()
        for worker in self.workers:
            worker.stopped = True
            worker.wake.set()

    def join(self, seconds: float) -> None:
        """Wait for all threads together so long; one in a call that does not return is left to it."""
        until = self.system.clock.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(until - self.system.clock.monotonic(), 0.0))

    def close(self) -> None:
        """Finish what the store has committed, take back what it has not, and let the sinks go. The workers have
        stopped; a source or sink that is still inside of a call is left to it."""
        if all(worker.left for worker in self.workers):
            for dispenser in self.dispensers.values():
                dispenser.close()
        busy = {id(task) for worker in self.workers if not worker.left for task in worker.tasks}
        for task in self.sinks:
            if self._threads and id(task) in busy:
                continue
            try:
                if not task.ended:
                    task.settle()
            except USERS_ERRORS as error:  # the other sinks have to be settled all the same
                self.unsettled.append(self._end_of(task) or task.name)
                if self.failure is None:
                    self.fail(task, error)
                continue
            try:
                getattr(task.sink, "close", lambda: None)()
            except USERS_ERRORS as error:  # nothing depends on it: the sink has committed, or taken back
                self.unclosed.append((task, error))

    @property
    def lacking(self) -> str | None:
        """What a sink has no room for on the disk, if one waits for that."""
        return next((sink.writer.room.lacking for sink in self.sinks if sink.writer.room.lacking), None)

    def ledger(self) -> dict[str, StepCounts]:
        """Where each row went, by step, as far as the tasks have come."""
        return summed(one for task in self.tasks for one in task.parts.counts)

    @property
    def unread(self) -> list[UnreadRows]:
        """Late and error rows that no later step reads."""
        return [one.rows for task in self.tasks for one in task.parts.unread]

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
            help=f"the last commit stands; what came after it was taken back{self._told_unsettled()}"
            f"{self._told_unclosed()}",
            origin=failure.origin,
        ) from failure.error

    def raise_unclosed(self) -> None:
        """Tell of a sink that could not be closed, when nothing else has failed."""
        if not self.unclosed:
            return
        task, error = self.unclosed[0]
        step = self._end_of(task) or task.name
        raise CloseError(
            f"{step} could not be closed: {type(error).__name__}: {error}",
            help="all that was read is committed, by this sink too: nothing was taken back, and nothing comes again",
            origin=self._origins.get(step),
        ) from error

    def _told_unclosed(self) -> str:
        told = [f"{self._end_of(task) or task.name} ({type(error).__name__}: {error})" for task, error in self.unclosed]
        return f"; {', '.join(told)} could not be closed either" if told else ""

    def _told_unsettled(self) -> str:
        if not self.unsettled:
            return ""
        return f", but not by {', '.join(self.unsettled)}: see there what it has of the last epoch"


class _TaskBuilder:
    """Builds the operators and edges of one task."""

    def __init__(
        self, job: Job, number: int, partitions: Mapping[int, str], channels: dict[int, list[list[list[Channel]]]]
    ) -> None:
        self.job, self.number, self.partitions, self.channels = job, number, partitions, channels
        self.operators: list[Operator] = []
        self.edges: list[Edge] = []
        self.counts: list[tuple[str, StepCounts]] = []
        self.unread: list[Unread] = []

    def receiver(self, stage: StagePlan, plan: OperatorPlan | EdgePlan) -> Receiver:
        if isinstance(plan, EdgePlan):
            return self._edge(stage, plan)
        node, job = plan.node, self.job
        counts = StepCounts()
        self.counts.append((node.label, counts))
        context = OperatorContext(
            job.system,
            node.label,
            counts,
            self.partitions,
            job.wake,
            lambda make: job.shared(plan, make),
            node.stable_name,
            self.number,
            stage.parallelism,
            job.resume.durable,
            job.acks.epoch_wanted,
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
        name = plan.node.stable_name
        durable, wanted = self.job.resume.durable, self.job.acks.epoch_wanted
        unread = Unread(plan.node.label, port, name, keeps=durable, epoch_wanted=wanted)
        self.unread.append(unread)
        return unread

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


def _stage_name(stage: StagePlan) -> str:
    node = stage.source or stage.sink
    return node.stable_name if node is not None else f"stage {stage.number}"


def _not_begun(node: Node, error: BaseException) -> RunError:
    return RunError(
        f"{node.label} could not begin: {type(error).__name__}: {error}",
        help="the last commit stands; what the run before has not finished comes again with the next one",
        origin=node.origin,
    )


def _thread_name(stage: StagePlan) -> str:
    """Equal for stages that share a thread."""
    place = cast(SinkSpec, stage.sink.spec).place if stage.sink is not None else ()
    return f"file {place[0]}" if place else f"stage {stage.number}"


def _recover(sink: Sink, handle: object) -> None:
    """Let a sink finish what the last run has committed, and clear away what it has not."""
    recover = getattr(sink, "recover", None)
    if recover is not None:
        recover(handle)
    elif handle is not None:
        sink.commit(handle)


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

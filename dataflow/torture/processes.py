"""Processes to be killed: forked in milliseconds from a warm parent, each in a group of its own.

A fork is safe only while there is one thread. So a fresh interpreter, the warm parent, imports what the work needs
and forks whom it is asked for; it never starts a thread itself. What is acknowledged goes through a socket that keeps
messages whole to a driver outside of the killed group, and everything that was sent before the kill arrives.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dataflow.system import RealSystem
from dataflow.torture.frame import Budget, Plan, Tally, scratch, scratch_below

MESSAGE_BYTES_MAX = 1 << 17
SILENCE_SECONDS_MAX = 60.0
"""Of a process that tells of each trial: then it hangs. A trial takes milliseconds, its set-up a few seconds."""
PR_SET_PDEATHSIG = 1
STOPPED = "stopped at what was looked for"
"""Counted when a plan's `stop_at` was found."""
BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from dataflow.torture.processes import serve
serve(int(sys.argv[2]))
"""
IMPORTED = ("dataflow.state.catalog", "dataflow.state.store", "dataflow.torture.mutants")
"""What the warm parent has in memory before it forks."""


class Channel:
    """Messages (anything that JSON knows) between two processes; each arrives whole or not at all."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: object) -> None:
        self._socket.send(json.dumps(message).encode())

    def receive(self, seconds_max: float | None = None) -> Any:
        """The next message; None when the other side is gone. TimeoutError when there was none for so long."""
        self._socket.settimeout(seconds_max)
        try:
            data = self._socket.recv(MESSAGE_BYTES_MAX)
        except ConnectionResetError:
            return None
        return json.loads(data) if data else None

    def close(self) -> None:
        self._socket.close()


class Victim:
    """A forked process (and its group), seen from outside."""

    def __init__(self, pid: int, channel: Channel, wait: Callable[[int], int]) -> None:
        self.pid, self.channel, self._wait = pid, channel, wait

    def send_signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self.pid, number)

    def end(self, number: int = signal.SIGKILL) -> tuple[list[Any], int]:
        """Kill the group; return what it had said until then, and its exit code (minus the signal's number)."""
        self.send_signal(number)
        return self.rest()

    def rest(self) -> tuple[list[Any], int]:
        """Wait until it has ended by itself; return what it said, and its exit code."""
        said = []
        while (message := self.channel.receive()) is not None:
            said.append(message)
        self.channel.close()
        return said, os.waitstatus_to_exitcode(self._wait(self.pid))


def fork(work: Callable[[Channel], None]) -> Victim:
    """Run `work` in a forked process with a group of its own. Only from a process without threads."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _be_victim(lambda: work(Channel(theirs)))
    theirs.close()
    _own_group(pid)
    return Victim(pid, Channel(ours), lambda pid: os.waitpid(pid, 0)[1])


def spawn(command: Callable[[int], list[str]], output: Path) -> Victim:
    """Run a program in a group of its own; what it prints goes to the end of a file.

    `command` gets the descriptor on which it may send messages.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.set_inheritable(True)
    arguments = command(theirs.fileno())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    prints = [(os.POSIX_SPAWN_OPEN, number, str(output), flags, 0o600) for number in (1, 2)]
    pid = os.posix_spawn(arguments[0], arguments, environment, setpgroup=0, file_actions=prints)
    theirs.close()
    return Victim(pid, Channel(ours), lambda pid: os.waitpid(pid, 0)[1])


def _be_victim(work: Callable[[], None]) -> None:
    """Work in this forked process and leave it without the parent's clean-up."""
    code = 1
    try:
        os.setpgid(0, 0)
        die_with_parent()
        work()
        code = 0
    except BaseException:  # noqa: BLE001 (a forked process must not go on as its parent)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _own_group(pid: int) -> None:
    """Both sides do it: whoever comes first, the group is there before it is signalled."""
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)


def die_with_parent() -> None:
    """Be killed when the parent ends: nothing stays behind, not even what was stopped."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class WarmParent:
    """An interpreter that has imported everything, has one thread, and forks on request. From any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", BOOT, json.dumps(sys.path), str(theirs.fileno())]
        # numpy's linear algebra starts threads when it is imported, unless told that there is one core.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()

    def start(self, function: str, /, **arguments: object) -> Victim:
        """Fork a process that calls `module:function` with a channel to here and the arguments."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"function": function, "arguments": arguments}).encode()
        with self._mutex:
            socket.send_fds(self._socket, [request], [theirs.fileno()])
            pid = int(json.loads(self._socket.recv(MESSAGE_BYTES_MAX)))
        theirs.close()
        return Victim(pid, Channel(ours), self._wait)

    def _wait(self, pid: int) -> int:
        with self._mutex:
            self._socket.send(json.dumps({"wait": pid}).encode())
            return int(json.loads(self._socket.recv(MESSAGE_BYTES_MAX)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.wait()


def serve(descriptor: int) -> None:
    """The warm parent's life: fork whom it is asked for, until nobody is there to ask."""
    for name in IMPORTED:
        import_module(name)
    requests = socket.socket(fileno=descriptor)
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES_MAX, 1)
        if not data:
            return
        request = json.loads(data)
        if "wait" in request:
            answer = os.waitpid(request["wait"], 0)[1]
        else:
            answer = _fork_for(requests, request, descriptors[0])
        requests.send(json.dumps(answer).encode())


def _fork_for(requests: socket.socket, request: dict[str, Any], descriptor: int) -> int:
    pid = os.fork()
    if pid == 0:
        requests.close()
        channel = Channel(socket.socket(fileno=descriptor))
        module, _, name = request["function"].partition(":")
        _be_victim(lambda: getattr(import_module(module), name)(channel, **request["arguments"]))
    os.close(descriptor)
    _own_group(pid)
    return pid


# ── trials, shared out to some processes ──


class Reporter:
    """How a process tells the driver of its trials: each before it begins, what was found when it has ended."""

    def __init__(self, channel: Channel, trials: int, deadline: float | None, stop_at: str | None) -> None:
        self._channel, self._trials, self._deadline, self._stop_at = channel, trials, deadline, stop_at
        self._clock = RealSystem().clock
        self._has_stopped = False

    def goes_on(self, done: int) -> bool:
        """Whether there is another trial for this process, after so many."""
        if self._has_stopped:
            return False
        return self._clock.monotonic() < self._deadline if self._deadline is not None else done < self._trials

    @contextmanager
    def trial(self, number: int) -> Iterator[Tally]:
        """One trial; the driver knows its number should this process die of it."""
        self._channel.send({"begins": number})
        tally = Tally(trials=1)
        yield tally
        if tally.says(self._stop_at):
            self._has_stopped = True
            tally.count(STOPPED)
        self._channel.send({"tally": vars(tally)})


def run_lanes(plan: Plan, budget: Budget, function: str, **arguments: object) -> Tally:
    """Call `function(reporter, lane=, lanes=, first=, seed=, **arguments)` in a process for each lane, and add up.

    A process that dies of a signal, or falls silent, is counted; another one goes on behind the trial that did it.
    """
    with scratch() as folder, WarmParent() as warm, ThreadPoolExecutor(plan.lanes) as threads:
        lanes = [_Lane(warm, folder, plan, budget, function, number, arguments) for number in range(plan.lanes)]
        total = Tally()
        for tally in threads.map(_Lane.run, lanes):
            total.add(tally)
    return total


class _Lane:
    """One lane's share of the trials, by one process after another."""

    def __init__(
        self,
        warm: WarmParent,
        folder: Path,
        plan: Plan,
        budget: Budget,
        function: str,
        number: int,
        arguments: dict[str, object],
    ) -> None:
        self._warm, self._plan = warm, plan
        self._request = {
            "function": function,
            "folder": str(folder),
            "mutant": plan.mutant,
            "deadline": budget.deadline,
            "stop_at": plan.stop_at,
        }
        self._trials = budget.trials // plan.lanes + (number < budget.trials % plan.lanes)
        self._keywords = {"lane": number, "lanes": plan.lanes, "seed": plan.seed, **arguments}
        self._trial = -1
        self._tally = Tally()

    def run(self) -> Tally:
        while not self._has_ended():
            pass
        return self._tally

    def _has_ended(self) -> bool:
        """Run one process to its end; whether the lane has come to its end with it."""
        trials = self._trials - self._tally.trials  # those of a process that died are not made once more
        if trials <= 0 and self._request["deadline"] is None:
            return True
        first = self._trial + 1
        keywords = {**self._keywords, "first": first}
        victim = self._warm.start("dataflow.torture.processes:lane", keywords=keywords, trials=trials, **self._request)
        ending = self._listen(victim.channel)
        _, code = victim.end()
        if ending == "ended":
            return True
        where = f"trial {self._trial} of lane {self._keywords['lane']}, seed {self._plan.seed}"
        self._tally.trials += 1
        if ending == "silent":
            self._tally.find("hung", f"{where}: silent for {SILENCE_SECONDS_MAX:.0f} s")
        elif code < 0:
            self._tally.find("signals", f"{where}: died of {signal.Signals(-code).name}")
        else:
            self._tally.find("wrong", f"{where}: the rig itself failed (its traceback is on stderr)")
        # Without a trial begun, or with a bug of our own, the next process would fail in the same way.
        return code > 0 or self._trial < first or self._plan.stop_at is not None

    def _listen(self, channel: Channel) -> str:
        while True:
            try:
                message = channel.receive(SILENCE_SECONDS_MAX)
            except TimeoutError:
                return "silent"
            if message is None or "ended" in message:
                return "gone" if message is None else "ended"
            self._trial = message.get("begins", self._trial)
            if "tally" in message:
                self._tally.add(Tally(**message["tally"]))


def lane(
    channel: Channel,
    *,
    function: str,
    folder: str,
    mutant: str | None,
    trials: int,
    deadline: float | None,
    stop_at: str | None,
    keywords: dict[str, Any],
) -> None:
    """What one process of `run_lanes` does."""
    from dataflow.torture.mutants import planted

    module, _, name = function.partition(":")
    reporter = Reporter(channel, trials, deadline, stop_at)
    with planted(mutant), scratch_below(Path(folder)):
        getattr(import_module(module), name)(reporter, **keywords)
    channel.send({"ended": True})

"""A stop commits what is in flight and leaves in time, also under a slow sink; nothing is lost or twice."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import dataflow as flow
from dataflow.errors import DiskFullError, RunError
from dataflow.runtime import coordinator


class SlowSink:
    """Writes 2,000 rows a second; asks for a stop once it has written so many."""

    def __init__(self, stop_after: int) -> None:
        self.stop_after = stop_after
        self.rows: list[int] = []
        self.committed: list[int] = []

    def open(self, epoch: int) -> None: ...

    def write(self, batch: pa.RecordBatch) -> None:
        time.sleep(batch.num_rows / 2_000)  # the sink's own slowness is what is tested
        self.rows += batch.column(0).to_pylist()
        if len(self.rows) >= self.stop_after > 0:
            self.stop_after = 0
            os.kill(os.getpid(), signal.SIGTERM)

    def prepare(self, epoch: int) -> int:
        return len(self.rows)

    def commit(self, handle: object) -> None:
        assert isinstance(handle, int)
        self.committed.append(handle)

    def abort(self, handle: object) -> None: ...


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_a_slow_sink_commits_a_prefix(workers: int) -> None:
    assert threading.current_thread() is threading.main_thread()
    sink = SlowSink(stop_after=3_000)
    numbers = flow.from_arrow(pa.table({"n": range(500_000)}))
    result = flow.Pipeline("slow", numbers.to(sink)).run(workers=workers)
    assert result.stopped == "SIGTERM"
    assert sink.rows == list(range(len(sink.rows))) and len(sink.rows) < 500_000
    assert sink.committed[-1] == len(sink.rows) == result.rows_out == result.rows_in


class BusySink(SlowSink):
    """Its first write asks for a stop, and lasts until it is let go."""

    def __init__(self) -> None:
        super().__init__(stop_after=0)
        self.go_on, self.is_left = threading.Event(), threading.Event()
        self.aborted = 0

    def write(self, batch: pa.RecordBatch) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self.go_on.wait(60)
        self.is_left.set()

    def abort(self, handle: object) -> None:
        self.aborted += 1


def test_sinks_that_stay_inside_of_a_call_are_left_to_it_and_nothing_is_committed_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "STOP_SECONDS_MAX", 0.2)
    sinks = [BusySink(), BusySink()]
    numbers = flow.from_arrow(pa.table({"n": range(10)}))
    outputs = [numbers.to(sink, name=f"s{number}") for number, sink in enumerate(sinks)]
    before = set(threading.enumerate())
    heard = signal.signal(signal.SIGTERM, lambda number, frame: None)  # of the second sink
    began = time.monotonic()
    try:
        with pytest.raises(RunError, match="could not be committed in time"):
            flow.Pipeline("busy", *outputs, numbers.write_topic("t")).run(store=tmp_path)
    finally:
        signal.signal(signal.SIGTERM, heard)
    assert time.monotonic() - began < 3
    for sink in sinks:
        sink.go_on.set()
        assert sink.is_left.wait(60)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert [(sink.committed, sink.aborted) for sink in sinks] == [([], 0), ([], 0)]
    with flow.Store(tmp_path) as store:
        assert store.pipeline("busy") is None and not store.topics()


class FullSink(SlowSink):
    """Never finds room; a stop is asked for meanwhile."""

    waits_for_room = True

    def write(self, batch: pa.RecordBatch) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise DiskFullError("rows.log cannot grow")


def test_a_stop_while_the_disk_is_full_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "STOP_SECONDS_MAX", 0.2)
    with pytest.raises(RunError, match=r"the disk is full: rows\.log cannot grow") as caught:
        flow.Pipeline("full", flow.from_arrow(pa.table({"n": range(10)})).to(FullSink(0))).run(store=tmp_path)
    assert caught.value.code == "DF0701"
    assert "make room" in (caught.value.help or "") and "busy" not in (caught.value.help or "")


def interrupted(number: int) -> flow.Stream:
    """Rows without an end, after some of which a signal comes."""

    def rows() -> Iterator[dict[str, int]]:
        for n in itertools.count():
            if n == 1_000:
                os.kill(os.getpid(), number)
            yield {"n": n}

    return flow.from_rows(rows(), {"n": "int64"})


@pytest.mark.parametrize("handler", [signal.default_int_handler, lambda number, frame: None])
def test_ctrl_c_never_makes_a_part_of_the_rows_the_result(handler: Any) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted(signal.SIGINT).collect()
        with pytest.raises(KeyboardInterrupt):
            interrupted(signal.SIGINT).head(10**9)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_in_collect_is_left_to_the_programs_own_handler() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(RunError, match="SIGTERM came before all rows were read"):
            interrupted(signal.SIGTERM).collect()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_a_run_that_fails_while_it_stops_is_not_begun_again(tmp_path: Path) -> None:
    class Broken(SlowSink):
        begun = 0

        def recover(self, handle: object) -> None:
            self.begun += 1

        def commit(self, handle: object) -> None:
            raise OSError("no network")

    sink = Broken(stop_after=10)
    with pytest.raises(RunError, match="no network"):
        flow.Pipeline("p", flow.from_arrow(pa.table({"n": range(100)})).to(sink)).run(store=tmp_path, restarts=2)
    assert sink.begun == 1


def test_a_failing_sink_ends_the_run_with_the_users_line() -> None:
    class Broken(SlowSink):
        def write(self, batch: pa.RecordBatch) -> None:
            raise OSError("no more room")

    with pytest.raises(RunError, match="no more room") as caught:
        flow.Pipeline("broken", flow.from_arrow(pa.table({"n": [1]})).to(Broken(0))).run()
    assert caught.value.origin is not None and caught.value.origin.file == __file__


@pytest.mark.parametrize("place", ["recover", "write", "commit", "close"])
def test_a_sink_that_exits_fails_the_run_as_any_other_exception(tmp_path: Path, place: str) -> None:
    def leave(*given: object) -> None:
        raise SystemExit(5)

    sink = SlowSink(0)
    setattr(sink, place, leave)
    with pytest.raises(RunError, match=r"'sink phone'.*SystemExit: 5") as caught:
        flow.Pipeline("p", flow.from_rows([{"k": 1}]).to(sink, name="phone")).run(store=tmp_path)
    assert caught.value.origin is not None and caught.value.origin.file == __file__


@pytest.mark.parametrize("error", [SystemExit(5), LookupError("no such room")])
@pytest.mark.parametrize("place", ["partitions", "open", "read"])
def test_a_source_that_raises_or_exits_is_named(place: str, error: BaseException) -> None:
    def leave(*given: object) -> None:
        raise error

    source = Pausing()
    setattr(source, place, leave)
    with pytest.raises(RunError, match=r"read 'pausing'.*(SystemExit: 5|LookupError)") as caught:
        flow.Pipeline("p", flow.read(source).to(SlowSink(0))).run()
    assert caught.value.origin is not None and caught.value.origin.file == __file__


class KeptSink:
    """Keeps what happened to each epoch; its first `failures` commits fail."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.written = self.visible = self.epoch = 0
        self.epochs: dict[int, list[str]] = {}

    def open(self, epoch: int) -> None:
        self.epoch = epoch

    def write(self, batch: pa.RecordBatch) -> None:
        self.written += batch.num_rows

    def prepare(self, epoch: int) -> int:
        return epoch

    def commit(self, handle: object) -> None:
        assert isinstance(handle, int)
        if self.failures:
            self.failures -= 1
            self.epochs.setdefault(handle, []).append("failed")
            raise OSError("no network")
        self.epochs.setdefault(handle, []).append("committed")
        self.visible = self.written

    def abort(self, handle: object) -> None:
        self.epochs.setdefault(self.epoch if handle is None else int(str(handle)), []).append("aborted")


@pytest.mark.parametrize("trial", range(8))
def test_a_source_that_fails_leaves_sinks_and_topics_at_the_same_epoch(tmp_path: Path, trial: int) -> None:
    def rows() -> Iterator[dict[str, int]]:
        for number in range(100 + 7 * trial):
            time.sleep(0.0004)  # so that it fails anywhere in an epoch
            yield {"k": number}
        raise ValueError("broken source")

    sink, numbers = KeptSink(), flow.from_rows(rows(), {"k": "int64"})
    pipeline = flow.Pipeline("p", numbers.to(sink), numbers.write_topic("t"))
    with pytest.raises(flow.DataflowError, match="broken source"):
        pipeline.run(store=tmp_path, checkpoint_interval="5ms")
    with flow.Store(tmp_path) as store:
        assert sink.visible == sum(store.read(topic.name).num_rows for topic in store.topics())
    assert all(told != ["committed", "aborted"] for told in sink.epochs.values())


@pytest.mark.parametrize("failures", [1, 2])
def test_a_sink_whose_commit_fails_is_asked_again_and_the_others_commit_too(tmp_path: Path, failures: int) -> None:
    broken, healthy = KeptSink(failures), KeptSink()
    numbers = flow.from_rows([{"k": 1}, {"k": 2}])
    outputs = numbers.to(broken, name="broken"), numbers.to(healthy, name="healthy"), numbers.write_topic("t")
    with pytest.raises(RunError, match="no network") as caught:
        flow.Pipeline("p", *outputs).run(store=tmp_path)
    assert (healthy.visible, flow.Store(tmp_path).read("t").num_rows) == (2, 2)
    assert broken.epochs == {1: ["failed", "committed"] if failures == 1 else ["failed", "failed"]}
    assert ("but not by to 'sink broken'" in (caught.value.help or "")) == (failures == 2)
    again = flow.Pipeline(
        "p", numbers.to(KeptSink(), name="broken"), numbers.to(KeptSink(), name="healthy"), outputs[2]
    )
    result = again.run(store=tmp_path)
    assert (result.already_finished, result.rows_in) == (False, 0)  # it had not finished, and now has
    assert flow.Store(tmp_path).read("t").num_rows == 2


class ClosingBadly(KeptSink):
    def close(self) -> None:
        raise OSError("cannot hang up")


def test_a_sink_that_cannot_be_closed_has_committed_all_the_same(tmp_path: Path) -> None:
    pipeline = flow.Pipeline("p", flow.from_rows([{"k": 1}, {"k": 2}]).to(ClosingBadly(), name="phone"))
    with pytest.raises(RunError, match=r"'sink phone' .* could not be closed: OSError: cannot hang up") as caught:
        pipeline.run(store=tmp_path, restarts=2)
    assert caught.value.code == "DF0702"
    assert caught.value.origin is not None and caught.value.origin.file == __file__
    assert "taken back" not in caught.value.message and "is committed" in (caught.value.help or "")
    assert pipeline.run(store=tmp_path).already_finished


def test_a_sink_that_cannot_be_closed_does_not_hide_what_failed_before(tmp_path: Path) -> None:
    class Broken(ClosingBadly):
        def write(self, batch: pa.RecordBatch) -> None:
            raise OSError("no more room")

    with pytest.raises(RunError, match="no more room") as caught:
        flow.Pipeline("p", flow.from_rows([{"k": 1}]).to(Broken())).run(store=tmp_path)
    assert "(OSError: cannot hang up) could not be closed either" in (caught.value.help or "")
    assert "but not by" not in (caught.value.help or "")


def test_a_run_with_sinks_of_other_kinds_has_finished_once_they_have_committed(tmp_path: Path) -> None:
    def run() -> flow.RunResult:
        numbers = flow.from_rows([{"k": 1}, {"k": 2}])
        return flow.Pipeline("p", numbers.to(KeptSink(), name="kept"), numbers.write_topic("t")).run(store=tmp_path)

    assert (run().already_finished, run().already_finished) == (False, True)


class Pausing:
    """A source of either kind that gives some rows, lets time pass, and has nothing more for an hour."""

    name, schema, bounded, blocking = "pausing", pa.schema({"n": pa.int64()}), True, True

    def __init__(self) -> None:
        self.committed = threading.Event()
        self.given = 0

    def wait(self) -> None:
        if self.given == ROWS:
            self.committed.wait(60)  # what has come is committed although the source gives nothing
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(3_600)

    def generator(self) -> Iterator[tuple[int]]:
        while True:
            self.wait()
            yield (self.given,)
            self.given += 1

    def partitions(self) -> list[str]:
        return ["0"]

    def open(self, partition: str, position: object) -> Pausing:
        return self

    def read(self, rows_max: int) -> pa.RecordBatch:
        self.wait()
        self.given += 1
        return pa.record_batch({"n": [self.given - 1]})

    def position(self) -> int:
        return self.given


ROWS = 5


@pytest.mark.parametrize("is_generator", [True, False])
def test_rows_of_a_source_that_pauses_are_committed_and_a_stop_does_not_wait_for_more(
    tmp_path: Path, is_generator: bool
) -> None:
    source = Pausing()

    def seen(batch: pa.RecordBatch, epoch: int) -> None:
        if batch.column("n").to_pylist()[-1] == ROWS - 1:
            source.committed.set()

    rows = flow.from_rows(source.generator(), {"n": "int"}) if is_generator else flow.read(source)
    sinks = rows.write_topic("t"), rows.write_callback(seen)
    began = time.monotonic()
    result = flow.Pipeline("live", *sinks).run(store=tmp_path, checkpoint_interval="20ms")
    assert source.committed.is_set() and time.monotonic() - began < 30
    assert result.stopped == "SIGTERM"
    assert flow.Store(tmp_path).read("t")["n"].to_pylist() == list(range(ROWS))


def test_rows_of_a_generator_that_a_stop_came_too_early_for_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    sink = SlowSink(stop_after=1_000)
    given = 0

    def generator() -> Iterator[tuple[int]]:
        nonlocal given
        while True:
            yield (given,)
            given += 1

    flow.Pipeline("live", flow.from_rows(generator(), {"n": "int"}, name="gen").to(sink)).run(workers=1)
    told = capsys.readouterr().err
    assert f"`gen`: {given + 1 - len(sink.rows)} rows behind the last commit" in told or (
        f"`gen`: {given - len(sink.rows)} rows behind the last commit" in told  # one more may be on its way
    )


def test_the_first_rows_of_an_endless_generator_are_no_stop_that_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def generator() -> Iterator[tuple[int]]:
        number = 0
        while True:
            yield (number,)
            number += 1

    assert flow.from_rows(generator(), {"n": "int"}).head(3).to_pydict() == {"n": [0, 1, 2]}
    assert capsys.readouterr().err == ""

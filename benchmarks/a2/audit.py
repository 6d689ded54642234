"""No code comes out of a store: events of the interpreter while one is restored and read."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.lines import Line, Options, python

CODE = """
import collections, sys, tempfile
import numpy as np, pyarrow as pa
import dataflow as flow
from dataflow import col, count

def run(store, rows):
    numbers = np.arange(rows)
    times = pa.array((numbers * 1_000).view("datetime64[us]"))
    table = pa.table({"at": times, "key": pa.array(numbers % 7), "value": pa.array(numbers * 0.5)})
    timed = flow.from_arrow(table, name="rows").watermark("at", delay="1s")
    windows = timed.window(flow.tumbling("100ms"), by="key").agg(
        n=count(), total=col.value.sum(), half=col.value.quantile(0.5, exact=True), last=col.value.last())
    others = timed.window(flow.tumbling("1h"), by="key").agg(n=count(), total=col.value.sum())
    flow.Pipeline("audited", windows.write_topic("out"), others.write_topic("hours")).run(
        store=store, until="head", checkpoint_interval="1ms", workers=2)

def read(store):
    with flow.Store(store) as opened:
        for info in opened.topics():
            opened.read(info.name)
        opened.ledger("audited")

with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
    for store in (first, second):  # once everything that a restore needs has been imported and compiled
        run(store, 4_000)
    run(first, 4_000); read(first)
    events = collections.Counter()
    watched = {"import", "exec", "compile", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "os.system",
               "subprocess.Popen", "socket.connect"}
    is_watching = [True]
    def watch(event, arguments):
        if is_watching[0] and event in watched:
            events.update([event])
            print(event, arguments[:1], file=sys.stderr)
    sys.addaudithook(watch)
    run(second, 4_000); read(second)
    is_watching[0] = False
    import pickle
    is_watching[0] = True
    pickle.loads(pickle.dumps(collections.OrderedDict()))  # the watch itself works
    is_watching[0] = False
    seen = events.pop("pickle.find_class", 0)
    print(sum(events.values()), seen, dict(events))
"""


def lines(options: Options) -> Iterator[Line]:
    del options
    told = python(CODE)
    events, control = told.split()[:2]
    what = f"import, exec, compile, unpickling and the like while a store is restored and read ({told})"
    yield Line(what, f"{events} events (control: {control})", "0 events (control: 1)", (events, control) == ("0", "1"))

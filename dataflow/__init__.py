"""dataflow: an embedded stream processor.

Write a pipeline (source, filters, windows, sink), run it on a sample, a stream, or years of history; the answer
never depends on timing. Everything public is here:

>>> import dataflow as flow
>>> from dataflow import col, count
>>> taps = flow.from_rows([{"who": "ann", "at": 0}, {"who": "bo", "at": 61}, {"who": "ann", "at": 59}],
...                       {"who": "string", "at": "timestamp[s]"})
>>> per_minute = taps.watermark("at", delay="5s").window(flow.tumbling("1m"), by="who").agg(taps=count())
>>> per_minute.select("who", "taps").collect().to_pylist()
[{'who': 'ann', 'taps': 2}, {'who': 'bo', 'taps': 1}]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataflow.aggregates import (
        Aggregate,
        count,
        first,
        last,
        max,
        max_by,
        mean,
        min,
        min_by,
        quantile,
        sum,
    )
    from dataflow.api import (
        Stream,
        StreamSink,
        WindowedStream,
        from_arrow,
        from_rows,
        read,
        read_csv,
        read_parquet,
        read_topic,
        tumbling,
    )
    from dataflow.errors import (
        ConnectorError,
        DataflowError,
        NameNotFoundError,
        Origin,
        PlanError,
        ProgramError,
        RunError,
        StoreError,
        TypeMismatchError,
    )
    from dataflow.expr import Expr, coalesce, col, duration, lit, when
    from dataflow.operators.base import EndOfInput, Idle, Sink, Source, SourceReader
    from dataflow.pipeline import Pipeline, RunResult
    from dataflow.state.store import Store

__version__ = "0.1.0"

__all__ = [
    "Aggregate",
    "ConnectorError",
    "DataflowError",
    "EndOfInput",
    "Expr",
    "Idle",
    "NameNotFoundError",
    "Origin",
    "Pipeline",
    "PlanError",
    "ProgramError",
    "RunError",
    "RunResult",
    "Sink",
    "Source",
    "SourceReader",
    "Store",
    "StoreError",
    "Stream",
    "StreamSink",
    "TypeMismatchError",
    "WindowedStream",
    "coalesce",
    "col",
    "count",
    "duration",
    "first",
    "from_arrow",
    "from_rows",
    "last",
    "lit",
    "max",
    "max_by",
    "mean",
    "min",
    "min_by",
    "quantile",
    "read",
    "read_csv",
    "read_parquet",
    "read_topic",
    "sum",
    "tumbling",
    "when",
]

_MODULES = {
    "dataflow.aggregates": (
        "Aggregate",
        "count",
        "first",
        "last",
        "max",
        "max_by",
        "mean",
        "min",
        "min_by",
        "quantile",
        "sum",
    ),
    "dataflow.api": (
        "Stream",
        "StreamSink",
        "WindowedStream",
        "from_arrow",
        "from_rows",
        "read",
        "read_csv",
        "read_parquet",
        "read_topic",
        "tumbling",
    ),
    "dataflow.errors": (
        "ConnectorError",
        "DataflowError",
        "NameNotFoundError",
        "Origin",
        "PlanError",
        "ProgramError",
        "RunError",
        "StoreError",
        "TypeMismatchError",
    ),
    "dataflow.expr": ("Expr", "coalesce", "col", "duration", "lit", "when"),
    "dataflow.operators.base": ("EndOfInput", "Idle", "Sink", "Source", "SourceReader"),
    "dataflow.pipeline": ("Pipeline", "RunResult"),
    "dataflow.state.store": ("Store",),
}
"""Where the public names live. They are loaded when they are asked for: `import dataflow` costs next to nothing."""
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__

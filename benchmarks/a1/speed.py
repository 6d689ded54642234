"""The ratios of `tumbling.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from benchmarks import tumbling
from benchmarks.lines import Line, Options


def lines(options: Options) -> Iterator[Line]:
    measured = tumbling.measure(options.work, options.rows, options.rounds, list(tumbling.SHAPES))
    print("\n".join(f"    {line}" for line in tumbling.report(measured).splitlines()), file=sys.stderr)
    for bar in tumbling.BARS:
        ratio = measured.ratio(bar)
        assert ratio is not None, bar
        aim = "" if bar.aim is None else f" (aim {bar.aim:.2f})"
        yield Line(f"{bar.text}, {options.rows:,} rows", f"{ratio:.2f}", f"≥ {bar.least:.2f}{aim}", ratio >= bar.least)

"""Which quotes of a CSV block open a field and which close it. Whether one opens depends on all before it."""

from __future__ import annotations

from dataflow.kernels import kernel
from dataflow.message import BoolArray, Int64Array


@kernel
def pair_quotes(places: Int64Array, may_open: BoolArray, opens: Int64Array, closes: Int64Array) -> tuple[int, int]:
    """Sort the quotes at `places` into `opens` and `closes`; returns how many of each.

    A quote opens only where it `may_open` (at the start of a field); two quotes inside of quotes stand for one.
    """
    opened = closed = number = 0
    while number < len(places):
        if opened == closed:
            if may_open[number]:
                opens[opened] = places[number]
                opened += 1
        elif number + 1 < len(places) and places[number + 1] == places[number] + 1:
            number += 1
        else:
            closes[closed] = places[number]
            closed += 1
        number += 1
    return opened, closed

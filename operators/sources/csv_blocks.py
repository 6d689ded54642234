"""Where the rows of a CSV file end: blocks of whole rows, which any worker may decode.

The hard part is the newline inside of quotes, which does not end a row. A quote opens only at the start of a
field (elsewhere it is a character like any other) and two quotes inside of quotes stand for one. A block without
quotes is the usual case and costs one search; with quotes their positions decide, a few numpy calls a block.
Every block begins where a row begins, so nothing before it needs to be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dataflow.errors import ConnectorError
from dataflow.kernels.csv import pair_quotes
from dataflow.message import Int64Array

ByteArray = npt.NDArray[np.uint8]

BLOCK_BYTES = 4 << 20
"""Large enough that calls do not show (0.2 ms of 10), small enough that the decoded rows stay in the cache."""
ROW_BYTES_MAX = 256 << 20
"""A row that is longer is a quote that never closes; to look further would only take memory."""
HEAD_BYTES = 64 << 10
"""The first look for the end of a header."""
PLAIN_QUOTES_MAX = 4096
"""So many quotes are walked by Python, in a few milliseconds: a small file need not wait for the compiler."""
QUOTE, NEWLINE, RETURN = 34, 10, 13


def blocks(
    path: str, content: ByteArray, start: int, delimiter: int, block_bytes: int, *, grows: bool = False
) -> Iterator[tuple[int, int]]:
    """Cut a file from `start` on into blocks (from, to) of whole rows; a row longer than a block makes it longer.

    A last row without a line end is whole, unless the file `grows`: its writer may be in the middle of that row.
    """
    while start < len(content):
        end = start + _block_length(path, content, start, delimiter, block_bytes, grows)
        if end == start:
            return
        yield start, end
        start = end


def _block_length(path: str, content: ByteArray, start: int, delimiter: int, block_bytes: int, grows: bool) -> int:
    length = block_bytes
    while length <= ROW_BYTES_MAX:
        block = content[start : start + length].tobytes()
        if start + length >= len(content):
            if grows:
                return last_row_end(block, delimiter, (b"\n", b"\r"))
            require_closed(path, content, start, block, delimiter)
            return len(block)
        if cut := last_row_end(block, delimiter):
            return cut
        length *= 2
    raise ConnectorError(
        f"{path}, line {line_of(content, start)}: a row of more than {ROW_BYTES_MAX >> 20} MiB begins here",
        code="DF0502",
        help="a quote at the start of a field is probably never closed",
    )


def require_closed(path: str, content: ByteArray, start: int, block: bytes, delimiter: int) -> None:
    """Refuse a file that ends inside of quotes; `block` is its end, from `start` on."""
    if b'"' in block:
        opens, closes = quoted_spans(block, delimiter)
        if len(opens) > len(closes):
            raise ConnectorError(
                f"{path}, line {line_of(content, start + int(opens[-1]))}: a quote opens here and is never closed",
                code="DF0502",
                help='close it, or write a quote that belongs to the value as "" inside of quotes',
            )


def last_row_end(block: bytes, delimiter: int, line_ends: Sequence[bytes] = (b"\n",)) -> int:
    """How many bytes of a block are whole rows; 0 when not even one is."""

    def last_line_end(end: int) -> int:
        return max(block.rfind(one, 0, end) for one in line_ends)

    if b'"' not in block:
        return last_line_end(len(block)) + 1
    opens, closes = quoted_spans(block, delimiter)
    end = len(block)
    while (at := last_line_end(end)) >= 0:
        span = int(np.searchsorted(opens, at)) - 1
        if span < 0 or (span < len(closes) and closes[span] < at):
            return at + 1
        end = int(opens[span])
    return 0


def row_bounds(block: bytes, delimiter: int) -> tuple[Int64Array, Int64Array]:
    """Where the rows of a block start and end (with their line ends). Blank lines are no rows; nor is a last one
    without a line end."""
    codes = np.frombuffer(block, np.uint8)
    is_end = codes == NEWLINE
    if b"\r" in block:  # alone it ends a row too
        is_end[:-1] |= (codes[:-1] == RETURN) & (codes[1:] != NEWLINE)
    ends = np.flatnonzero(is_end) + 1
    if b'"' in block:
        opens, closes = quoted_spans(block, delimiter)
        closes = np.append(closes, len(block))
        span = np.searchsorted(opens, ends - 1) - 1
        ends = ends[(span < 0) | (closes[span] < ends - 1)]
    starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    is_blank = (ends - starts == 1) | ((ends - starts == 2) & (codes[starts] == RETURN))
    return starts[~is_blank], ends[~is_blank]


def quoted_spans(block: bytes, delimiter: int) -> tuple[Int64Array, Int64Array]:
    """Where quotes open and close. A doubled quote may count as one that closes and opens again: between the two
    there is nothing. A quote that does not close inside of the block has only an opening."""
    codes = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(codes == QUOTE)
    before = codes[quotes - 1]  # of the first byte: the last one, which does not count
    is_start = (before == delimiter) | (before == NEWLINE) | (before == RETURN) | (quotes == 0)
    opens, closes = quotes[0::2], quotes[1::2]
    may_open = is_start[0::2].copy()
    may_open[1:] |= opens[1:] == closes[: len(opens) - 1] + 1
    # If every other quote may open, then by induction it does; else some quote is a character of a plain field.
    return (opens, closes) if may_open.all() else _walked_spans(quotes, is_start)


def _walked_spans(quotes: Int64Array, is_start: npt.NDArray[np.bool_]) -> tuple[Int64Array, Int64Array]:
    """The same, quote by quote."""
    opens, closes = np.empty(len(quotes), np.int64), np.empty(len(quotes), np.int64)
    pair = pair_quotes if len(quotes) > PLAIN_QUOTES_MAX else pair_quotes.function
    opened, closed = pair(quotes, is_start, opens, closes)
    return opens[:opened], closes[:closed]


def head_end(path: str, content: ByteArray, start: int, delimiter: int, rows: int, bytes_max: int) -> tuple[int, int]:
    """The end of the first `rows` rows from `start` on, and how many these are; fewer when the file or `bytes_max`
    ends before."""
    length = HEAD_BYTES
    while True:
        block = content[start : start + length].tobytes()
        is_all = start + length >= len(content)
        if is_all and not block.endswith(b"\n"):
            block += b"\n"
        _, ends = row_bounds(block, delimiter)
        if is_all and not len(ends):  # else whoever reads on will find out, and may take it for half written
            require_closed(path, content, start, block, delimiter)
        if len(ends) >= rows or is_all or length >= bytes_max:
            found = ends[:rows]
            return min(start + int(found[-1]), len(content)) if len(found) else start, len(found)
        length *= 2


def line_of(content: ByteArray, position: int) -> int:
    """The number of the line that holds a byte, from 1 on."""
    pieces = range(0, position, BLOCK_BYTES)
    return 1 + sum(content[at : min(at + BLOCK_BYTES, position)].tobytes().count(b"\n") for at in pieces)

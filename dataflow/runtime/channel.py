"""A bounded queue from one task to one other.

`room_for` and `poll` never block: a writer that finds no room keeps the rest and yields, and that is the whole
backpressure. The hard part is the bound. Rows and bytes bound memory; but a consumer that writes a thousand
rows a second would keep a barrier waiting for a minute behind a full channel, so the channel also holds no more
than half a second of what its consumer was seen to take.
"""

from __future__ import annotations

from collections import deque

from dataflow.message import Batch, Message
from dataflow.system import Event

CHANNEL_ROWS_MAX = 262_144
"""Four units: enough to hide one slow batch."""
ROWS_UNLIMITED = 1 << 40
CHANNEL_BYTES_MAX = 16 << 20
CHANNEL_SECONDS_MAX = 0.5
"""Of the consumer's measured rate. Enough to hide one slow batch; more would only let a barrier wait longer."""
ROWS_BEFORE_MEASURED = 1_024
"""Until the consumer has been measured: a small first helping, since it may be very slow."""
SECONDS_MIN = 1e-6
"""Shorter times are not told apart."""
GROWTH_MAX = 8
"""How much more a channel may hold after one fast batch: the next one may be slow."""


class Pace:
    """How many rows somebody takes in half a second, as far as it was seen."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows, self._seconds = 0.0, 0.0
        self.rows_max = ROWS_BEFORE_MEASURED

    def measure(self, rows: int, seconds: float) -> None:
        """It took so long for so many rows; earlier measures count half each time."""
        self._rows = self._rows / 2 + rows
        self._seconds = self._seconds / 2 + max(seconds, SECONDS_MIN)
        worth = int(self._rows / self._seconds * CHANNEL_SECONDS_MAX)
        self.rows_max = max(1, min(worth, self._limit, self.rows_max * GROWTH_MAX))


class Channel:
    """One writer, one reader. Each side changes only its own totals, so no lock is needed."""

    def __init__(self, reader_wake: Event, writer_wake: Event) -> None:
        self._messages: deque[Message] = deque()
        self._reader_wake, self._writer_wake = reader_wake, writer_wake
        self._rows_in = self._rows_out = self._bytes_in = self._bytes_out = 0
        self._writer_waits = False
        self._pace = Pace(CHANNEL_ROWS_MAX)
        self.refused_total = 0

    # ── the writer's side ──

    @property
    def rows_max(self) -> int:
        """How many rows the reader takes in half a second; without bound before there was anything to take."""
        return self._pace.rows_max if self._rows_in else ROWS_UNLIMITED

    def room_for(self, batch: Batch) -> int:
        """How many rows of the batch fit now; 0 means: keep it and yield."""
        rows_held = self._rows_in - self._rows_out
        bytes_held = self._bytes_in - self._bytes_out
        room = self._pace.rows_max - rows_held
        row_bytes = batch.nbytes / batch.num_rows
        if row_bytes:
            room = min(room, int((CHANNEL_BYTES_MAX - bytes_held) / row_bytes))
        if room <= 0 and not rows_held:
            return 1  # one row always fits into an empty channel, however large it is
        if room <= 0:
            self.refused_total += 1
            self._writer_waits = True
            return self._room_after_all()
        return min(room, batch.num_rows)

    def _room_after_all(self) -> int:
        """The reader may have emptied the channel before it saw that the writer waits."""
        return 1 if self._rows_in == self._rows_out else 0

    def put(self, message: Message) -> None:
        """Append. The writer has asked for room; control messages always fit."""
        if isinstance(message, Batch):
            self._rows_in += message.num_rows
            self._bytes_in += message.nbytes
        self._messages.append(message)
        if not self._reader_wake.is_set():
            self._reader_wake.set()

    # ── the reader's side ──

    def peek(self) -> Message | None:
        """The next message, which stays in the channel; None when it is empty."""
        return self._messages[0] if self._messages else None

    def poll(self) -> Message | None:
        """Take the next message; None when the channel is empty."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        if isinstance(message, Batch):
            self._bytes_out += message.nbytes
            self._rows_out += message.num_rows
            if self._writer_waits:
                self._writer_waits = False
                self._writer_wake.set()
        return message

    def consumed(self, rows: int, seconds: float) -> None:
        """The reader took so long for so many rows, waiting for its own receivers included."""
        self._pace.measure(rows, seconds)

    def close(self) -> None:
        """Drop what is held: the job has failed."""
        self._messages.clear()
        self._writer_wake.set()

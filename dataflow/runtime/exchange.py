"""Where rows change tasks: an edge ends a stage and spreads its rows over the tasks of the next one.

Rows go to the task that owns their key's group (128 groups, by a documented hash). What does not fit into a
channel stays in the edge's outbox; a task with a full outbox takes no more input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dataflow.message import Batch, Message, Progress, Watermark
from dataflow.operators.base import Receiver
from dataflow.runtime.channel import Channel


class Edge(Receiver):
    """The channels from one task to all tasks of a later stage.

    `ordered` says that the receiver puts units back into their order and so must hear of empty ones too.
    """

    def __init__(self, channels: Sequence[Channel], keys: tuple[str, ...], ordered: bool) -> None:
        self.channels, self.keys, self.ordered = channels, keys, ordered
        self.owners = len(channels)
        self._boxes: list[deque[Message]] = [deque() for _ in channels]

    def on_batch(self, batch: Batch) -> None:
        if not batch.num_rows:
            return
        if len(self.channels) == 1:
            self._boxes[0].append(batch)
            return
        bounds = batch.owner_bounds
        if bounds is None:
            from dataflow.state.keys import split_by_owner

            order, bounds = split_by_owner([batch.columns[key] for key in self.keys], len(self.channels))
            batch = batch.take(order)
        for box, start, end in zip(self._boxes, bounds[:-1], bounds[1:], strict=True):
            if end > start:
                box.append(batch.slice(start, end - start))

    def on_watermark(self, time_us: int) -> None:
        self.send(Watermark(time_us))

    def on_progress(self, sequence: int) -> None:
        if self.ordered:
            self.send(Progress(sequence))

    def send(self, message: Message) -> None:
        """A control message to every task; one that says more replaces the one before it."""
        for box in self._boxes:
            if box and type(box[-1]) is type(message) and isinstance(message, Watermark | Progress):
                box[-1] = message
            else:
                box.append(message)

    @property
    def rows_max(self) -> int:
        """How many rows the slowest receiver takes in half a second; without bound while nothing is known."""
        return min(channel.rows_max for channel in self.channels)

    def flush(self) -> bool:
        """Move what fits into the channels; true when nothing is left."""
        empty = True
        for box, channel in zip(self._boxes, self.channels, strict=True):
            if box:
                while box and self._move(box, channel):
                    pass
                empty = empty and not box
        return empty

    def _move(self, box: deque[Message], channel: Channel) -> bool:
        message = box[0]
        if isinstance(message, Batch):
            room = channel.room_for(message)
            if room == 0:
                return False
            if room < message.num_rows:
                channel.put(message.slice(0, room))
                box[0] = message.slice(room, message.num_rows - room)
                return True
        channel.put(message)
        box.popleft()
        return True

"""What the catalog stores and answers, as plain values (no SQLite here: runtime and users import these)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from dataflow.state.frames import Frame
from dataflow.state.log.writer import Pending

JsonObject = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """A pipeline's epoch, as a commit stores it.

    `checkpoint` and `ledger` become JSON (FORMAT.md section 7); `added` and `dropped` change which frames there are.
    """

    pipeline: str
    epoch: int
    finished: bool
    graph_hash: str
    state_hash: str = ""
    checkpoint: Mapping[str, object] = field(default_factory=dict)
    ledger: Mapping[str, object] = field(default_factory=dict)
    added: Sequence[Frame] = ()
    dropped: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class PipelineState:
    """The last committed epoch of a pipeline."""

    name: str
    graph_hash: str
    state_hash: str
    epoch: int
    finished: bool
    commit_id: int
    checkpoint: JsonObject
    frames: Sequence[Frame]


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as readers see it. `bytes` is what its batches take on disk."""

    name: str
    partitions: int
    rows: int
    bytes: int
    schema: pa.Schema


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """What one commit is to publish: all of it, or nothing."""

    pendings: tuple[Pending, ...]
    epoch: EpochRecord | None

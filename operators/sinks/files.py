"""Files as a sink: CSV, JSON Lines, Parquet, Arrow; one file, or a directory of parts. Only complete files are seen.

With a store, the rows of committed epochs wait in it until a part is due; that part is then made of them, and its name
becomes visible after the commit of its epoch. So epochs may be as short as one likes without making a file each, and a
killed run goes on with what waited. Without a store rows go straight into parts: those of a bounded run appear together
at its end, or not at all. The hard part is `replace`: old files go once the new ones are there, in the last commit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

import pyarrow as pa

from dataflow.errors import ConnectorError, DataflowError, NameNotFoundError, PlanError, ProgramError, did_you_mean
from dataflow.event_time import duration_us
from dataflow.operators.base import SinkContext
from dataflow.operators.sinks.formats import ARROW, CSV, JSONL, PARQUET, FileFormat
from dataflow.operators.sinks.output import not_written
from dataflow.operators.sinks.parts import (
    PUBLIC_MODE,
    DirectoryLimit,
    Part,
    PartNames,
    PartsWriter,
    publish,
    remove_hidden,
)
from dataflow.operators.sinks.text import check_times
from dataflow.schema import is_text_type, type_name
from dataflow.state.layout import make_durable_dirs

__all__ = ["FORMATS", "FileSink", "FileTarget", "Roll"]

FORMATS = {one.name: one for one in (CSV, JSONL, PARQUET, ARROW)}

ROLL_BYTES_DEFAULT = 128_000_000
ROLL_SECONDS_ENDLESS = 900.0
"""Endless input: rows are seen after so long at the latest."""
STAGED_BYTES_MAX = 4 << 20
"""Rows in memory before they are staged: each time makes a frame, and a frame for a few rows is mostly overhead."""
MODES = ("error", "append", "replace", "replace_partitions")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*((?:[kmg]i?)?b)", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*((?:[kmg]i?)?b)", re.IGNORECASE)
_SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


# ── what is asked for ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Roll:
    """When a part is complete: after so many seconds, or at so many bytes; None: not for that reason."""

    seconds: float | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, value: str | timedelta) -> Roll:
        """Read "15m", "128MB" or a timedelta.

        >>> Roll.of("15m"), Roll.of("128MB")
        (Roll(seconds=900.0, bytes=None), Roll(seconds=None, bytes=128000000))
        """
        if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
            size = int(float(match[1]) * _SIZE_UNITS[match[2].upper()])
            if size > 0:
                return cls(bytes=size)
        try:
            seconds = duration_us(value, "roll") / 1e6
        except ProgramError as error:
            hint = f"{error.help}; a size is written `128MB`"
            raise ProgramError(f"roll: {value!r} is neither a duration nor a size", code="DF0402", help=hint) from None
        if seconds <= 0:
            raise ProgramError("roll must be longer than 0s", code="DF0402", help='as in `roll="15m"`')
        return cls(seconds=seconds)

    @classmethod
    def default(cls, bounded: bool) -> Roll:
        return cls(None if bounded else ROLL_SECONDS_ENDLESS, ROLL_BYTES_DEFAULT)


@dataclass(frozen=True, kw_only=True)
class FileTarget:
    """Where files go and how; wrong wishes fail here, when the pipeline is built."""

    path: str
    format: FileFormat
    schema: pa.Schema
    bounded: bool
    roll: Roll | None = None
    mode: str = "error"
    partition_by: tuple[str, ...] = ()

    absolute: str = field(init=False)
    """The path, seen from the working directory in which the pipeline was built: it may change under a run."""

    def __post_init__(self) -> None:
        self._check_path()
        self._check_mode()
        self._check_columns()
        object.__setattr__(self, "absolute", os.path.abspath(self.path))

    @property
    def is_directory(self) -> bool:
        return self.path.endswith("/") or not os.path.splitext(self.path)[1]

    @property
    def root(self) -> str:
        """The directory in which all files of the sink are."""
        return self.absolute if self.is_directory else os.path.dirname(self.absolute)

    @property
    def file(self) -> str | None:
        return None if self.is_directory else os.path.basename(self.path)

    @property
    def replaces(self) -> bool:
        return self.mode in ("replace", "replace_partitions")

    @property
    def waits_for_the_end(self) -> bool:
        """Whether nothing may be seen before all rows have come."""
        return not self.is_directory or self.replaces

    def _check_path(self) -> None:
        verb = self.format.verb
        if not self.path or "\0" in self.path:
            raise PlanError(f"{verb}: {self.path!r} is not a path", code="DF0510", help="name a file or a directory")
        if self.is_directory:
            return
        ending = os.path.splitext(self.path)[1]
        if ending in (".gz", ".zst", ".bz2", ".xz"):
            raise PlanError(
                f"{verb} does not compress, and {self.path} would not be a {ending} file",
                code="DF0510",
                help=f"write `{self.path.removesuffix(ending)}`; Parquet files are compressed inside",
            )
        if not self.bounded:
            raise PlanError(
                f"{verb}: {self.path} is a single file, which appears when the input ends; this input is endless",
                code="DF0510",
                help=f"write into a directory: `{os.path.splitext(self.path)[0]}/`; its parts appear one by one",
            )
        for wish, name in ((self.roll, "roll"), (self.partition_by, "partition_by")):
            if wish:
                raise PlanError(
                    f"{verb}: {self.path} is a single file, and `{name}` makes several",
                    code="DF0510",
                    help=f"write into a directory: `{os.path.splitext(self.path)[0]}/`",
                )

    def _check_mode(self) -> None:
        verb = self.format.verb
        if self.mode not in MODES:
            near = did_you_mean(str(self.mode), MODES)
            raise NameNotFoundError(
                f"{verb}: there is no mode {self.mode!r} (modes: {', '.join(MODES)})",
                code="DF0510",
                help=f"did you mean {near!r}?" if near else None,
            )
        if self.mode == "append" and not self.is_directory:
            raise PlanError(
                f'{verb}: mode="append" adds parts to a directory, and {self.path} is a single file',
                code="DF0510",
                help=f'write into `{os.path.splitext(self.path)[0]}/`, or use mode="replace"',
            )
        if self.mode == "replace_partitions" and not self.partition_by:
            raise PlanError(
                f'{verb}: mode="replace_partitions" needs partition_by',
                code="DF0510",
                help='say which columns make the directories, as in `partition_by="day"`, or use mode="replace"',
            )
        if self.replaces and not self.bounded:
            raise PlanError(
                f'{verb}: mode="{self.mode}" replaces files when the input ends, and this input is endless',
                code="DF0510",
                help='use mode="append"',
            )

    def _check_columns(self) -> None:
        verb = self.format.verb
        for name in self.partition_by:
            if name not in self.schema.names:
                near = did_you_mean(name, self.schema.names)
                raise NameNotFoundError(
                    f"{verb}: partition_by: there is no column `{name}` (columns: {', '.join(self.schema.names)})",
                    help=f"did you mean `{near}`?" if near else None,
                )
            _check_partition_type(name, self.schema.field(name).type, verb)
        if len(set(self.partition_by)) < len(self.partition_by):
            raise PlanError(f"{verb}: partition_by names a column twice", code="DF0510", help="name each once")
        rest = [field for field in self.schema if field.name not in self.partition_by]
        if self.partition_by and not rest:
            raise PlanError(
                f"{verb}: all columns are in partition_by, so there is nothing to write into the files",
                code="DF0510",
                help="leave one out of it",
            )
        self.format.check(pa.schema(rest), verb)


def _check_partition_type(name: str, kind: pa.DataType, verb: str) -> None:
    t = pa.types
    if t.is_integer(kind) or is_text_type(kind) or t.is_boolean(kind) or t.is_date(kind) or t.is_decimal(kind):
        return
    if t.is_timestamp(kind):
        return
    raise PlanError(
        f"{verb}: partition_by: `{name}` is {type_name(kind)}, which makes no names of directories",
        code="DF0303",
        help="use a text, integer, date or bool column; derive one if need be",
    )


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class FileEpoch:
    """What an epoch's handle says: parts to make visible, and what the next run has to know."""

    parts: tuple[Part, ...] = ()
    waited_seconds: float = 0.0
    """How long the oldest row that is in no part has waited."""
    final: bool = False
    """All rows of the pipeline have been written."""

    def to_json(self) -> dict[str, object]:
        parts = [part.to_json() for part in self.parts]
        return {"parts": parts, "waited_seconds": self.waited_seconds, "final": self.final}

    @classmethod
    def of(cls, handle: object) -> FileEpoch:
        if handle is None:
            return cls()
        told = cast(dict[str, object], handle)
        parts = tuple(Part(**one) for one in cast(list[dict[str, object]], told["parts"]))  # type: ignore[arg-type]
        return cls(parts, float(cast(float, told["waited_seconds"])), bool(told["final"]))


class FileSink:
    """Writes one target. Its handles are JSON: what `FileEpoch` says."""

    def __init__(self, target: FileTarget, context: SinkContext) -> None:
        self.target = target
        self._disk, self._clock, self._staging = context.system.disk, context.system.clock, context.staging
        self._room = context.room
        run = context.run or f"{context.system.chance.getrandbits(32):08x}"
        self._names = PartNames.of(
            context.pipeline, context.name, context.home or run, run, target.format.suffix, target.file
        )
        self._roll = target.roll or Roll.default(target.bounded)
        self._parts = PartsWriter(
            self._disk,
            self._room,
            target.root,
            self._names,
            target.format,
            target.schema,
            partition_by=target.partition_by,
            bytes_max=self._roll.bytes if target.is_directory else None,
        )
        self._limit = DirectoryLimit(target.root, target.partition_by)
        self._waiting: list[pa.RecordBatch] = []
        """Rows that are not staged yet."""
        self._waiting_bytes = 0
        self._oldest_at: float | None = None
        """When the oldest row that is in no part came."""
        self._shrinks_to = 1.0
        """Bytes of parts for a byte of staged rows, as seen last."""
        self._ended = self._is_leaving = self._uncommitted = self._aborted = False
        self._has_parts = False
        """Whether runs of this store have parts in the directory, as far as anybody looked."""
        self._finished: FileEpoch | None = None
        if self._staging is None:  # else `recover` comes, and knows whether this is a restart
            self._begin(None)

    def recover(self, handle: object) -> None:
        """Make visible what the last committed epoch of an earlier run named, and remove what none did."""
        self._begin(None if handle is None else FileEpoch.of(handle))

    def _begin(self, last: FileEpoch | None) -> None:
        self._check_place()
        with self._telling("nothing was changed"):
            if last is None:
                self._check_free()
            else:
                self._check_others()
                self._commit(last)
                self._go_on(last)
            if self._staging is not None:
                self._remove_leftovers()
            self._probe()

    def open(self, epoch: int) -> None:
        """Nothing to open: a part lasts for as many epochs as it takes."""

    def write(self, batch: pa.RecordBatch) -> None:
        if self._finished is not None:
            self._begin_again()
        partition_by = list(self.target.partition_by)
        self.target.format.check_rows(batch.drop_columns(partition_by), self.target.path)
        if partition_by:
            check_times(batch.select(partition_by), self.target.path)
        self._check_foreign(self._limit.check(batch))
        if self._oldest_at is None and batch.num_rows:
            self._oldest_at = self._clock.monotonic()
        self._uncommitted = True
        if self._staging is None:
            with self._telling("nothing of the rows since the last part is visible"):
                self._parts.write(batch)
            return
        self._waiting.append(batch)
        self._waiting_bytes += batch.nbytes
        if self._waiting_bytes >= STAGED_BYTES_MAX:
            self._stage()

    def leave(self) -> None:
        """The run ends with the next epoch, and a later one may go on: nobody looks into the store for what waits."""
        self._is_leaving = True

    def end(self) -> None:
        """The next epoch is the last one."""
        self._ended = True

    def prepare(self, epoch: int) -> dict[str, object]:
        """Complete the parts that are due; the handle names them."""
        if self._finished is not None:
            return self._finished.to_json()
        with self._telling("the rows of this epoch were not written, and what was committed before stands"):
            parts = self._parts_due() if self._staging is None else self._staged_parts_due()
        waited = 0.0 if self._oldest_at is None else self._clock.monotonic() - self._oldest_at
        done = FileEpoch(tuple(parts), waited, self._ended)
        try:  # once more, just before the commit
            if parts:
                self._check_others()
            if self._ended:
                self._check_foreign({os.path.dirname(part.name) for part in parts})
        except ConnectorError:
            remove_hidden(self._disk, self.target.root, parts)
            raise
        if self._ended:
            self._finished = done
        return done.to_json()

    def commit(self, handle: object) -> None:
        """Make the epoch's parts visible; may be repeated."""
        self._commit(FileEpoch.of(handle))
        self._uncommitted = False

    def abort(self, handle: object) -> None:
        """Take back what was not committed; the run is over."""
        self._aborted = True
        self._waiting, self._waiting_bytes = [], 0
        self._parts.discard()
        if handle is not None:
            remove_hidden(self._disk, self.target.root, FileEpoch.of(handle).parts)

    def close(self) -> None:
        """Endless input was stopped, without a store: what its epochs committed is seen, though no part was due."""
        if not (self._aborted or self._uncommitted or self.target.bounded or self._staging is not None):
            with self._telling("nothing of the rows since the last part is visible"):
                self._publish(self._parts.finish())
        self._parts.discard()

    # ── parts ──

    def _parts_due(self) -> list[Part]:
        """Without a store: what is long or old enough; of a bounded run all, at its end."""
        if self._ended:
            return self._rolled(self._parts)
        if self.target.bounded:
            return []
        if self._is_old():
            return self._rolled(self._parts)
        return self._parts.take_complete()

    def _staged_parts_due(self) -> list[Part]:
        """With a store: all rows that wait, once they are enough, or old enough."""
        staging = self._staging
        assert staging is not None
        self._stage()
        is_long = self._roll.bytes is not None and staging.nbytes * self._shrinks_to >= self._roll.bytes
        is_due = is_long or self._is_leaving or self._is_old()
        if not self._ended and (self.target.waits_for_the_end or not is_due):
            return []
        for batch in staging.batches():
            self._parts.write(batch)
        staged_bytes = staging.nbytes
        parts = self._rolled(self._parts)
        if staged_bytes:
            self._shrinks_to = sum(part.size for part in parts) / staged_bytes
        staging.drop()
        return parts

    def _rolled(self, parts: PartsWriter) -> list[Part]:
        self._oldest_at = None
        self._limit.forget()
        return parts.finish(at_least_one=not self.target.is_directory)

    def _is_old(self) -> bool:
        if self._roll.seconds is None or self._oldest_at is None:
            return False
        return self._clock.monotonic() - self._oldest_at >= self._roll.seconds

    def _stage(self) -> None:
        staging = self._staging
        assert staging is not None
        if self._waiting:
            self._room.attempt(lambda: staging.keep(self._waiting))
        self._waiting, self._waiting_bytes = [], 0

    # ── commits ──

    def _commit(self, epoch: FileEpoch) -> None:
        self._publish(epoch.parts)
        if epoch.final and self.target.replaces and self.target.is_directory:
            with self._telling("the new files are there, and some old ones, too"):
                self._remove_replaced(epoch.parts)

    def _publish(self, parts: tuple[Part, ...] | list[Part]) -> None:
        replaces = self.target.mode == "replace" and not self.target.is_directory
        publish(self._disk, self._room, self.target.root, parts, replace=replaces)

    def _remove_replaced(self, parts: tuple[Part, ...]) -> None:
        """The parts of earlier runs that these take the place of."""
        new = {part.name for part in parts}
        touched = {os.path.dirname(part.name) for part in parts}
        for directory, name in list(self._files()):
            path = os.path.join(directory, name)
            is_replaced = self.target.mode == "replace" or directory in touched
            if is_replaced and path not in new and self._names.is_own_part(name):
                self._disk.remove(os.path.join(self.target.root, path))
                touched.add(directory)
        for directory in touched:
            self._disk.sync_dir(os.path.join(self.target.root, directory))

    def _files(self) -> Iterator[tuple[str, str]]:
        """The visible files below the target: their directory, relative to it, and their name."""
        levels = len(self.target.partition_by)
        directories = [("", 0)]
        while directories:
            directory, depth = directories.pop()
            for name in self._disk.list_dir(os.path.join(self.target.root, directory)):
                path = os.path.join(directory, name)
                if name.startswith("."):
                    continue
                if not self._disk.is_dir(os.path.join(self.target.root, path)):
                    yield directory, name
                elif depth < levels:
                    directories.append((path, depth + 1))

    # ── the place ──

    def _check_place(self) -> None:
        """The target can be made here: a directory is one, a file is none and has a directory."""
        target, disk = self.target, self._disk
        if target.is_directory:
            if disk.exists(target.root) and not disk.is_dir(target.root):
                raise ConnectorError(
                    f"{target.path} is a file, and parts go into a directory; nothing was changed",
                    code="DF0511",
                    help="name another path, or move the file away",
                )
            return
        if disk.is_dir(target.path):
            raise ConnectorError(
                f"{target.path} is a directory; nothing was changed",
                code="DF0511",
                help=f"write `{target.path}/` to put parts into it, or name another file",
            )
        if not disk.is_dir(target.root):
            raise ConnectorError(
                f"there is no directory {target.root} to put {target.file} into", code="DF0511", help="make it first"
            )

    def _check_free(self) -> None:
        """The first run: `mode` says what may be there."""
        target = self.target
        if not target.is_directory:
            if target.mode == "error" and self._disk.exists(target.path):
                raise _exists(f"{target.path} exists already", 'name another file, or use mode="replace"')
            return
        if not self._disk.exists(target.root):
            return
        if target.mode == "error" and (found := next(self._files(), None)):
            raise _exists(
                f"{target.path} has files already ({os.path.join(*found)})",
                'use mode="append" to add to them, mode="replace" to replace what this pipeline has written, or name '
                "another directory",
            )
        foreign = (one for one in self._files() if not self._names.is_own_part(one[1]))
        if target.mode == "replace" and (found := next(foreign, None)):
            raise _not_ours(target.path, os.path.join(*found))

    def _check_others(self) -> None:
        """Whose parts came first may go on. A run of another store began before any was there, too: its rows, and
        ours, waited in the stores."""
        target = self.target
        if target.mode != "error" or not target.is_directory or self._has_parts or not self._disk.exists(target.root):
            return
        others = None
        for directory, name in self._files():
            if self._names.is_home_part(name):
                self._has_parts = True
                return
            if self._names.is_own_part(name):
                others = os.path.join(directory, name)
        if others is not None:
            raise _exists(
                f"{target.path} came to have parts of this pipeline that a run of another store, or of none, has "
                f"written ({others}), and its rows would be there twice",
                "move them away, then run again",
            )

    def _check_foreign(self, directories: Iterable[str]) -> None:
        """Nobody else has files where ours are to replace the old ones."""
        if self.target.mode != "replace_partitions":
            return
        for directory in sorted(directories):
            path = os.path.join(self.target.root, directory)
            for name in self._disk.list_dir(path) if self._disk.is_dir(path) else ():
                if not (name.startswith(".") or self._names.is_own_part(name)):
                    raise _not_ours(os.path.join(self.target.path, directory), os.path.join(directory, name))

    def _go_on(self, last: FileEpoch) -> None:
        """An earlier run has committed epochs: what it left waiting has its age."""
        target = self.target
        if last.final:
            self._finished = last
        elif not target.is_directory and target.mode == "error" and self._disk.exists(target.path):
            raise _exists(f"{target.path} came to be since the last run", "move it away, then run again")
        if self._staging is not None and self._staging.rows:
            self._oldest_at = self._clock.monotonic() - last.waited_seconds

    def _begin_again(self) -> None:
        """Rows after the end: the pipeline was told to begin again. Its parts get others beside them."""
        self._finished = None
        target = self.target
        if not target.is_directory and target.mode == "error" and self._disk.exists(target.path):
            raise _exists(
                f"{target.path} is what the pipeline has written before", "move it away, or name another file"
            )

    def _remove_leftovers(self) -> None:
        """Hidden files of earlier runs that no committed epoch names; the pipeline's lock says that none is at work.
        Those of other stores stay: their runs may be."""
        if not self._disk.is_dir(self.target.root):
            return
        for name in self._disk.list_dir(self.target.root):
            if self._names.is_home_hidden(name):
                self._disk.remove(os.path.join(self.target.root, name))

    def _probe(self) -> None:
        """Fail now, and not when the first part is due, if files cannot be made here."""
        if self._finished is not None:
            return
        if self.target.is_directory:
            make_durable_dirs(self._disk, self.target.root, mode=PUBLIC_MODE)
        path = os.path.join(self.target.root, self._names.hidden(0))
        self._disk.open_append(path, new=True).close()
        self._disk.remove(path)

    @contextmanager
    def _telling(self, kept: str) -> Iterator[None]:
        try:
            yield
        except DataflowError:
            raise
        except OSError as error:
            raise not_written(self.target.path, error, kept) from error


def _exists(what: str, help: str) -> ConnectorError:
    return ConnectorError(f"{what}; nothing was changed", code="DF0511", help=help)


def _not_ours(path: str, file: str) -> ConnectorError:
    return ConnectorError(
        f"{path} has a file that this pipeline has not written ({file}), and readers would see both; nothing was "
        "changed",
        code="DF0511",
        help='move it away, or use mode="append"',
    )

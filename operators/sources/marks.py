"""How files that were read are known again when a later run goes on behind them.

Nothing is read a second time for it: a mark has the size of each file, when it was changed last, and a hash of a sample
of its bytes, made while they are at hand. Only of files whose time is another one the sample is compared. The hard part
is what may not be refused: a file that was only touched or copied, one that has grown at its end, and one that was
mended behind the place where reading stopped.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import xxhash

from dataflow.errors import ConnectorError, PlanError
from dataflow.system import System

WHOLE_BYTES = 1 << 20
"""Up to so many bytes the sample is all of them: a change is never missed, and hashing them does not show."""
EDGE_BYTES = 64 << 10
"""At the beginning and at the end of a sample."""
SPOT_BYTES, SPOTS_MAX = 4 << 10, 32
"""Between the two: a page each, so that a file that was made anew differs in one of them."""
FOLDED_MAX = 1_024
"""So many digests of earlier files are in a mark, which is written with each checkpoint: 16 KiB."""


@dataclass(frozen=True, slots=True)
class FileMark:
    """A file in which reading may go on, and how it is known again. Marks that an older version has stored have only
    the first five; what is None is not checked."""

    path: str
    number: int
    before: str
    """A hash of the paths before it, and of their sizes."""
    prefix_bytes: int = 0
    """How many bytes at its beginning were read (an older version: 65,536 at most)."""
    prefix: str = xxhash.xxh3_64_hexdigest(b"")
    """A hash of a sample of them."""
    size: int | None = None
    modified_ns: int | None = None
    earlier_times: str | None = None
    """Digests of the times when the files before it were changed last."""
    earlier_samples: str | None = None
    """Digests of what is in them."""


class Marks:
    """The marks of some files, which are opened one after the other. `durable` says whether marks are kept."""

    def __init__(self, paths: Sequence[str], system: System, *, durable: bool = True) -> None:
        self._paths, self._disk, self._durable = paths, system.disk, durable
        self._before = [_hash_of(b"")]
        self._times: Folded | None = Folded()
        self._samples: Folded | None = Folded()
        self._opened: MarkedFile | None = None

    def open(self, number: int) -> MarkedFile:
        """Begin to read the file of this number. After the one before it was read."""
        if self._opened is not None:
            self._done(self._opened)
        path = self._paths[number]
        modified_ns = self._disk.modified_ns(path)  # before its bytes: a change between the two must show
        content = self._disk.map(path)
        mark = FileMark(path, number, self._before_file(number), size=content.size, modified_ns=modified_ns)
        if self._times is not None and self._samples is not None:
            mark = replace(mark, earlier_times=self._times.told(), earlier_samples=self._samples.told())
        self._add_size(content.size)
        self._opened = MarkedFile(content, mark, self._durable)
        return self._opened

    def _done(self, file: MarkedFile) -> None:
        """A file that was read to its end is one of the earlier ones now."""
        if self._durable and self._times is not None and self._samples is not None:
            assert file.mark.modified_ns is not None
            self._times.add(_time_digest(file.mark.number, file.mark.modified_ns))
            self._samples.add(_sample_digest(file.mark.number, file.sample))

    # ── paths and sizes ──

    def _before_file(self, number: int) -> str:
        """A hash of the paths before the file of this number, and of their sizes as they were when they were read."""
        while len(self._before) <= number:
            self._add_size(self._disk.size(self._paths[len(self._before) - 1]))
        return self._before[number]

    def _add_size(self, size: int) -> None:
        """Of the first file that is not in the hashes yet."""
        path = self._paths[len(self._before) - 1]
        self._before.append(_hash_of(f"{self._before[-1]}{path}\0{size}".encode()))

    # ── going on ──

    def go_on(self, mark: FileMark, bytes_read: int = 0) -> int:
        """The number of the marked file among those of today. Raises when what was read (`bytes_read` of the file) is
        not there any more, or has changed, or when files have come before it, which would never be read; files of
        which it cannot be told are told of."""
        if mark.path not in self._paths:
            raise ConnectorError(
                f"{mark.path}, in which the last run stopped reading, is not there any more",
                help="restore it; or start from the beginning with `restart`",
            )
        number = self._paths.index(mark.path)
        doubtful = self._check_earlier(mark) if number == mark.number else []
        if number != mark.number or self._before_file(number) != mark.before:
            raise ConnectorError(
                f"the files before {mark.path} are not those that were read ({mark.number} then, {number} now), or one "
                "of them has another size: what came to them would never be read",
                help="write only to the last file, and give new files names that sort behind it; or start from the "
                "beginning with `restart`",
            )
        _tell(doubtful + self._check_last(mark, bytes_read))
        return number

    def _check_earlier(self, mark: FileMark) -> list[str]:
        """Compare the samples of earlier files whose times are others than they were; those that may have changed."""
        if mark.earlier_times is None or mark.earlier_samples is None:
            if mark.number:
                self._times = self._samples = None  # nobody knows what was in them
            return []
        times_then = Folded.of(mark.earlier_times, mark.number)
        self._samples = Folded.of(mark.earlier_samples, mark.number)
        self._times = Folded()
        for number in range(mark.number):
            self._times.add(_time_digest(number, self._disk.modified_ns(self._paths[number])))
        doubtful: list[str] = []
        for index, (then, now) in enumerate(zip(times_then.digests, self._times.digests, strict=True)):
            if then != now:
                doubtful += self._compare(self._samples, index)
        return doubtful

    def _compare(self, samples: Folded, index: int) -> list[str]:
        """Read what one digest stands for; the files whose samples do not tell all."""
        found, doubtful = 0, []
        numbers = samples.files_of(index)
        for number in numbers:
            content = self._disk.map(self._paths[number])
            found ^= _sample_digest(number, Sample(content))
            doubtful += [self._paths[number]] if content.size > WHOLE_BYTES else []
        if found != samples.digests[index]:
            raise _changed([self._paths[number] for number in numbers])
        return doubtful

    def _check_last(self, mark: FileMark, bytes_read: int) -> list[str]:
        modified_ns, content = self._disk.modified_ns(mark.path), self._disk.map(mark.path)
        bytes_read = max(bytes_read, mark.prefix_bytes)
        if content.size < bytes_read:
            raise PlanError(
                f"{mark.path} has {content.size} bytes now, and {bytes_read} of it were read before; the last commit "
                "stands",
                code="DF0407",
                help="restore it; or start from the beginning with `restart`",
            )
        if (content.size, modified_ns) == (mark.size, mark.modified_ns):
            return []
        if Sample(content).hash_of(mark.prefix_bytes) != mark.prefix:
            raise _changed([mark.path])
        # What grows has another time each time: to doubt it would be to doubt every file that is appended to.
        is_grown = mark.size is None or content.size > mark.size
        return [] if is_grown or mark.prefix_bytes <= WHOLE_BYTES else [mark.path]


class MarkedFile:
    """A file that is being read: its bytes as they are now, and a mark for each place in it."""

    def __init__(self, content: pa.Buffer, mark: FileMark, durable: bool) -> None:
        self.content, self.mark, self._durable = content, mark, durable
        self.sample = Sample(content)

    def mark_after(self, bytes_read: int) -> dict[str, object]:
        """The mark, as JSON, once so many bytes at the beginning were read."""
        if not self._durable:
            return asdict(self.mark)
        return asdict(replace(self.mark, prefix_bytes=bytes_read, prefix=self.sample.hash_of(bytes_read)))


class Sample:
    """Hashes of what is at the beginning of a file, for any length of it."""

    def __init__(self, content: pa.Buffer) -> None:
        self._content = memoryview(content)
        self._spots = ((0, 0), xxhash.xxh3_64())
        """Of the last hash: how far they are apart and how many there are, and what is in them."""

    @property
    def size(self) -> int:
        return len(self._content)

    def hash_of(self, size: int) -> str:
        """A hash of the first bytes: of all, or of the first and the last ones and spots between. The spots stay where
        they are until the length has doubled, so while a file is read they are seldom hashed again."""
        if size <= WHOLE_BYTES:
            return _hash_of(self._content[:size])
        apart = 1 << (size // SPOTS_MAX).bit_length()
        hashing = self._hash_of_spots(apart, size // apart).copy()
        hashing.update(self._content[size - EDGE_BYTES : size])
        return hashing.hexdigest()

    def _hash_of_spots(self, apart: int, spots: int) -> xxhash.xxh3_64:
        known, hashing = self._spots
        if known != (apart, spots):
            hashing = xxhash.xxh3_64(self._content[:EDGE_BYTES])
            for start in range(apart, apart * spots, apart):
                hashing.update(self._content[start : start + SPOT_BYTES])
            self._spots = (apart, spots), hashing
        return hashing


class Folded:
    """Digests of any number of files, in order: of more than `FOLDED_MAX` files, neighbours share one."""

    def __init__(self) -> None:
        self.digests: list[int] = []
        self.files = 0

    @classmethod
    def of(cls, told: str, files: int) -> Folded:
        made = cls()
        made.digests, made.files = list(struct.unpack(f">{len(told) // 8}I", bytes.fromhex(told))), files
        return made

    def told(self) -> str:
        return struct.pack(f">{len(self.digests)}I", *self.digests).hex()

    def add(self, digest: int) -> None:
        share = _share(self.files + 1)
        if share > _share(self.files):
            self.digests = [one ^ other for one, other in zip(self.digests[0::2], self.digests[1::2], strict=True)]
        if self.files // share == len(self.digests):
            self.digests.append(0)
        self.digests[-1] ^= digest
        self.files += 1

    def files_of(self, index: int) -> range:
        """The numbers of the files that share a digest."""
        share = _share(self.files)
        return range(index * share, min((index + 1) * share, self.files))


def _share(files: int) -> int:
    """How many files share a digest."""
    share = 1
    while files > share * FOLDED_MAX:
        share *= 2
    return share


def _time_digest(number: int, modified_ns: int) -> int:
    return xxhash.xxh32_intdigest(f"{number}\0{modified_ns}".encode())


def _sample_digest(number: int, sample: Sample) -> int:
    return xxhash.xxh32_intdigest(f"{number}\0{sample.size}\0{sample.hash_of(sample.size)}".encode())


def _hash_of(content: bytes | memoryview) -> str:
    return xxhash.xxh3_64_hexdigest(content)


def _changed(paths: Sequence[str]) -> PlanError:
    which = paths[0] if len(paths) == 1 else f"one of the {len(paths)} files from {paths[0]} to {paths[-1]}"
    return PlanError(
        f"{which} has changed where it was read: what it has now is not what the results come from; the last commit "
        "stands",
        code="DF0407",
        help="restore it (only the last file may grow, at its end); or start from the beginning with `restart`",
    )


def _tell(doubtful: Sequence[str]) -> None:
    if doubtful:
        others = f" and {len(doubtful) - 1} more" if len(doubtful) > 1 else ""
        sys.stderr.write(
            f"{doubtful[0]}{others}: written to since it was read, and the same in size and in the samples that are "
            "compared, so it is taken to be unchanged; if it is not, begin again with `restart`\n"
        )

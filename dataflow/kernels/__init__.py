"""Numba kernels: loops over plain arrays, compiled once for each machine. Nothing else knows numba.

`@kernel` compiles a function when it is first called, without the GIL, and keeps the machine code on disk. Two
things are hard. A compiled kernel must not outlive its source: numba looks only at the file a function stands
in, so the cache's directory is named by a hash of all kernel files. And signatures must not multiply: numba
compiles once for each combination of types, and counts a read-only array as another type; so every array is
handed over as a contiguous, writable one (a view of the same memory; kernels do not write to their inputs).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, cast

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

CACHE_VARIABLE = "DATAFLOW_KERNEL_CACHE"
"""Names the directory of the compiled kernels, if it is set."""
_SEEDS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Instance:
    """A kernel compiled for some types in this process; `seconds` is 0 when it came from the cache."""

    name: str
    signature: str
    seconds: float


class Kernel(Generic[P, R]):
    """A function that is compiled at its first call."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.function = function
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self._compiled: Any = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        assert not kwargs, "kernels take their arguments by place"
        compiled = self.dispatcher if self._compiled is None else self._compiled
        return cast(R, compiled(*[_plain(one) if type(one) is np.ndarray else one for one in args]))

    @property
    def dispatcher(self) -> Any:
        """The numba function; kernels call each other by it."""
        with _compiling:
            if self._compiled is None:
                self._compiled = _compiler()(self.function)
        return self._compiled


_compiling = threading.Lock()
_kernels: list[Kernel[Any, Any]] = []


def kernel(function: Callable[P, R]) -> Kernel[P, R]:
    """Make a function over int64, float64, bool and byte arrays a kernel."""
    made = Kernel(function)
    _kernels.append(made)
    return made


_helpers: list[Callable[..., Any]] = []


def helper(function: Callable[P, R]) -> Callable[P, R]:
    """Let kernels call a small function; it is compiled into each of them. For Python it stays a function."""
    _helpers.append(function)
    return function


def instances() -> list[Instance]:
    """What was compiled or loaded in this process."""
    return [
        Instance(one.__name__, str(signature), _compile_seconds(one._compiled, signature))
        for one in _kernels
        if one._compiled is not None
        for signature in one._compiled.signatures
    ]


def _compile_seconds(dispatcher: Any, signature: Any) -> float:
    if dispatcher.stats.cache_hits.get(signature):
        return 0.0
    timers = (dispatcher.get_metadata(signature) or {}).get("timers", {})
    return float(timers.get("compiler_lock", 0.0))


# ── arguments ────────────────────────────────────────────────────────────────────────────────────────────


class _Memory:
    """The memory of an array, as numpy wants to be told of it."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, array: np.ndarray) -> None:
        interface = array.__array_interface__
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__, self.owner = interface, array


def _plain(array: np.ndarray) -> np.ndarray:
    """The array, contiguous and of a writable type; only a strided one is copied."""
    flags = array.flags
    if not flags.c_contiguous:
        return np.ascontiguousarray(array)
    return array if flags.writeable else np.asarray(_Memory(array))


# ── compiling ────────────────────────────────────────────────────────────────────────────────────────────

_made_compiler: Any = None


def _compiler() -> Any:
    """numba's decorator with our options; made at the first use, since numba takes long to import."""
    global _made_compiler
    if _made_compiler is None:
        import numba
        from numba.core import config
        from numba.extending import register_jitable

        cache = _cache_directory(numba.__version__)
        _announce_compiling()

        def compiler(function: Callable[..., Any]) -> Any:
            while _helpers:
                register_jitable(_helpers.pop())
            if cache is None:
                return numba.njit(nogil=True, error_model="numpy")(function)
            users, config.CACHE_DIR = config.CACHE_DIR, str(cache)
            try:
                return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
            finally:
                config.CACHE_DIR = users

        _made_compiler = compiler
    return _made_compiler


def _cache_directory(numba_version: str) -> Path | None:
    """A directory that only this user can write; None when there is none: kernels are then compiled in each process."""
    given = os.environ.get(CACHE_VARIABLE)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = (Path(given) if given else home / "dataflow") / f"kernels-{_fingerprint(numba_version)}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError:
        return None
    ours = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return directory if ours and os.access(directory, os.W_OK) else None


def _fingerprint(numba_version: str) -> str:
    import xxhash

    digest = xxhash.xxh3_64(f"{numba_version} {sys.version}".encode())
    for file in sorted(_SEEDS.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _announce_compiling() -> None:
    """Say once, when something really has to be compiled, why the first result takes seconds."""
    from numba.core import event

    class Announce(event.Listener):  # type: ignore[misc]  # numba has no types
        done = False

        def on_start(self, found: Any) -> None:
            # the program may have numba functions of its own
            ours = found.data["dispatcher"].py_func.__module__.startswith(__name__)
            if ours and not Announce.done:
                Announce.done = True
                sys.stderr.write("compiling kernels (once)\n")

        def on_end(self, _: Any) -> None:
            """Nothing to say."""

    event.register("numba:compile", Announce())

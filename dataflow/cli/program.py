"""Loading a user's program: `FILE.py[:name]` to a Pipeline.

The file runs as a module named `__dataflow__` (so `if __name__ == "__main__":` stays silent), with its own folder
first on the path, as Python does for scripts. The hard part is whose fault an exception is: one that leaves the
user's file is shown with the user's frames alone, since ours would only bury the line to look at.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import dataflow
from dataflow.errors import DataflowError, NameNotFoundError, Origin, ProgramError, did_you_mean

if TYPE_CHECKING:
    from dataflow.pipeline import Pipeline

MODULE_NAME = "__dataflow__"
_PACKAGE = Path(dataflow.__file__).parent
_OUR_FOLDERS = tuple({str(_PACKAGE), *(str((_PACKAGE / name).resolve()) for name in ("dsl", "operators", "state"))})


class BrokenProgramError(ProgramError):
    """The user's file raised while it was being executed; the message is their traceback."""

    code = "DF0220"

    def __str__(self) -> str:
        return self.message


def add_program_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "program",
        metavar="FILE.py[:name]",
        help="a file with one Pipeline; or which of its Pipelines, or a function that returns one",
    )


def load_pipeline(program: str) -> Pipeline:
    """Execute the file and return its Pipeline; raises ProgramError for whatever is wrong with it."""
    path, name = _split(program)
    try:
        module = _execute(path)
        return _named(module, path, name) if name else _only(module, path)
    except DataflowError as error:
        error.at(_user_line(error))
        if isinstance(error, ProgramError):
            raise
        # A missing file, say: while the program is being built it is the program that is wrong.
        raise ProgramError(error.message, code=error.code, help=error.help, origin=error.origin) from error
    except Exception as error:  # noqa: BLE001 - whatever the user's file raised is theirs to see
        raise BrokenProgramError(user_traceback(error).rstrip()) from None


def _user_line(error: BaseException) -> Origin | None:
    """The innermost line of the user's program that an error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    return Origin(frames[-1].filename, frames[-1].lineno or 0) if frames else None


def has_users_line(error: BaseException) -> bool:
    """Whether the exception came through a file of the user's; what our own calls of others raise is told by us."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(not _is_ours(frame.filename) and Path(frame.filename).is_file() for frame in frames)


def user_traceback(error: BaseException) -> str:
    """The traceback without frames of this package and of the machinery that executed the file."""
    told = traceback.TracebackException.from_exception(error)
    pending = [told]
    while pending:
        one = pending.pop()
        one.stack = traceback.StackSummary.from_list([frame for frame in one.stack if not _is_ours(frame.filename)])
        pending += [link for link in (one.__cause__, one.__context__) if link is not None]
    return "".join(told.format())


def _is_ours(file: str) -> bool:
    return file.startswith(_OUR_FOLDERS) or file.startswith("<frozen")


def _split(program: str) -> tuple[Path, str]:
    """The file and the name in it ("" when none is given)."""
    path, colon, name = program.rpartition(":")
    if not colon or Path(program).exists():
        path, name = program, ""
    if not Path(path).is_file():
        raise ProgramError(
            f"there is no file {path}", code="DF0221", help="give a Python file: pipeline.py or pipeline.py:name"
        )
    if Path(path).suffix != ".py":
        raise ProgramError(f"{path} is not a Python file", code="DF0221", help="give a file whose name ends in .py")
    return Path(path), name


def _execute(path: Path) -> ModuleType:
    module = ModuleType(MODULE_NAME)
    module.__file__ = str(path.absolute())
    sys.modules[MODULE_NAME] = module
    sys.path.insert(0, str(path.absolute().parent))
    exec(compile(path.read_bytes(), str(path.absolute()), "exec"), module.__dict__)
    return module


def _only(module: ModuleType, path: Path) -> Pipeline:
    found = _pipelines(module)
    distinct = {id(pipeline): pipeline for pipeline in found.values()}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    if not found:
        raise ProgramError(
            f"{path} makes no Pipeline",
            code="DF0221",
            help=f'end it with `pipeline = flow.Pipeline("{path.stem}", sink)`, or name a function: {path}:name; '
            "what it runs itself, as `.collect()` and `.run()` do, has been run",
        )
    raise ProgramError(
        f"{path} makes {len(distinct)} Pipelines: {', '.join(found)}",
        code="DF0221",
        help=f"say which one, as in {path}:{next(iter(found))}",
    )


def _named(module: ModuleType, path: Path, name: str) -> Pipeline:
    if not hasattr(module, name):
        known = [
            key for key, value in vars(module).items() if not key.startswith("_") and not isinstance(value, ModuleType)
        ]
        guess = did_you_mean(name, known)
        listed = ", ".join(_pipelines(module)) or "none"
        raise NameNotFoundError(
            f"{path} has no `{name}`",
            help=(f"did you mean `{guess}`? " if guess else "") + f"(Pipelines in it: {listed})",
        )
    value = getattr(module, name)
    if callable(value) and not isinstance(value, dataflow.Pipeline):
        value = value()
    if not isinstance(value, dataflow.Pipeline):
        raise ProgramError(
            f"`{name}` in {path} is a {type(value).__name__}, not a Pipeline",
            code="DF0221",
            help="name a Pipeline, or a function that returns one and needs no arguments",
        )
    return value


def _pipelines(module: ModuleType) -> dict[str, Pipeline]:
    return {name: value for name, value in vars(module).items() if isinstance(value, dataflow.Pipeline)}

"""The JSON of a catalog: checkpoints and ledgers, as strangers may have written them.

Part of the verifier: imports nothing of the store (see __init__.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

COUNTS = ("passed", "filtered", "late", "dead", "folded", "held")
COUNTS_BESIDE = ("rows_in", "produced")


class WrongJson(Exception):
    """Not the JSON that the format describes; the text tells how."""


def parsed(text: str | bytes) -> object:
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        found: object = json.loads(decoded, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WrongJson(f"is no JSON: {error}") from None
    return found


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _members(value: object, where: str, needed: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, object]:
    """An object that has what it needs and nothing unknown."""
    found = _any_object(value, where)
    for name in needed:
        if name not in found:
            raise WrongJson(f"{where} has no {name!r}")
    for name in found:
        if name not in needed and name not in others:
            raise WrongJson(f"{where} has {name!r}, which the format does not know")
    return found


def _any_object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise WrongJson(f"{where} is no object")
    return value


def owners(checkpoint: object) -> set[str]:
    """Whose the frames of a checkpoint may be; its form is checked on the way."""
    parts = _members(checkpoint, "the object", (), ("sources", "states", "sinks", "steps"))
    for source, partitions in _any_object(parts.get("sources", {}), "sources").items():
        _any_object(partitions, f"source {source!r}")  # a position may be any JSON value
    for name, step in _any_object(parts.get("steps", {}), "steps").items():
        told = _members(step, f"step {name!r}", ("does", "columns", "paths", "hash"))
        paths = told["paths"]
        if not isinstance(paths, list):
            raise WrongJson(f"the paths of step {name!r} are no list")
        for what in (
            told["does"],
            told["hash"],
            *paths,
            *_any_object(told["columns"], f"columns of {name!r}").values(),
        ):
            if not isinstance(what, str):
                raise WrongJson(f"step {name!r} has {what!r} where a text belongs")
    states, sinks = _any_object(parts.get("states", {}), "states"), _any_object(parts.get("sinks", {}), "sinks")
    for step, tasks in states.items():
        if not isinstance(tasks, list):
            raise WrongJson(f"the state of step {step!r} is no list")
        for task in tasks:
            _any_object(task, f"a state of step {step!r}")
    return {f"state {step}" for step in states} | {f"sink {sink}" for sink in sinks}


def wrong_counts(counts: object) -> Iterator[str]:
    """Steps whose rows do not add up."""
    for step, numbers in _any_object(counts, "the object").items():
        found = _members(numbers, f"step {step!r}", (), (*COUNTS, *COUNTS_BESIDE))
        for name, number in found.items():
            if type(number) is not int or (number < 0 and name != "held"):
                raise WrongJson(f"{name!r} of step {step!r} is no number of rows")
        rows_in = found.get("rows_in", 0)
        left = sum(int(str(found.get(name, 0))) for name in COUNTS)
        if rows_in != left:
            yield f"step {step!r} took {rows_in} rows in, and {left} are accounted for"

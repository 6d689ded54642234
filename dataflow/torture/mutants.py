"""Bugs planted on purpose: each must be caught by the row that is meant for it (row 25)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    yield

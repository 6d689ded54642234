"""Rows that need a disk of their own: where none can be mounted they say why, and count as not proven."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dataflow.torture import Plan, mounts, row


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    for probe in (mounts.why_no_disk, mounts.why_no_tmpfs):
        probe.cache_clear()
    yield
    for probe in (mounts.why_no_disk, mounts.why_no_tmpfs):
        probe.cache_clear()


def test_without_root_no_power_is_cut_and_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflow.torture.mounts.os.geteuid", lambda: 1000)
    result = row(5).run(Plan(seed=1))
    assert (result.status, result.skipped) == ("SKIPPED", "mounting needs root")
    assert not result.is_bad
    assert "not proven, mounting needs root" in result.line()


def test_a_tool_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dataflow.torture.mounts.os.geteuid", lambda: 0)
    monkeypatch.setattr(mounts, "TOOL_PATH", str(tmp_path))
    assert mounts.why_no_disk("xfs") == "there is no mkfs.xfs"


def test_a_mount_that_is_refused_is_told_in_the_words_of_who_refused_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for tool in ("mkfs.ext4", "mount", "umount", "unshare"):
        (tmp_path / tool).write_text("#!/bin/sh\necho 'not in this container' >&2\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setattr("dataflow.torture.mounts.os.geteuid", lambda: 0)
    monkeypatch.setattr(mounts, "TOOL_PATH", str(tmp_path))
    assert mounts.why_no_disk("ext4") == "ext4 on a loop device cannot be mounted (not in this container)"
    assert mounts.why_no_tmpfs() == "a tmpfs cannot be mounted (not in this container)"

"""Real file systems on loop devices, for faults that only a kernel can make: a power cut, and a writeback that fails.

All of it needs root. The hard part is to leave no trace and to meet nobody: mounts are made in a name space of the
process's own and go with it. In a shared one, another process that copies the mounts at the wrong moment keeps a dead
file system alive, and mounting the disk again would silently give that one back; so a mount has to prove that it is
alive.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from dataflow.system import RealSystem
from dataflow.torture.frame import Tally
from dataflow.torture.processes import Channel, fork

CLONE_NEWNS, MS_PRIVATE_RECURSIVE = 0x20000, (1 << 18) | (1 << 14)
SHUTDOWN_IOCTL, NO_LOG_FLUSH = 0x8004587D, 2
"""EXT4_IOC_SHUTDOWN, which is XFS_IOC_GOINGDOWN too: from here on nothing reaches the disk, the journal neither."""
TOOL_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Where the tools of file systems are, which are not in everybody's path."""
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-b", "4096", "-O", "^resize_inode", "-J", "size=4"),
    "xfs": ("mkfs.xfs", "-q"),
}
OPTIONS = {"ext4": ("-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"), "xfs": ()}
BYTES_MIN = {"ext4": 16 << 20, "xfs": 300 << 20}
"""Of a disk, on paper: only what is written takes memory."""
PROBE = """
set -e
truncate -s {bytes} "$1/disk"
{make} "$1/disk"
mkdir "$1/mounted"
mount -o loop "$1/disk" "$1/mounted"
umount "$1/mounted"
"""
UMOUNT_SECONDS_MAX = 10.0
"""How long files of a killed process may keep a disk busy."""


class MountError(Exception):
    """The rig itself does not work: this says nothing about a store."""


def enter_own_mounts() -> None:
    """From here on what this process mounts is seen by nobody else, and goes with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_PRIVATE_RECURSIVE, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")


def in_own_mounts(work: Callable[[Tally], None], tally: Tally, where: str) -> None:
    """Do a part of a trial in a forked process with mounts of its own."""
    victim = fork(partial(_work_and_tell, work))
    said, code = victim.rest()
    for part in said:
        tally.add(Tally(**part))
    if code:
        tally.find("wrong", f"{where}: the rig itself failed (its traceback is on stderr)")


def _work_and_tell(work: Callable[[Tally], None], channel: Channel) -> None:
    enter_own_mounts()
    tally = Tally()
    work(tally)
    channel.send(vars(tally))


@cache
def why_no_disk(kind: str) -> str | None:
    """Why a disk of this kind cannot be mounted here; None when it can be: it was tried."""
    script = PROBE.format(bytes=BYTES_MIN[kind], make=" ".join((*MAKE[kind], *OPTIONS[kind])))
    return _why_not(f"{kind} on a loop device", script, MAKE[kind][0])


@cache
def why_no_tmpfs() -> str | None:
    """The same of a disk in memory."""
    return _why_not("a tmpfs", 'mount -t tmpfs tmpfs "$1" && umount "$1"')


def _why_not(what: str, script: str, *tools: str) -> str | None:
    """Try it, in a directory and a name space of its own."""
    if os.geteuid() != 0:
        return "mounting needs root"
    for tool in (*tools, "mount", "umount", "unshare"):
        if shutil.which(tool, path=TOOL_PATH) is None:
            return f"there is no {tool}"
    with tempfile.TemporaryDirectory(prefix="dataflow-torture-") as folder:
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", folder]
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return f"{what} cannot be mounted ({' '.join(done.stderr.split()) or 'no reason was given'})"


@dataclass
class LoopDisk:
    """A file system in a file, mounted by this process in its own name space."""

    folder: Path
    kind: str = "ext4"

    @property
    def image(self) -> Path:
        return self.folder / "disk"

    @property
    def root(self) -> Path:
        """Where it is mounted."""
        return self.folder / "mounted"

    def make(self) -> None:
        self.root.mkdir(parents=True)
        with open(self.image, "wb") as file:
            file.truncate(BYTES_MIN[self.kind])
        run(*MAKE[self.kind], *OPTIONS[self.kind], str(self.image))

    def make_without_room(self) -> None:
        """One that writes only where it has written before, once its own file system is full: journal and the like.

        What is free is told to the image by `fstrim`, which gives it back.
        """
        self.make()
        with open(self.image, "r+b") as file:
            content = file.read()
            file.seek(0)
            file.write(content)
        self.mount()
        run("fstrim", str(self.root))
        self._write_page_by_page()

    def mount(self) -> None:
        """Mount it, and prove that it is alive."""
        run("mount", "-o", "loop", str(self.image), str(self.root))
        _, options = self._mounted()
        if "shutdown" in options.split(","):
            raise MountError(f"{self.root} is the dead file system of before ({options})")
        probe = self.root / "probe"
        probe.write_bytes(b"alive")
        probe.unlink()

    def unmount(self) -> None:
        """As soon as nobody uses it any more."""
        system = RealSystem()
        until = system.clock.monotonic() + UMOUNT_SECONDS_MAX
        while True:
            try:
                run("umount", str(self.root))
                return
            except MountError:
                if system.clock.monotonic() > until:
                    raise
            system.scheduler.sleep(0.01)

    def cut_power(self) -> None:
        """What was not synced is gone, and nothing that comes now is written."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN_IOCTL, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def _write_page_by_page(self) -> None:
        """Have the kernel hand on single pages.

        Of more, a loop device may write a part, find no room for the rest, and claim to have written it all.
        """
        device, _ = self._mounted()
        limit = Path("/sys/block") / os.path.basename(device) / "queue" / "max_sectors_kb"
        limit.write_text(str(os.sysconf("SC_PAGE_SIZE") >> 10))

    def _mounted(self) -> tuple[str, str]:
        """The device and the options."""
        for line in Path("/proc/self/mounts").read_text().splitlines():
            device, place, _, options, *_ = line.split()
            if place == str(self.root):
                return device, options
        raise MountError(f"{self.root} is not mounted")


def run(*command: str) -> None:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise MountError(f"{' '.join(command)}: {done.stderr.strip()}")


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": TOOL_PATH}

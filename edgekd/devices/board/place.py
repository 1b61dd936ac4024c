"""The one folder of a board that edgekd writes in: it is marked as ours before anything else is put there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.errors import DeviceError, EdgekdError, IntegrityError, ResourcesExhausted

_MARK, _MARKED = "edgekd-board", "edgekd keeps this folder; `edgekd devices clean` removes it\n"
_OURS = (
    "worker", "files", "orders", "cache", "tuning.json", "tuning.pulse", "tuning.lock", "tuning.partial",
    "tuning.session", "lease.json", "lease.lock", "boot-id", "starts.log",
)  # fmt: skip
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LOCK_S = 20.0  # nobody keeps the lock for longer than it takes to write a small file


class Place:
    """A folder below the home folder, unless it is absolute."""

    def __init__(self, folder: str) -> None:
        """Name it; nothing is written yet."""
        self.root = (Path.home() / Path(folder).expanduser()).resolve()

    def path(self, *parts: str) -> Path:
        """Return a path inside."""
        return self.root.joinpath(*parts)

    @property
    def marked(self) -> bool:
        """Whether it is there and carries our mark, by the user who asks now."""
        try:
            found = self.path(_MARK).lstat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()

    def make(self) -> None:
        """Make and mark it, unless that was done before.

        Raises:
            IntegrityError: something lies there that is not ours.

        """
        if self.marked:
            return
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(self.root.iterdir()):
            raise IntegrityError(
                f"{self.root} on the board is not edgekd's",
                cause="it holds something and does not carry edgekd's mark",
                mend="give the board another folder with `edgekd devices add`, or empty that one",
            )
        write_whole(self.path(_MARK), _MARKED.encode())

    def remove(self) -> float:
        """Remove what edgekd put here, and the folder where nothing else is in it; return the MiB freed.

        Raises:
            IntegrityError: it does not carry our mark.
            DeviceError: it says what has to be put back of the power mode and clocks.

        """
        if not self.root.exists():
            return 0.0
        if not self.marked:
            raise IntegrityError(
                f"{self.root} on the board is not removed",
                cause="it does not carry edgekd's mark",
                mend="look at it, and remove it yourself if it is not needed",
            )
        if self.path("tuning.json").exists():
            raise DeviceError(
                "a session has tuned the board, and it has not been put back",
                cause="what to put back is written in the folder",
                mend="wait a minute, or run `edgekd devices probe`, which puts it back; then clean it",
            )
        freed_mib = self.used_mib()
        for name in (*_OURS, _MARK):  # the mark last: a removal that was cut off can be repeated
            path = self.path(name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a user's own file in it stays, and so does the folder
            self.root.rmdir()
        return freed_mib

    def used_mib(self) -> float:
        """Return what everything in it takes; 0 where there is nothing."""
        files: dict[tuple[int, int], int] = {}  # hard links count once
        for folder, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(OSError):
                    found = Path(folder, name).lstat()
                    files[found.st_dev, found.st_ino] = found.st_size
        return sum(files.values()) / (1 << 20)

    def free_mib(self) -> int:
        """Return the free space where it is, or will be."""
        path = self.root
        while not path.is_dir():
            path = path.parent
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize >> 20

    def boot_id(self) -> str:
        """Name this boot of the machine; a file `boot-id` in the folder stands for it in tests."""
        for path in (self.path("boot-id"), _BOOT_ID):
            with contextlib.suppress(OSError), path.open(encoding="ascii") as file:
                return file.read(64).strip()
        return "unknown"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of the lease meanwhile.

        Raises:
            DeviceError: another process does not give the lock back.

        """
        lock = os.open(self.path("lease.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _await_lock(lock, str(self.root))
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing would not do where a fork has it open, too
            os.close(lock)


def try_lock(descriptor: int) -> bool:
    """Take a lock if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, after a power cut as well."""
    unfinished = _unfinished(path)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    unfinished.replace(path)
    sync_folder(path.parent)


def write_fleeting(path: Path, data: bytes) -> None:
    """Write a file whole that means nothing after a power cut: the disk is not waited for."""
    unfinished = _unfinished(path)
    unfinished.write_bytes(data)
    unfinished.replace(path)


def sync_folder(path: Path) -> None:
    """Make a rename last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Read an object; empty where there is none, or nothing that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def full_disk(error: OSError) -> bool:
    """Whether an error means that there is no room."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def cannot_write(place: Place, error: OSError) -> EdgekdError:
    """Say that the folder cannot be written: because the disk is full, or for another reason."""
    full = full_disk(error)
    kind = ResourcesExhausted if full else DeviceError
    mend = "free some space there" if full else "look at who owns the folder, or give the board another"
    return kind(f"the board cannot write {place.root}", cause=str(error), mend=mend)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def _await_lock(descriptor: int, name: str) -> None:
    deadline = time.monotonic() + _LOCK_S
    while not try_lock(descriptor):
        if time.monotonic() > deadline:
            mend = "end the process there that has lease.lock open"
            raise DeviceError(f"the lease in {name} cannot be looked at", cause="it stays locked", mend=mend)
        time.sleep(0.01)

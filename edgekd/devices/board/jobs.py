"""Orders on a board, each in a process of its own that no connection can take along when it breaks.

`orders/<id>/` holds `lock`, which the process keeps for as long as it lives; `job.json`, written before anything is
measured; and `reply.json`, which is there whole or not at all. So an id that comes again finds one of: never begun
(it may begin), alive (wait), replied (the same reply), begun and dead (lost). It never runs a second time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgekd.devices.board import lease
from edgekd.devices.board.files import digest
from edgekd.devices.board.place import Place, read_json, try_lock, write_fleeting, write_whole
from edgekd.errors import DeviceError, ResourcesExhausted, WorkerDied

_CACHE = "EDGEKD_CACHE"  # where a runtime keeps what it can make again, such as TensorRT's timings
TAG = "EDGEKD_ORDER"  # in the environment of everything that an order starts
_KEPT_S = 24 * 3600.0  # a reply that nobody fetched
_END_S = 10.0
_LOG_BYTES = 1 << 20
_MOST_DESCRIPTORS = 4096

Run = Callable[[Path, dict[str, Any]], None]


@dataclass(frozen=True)
class Running:
    """An order that is on its way; `done` can be read once it ends, where it was begun by this process."""

    id: str
    done: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """An order that may begin."""

    place: Place
    token: str  # of the session, which must have the board
    asked: dict[str, Any]  # `id`, `order` (its name), and what `run` takes
    run: Run  # carries it out in a process of its own, given the folder of the order; writes the reply

    @property
    def folder(self) -> Path:
        """Where everything about it lies."""
        return self.place.path("orders", digest(self.asked["id"]))


def begin(job: Job) -> Running:
    """Begin an order, or find it again.

    Raises:
        DeviceError: the session does not have the board.
        WorkerDied: the order was begun before, and its process has died.

    """
    id_, folder = job.asked["id"], job.folder
    with job.place.locked():  # so that nobody takes the board between the look at the lease and the start
        lease.check(job.place, job.token)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if (folder / "reply.json").exists() or not try_lock(lock):
                return Running(id_)
            if (folder / "job.json").exists():
                raise _lost(folder)
            return Running(id_, _start(job, lock))
        finally:
            os.close(lock)


def reply(place: Place, id_: str) -> bytes | None:
    """Return the reply to an order once it is there, as one line of JSON; None while it runs.

    Raises:
        WorkerDied: the order's process has died without one.

    """
    folder = place.path("orders", digest(id_))
    path = folder / "reply.json"
    with contextlib.suppress(ChildProcessError):  # it may be another's child
        os.waitpid(-1, os.WNOHANG)
    alive = _alive(folder)  # asked first: a reply may come in between
    if path.exists():
        return path.read_bytes()
    if alive:
        return None
    raise _lost(folder)


def forget(place: Place, id_: str) -> None:
    """Remove an order that the host is done with."""
    end(place, id_)
    shutil.rmtree(place.path("orders", digest(id_)), ignore_errors=True)


def end(place: Place, id_: str, why: str = "") -> None:
    """End an order that may be running, and everything it started.

    Raises:
        DeviceError: it cannot be ended.

    """
    folder = place.path("orders", digest(id_))
    deadline = time.monotonic() + _END_S
    while _alive(folder):
        pid = read_json(folder / "job.json").get("pid")
        if pid:  # its lock is taken, so that the number is still its own
            write_fleeting(folder / "ended.json", json.dumps({"why": why}).encode())
            _kill(pid)
        if time.monotonic() > deadline:
            mend = "restart the board"
            raise DeviceError(
                "an earlier order on the board cannot be ended", cause=f"process {pid}", mend=mend
            )
        time.sleep(0.01)
    while (left := _tagged(id_)) and time.monotonic() < deadline:
        for started in left:
            _kill(started)


def end_all(place: Place, why: str, but_of: str = "") -> None:
    """End every order of other sessions that is still running, before another measures."""
    for id_ in _ids(place):
        if read_json(place.path("orders", id_, "job.json")).get("token") != but_of:
            end(place, id_, why)


def end_own(place: Place, token: str) -> None:
    """End and remove what a session that leaves has ordered."""
    for id_ in _ids(place):
        if read_json(place.path("orders", id_, "job.json")).get("token") == token:
            forget(place, id_)


def drop_old(place: Place) -> None:
    """Remove replies of another boot, and those that nobody has fetched for a day; by the board's own clock."""
    for id_ in _ids(place):
        found = read_json(place.path("orders", id_, "job.json"))
        fresh = found.get("boot_id") == place.boot_id() and lease.now_s() - found["begun_s"] < _KEPT_S
        if not fresh and not _alive(place.path("orders", id_)):
            shutil.rmtree(place.path("orders", id_), ignore_errors=True)


def _start(job: Job, lock: int) -> int:
    """Fork a process that keeps the lock; return what can be read once it is gone."""
    done, alive = os.pipe()
    pid = os.fork()
    if pid == 0:
        _live(job, lock, alive)
    os.close(alive)
    if not os.read(done, 1):  # it says one byte once it has written down that it began
        os.close(done)
        mend = "free some space there, or look at who owns the folder"
        raise ResourcesExhausted(f"the board cannot begin an order in {job.place.root}", mend=mend)
    return done


def _live(job: Job, lock: int, alive: int) -> NoReturn:
    """Be the process of an order: leave the connection behind, write down that it began, carry it out."""
    try:
        os.setsid()  # a connection that breaks takes its session along
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(quiet, descriptor)
        low, high = sorted((lock, alive))
        for start, stop in ((3, low), (low + 1, high), (high + 1, _MOST_DESCRIPTORS)):
            os.closerange(start, stop)
        _note(job)
        os.write(alive, b"!")
        _settle(job)
        job.run(job.folder, job.asked)
    finally:
        os._exit(0)


def _settle(job: Job) -> None:
    """Let everything that the order starts carry its name and keep to the board's folder."""
    scratch = job.folder / "tmp"
    scratch.mkdir(mode=0o700, exist_ok=True)
    os.environ.update({TAG: job.asked["id"], "TMPDIR": str(scratch), _CACHE: str(job.place.path("cache"))})
    tempfile.tempdir = None  # found before


def _note(job: Job) -> None:
    begun = {
        "pid": os.getpid(),
        "token": job.token,
        "boot_id": job.place.boot_id(),
        "begun_s": lease.now_s(),
    }
    write_whole(job.folder / "job.json", json.dumps(begun).encode())
    path = job.place.path("starts.log")
    with contextlib.suppress(OSError):
        if path.stat().st_size > _LOG_BYTES:
            path.write_bytes(b"")
    with path.open("a", encoding="utf-8") as log:
        log.write(f"{job.asked['id']} {job.asked['order']}\n")


def _alive(folder: Path) -> bool:
    """Whether an order's process has its lock."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(lock)
    finally:
        os.close(lock)


def _ids(place: Place) -> list[str]:
    try:
        found = [path.name for path in place.path("orders").iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if re.fullmatch(r"[0-9a-f]{32}", name))


def _tagged(id_: str) -> list[int]:
    """Return what an order started: each has its id in its environment, whoever its parent is now."""
    tag, found = f"{TAG}={id_}".encode(), []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if tag in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _lost(folder: Path) -> DeviceError:
    if why := read_json(folder / "ended.json").get("why"):
        return DeviceError("the order was ended on the board", cause=why, mend="give the same command again")
    return WorkerDied(
        "the order's process on the board has died",
        cause="killed from outside, most likely for lack of memory",
        mend="free memory on the board, then give the same command again",
    )

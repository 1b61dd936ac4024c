"""First contact with a board: say what it is, keep the lease, take the worker in and start it.

It travels with every connection and runs from memory, so it works on a board where nothing of ours lies.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekd.devices.board import lease
from edgekd.devices.board.lines import Gone, Lines, told
from edgekd.devices.board.place import Place, cannot_write
from edgekd.devices.board.unpack import intact, newest, unpack
from edgekd.errors import DeviceError, EdgekdError, UsageError

GREETING = "edgekd-board-1 "  # what a login shell prints before is skipped
_MOST_PARCEL_BYTES = 32 << 20


def main(folder: str) -> None:
    """Greet the host and do what it says until it is gone; a started worker takes over from here."""
    replies = os.dup(1)
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)  # what a library prints must not reach the host
    sys.path[:] = [entry for entry in sys.path if entry]  # no numpy.py of the home folder's
    lines = Lines(replies)
    place = Place(folder)
    lines.write(b"\n" + GREETING.encode())
    lines.say({"python": platform.python_version(), "boot_id": place.boot_id()})
    with contextlib.suppress(Gone):
        while _carry_out(place, lines, lines.read()):
            continue


def _carry_out(place: Place, lines: Lines, asked: dict[str, Any]) -> bool:
    """Answer one order; False once there is nothing left to do."""
    if asked.get("do") == "work" and intact(place, asked["digest"]):
        _work(place, lines, asked)
        return False
    try:
        found = _HANDLERS[asked["do"]](place, lines, asked)
    except EdgekdError as error:
        lines.say({"n": asked["n"], "error": told(error)})
    except OSError as error:
        lines.say({"n": asked["n"], "error": told(cannot_write(place, error))})
    else:
        lines.say({"n": asked["n"], **found})
    return True


def _survey(place: Place, _: Lines, __: dict[str, Any]) -> dict[str, Any]:
    try:
        numpy = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        numpy = ""
    return {
        "survey": {
            "boot_id": place.boot_id(),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "numpy": numpy,
            "free_mib": place.free_mib(),
            "worker": newest(place) if place.marked else "",
            "used_mib": place.used_mib() if place.marked else 0.0,
            "lease": lease.holder(place) if place.marked else None,
            "clock_s": time.time(),
            "model": _said("/proc/device-tree/model"),
            "release": _said("/etc/nv_tegra_release"),
        }
    }


def _said(path: str) -> str:
    """Return the first line of a small file of the system; empty where it is not there."""
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        return file.read(200).replace(b"\0", b"").decode("utf-8", "replace").partition("\n")[0].strip()
    return ""


def _hold(place: Place, _: Lines, asked: dict[str, Any]) -> dict[str, Any]:
    place.make()
    return {"lease": lease.hold(place, asked["owner"], asked["why"], asked["seconds"])}


def _release(place: Place, _: Lines, asked: dict[str, Any]) -> dict[str, Any]:
    if place.marked:
        lease.drop(place, asked["owner"])
    return {}


def _clean(place: Place, _: Lines, asked: dict[str, Any]) -> dict[str, Any]:
    by = lease.holder(place) if place.marked else None
    if by is not None:
        if by["owner"] != asked["owner"]:
            raise lease.taken(by)
        lease.drop(place, asked["owner"])
        if (still := lease.holder(place)) is not None:
            raise lease.taken(still)
    return {"freed_mib": place.remove()}


def _install(place: Place, lines: Lines, asked: dict[str, Any]) -> dict[str, Any]:
    if not 0 <= asked["size"] <= _MOST_PARCEL_BYTES:
        raise Gone("no worker is that large")
    pieces: list[bytes] = []
    lines.read_bytes(asked["size"], pieces.append)
    place.make()
    unpack(place, b"".join(pieces), asked["digest"])
    return {}


def _not_there(_: Place, __: Lines, ___: dict[str, Any]) -> dict[str, Any]:
    return {"ready": False}


def _work(place: Place, lines: Lines, asked: dict[str, Any]) -> None:
    """Leave what travelled in memory for the worker that lies there."""
    root = place.path("worker", asked["digest"])
    os.utime(root)
    for name in [name for name in sys.modules if name.partition(".")[0] == "edgekd"]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # this process is forked, which threads do not survive
    try:
        agent = importlib.import_module("edgekd.devices.board.agent")
    except ImportError as error:
        mend = (
            f"install numpy for {sys.executable} on the board, or name another Python at `edgekd devices add`"
        )
        failed = DeviceError("the worker does not start on the board", cause=str(error), mend=mend)
        lines.say({"n": asked["n"], "error": told(failed)})
        return
    agent.serve(str(place.root), lines.replies, lines.buffered, asked["n"])


def _unknown(_: Place, __: Lines, asked: dict[str, Any]) -> dict[str, Any]:
    raise UsageError(f"the board does not know {asked['do']!r}")


_HANDLERS = {
    "survey": _survey,
    "hold": _hold,
    "release": _release,
    "clean": _clean,
    "install": _install,
    "work": _not_there,
}

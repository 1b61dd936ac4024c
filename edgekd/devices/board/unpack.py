"""Lay out the worker that was copied, and make sure before each use that it still is what was copied.

A parcel is compressed: one line of JSON, `[[name, size, sha256], ...]`, and the files one after the other. The digest
of that line names the worker.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

from edgekd.devices.board.place import Place, sync_folder
from edgekd.errors import IntegrityError

_MOST_BYTES = 32 << 20
_NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*\.(py|onnx)")
_LIST = "parcel.json"
_KEPT = 8  # workers of other versions of edgekd


def unpack(place: Place, parcel: bytes, digest: str) -> None:
    """Write the files of a parcel to `worker/<digest>`: whole, or not at all.

    Raises:
        IntegrityError: it is not the parcel of that digest, or holds what no worker holds.

    """
    head, bodies = _opened(parcel, digest)
    place.path("worker").mkdir(mode=0o700, exist_ok=True)
    folder = place.path("worker", digest)
    unfinished = folder.with_name(f"{digest}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    at = 0
    for name, size, sha256 in _listed(head):
        body = bodies[at : at + size]
        at += size
        if hashlib.sha256(body).hexdigest() != sha256:
            raise _spoilt(f"{name} is not what was sent")
        _write(unfinished / name, body)
    _write(unfinished / _LIST, head)
    shutil.rmtree(folder, ignore_errors=True)  # one that was altered
    try:
        unfinished.rename(folder)
    except OSError:  # another connection was faster; what it left is checked before use, too
        shutil.rmtree(unfinished)
    sync_folder(place.path("worker"))
    _forget_old(place.path("worker"))


def intact(place: Place, digest: str) -> bool:
    """Whether a worker lies there with every byte as it was copied, and no other module among them."""
    folder = place.path("worker", digest)
    try:
        head = (folder / _LIST).read_bytes()
        if hashlib.sha256(head).hexdigest() != digest:
            return False
        listed = {name: sha256 for name, _, sha256 in _listed(head)}
        whole = all(_sha256(folder / name) == sha256 for name, sha256 in listed.items())
    except (OSError, IntegrityError):
        return False
    return whole and _sources(folder) <= set(listed)


def newest(place: Place) -> str:
    """Return the digest of the worker that was laid out or used last; empty where there is none."""
    workers = _workers(place.path("worker"))
    return workers[-1].name if workers else ""


def _opened(parcel: bytes, digest: str) -> tuple[bytes, bytes]:
    machine = zlib.decompressobj()
    try:
        plain = machine.decompress(parcel, _MOST_BYTES)
    except zlib.error as error:
        raise _spoilt(str(error)) from error
    head, _, bodies = plain.partition(b"\n")
    if hashlib.sha256(head).hexdigest() != digest or not machine.eof:
        raise _spoilt("its digest is another")
    return head, bodies


def _listed(head: bytes) -> list[tuple[str, int, str]]:
    entries: Any = json.loads(head)
    for name, _, _ in entries:
        if not _NAME.fullmatch(name):  # no folder above, no absolute path, nothing hidden
            raise _spoilt(f"no worker has a file called {name!r}")
    return [(name, size, sha256) for name, size, sha256 in entries]


def _write(path: Path, body: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(body)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sources(folder: Path) -> set[str]:
    found = set()
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {str(Path(parent, name).relative_to(folder)) for name in names}
    return found - {_LIST}


def _workers(folder: Path) -> list[Path]:
    """Return the whole ones, the latest last."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"[0-9a-f]{64}", path.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _forget_old(folder: Path) -> None:
    for path in _workers(folder)[:-_KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def _spoilt(cause: str) -> IntegrityError:
    mend = "give the same command again"
    return IntegrityError("the worker did not arrive on the board as it was sent", cause=cause, mend=mend)

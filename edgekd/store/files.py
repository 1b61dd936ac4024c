"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekd.errors import ResourcesExhausted

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends well, the file there becomes `path`, durably.

    Raises:
        ResourcesExhausted: the disk or the quota is full. What was at `path` before is still there.

    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with disk_full_is_an_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # it may hide why there is nothing to remove
            partial.unlink()


def write_text(path: Path, text: str) -> Path:
    """Write a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


@contextmanager
def disk_full_is_an_error(path: Path) -> Iterator[None]:
    """Turn a full disk into the error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise disk_full(path, error.strerror or "the disk is full") from error


def disk_full(path: Path, cause: str) -> ResourcesExhausted:
    """Say that there is no room for `path`."""
    mend = "free some space and give the same command again: it goes on where it was"
    return ResourcesExhausted(f"cannot write {path}", cause=cause, mend=mend)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

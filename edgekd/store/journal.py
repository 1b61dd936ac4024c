"""Values one a line, each on disk before the next is made: what a measurement leaves behind when it is cut short."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar

from edgekd.errors import ConfigError, IntegrityError
from edgekd.store.files import disk_full_is_an_error
from edgekd.values.codec import decode, encode

T = TypeVar("T")


def append(path: Path, value: object) -> None:
    """Add a value as one line of JSON; it is on disk when this returns.

    Raises:
        ResourcesExhausted: the disk is full.

    """
    with disk_full_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        with path.open("ab") as file:
            file.write(encode(value).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read(path: Path, kind: type[T]) -> tuple[T, ...]:
    """Return the values of a journal in order; a torn last line is left out, as if it had never begun.

    Raises:
        IntegrityError: another line is not a value of this kind.

    """
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return tuple(_value(path, kind, number, line) for number, line in enumerate(whole, start=1))


def _value(path: Path, kind: type[T], number: int, line: str) -> T:
    try:
        return decode(kind, json.loads(line), f"line {number}")
    except (ValueError, ConfigError) as error:
        mend = "delete the folder and measure again"
        raise IntegrityError(f"{path} cannot be read", cause=f"line {number}: {error}", mend=mend) from None


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed writer left after the last whole line: the next one must not be glued to it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            file.truncate(path.read_bytes().rfind(b"\n") + 1)

"""A line of a cassette: a record, and a digest that binds it to all lines before it.

`{"sha256":"...","record":{...}}`: the digest is over the digest before and the bytes of the record, so that a record
which is altered, left out, repeated or moved is seen. That finds accidents, not forgers: who can write the file can
write other digests, which is why everything read here is bounded and decoded strictly.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.devices.cassette.records import READABLE, SCHEMA_VERSION, Entry, Part, Record, Result, Session
from edgekd.errors import ConfigError, IntegrityError, ResourcesExhausted
from edgekd.values.codec import decode, encode

LINE_BYTES = 64 << 20
_START, _MIDDLE, _END = b'{"sha256":"', b'","record":', b"}\n"
_BODY_AT = len(_START) + 64 + len(_MIDDLE)
_UNREADABLE = (ConfigError, ValueError, TypeError, RecursionError)
_MEND = "record it again, or take it anew from where it was recorded"


@dataclass(frozen=True, kw_only=True)
class _Line:
    """What a line may hold: one of the four."""

    session: Session | None = None
    part: Part | None = None
    entry: Entry | None = None
    result: Result | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a line lies, and what it must be when it is read again."""

    offset: int
    size: int
    before: str  # the digest of the line before it
    digest: str


def line_of(record: Record, before: str) -> tuple[bytes, str]:
    """Write a record as the line that follows the one with the digest `before`; return it and its own digest.

    Raises:
        ResourcesExhausted: it is too large.

    """
    kind = type(record).__name__.lower()
    # The name of a file may hold bytes that are no UTF-8; this writes them as JSON does.
    body = f'{{"{kind}":{encode(record)}}}'.encode(errors="backslashreplace")
    if len(body) > LINE_BYTES - _BODY_AT - len(_END):
        mend = "ask for fewer samples, or leave --record out"
        raise ResourcesExhausted(f"a reply of {len(body) >> 20} MiB is too large for a cassette", mend=mend)
    digest = hashlib.sha256(before.encode() + body).hexdigest()
    return _START + digest.encode() + _MIDDLE + body + _END, digest


def record_of(path: Path, line: bytes, before: str) -> tuple[Record, str]:
    """Read a line that follows the one with the digest `before`; return its record and its own digest.

    Raises:
        IntegrityError: it is not what was written, or is of another schema.

    """
    body = line[_BODY_AT : -len(_END)]
    digest = hashlib.sha256(before.encode() + body).hexdigest()
    if line != _START + digest.encode() + _MIDDLE + body + _END:
        cause = (
            "a record was altered, left out or moved" if before else "it is not a cassette, or was altered"
        )
        raise altered(path, cause)
    try:
        data = json.loads(body.decode())
        _check_schema(path, data)
        found = decode(_Line, data, "record")
    except _UNREADABLE as error:
        raise altered(path, f"a record cannot be read: {error}"[:500]) from error
    records = [one for one in (found.session, found.part, found.entry, found.result) if one is not None]
    if len(records) != 1:
        raise altered(path, "a line holds no record, or several")
    return records[0], digest


def _check_schema(path: Path, data: Any) -> None:
    """Look at the version before the rest, which another version may say otherwise."""
    session = data.get("session") if isinstance(data, dict) else None
    version = session.get("schema_version") if isinstance(session, dict) else SCHEMA_VERSION
    if version not in READABLE:
        raise IntegrityError(
            f"the cassette {path} is of schema {str(version)[:20]}",
            cause=f"this edgekd reads schema {' and '.join(map(str, READABLE))}",
            mend="replay it with the edgekd that recorded it, or record it again",
        )


def altered(path: Path, cause: str) -> IntegrityError:
    """Say that a cassette cannot be used."""
    return IntegrityError(f"the cassette {path} cannot be used", cause=cause, mend=_MEND)


def may_begin(line: bytes) -> bool:
    """Tell the torn beginning of a first line from a file that is none of ours."""
    return line[: len(_START)] == _START[: len(line)]

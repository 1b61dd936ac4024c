"""Measurements as one file that others may read: lines of JSON, each with its digest, and a digest over all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgekd.errors import ConfigError, DataError, IntegrityError
from edgekd.store.files import write_text
from edgekd.values.codec import decode, encode
from edgekd.values.measurement import Measurement

SCHEMA_VERSION = 1
_KIND = "edgekd measurements"
_MOST_BYTES = 64 << 20
_AGAIN = "export it again where it came from, and compare the files' digests after copying"


def export_measurements(path: Path, measurements: Iterable[Measurement]) -> Path:
    """Write measurements, each once, in an order of their own: equal sets give equal files.

    The first line names the schema and holds the number of lines and the SHA-256 of their digests; each other line
    holds a measurement and the SHA-256 of its canonical JSON. Digests show what changed on the way. They are no
    signature: whoever writes a file writes its digests.
    """
    texts = sorted({_canonical(json.loads(encode(one))) for one in measurements})
    digests = [_sha256(text) for text in texts]
    header = {
        "kind": _KIND,
        "schema": SCHEMA_VERSION,
        "count": len(texts),
        "sha256": _sha256("".join(digests)),
    }
    lines = [f'{{"sha256":"{digest}","measurement":{text}}}' for digest, text in zip(digests, texts)]
    return write_text(path, "\n".join([_canonical(header), *lines]) + "\n")


def import_measurements(path: Path) -> tuple[Measurement, ...]:
    """Read what `export_measurements` wrote, all or nothing.

    Raises:
        DataError: there is no such file, or it is none of ours.
        IntegrityError: another schema version, a line is missing or was changed, or a digest is not what it must be.

    """
    header, *lines = _lines(path)
    count, digests = _checked_header(path, header), []
    if count != len(lines):
        raise _broken(path, f"it says {count} measurements and has {len(lines)}")
    found = []
    for number, line in enumerate(lines, start=2):
        held = _object(path, number, line)
        if set(held) != {"sha256", "measurement"}:
            raise _broken(path, f"line {number} is no measurement with its digest")
        digest = _sha256(_canonical(held["measurement"]))
        if held["sha256"] != digest:
            raise _broken(path, f"line {number} was changed: its digest is {digest[:12]}, not what it says")
        digests.append(digest)
        try:
            found.append(decode(Measurement, held["measurement"], f"line {number}"))
        except ConfigError as error:
            raise _broken(path, f"line {number}: {error.what}. {error.cause}".rstrip(". ")) from error
    if _object(path, 1, header)["sha256"] != _sha256("".join(digests)):
        raise _broken(path, "lines were exchanged, or left out and others put in")
    return tuple(found)


def _lines(path: Path) -> list[str]:
    mend = "give a file that `edgekd cache export` wrote"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} is too large", cause=f"more than {_MOST_BYTES >> 20} MiB", mend=mend)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read", cause=str(error), mend=mend) from error
    if not lines or _KIND not in lines[0]:
        raise DataError(f"{path} holds no measurements", mend=mend)
    return lines


def _checked_header(path: Path, line: str) -> int:
    header = _object(path, 1, line)
    schema, count = header.get("schema"), header.get("count")
    if header.get("kind") != _KIND or not isinstance(count, int) or "sha256" not in header:
        raise _broken(path, "line 1 does not say what the file holds")
    if schema != SCHEMA_VERSION:
        newer = isinstance(schema, int) and schema > SCHEMA_VERSION
        raise IntegrityError(
            f"{path} is of another schema version",
            cause=f"it is of {schema!r}, this edgekd reads {SCHEMA_VERSION}",
            mend="update edgekd" if newer else "export it again with an edgekd of this version",
        )
    return count


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"line {number} is no JSON") from error
    if not isinstance(found, dict):
        raise _broken(path, f"line {number} is no object")
    return found


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _broken(path: Path, cause: str) -> IntegrityError:
    return IntegrityError(f"{path} cannot be trusted", cause=cause, mend=_AGAIN)

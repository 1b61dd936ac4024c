"""The file of a cassette: records one a line, each bound to all before it, appended and never changed.

One file of JSON lines, and no folder: a record is whole or the torn end of the file, a reviewer reads it as text,
and it holds no name that could become a path. Files that a device made lie in it as bytes under their sha256, in
parts, each once. (A zip keeps its table at its end, so that a killed writer leaves none. Many small files can be
left half written, and bring names and links of their own.)
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from edgekd.devices.cassette.asked import Asked
from edgekd.devices.cassette.lines import LINE_BYTES, Place, altered, line_of, may_begin, record_of
from edgekd.devices.cassette.records import FILE_BYTES, Entry, Kept, Part, Record, Result, Session, bytes_of
from edgekd.errors import DeviceError, UsageError
from edgekd.store.files import disk_full_is_an_error, replacing
from edgekd.values.artifact import Artifact
from edgekd.values.target import Profile

log = logging.getLogger(__name__)

_TAPE_BYTES = 4 << 30
_MOST_RECORDS = 1_000_000
_NAME_CHARS = 100


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An entry, and where its reply lies."""

    asked: Asked
    failed: bool
    session: int  # which, from 0
    place: Place


@dataclass(kw_only=True)
class Tape:
    """What a file holds. Replies and parts stay on disk until they are wanted."""

    path: Path
    sessions: list[Session] = field(default_factory=list)
    entries: list[Placed] = field(default_factory=list)
    results: dict[tuple[str, str], Place] = field(default_factory=dict)  # stage and key -> where
    fingerprint: str = ""  # of the first conditions recorded
    _files: dict[str, list[Place]] = field(default_factory=dict)  # sha256 -> its parts
    _whole: set[str] = field(default_factory=set)  # of which the last part lies here too
    _end: int = 0  # of the last whole record; what lies behind it is torn
    _digest: str = ""  # of that record
    size: int | None = 0  # of the file when it was last looked at; None: a write failed in the middle

    def holds(self, sha256: str) -> bool:
        """Say whether a file lies here whole."""
        return sha256 in self._whole

    def entry(self, placed: Placed) -> Entry:
        """Read an entry with its reply.

        Raises:
            IntegrityError: it is no longer what it was.

        """
        found = self._read_again(placed.place)
        if not isinstance(found, Entry):
            raise altered(self.path, "an order is something else now")
        return found

    def result(self, stage: str, key: str) -> Result:
        """Read a result of the host's.

        Raises:
            IntegrityError: it is no longer what it was.

        """
        found = self._read_again(self.results[stage, key])
        if not isinstance(found, Result):
            raise altered(self.path, "a result is something else now")
        return found

    def restore(self, kept: Kept, path: Path) -> Artifact:
        """Write a kept file to `path`, a name that the caller chose.

        Raises:
            IntegrityError: the cassette does not hold it, or holds other bytes.
            ResourcesExhausted: the disk is full.

        """
        if not self.holds(kept.sha256) or not 0 <= kept.size_bytes <= FILE_BYTES:
            raise altered(self.path, f"it lacks the file {kept.sha256[:12]!r} that a reply names")
        left = kept.size_bytes
        with replacing(path) as partial:
            with partial.open("wb") as file:
                for place in self._files[kept.sha256]:
                    data = self._bytes(place)
                    if (left := left - len(data)) < 0:
                        break
                    file.write(data)
            if left or Artifact.of(partial).sha256 != kept.sha256:
                raise altered(self.path, f"the file {kept.sha256[:12]!r} has other bytes")
        return Artifact(path=path, sha256=kept.sha256)

    def append(self, records: Iterable[Record]) -> None:
        """Write records behind the last whole one; they are on disk when this returns.

        Raises:
            ResourcesExhausted: the disk is full.
            UsageError: somebody else writes to the file.

        """
        written: list[tuple[Place, Record]] = []
        end, digest = self._end, self._digest
        with disk_full_is_an_error(self.path), self.path.open("r+b") as file:
            self._claim(file)
            self.size = None
            file.truncate(end)  # a torn end must not be glued to what comes now
            file.seek(end)
            for record in records:
                line, now = line_of(record, digest)
                file.write(line)
                place = Place(offset=end, size=len(line), before=digest, digest=now)
                written.append((place, replace(record, data="") if isinstance(record, Part) else record))
                end, digest = end + len(line), now
            file.flush()
            os.fsync(file.fileno())
        for place, record in written:
            self.note(place, record)
        self.size = end

    def _claim(self, file: BinaryIO) -> None:
        """Make sure that nobody else writes, now or since this was read; closing the file frees it again."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = self.size in {None, file.seek(0, os.SEEK_END)}
        except BlockingIOError:
            alone = False
        if not alone:
            mend = "give each its own file"
            raise UsageError(f"another edgekd records into {self.path}", mend=mend)

    def _read_again(self, place: Place) -> Record:
        try:
            with self.path.open("rb") as file:
                file.seek(place.offset)
                line = file.read(place.size)
        except OSError as error:
            raise altered(self.path, str(error)) from error
        record, digest = record_of(self.path, line, place.before)
        if digest != place.digest:
            raise altered(self.path, "it was written to meanwhile")
        return record

    def _bytes(self, place: Place) -> bytes:
        part = self._read_again(place)
        try:
            return bytes_of(part) if isinstance(part, Part) else b""
        except ValueError as error:
            raise altered(self.path, str(error)) from error

    def note(self, place: Place, record: Record) -> None:
        """Take in a record that lies in the file.

        Raises:
            IntegrityError: it cannot follow what is known so far.

        """
        if isinstance(record, Session):
            if not (record.device.isprintable() and 0 < len(record.device) <= _NAME_CHARS):
                raise altered(self.path, "the name of its device is none")
            self.sessions.append(record)
        elif not self.sessions:
            raise altered(self.path, "it does not begin with a session")
        elif isinstance(record, Part):
            self._note_part(place, record)
        elif isinstance(record, Result):
            self.results[record.stage, record.key] = place
        else:
            self.fingerprint = self.fingerprint or record.fingerprint
            self.entries.append(
                Placed(
                    asked=record.asked,
                    failed=record.failure is not None,
                    session=len(self.sessions) - 1,
                    place=place,
                )
            )
        self._end, self._digest = place.offset + place.size, place.digest

    def _note_part(self, place: Place, part: Part) -> None:
        if part.at == 0:  # again from the start: what a killed writer began is written anew
            self._files[part.sha256] = []
            self._whole.discard(part.sha256)
        parts = self._files.get(part.sha256, [])
        if part.at != len(parts) or part.sha256 in self._whole:
            raise altered(self.path, "the parts of a file are not in order")
        parts.append(place)
        if part.last:
            self._whole.add(part.sha256)


def read(path: Path) -> Tape:
    """Read what a cassette holds, every digest checked; a torn last record is left out, as if it had never begun.

    Raises:
        DeviceError: there is no such file.
        IntegrityError: it is no cassette, was altered, or is of another schema.

    """
    _check_is_file(path)
    tape = _read(path)
    if not tape.sessions:
        raise altered(path, "nothing was recorded in it")
    return tape


def _check_is_file(path: Path) -> None:
    if not path.is_file():  # nor a pipe, which would never end
        mend = "give the file that --record wrote"
        raise DeviceError(f"there is no cassette {path}", cause="it is not a file", mend=mend)


def recorded_profile(path: Path) -> Profile | None:
    """Return the hardware profile that a cassette was recorded with; None where its first line does not say.

    Raises:
        DeviceError: there is no such file.
        IntegrityError: it is no cassette, was altered, or is of another schema.

    """
    _check_is_file(path)
    with path.open("rb") as file:
        first, _ = record_of(path, file.readline(LINE_BYTES), "")
    return first.profile if isinstance(first, Session) else None


def begin(path: Path, session: Session) -> Tape:
    """Open a cassette for a new session: a new file, or one that goes on behind what it holds.

    Raises:
        IntegrityError: there is a file that is no cassette, was altered, or is of another schema.
        UsageError: it was recorded on another device, or one tuned otherwise, or cannot be written.
        ResourcesExhausted: the disk is full.

    """
    try:
        with disk_full_is_an_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError), path.open("xb"):
                _sync_folder(path.parent)
    except OSError as error:
        mend = "give another path, or change its permissions"
        raise UsageError(f"cannot record into {path}", cause=error.strerror or "", mend=mend) from error
    if not path.is_file():
        raise UsageError(f"cannot record into {path}", cause="it is not a file", mend="give another path")
    tape = _read(path)
    if tape.sessions and tape.sessions[0].device != session.device:
        raise UsageError(
            f"{path} was recorded on {tape.sessions[0].device!r}, not on {session.device!r}",
            mend="give another file",
        )
    if tape.sessions and tape.sessions[0].tune != session.tune:
        raise UsageError(
            f"{path} was recorded with tune = {tape.sessions[0].tune!r}, not with {session.tune!r}",
            mend="give another file",
        )
    tape.append([session])
    return tape


def _read(path: Path) -> Tape:
    tape = Tape(path=path)
    with path.open("rb") as file:
        tape.size = os.fstat(file.fileno()).st_size
        if tape.size > _TAPE_BYTES:
            raise altered(path, f"it is larger than {_TAPE_BYTES >> 30} GiB")
        offset, digest = 0, ""
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b"")):
            if number == _MOST_RECORDS:
                raise altered(path, f"it holds more than {_MOST_RECORDS} records")
            if not line.endswith(b"\n") and len(line) < LINE_BYTES:
                if number == 0 and not may_begin(line):  # nor may it be cut to nothing
                    raise altered(path, "it is not a cassette")
                log.warning("the last record of %s was cut short, and is left out", path)
                break
            record, now = record_of(path, line, digest)
            tape.note(Place(offset=offset, size=len(line), before=digest, digest=now), record)
            offset, digest = offset + len(line), now
    return tape


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

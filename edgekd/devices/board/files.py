"""The files a board has, by content: each travels once, and orders see them under the names they need."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from edgekd.devices.board.lines import Lines
from edgekd.devices.board.place import Place, sync_folder
from edgekd.errors import IntegrityError, ResourcesExhausted, UsageError

_CHUNK_BYTES = 1 << 20
_SPARE_MIB = 64  # what a board's disk keeps free
_UNFINISHED = ".tmp"
_MOST_PARTS, _LONGEST_PART = 10, 255  # of the name of a view: a number, folders, a file; bytes of each


class Files:
    """`files/<sha256>`, checked once a session: a card may lose bits, and a user may look around."""

    def __init__(self, place: Place) -> None:
        """Look at nothing yet."""
        self._place = place
        self._sound: dict[str, tuple[int, int, int]] = {}  # sha256 -> what the file looked like when checked

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return those that are not there whole; what is there otherwise is removed."""
        return [sha256 for sha256 in names if not self._has(sha256)]

    def receive(self, sha256: str, size: int, lines: Lines) -> None:
        """Take a file in.

        Raises:
            IntegrityError: what came is not what was named.
            ResourcesExhausted: the disk is full.

        """
        self._place.path("files").mkdir(mode=0o700, exist_ok=True)
        path = self._path(sha256)
        full = None if self._make_room(size) else _full(self._place, f"{size >> 20} MiB are needed")
        incoming = _Incoming(path.with_name(f"{sha256}.{os.getpid()}{_UNFINISHED}"))
        try:
            lines.read_bytes(size, incoming.take)  # all of it in any case: the next order stands behind it
            incoming.close()
            if full or incoming.problem:
                raise full or _full(self._place, str(incoming.problem))
            if incoming.sha256 != sha256:
                raise IntegrityError(
                    f"the file {sha256[:16]}… did not arrive on the board as it was sent",
                    cause=f"what arrived is {incoming.sha256[:16]}…",
                    mend="give the same command again; if it comes back, look at the board's memory and disk",
                )
            incoming.path.replace(path)
        finally:
            incoming.drop()
        sync_folder(path.parent)
        self._sound[sha256] = _looks(path)

    def lay_out(self, views: Mapping[str, str], folder: Path, alone: Collection[str] = ()) -> None:
        """Show files under other names: `{"0/net.onnx": sha256}`, by a hard link where the disk has them.

        Those that must stand `alone` are copied: weights that a model names are no link, for whoever reads them.

        Raises:
            IntegrityError: one is not there.

        """
        for name, sha256 in views.items():
            path = folder / view(name)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._path(sha256).exists():
                mend = "give the same command again"
                raise IntegrityError(f"the board has lost the file {sha256[:16]}…", mend=mend)
            os.utime(self._path(sha256))  # used now: it goes last where room is needed
            if name in alone:
                shutil.copyfile(self._path(sha256), path)
                continue
            with contextlib.suppress(FileExistsError):
                _link(self._path(sha256), path)

    def drop_unfinished(self) -> None:
        """Remove what connections that broke left behind."""
        with contextlib.suppress(FileNotFoundError):
            for path in list(self._place.path("files").iterdir()):
                if path.suffix == _UNFINISHED:
                    path.unlink()

    def _path(self, sha256: str) -> Path:
        return self._place.path("files", digest(sha256))

    def _has(self, sha256: str) -> bool:
        path = self._path(sha256)
        try:
            looks = _looks(path)
            if self._sound.get(sha256) == looks:
                return True
            sound = _sha256(path) == sha256
        except OSError:
            return False
        if sound:
            self._sound[sha256] = looks
        else:
            path.unlink()
        return sound

    def _make_room(self, size: int) -> bool:
        """Remove the files that were used longest ago until there is room; False if there cannot be."""
        needed_mib = (size >> 20) + _SPARE_MIB
        files = [path for path in self._place.path("files").iterdir() if path.is_file()]
        for path in sorted(files, key=lambda path: path.stat().st_mtime):
            if self._place.free_mib() >= needed_mib:
                break
            if path.name not in self._sound:  # this session may still need those
                path.unlink()
        return self._place.free_mib() >= needed_mib


class _Incoming:
    """A file that is written and hashed while it arrives; a full disk shows at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: OSError | None = None
        self._digest = hashlib.sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        self._file = os.fdopen(os.open(path, flags, 0o600), "wb")

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def take(self, piece: bytes) -> None:
        self._digest.update(piece)
        if self.problem is None:
            try:
                self._file.write(piece)
            except OSError as error:
                self.problem = error

    def close(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.problem = self.problem or error

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


def digest(text: str) -> str:
    """Return a sha256 or an order's id, after making sure that it can name nothing else.

    Raises:
        UsageError: it is no lower-case hexadecimal number of at least 32 digits.

    """
    if not re.fullmatch(r"[0-9a-f]{32,64}", text):
        raise UsageError(f"{text!r} names no file")
    return text


def view(name: str) -> str:
    """Return the name under which an order sees a file, after making sure that it stays in the order's folder.

    Raises:
        UsageError: it does not: a number, and names of folders and a file below it, is all that it may be.

    """
    number, *parts = name.split("/")
    below = 0 < len(parts) < _MOST_PARTS and all(
        part not in {"", ".", ".."} and len(part.encode(errors="replace")) <= _LONGEST_PART for part in parts
    )
    if not (below and name.isprintable() and re.fullmatch(r"[0-9]{1,4}", number)):
        raise UsageError(f"no order sees a file as {name!r}")
    return name


def _link(source: Path, path: Path) -> None:
    try:
        path.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links, such as an exFAT card
        shutil.copyfile(source, path)


def _looks(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            found.update(piece)
    return found.hexdigest()


def _full(place: Place, cause: str) -> ResourcesExhausted:
    mend = "free some space there, or run `edgekd devices clean`"
    return ResourcesExhausted(f"the board has no room in {place.root}", cause=cause, mend=mend)

"""What TensorRT made on this device, kept for the next process: sealed, so that nothing else is ever loaded.

Loading an engine is running native code. A file is used only if it carries a seal (HMAC-SHA256) made with this
folder's own secret key over its name and its content: not after a torn write, not from another machine, not from a
bundle, and not with another name.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgekd.errors import IntegrityError

log = logging.getLogger(__name__)

FOLDER = "EDGEKD_CACHE"  # an environment variable: where a device keeps what it can make again
_MAGIC = b"edgekd-sealed-1\n"
_SEAL_BYTES = _KEY_BYTES = 32
_MOST_BYTES = 8 << 30  # of all files together
_KEY = "key"


@dataclass(frozen=True, kw_only=True)
class Store:
    """A folder of sealed files, for this user alone."""

    folder: Path

    def read(self, name: str) -> bytes | None:
        """Return what was kept under a name; None where nothing was, or where its seal does not hold."""
        path = self.folder / name
        try:
            sealed = path.read_bytes()
        except OSError:
            return None
        head, content = sealed[: len(_MAGIC) + _SEAL_BYTES], sealed[len(_MAGIC) + _SEAL_BYTES :]
        if not hmac.compare_digest(head, _MAGIC + self._seal(name, content)):
            log.warning("%s was not made here, or was changed since: it is dropped", path)
            self.drop(name)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # what is used stays longest
        return content

    def write(self, name: str, content: bytes) -> None:
        """Keep content under a name; a reader finds all of it, or what was there before."""
        sealed = _MAGIC + self._seal(name, content) + content
        _write(self.folder / name, sealed)
        self._make_room(name)

    def drop(self, name: str) -> None:
        """Forget a name."""
        (self.folder / name).unlink(missing_ok=True)

    def _seal(self, name: str, content: bytes) -> bytes:
        seal = hmac.new(self._key(), name.encode() + b"\0", "sha256")
        seal.update(content)
        return seal.digest()

    def _key(self) -> bytes:
        path = self.folder / _KEY
        with contextlib.suppress(FileNotFoundError):
            return _checked_key(path)
        with contextlib.suppress(FileExistsError):  # another process was faster
            _write(path, secrets.token_bytes(_KEY_BYTES), replace=False)
        return _checked_key(path)

    def _make_room(self, kept: str) -> None:
        """Drop what was used longest ago, where there is too much."""
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # dropped by another process meanwhile
                if path.name not in {_KEY, kept} and not path.name.startswith("."):  # half written by another
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= _MOST_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= size


def private_store(root: Path | None = None) -> Store:
    """Return the store below a folder, `$EDGEKD_CACHE`, `$XDG_CACHE_HOME/edgekd` or `~/.cache/edgekd`, made if needed.

    Raises:
        IntegrityError: the folder belongs to somebody else, or others may write into it.

    """
    folder = (root or _root()) / "tensorrt"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise IntegrityError(
            f"{folder} is not a folder of yours",
            cause="an engine is native code: it may lie where only its owner writes",
            mend=f"remove it, or set {FOLDER} to a folder of your own",
        )
    folder.chmod(0o700)
    return Store(folder=folder)


def _root() -> Path:
    given = os.environ.get(FOLDER)
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache") / "edgekd"


def _checked_key(path: Path) -> bytes:
    refusal = IntegrityError(
        f"{path} is not a key that only you can read",
        cause="whoever knows it can have any code loaded as an engine",
        mend=f"remove {path.parent}: engines are built again",
    )
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:  # a link, or a file that its owner cannot read
        raise refusal from error
    with os.fdopen(handle, "rb") as file:
        found, key = os.fstat(handle), file.read(_KEY_BYTES + 1)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077 or len(key) != _KEY_BYTES:
        raise refusal
    return key


def _write(path: Path, content: bytes, *, replace: bool = True) -> None:
    handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            Path(name).replace(path)
        else:
            os.link(name, path)
    finally:
        Path(name).unlink(missing_ok=True)

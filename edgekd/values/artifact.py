"""A file and the digest that names its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edgekd.errors import IntegrityError

_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file by content: `path` says where it is on this machine, `sha256` says what it is."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Artifact:
        """Name the file that lies at `path` now."""
        return cls(path=path, sha256=sha256_of(path))

    @property
    def size_bytes(self) -> int:
        """Size on disk."""
        return self.path.stat().st_size

    def verified(self) -> Path:
        """Return the path after checking the content.

        Raises:
            IntegrityError: the file is gone or its bytes are not those that were recorded.

        """
        if not self.path.is_file():
            raise IntegrityError(f"{self.path} is missing", mend="run the stage that makes it again")
        if sha256_of(self.path) != self.sha256:
            raise IntegrityError(
                f"{self.path} is not the file that was recorded",
                cause=f"its sha256 is not {self.sha256[:16]}…",
                mend="delete it and run the stage that makes it again",
            )
        return self.path

"""A bundle's files: its manifest, and bytes that are what was bundled."""

import hashlib
import json
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_MANIFEST_LIMIT_BYTES = 16 << 20


class Refusal(Exception):  # noqa: N818 - the act, not a fault of this program
    """Why nothing was run: one line, and the exit code it ends with."""

    def __init__(self, what: str, exit_code: int) -> None:
        super().__init__(what)
        self.exit_code = exit_code


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a bundle's manifest, refusing names that lead out of the folder.

    Raises:
        Refusal: it is missing, malformed, of another schema, or names an unsafe path.

    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise Refusal(f"{folder} is not a bundle: it has no {MANIFEST}", 6)
    if path.stat().st_size > _MANIFEST_LIMIT_BYTES:
        raise Refusal(f"{path} is larger than {_MANIFEST_LIMIT_BYTES >> 20} MiB", 6)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, names = manifest["schema_version"], dict(manifest["files"])
        used = [name for deployment in manifest["deployments"] for name in deployment["files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refusal(f"{path} is malformed: {one_line(error)}", 6) from None
    if version != SCHEMA_VERSION:
        raise Refusal(f"{path} has schema version {version!r}; this runner knows {SCHEMA_VERSION}", 6)
    for name in names:
        _check_name(name)
    if len({name.casefold() for name in names}) != len(names):
        raise Refusal(f"{path} names files that differ in case alone", 6)
    if missing := [name for name in used if name not in names]:
        raise Refusal(f"{path} gives no digest for {str(missing[0])!r}, which a deployment loads", 6)
    return dict(manifest)


def read_verified(folder: Path, name: str, sha256: str) -> bytes:
    """Return the bytes of one file of a bundle; what was hashed is what is returned.

    Raises:
        Refusal: it is missing, is a link, or its digest is not the manifest's.

    """
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise Refusal(f"{name} is a symbolic link: a bundle holds plain files only", 6)
    if not path.is_file():
        raise Refusal(f"{name} is missing from the bundle {folder}", 6)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Refusal(f"{name} is not the file that was bundled: its sha256 differs from the manifest's", 6)
    return content


def _check_name(name: object) -> None:
    parts = name.split("/") if isinstance(name, str) else []
    plain = isinstance(name, str) and name.isprintable() and "\\" not in name and ":" not in name
    if not (plain and all(part and part not in {".", ".."} for part in parts)):
        raise Refusal(f"{MANIFEST} names the file {name!r}, which may lead out of the bundle", 6)


def one_line(error: BaseException) -> str:
    """Say in one line what went wrong."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def printable(text: str) -> str:
    """Replace what a terminal would obey instead of show."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)

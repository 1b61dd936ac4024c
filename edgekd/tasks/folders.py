"""Read a folder with one folder of images a class, with or without `train/` and `test/` above them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.tasks.decoding import Encoded

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}


def read_folders(
    root: Path,
) -> tuple[Encoded, NDArray[np.int64], tuple[str, ...], NDArray[np.bool_] | None]:
    """List images, labels, class names and the split of `root`, decoding nothing.

    Class names are the folders' names in order; hidden files and files that are no images are passed over.

    Raises:
        DataError: there are no class folders.

    """
    parts = [root / "train", root / "test"]
    divided = all(part.is_dir() and _subfolders(part) for part in parts)
    roots = parts if divided else [root]
    classes = tuple(sorted({folder.name for part in roots for folder in _subfolders(part)}))
    if not classes:
        raise DataError(
            f"{root} holds no class folders",
            mend="put the images of each class into a folder of its own: images/cat/1.png",
        )
    files: list[Path] = []
    labels: list[int] = []
    test: list[bool] = []
    for part in roots:
        for label, name in enumerate(classes):
            found = _images(part / name)
            files += found
            labels += [label] * len(found)
            test += [part == parts[1]] * len(found)
    encoded = Encoded(
        name_of=lambda at: str(files[at]),
        file_of=lambda at: files[at],
        count=len(files),
        identity=_identity(root, files),
    )
    return encoded, np.asarray(labels, np.int64), classes, np.asarray(test) if divided else None


def _subfolders(root: Path) -> list[Path]:
    return [child for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")]


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = folder.rglob("*")
    return sorted(
        path
        for path in found
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def _identity(root: Path, files: list[Path]) -> str:
    """Name the files by relative path, size and time of change; reading them all would take as long as decoding."""
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()

"""The files of an order: which travel, and under which names the board sees them; where what it made goes here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.values.artifact import Artifact

_LONGEST_NAME = 80
_ARTIFACT = {"path", "sha256"}

Looks = tuple[str, int, int, int]


@dataclass
class Luggage:
    """What an order takes along."""

    views: dict[str, str] = field(default_factory=dict)  # "0/net.onnx" -> sha256
    sources: dict[str, Path] = field(default_factory=dict)  # sha256 -> where it lies here
    sound: dict[str, Looks] = field(default_factory=dict)  # sha256 -> what the file looked like when checked

    def packed(self, data: Any) -> Any:
        """Return plain data with the path of every artifact replaced by its name on the board.

        The .bin of an OpenVINO model is put beside its .xml under the same stem, where OpenVINO looks for it.

        Raises:
            IntegrityError: a file is gone, or not what was recorded.

        """
        if isinstance(data, list):
            return [self.packed(item) for item in data]
        if not isinstance(data, Mapping):
            return data
        if set(data) == _ARTIFACT:
            return self._named(data, f"{len(self.views)}/{_safe(data['path'])}")
        weights, main = data.get("weights"), data.get("file", data.get("model"))
        if weights is None or main is None or not (_is_artifact(weights) and _is_artifact(main)):
            return {key: self.packed(item) for key, item in data.items()}
        named = self._named(main, f"{len(self.views)}/{_safe(main['path'])}")
        beside = self._named(weights, str(Path(named["path"]).with_suffix(".bin")))
        rest = {
            key: self.packed(item) for key, item in data.items() if key not in ("weights", "file", "model")
        }
        return {**rest, "file" if "file" in data else "model": named, "weights": beside}

    def _named(self, artifact: Mapping[str, Any], view: str) -> dict[str, Any]:
        sha256, path = artifact["sha256"], Path(artifact["path"])
        # The board may have what was recorded: that must not hide that the file here is another by now.
        if not path.is_file() or self.sound.get(sha256) != _looks(path):
            Artifact(path=path, sha256=sha256).verified()
            self.sound[sha256] = _looks(path)
        self.views[view], self.sources[sha256] = sha256, path
        return {"path": view, "sha256": sha256}


def file_in(folder: Path, stem: str, suffix: str) -> Path:
    """Return where a file from a board goes: a name of ours in a folder that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{stem}{suffix}"


def rows(path: Path) -> int:
    """Count the rows of a .npy file of numbers; 0 where it is none, which the worker then explains."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return len(array) if array.dtype.kind in "biuf" else 0
    except (ValueError, OSError, EOFError, TypeError, SyntaxError, MemoryError):
        return 0


def _looks(path: Path) -> Looks:
    found = path.stat()
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns


def _is_artifact(data: Any) -> bool:
    return isinstance(data, Mapping) and set(data) == _ARTIFACT


def _safe(path: str) -> str:
    """Keep of a file's name what no shell, disk or message minds, and its suffix."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(path).name)[-_LONGEST_NAME:]
    return re.sub(r"^[^A-Za-z0-9_]", "_", name) or "_"

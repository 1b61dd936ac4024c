"""The files of an order: which travel, and under which names the board sees them; where what it made goes here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import IntegrityError
from edgekd.values.artifact import Artifact

_LONGEST_NAME = 80
_ARTIFACT = {"path", "sha256"}
_MAIN = ("file", "model")  # what weights lie beside, in a model and in an order

Looks = tuple[str, int, int, int]


@dataclass
class Luggage:
    """What an order takes along."""

    views: dict[str, str] = field(default_factory=dict)  # "0/net.onnx" -> sha256
    sources: dict[str, Path] = field(default_factory=dict)  # sha256 -> where it lies here
    alone: list[str] = field(default_factory=list)  # views that must be no link
    sound: dict[str, Looks] = field(default_factory=dict)  # sha256 -> what the file looked like when checked

    def packed(self, data: Any) -> Any:
        """Return plain data with the path of every artifact replaced by its name on the board.

        The .bin of an OpenVINO model is put beside its .xml under the same stem, where OpenVINO looks for it, and the
        external data of an .onnx below its folder, under the names that it gives them.

        Raises:
            IntegrityError: a file is gone, or not what was recorded.

        """
        if isinstance(data, list):
            return [self.packed(item) for item in data]
        if not isinstance(data, Mapping):
            return data
        if set(data) == _ARTIFACT:
            return self._named(data, f"{len(self.views)}/{_safe(data['path'])}")
        main = next((key for key in _MAIN if _is_artifact(data.get(key))), "")
        if not main or not (data.get("weights") or data.get("external")):
            return {key: self.packed(item) for key, item in data.items()}
        named = self._named(data[main], f"{len(self.views)}/{_safe(data[main]['path'])}")
        beside = {main: named, **self._beside(data, Path(data[main]["path"]), Path(named["path"]))}
        return {key: beside[key] if key in beside else self.packed(item) for key, item in data.items()}

    def _beside(self, data: Mapping[str, Any], main: Path, named: Path) -> dict[str, Any]:
        """Put a model's weights where it looks for them: names that are its own travel as they are."""
        found: dict[str, Any] = {}
        if _is_artifact(data.get("weights")):
            found["weights"] = self._named(data["weights"], str(named.with_suffix(".bin")))
        if external := data.get("external"):
            found["external"] = [self._external(file, main, named) for file in external]
        return found

    def _external(self, artifact: Mapping[str, Any], main: Path, named: Path) -> dict[str, Any]:
        path = Path(artifact["path"])
        try:
            view = str(named.parent / path.absolute().relative_to(main.absolute().parent))
        except ValueError:
            view = ".."
        if ".." in Path(view).parts or view.casefold() in map(str.casefold, self.views):
            mend = "save the model as one file"
            raise IntegrityError(f"{path.name} cannot lie beside {main.name} on a board", mend=mend)
        self.alone.append(view)
        return self._named(artifact, view)

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

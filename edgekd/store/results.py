"""Results of stages, kept by content: a stage runs once for the same inputs, tools and version."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

from filelock import FileLock

from edgekd.errors import EdgekdError
from edgekd.store.files import disk_full_is_an_error, write_text
from edgekd.values.artifact import Artifact
from edgekd.values.codec import decode, fingerprint, plain

P = ParamSpec("P")
R = TypeVar("R")

_ARTIFACT = {"path", "sha256"}

Stage = Callable[Concatenate[Path, P], R]


class Store:
    """A folder of results, one subfolder a stage and key."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def run(self, stage: Stage[P, R], *inputs: P.args, **options: P.kwargs) -> R:
        """Return `stage(folder, *inputs, **options)`, running it only where its result is not kept.

        A folder that an interrupted stage left is given to it again, so that a long stage can go on from
        what it saved there. A kept result whose files fail their digests is computed again.
        """
        folder = self.folder_of(stage, *inputs, **options)
        with disk_full_is_an_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            kept = self._kept(stage, folder)
            if kept is None:
                kept = stage(folder, *inputs, **options)
                write_text(folder / "result.json", json.dumps(self._moveable(folder, plain(kept)), indent=1))
        return kept

    def folder_of(self, stage: Stage[P, R], *inputs: P.args, **options: P.kwargs) -> Path:
        """Return where the result of this call is, or will be."""
        return self.root / stage.__name__ / _key(stage, inputs, options)[:32]

    def _kept(self, stage: Callable[..., R], folder: Path) -> R | None:
        done = folder / "result.json"
        if not done.is_file():
            return None
        try:
            data = _outside(folder, json.loads(done.read_text(encoding="utf-8")))
            _verify(data)
            kept: R = decode(get_type_hints(stage)["return"], data, stage.__name__)
        except (EdgekdError, ValueError, TypeError):  # torn, tampered with or of an older shape: make it anew
            done.unlink()
            return None
        return kept

    def _moveable(self, folder: Path, data: Any) -> Any:
        """Make the paths of artifacts within the store relative to the result, so that it can be moved."""
        if isinstance(data, dict):
            if data.keys() == _ARTIFACT and Path(data["path"]).is_relative_to(self.root):
                return {**data, "path": os.path.relpath(data["path"], folder)}
            return {key: self._moveable(folder, item) for key, item in data.items()}
        return [self._moveable(folder, item) for item in data] if isinstance(data, list) else data


def _key(stage: Callable[..., object], inputs: tuple[Any, ...], options: dict[str, Any]) -> str:
    module = sys.modules[stage.__module__]
    tools = [importlib.metadata.version(name) for name in getattr(module, "TOOLS", ())]
    version = getattr(module, "VERSION", 1)
    call = inspect.signature(stage).bind(Path(), *inputs, **options)
    call.apply_defaults()  # so that a call means the same however it is written, and a changed default counts
    named = list(call.arguments.items())[1:]  # all but the folder
    return fingerprint([stage.__module__, stage.__name__, version, tools, named])


def _outside(folder: Path, data: Any) -> Any:
    if isinstance(data, dict):
        if data.keys() == _ARTIFACT:
            return {**data, "path": os.path.normpath(folder / data["path"])}
        return {key: _outside(folder, item) for key, item in data.items()}
    return [_outside(folder, item) for item in data] if isinstance(data, list) else data


def _verify(data: Any) -> None:
    if isinstance(data, dict):
        if data.keys() == _ARTIFACT:
            Artifact(path=Path(data["path"]), sha256=data["sha256"]).verified()
        for item in data.values():
            _verify(item)
    elif isinstance(data, list):
        for item in data:
            _verify(item)

"""The files beside an .onnx that hold its weights: named by the model itself, and hostile until a child has read it."""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgekd.errors import IntegrityError, ModelError, WorkerDied
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model
from edgekd.values.order import LocateOrder, LocateReply
from edgekd.wire import Child

_WORKER = "edgekd.worker"
_TIMEOUT_S = 60.0
_KEY = b"location"  # is in every model with external data, and in next to no other


def external_files(path: Path) -> tuple[Artifact, ...]:
    """Name the files that a model keeps its weights in, in the order of their names; none where they are inside.

    Raises:
        IntegrityError: one is no plain file below the model's folder.
        ModelError: the model is malformed, or crashes its reader.

    """
    return tuple(_beside(path, name) for name in _names(path))


def brought_along(made: Model, of: Model) -> Model:
    """Put the weights that a compiled .onnx still takes from files beside it where it looks for them: those it had.

    Raises:
        IntegrityError: it names others.

    """
    own = {str(file.path.relative_to(of.file.path.parent)): file for file in of.external}
    names = _names(made.file.path) if own else ()
    if not own.keys() >= set(names):
        cause = "the compiled file names weights that the model has not"
        raise IntegrityError(f"{of.file.path.name} was not compiled as it is", cause=cause)
    return with_weights(made, of, [own[name] for name in names])


def with_weights(made: Model, of: Model, files: Sequence[Artifact]) -> Model:
    """Copy files of a model's weights beside what was made of it, under the same names."""
    found = []
    for file in files:
        path = made.file.path.parent / file.path.relative_to(of.file.path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.verified(), path)
        found.append(Artifact(path=path, sha256=file.sha256))
    return replace(made, external=tuple(found))


def _names(path: Path) -> tuple[str, ...]:
    if not _may_have_any(path):
        return ()
    with Child(_WORKER) as child:
        try:
            order = LocateOrder(model=Artifact.of(path.absolute()))
            return child.ask("locate", order, LocateReply, timeout_s=_TIMEOUT_S).names
        except WorkerDied as error:
            raise ModelError(f"{path.name} cannot be read", cause=str(error)) from error


def _may_have_any(path: Path) -> bool:
    if path.suffix != ".onnx" or not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_KEY) >= 0


def _beside(path: Path, name: str) -> Artifact:
    """Look at a file before a byte of it is read: the name has been checked, what lies there has not."""
    file = path.parent.absolute() / name
    if file.resolve() != path.parent.resolve() / name or not file.is_file():
        raise IntegrityError(
            f"{path.name} takes weights from {name!r}",
            cause="that is no plain file inside the model's own folder",
            mend="put the weights beside the model, or save it as one file",
        )
    return Artifact.of(file)

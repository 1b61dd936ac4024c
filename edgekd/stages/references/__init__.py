"""Three tiny fixed models that say what state a machine is in; `tools/references.py` made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.errors import IntegrityError, UsageError
from edgekd.values.artifact import Artifact
from edgekd.values.codec import did_you_mean
from edgekd.values.model import Model

__all__ = ["FOLDER", "REFERENCES", "Reference", "reference"]

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model that never changes: what moves its latency is the machine."""

    name: str
    file: str  # beside this module
    sha256: str
    bound_by: str


REFERENCES = (
    Reference(
        name="compute",
        file="compute.onnx",
        sha256="2e192a6ccb7d85c356ba45be1fc27ed72ac0a4ba0cfdf4f1894508c319d3b8d6",
        bound_by="arithmetic: 3x3 convolutions",
    ),
    Reference(
        name="memory",
        file="memory.onnx",
        sha256="21f69efe4b25eb03ff8e24b9892ee1281d2c909700d15efd3f599f687cfbc515",
        bound_by="memory: depthwise and elementwise passes over 4 MiB",
    ),
    Reference(
        name="launch",
        file="launch.onnx",
        sha256="ea0235f31fd485808a906ce18b48fb399e2acdf8aab4747a08b92368a86e78ec",
        bound_by="launches: a chain of 200 small nodes",
    ),
)


def reference(name: str = "compute") -> Model:
    """Return a reference model after checking its digest.

    Raises:
        UsageError: there is none of that name.
        IntegrityError: the file is gone, or is not what edgekd ships.

    """
    found = next((one for one in REFERENCES if one.name == name), None)
    if found is None:
        mend = did_you_mean(name, [one.name for one in REFERENCES])
        raise UsageError(f"there is no reference model {name!r}", mend=mend)
    artifact = Artifact(path=FOLDER / found.file, sha256=found.sha256)
    try:
        artifact.verified()
    except IntegrityError as error:
        mend = "install edgekd again: pip install --force-reinstall edgekd"
        raise IntegrityError(error.what, cause=error.cause, mend=mend) from None
    return Model(file=artifact)

"""Prove that a runtime works: run three operators on it and compare the answer with numpy.

`health.onnx` is a Conv (3x3, 3 to 4 channels), a Relu and a GlobalAveragePool; its weights are given by
`WEIGHTS` in exact binary fractions, so that neither onnx nor a tolerance is needed to know them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import backends
from edgekd.errors import BackendMissing
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import RuntimeHealth

MODEL = Path(__file__).with_name("health.onnx")
WEIGHTS = ((np.arange(108) * 37 % 101 - 50) / 128).astype(np.float32).reshape(4, 3, 3, 3)
IMAGE = ((np.arange(192) * 53 % 97 - 48) / 64).astype(np.float32).reshape(1, 3, 8, 8)
_TOLERANCE = 1e-4


def health(name: str) -> RuntimeHealth:
    """Run the three-operator model on a runtime and compare it with numpy."""
    try:
        backend = backends.load(name)
    except BackendMissing as error:
        return RuntimeHealth(name=name, version="", works=False, problem=str(error.cause), mend=error.mend)
    mend = f"run `pip install --force-reinstall {backends.PACKAGES[name]}`"
    try:
        found = _answer(name, backend)
    except BackendMissing as error:  # it imports its vendor, or reaches its driver, only when it is used
        return RuntimeHealth(
            name=name, version=_version(backend), works=False, problem=_words(error), mend=error.mend
        )
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the finding
        return RuntimeHealth(name=name, version=backend.version(), works=False, problem=str(error), mend=mend)
    worst = float(np.abs(found - expected()).max())
    works = worst <= _TOLERANCE
    problem = "" if works else f"its answer is off by {worst:.2g} from numpy's"
    return RuntimeHealth(
        name=name,
        version=backend.version(),
        works=works,
        max_error=worst,
        problem=problem,
        mend="" if works else mend,
    )


def expected() -> NDArray[np.float32]:
    """Compute the model's answer with numpy; shape (1, 4, 1, 1)."""
    padded = np.pad(IMAGE, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))  # (1, 3, 8, 8, 3, 3)
    maps = np.einsum("ncijhw,ochw->noij", windows, WEIGHTS)
    return np.asarray(np.maximum(maps, 0).mean(axis=(2, 3), keepdims=True), dtype=np.float32)


def _version(backend: backends.Backend) -> str:
    """Return the version of what is installed; empty where it is not."""
    try:
        return backend.version()
    except BackendMissing:
        return ""


def _words(error: BackendMissing) -> str:
    return f"{error.what}: {error.cause}" if error.cause else error.what


def _answer(name: str, backend: backends.Backend) -> NDArray[Any]:
    # A DLA computes no fp32: there, this says that TensorRT works, and a build will say whether the DLA does.
    runtime = name.removesuffix("-dla")
    engine = Engine(model=Model(file=Artifact.of(MODEL)), runtime=runtime, precision=Precision.FP32)
    with backend.open(engine) as session:
        return session.run({"image": IMAGE})["answer"]

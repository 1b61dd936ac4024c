"""A bundle, checked and ready to run."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.engines import choose, differences, opened
from edgekd.runner.files import MANIFEST, Refusal, one_line, read_manifest, read_verified
from edgekd.runner.trt_engine import Tensors


class Student:
    """A bundle, checked and ready to run."""

    def __init__(self, folder: Path | str, runtime: str | None = None) -> None:
        """Check every file and load the accepted deployment, or the first whose runtime imports.

        Args:
            folder: the bundle.
            runtime: take this runtime's first deployment instead.

        Raises:
            Refusal: a file is not what it must be, or no runtime is installed.

        """
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        files = {
            name: read_verified(self.folder, name, sha256) for name, sha256 in self.manifest["files"].items()
        }
        self.notes: list[str] = []  # what the caller should know about this machine or this choice
        try:
            self.classes = tuple(str(name) for name in self.manifest["classes"])
            self.recipe: dict[str, Any] = dict(json.loads(files["preprocess.json"]))
            self.post: dict[str, Any] = dict(self.manifest.get("decoding", {}))
            self.deployment, module = choose(self.manifest["deployments"], runtime, self.notes)
            self.notes += differences(self.deployment)
            content = [files[name] for name in self.deployment["files"]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Refusal(f"{MANIFEST} or preprocess.json is malformed: {one_line(error)}", 6) from None
        self._infer, self.inputs = opened(module, self.deployment, content)

    @property
    def name(self) -> str:
        """`openvino/int8`."""
        return f"{self.deployment['runtime']}/{self.deployment['precision']}"

    def infer(self, inputs: Tensors) -> Tensors:
        """Run one inference: whole tensors by the names of the model's inputs, and of its outputs."""
        return self._infer(inputs)

    def rows(self, tensors: NDArray[Any]) -> NDArray[np.float32]:
        """Run prepared samples (N, ...) one at a time through a model of one input; return its first output."""
        (name,) = self.inputs
        answers = (self._infer({name: tensors[at : at + 1]}) for at in range(len(tensors)))
        found = [np.asarray(next(iter(one.values())), np.float32)[0] for one in answers]
        return np.stack(found) if found else np.empty((0, 0), np.float32)

    def benchmark(self, inputs: Tensors, count: int) -> dict[str, float]:
        """Time `count` inferences; percentiles in ms, pre-processing left out."""
        for _ in range(max(10, count // 10)):
            self._infer(inputs)
        samples_ms = []
        for _ in range(count):
            start_ns = time.perf_counter_ns()
            self._infer(inputs)
            samples_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
        samples_ms.sort()
        return {f"p{rank}": samples_ms[math.ceil(rank / 100 * count) - 1] for rank in (50, 90, 95, 99)}

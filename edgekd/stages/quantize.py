"""A float model and calibration inputs in, an int8 model for one runtime out."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from edgekd.errors import BuildError, WorkerDied
from edgekd.tasks.task import Task
from edgekd.values.artifact import Artifact
from edgekd.values.halving import HalveOrder, HalveReply
from edgekd.values.model import Model
from edgekd.values.order import QuantizeOrder, RankOrder, RankReply, SurveyOrder, SurveyReply
from edgekd.values.variant import Quantization
from edgekd.wire import Child

VERSION = 2
_TIMEOUT_S = 900.0

Reply = TypeVar("Reply")


class Quantizers:
    """The child process that quantises: started at the first order, kept for the next ones.

    Quantisers parse models; a process of their own keeps that away from the run.
    """

    def __init__(self, memory_mib: int = 8192) -> None:
        self._memory_mib = memory_mib
        self._child: Child | None = None

    @property
    def fingerprint(self) -> str:
        """Name the tools that make the result."""
        return ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("nncf", "onnxruntime", "openvino")
        )

    def order(self, order: QuantizeOrder) -> Model:
        """Quantise in the child.

        Raises:
            ModelError: the model cannot be quantised.
            DataError: the calibration inputs cannot serve.
            WorkerDied: the quantiser crashed; the next order starts a fresh one.

        """
        return self._ask("quantize", order, Model)

    def survey(self, order: SurveyOrder) -> SurveyReply:
        """Prepare a float .onnx and look at its calibration, in the child.

        Raises:
            ModelError: the model is malformed, quantised already, or has nothing to quantise.
            DataError: the calibration inputs cannot serve.
            WorkerDied: the child crashed; the next order starts a fresh one.

        """
        return self._ask("survey", order, SurveyReply)

    def rank(self, order: RankOrder) -> RankReply:
        """Quantise segments one at a time, in the child.

        Raises:
            ModelError: the model is malformed or quantised already.
            DataError: the inputs cannot serve.
            WorkerDied: the child crashed; the next order starts a fresh one.

        """
        return self._ask("rank", order, RankReply)

    def halve(self, order: HalveOrder) -> HalveReply:
        """Cast a graph to fp16 in the child.

        Raises:
            ModelError: the model is malformed, not in fp32, or cannot be cast.
            DataError: the samples are not what it takes.
            WorkerDied: the child crashed; the next order starts a fresh one.

        """
        return self._ask("halve", order, HalveReply)

    def _ask(self, name: str, order: object, reply: type[Reply]) -> Reply:
        if self._child is None:
            self._child = Child("edgekd.quantizers", memory_mib=self._memory_mib)
        try:
            return self._child.ask(name, order, reply, timeout_s=_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Quantizers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def quantize(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path,
    model: Model,
    runtime: str,
    calibration: dict[str, Artifact],
    quantizers: Quantizers,
    how: Quantization | None = None,
) -> Model:
    """Quantise `model` for `runtime`.

    Args:
        folder: where the int8 model is written.
        model: a float .onnx.
        runtime: `onnxruntime` (static Q/DQ, U8S8, per channel), `openvino` (NNCF), or `tensorrt` and its like
            (static Q/DQ, symmetric).
        calibration: a .npy for each input, shape (n, *input shape).
        quantizers: the child that does it.
        how: the choices; None: what suits the runtime, as above.

    Raises:
        ModelError: the model cannot be quantised.
        DataError: the calibration inputs cannot serve.

    """
    order = QuantizeOrder(model=model.file, calibration=calibration, folder=folder, runtime=runtime, how=how)
    try:
        return quantizers.order(order)
    except (
        WorkerDied
    ) as error:  # what the quantiser dies of is a fact about the model, and the search goes on
        raise BuildError(f"the quantiser for {runtime} died", cause=f"{error.what}: {error.cause}") from error


def calibrate(folder: Path, task: Task, resolution: int, samples: int) -> Artifact:
    """Write pre-processed training samples to calibrate on: (samples, 1, ...), a row an inference.

    Training samples, because validation chooses students and the test set judges them.
    """
    path = folder / "calibration.npy"
    np.save(path, task.inputs(task.train, resolution, samples))
    return Artifact.of(path)

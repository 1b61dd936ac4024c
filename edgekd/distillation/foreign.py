"""Teachers that are files: an ONNX model, which ONNX Runtime runs in a child, or a program of torch.export."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.errors import EdgekdError, TeacherError
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import InferOrder, InferReply, OpenOrder, OpenReply
from edgekd.wire import Child

_RUNTIME = "onnxruntime"
_OPEN_TIMEOUT_S = 300.0
_ROW_TIMEOUT_S = 30.0
_MEMORY_MIB = 8192


class OnnxTeacher(nn.Module):
    """An ONNX model as a frozen module: batches in, its first output out.

    The file is parsed and run by the worker, in a process of its own with limits, started at the first batch. Taps in
    it are not to be had: it is tapped at its output.
    """

    def __init__(self, path: Path, threads: int) -> None:
        """Take a file.

        Args:
            path: an .onnx of one input; its first dimension is 1, or open.
            threads: that it is run with.

        Raises:
            TeacherError: there is no such file.

        """
        super().__init__()
        self._child: Child | None = None
        if not path.is_file():
            raise TeacherError(f"the teacher {path} does not exist")
        self.file = Artifact.of(path)
        self._engine = Engine(
            model=Model(file=self.file), runtime=_RUNTIME, precision=Precision.FP32, threads=threads
        )
        self._input = ""

    def forward(self, inputs: Tensor) -> Tensor:
        """Answer a batch (B, ...); (B, *whole output of one sample).

        Raises:
            TeacherError: the file cannot be run, takes several inputs, or not these.

        """
        rows = inputs.detach().cpu().float() if inputs.is_floating_point() else inputs.detach().cpu()
        with tempfile.TemporaryDirectory(prefix="edgekd-teacher-") as scratch:
            path = Path(scratch) / "inputs.npy"
            np.save(path, rows.contiguous().numpy()[:, None])
            try:
                found = self._answers(Artifact.of(path), Path(scratch) / "outputs", len(rows))
            except EdgekdError as error:
                self.close()
                mend = "give an .onnx that takes one sample of the task, as float32 or letters as int64"
                what = f"the teacher {self.file.path.name} does not answer"
                raise TeacherError(what, cause=f"{error.what}: {error.cause}"[:300], mend=mend) from error
        return torch.from_numpy(found[:, 0]).to(inputs.device)

    def _answers(self, inputs: Artifact, folder: Path, rows: int) -> np.ndarray[Any, Any]:
        child = self._opened()
        order = InferOrder(inputs={self._input: inputs}, folder=folder)
        reply = child.ask("infer", order, InferReply, timeout_s=_OPEN_TIMEOUT_S + rows * _ROW_TIMEOUT_S)
        first = next(iter(reply.outputs.values()))
        answers: np.ndarray[Any, Any] = np.load(first.verified(), allow_pickle=False)
        return answers

    def _opened(self) -> Child:
        if self._child is None:
            child = Child(
                "edgekd.worker", memory_mib=_MEMORY_MIB, threads=self._engine.threads, runtime=_RUNTIME
            )
            self._child = child
            reply = child.ask("open", OpenOrder(engine=self._engine), OpenReply, timeout_s=_OPEN_TIMEOUT_S)
            names = [spec.name for spec in reply.signature.inputs]
            if len(names) != 1:
                raise TeacherError(
                    f"a teacher has one input, this one has {len(names)}", cause=", ".join(names)
                )
            (self._input,) = names
        return self._child

    def close(self) -> None:
        """End the child; the next batch starts another."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __deepcopy__(self, memo: dict[int, object]) -> OnnxTeacher:
        """Return one of the same file with a child of its own: there is nothing in it to change."""
        return OnnxTeacher(self.file.path, self._engine.threads)

    def __del__(self) -> None:
        self.close()

    def extra_repr(self) -> str:
        """Say which file it is: what is hashed as the teacher's identity."""
        return self.file.sha256


class Program(nn.Module):
    """What torch.export made of a module in evaluation mode: it has no other mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        """Answer a batch."""
        answer: Tensor = self.module(inputs)
        return answer

    def train(self, mode: bool = True) -> Program:  # noqa: FBT001, FBT002 - as torch has it
        """Note the mode, and leave the program as it is: torch refuses to change it."""
        self.training = mode
        return self


def program(path: Path, *, trusted: bool) -> Program:
    """Open an archive that torch.export.save wrote.

    Opening one may run code of whoever wrote it: torch unpickles constants and evaluates shape expressions. So it is
    opened only where the job says that its author is trusted, as the author of a FILE.py is.

    Raises:
        TeacherError: there is no such file, it is not trusted, or it is no such archive.

    """
    if not path.is_file():
        raise TeacherError(f"the teacher {path} does not exist")
    if not trusted:
        raise TeacherError(
            f"the teacher {path.name} was not opened",
            cause="opening an archive of torch.export can run code that its author put in",
            mend="if you trust its author, write trusted = true in [teacher]; or give it as .onnx",
        )
    try:
        module = torch.export.load(str(path)).module(check_guards=False)
    except Exception as error:  # torch raises what its formats raise
        cause = f"{type(error).__name__}: {error}"[:300]
        raise TeacherError(f"{path} is no program of torch.export", cause=cause) from error
    return Program(module)

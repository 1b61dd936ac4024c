"""ONNX Runtime on the CPU: fp32, and int8 from explicit Q/DQ."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgekd.backends import check_precision, misfit, settled
from edgekd.backends.ort_layers import layers_in
from edgekd.errors import BuildError
from edgekd.timing.sampling import varied_inputs
from edgekd.timing.session import Parts, Tensors
from edgekd.values.artifact import Artifact
from edgekd.values.layer import Layer
from edgekd.values.model import Engine, Model, Precision, Signature, TensorSpec

_FATAL_ONLY = 4
_WARMUPS = 5  # passes before layers are timed: the first takes memory
_DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16", "bool": "bool",
    "string": "object", "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip


def version() -> str:
    """Return ONNX Runtime's version."""
    return str(ort.__version__)


def precisions() -> tuple[Precision, ...]:
    """Return what the CPU provider computes in."""
    return (Precision.FP32, Precision.INT8)


@contextmanager
def open(engine: Engine) -> Iterator[OrtSession]:  # noqa: A001 - the name every backend offers
    """Compile a .onnx with the CPU provider.

    Raises:
        BuildError: ONNX Runtime refuses the model or the precision.

    """
    session = _opened(engine, _options(engine.threads))
    try:
        yield session
    finally:
        session.close()


def layers(engine: Engine, passes: int) -> tuple[Layer, ...]:
    """Return the nodes of the optimised graph, each with the median of its times by ONNX Runtime's profiler.

    The sum of layer times is never a latency.

    Raises:
        BuildError: ONNX Runtime refuses the model or the precision, or its profile cannot be read.

    """
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        options = _options(engine.threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = _opened(engine, options)
        try:
            feeds = varied_inputs(session.signature, seed=0, count=1)[0]
            for _ in range(_WARMUPS + passes):
                session.run(feeds)
            return layers_in(session.end_profiling(), passes)
        finally:
            session.close()


def compile(engine: Engine, folder: Path) -> Model:  # noqa: A001 - the name every backend offers
    """Optimise the graph ahead of time for this processor: `model.onnx`, which only runs on its like.

    Dynamic dimensions stay open.

    Raises:
        BuildError: ONNX Runtime refuses the model or the precision.

    """
    check_precision(engine, precisions())
    source, path = engine.model.file.path, folder / "model.onnx"
    if source.suffix != ".onnx":
        raise BuildError(f"onnxruntime cannot read {source.name}", mend="give it an .onnx file")
    options = _options(engine.threads)
    options.optimized_model_filepath = str(path)
    try:
        ort.InferenceSession(str(source), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base of their own
        raise BuildError(f"onnxruntime cannot compile {source.name}", cause=str(error)[:1000]) from error
    return Model(file=Artifact.of(path), precision=engine.model.precision)


def _opened(engine: Engine, options: Any) -> OrtSession:
    check_precision(engine, precisions())
    path = engine.model.file.path
    if path.suffix != ".onnx":
        raise BuildError(f"onnxruntime cannot read {path.name}", mend="give it an .onnx file")
    try:
        compiled = ort.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
        return OrtSession(compiled, engine)
    except BuildError:
        raise
    except Exception as error:  # its exceptions share no base of their own
        raise BuildError(f"onnxruntime cannot compile {path.name}", cause=str(error)[:1000]) from error


class OrtSession:
    """An `InferenceSession` with one thread pool that sleeps when it has nothing to do."""

    real_time = True

    def __init__(self, compiled: Any, engine: Engine) -> None:
        self._compiled = compiled
        self._run = compiled.run
        # A pool's threads cannot be told from the process's others; alone, the calling thread does it all.
        self.cpu_clock_ns = time.thread_time_ns if engine.threads == 1 else time.process_time_ns
        self.clock_ns = time.perf_counter_ns
        self.signature = Signature(
            inputs=settled([_spec(argument) for argument in compiled.get_inputs()], engine.shapes or {}),
            outputs=tuple(_spec(argument) for argument in compiled.get_outputs()),
        )
        self._names = [spec.name for spec in self.signature.outputs]
        self._bound: _Bound | None = None

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference; ONNX Runtime gives arrays of its own."""
        return dict(zip(self._names, self._run(self._names, feeds)))

    def run_in_parts(self, feeds: Tensors) -> Parts:
        """Run one inference on memory of its own, as on an accelerator, and read the clock between its steps.

        `run` leaves inputs where the caller has them, which this processor can read: there nothing is copied in.

        Raises:
            ValueError: an input is not of the shape and type the model takes.

        """
        bound = self._bound = self._bound or _Bound(self._compiled, self.signature)
        clock, inputs = self.clock_ns, bound.inputs
        bound.renew()
        start = clock()
        for name, tensor in inputs.items():
            given = feeds[name]
            if given.shape != tensor.shape or given.dtype != tensor.dtype:
                raise misfit(name, tensor, given)
            np.copyto(tensor, given)
        ready = clock()
        self._compiled.run_with_iobinding(bound.binding)
        done = clock()
        outputs = dict(zip(self._names, bound.binding.copy_outputs_to_cpu()))
        end = clock()
        return Parts(
            copy_in_ns=ready - start, compute_ns=done - ready, copy_out_ns=end - done, outputs=outputs
        )

    def throttle_count(self) -> int:
        """Return 0: the machine's own counters tell."""
        return 0

    def end_profiling(self) -> Path:
        """Return the profile of the inferences so far, where the session was opened with a profiler."""
        return Path(self._compiled.end_profiling())

    def close(self) -> None:
        """Free the compiled model."""
        self._bound = None
        del self._run, self._compiled


class _Bound:
    """Memory that a compiled model reads its inputs from and writes its outputs to, time after time."""

    def __init__(self, compiled: Any, signature: Signature) -> None:
        self.binding = compiled.io_binding()
        self.inputs: dict[str, NDArray[Any]] = {
            spec.name: np.empty(tuple(size or 0 for size in spec.shape), spec.dtype)
            for spec in signature.inputs
        }
        for name, tensor in self.inputs.items():
            self.binding.bind_input(name, "cpu", 0, tensor.dtype.type, tensor.shape, tensor.ctypes.data)
        self._outputs = [spec.name for spec in signature.outputs]
        self._fixed = all(size is not None for spec in signature.outputs for size in spec.shape)
        self._bind()

    def renew(self) -> None:
        """Forget the outputs where the next ones may have another shape: they would not fit."""
        if not self._fixed:
            self._bind()

    def _bind(self) -> None:
        for name in self._outputs:
            self.binding.bind_output(name)


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL_ONLY
    # Spinning threads take the cores from whoever runs next: another session, or the application itself.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _spec(argument: Any) -> TensorSpec:
    kind = argument.type
    if not kind.startswith("tensor("):
        raise BuildError(f"{argument.name!r} is a {kind}", mend="export the model with tensors only")
    shape = tuple(size if isinstance(size, int) else None for size in argument.shape or ())
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(name=argument.name, dtype=_DTYPES.get(inner, inner), shape=shape)

"""OpenVINO on the CPU: fp32, bf16 where the processor has it, and int8 from FakeQuantize or Q/DQ."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgekd.backends import check_precision, misfit, settled
from edgekd.errors import BuildError, ModelError
from edgekd.timing.sampling import varied_inputs
from edgekd.timing.session import Parts, Tensors
from edgekd.values.artifact import Artifact
from edgekd.values.layer import Layer
from edgekd.values.model import Engine, Model, Precision, Signature, TensorSpec

# int8 layers run beside fp32 ones: on small networks that was faster than beside bf16 ones, which need
# conversions around every int8 layer. Left to itself, OpenVINO takes bf16 wherever the processor has it.
_ARITHMETIC = {Precision.FP32: ov.Type.f32, Precision.BF16: ov.Type.bf16, Precision.INT8: ov.Type.f32}

_WARMUPS = 5  # passes before layers are timed: the first takes memory
_MOST_CHARACTERS = 500  # of a layer's name
# The plugin says that a layer was not executed where its mean is below a microsecond: its kernel tells more.
_NO_KERNEL = ("undef", "unknown")


def version() -> str:
    """Return OpenVINO's version."""
    return str(ov.__version__)


@cache
def precisions() -> tuple[Precision, ...]:
    """Return what the CPU plugin computes in on this processor."""
    capable = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    named = {Precision.FP32: "FP32", Precision.BF16: "BF16", Precision.INT8: "INT8"}
    return tuple(precision for precision, name in named.items() if name in capable)


@contextmanager
def open(engine: Engine) -> Iterator[OvSession]:  # noqa: A001 - the name every backend offers
    """Compile an .onnx or .xml for the CPU plugin.

    Raises:
        BuildError: OpenVINO refuses the model or the precision.

    """
    session = _opened(engine)
    try:
        yield session
    finally:
        session.close()


def layers(engine: Engine, passes: int) -> tuple[Layer, ...]:
    """Return the layers that are executed, each with the mean of its times: OpenVINO keeps no single ones.

    What it fused into another layer is left out. The sum of layer times is never a latency.

    Raises:
        BuildError: OpenVINO refuses the model or the precision.

    """
    session = _opened(engine, counting=True)
    try:
        feeds = varied_inputs(session.signature, seed=0, count=1)[0]
        for _ in range(_WARMUPS):
            session.run(feeds)
        warm = {layer.name: layer.time_ms or 0.0 for layer in session.layers()}
        for _ in range(passes):
            session.run(feeds)
        return tuple(
            replace(layer, time_ms=_later_mean(warm.get(layer.name, 0.0), layer.time_ms or 0.0, passes))
            for layer in session.layers()
        )
    finally:
        session.close()


def read_signature(path: Path) -> Signature:
    """Read what a model takes and gives without compiling it.

    Raises:
        ModelError: OpenVINO cannot read it.

    """
    try:
        model = ov.Core().read_model(str(path))
    except RuntimeError as error:
        raise ModelError(f"openvino cannot read {path.name}", cause=str(error)[:1000]) from error
    kinds = {node.get_type_name() for node in model.get_ops()}
    return replace(_signature(model), quantized="FakeQuantize" in kinds)


def compile(engine: Engine, folder: Path) -> Model:  # noqa: A001 - the name every backend offers
    """Convert a model to OpenVINO's IR: `model.xml`, and its weights in full precision in `model.bin`.

    With `engine.shapes`, dynamic dimensions are settled in the file; without, they stay open.

    Raises:
        BuildError: OpenVINO refuses the model or the precision.

    """
    check_precision(engine, precisions())
    path, source = folder / "model.xml", engine.model.file.path
    try:
        model = ov.Core().read_model(str(source))
        if engine.shapes is not None:
            _settle_shapes(model, engine.shapes)
        ov.save_model(model, str(path), compress_to_fp16=False)
    except BuildError:
        raise
    except Exception as error:  # it raises RuntimeError, TypeError and its own, from several layers
        raise BuildError(f"openvino cannot convert {source.name}", cause=str(error)[:1000]) from error
    weights = Artifact.of(path.with_suffix(".bin"))
    return Model(file=Artifact.of(path), weights=weights, precision=engine.model.precision)


def port_name(port: Any) -> str:
    """Return the name that the model's author gave an input or output.

    Where OpenVINO has fused nodes, a port has the names of all of them, and `any_name` is not always the one.
    """
    own = str(port.node.friendly_name).removesuffix("/sink_port_0")
    return own if own in port.names else str(port.any_name)


def _opened(engine: Engine, *, counting: bool = False) -> OvSession:
    check_precision(engine, precisions())
    path = engine.model.file.path
    if path.suffix not in {".onnx", ".xml"}:
        raise BuildError(f"openvino cannot read {path.name}", mend="give it an .onnx or an .xml file")
    try:
        core = ov.Core()
        model = core.read_model(str(path))
        _settle_shapes(model, engine.shapes or {})
        settings = {**_settings(engine), "PERF_COUNT": counting}
        return OvSession(core.compile_model(model, "CPU", settings), engine.threads)
    except BuildError:
        raise
    except Exception as error:  # it raises RuntimeError, TypeError and its own, from several layers
        raise BuildError(f"openvino cannot compile {path.name}", cause=str(error)[:1000]) from error


class OvSession:
    """One infer request; inputs are copied in and outputs copied out."""

    real_time = True

    def __init__(self, compiled: Any, threads: int) -> None:
        self._request = compiled.create_infer_request()
        self._compiled = compiled
        self.signature = _signature(compiled)
        request = self._request
        self._inputs = {
            spec.name: request.get_input_tensor(at).data for at, spec in enumerate(self.signature.inputs)
        }
        self._outputs = [spec.name for spec in self.signature.outputs]
        self.clock_ns = time.perf_counter_ns
        # One stream of one thread runs in the calling thread; a pool can only be seen as a process.
        self.cpu_clock_ns = time.thread_time_ns if threads == 1 else time.process_time_ns

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference.

        Inputs are copied into the request's own tensors: handing arrays to `infer` costs 25 us more a call,
        a quarter of a small network.

        Raises:
            ValueError: an input is not of the shape and type the model takes.

        """
        for name, tensor in self._inputs.items():
            given = feeds[name]
            if given.shape != tensor.shape or given.dtype != tensor.dtype:  # copyto would broadcast and cast
                raise misfit(name, tensor, given)
            np.copyto(tensor, given)
        request = self._request
        request.infer()
        return {name: np.array(request.get_output_tensor(at).data) for at, name in enumerate(self._outputs)}

    def run_in_parts(self, feeds: Tensors) -> Parts:
        """Run one inference as `run` does, and read the clock between its steps.

        Raises:
            ValueError: an input is not of the shape and type the model takes.

        """
        clock, request = self.clock_ns, self._request
        start = clock()
        for name, tensor in self._inputs.items():
            given = feeds[name]
            if given.shape != tensor.shape or given.dtype != tensor.dtype:
                raise misfit(name, tensor, given)
            np.copyto(tensor, given)
        ready = clock()
        request.infer()
        done = clock()
        outputs = {
            name: np.array(request.get_output_tensor(at).data) for at, name in enumerate(self._outputs)
        }
        end = clock()
        return Parts(
            copy_in_ns=ready - start, compute_ns=done - ready, copy_out_ns=end - done, outputs=outputs
        )

    def throttle_count(self) -> int:
        """Return 0: the machine's own counters tell."""
        return 0

    def layers(self) -> tuple[Layer, ...]:
        """Return the layers that run, each with its mean time so far, where it was compiled to count."""
        return tuple(
            Layer(
                name=str(one.node_name)[:_MOST_CHARACTERS],
                kind=str(one.node_type),
                output=str(one.exec_type).rpartition("_")[2],  # the plugin ends a kernel's name with its type
                tactic=str(one.exec_type),
                time_ms=one.real_time.total_seconds() * 1e3,
            )
            for one in self._request.get_profiling_info()
            if one.status == ov.ProfilingInfo.Status.EXECUTED or not str(one.exec_type).startswith(_NO_KERNEL)
        )

    def close(self) -> None:
        """Free the compiled model."""
        self._inputs.clear()
        del self._request, self._compiled


def _later_mean(warm_ms: float, whole_ms: float, passes: int) -> float | None:
    """Take the passes that warmed up out of the plugin's running mean, which is cut to whole microseconds."""
    if not passes:
        return None
    return max(0.0, ((_WARMUPS + passes) * whole_ms - _WARMUPS * warm_ms) / passes)


def _settings(engine: Engine) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": engine.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": _ARITHMETIC[engine.precision],
    }


def _settle_shapes(model: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Make every input shape static: a dynamic one compiles to slower code."""
    settle = settled([_spec(port) for port in model.inputs], shapes)
    if any(port.partial_shape.is_dynamic for port in model.inputs):
        model.reshape({port: list(spec.shape) for port, spec in zip(model.inputs, settle)})


def _signature(model: Any) -> Signature:
    return Signature(inputs=tuple(map(_spec, model.inputs)), outputs=tuple(map(_spec, model.outputs)))


def _spec(port: Any) -> TensorSpec:
    sizes = port.partial_shape
    known = () if sizes.rank.is_dynamic else sizes
    shape = tuple(None if size.is_dynamic else size.get_length() for size in known)
    return TensorSpec(name=port_name(port), dtype=_dtype(port.element_type), shape=shape)


def _dtype(kind: Any) -> str:
    if kind == ov.Type.bf16:
        return "bfloat16"
    return "object" if kind == ov.Type.string else str(np.dtype(kind.to_dtype()))

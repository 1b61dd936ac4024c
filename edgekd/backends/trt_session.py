"""Run a TensorRT engine: pinned buffers, one stream, CUDA's own events around each part."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorrt as trt  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numpy.typing import NDArray

from edgekd.backends import misfit, settled
from edgekd.backends.trt_build import Log, Settings, failure, spec_of
from edgekd.backends.trt_cuda import Cuda
from edgekd.errors import BuildError, DeviceError
from edgekd.timing.session import Parts, Tensors
from edgekd.values.model import Engine, Signature, TensorSpec


@dataclass(frozen=True, kw_only=True)
class _Buffer:
    """One input or output: pinned memory that numpy sees, and its twin on the GPU."""

    name: str
    array: NDArray[Any] = field(repr=False)
    host: int
    device: int
    size_bytes: int


@contextmanager
def run_plan(plan: bytes, engine: Engine, settings: Settings, cuda: Cuda) -> Iterator[TrtSession]:
    """Load a plan that was built on this device; leaving the context frees everything it took.

    Raises:
        BuildError: TensorRT refuses it, or has too little memory for it.

    """
    log = Log()
    runtime: trt.Runtime = trt.Runtime(log)
    if settings.dla:
        runtime.DLA_core = 0
    loaded: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        raise failure(engine, log)
    with ExitStack() as taken:
        session = TrtSession(loaded, engine, log, cuda, taken)
        taken.callback(session.forget)  # the context goes before its memory, its engine and the runtime
        if settings.graph:
            session.capture()
        yield session


class TrtSession:
    """An execution context with memory of its own, for one shape of each input."""

    real_time = True

    def __init__(
        self, loaded: trt.ICudaEngine, engine: Engine, log: Log, cuda: Cuda, taken: ExitStack
    ) -> None:
        self._log, self._cuda, self._taken = log, cuda, taken
        self.clock_ns = time.perf_counter_ns
        self.cpu_clock_ns = time.thread_time_ns  # it spins while the GPU computes
        self._context: trt.IExecutionContext | None = loaded.create_execution_context()
        if self._context is None:
            raise failure(engine, log)
        self._stream = cuda.stream()
        taken.callback(cuda.free_stream, self._stream)
        self._marks = tuple(self._mark() for _ in range(4))
        self.signature = _signature(loaded, self._context, engine)
        self._inputs = tuple(self._buffer(self._context, spec) for spec in self.signature.inputs)
        self._outputs = tuple(self._buffer(self._context, spec) for spec in self.signature.outputs)
        self._graph: int | None = None
        self._loaded: trt.ICudaEngine | None = loaded

    def layers_json(self) -> str:
        """Return the engine's layers as TensorRT's inspector prints them."""
        loaded: trt.ICudaEngine | None = self._loaded
        if loaded is None:
            raise DeviceError("the session is closed")
        inspector: trt.EngineInspector = loaded.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference; inputs are copied to the GPU and outputs back.

        Raises:
            ValueError: an input is not of the shape and type the model takes.

        """
        self._take(feeds)
        self._queue_in()
        self._queue_compute()
        self._queue_out()
        self._cuda.synchronize(self._stream)
        return {one.name: np.array(one.array) for one in self._outputs}

    def run_in_parts(self, feeds: Tensors) -> Parts:
        """Run one inference as `run` does; CUDA's events time its parts, and the host's copies add to them.

        Raises:
            ValueError: an input is not of the shape and type the model takes.

        """
        clock, cuda, stream = self.clock_ns, self._cuda, self._stream
        start = clock()
        self._take(feeds)
        taken_ns = clock() - start
        cuda.record(self._marks[0], stream)
        self._queue_in()
        cuda.record(self._marks[1], stream)
        self._queue_compute()
        cuda.record(self._marks[2], stream)
        self._queue_out()
        cuda.record(self._marks[3], stream)
        cuda.synchronize(stream)
        done = clock()
        outputs = {one.name: np.array(one.array) for one in self._outputs}
        given_ns = clock() - done
        into, computed, out_of = (
            cuda.elapsed_ns(*pair) for pair in zip(self._marks, self._marks[1:], strict=False)
        )
        return Parts(
            copy_in_ns=taken_ns + into, compute_ns=computed, copy_out_ns=out_of + given_ns, outputs=outputs
        )

    def throttle_count(self) -> int:
        """Return 0: the machine's own counters tell."""
        return 0

    def capture(self) -> None:
        """Run the engine as one CUDA graph from now on.

        Raises:
            BuildError: it has a part that cannot be captured.

        """
        for one in self._inputs:  # what lies in new memory may be indices of nothing
            one.array.fill(0)
        self._queue_in()
        self._queue_compute()  # TensorRT finishes its preparations for a shape in the first run
        self._cuda.synchronize(self._stream)
        self._cuda.begin_capture(self._stream)
        try:
            self._queue_compute()
        finally:  # a capture must be ended, whatever came of it
            graph = self._ended_capture()
        self._taken.callback(self._cuda.free_graph, graph)
        self._graph = graph

    def time_layers(self, feeds: Tensors, passes: int) -> dict[str, list[float]]:
        """Return each layer's times in ms; they are taken one after the other and add up to more than an inference.

        The session is slower afterwards: use one of its own for this.
        """
        clock = _LayerClock()
        context: trt.IExecutionContext | None = self._context
        if context is None:
            raise DeviceError("the session is closed")
        context.profiler = clock
        self._graph = None
        for _ in range(passes):
            self.run(feeds)
        return clock.times_ms

    def forget(self) -> None:
        """Let go of the execution context, and then of its engine."""
        self._context = None
        self._loaded = None

    def _take(self, feeds: Tensors) -> None:
        for one in self._inputs:
            given, tensor = feeds[one.name], one.array
            if given.shape != tensor.shape or given.dtype != tensor.dtype:  # copyto would broadcast and cast
                raise misfit(one.name, tensor, given)
            np.copyto(tensor, given)

    def _queue_in(self) -> None:
        for one in self._inputs:
            self._cuda.copy_in(one.device, one.host, one.size_bytes, self._stream)

    def _queue_compute(self) -> None:
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
            return
        context: trt.IExecutionContext | None = self._context
        if context is None or not context.execute_async_v3(self._stream):
            raise DeviceError("tensorrt cannot run the engine", cause=self._log.text or "it is closed")

    def _queue_out(self) -> None:
        for one in self._outputs:
            self._cuda.copy_out(one.host, one.device, one.size_bytes, self._stream)

    def _ended_capture(self) -> int:
        try:
            return self._cuda.end_capture(self._stream)
        except DeviceError as error:
            raise BuildError(
                "this engine cannot run as a CUDA graph",
                cause=error.cause,
                mend="use the runtime tensorrt in place of tensorrt-graph",
            ) from error

    def _mark(self) -> int:
        event = self._cuda.event()
        self._taken.callback(self._cuda.free_event, event)
        return event

    def _buffer(self, context: trt.IExecutionContext, spec: TensorSpec) -> _Buffer:
        """Take memory for a tensor and tell the context where it is."""
        cuda, shape = self._cuda, tuple(size or 0 for size in spec.shape)
        size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        host = cuda.pinned_memory(max(1, size_bytes))
        self._taken.callback(cuda.free_pinned, host)
        device = cuda.device_memory(max(1, size_bytes))
        self._taken.callback(cuda.free_device, device)
        raw = (ctypes.c_ubyte * max(1, size_bytes)).from_address(host)
        array = np.frombuffer(memoryview(raw), dtype=np.uint8)[:size_bytes].view(spec.dtype).reshape(shape)
        if not context.set_tensor_address(spec.name, device):
            raise BuildError(f"tensorrt takes no memory for {spec.name!r}", cause=self._log.text)
        return _Buffer(name=spec.name, array=array, host=host, device=device, size_bytes=size_bytes)


class _LayerClock(trt.IProfiler):  # type: ignore[misc, unused-ignore]
    """Collects what TensorRT reports of each layer."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.times_ms: dict[str, list[float]] = {}

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Note one layer of one pass; TensorRT calls it."""
        self.times_ms.setdefault(layer_name, []).append(ms)


def _signature(loaded: trt.ICudaEngine, context: trt.IExecutionContext, engine: Engine) -> Signature:
    """Settle the shapes of inputs and read those of outputs that follow."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for at in range(loaded.num_io_tensors):
        name = loaded.get_tensor_name(at)
        if loaded.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BuildError(f"{name!r} says how large a tensor is", mend="export the model without it")
        names[loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(name)
    declared = [
        spec_of(name, loaded.get_tensor_dtype(name), loaded.get_tensor_shape(name)) for name in names[True]
    ]
    inputs = settled(declared, engine.shapes or {})
    for spec in inputs:
        if not context.set_input_shape(spec.name, spec.shape):
            raise BuildError(
                f"tensorrt refuses {spec.name!r} of shape {spec.shape}", mend="give another --shape"
            )
    outputs = [
        spec_of(name, loaded.get_tensor_dtype(name), context.get_tensor_shape(name)) for name in names[False]
    ]
    for spec in outputs:
        if None in spec.shape:
            raise BuildError(
                f"the size of output {spec.name!r} depends on what goes in",
                mend="export the model without the operator that decides it, and do that step outside",
            )
    return Signature(inputs=inputs, outputs=tuple(outputs))

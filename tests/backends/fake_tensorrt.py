"""A stand-in for TensorRT's Python module, for tests: no GPU computes here, and no figure of it means anything.

It has the names and parameters that the backend uses and no others; `bindings/test_bindings.py` holds each of them
against the real bindings. It reads a model with onnx, computes with ONNX Runtime on the CPU, and reaches memory and
streams through the fake CUDA driver, whose addresses the host cannot read. A build draws its speed at random, and a
timing cache makes the next build draw the same: that much of the real one's temper is kept.

`FAKE_TRT` in the environment makes it fail: `no-memory`, `killed`, `no-plan`, `old-engine`, `no-capture`, `dla`.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

__version__ = "10.14.1.48"
_MAGIC = b"fake-plan\n"
_CALL = ctypes.CFUNCTYPE(None)


def _asked(what: str) -> bool:
    return what in os.environ.get("FAKE_TRT", "").split(",")


def _cuda() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    library.fakeReal.argtypes, library.fakeReal.restype = [ctypes.c_uint64, ctypes.c_size_t], ctypes.c_void_p
    library.fakeEnqueue.argtypes = [ctypes.c_void_p, _CALL]
    return library


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    GPU_FALLBACK = 3
    TF32 = 7


class DeviceType(enum.Enum):
    GPU = 0
    DLA = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0
    TACTIC_DRAM = 4


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    DETAILED = 1


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    BF16 = 7
    INT64 = 8


_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.INT8: DataType.INT8,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.BOOL: DataType.BOOL,
    onnx.TensorProto.UINT8: DataType.UINT8,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT64: DataType.INT64,
}


class Dims(tuple[int, ...]):
    """Behaves like a tuple, as the real one does."""

    __slots__ = ()


class IHostMemory(bytearray):
    """A buffer, as the real one is."""


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def __init__(self) -> None:
        self._ready = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProfiler:
    def __init__(self) -> None:
        self._ready = True

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class _Native:
    """An object of C++: only what it declares can be set on it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in type(self)._settable:
            raise AttributeError(f"{type(self).__name__} has no settable {name!r}")
        object.__setattr__(self, name, value)

    _settable: tuple[str, ...] = ()


class ITensor(_Native):
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self._name, self._dtype = value.name, _TYPES[kind.elem_type]
        self._shape = Dims(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)

    name = property(lambda self: self._name)
    dtype = property(lambda self: self._dtype)
    shape = property(lambda self: self._shape)
    is_shape_tensor = property(lambda self: self._name.startswith("shape_of_"))


class ILayer(_Native):
    def __init__(self, node: onnx.NodeProto, model: onnx.ModelProto) -> None:
        self._name = node.name or node.output[0]
        known = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self._half = any(known.get(name) == onnx.TensorProto.FLOAT16 for name in node.input)

    name = property(lambda self: self._name)


class INetworkDefinition(_Native):
    def __init__(self) -> None:
        self._model = onnx.ModelProto()

    num_inputs = property(lambda self: len(self._inputs()))
    num_outputs = property(lambda self: len(self._model.graph.output))
    num_layers = property(lambda self: len(self._model.graph.node))

    def get_input(self, index: int) -> ITensor:
        return ITensor(self._inputs()[index])

    def get_layer(self, index: int) -> ILayer:
        return ILayer(self._model.graph.node[index], self._model)

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        constants = {tensor.name for tensor in self._model.graph.initializer}
        return [value for value in self._model.graph.input if value.name not in constants]


class ParserError(_Native):
    def __init__(self, text: str, operator: str = "") -> None:
        self._text, self._operator = text, operator

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return "a_node" if self._operator else ""

    def node_operator(self) -> str:
        return self._operator


class OnnxParser(_Native):
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger, self._errors = network, logger, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        return self._parsed(lambda: onnx.load(model))

    def parse(self, model: bytes) -> bool:
        return self._parsed(lambda: onnx.load_model_from_string(model))

    def _parsed(self, load: Callable[[], onnx.ModelProto]) -> bool:
        try:
            read = load()
        except Exception as error:  # noqa: BLE001 - it says no to whatever onnx cannot read
            self._errors.append(ParserError(f"Failed to parse the ONNX model: {type(error).__name__}"))
            return False
        constants = {tensor.name: tensor.data_type for tensor in read.graph.initializer}
        for node in read.graph.node:
            if node.op_type == "QuantizeLinear" and constants.get(node.input[2]) == onnx.TensorProto.UINT8:
                self._errors.append(ParserError("TensorRT does not support UINT8 types", "QuantizeLinear"))
            if node.domain:
                self._errors.append(ParserError("Plugin not found", node.op_type))
        self._network._model = read
        return not self._errors


class IOptimizationProfile(_Native):
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:  # noqa: A002 - their names
        if not len(min) == len(opt) == len(max) or any(a > b or b > c for a, b, c in zip(min, opt, max)):
            raise ValueError("Shape provided for min, opt, max is inconsistent")
        self._shapes[input] = tuple(opt)


class ITimingCache(_Native):
    def __init__(self, content: bytes) -> None:
        self._content: dict[str, float] = json.loads(content or b"{}")

    def serialize(self) -> IHostMemory:
        return IHostMemory(json.dumps(self._content).encode())


class IBuilderConfig(_Native):
    _settable = ("profiling_verbosity", "default_device_type", "DLA_core")

    def __init__(self) -> None:
        self._flags, self._limits = {BuilderFlag.TF32}, {}
        self._cache, self._profiles = ITimingCache(b""), []
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.default_device_type, self.DLA_core = DeviceType.GPU, -1

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._limits[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        try:
            return ITimingCache(serialized_timing_cache)
        except ValueError:
            cache = ITimingCache(b"")
            cache._content = {"unfit": 1.0}
            return cache

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:  # noqa: FBT001 - theirs
        if "unfit" in cache._content and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._cache

    def can_run_on_DLA(self, layer: ILayer) -> bool:  # noqa: N802 - their name
        return bool(layer._half)


class Builder(_Native):
    def __init__(self, logger: ILogger) -> None:
        assert logger._ready
        self._logger = logger

    num_DLA_cores = property(lambda self: int(_asked("dla")))  # noqa: N815 - their name

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        if _asked("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if _asked("no-memory"):
            self._logger.log(ILogger.ERROR, "Requested size was 1 GB: Cuda Runtime (out of memory)")
        if _asked("no-plan"):
            self._logger.log(ILogger.INFO, "a word that is no error")
            self._logger.log(ILogger.ERROR, "Could not find any implementation for node {conv}")
        if _asked("no-memory") or _asked("no-plan"):
            return None
        model = onnx.ModelProto()
        model.CopyFrom(network._model)
        del model.metadata_props[:]
        graph = f"{hash(model.graph.SerializeToString(deterministic=True))}"
        speed = config._cache._content.setdefault(graph, random.uniform(1.0, 1.5))  # noqa: S311 - no secret
        shapes = {name: shape for profile in config._profiles for name, shape in profile._shapes.items()}
        dynamic = [tensor for tensor in map(ITensor, network._inputs()) if -1 in tensor.shape]
        if any(tensor.name not in shapes for tensor in dynamic):
            self._logger.log(ILogger.ERROR, "Network has dynamic inputs, but no profile has been defined.")
            return None
        head = {
            "speed": speed,
            "detailed": config.profiling_verbosity is ProfilingVerbosity.DETAILED,
            "tf32": BuilderFlag.TF32 in config._flags,
            "limits": {pool.name: size for pool, size in config._limits.items()},
            "dla": config.default_device_type is DeviceType.DLA and BuilderFlag.GPU_FALLBACK in config._flags,
        }
        return IHostMemory(_MAGIC + json.dumps(head).encode() + b"\n" + model.SerializeToString())


class ICudaEngine(_Native):
    def __init__(self, head: dict[str, Any], model: onnx.ModelProto, logger: ILogger) -> None:
        self._head, self._model, self._logger = head, model, logger
        constants = {tensor.name for tensor in model.graph.initializer}
        inputs = [ITensor(value) for value in model.graph.input if value.name not in constants]
        self._inputs = {tensor.name: tensor for tensor in inputs}
        self._outputs = {tensor.name: tensor for tensor in map(ITensor, model.graph.output)}

    num_io_tensors = property(lambda self: len(self._inputs) + len(self._outputs))

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name.startswith("on_host_") else TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> DataType:
        return (self._inputs | self._outputs)[name].dtype

    def get_tensor_shape(self, name: str) -> Dims:
        return (self._inputs | self._outputs)[name].shape

    def create_execution_context(self) -> IExecutionContext | None:
        return None if _asked("no-context") else IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)


class IExecutionContext(_Native):
    _settable = ("profiler",)

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._addresses = engine, {}
        self._shapes = {name: tensor.shape for name, tensor in engine._inputs.items()}
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self._session = ort.InferenceSession(
            engine._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._work = _CALL(self._compute)  # kept alive: the queue holds its address
        self.profiler: IProfiler | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        own = self._engine._inputs[name].shape
        if len(own) != len(shape) or any(size not in {-1, given} for size, given in zip(own, shape)):
            return False
        self._shapes[name] = Dims(shape)
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        declared = self._shapes.get(name) or self._engine.get_tensor_shape(name)
        if -1 not in declared:
            return declared
        settled = onnx.ModelProto()
        settled.CopyFrom(self._engine._model)
        for value in (*settled.graph.input, *settled.graph.output):
            for at, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.Clear()
                if value.name in self._shapes:
                    dim.dim_value = self._shapes[value.name][at]
        del settled.graph.value_info[:]
        graph = onnx.shape_inference.infer_shapes(settled, data_prop=True).graph
        return next(ITensor(value).shape for value in graph.output if value.name == name)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        size = int(np.prod(self.get_tensor_shape(name))) or 1
        self._addresses[name] = _cuda().fakeReal(memory, size)
        return self._addresses[name] is not None

    def execute_async_v3(self, stream_handle: int) -> bool:
        if len(self._addresses) < self._engine.num_io_tensors or _asked("no-run"):
            self._engine._logger.log(ILogger.ERROR, "Neither address or allocator is set for a tensor")
            return False
        return _cuda().fakeEnqueue(stream_handle, self._work) == 0

    def _compute(self) -> None:
        start = time.perf_counter()
        feeds = {name: np.array(self._array(name)) for name in self._engine._inputs}
        for name, answer in zip(self._engine._outputs, self._session.run(list(self._engine._outputs), feeds)):
            self._array(name)[...] = answer
        took_ms = (time.perf_counter() - start) * 1e3
        if self.profiler is not None:  # layers alone take longer than an inference: here, 1.8 times
            for node in self._engine._model.graph.node:
                share = 1.8 * took_ms / len(self._engine._model.graph.node)
                self.profiler.report_layer_time(node.name or node.output[0], share)

    def _array(self, name: str) -> Any:
        kinds = {
            "FLOAT": "f4",
            "HALF": "f2",
            "INT8": "i1",
            "INT32": "i4",
            "BOOL": "?",
            "UINT8": "u1",
            "INT64": "i8",
        }
        dtype, shape = np.dtype(kinds[self._engine.get_tensor_dtype(name).name]), self.get_tensor_shape(name)
        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        raw = (ctypes.c_ubyte * size).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype=dtype, count=int(np.prod(shape))).reshape(shape)


class EngineInspector(_Native):
    _settable = ("execution_context",)

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self.execution_context: IExecutionContext | None = None

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002 - their name
        assert format is LayerInformationFormat.JSON
        nodes = self._engine._model.graph.node
        names = [node.name or node.output[0] for node in nodes]
        if not self._engine._head["detailed"]:
            return json.dumps({"Layers": names, "Bindings": []})
        layers = [
            {
                "Name": name,
                "LayerType": "CaskConvolution" if node.op_type == "Conv" else node.op_type,
                "Outputs": [{"Name": node.output[0], "Format/Datatype": "Row major linear FP32"}],
                "TacticName": "fake_kernel",
                "Metadata": f"[ONNX Layer: {name}]",
            }
            for name, node in zip(names, nodes)
        ]
        return json.dumps({"Layers": layers, "Bindings": []})


class Runtime(_Native):
    _settable = ("DLA_core",)

    def __init__(self, logger: ILogger) -> None:
        self._logger, self.DLA_core = logger, -1

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        content = bytes(serialized_engine)
        if not content.startswith(_MAGIC) or _asked("old-engine"):
            self._logger.log(ILogger.ERROR, "Version tag does not match. Current Version: 237")
            return None
        head, _, model = content.removeprefix(_MAGIC).partition(b"\n")
        return ICudaEngine(json.loads(head), onnx.ModelProto.FromString(model), self._logger)

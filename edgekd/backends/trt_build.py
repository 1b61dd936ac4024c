"""Build a TensorRT engine from an .onnx: strongly typed, so that the file alone says what is computed in what.

One path for TensorRT 10.3 to 11: precision comes from the graph (explicit Q/DQ for int8, casts for fp16), never from
a builder flag or a calibrator, which 11 has no more. `tests/backends/bindings/` holds every call here against the real
bindings of each version.
"""

from __future__ import annotations

import logging
import re
import resource
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt  # type: ignore[import-not-found, import-untyped, unused-ignore]

from edgekd.backends import settled
from edgekd.backends.trt_cuda import Gpu
from edgekd.errors import BuildError
from edgekd.values.model import Engine, TensorSpec

logger = logging.getLogger(__name__)

_STRONGLY_TYPED = 1 << int(
    trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
)  # 11 always is, and takes the flag
_LAST = 20  # messages kept
_MOST_CAUSE = 1000  # characters
_NO_MEMORY = re.compile(
    r"out ?of ?memory|insufficient memory|not enough memory|bad_alloc|alloc\w* failed", re.IGNORECASE
)
_DTYPES = {
    trt.DataType.FLOAT: "float32",
    trt.DataType.HALF: "float16",
    trt.DataType.INT8: "int8",
    trt.DataType.UINT8: "uint8",
    trt.DataType.INT32: "int32",
    trt.DataType.INT64: "int64",
    trt.DataType.BOOL: "bool",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a runtime's name says beside `tensorrt`."""

    dla: bool = False
    graph: bool = False  # run as one CUDA graph


class Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
    """The last warnings and errors of TensorRT, for an error's cause; it prints nothing."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._last: deque[str] = deque(maxlen=_LAST)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Keep a message; TensorRT calls it, from any of its threads."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
            self._last.append(str(msg).strip())

    @property
    def text(self) -> str:
        """What was said last, oldest first."""
        return "; ".join(self._last)[-_MOST_CAUSE:]


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine's plan, and what timing its candidates taught."""

    plan: bytes
    timings: bytes


def build(engine: Engine, settings: Settings, gpu: Gpu, timings: bytes) -> Built:
    """Build an engine's plan; `timings` are an earlier build's, or empty.

    Raises:
        BuildError: TensorRT refuses the model, its shapes or the DLA, or runs out of memory.

    """
    log = Log()
    builder: trt.Builder = trt.Builder(log)
    network: trt.INetworkDefinition = builder.create_network(_STRONGLY_TYPED)
    _parse(network, engine.model.file.path, log)
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the layer table; it costs no time
    config.clear_flag(trt.BuilderFlag.TF32)  # what is called fp32 keeps its 23 bits
    _limit_memory(config, gpu)
    _settle_shapes(builder, config, network, engine)
    if settings.dla:
        _use_dla(builder, config, network, engine)
    _attach_timings(config, timings)
    plan: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        raise failure(engine, log)
    cache: trt.ITimingCache = config.get_timing_cache()
    learned: trt.IHostMemory = cache.serialize()
    return Built(plan=bytes(plan), timings=bytes(learned))


def failure(engine: Engine, log: Log) -> BuildError:
    """Return the error that says why TensorRT gave nothing."""
    name, cause = engine.model.file.path.name, log.text
    if _NO_MEMORY.search(cause):
        mend = "free memory, raise memory_mib in the hardware profile, or use a smaller model"
        return BuildError(f"tensorrt has too little memory for {name}", cause=cause, mend=mend)
    return BuildError(f"tensorrt cannot compile {name}", cause=cause)


def dtype_of(name: str, kind: trt.DataType) -> str:
    """Return numpy's name of a tensor's type.

    Raises:
        BuildError: numpy has none.

    """
    if kind not in _DTYPES:
        raise BuildError(
            f"{name!r} is a {kind}", mend="export the model with inputs and outputs that numpy has"
        )
    return _DTYPES[kind]


def spec_of(name: str, kind: trt.DataType, shape: trt.Dims) -> TensorSpec:
    """Describe an input or output; TensorRT writes -1 for a dynamic dimension."""
    sizes = tuple(None if size < 0 else int(size) for size in shape)
    return TensorSpec(name=name, dtype=dtype_of(name, kind), shape=sizes)


def _parse(network: trt.INetworkDefinition, path: Path, log: Log) -> None:
    parser: trt.OnnxParser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        cause = "; ".join(_parse_errors(parser)) or log.text
        raise BuildError(f"tensorrt cannot read {path.name}", cause=cause[:_MOST_CAUSE])
    if network.num_outputs == 0:
        raise BuildError(f"tensorrt finds no graph in {path.name}", mend="export the model again")


def _parse_errors(parser: trt.OnnxParser) -> Iterator[str]:
    for at in range(parser.num_errors):
        error: trt.ParserError = parser.get_error(at)
        where = f" (node {error.node_name()!r}, a {error.node_operator()})" if error.node_operator() else ""
        yield f"{error.desc()}{where}"


def _inputs(network: trt.INetworkDefinition) -> Iterator[TensorSpec]:
    for at in range(network.num_inputs):
        tensor: trt.ITensor = network.get_input(at)
        if tensor.is_shape_tensor:
            raise BuildError(
                f"input {tensor.name!r} says how large another tensor is",
                mend="export the model with that size fixed",
            )
        yield spec_of(tensor.name, tensor.dtype, tensor.shape)


def _settle_shapes(
    builder: trt.Builder, config: trt.IBuilderConfig, network: trt.INetworkDefinition, engine: Engine
) -> None:
    """Give dynamic dimensions an optimisation profile, of the one shape that is measured and shipped."""
    inputs = tuple(_inputs(network))
    shapes = {spec.name: spec.shape for spec in settled(inputs, engine.shapes or {})}
    dynamic = [spec.name for spec in inputs if None in spec.shape]
    if not dynamic:
        return
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    for name in (
        dynamic
    ):  # least, most likely and largest: what is optimised for a range is slower in each of its points
        profile.set_shape(name, shapes[name], shapes[name], shapes[name])
    if config.add_optimization_profile(profile) < 0:
        given = ", ".join(f"{name} {shapes[name]}" for name in dynamic)
        raise BuildError(f"tensorrt refuses the shapes {given}", mend="give other ones with --shape")


def _limit_memory(config: trt.IBuilderConfig, gpu: Gpu) -> None:
    """Keep a build within what the hardware profile allows this process: half of it for one layer's scratch."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return
    total = gpu.memory_mib << 20
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, min(limit // 2, total))
    if gpu.integrated:  # there, trying out candidates takes the machine's own memory
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, min(limit, total * 3 // 4))


def _use_dla(
    builder: trt.Builder, config: trt.IBuilderConfig, network: trt.INetworkDefinition, engine: Engine
) -> None:
    """Put on the DLA what can run there; the GPU takes the rest, and that is said."""
    if builder.num_DLA_cores < 1:
        cause = "TensorRT finds no DLA core: not every Jetson has one, and not every TensorRT drives it"
        raise BuildError(f"{engine.name} needs a DLA", cause=cause, mend="use the runtime tensorrt")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = 0
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    left = tuple(_not_on_dla(config, network))
    if len(left) == network.num_layers:
        cause = f"it can run none of the {len(left)} layers"
        mend = "a DLA computes in fp16 and int8: cast or quantise the model first"
        raise BuildError(f"{engine.name} would leave the DLA idle", cause=cause, mend=mend)
    if left:
        logger.warning("%d of %d layers fall back to the GPU: %s", len(left), network.num_layers, left[:8])


def _not_on_dla(config: trt.IBuilderConfig, network: trt.INetworkDefinition) -> Iterator[str]:
    for at in range(network.num_layers):
        layer: trt.ILayer = network.get_layer(at)
        if not config.can_run_on_DLA(layer):
            yield str(layer.name)


def _attach_timings(config: trt.IBuilderConfig, timings: bytes) -> None:
    """Let a build profit from an earlier one; where TensorRT refuses what was learned, it learns anew."""
    cache: trt.ITimingCache = config.create_timing_cache(timings)
    if config.set_timing_cache(cache, False):
        return
    empty: trt.ITimingCache = config.create_timing_cache(b"")
    if not config.set_timing_cache(empty, False):
        raise BuildError("tensorrt takes no timing cache", cause="not even an empty one")

"""TensorRT: engines that were built on this device, by `edgekd` when it measured or here; none comes with a bundle."""

import contextlib
import ctypes
import hashlib
import hmac
import json
import math
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal

_DRIVER = "libcuda.so.1"  # the GPU driver's own library: wherever a GPU works
_SEALED = b"edgekd-sealed-1\n"
_BYTES = 32  # of a key, and of a seal

Tensors = Mapping[str, NDArray[Any]]  # by the name of an input or output
Infer = Callable[[Tensors], Tensors]
Shapes = Mapping[str, tuple[int, ...]]


def gpu_driver() -> ctypes.CDLL:
    """Load the GPU driver's library.

    Raises:
        OSError: there is none.

    """
    return ctypes.CDLL(_DRIVER)


def load_tensorrt(  # noqa: C901 - each branch is a refusal
    trt: Any, deployment: Mapping[str, Any], content: list[bytes]
) -> tuple[Infer, Shapes]:
    """Open the engine of a model (content[0]) on this device; return what runs it, and its inputs' shapes."""
    cuda, log = _Cuda(), _log(trt)
    reader = trt.Runtime(log)
    if deployment["runtime"] == "tensorrt-dla":
        reader.DLA_core = 0
    for plan in _plans(trt, log, cuda.facts, deployment, content[0]):
        engine = reader.deserialize_cuda_engine(plan)
        if engine is not None:
            break
    else:
        raise RuntimeError(log.last)
    context = engine.create_execution_context()
    if context is None:
        raise RuntimeError(log.last or "TensorRT has no memory for it")
    cuda.held += [log, reader, engine]
    kinds: dict[Any, type[np.generic]] = {trt.DataType.FLOAT: np.float32, trt.DataType.INT64: np.int64}
    taken: dict[str, _Buffer] = {}
    given: dict[str, _Buffer] = {}
    for at in range(engine.num_io_tensors):
        name = engine.get_tensor_name(at)
        size, kind = tuple(engine.get_tensor_shape(name)), kinds.get(engine.get_tensor_dtype(name))
        if kind is None or min(size, default=1) < 1:
            raise RuntimeError(f"{name!r} is not of float32 or int64 and of a fixed shape")
        buffer = cuda.buffer(size, kind)
        context.set_tensor_address(name, buffer.device)
        (taken if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else given)[name] = buffer

    def compute() -> None:
        if not context.execute_async_v3(cuda.stream):
            raise RuntimeError(log.last or "TensorRT cannot run the engine")

    start = cuda.as_graph(compute) if deployment["runtime"] == "tensorrt-graph" else compute

    def infer(tensors: Tensors) -> Tensors:
        for name, buffer in taken.items():
            if tensors[name].shape != buffer.array.shape:
                raise Refusal(f"the model takes {buffer.array.shape}, not {tensors[name].shape}", 6)
            np.copyto(buffer.array, tensors[name])
            cuda("cuMemcpyHtoDAsync_v2", buffer.device, buffer.host, buffer.array.nbytes, cuda.stream)
        start()
        for buffer in given.values():
            cuda("cuMemcpyDtoHAsync_v2", buffer.host, buffer.device, buffer.array.nbytes, cuda.stream)
        cuda("cuStreamSynchronize", cuda.stream)
        return {name: np.array(buffer.array) for name, buffer in given.items()}

    return infer, {name: buffer.array.shape for name, buffer in taken.items()}


def _plans(
    trt: Any, log: Any, facts: tuple[Any, ...], deployment: Mapping[str, Any], model: bytes
) -> Iterator[bytes]:
    """Yield the engine that is kept on this device, and where that is refused or there is none, a new one."""
    dla, store = deployment["runtime"] == "tensorrt-dla", _store()
    # Named by all that went into it, as `edgekd` does on this device, so that the build that was measured is run.
    device = _digest([1, str(trt.__version__), *facts])
    asked = [hashlib.sha256(model).hexdigest(), deployment["precision"], [], dla]
    name = f"plan-{_digest([device, asked])}"
    if kept := _read_sealed(store, name):
        yield kept
    plan = _built(trt, log, model, dla=dla)
    _write(store / name, _SEALED + _seal(store, name, plan) + plan, os.replace)
    yield plan


def _log(trt: Any) -> Any:
    """Make TensorRT's log of one line: its last error."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last = str(msg)

    return Log()


def _built(trt: Any, log: Any, model: bytes, *, dla: bool) -> bytes:
    """Build an engine as `edgekd` does: the graph says what is computed in what, and fp32 keeps its 23 bits."""
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise RuntimeError(log.last or "TensorRT cannot read it")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if dla:
        if builder.num_DLA_cores < 1:
            raise RuntimeError("TensorRT finds no DLA core")
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = 0
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(log.last or "TensorRT cannot compile it")
    return bytes(plan)


class _Buffer(NamedTuple):
    """Memory that the GPU reads without a detour, its address, and that of its twin on the GPU."""

    array: NDArray[Any]
    host: int
    device: int


class _Cuda:
    """The first GPU: a stream, and memory that is held until this process ends."""

    def __init__(self) -> None:
        self._library = gpu_driver()
        self("cuInit", 0)
        device, name = self.made("cuDeviceGet", 0), ctypes.create_string_buffer(256)
        self("cuDevicePrimaryCtxSetFlags_v2", device, 1)  # spin: as when it was measured
        self("cuCtxSetCurrent", self.made("cuDevicePrimaryCtxRetain", device))
        self("cuDeviceGetName", name, 256, device)
        major, minor = (self.made("cuDeviceGetAttribute", which, device) for which in (75, 76))
        driver, memory = self.made("cuDriverGetVersion"), self.made("cuDeviceTotalMem_v2", device)
        # What an engine depends on beside its model and TensorRT's version.
        self.facts = (name.value.decode(errors="replace"), f"{major}.{minor}", driver, memory >> 20)
        self.stream = self.made("cuStreamCreate", 1)
        self.held: list[Any] = []  # what must live as long as what runs on it

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call the driver; 64 bits are right for an address, a handle and a number alike, each in its register."""
        given = [ctypes.c_uint64(one) if isinstance(one, int) else one for one in arguments]
        if code := getattr(self._library, name)(*given):
            raise RuntimeError(f"CUDA's {name} failed with {code}")

    def made(self, name: str, *arguments: Any) -> int:
        """Call what fills in its first argument, and return that."""
        found = ctypes.c_uint64()
        self(name, ctypes.byref(found), *arguments)
        return found.value

    def buffer(self, shape: tuple[int, ...], kind: type[np.generic]) -> _Buffer:
        """Take memory for one input or output."""
        size = np.dtype(kind).itemsize * math.prod(shape)
        host, device = self.made("cuMemHostAlloc", size, 0), self.made("cuMemAlloc_v2", size)
        raw = memoryview((ctypes.c_ubyte * size).from_address(host))
        return _Buffer(array=np.frombuffer(raw, kind).reshape(shape), host=host, device=device)

    def as_graph(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Return what launches all that `compute` queues as one CUDA graph."""
        compute()  # TensorRT finishes its preparations in the first run
        self("cuStreamSynchronize", self.stream)
        self("cuStreamBeginCapture_v2", self.stream, 1)
        graph = ctypes.c_uint64()
        try:
            compute()
        finally:
            self("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        launched = self.made("cuGraphInstantiateWithFlags", graph, 0)
        return lambda: self("cuGraphLaunch", launched, self.stream)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _store() -> Path:
    """Return the folder of engines: yours alone, since an engine is native code."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    own = (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "edgekd"  # noqa: PTH117
    folder = Path(os.environ.get("EDGEKD_CACHE") or own) / "tensorrt"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise Refusal(f"{folder} is not a folder of yours: remove it, or set EDGEKD_CACHE to one that is", 6)
    folder.chmod(0o700)
    return folder


def _seal(folder: Path, name: str, content: bytes) -> bytes:
    """Return what only this folder's own secret key makes: nothing else is ever loaded as an engine."""
    path = folder / "key"
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            _write(path, secrets.token_bytes(_BYTES), os.link)  # fails where another process was faster
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123 - flags
        found, key = os.fstat(file.fileno()), file.read(_BYTES + 1)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or len(key) != _BYTES:
        raise Refusal(f"{path} is not a key that only you can read: remove {folder}", 6)
    return hmac.digest(key, name.encode() + b"\0" + content, "sha256")


def _read_sealed(folder: Path, name: str) -> bytes | None:
    try:
        sealed = (folder / name).read_bytes()
    except OSError:
        return None
    at = len(_SEALED) + _BYTES
    held = hmac.compare_digest(sealed[:at], _SEALED + _seal(folder, name, sealed[at:]))
    return sealed[at:] if held else None


def _write(path: Path, content: bytes, place: Callable[[str, Path], None]) -> None:
    handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)  # readable by its owner only
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        place(name, path)
    finally:
        Path(name).unlink(missing_ok=True)

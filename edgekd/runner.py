"""Runs a bundle: checks every file, prepares an image exactly as in the evaluation, and classifies it.

This one file is copied into every bundle as `run.py`. It needs the standard library, numpy and one of the
bundle's runtimes, Pillow for image files, and nothing of edgekd.

    python run.py --image some.png [--runtime onnxruntime] [--json] [--top 3] [--benchmark 200] [--strict]

Runtimes: onnxruntime, openvino, and tensorrt (-graph, -dla), whose engine is built here from the bundle's .onnx.

Exit codes: 0 done, 2 usage, 4 no runtime or (with --strict) another machine, 6 a file is not what it must be.
"""

# No `from __future__ import annotations` here: even that is a file somebody could lay beside this one.
import os
import sys

if (
    __name__ == "__main__"
):  # a stray numpy.py or json.py beside this file must not be imported for the real one
    _here = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib is not imported yet, on purpose
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != _here]

import argparse
import contextlib
import ctypes
import hashlib
import hmac
import importlib
import importlib.metadata
import io
import json
import math
import platform
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_MANIFEST_LIMIT_BYTES = 16 << 20
_IMAGE_LIMIT_BYTES = 64 << 20
_IMAGE_LIMIT_PIXELS = 50_000_000
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # none that starts another program
_DRIVER = "libcuda.so.1"  # the GPU driver's own library: wherever a GPU works
_SEALED = b"edgekd-sealed-1\n"
_BYTES = 32  # of a key, and of a seal

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Refusal(Exception):  # noqa: N818 - the act, not a fault of this program
    """Why nothing was run: one line, and the exit code it ends with."""

    def __init__(self, what: str, exit_code: int) -> None:
        super().__init__(what)
        self.exit_code = exit_code


def preprocess(images: NDArray[np.uint8], spec: Mapping[str, Any] | object) -> NDArray[np.float32]:
    """Turn images into the model's input: resize, scale to [0, 1], normalise, channels first.

    Args:
        images: (N, H, W, C), C = 1 for grey and 3 for RGB.
        spec: what `preprocess.json` holds, or an object with the same attributes.

    Returns:
        (N, C, height, width).

    Raises:
        ValueError: the images are not of that type, shape or number of channels.

    """
    recipe = spec if isinstance(spec, Mapping) else vars(spec)
    mean, std = (np.asarray(recipe[name], np.float64) for name in ("mean", "std"))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != len(mean):  # noqa: PLR2004 - (N, H, W, C)
        raise ValueError(
            f"images must be uint8 of shape (N, H, W, {len(mean)}), not {images.dtype} {images.shape}"
        )
    images = _resized(images, int(recipe["height"]), int(recipe["width"]), str(recipe["resize"]))
    scale = (1 / (255 * std)).astype(np.float32)[:, None, None]
    shift = (-mean / std).astype(np.float32)[:, None, None]
    tensors = np.empty((len(images), len(mean), *images.shape[1:3]), np.float32)
    np.multiply(images.transpose(0, 3, 1, 2), scale, out=tensors)
    tensors += shift
    return tensors


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of every class, (N, classes), from logits of that shape."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def load_image(path: Path, channels: int) -> NDArray[np.uint8]:
    """Read an image file as (1, H, W, channels); 1 channel is grey, 3 are RGB, transparency is dropped.

    Raises:
        Refusal: Pillow is missing, or the file is no image, is damaged, or is too large to decode safely.

    """
    try:
        from PIL import Image
    except ImportError:
        raise Refusal("reading an image file needs Pillow: pip install pillow", 2) from None
    try:
        if path.stat().st_size > _IMAGE_LIMIT_BYTES:
            raise Refusal(f"{path} is larger than {_IMAGE_LIMIT_BYTES >> 20} MiB", 2)
        with Image.open(path, formats=_IMAGE_FORMATS) as image:  # reads the header only
            if image.width * image.height > _IMAGE_LIMIT_PIXELS:
                raise Refusal(f"{path} has {image.width} x {image.height} pixels: too many", 2)
            if image.mode.startswith("I;16"):  # 16 bits of grey; convert() would clip them
                deep = np.asarray(image).astype(np.uint16) >> 8
                image = Image.fromarray(deep.astype(np.uint8))  # noqa: PLW2901 - the same picture, 8 bits
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refusal(f"cannot read the image {path}: {_one_line(error)}", 2) from None
    return pixels.reshape(1, *pixels.shape[:2], channels)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a bundle's manifest, refusing names that lead out of the folder.

    Raises:
        Refusal: it is missing, malformed, of another schema, or names an unsafe path.

    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise Refusal(f"{folder} is not a bundle: it has no {MANIFEST}", 6)
    if path.stat().st_size > _MANIFEST_LIMIT_BYTES:
        raise Refusal(f"{path} is larger than {_MANIFEST_LIMIT_BYTES >> 20} MiB", 6)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, names = manifest["schema_version"], dict(manifest["files"])
        used = [name for deployment in manifest["deployments"] for name in deployment["files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refusal(f"{path} is malformed: {_one_line(error)}", 6) from None
    if version != SCHEMA_VERSION:
        raise Refusal(f"{path} has schema version {version!r}; this runner knows {SCHEMA_VERSION}", 6)
    for name in names:
        _check_name(name)
    if len({name.casefold() for name in names}) != len(names):
        raise Refusal(f"{path} names files that differ in case alone", 6)
    if missing := [name for name in used if name not in names]:
        raise Refusal(f"{path} gives no digest for {str(missing[0])!r}, which a deployment loads", 6)
    return dict(manifest)


def read_verified(folder: Path, name: str, sha256: str) -> bytes:
    """Return the bytes of one file of a bundle; what was hashed is what is returned.

    Raises:
        Refusal: it is missing, is a link, or its digest is not the manifest's.

    """
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise Refusal(f"{name} is a symbolic link: a bundle holds plain files only", 6)
    if not path.is_file():
        raise Refusal(f"{name} is missing from the bundle {folder}", 6)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Refusal(f"{name} is not the file that was bundled: its sha256 differs from the manifest's", 6)
    return content


class Student:
    """A bundle, checked and ready to classify."""

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
            self.preprocess = json.loads(files["preprocess.json"])
            self.channels = len(self.preprocess["mean"])
            self.deployment, module = _choose(self.manifest["deployments"], runtime, self.notes)
            self.notes += _differences(self.deployment)
            content = [files[name] for name in self.deployment["files"]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Refusal(f"{MANIFEST} or preprocess.json is malformed: {_one_line(error)}", 6) from None
        self._infer = _loaded(module, self.deployment, content)

    @property
    def name(self) -> str:
        """`openvino/int8`."""
        return f"{self.deployment['runtime']}/{self.deployment['precision']}"

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run images (N, H, W, C) one at a time; return (N, classes)."""
        tensors = preprocess(images, self.preprocess)
        rows = [self._infer(tensors[at : at + 1]).reshape(-1) for at in range(len(tensors))]
        return np.stack(rows) if rows else np.empty((0, len(self.classes)), np.float32)

    def classify(self, images: NDArray[np.uint8]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Return the label of each image (N, H, W, C), and the probability of every class (N, classes)."""
        logits = self.logits(images).astype(np.float64)
        if logits.shape[1] != len(self.classes):
            raise Refusal(f"the model gives {logits.shape[1]} outputs for {len(self.classes)} classes", 6)
        probabilities = softmax(logits)
        return tuple(self.classes[at] for at in probabilities.argmax(axis=1)), probabilities

    def benchmark(self, images: NDArray[np.uint8], count: int) -> dict[str, float]:
        """Time `count` inferences of the first image; percentiles in ms, pre-processing left out."""
        tensor = preprocess(images[:1], self.preprocess)
        for _ in range(max(10, count // 10)):
            self._infer(tensor)
        samples_ms = []
        for _ in range(count):
            start_ns = time.perf_counter_ns()
            self._infer(tensor)
            samples_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
        samples_ms.sort()
        return {f"p{rank}": samples_ms[math.ceil(rank / 100 * count) - 1] for rank in (50, 90, 95, 99)}


def _resized(images: NDArray[np.uint8], height: int, width: int, method: str) -> NDArray[np.uint8]:
    if images.shape[1:3] == (height, width):
        return images
    if method != "bilinear":
        raise ValueError(f"no resize method {method!r}; known: bilinear")
    from PIL import Image

    out = np.empty((len(images), height, width, images.shape[3]), np.uint8)
    grey = images.shape[3] == 1
    for at, pixels in enumerate(images):
        image = Image.fromarray(pixels[..., 0] if grey else pixels)
        out[at] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(out.shape[1:])
    return out


def _check_name(name: object) -> None:
    parts = name.split("/") if isinstance(name, str) else []
    plain = isinstance(name, str) and name.isprintable() and "\\" not in name and ":" not in name
    if not (plain and all(part and part not in {".", ".."} for part in parts)):
        raise Refusal(f"{MANIFEST} names the file {name!r}, which may lead out of the bundle", 6)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _choose(deployments: list[Any], runtime: str | None, notes: list[str]) -> tuple[dict[str, Any], Any]:
    known = [str(deployment["runtime"]) for deployment in deployments]
    if runtime is not None and runtime not in known:
        raise Refusal(f"the bundle has nothing for {runtime}; it has: {', '.join(dict.fromkeys(known))}", 2)
    wanted = [one for one in deployments if runtime in (None, one["runtime"])]
    problems: dict[str, str] = {}
    for deployment in wanted:
        name = str(deployment["runtime"])
        found = problems.get(name) or _imported(name)
        if not isinstance(found, str):
            if problems:
                accepted, why = (
                    f"{wanted[0]['runtime']}/{wanted[0]['precision']}",
                    next(iter(problems.values())),
                )
                notes.append(f"{accepted} was accepted, but {why}: running {name}/{deployment['precision']}")
            return deployment, found
        problems[name] = found
    lacking = dict.fromkeys(_module_of(name) for name in problems if name in _LOADERS)
    mend = f"; pip install one of {', '.join(lacking)}" if lacking else ""
    jetson = " (on a Jetson: sudo apt install python3-libnvinfer)" if "tensorrt" in lacking else ""
    raise Refusal(f"no runtime of this bundle works here: {'; '.join(problems.values())}{mend}{jetson}", 4)


def _imported(runtime: str) -> Any:
    """Return the runtime's module, or say why there is none."""
    if runtime not in _LOADERS:  # the manifest chooses from this table and imports nothing else
        return f"{runtime} is none that this runner opens ({', '.join(_LOADERS)})"
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report to its maker
    name = _module_of(runtime)
    try:
        if name == "tensorrt":
            ctypes.CDLL(_DRIVER)
        return importlib.import_module(name)
    except ImportError:
        return f"{name} is not installed"
    except OSError as error:  # a library that it needs
        return f"{name} does not load here ({_one_line(error)})"


def _module_of(runtime: str) -> str:
    return runtime.partition("-")[0]  # tensorrt-graph and tensorrt-dla are ways to run tensorrt


def _differences(deployment: Mapping[str, Any]) -> list[str]:
    """Say how this machine differs from the one the latency was measured on."""
    conditions = deployment["latency"]["conditions"]
    measured, runtime = conditions["hardware"], deployment["runtime"]
    found = []
    processor, features = _processor()
    if measured["machine"] != platform.machine():
        found.append(f"{measured['machine']}, not {platform.machine()}")
    elif processor and measured["processor"] != processor:
        found.append(f"{measured['processor']}, not {processor}")
    if features and (lacking := [name for name in measured["features"] if name not in features]):
        found.append(f"it had {', '.join(lacking)}")
    then, now = conditions["software"]["runtimes"].get(runtime), _version(runtime)
    if then is not None and then != now:
        found.append(f"{runtime} {then}, not {now}")
    return [f"its latency was measured on another machine ({'; '.join(found)})"] if found else []


def _processor() -> tuple[str, set[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor(), set()
    table: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        table.setdefault(key.strip(), value.strip())
    features = table.get("flags") or table.get("Features") or ""
    return table.get("model name") or table.get("Model") or "", set(features.split())


def _version(runtime: str) -> str:
    name = _module_of(runtime)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(name), "__version__", ""))


def _loaded(module: Any, deployment: Mapping[str, Any], content: list[bytes]) -> Infer:
    runtime = str(deployment["runtime"])
    try:
        return _LOADERS[runtime](module, deployment, content)
    except Refusal:
        raise
    except Exception as error:  # noqa: BLE001 - runtimes raise types of their own; the reader gets one line
        raise Refusal(f"{runtime} cannot load {deployment['files'][0]}: {_one_line(error)}", 4) from None


def _load_onnxruntime(module: Any, deployment: Mapping[str, Any], content: list[bytes]) -> Infer:
    options = module.SessionOptions()
    options.intra_op_num_threads = int(deployment["threads"])
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as when it was measured
    session = module.InferenceSession(content[0], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def infer(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(session.run(None, {name: tensor})[0], np.float32)

    return infer


def _load_openvino(module: Any, deployment: Mapping[str, Any], content: list[bytes]) -> Infer:
    core = module.Core()
    weights = {"weights": content[1]} if len(content) > 1 else {}
    model = core.read_model(model=io.BytesIO(content[0]) if not weights else content[0], **weights)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(deployment["threads"]),
        # int8 lies in the model's FakeQuantize; what is left of it runs in fp32, never in a silent bf16
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp16": "f16"}.get(str(deployment["precision"]), "f32"),
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def infer(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        request.infer({0: tensor})
        return np.array(request.get_output_tensor(0).data, np.float32)

    return infer


def _load_tensorrt(  # noqa: C901 - each branch is a refusal
    trt: Any, deployment: Mapping[str, Any], content: list[bytes]
) -> Infer:
    """Run the engine that was built on this device, by `edgekd` when it measured or here; none comes with a bundle."""
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
    buffers: dict[bool, list[_Buffer]] = {True: [], False: []}
    for at in range(engine.num_io_tensors):
        name = engine.get_tensor_name(at)
        size = tuple(engine.get_tensor_shape(name))
        if engine.get_tensor_dtype(name) != trt.DataType.FLOAT or min(size) < 1:
            raise RuntimeError(f"{name!r} is not of float32 and of a fixed shape")
        buffer = cuda.buffer(size)
        context.set_tensor_address(name, buffer.device)
        buffers[engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(buffer)
    (taken,), given = buffers[True], buffers[False][0]

    def compute() -> None:
        if not context.execute_async_v3(cuda.stream):
            raise RuntimeError(log.last or "TensorRT cannot run the engine")

    start = cuda.as_graph(compute) if deployment["runtime"] == "tensorrt-graph" else compute

    def infer(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        if tensor.shape != taken.array.shape:
            raise Refusal(f"the model takes {taken.array.shape}, not {tensor.shape}", 6)
        np.copyto(taken.array, tensor)
        cuda("cuMemcpyHtoDAsync_v2", taken.device, taken.host, tensor.nbytes, cuda.stream)
        start()
        cuda("cuMemcpyDtoHAsync_v2", given.host, given.device, given.array.nbytes, cuda.stream)
        cuda("cuStreamSynchronize", cuda.stream)
        return np.array(given.array)

    return infer


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
    """Float32 memory that the GPU reads without a detour, its address, and that of its twin on the GPU."""

    array: NDArray[np.float32]
    host: int
    device: int


class _Cuda:
    """The first GPU: a stream, and memory that is held until this process ends."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_DRIVER)
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

    def buffer(self, shape: tuple[int, ...]) -> _Buffer:
        """Take memory for one input or output."""
        size = 4 * math.prod(shape)
        host, device = self.made("cuMemHostAlloc", size, 0), self.made("cuMemAlloc_v2", size)
        raw = memoryview((ctypes.c_ubyte * size).from_address(host))
        return _Buffer(array=np.frombuffer(raw, np.float32).reshape(shape), host=host, device=device)

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


_LOADERS: dict[str, Callable[[Any, Mapping[str, Any], list[bytes]], Infer]] = {
    "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
    "tensorrt": _load_tensorrt,
    "tensorrt-graph": _load_tensorrt,
    "tensorrt-dla": _load_tensorrt,
}


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Classify an image with the bundle beside this file."
    )
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="PNG, JPEG, BMP, ...")
    parser.add_argument("--runtime", choices=sorted(_LOADERS), help="instead of the accepted deployment's")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="print the K likeliest classes")
    parser.add_argument("--benchmark", type=int, default=0, metavar="N", help="also time N inferences here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--strict", action="store_true", help="refuse a machine other than the measured one")
    parser.add_argument(
        "--bundle", type=Path, default=Path(__file__).resolve().parent, help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    if options.top < 1 or options.benchmark < 0:
        parser.error("--top must be at least 1 and --benchmark at least 0")
    return options


def _run(options: argparse.Namespace) -> dict[str, Any]:
    student = Student(options.bundle, options.runtime)
    for note in student.notes:
        print(f"warning: {_printable(note)}", file=sys.stderr)
    if options.strict and student.notes:
        raise Refusal(f"--strict: {student.notes[-1]}", 4)
    image = load_image(options.image, student.channels)
    _, probabilities = student.classify(image)
    likeliest = np.argsort(-probabilities[0], kind="stable")[: options.top]
    top = [{"label": student.classes[at], "probability": float(probabilities[0, at])} for at in likeliest]
    answer = {"schema_version": 1, **top[0], "top": top, "deployment": student.name, "notes": student.notes}
    if options.benchmark:
        answer["benchmark_ms"] = student.benchmark(image, options.benchmark)
        answer["measured_ms"] = {rank: student.deployment["latency"][rank] for rank in answer["benchmark_ms"]}
    return answer


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _show(answer: Mapping[str, Any]) -> None:
    for one in answer["top"]:
        print(f"{_printable(one['label'])}\t{one['probability']:.4f}")
    for name in ("benchmark_ms", "measured_ms"):
        if name in answer:
            ranks = ", ".join(f"{rank} {value:.3f} ms" for rank, value in answer[name].items())
            print(f"{'here' if name == 'benchmark_ms' else 'when bundled'}: {ranks}")


def main(arguments: list[str] | None = None) -> int:
    """Classify the image the command line names, and return the exit code."""
    options = _arguments(arguments)
    try:
        answer = _run(options)
    except Refusal as refusal:
        print(f"run.py: {_printable(str(refusal))}", file=sys.stderr)
        return refusal.exit_code
    if options.json:
        print(json.dumps(answer))
    else:
        _show(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())

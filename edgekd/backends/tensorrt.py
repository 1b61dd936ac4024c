"""TensorRT on an NVIDIA GPU: fp32, fp16 where the graph was cast to it, int8 from explicit Q/DQ.

Three runtimes, since their latencies are three: `tensorrt`; `tensorrt-graph`, which launches an engine as one CUDA
graph; `tensorrt-dla`, which puts what it can on a Jetson's DLA and the rest on the GPU.

An engine is native code, good for one GPU, one driver and one TensorRT. It is built here, from the .onnx, in the
worker's own process, and kept in a sealed store on the device (`trt_store`); no engine comes from anywhere else.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgekd.backends import check_precision, draws
from edgekd.backends.trt_cuda import Cuda, Gpu
from edgekd.backends.trt_layers import layers_of
from edgekd.backends.trt_store import Store, private_store
from edgekd.errors import BackendMissing, BuildError
from edgekd.timing.sampling import varied_inputs
from edgekd.values.artifact import Artifact
from edgekd.values.layer import Layer
from edgekd.values.model import Engine, Model, Precision

if TYPE_CHECKING:
    from edgekd.backends.trt_build import Settings
    from edgekd.backends.trt_session import TrtSession

VERSION = 1  # of how engines are built: another one builds anew
_INSTALL = (
    "on a Jetson: `sudo apt install python3-libnvinfer` (JetPack's own, for the system's python3); elsewhere: "
    "`pip install tensorrt`"
)
_OLDEST = (10, 3)  # JetPack 6's; the first with all that is called here


def version() -> str:
    """Return TensorRT's version.

    Raises:
        BackendMissing: its Python module is not installed, or too old.

    """
    return str(_vendor().__version__)


def precisions() -> tuple[Precision, ...]:
    """Return what TensorRT computes in, where the model's graph says so."""
    return (Precision.FP32, Precision.FP16, Precision.INT8)


@contextmanager
def open(engine: Engine) -> Iterator[TrtSession]:  # noqa: A001 - the name every backend offers
    """Build an engine, or find it as it was built here before, and get it ready to run.

    Raises:
        BackendMissing: TensorRT or the GPU's driver is not installed here.
        BuildError: TensorRT refuses the model or the precision, or there is too little memory.

    """
    check(engine)
    _vendor()
    with ExitStack() as taken:
        cuda = Cuda()
        taken.callback(cuda.close)
        try:
            session = _opened(engine, cuda, taken)
        except (TypeError, RuntimeError, ValueError) as error:  # how the bindings raise what C++ threw
            cause = f"{type(error).__name__}: {error}"[:1000]
            raise BuildError(f"tensorrt cannot compile {engine.model.file.path.name}", cause=cause) from error
        yield session


def compile(engine: Engine, folder: Path) -> Model:  # noqa: A001 - the name every backend offers
    """Build the engine into this device's store, and give the .onnx itself: no engine leaves its device.

    Opened here, the result is ready at once; opened elsewhere, it is built there.

    Raises:
        BackendMissing: TensorRT or the GPU's driver is not installed here.
        BuildError: TensorRT refuses the model or the precision, or there is too little memory.

    """
    with open(engine):
        pass
    path = folder / "model.onnx"
    shutil.copyfile(engine.model.file.path, path)
    return Model(file=Artifact.of(path), precision=engine.model.precision)


def layers(engine: Engine, passes: int) -> tuple[Layer, ...]:
    """Return what TensorRT made of a model, layer by layer, each timed in so many passes; in none with 0.

    The sum of layer times is never a latency.

    Raises:
        BackendMissing: TensorRT or the GPU's driver is not installed here.
        BuildError: TensorRT refuses the model or the precision.

    """
    with open(engine) as session:
        times_ms = (
            session.time_layers(varied_inputs(session.signature, seed=0, count=1)[0], passes)
            if passes
            else None
        )
        return layers_of(session.layers_json(), times_ms)


def fingerprint(gpu: Gpu) -> str:
    """Name all that an engine depends on beside its model; another driver or TensorRT is another name."""
    facts = [VERSION, version(), gpu.name, gpu.capability, gpu.driver, gpu.memory_mib]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _opened(engine: Engine, cuda: Cuda, taken: ExitStack) -> TrtSession:
    """Open the plan that is kept, or else a new one."""
    from edgekd.backends.trt_session import run_plan

    settings, store = settings_of(engine), private_store()
    name = _plan_name(engine, cuda.gpu)
    kept = store.read(name)
    if kept is not None:
        try:
            return taken.enter_context(run_plan(kept, engine, settings, cuda))
        except BuildError:  # its seal holds and yet it is refused: a library was replaced, or memory is short
            store.drop(name)
    plan = _built(engine, cuda.gpu, store, name)
    return taken.enter_context(run_plan(plan, engine, settings, cuda))


def _built(engine: Engine, gpu: Gpu, store: Store, name: str) -> bytes:
    """Build a plan and keep it, and keep what the build learned."""
    from edgekd.backends.trt_build import build

    learned = _timings_name(engine, gpu)
    built = build(engine, settings_of(engine), gpu, store.read(learned) or b"")
    store.write(name, built.plan)
    store.write(learned, built.timings)
    return built.plan


def settings_of(engine: Engine) -> Settings:
    """Return what the name of an engine's runtime asks for."""
    from edgekd.backends.trt_build import Settings

    return Settings(dla=engine.runtime == "tensorrt-dla", graph=engine.runtime == "tensorrt-graph")


def _plan_name(engine: Engine, gpu: Gpu) -> str:
    """Name a plan by all that went into it."""
    shapes = sorted((engine.shapes or {}).items())
    asked = [engine.model.file.sha256, engine.precision.value, shapes, engine.runtime == "tensorrt-dla"]
    return f"plan-{hashlib.sha256(json.dumps([fingerprint(gpu), asked]).encode()).hexdigest()}"


def _timings_name(engine: Engine, gpu: Gpu) -> str:
    """Name what builds have learned: all of them together, but each draw by itself, or it would be none."""
    draw = draws.draw_of(engine.model.file.path)
    return f"timings-{fingerprint(gpu)}" + (f"-{engine.model.file.sha256}" if draw else "")


def check(engine: Engine) -> None:
    """Refuse an engine whose label would not be what its graph says.

    Raises:
        BuildError: the file is no .onnx, or was made for another precision.

    """
    check_precision(engine, precisions())
    path, made_for = engine.model.file.path, engine.model.precision
    if path.suffix != ".onnx":
        raise BuildError(f"tensorrt cannot read {path.name}", mend="give it an .onnx file")
    if engine.precision is not made_for:
        raise BuildError(
            f"{engine.name} cannot be made of {path.name}",
            cause=f"TensorRT computes in what the graph says, and this one is {made_for.value}",
            mend=f"cast the graph to {engine.precision.value} first, or ask for {made_for.value}",
        )


def _vendor() -> ModuleType:
    try:
        import tensorrt  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except (ImportError, OSError) as error:  # OSError: the module is there, a library it needs is not
        raise BackendMissing(
            "TensorRT's Python module does not import", cause=str(error), mend=_INSTALL
        ) from error
    found = tuple(int(part) for part in str(tensorrt.__version__).split(".")[:2])
    if found < _OLDEST:
        raise BackendMissing(
            f"TensorRT {tensorrt.__version__} is too old",
            cause=f"strongly typed networks need {_OLDEST[0]}.{_OLDEST[1]}, as JetPack 6.1 has it",
            mend=_INSTALL,
        )
    return tensorrt  # type: ignore[no-any-return, unused-ignore]

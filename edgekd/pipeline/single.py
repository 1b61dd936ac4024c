"""The single steps on a model of the user's: profile, compile, verify; and what they share with the others."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.backends import TYPED, settled
from edgekd.devices import Device, connect
from edgekd.errors import BackendMissing, BuildError, ModelError, UsageError
from edgekd.pipeline.metering import energy_of, require_meter
from edgekd.stages.gather import gather
from edgekd.stages.match import FP32_RELATIVE_ERROR, match
from edgekd.stages.subject import model_at
from edgekd.store import replacing
from edgekd.values.artifact import Artifact
from edgekd.values.bundle import VerifyReport, summarise
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision, Signature
from edgekd.values.outcome import Compiled, Profile, Profiled
from edgekd.values.target import Target

log = logging.getLogger(__name__)

PROFILING = Protocol(launches=3, blocks=4, samples=100)
CONFIDENCE = 0.95
_ROUGH = Protocol(launches=1, blocks=1, samples=3, warmup_ms=1.0)
_MOST_MS = 60_000.0  # of inference, all engines together
_LEAST_SAMPLES = 5  # a block
RANDOM_INPUTS = "no real inputs were given: random ones show the speed and say little about the accuracy"
_MOST_ELEMENTS = 1 << 31

_WITHOUT_METER = "leave --energy out, or measure on a device that has one"

Shapes = Mapping[str, tuple[int, ...]]


def profile(
    path: Path,
    target: Target,
    *,
    precisions: Sequence[Precision] = (),
    shapes: Shapes | None = None,
    protocol: Protocol | None = None,
    energy: bool = False,
) -> Profile:
    """Measure a model file on every runtime of the target that can read it, taking turns.

    Args:
        path: .onnx, or OpenVINO's .xml with its .bin beside it.
        target: the device, its runtimes and threads.
        precisions: of the float layers; none: all float ones that the profile lists, or int8 for an int8 model.
        shapes: of inputs with dynamic dimensions; unknown dimensions default to 1.
        protocol: how long and how often; None: 1,200 inferences each, fewer where that would take minutes.
        energy: measure what an inference costs as well, each engine in passes of its own afterwards.

    Raises:
        DeviceError: energy is asked for and the device has no meter that can be read.
        ModelError: the file is malformed or hostile, a shape does not fit it, or no runtime can build it.
        BackendMissing: none of the runtimes works on the device.

    """
    with connect(target) as device:
        model, signature = inspected(device, path)
        _check_precisions(model, precisions)
        check_shapes(signature, shapes or {})
        engines = _engines(model, target, device, precisions, shapes)
        if energy:
            check_meter(device, engines[0].runtime)
        results = measured(device, engines, protocol)
        if energy:
            results = with_energy(device, engines, results)
    return Profile(signature=signature, results=results)


def compile_model(
    path: Path, target: Target, *, runtime: str, precision: Precision, shapes: Shapes | None, out: Path
) -> Compiled:
    """Write what a runtime makes of a model, and run it once beside the original.

    Raises:
        ModelError: the file is malformed or hostile, or the runtime refuses it.
        BackendMissing: the runtime is not installed on the device.

    """
    with connect(target) as device, TemporaryDirectory(prefix="edgekd-") as scratch:
        model, signature = inspected(device, path)
        _check_precisions(model, (precision,))
        static = check_shapes(signature, shapes or {})
        source = Engine(
            model=model,
            runtime=runtime,
            precision=precision,
            threads=target.threads,
            shapes=dict(shapes or {}),
        )
        before = device.build(source)
        made = replace(source, model=device.compile(source, Path(scratch) / "compiled"))
        after = device.build(made)
        rows = gather(Path(scratch) / "inputs", static, None)
        found = match(
            outputs_of(device, source, rows, Path(scratch) / "source"),
            outputs_of(device, made, rows, Path(scratch) / "outputs"),
        )
        # Floats are added in another order, no more than that; int8 and bf16 round what they add.
        exact = precision is not Precision.FP32 or found.relative_error <= FP32_RELATIVE_ERROR
        files = place(out, made.model, f"{path.stem}.{runtime}")
    return Compiled(
        files=files,
        runtime=runtime,
        precision=precision,
        threads=target.threads,
        size_bytes=made_bytes(files),
        open_ms=after.open_ms,
        source_open_ms=before.open_ms,
        memory_mib=after.memory_mib,
        max_error=found.max_error,
        scale=found.scale,
        problems=()
        if exact
        else (f"it departs by {found.relative_error:.1e} of the scale from {path.name}",),
    )


def verify_folder(folder: Path, target: Target) -> VerifyReport:
    """Check a bundle on the target, from its bytes to its outputs; where these depart, say in which layer or input.

    Raises:
        IntegrityError: a digest, a name or an unlisted file.
        ModelError: a model is malformed or hostile.
        BackendMissing: the device has none of the bundle's runtimes.

    """
    from edgekd.stages.explain import explain
    from edgekd.stages.looking import Workshop
    from edgekd.stages.verify import verify_bundle

    with connect(target) as device, Workshop() as workshop, TemporaryDirectory(prefix="edgekd-") as scratch:
        found = verify_bundle(folder, device, Path(scratch))
        return explain(found, device, workshop, Path(scratch) / "explained")


def inspected(device: Device, path: Path) -> tuple[Model, Signature]:
    """Name a model file after a child has looked into it, with the precision it was made for.

    Raises:
        UsageError: there is no such file.
        ModelError: it is malformed or hostile.

    """
    model = model_at(path)
    signature = device.inspect(model.file)
    return replace(model, precision=signature.precision), signature


def check_shapes(signature: Signature, shapes: Shapes) -> Signature:
    """Return the signature with every input dimension known: as given, else 1.

    Raises:
        UsageError: a shape is given for no input, contradicts what the model fixes, or is beyond all reason.

    """
    for name, shape in shapes.items():
        if math.prod(shape) > _MOST_ELEMENTS:
            raise UsageError(f"--shape {name} cannot be {shape}", mend="give a smaller one")
    return replace(signature, inputs=settled(signature.inputs, shapes))


def outputs_of(
    device: Device, engine: Engine, rows: dict[str, Artifact], folder: Path
) -> dict[str, NDArray[Any]]:
    """Run rows of inputs through a compiled file; every output with the rows first."""
    found = device.infer(engine, rows, folder)
    return {name: np.load(file.verified(), allow_pickle=False) for name, file in found.items()}


def timed(device: Device, engines: Sequence[Engine], protocol: Protocol | None = None) -> tuple[Latency, ...]:
    """Time engines in turns; slow ones get fewer samples, so that it ends within about a minute of inference."""
    log.info("timing %s in turns", ", ".join(dict.fromkeys(engine.name for engine in engines)))
    return device.time(engines, protocol or _affordable(device, engines))


def _affordable(device: Device, engines: Sequence[Engine]) -> Protocol:
    rough = device.time(engines, _ROUGH)
    round_ms = PROFILING.launches * PROFILING.blocks * sum(latency.percentile(50) for latency in rough)
    return replace(PROFILING, samples=int(min(max(_MOST_MS / round_ms, _LEAST_SAMPLES), PROFILING.samples)))


def place(out: Path, model: Model, stem: str) -> dict[str, str]:
    """Copy a model to `out`, whole or not at all; return its paths and digests, the one to load first."""
    weights = {} if model.weights is None else {out / f"{stem}.bin": model.weights}
    folder = model.file.path.parent
    # The model looks for external data under these very names.
    weights |= {out / file.path.relative_to(folder): file for file in model.external}
    files = {out / f"{stem}{model.file.path.suffix}": model.file, **weights}
    for path, artifact in reversed(files.items()):  # the weights first: an .xml is never without them
        with replacing(path) as partial:
            shutil.copyfile(artifact.verified(), partial)
    return {str(path): artifact.sha256 for path, artifact in files.items()}


def check_meter(device: Device, runtime: str) -> None:
    """Make sure that a device can tell energy, before it is kept busy.

    Raises:
        DeviceError: it has no meter that can be read.

    """
    require_meter(device, runtime, asked="--energy asks for it", mend=_WITHOUT_METER)


def with_energy(
    device: Device, engines: Sequence[Engine], results: Sequence[Profiled]
) -> tuple[Profiled, ...]:
    """Measure the energy of an inference of each engine that has a latency.

    Raises:
        DeviceError: the device has no meter that can be read, or it stopped to answer.

    """
    return tuple(
        result
        if result.latency_ms is None
        else replace(
            result, energy=energy_of(device, engine, asked="--energy asks for it", mend=_WITHOUT_METER)
        )
        for engine, result in zip(engines, results)
    )


def made_bytes(files: Mapping[str, str]) -> int:
    """Return the size of files on disk."""
    return sum(Path(path).stat().st_size for path in files)


def row_count(rows: Mapping[str, Artifact]) -> int:
    """Count the rows of gathered inputs."""
    return len(np.load(next(iter(rows.values())).path, mmap_mode="r", allow_pickle=False))


def digest_of(rows: Mapping[str, Artifact]) -> str:
    """Name gathered inputs by content."""
    from edgekd.values.codec import fingerprint

    return fingerprint(dict(rows))


def _check_precisions(model: Model, precisions: Sequence[Precision]) -> None:
    name, quantized = model.file.path.name, model.precision is Precision.INT8
    if Precision.INT8 in precisions and not quantized:
        mend = f"make one: edgekd quantize {name} --runtime NAME --calibrate DATA --out DIR"
        raise ModelError(
            f"{name} is not an int8 model", cause="it has no Q/DQ and no FakeQuantize", mend=mend
        )
    if quantized and any(precision is not Precision.INT8 for precision in precisions):
        mend = "leave --precision out, or give the float model that it was made from"
        raise ModelError(f"{name} is an int8 model", cause="its Q/DQ fixes the arithmetic", mend=mend)


def _engines(
    model: Model, target: Target, device: Device, precisions: Sequence[Precision], shapes: Shapes | None
) -> list[Engine]:
    path = model.file.path
    health = {one.name: one for one in device.probe().runtimes}
    readable = [name for name in target.runtimes if path.suffix == ".onnx" or name == "openvino"]
    working = [name for name in readable if health[name].works]
    if not working:
        problems = "; ".join(f"{name}: {health[name].problem}" for name in readable)
        mends = " or ".join(health[name].mend for name in readable)
        raise BackendMissing(
            f"no runtime here can run {path.name}",
            cause=problems or f"{', '.join(target.runtimes)} cannot read it",
            mend=mends or "leave --runtime out, or give an .onnx",
        )
    return [
        Engine(
            model=model, runtime=name, precision=precision, threads=target.threads, shapes=dict(shapes or {})
        )
        for name in working
        for precision in precisions or _precisions(model, target, name)
    ]


def _precisions(model: Model, target: Target, runtime: str) -> tuple[Precision, ...]:
    if model.precision is Precision.INT8 or runtime in TYPED:
        return (model.precision,)
    return tuple(one for one in target.profile.runtimes[runtime] if one is not Precision.INT8)


def measured(device: Device, engines: Sequence[Engine], protocol: Protocol | None) -> tuple[Profiled, ...]:
    """Build each engine once, then time together all that can be built; one that cannot is given its reason.

    Raises:
        BuildError: none can be built.

    """
    built, problems = {}, {}
    for engine in engines:
        log.info("building %s", engine.name)
        try:
            built[engine.name] = device.build(engine)
        except ModelError as error:
            problems[engine.name] = " ".join(f"{error.what}: {error.cause}".split()).rstrip(": ")
    running = [engine for engine in engines if engine.name in built]
    if not running:
        raise BuildError(
            f"no runtime can run {engines[0].model.file.path.name}", cause="; ".join(problems.values())[:2000]
        )
    latencies = dict(zip((engine.name for engine in running), timed(device, running, protocol)))
    return tuple(
        Profiled(
            model_sha256=engine.model.file.sha256,
            runtime=engine.runtime,
            precision=engine.precision,
            latency_ms=summarise(latencies[engine.name], CONFIDENCE) if engine.name in latencies else None,
            open_ms=built[engine.name].open_ms if engine.name in built else None,
            memory_mib=built[engine.name].memory_mib if engine.name in built else None,
            problem=problems.get(engine.name, ""),
        )
        for engine in engines
    )

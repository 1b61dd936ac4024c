"""The single steps on any model of the user's: profile, quantize, compile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekd.devices import Device, connect
from edgekd.errors import BackendMissing, BuildError, ModelError, UsageError
from edgekd.values.artifact import Artifact
from edgekd.values.bundle import summarise
from edgekd.values.latency import Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.outcome import Profile, Profiled
from edgekd.values.target import Target

PROFILING = Protocol(launches=3, blocks=4, samples=100)
_CONFIDENCE = 0.95


def profile(
    path: Path,
    target: Target,
    *,
    precisions: Sequence[Precision] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    protocol: Protocol = PROFILING,
) -> Profile:
    """Measure a model file on every runtime of the target that can read it, taking turns.

    Args:
        path: .onnx, or OpenVINO's .xml with its .bin beside it.
        target: the device, its runtimes and threads.
        precisions: of the float layers; none: fp32, and bf16 where the profile lists it.
        shapes: of inputs with dynamic dimensions; unknown dimensions default to 1.
        protocol: how long and how often.

    Raises:
        ModelError: the file is malformed or hostile, or a shape does not fit it.
        BackendMissing: none of the runtimes works on the device.

    """
    model = model_at(path)
    with connect(target) as device:
        signature = device.inspect(model.file)
        _check_shapes(shapes or {}, [spec.name for spec in signature.inputs])
        engines = _engines(model, target, device, precisions, shapes)
        results = _measured(device, engines, protocol)
    return Profile(signature=signature, results=results)


def model_at(path: Path) -> Model:
    """Name a model file, with the weights that an OpenVINO .xml keeps beside it.

    Raises:
        UsageError: there is no such file, or it is of a kind that no runtime here reads.

    """
    if not path.is_file():
        raise UsageError(f"there is no model {path}", mend="give the path of an .onnx or .xml file")
    if path.suffix == ".onnx":
        return Model(file=Artifact.of(path.absolute()))
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.is_file():
        return Model(file=Artifact.of(path.absolute()), weights=Artifact.of(weights.absolute()))
    cause = f"{weights.name} is not beside it" if path.suffix == ".xml" else f"it ends in {path.suffix!r}"
    raise UsageError(
        f"{path} cannot be read as a model", cause=cause, mend="give an .onnx, or an .xml with its .bin"
    )


def _engines(
    model: Model,
    target: Target,
    device: Device,
    precisions: Sequence[Precision],
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> list[Engine]:
    health = {one.name: one for one in device.probe().runtimes}
    readable = [name for name in target.runtimes if model.file.path.suffix == ".onnx" or name == "openvino"]
    working = [name for name in readable if health[name].works]
    if not working:
        problems = "; ".join(f"{name}: {health[name].problem}" for name in readable)
        mends = " or ".join(health[name].mend for name in readable)
        raise BackendMissing(f"no runtime here can run {model.file.path.name}", cause=problems, mend=mends)
    return [
        Engine(
            model=model, runtime=name, precision=precision, threads=target.threads, shapes=dict(shapes or {})
        )
        for name in working
        for precision in target.profile.runtimes[name]
        if (precision in precisions if precisions else precision is not Precision.INT8)
    ]


def _measured(device: Device, engines: Sequence[Engine], protocol: Protocol) -> tuple[Profiled, ...]:
    """Build each engine once, then time together all that can be built."""
    built, problems = {}, {}
    for engine in engines:
        try:
            built[engine.name] = device.build(engine)
        except (BuildError, ModelError) as error:
            problems[engine.name] = str(error)
    timed = [engine for engine in engines if engine.name in built]
    latencies = dict(zip((engine.name for engine in timed), device.time(timed, protocol) if timed else ()))
    return tuple(
        Profiled(
            model_sha256=engine.model.file.sha256,
            runtime=engine.runtime,
            precision=engine.precision,
            latency_ms=summarise(latencies[engine.name], _CONFIDENCE) if engine.name in latencies else None,
            open_ms=built[engine.name].open_ms if engine.name in built else None,
            memory_mib=built[engine.name].memory_mib if engine.name in built else None,
            problem=problems.get(engine.name, ""),
        )
        for engine in engines
    )


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[str]) -> None:
    from edgekd.values.codec import did_you_mean

    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(f"the model has no input {name!r}", mend=did_you_mean(name, inputs))
        if any(side < 1 for side in shape) or math.prod(shape) > 1 << 31:
            raise UsageError(f"--shape {name} cannot be {shape}", mend="give positive sizes")

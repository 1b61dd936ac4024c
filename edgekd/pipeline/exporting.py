"""Export any model: from its source to files that are checked against it, measured and digested."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekd.devices import Device, connect
from edgekd.errors import BackendMissing, UsageError
from edgekd.pipeline.origin import Origin, Request, Workplace, origin_of
from edgekd.pipeline.single import CONFIDENCE, RANDOM_INPUTS, digest_of, outputs_of, place, timed
from edgekd.stages.halve import cast_by_graph, halve
from edgekd.stages.match import FP32_RELATIVE_ERROR, Match, match
from edgekd.stages.quantize import Quantizers, quantize
from edgekd.store import write_text
from edgekd.values.bundle import LatencySummary, summarise
from edgekd.values.codec import did_you_mean, plain
from edgekd.values.model import Engine, Precision
from edgekd.values.outcome import Exported, ExportedFile
from edgekd.values.target import Target

log = logging.getLogger(__name__)

# Of each format, the runtime that checks and times it.
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt"}
_PRECISIONS = (Precision.FP32, Precision.INT8, Precision.FP16)
_TOOLS = ("edgekd", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "numpy")
_MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class _Made:
    """One file of the export on the device, and how far it departs from the source."""

    engine: Engine
    closeness: Match


def export_model(request: Request, target: Target, out: Path) -> Exported:
    """Write `out/model.onnx`, `out/model.xml`, ... and `out/manifest.json`.

    Raises:
        UsageError: the request contradicts itself or the source.
        ModelError: the source is malformed or hostile, or a runtime refuses what it became.
        DataError: the calibration data cannot serve.
        BackendMissing: a runtime that is asked for is not installed on the device.

    """
    _check(request)
    with connect(target) as device, Quantizers() as quantizers, TemporaryDirectory(prefix="edgekd-") as name:
        _refuse_missing(device, request)
        place = Workplace(device=device, threads=target.threads, scratch=Path(name))
        origin = origin_of(request, place)
        made = [
            one
            for wanted in request.to
            for engine in _engines(RUNTIMES[wanted], request, origin, place, quantizers)
            for one in [_checked(engine, origin, place)]
        ]
        latencies = [summarise(one, CONFIDENCE) for one in timed(device, [one.engine for one in made])]
        kept, problems = _kept(request, list(zip(made, latencies)))
        exports = tuple(_placed(out, one, latency) for one, latency in kept)
    problems = [*origin.problems, *problems, *_departures(exports)]
    exported = Exported(
        source=origin.name,
        source_sha256=origin.sha256,
        signature=origin.signature,
        opset=origin.opset,
        exports=exports,
        problems=tuple(problems if origin.real else [*problems, RANDOM_INPUTS]),
        calibration_sha256=digest_of(origin.answers.rows) if origin.real else "",
        tools={name: importlib.metadata.version(name) for name in _TOOLS},
    )
    _write_manifest(out, exported)
    return exported


def _check(request: Request) -> None:
    if not request.to or not request.precisions:
        raise UsageError("there is nothing to export", mend="give at least one format and one precision")
    for name in request.to:
        if name not in RUNTIMES:
            raise UsageError(f"there is no format {name!r}", mend=did_you_mean(name, list(RUNTIMES)))
    for precision in request.precisions:
        if precision is Precision.FP16 and "tensorrt" not in request.to:
            mend = "export for tensorrt, or leave fp16 out"
            raise UsageError("of these formats, none takes fp16 from its file", mend=mend)
        if precision not in _PRECISIONS:
            mend = f"export fp32, and run it so: edgekd profile FILE --precision {precision.value}"
            raise UsageError(f"{precision.value} is no format of a file, but a way to run one", mend=mend)


def _engines(
    runtime: str, request: Request, origin: Origin, place: Workplace, quantizers: Quantizers
) -> list[Engine]:
    """Make a runtime's files; the float one always, because int8 is held against it."""
    folder = place.scratch / runtime
    engine = Engine(model=origin.model, runtime=runtime, precision=Precision.FP32, threads=place.threads)
    if runtime == "openvino":
        log.info("converting for %s", runtime)
        engine = replace(engine, model=place.device.compile(engine, folder / "fp32"))
    engine = replace(engine, shapes=origin.answers.shapes)
    made = [engine]
    if any(cast_by_graph(runtime, precision) for precision in request.precisions):
        log.info("casting to fp16 for %s", runtime)
        half = halve(folder / "fp16", origin.model, origin.answers.rows, quantizers).model
        made.append(replace(engine, model=half, precision=Precision.FP16))
    if Precision.INT8 in request.precisions:
        log.info("quantising for %s", runtime)
        int8 = quantize(folder / "int8", origin.model, runtime, origin.answers.rows, quantizers)
        made.append(replace(engine, model=int8, precision=Precision.INT8))
    return made


def _checked(engine: Engine, origin: Origin, place: Workplace) -> _Made:
    log.info("comparing %s with the source", engine.name)
    folder = place.scratch / engine.runtime / f"{engine.precision.value}-outputs"
    found = []
    for at, answers in enumerate(one for one in (origin.answers, origin.batched) if one is not None):
        several = replace(engine, shapes=answers.shapes)
        found.append(
            match(answers.expected, outputs_of(place.device, several, answers.rows, folder / str(at)))
        )
    worst = max(found, key=lambda one: one.relative_error)
    return _Made(
        engine=engine,
        closeness=replace(worst, samples=found[0].samples, changed_labels=found[0].changed_labels),
    )


def _kept(
    request: Request, made: Sequence[tuple[_Made, LatencySummary]]
) -> tuple[list[tuple[_Made, LatencySummary]], list[str]]:
    """Drop float files that were made for comparison only, and int8 that is not faster than its float parent."""
    parents = {one.engine.runtime: latency for one, latency in made if one.engine.precision is Precision.FP32}
    kept, problems = [], []
    for one, latency in made:
        engine, parent = one.engine, parents[one.engine.runtime]
        if engine.precision not in request.precisions:
            continue
        lost = engine.precision is Precision.INT8 and latency.p50 >= parent.p50
        if lost:
            why = f"p50 {latency.p50:.3f} ms against {parent.p50:.3f} ms in fp32"
            alone = Precision.FP32 not in request.precisions
            end = "it is kept, since nothing else was asked for" if alone else "so it was left out"
            problems.append(f"{engine.name} is not faster on this device: {why}, {end}")
        if not lost or Precision.FP32 not in request.precisions:
            kept.append((one, latency))
    return kept, problems


def _placed(out: Path, made: _Made, latency: LatencySummary) -> ExportedFile:
    engine, closeness = made.engine, made.closeness
    stem = "model" if engine.precision is Precision.FP32 else f"model.{engine.precision.value}"
    if engine.runtime == "tensorrt" and engine.precision is Precision.INT8:
        stem = f"model.tensorrt.{engine.precision.value}"  # ONNX Runtime's own int8 is another file
    exact = engine.precision is not Precision.FP32 or (
        closeness.relative_error <= FP32_RELATIVE_ERROR and not closeness.changed_labels
    )
    return ExportedFile(
        files={Path(path).name: sha256 for path, sha256 in place(out, engine.model, stem).items()},
        runtime=engine.runtime,
        precision=engine.precision,
        max_error=closeness.max_error,
        scale=closeness.scale,
        changed_labels=closeness.changed_labels,
        samples=closeness.samples,
        latency_ms=latency,
        faithful=exact,
        size_bytes=engine.model.size_bytes,
    )


def _departures(exports: Sequence[ExportedFile]) -> list[str]:
    return [
        f"{next(iter(one.files))} does not compute what the source does: it departs by "
        f"{one.max_error / one.scale if one.scale else one.max_error:.1e} of the output's scale on {one.runtime}"
        for one in exports
        if not one.faithful
    ]


def _refuse_missing(device: Device, request: Request) -> None:
    """Name a runtime that is asked for and does not work, before anything is exported."""
    asked = {RUNTIMES[wanted] for wanted in request.to}
    for health in device.probe().runtimes:
        if health.name in asked and not health.works:
            raise BackendMissing(
                f"{health.name} does not work on the device", cause=health.problem, mend=health.mend
            )


def _write_manifest(out: Path, exported: Exported) -> None:
    """Write the manifest last: what it lists is there; what an earlier one listed and this does not, goes."""
    listed = {name for one in exported.exports for name in one.files}
    before = _listed(out / _MANIFEST)
    write_text(out / _MANIFEST, json.dumps(_finite(plain(exported)), indent=1, allow_nan=False) + "\n")
    for name in before - listed:
        (out / name).unlink(missing_ok=True)


def _listed(manifest: Path) -> set[str]:
    """Name the files of an earlier export that may be removed: of our own naming, in this folder."""
    try:
        held = json.loads(manifest.read_text(encoding="utf-8"))
        names = {name for one in held["exports"] for name in one["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return names & {
        f"model{kind}.{end}"
        for kind in ("", ".int8", ".fp16", ".tensorrt.int8")
        for end in ("onnx", "xml", "bin")
    }


def _finite(data: object) -> object:
    """Put null where an error is infinite: JSON has no word for it."""
    if isinstance(data, dict):
        return {key: _finite(item) for key, item in data.items()}
    if isinstance(data, list):
        return [_finite(item) for item in data]
    return None if isinstance(data, float) and abs(data) == float("inf") else data

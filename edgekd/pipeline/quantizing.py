"""Make a float model int8 for a runtime, and say what it gained and lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekd.devices import connect
from edgekd.errors import ModelError, UsageError
from edgekd.pipeline.single import (
    CONFIDENCE,
    RANDOM_INPUTS,
    Shapes,
    check_shapes,
    digest_of,
    inspected,
    made_bytes,
    outputs_of,
    place,
    row_count,
    timed,
)
from edgekd.stages.gather import gather
from edgekd.stages.match import Match, match
from edgekd.stages.quantize import Quantizers, quantize
from edgekd.values.bundle import LatencySummary, summarise
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.outcome import Quantized
from edgekd.values.preprocess import Normalisation
from edgekd.values.target import Target

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """The float parent and the int8 model, on the same inputs and in turns."""

    parent: LatencySummary
    own: LatencySummary
    closeness: Match

    @property
    def speedup(self) -> float:
        return self.parent.p50 / self.own.p50

    def problems(self, *, real: bool) -> list[str]:
        lost = f"int8 lost on this device: p50 {self.own.p50:.3f} ms against {self.parent.p50:.3f} ms in fp32"
        return [*([] if real else [RANDOM_INPUTS]), *([lost] if self.speedup <= 1 else [])]


def quantize_model(
    path: Path,
    target: Target,
    *,
    runtime: str,
    calibrate: Path | None,
    out: Path,
    shapes: Shapes | None = None,
    normalisation: Normalisation | None = None,
) -> Quantized:
    """Make a float model int8 for a runtime, and measure both in turns.

    Raises:
        ModelError: the file is malformed, hostile, int8 already or has nothing to quantise.
        DataError: the calibration data cannot serve.
        BackendMissing: the runtime is not installed on the device.

    """
    with connect(target) as device, Quantizers() as quantizers, TemporaryDirectory(prefix="edgekd-") as name:
        scratch = Path(name)
        model, signature = inspected(device, path)
        _check_quantizable(model, runtime)
        rows = gather(scratch / "inputs", check_shapes(signature, shapes or {}), calibrate, normalisation)
        int8 = quantize(scratch / "int8", model, runtime, rows, quantizers)
        log.info("quantised on %d inputs; measuring it beside %s", row_count(rows), path.name)
        parent = Engine(
            model=model,
            runtime=runtime,
            precision=Precision.FP32,
            threads=target.threads,
            shapes=dict(shapes or {}),
        )
        engines = [parent, replace(parent, model=int8, precision=Precision.INT8)]
        expected, found = (
            outputs_of(device, engine, rows, scratch / engine.precision.value) for engine in engines
        )
        before, after = (summarise(one, CONFIDENCE) for one in timed(device, engines))
        compared = _Compared(parent=before, own=after, closeness=match(expected, found))
        files = place(out, int8, f"{path.stem}.{runtime}.int8")
        return _quantized(compared, engines, files, digest_of(rows) if calibrate else "")


def _quantized(
    compared: _Compared, engines: Sequence[Engine], files: dict[str, str], calibration: str
) -> Quantized:
    closeness = compared.closeness
    return Quantized(
        files=files,
        runtime=engines[0].runtime,
        size_bytes=made_bytes(files),
        parent_size_bytes=engines[0].model.size_bytes,
        latency_ms=compared.own,
        parent_latency_ms=compared.parent,
        speedup=compared.speedup,
        max_error=closeness.max_error,
        scale=closeness.scale,
        changed_labels=closeness.changed_labels,
        samples=closeness.samples,
        calibration_sha256=calibration,
        problems=tuple(compared.problems(real=bool(calibration))),
    )


def _check_quantizable(model: Model, runtime: str) -> None:
    path = model.file.path
    if model.precision is Precision.INT8:
        raise ModelError(f"{path.name} is int8 already", mend="give the float model that it was made from")
    if path.suffix == ".xml" and runtime != "openvino":
        raise UsageError(
            f"{path.name} cannot be quantised for {runtime}",
            cause="it is OpenVINO's format",
            mend="give the .onnx that it was made from",
        )

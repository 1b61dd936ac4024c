"""One student through the stages: timed untrained, distilled briefly, or finished and judged."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import BuildError, ModelError, TrainingError
from edgekd.pipeline.workbench import Workbench
from edgekd.stages.distill import distill
from edgekd.stages.evaluate import prepare, reference, teacher_model
from edgekd.stages.export import export
from edgekd.stages.label import label
from edgekd.stages.quantize import calibrate, quantize
from edgekd.stages.verify import FP32_RELATIVE_ERROR, parity
from edgekd.values.artifact import Artifact
from edgekd.values.budget import Limits
from edgekd.values.bundle import Parity
from edgekd.values.checkpoint import Checkpoint, Labels
from edgekd.values.job import DistillationSection
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.student import StudentSpec
from edgekd.values.trial import Proposal, Trial, Verdict

log = logging.getLogger(__name__)

QUICK = Protocol(launches=1, blocks=4, samples=80, warmup_ms=40.0)
FULL = Protocol(launches=3, blocks=4, samples=100)
_CALIBRATION_SAMPLES = 256
_DRAFT_SAMPLES = 8  # scales of an untrained student change nothing in its latency
_PARITY_SAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A latency, the teacher's beside it, and the limits that follow."""

    engine: Engine
    latency: Latency
    teacher: Latency
    limits: Limits

    @property
    def breaches(self) -> tuple[str, ...]:
        """Name what is over its limit."""
        return self.limits.breaches(self.latency, self.engine.model.size_bytes)


def engine_of(bench: Workbench, model: Model, runtime: str, precision: Precision) -> Engine:
    """Pair a model with a runtime of the target."""
    return Engine(model=model, runtime=runtime, precision=precision, threads=bench.target.threads)


def teacher_engine(bench: Workbench, runtime: str) -> Engine:
    """Return the teacher as its users run it now: fp32 on the same runtime."""
    return engine_of(
        bench, bench.store.run(teacher_model, bench.teacher, bench.task), runtime, Precision.FP32
    )


def compiled(
    bench: Workbench, spec: StudentSpec, checkpoint: Checkpoint | None, runtime: str, precision: Precision
) -> Engine:
    """Export a student, trained or not, and quantise it where the precision asks for it."""
    model = bench.store.run(export, spec, bench.space.channels, bench.space.classes, checkpoint)
    if precision is Precision.INT8:
        count = _CALIBRATION_SAMPLES if checkpoint else _DRAFT_SAMPLES
        inputs = bench.store.run(calibrate, bench.task, spec.resolution, count)
        model = bench.store.run(quantize, model, runtime, {"images": inputs}, bench.quantizers)
    return engine_of(bench, model, runtime, precision)


def judge(bench: Workbench, engines: Sequence[Engine], protocol: Protocol) -> tuple[Judged, ...]:
    """Time engines and the teacher in turns, so that drift favours none, and hold them against the budget."""
    runtimes = sorted({engine.runtime for engine in engines})
    teachers = [teacher_engine(bench, runtime) for runtime in runtimes]
    protocol = replace(protocol, seed=bench.seed)
    latencies = bench.device.time([*teachers, *engines], protocol)
    of_teacher = dict(zip(runtimes, latencies))
    return tuple(
        Judged(
            engine=engine,
            latency=latency,
            teacher=of_teacher[engine.runtime],
            limits=limits_for(bench, of_teacher[engine.runtime]),
        )
        for engine, latency in zip(engines, latencies[len(teachers) :])
    )


def limits_for(bench: Workbench, teacher: Latency) -> Limits:
    """Put the budget in numbers, given how fast the teacher runs beside."""
    budget = bench.job.budget
    return Limits(
        latency_ms=budget.latency_ms.limits(teacher), confidence=budget.confidence, size_mb=budget.size_mb
    )


def time_untrained(
    bench: Workbench, spec: StudentSpec, combinations: Sequence[tuple[str, Precision]]
) -> list[Trial]:
    """Time one untrained student at several precisions: what the device is like, for minutes of its time."""
    trials, engines = [], []
    for runtime, precision in combinations:
        proposal = Proposal(spec=spec, runtime=runtime, precision=precision)
        try:
            engines.append((proposal, compiled(bench, spec, None, runtime, precision)))
        except ModelError as error:
            trials.append(Trial(proposal=proposal, verdict=Verdict.UNBUILDABLE, why=str(error)))
    trials += _timed(bench, engines)
    for trial in trials:
        bench.record(trial)
    return trials


def try_briefly(bench: Workbench, proposal: Proposal) -> Trial:
    """Time a student untrained and, where it is fast enough, distill it for a few epochs."""
    began, device_began = time.monotonic(), bench.device.device_seconds
    try:
        engine = compiled(bench, proposal.spec, None, proposal.runtime, proposal.precision)
        (judged,) = judge(bench, [engine], QUICK)
        trial = Trial(proposal=proposal, verdict=Verdict.PROMISING, latency=judged.latency)
        if judged.breaches:
            trial = replace(trial, verdict=Verdict.TOO_SLOW, why="; ".join(judged.breaches))
        else:
            checkpoint = distilled(bench, proposal.spec, bench.job.distillation.short_epochs)
            trial = replace(trial, accuracy=checkpoint.accuracy, epochs=checkpoint.epochs)
    except BuildError as error:
        trial = Trial(proposal=proposal, verdict=Verdict.UNBUILDABLE, why=str(error))
    except TrainingError as error:
        trial = Trial(proposal=proposal, verdict=Verdict.DIVERGED, why=str(error))
    seconds, device_seconds = time.monotonic() - began, bench.device.device_seconds - device_began
    return bench.record(replace(trial, seconds=seconds, device_seconds=device_seconds))


def distilled(bench: Workbench, spec: StudentSpec, epochs: int) -> Checkpoint:
    """Train a student on the views that the teacher has labelled, labelling those it has not."""
    recipe = bench.job.distillation
    return bench.store.run(distill, spec, bench.task, labels(bench, epochs), recipe, epochs, bench.seed)


def labels(bench: Workbench, epochs: int) -> tuple[Labels, ...]:
    """Return the teacher's outputs on as many views as `epochs` can use."""
    recipe = bench.job.distillation
    # Only these change what the teacher says: the same labels then serve another learning rate.
    asked = DistillationSection(losses=recipe.losses, mixup=recipe.mixup)
    views = range(min(epochs, recipe.views))
    return tuple(bench.store.run(label, bench.teacher, bench.task, view, asked, bench.seed) for view in views)


def finish(bench: Workbench, spec: StudentSpec, combinations: Sequence[tuple[str, Precision]]) -> list[Trial]:
    """Distill a student fully and judge every variant: latency and accuracy of the same compiled file."""
    began, device_began = time.monotonic(), bench.device.device_seconds
    first = Proposal(spec=spec, runtime=combinations[0][0], precision=combinations[0][1])
    try:
        checkpoint = distilled(bench, spec, bench.job.distillation.epochs)
    except TrainingError as error:
        return [bench.record(Trial(proposal=first, verdict=Verdict.DIVERGED, why=str(error)))]
    engines = [compiled(bench, spec, checkpoint, runtime, precision) for runtime, precision in combinations]
    trials = [_verdict(bench, judged, spec, checkpoint) for judged in judge(bench, engines, FULL)]
    trials = _without_slow_int8(trials)
    seconds = (time.monotonic() - began) / len(trials)
    device_seconds = (bench.device.device_seconds - device_began) / len(trials)
    return [bench.record(replace(trial, seconds=seconds, device_seconds=device_seconds)) for trial in trials]


def logits_of(
    bench: Workbench, engine: Engine, spec: StudentSpec, split: str, limit: int | None = None
) -> Artifact:
    """Run a split's images through the compiled file on the device."""
    inputs = bench.store.run(prepare, bench.task, split, spec.resolution, limit)
    folder = (
        bench.store.root / "outputs" / engine.model.file.sha256[:16] / engine.runtime / engine.precision.value
    )
    return bench.device.infer(engine, {"images": inputs}, folder / f"{split}-{limit or 'all'}")["logits"]


def accuracy_of(bench: Workbench, engine: Engine, spec: StudentSpec, split: str) -> float:
    """Return the task's metric of the compiled file on a split."""
    logits = _rows(logits_of(bench, engine, spec, split).verified())
    return bench.task.score(logits, bench.task.split(split).labels)


def parity_of(bench: Workbench, engine: Engine, spec: StudentSpec, checkpoint: Checkpoint) -> Parity:
    """Compare a compiled file with torch on real validation images."""
    expected = reference_logits(bench, spec, checkpoint, "validation", _PARITY_SAMPLES)
    outputs = _rows(logits_of(bench, engine, spec, "validation", _PARITY_SAMPLES).verified())
    found = parity(expected, outputs)
    log.info("parity of %s: max error %.1e of the logit scale", engine.name, found.relative_error)
    return found


def reference_logits(
    bench: Workbench, spec: StudentSpec, checkpoint: Checkpoint, split: str, limit: int
) -> NDArray[np.float32]:
    """Return torch's logits (limit, classes) on images of a split."""
    inputs = bench.store.run(prepare, bench.task, split, spec.resolution, limit)
    logits = bench.store.run(reference, spec, bench.space.channels, bench.space.classes, checkpoint, inputs)
    return _rows(logits.verified())


def accuracy_floor(bench: Workbench) -> float:
    """Return the least validation metric that the budget admits."""
    return bench.teacher_accuracy("validation") - bench.job.budget.max_accuracy_drop


def _timed(bench: Workbench, engines: list[tuple[Proposal, Engine]]) -> list[Trial]:
    """Time engines together; when one of them breaks the round, each alone."""
    protocol = replace(QUICK, seed=bench.seed)
    try:
        latencies = bench.device.time([engine for _, engine in engines], protocol) if engines else ()
    except BuildError as error:
        if len(engines) == 1:
            return [Trial(proposal=engines[0][0], verdict=Verdict.UNBUILDABLE, why=str(error))]
        return [trial for pair in engines for trial in _timed(bench, [pair])]
    return [
        Trial(proposal=proposal, verdict=Verdict.MEASURED, latency=latency)
        for (proposal, _), latency in zip(engines, latencies)
    ]


def _verdict(bench: Workbench, judged: Judged, spec: StudentSpec, checkpoint: Checkpoint) -> Trial:
    engine = judged.engine
    trial = Trial(
        proposal=Proposal(spec=spec, runtime=engine.runtime, precision=engine.precision),
        verdict=Verdict.FITS,
        epochs=checkpoint.epochs,
        latency=judged.latency,
        accuracy=accuracy_of(bench, engine, spec, "validation"),
        engine=engine,
    )
    unfaithful = _unfaithful(bench, engine, spec, checkpoint)
    if unfaithful:
        return replace(trial, verdict=Verdict.UNBUILDABLE, why=unfaithful)
    if judged.breaches:
        return replace(trial, verdict=Verdict.TOO_SLOW, why="; ".join(judged.breaches))
    floor = accuracy_floor(bench)
    if trial.accuracy is not None and trial.accuracy < floor:
        why = f"{bench.task.metric} {trial.accuracy:.4f} on validation, floor {floor:.4f}"
        return replace(trial, verdict=Verdict.INACCURATE, why=why)
    return trial


def _unfaithful(bench: Workbench, engine: Engine, spec: StudentSpec, checkpoint: Checkpoint) -> str:
    """Say how a float file departs from torch on real images; empty where it does not."""
    if engine.precision is not Precision.FP32:
        return ""  # judged by its accuracy
    found = parity_of(bench, engine, spec, checkpoint)
    if found.relative_error <= FP32_RELATIVE_ERROR and found.changed_labels == 0:
        return ""
    return f"differs from torch by {found.relative_error:.1e} of the logit scale"


def _without_slow_int8(trials: list[Trial]) -> list[Trial]:
    """Reject an int8 file that is not faster than its float parent on the same runtime."""
    p50_ms = {
        (trial.proposal.runtime, trial.proposal.precision): trial.latency.percentile(50)
        for trial in trials
        if trial.latency
    }
    kept = []
    for trial in trials:
        runtime, precision = trial.proposal.runtime, trial.proposal.precision
        parent_ms = p50_ms.get((runtime, Precision.FP32))
        own_ms = p50_ms.get((runtime, precision))
        if precision is Precision.INT8 and parent_ms and own_ms and own_ms >= parent_ms:
            why = f"slower than its fp32 parent: p50 {own_ms:.3f} ms against {parent_ms:.3f} ms"
            trial = replace(trial, verdict=Verdict.TOO_SLOW, why=why)  # noqa: PLW2901 - the same trial, judged
        kept.append(trial)
    return kept


def _rows(path: Path) -> NDArray[np.float32]:
    outputs: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return outputs.reshape(len(outputs), -1)

"""From the accepted measurement to a bundle and a report; or from none to a report that says why."""

from __future__ import annotations

import importlib.metadata
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgekd.errors import BudgetError
from edgekd.pipeline.measuring import (
    CALIBRATION_SAMPLES,
    FULL,
    Judged,
    accuracy_floor,
    accuracy_of,
    calibration_of,
    compiled,
    judge,
    parity_of,
    reference_of,
)
from edgekd.pipeline.record import REPORT, save_record
from edgekd.pipeline.trials import distilled
from edgekd.pipeline.workbench import Workbench
from edgekd.stages.bundle import bundle, save_samples
from edgekd.stages.evaluate import recorded_steps
from edgekd.stages.report import ReportContent, report
from edgekd.tasks.task import Stepwise
from edgekd.values.artifact import Artifact
from edgekd.values.budget import Limits
from edgekd.values.bundle import Accuracies, Builds, Bundle, BundleContent, Shipped, summarise
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.codec import fingerprint
from edgekd.values.latency import Latency
from edgekd.values.model import Engine, Precision
from edgekd.values.outcome import ChosenStudent, Outcome
from edgekd.values.power import Energy
from edgekd.values.trial import History, Trial, Verdict

log = logging.getLogger(__name__)

_SAMPLES = 32  # real test samples shipped with the bundle, so that it can be verified anywhere
_TOOLS = ("edgekd", "torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy")


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The trial that won and its measurement in fresh processes afterwards."""

    trial: Trial
    judged: Judged
    modes: dict[str, Latency] = field(default_factory=dict)  # otherwise than back to back, where asked for
    energy: Energy | None = None  # of an inference, where the budget limits it
    builds: Builds | None = None  # where a build is a random draw

    @property
    def engine(self) -> Engine:
        """What ships."""
        return self.judged.engine


def deliver(bench: Workbench, out: Path, command: str, accepted: Accepted) -> Outcome:
    """Measure the test metric of what ships, then write the bundle and the report."""
    spec, judged = accepted.trial.proposal.spec, accepted.judged
    checkpoint = distilled(bench, spec, accepted.trial.epochs)
    own = replace(
        _shipped(bench, judged, accepted, checkpoint),
        modes=accepted.modes,
        energy=accepted.energy,
        builds=accepted.builds,
    )
    shipped = [own]
    shipped += [
        _shipped(bench, other, accepted, checkpoint) for other in _portable(bench, accepted, checkpoint)
    ]
    accuracy = Accuracies(
        metric=bench.task.metric,
        teacher=bench.teacher_accuracy("test"),
        student=shipped[0].accuracy,
        validation_teacher=bench.teacher_accuracy("validation"),
        validation_student=accepted.trial.accuracy or 0.0,
        test_samples=len(bench.task.test.labels),
    )
    content = _content(bench, command, accepted, tuple(shipped), accuracy, checkpoint)
    made = bundle(out / "bundle", content)
    shown = _report(bench, command, made, judged)
    page = report(out / REPORT, shown)
    save_record(out, bench.job, bench.key, shown)
    return _outcome(bench, made, page, judged, accepted)


def refuse(bench: Workbench, out: Path, command: str, error: BudgetError, limits: Limits) -> Path:
    """Write the report of a run that accepted no student."""
    content = ReportContent(
        name=bench.name,
        history=bench.history(),
        limits_ms=limits.latency_ms,
        confidence=limits.confidence,
        command=command,
        refusal=f"{error.what}: {error.cause}" if error.cause else error.what,
        relaxation=error.mend,
        teacher_accuracy=bench.teacher_accuracy("validation"),
        accuracy_floor=accuracy_floor(bench),
        metric=bench.task.metric,
    )
    save_record(out, bench.job, bench.key, content)
    return report(out / REPORT, content)


def _shipped(bench: Workbench, judged: Judged, accepted: Accepted, checkpoint: Checkpoint) -> Shipped:
    spec = accepted.trial.proposal.spec
    return Shipped(
        engine=judged.engine,
        latency=judged.latency,
        accuracy=accuracy_of(bench, judged.engine, spec, "test"),
        parity=parity_of(bench, judged.engine, spec, checkpoint),
    )


def _portable(bench: Workbench, accepted: Accepted, checkpoint: Checkpoint) -> tuple[Judged, ...]:
    """Measure the same student in fp32 on every other runtime, so that the bundle runs where the first is missing."""
    others = sorted({runtime for runtime, _ in bench.combinations()} - {accepted.engine.runtime})
    spec = accepted.trial.proposal.spec
    engines = [compiled(bench, spec, checkpoint, runtime, Precision.FP32) for runtime in others]
    return judge(bench, engines, FULL) if engines else ()


def _content(  # noqa: PLR0917 - a list of fields
    bench: Workbench,
    command: str,
    accepted: Accepted,
    shipped: tuple[Shipped, ...],
    accuracy: Accuracies,
    checkpoint: Checkpoint,
) -> BundleContent:
    spec = accepted.trial.proposal.spec
    source = compiled(bench, spec, checkpoint, "onnxruntime", Precision.FP32).model
    return BundleContent(
        name=bench.name,
        task=bench.task.kind,
        classes=bench.task.classes,
        spec=spec,
        source=source,
        shipped=shipped,
        preprocess=bench.task.preprocess(spec.resolution),
        limits=accepted.judged.limits,
        accuracy=accuracy,
        teacher_sha256=bench.teacher.fingerprint,
        data_sha256=bench.task.fingerprint,
        job_sha256=bench.key,
        calibration_sha256=_calibration(bench, accepted, checkpoint),
        tools=_tools(),
        seed=bench.seed,
        samples=_samples(bench, accepted, checkpoint),
        command=command,
        teacher_latency=accepted.judged.teacher,
        decoding=bench.task.decoding(spec.resolution),
    )


def _calibration(bench: Workbench, accepted: Accepted, checkpoint: Checkpoint) -> str:
    if accepted.engine.precision is not Precision.INT8:
        return ""
    inputs = calibration_of(bench, accepted.trial.proposal.spec, checkpoint, CALIBRATION_SAMPLES)
    return next(iter(inputs.values())).sha256 if len(inputs) == 1 else fingerprint(inputs)


def _samples(bench: Workbench, accepted: Accepted, checkpoint: Checkpoint) -> Artifact:
    """Keep a few test samples with what torch says of them, and where it goes step by step, single steps."""
    spec, task = accepted.trial.proposal.spec, bench.task
    outputs = reference_of(bench, spec, checkpoint, "test", _SAMPLES)
    chosen, steps = task.test.spread(_SAMPLES), {}
    if isinstance(task, Stepwise):
        kept = bench.store.run(recorded_steps, spec, task, checkpoint, "test", _SAMPLES)
        steps = {name: np.load(one.verified(), allow_pickle=False) for name, one in kept.items()}
    path = bench.store.root / "samples.npz"
    return save_samples(path, np.asarray(chosen.samples), chosen.labels, outputs, kind=task.kind, steps=steps)


def _tools() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _TOOLS}


def _report(bench: Workbench, command: str, made: Bundle, judged: Judged) -> ReportContent:
    return ReportContent(
        name=bench.name,
        history=bench.history(),
        limits_ms=judged.limits.latency_ms,
        confidence=judged.limits.confidence,
        command=command,
        manifest=made.manifest,
        latency=judged.latency,
        teacher_latency=judged.teacher,
        teacher_accuracy=bench.teacher_accuracy("validation"),
        accuracy_floor=accuracy_floor(bench),
        metric=bench.task.metric,
    )


def _outcome(bench: Workbench, made: Bundle, page: Path, judged: Judged, accepted: Accepted) -> Outcome:
    engine, history = judged.engine, bench.history()
    confidence = judged.limits.confidence
    return Outcome(
        bundle=made.folder,
        report=page,
        student=ChosenStudent(
            spec=accepted.trial.proposal.spec, precision=engine.precision, runtime=engine.runtime
        ),
        latency_ms=summarise(judged.latency, confidence),
        modes={name: summarise(latency, confidence) for name, latency in accepted.modes.items()},
        energy=accepted.energy,
        teacher_latency_ms=summarise(judged.teacher, confidence),
        budget=judged.limits.latency_ms,
        accuracy=made.manifest.accuracy,
        task=bench.task.kind,
        trials=dict(Counter(trial.verdict.value for trial in history.trials)),
        device_seconds=bench.device.device_seconds,
        train_seconds=bench.teach_seconds + _training_seconds(bench, history),
        seconds=0.0,  # the caller knows when it began
    )


def _training_seconds(bench: Workbench, history: History) -> float:
    """Sum the trainings of this job, those that were kept from an interrupted run included."""
    trained = {
        (trial.proposal.spec, trial.epochs)
        for trial in history.trials
        if trial.epochs and trial.verdict is not Verdict.DIVERGED
    }
    return sum(distilled(bench, spec, epochs).seconds for spec, epochs in trained)

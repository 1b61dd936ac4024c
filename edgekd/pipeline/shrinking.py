"""The int8 forms of a finished student: the one that loses nothing, and the fastest, each faster than its parent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekd.errors import DataError, ModelError, TrainingError, UsageError
from edgekd.pipeline.forms import Form, Source
from edgekd.pipeline.int8 import Found, find_int8
from edgekd.pipeline.measuring import CALIBRATION_SAMPLES, answers_of, calibration_of, compiled
from edgekd.pipeline.qad import distilled_int8
from edgekd.pipeline.workbench import Workbench
from edgekd.stages.evaluate import prepare, recorded_steps
from edgekd.stages.lost import lost_on_task
from edgekd.stages.survey import shortcomings
from edgekd.students import inputs
from edgekd.tasks.task import Stepwise
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.model import Engine, Precision
from edgekd.values.student import StudentSpec
from edgekd.values.trial import Proposal, Trial, Verdict
from edgekd.values.variant import Loss, Method, Quantization

log = logging.getLogger(__name__)

_ASIDE = 64  # validation samples that the calibrated ranges are held against
_TRIES = (
    12  # int8 files of a student on a runtime; counted, not timed, so that a recorded run asks the same again
)


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """What a student's int8 files are on the runtimes asked for."""

    drafts: tuple[tuple[Proposal, Engine], ...]  # to be judged beside the float ones
    failed: tuple[Trial, ...]  # where there is none
    found: tuple[Found, ...]
    distilled: tuple[Engine, ...] = ()  # among the drafts: what was distilled on as int8

    def labelled(self, trial: Trial) -> Trial:
        """Add to a judged trial how its int8 file was made, and why it does not ship where it lost."""
        for found in self.found:
            for form in (found.best, found.fastest, found.quickest):
                if form is not None and trial.engine is not None and form.engine.model == trial.engine.model:
                    return _labelled(trial, form, found)
        if trial.engine is not None and trial.engine in self.distilled:
            return replace(trial, quantization=Quantization(method=Method.DISTILLED))
        return trial


def shrunk(bench: Workbench, spec: StudentSpec, checkpoint: Checkpoint, runtimes: Sequence[str]) -> Shrunk:
    """Find a student's int8 files on each runtime, by its answers to validation samples."""
    drafts: list[tuple[Proposal, Engine]] = []
    failed, everything, distilled = [], [], []
    for runtime in runtimes:
        proposal = Proposal(spec=spec, runtime=runtime, precision=Precision.INT8)
        try:
            found = find_int8(_source(bench, spec, checkpoint, runtime))
        except (ModelError, DataError) as error:
            failed.append(Trial(proposal=proposal, verdict=Verdict.UNBUILDABLE, why=str(error)))
            continue
        everything.append(found)
        for problem in shortcomings(CALIBRATION_SAMPLES, found.beyond):
            log.warning("%s", problem)
        winners = [form for form in (found.best, found.fastest) if form]
        forms = winners or [form for form in (found.quickest,) if form]
        made = {form.engine.model.file.sha256: form.engine for form in forms}
        distilled += (own := _distilled(bench, spec, checkpoint, found))
        drafts += [(proposal, engine) for engine in (*made.values(), *own)]
        if not made:
            failed.append(Trial(proposal=proposal, verdict=Verdict.UNBUILDABLE, why=found.why))
    return Shrunk(
        drafts=tuple(drafts), failed=tuple(failed), found=tuple(everything), distilled=tuple(distilled)
    )


def _distilled(bench: Workbench, spec: StudentSpec, checkpoint: Checkpoint, found: Found) -> list[Engine]:
    """Distill a student on as int8 where int8 is faster, and no whole int8 file keeps the accuracy."""
    kept = found.best is not None and found.exchange is None
    if found.fastest is None or kept or not bench.job.distillation.quantized_epochs:
        return []
    engine = found.fastest.engine
    try:
        model = distilled_int8(bench, spec, checkpoint, engine.runtime)
    except (UsageError, TrainingError) as error:  # the student stays as it was quantised after training
        log.info("  not distilled as int8: %s", error.what)
        return []
    return [replace(engine, model=model)]


def _source(bench: Workbench, spec: StudentSpec, checkpoint: Checkpoint, runtime: str) -> Source:
    parent = compiled(bench, spec, checkpoint, runtime, Precision.FP32)
    rows = calibration_of(bench, spec, checkpoint, CALIBRATION_SAMPLES)
    expected = answers_of(bench, parent, spec, "validation")
    labels = bench.task.split("validation").labels

    def judge(engine: Engine) -> Loss:
        found = answers_of(bench, engine, spec, "validation")
        return lost_on_task(expected, found, labels, bench.task.score)

    log.info("int8 on %s", runtime)
    return Source(
        parent=parent,
        calibration=rows,
        held_out=_validation_rows(bench, spec, checkpoint),
        judge=judge,
        device=bench.device,
        quantizers=bench.quantizers,
        store=bench.store,
        lossy=True,
        tries=_TRIES,
        seed=bench.seed,
    )


def _validation_rows(bench: Workbench, spec: StudentSpec, checkpoint: Checkpoint) -> dict[str, Artifact]:
    """Return inputs that nobody calibrates on: of a stepwise student single steps."""
    takes = inputs(spec, bench.space.channels)
    if isinstance(bench.task, Stepwise):
        steps = bench.store.run(recorded_steps, spec, bench.task, checkpoint, "validation", _ASIDE)
        return {name: steps[name] for name in takes}
    (name,) = takes
    return {name: bench.store.run(prepare, bench.task, "validation", spec.resolution, _ASIDE)}


def _labelled(trial: Trial, form: Form, found: Found) -> Trial:
    trial = replace(trial, quantization=form.quantization)
    if found.best is not None and form.quantization == found.best.quantization:
        trial = replace(trial, exchange=found.exchange)
    if form.ratio is None:  # it did not win its race, or was not worth one
        why = found.why or "not faster than its fp32 parent"
        return replace(trial, verdict=Verdict.NO_GAIN, why=why)
    return trial

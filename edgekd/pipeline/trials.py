"""One student through the stages: timed untrained, distilled briefly, or finished and judged."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from edgekd.errors import BuildError, ModelError, TrainingError
from edgekd.pipeline.labelling import labels
from edgekd.pipeline.measuring import (
    FULL,
    QUICK,
    Judged,
    accuracy_floor,
    accuracy_of,
    compiled,
    judge,
    parity_of,
)
from edgekd.pipeline.shrinking import shrunk
from edgekd.pipeline.workbench import Workbench
from edgekd.stages.distill import distill
from edgekd.stages.verify import FP32_RELATIVE_ERROR
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.model import Engine, Precision
from edgekd.values.student import StudentSpec
from edgekd.values.training import TrainingOrder
from edgekd.values.trial import Proposal, Trial, Verdict

log = logging.getLogger(__name__)

Drafts = list[tuple[Proposal, Engine]]


def time_untrained(
    bench: Workbench, spec: StudentSpec, combinations: Sequence[tuple[str, Precision]]
) -> list[Trial]:
    """Time one untrained student at several precisions: what the device is like, for minutes of its time."""
    engines, trials = _compiled(bench, spec, None, combinations)
    trials += _timed(bench, engines)
    return bench.record(*trials)


def try_briefly(bench: Workbench, proposal: Proposal) -> Trial:
    """Time a student untrained and, where it is fast enough, distill it for a few epochs."""
    return bench.record(taught(bench, screened(bench, proposal)))[0]


def screened(bench: Workbench, proposal: Proposal) -> Trial:
    """Time a student untrained: promising where it is likely to be fast enough. Nothing is recorded."""
    began, device_began = time.monotonic(), bench.device.device_seconds
    try:
        engine = compiled(bench, proposal.spec, None, proposal.runtime, proposal.precision)
        (judged,) = judge(bench, [engine], QUICK)
        trial = Trial(proposal=proposal, verdict=Verdict.PROMISING, latency=judged.latency)
        if breaches := judged.likely_breaches:
            trial = replace(trial, verdict=Verdict.TOO_SLOW, why="; ".join(breaches))
    except ModelError as error:
        trial = Trial(proposal=proposal, verdict=Verdict.UNBUILDABLE, why=str(error))
    seconds, device_seconds = time.monotonic() - began, bench.device.device_seconds - device_began
    return replace(trial, seconds=seconds, device_seconds=device_seconds)


def taught(bench: Workbench, trial: Trial) -> Trial:
    """Distill a student that was screened for a few epochs, where it is promising. Nothing is recorded."""
    if trial.verdict is not Verdict.PROMISING:
        return trial
    began = time.monotonic()
    try:
        checkpoint = distilled(bench, trial.proposal.spec, bench.job.distillation.short_epochs)
        trial = replace(trial, accuracy=checkpoint.accuracy, epochs=checkpoint.epochs)
    except ModelError as error:
        trial = Trial(proposal=trial.proposal, verdict=Verdict.UNBUILDABLE, why=str(error))
    except TrainingError as error:
        trial = replace(trial, verdict=Verdict.DIVERGED, why=str(error))
    return replace(trial, seconds=trial.seconds + time.monotonic() - began)


def distilled(bench: Workbench, spec: StudentSpec, epochs: int) -> Checkpoint:
    """Train a student on the views that the teacher has labelled, labelling those it has not."""
    order = training_of(bench, spec, epochs)
    return bench.store.run(distill, spec, bench.task, order.labels, order.recipe, epochs, order.seed)


def training_of(bench: Workbench, spec: StudentSpec, epochs: int) -> TrainingOrder:
    """Say how a student is trained, and in which folder of the store; what the teacher has not labelled, it labels."""
    # What these say is in `epochs` and `labels`: asking for longer finals keeps the short runs.
    recipe = replace(bench.job.distillation, epochs=1, short_epochs=1, quantized_epochs=0, views=1)
    views = labels(bench, epochs)
    folder = bench.store.folder_of(distill, spec, bench.task, views, recipe, epochs, bench.seed)
    return TrainingOrder(
        spec=spec,
        task=bench.task.fingerprint,
        labels=views,
        recipe=recipe,
        epochs=epochs,
        seed=bench.seed,
        folder=str(folder),
    )


def finish(bench: Workbench, spec: StudentSpec, combinations: Sequence[tuple[str, Precision]]) -> list[Trial]:
    """Distill a student fully and judge every variant: latency and accuracy of the same compiled file."""
    began, device_began = time.monotonic(), bench.device.device_seconds
    first = Proposal(spec=spec, runtime=combinations[0][0], precision=combinations[0][1])
    try:
        checkpoint = distilled(bench, spec, bench.job.distillation.epochs)
    except TrainingError as error:
        return bench.record(Trial(proposal=first, verdict=Verdict.DIVERGED, why=str(error)))
    floats = [one for one in combinations if one[1] is not Precision.INT8]
    engines, trials = _compiled(bench, spec, checkpoint, floats)
    int8 = shrunk(bench, spec, checkpoint, [name for name, one in combinations if one is Precision.INT8])
    trials += [*int8.failed, *_judged(bench, [*engines, *int8.drafts], checkpoint)]
    trials = _without_slow_int8([int8.labelled(trial) for trial in trials])
    seconds = (time.monotonic() - began) / len(trials)
    device_seconds = (bench.device.device_seconds - device_began) / len(trials)
    return bench.record(*(replace(t, seconds=seconds, device_seconds=device_seconds) for t in trials))


def _compiled(
    bench: Workbench,
    spec: StudentSpec,
    checkpoint: Checkpoint | None,
    combinations: Sequence[tuple[str, Precision]],
) -> tuple[Drafts, list[Trial]]:
    """Compile a student every way asked for; what cannot be is a trial that says why."""
    engines, failed = [], []
    for runtime, precision in combinations:
        proposal = Proposal(spec=spec, runtime=runtime, precision=precision)
        try:
            engines.append((proposal, compiled(bench, spec, checkpoint, runtime, precision)))
        except ModelError as error:
            failed.append(Trial(proposal=proposal, verdict=Verdict.UNBUILDABLE, why=str(error)))
    return engines, failed


def _judged(bench: Workbench, engines: Drafts, checkpoint: Checkpoint) -> list[Trial]:
    """Judge variants together; when one of them breaks the round, each alone."""
    try:
        judged = judge(bench, [engine for _, engine in engines], FULL)
    except BuildError as error:
        if len(engines) == 1:
            return [Trial(proposal=engines[0][0], verdict=Verdict.UNBUILDABLE, why=str(error))]
        return [trial for pair in engines for trial in _judged(bench, [pair], checkpoint)]
    return [_verdict(bench, one, proposal, checkpoint) for (proposal, _), one in zip(engines, judged)]


def _timed(bench: Workbench, engines: Drafts) -> list[Trial]:
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


def _verdict(bench: Workbench, judged: Judged, proposal: Proposal, checkpoint: Checkpoint) -> Trial:
    engine, spec = judged.engine, proposal.spec
    trial = Trial(
        proposal=proposal,
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
    parents_ms = {
        trial.proposal.runtime: trial.latency.percentile(50)
        for trial in trials
        if trial.latency and trial.proposal.precision is Precision.FP32
    }
    kept = []
    for trial in trials:
        parent_ms = parents_ms.get(trial.proposal.runtime)
        own_ms = trial.latency.percentile(50) if trial.latency else None
        if trial.proposal.precision is Precision.INT8 and parent_ms and own_ms and own_ms >= parent_ms:
            why = f"not faster than its fp32 parent: p50 {own_ms:.3f} ms against {parent_ms:.3f} ms"
            trial = replace(trial, verdict=Verdict.NO_GAIN, why=why)  # noqa: PLW2901 - the same trial, judged
        kept.append(trial)
    return kept

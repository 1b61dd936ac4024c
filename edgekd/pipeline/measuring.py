"""Engines of students and teacher, what they are held against, and what their outputs are worth."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.pipeline.metering import energy_of
from edgekd.pipeline.workbench import ENERGY_ASKED, ENERGY_MEND, Workbench
from edgekd.stages.evaluate import prepare, recorded_steps, reference, reference_answers, teacher_model
from edgekd.stages.export import export
from edgekd.stages.halve import FP16_RELATIVE_ERROR, cast_by_graph, halve
from edgekd.stages.quantize import calibrate, quantize
from edgekd.stages.verify import parity
from edgekd.students import inputs as inputs_of
from edgekd.students import outputs as outputs_of
from edgekd.tasks.task import Rows, Run, Stepwise
from edgekd.values.artifact import Artifact
from edgekd.values.budget import RANKS, Budget, Limits
from edgekd.values.bundle import Parity
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.job import CLASSIFYING
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.power import Energy
from edgekd.values.student import StudentSpec

log = logging.getLogger(__name__)

QUICK = Protocol(launches=1, blocks=4, samples=80, warmup_ms=40.0)
FULL = Protocol(launches=3, blocks=4, samples=100)
_SUSTAINED = Protocol(launches=1, blocks=20)  # the latter half of the blocks judges
_DUTY_CYCLE = Protocol(launches=3, blocks=4)
_SLACK = 1.6  # times the samples that could bound the percentile if not one of them were over it
CALIBRATION_SAMPLES = 256
_EVEN_ODDS = 0.5
_ROOM = 0.8
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
    def likely_breaches(self) -> tuple[str, ...]:
        """Name what is more likely than not over its limit: for screening, where few samples were taken."""
        return screening(self.limits).breaches(self.latency, self.engine.model.size_bytes)

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
    """Export a student, trained or not, and quantise it or cast it to fp16 where the precision asks for it."""
    model = bench.store.run(export, spec, bench.space.channels, bench.space.classes, checkpoint)
    if precision is not Precision.INT8 and not cast_by_graph(runtime, precision):
        return engine_of(bench, model, runtime, precision)
    count = CALIBRATION_SAMPLES if checkpoint else _DRAFT_SAMPLES
    inputs = calibration_of(bench, spec, checkpoint, count)
    if precision is Precision.INT8:
        model = bench.store.run(quantize, model, runtime, inputs, bench.quantizers)
    else:
        most_error = FP16_RELATIVE_ERROR if checkpoint else None
        model = bench.store.run(halve, model, inputs, bench.quantizers, most_error=most_error).model
    return engine_of(bench, model, runtime, precision)


def calibration_of(
    bench: Workbench, spec: StudentSpec, checkpoint: Checkpoint | None, samples: int
) -> dict[str, Artifact]:
    """Return training samples as a student's file takes them, by input: of a stepwise student single steps."""
    if isinstance(bench.task, Stepwise):
        steps = bench.store.run(recorded_steps, spec, bench.task, checkpoint, "train", samples)
        return {name: steps[name] for name in inputs_of(spec, bench.space.channels)}
    (name,) = inputs_of(spec, bench.space.channels)
    return {name: bench.store.run(calibrate, bench.task, spec.resolution, samples)}


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


@dataclass(frozen=True, kw_only=True)
class InModes:
    """A file measured otherwise than back to back by the clock, and why that breaks its budget."""

    latencies: dict[str, Latency] = field(default_factory=dict)  # "sustained 10 min", "one every 33 ms"
    energy: Energy | None = None  # where the budget limits it
    breaches: tuple[str, ...] = ()


def judge_in_modes(bench: Workbench, judged: Judged) -> InModes:
    """Measure a file's energy, and it sustained and at its period, where the budget asks; each must keep the limits.

    The first that does not ends it: minutes of device time would tell nothing more.
    """
    budget, latencies = bench.job.budget, {}
    if budget.period_ms is not None and (p50_ms := judged.latency.percentile(50)) > budget.period_ms:
        return InModes(
            breaches=(f"an inference takes {p50_ms:.3f} ms, its period is {budget.period_ms:g} ms",)
        )
    energy, breach = _energy(bench, judged.engine)
    if breach:
        return InModes(energy=energy, breaches=(breach,))
    for name, protocol in modes(budget):
        log.info("  measuring %s", name)
        (latency,) = bench.device.time([judged.engine], replace(protocol, seed=bench.seed))
        latencies[name] = latency.latter_half if protocol.soak_s else latency
        if breaches := judged.limits.latency_breaches(latencies[name]):
            why = tuple(f"{name}: {breach}" for breach in breaches)
            return InModes(latencies=latencies, energy=energy, breaches=why)
    return InModes(latencies=latencies, energy=energy)


def _energy(bench: Workbench, engine: Engine) -> tuple[Energy | None, str]:
    limit_mj = bench.job.budget.energy_mj
    if limit_mj is None:
        return None, ""
    found = energy_of(bench.device, engine, asked=ENERGY_ASKED, mend=ENERGY_MEND)
    return found, found.breach(limit_mj)


def modes(budget: Budget) -> tuple[tuple[str, Protocol], ...]:
    """Name the modes of a budget beside back to back, the shorter first, and say how each is measured."""
    quantile = max(RANKS[name] for name in budget.latency_ms.percentiles) / 100
    samples = _SLACK * math.log(1 - budget.confidence) / math.log(quantile)
    found = []
    if budget.period_ms is not None:
        blocks = _DUTY_CYCLE.launches * _DUTY_CYCLE.blocks
        protocol = replace(_DUTY_CYCLE, samples=math.ceil(samples / blocks), period_ms=budget.period_ms)
        found.append((f"one every {budget.period_ms:g} ms", protocol))
    if budget.sustained_minutes is not None:
        blocks = _SUSTAINED.blocks // 2
        soak_s = 60 * budget.sustained_minutes
        protocol = replace(_SUSTAINED, samples=math.ceil(samples / blocks), soak_s=soak_s)
        found.append((f"sustained {budget.sustained_minutes:g} min", protocol))
    return tuple(found)


def limits_for(bench: Workbench, teacher: Latency) -> Limits:
    """Put the budget in numbers, given how fast the teacher runs beside."""
    budget = bench.job.budget
    return Limits(
        latency_ms=budget.latency_ms.limits(teacher),
        confidence=budget.confidence,
        size_mb=budget.size_mb,
        memory_mb=budget.memory_mb,
        open_ms=budget.open_ms,
    )


def screening(limits: Limits) -> Limits:
    """Return limits for a short measurement: its likely value is held against them, instead of its upper bound.

    They are tighter than the budget by what usually lies between the two when the final measurement is taken.
    """
    tighter = {name: _ROOM * limit_ms for name, limit_ms in limits.latency_ms.items()}
    return replace(limits, latency_ms=tighter, confidence=_EVEN_ODDS)


def accuracy_floor(bench: Workbench) -> float:
    """Return the least validation metric that the budget admits."""
    return bench.teacher_accuracy("validation") - bench.job.budget.max_accuracy_drop


def answers_of(
    bench: Workbench, engine: Engine, spec: StudentSpec, split: str, limit: int | None = None
) -> NDArray[Any]:
    """Return what the compiled file answers on the device for a split: (n, *answer_shape)."""
    folder = (
        bench.store.root / "outputs" / engine.model.file.sha256[:16] / engine.runtime / engine.precision.value
    ) / f"{split}-{limit or 'all'}"
    takes = inputs_of(spec, bench.space.channels)
    if isinstance(bench.task, Stepwise):
        chosen = bench.task.split(split)
        chosen = chosen if limit is None else chosen.spread(limit)
        return bench.task.answers(_stepping(bench, engine, folder), chosen, takes)
    (name,) = takes
    inputs = bench.store.run(prepare, bench.task, split, spec.resolution, limit)
    outputs = bench.device.infer(engine, {name: inputs}, folder)[outputs_of(spec, bench.space.channels)[0]]
    rows: NDArray[Any] = np.load(outputs.verified(), allow_pickle=False)
    return rows.reshape(len(rows), *bench.task.answer_shape(spec.resolution))


def _stepping(bench: Workbench, engine: Engine, folder: Path) -> Run:
    """Return what runs single steps on the device; nothing of them is kept."""

    def run(rows: Rows) -> Rows:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            given = {}
            for name, array in rows.items():
                np.save(Path(scratch) / f"{name}.npy", array)
                given[name] = Artifact.of(Path(scratch) / f"{name}.npy")
            found = bench.device.infer(engine, given, Path(scratch) / "outputs")
            return {name: np.load(kept.verified(), allow_pickle=False) for name, kept in found.items()}

    return run


def accuracy_of(bench: Workbench, engine: Engine, spec: StudentSpec, split: str) -> float:
    """Return the task's metric of the compiled file on a split."""
    return bench.task.score(answers_of(bench, engine, spec, split), bench.task.split(split).labels)


def parity_of(bench: Workbench, engine: Engine, spec: StudentSpec, checkpoint: Checkpoint) -> Parity:
    """Compare a compiled file with torch on real validation samples."""
    expected = reference_of(bench, spec, checkpoint, "validation", _PARITY_SAMPLES)
    outputs = answers_of(bench, engine, spec, "validation", _PARITY_SAMPLES)
    found = parity(expected, outputs, labelled=bench.task.kind in CLASSIFYING)
    log.info("parity of %s: max error %.1e of the output scale", engine.name, found.relative_error)
    return found


def reference_of(
    bench: Workbench, spec: StudentSpec, checkpoint: Checkpoint, split: str, limit: int
) -> NDArray[np.float32]:
    """Return what torch answers for samples of a split: (limit, *answer_shape)."""
    task, space = bench.task, bench.space
    if isinstance(task, Stepwise):
        found = bench.store.run(reference_answers, spec, task, checkpoint, split, limit)
    else:
        inputs = bench.store.run(prepare, task, split, spec.resolution, limit)
        found = bench.store.run(reference, spec, space.channels, space.classes, checkpoint, inputs)
    outputs: NDArray[np.float32] = np.load(found.verified(), allow_pickle=False)
    return outputs

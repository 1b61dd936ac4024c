"""One student through labels, distillation and export, with nothing held against the budget."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from edgekd.errors import BudgetError
from edgekd.pipeline.loop import current_limits, learn_the_device, promising
from edgekd.pipeline.measuring import compiled, parity_of
from edgekd.pipeline.searching import next_proposal
from edgekd.pipeline.trials import distilled
from edgekd.pipeline.workbench import Workbench, workbench
from edgekd.store import replacing, write_text
from edgekd.values.artifact import Artifact
from edgekd.values.codec import plain
from edgekd.values.job import Job
from edgekd.values.model import Precision
from edgekd.values.outcome import Distilled
from edgekd.values.student import StudentSpec

log = logging.getLogger(__name__)


def distill_one(job: Job, *, beside: Path, name: str, spec: StudentSpec | None, out: Path) -> Distilled:
    """Train one student fully; write `out/student/` with model.onnx, weights.safetensors and student.json.

    What a run in the same folder has labelled, timed or trained is used again.

    Raises:
        BudgetError: no spec is given, and the search finds none within the budget.
        TrainingError: the training diverged.

    """
    with workbench(job, beside=beside, name=name, out=out) as bench:
        spec = spec or _proposed(bench)
        log.info("distilling %s for %d epochs", spec, job.distillation.epochs)
        checkpoint = distilled(bench, spec, job.distillation.epochs)
        runtime = bench.combinations()[0][0]
        engine = compiled(bench, spec, checkpoint, runtime, Precision.FP32)
        parity = parity_of(bench, engine, spec, checkpoint)
        kept = {"model.onnx": engine.model.file, "weights.safetensors": checkpoint.weights}
        made = Distilled(
            spec=spec,
            files={
                str(_copied(out / "student" / file, artifact)): artifact.sha256
                for file, artifact in kept.items()
            },
            metric=bench.task.metric,
            teacher=bench.teacher_accuracy("validation"),
            student=checkpoint.accuracy,
            epochs=checkpoint.epochs,
            train_seconds=checkpoint.seconds,
            images_per_second=checkpoint.images_per_second,
            max_error=parity.max_error,
            scale=parity.scale,
        )
    write_text(out / "student" / "student.json", json.dumps(plain(made), indent=1) + "\n")
    return made


def _proposed(bench: Workbench) -> StudentSpec:
    """Return the most promising student of an earlier search, else the first that a search would try."""
    if found := promising(bench.history()):
        return found[0].proposal.spec
    learn_the_device(bench)
    proposal = next_proposal(bench, current_limits(bench), bench.job.search.trials)
    if proposal is None:
        raise BudgetError(
            "no student is expected to meet the budget",
            mend="name one with --student, or see `edgekd plan` for budgets within reach",
        )
    return proposal.spec


def _copied(path: Path, artifact: Artifact) -> Path:
    with replacing(path) as partial:
        shutil.copyfile(artifact.verified(), partial)
    return path

"""What a run works with: the job, what it loaded, the device and where results are kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from edgekd.devices import Device, by_trtexec, connect
from edgekd.distillation.fitting import try_losses
from edgekd.distillation.teachers import Teacher, load_teacher, with_weights
from edgekd.errors import BackendMissing, ConfigError
from edgekd.pipeline import sharing
from edgekd.pipeline.carrying import carried
from edgekd.pipeline.metering import require_meter
from edgekd.stages.configure import job_digest, load_target
from edgekd.stages.evaluate import teacher_accuracy
from edgekd.stages.quantize import Quantizers
from edgekd.stages.teach import teach
from edgekd.store import Store, TrialLog
from edgekd.students import family_of, space_for
from edgekd.tasks import load as load_task
from edgekd.tasks.task import Task
from edgekd.values.codec import fingerprint
from edgekd.values.job import Job
from edgekd.values.measurement import Measurement
from edgekd.values.model import Precision
from edgekd.values.order import ProbeReply
from edgekd.values.student import Space
from edgekd.values.target import Target
from edgekd.values.trial import History, Trial

logger = logging.getLogger(__name__)

ENERGY_ASKED = "the budget limits energy_mj"
ENERGY_MEND = "take energy_mj out of [budget], or measure on a device that has one"


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """Everything the steps of one run share; only the trial log changes."""

    job: Job
    name: str
    target: Target
    task: Task
    teacher: Teacher
    space: Space
    device: Device
    probe: ProbeReply
    quantizers: Quantizers
    store: Store
    log: TrialLog
    key: str  # of this job in the log
    teach_seconds: float

    @property
    def seed(self) -> int:
        """Seed of everything random in the run."""
        return self.job.search.seed

    def history(self) -> History:
        """Return every trial of this job so far, those of interrupted runs included."""
        return self.log.history(self.key)

    def record(self, *trials: Trial) -> list[Trial]:
        """Log trials that belong together, all or none, and return them."""
        self.log.record(self.key, *trials)
        sharing.keep(self.log.path.parent, trials, self.space)
        return [*trials]

    def stored(self) -> tuple[Measurement, ...]:
        """Return what was imported from other devices: a prior, and never a result."""
        return sharing.foreign(self.log.path.parent)

    def teacher_accuracy(self, split: str) -> float:
        """Return the teacher's metric on `validation` or `test`, in torch."""
        return self.store.run(teacher_accuracy, self.teacher, self.task, split)

    def combinations(self) -> tuple[tuple[str, Precision], ...]:
        """Return the runtimes that work on the device, each with the precisions worth trying there."""
        working = {health.name for health in self.probe.runtimes if health.works}
        return tuple(
            (runtime, precision)
            for runtime in self.target.runtimes
            if runtime in working
            for precision in self.target.profile.runtimes[runtime]
        )


@contextmanager
def workbench(
    job: Job,
    *,
    beside: Path,
    name: str,
    out: Path,
    teacher: object = None,
    data: Task | None = None,
    train: bool = True,
    store: Path | None = None,
) -> Iterator[Workbench]:
    """Load what the job names, connect the device, and let the teacher learn the task where the job says so.

    Args:
        job: what is asked for.
        beside: the folder that the job's relative paths start from.
        name: of the run.
        out: where everything is written.
        teacher: a live torch module in place of the job's.
        data: a live task in place of the job's.
        train: False leaves the teacher untrained: its latency is the same.
        store: where results are kept, for several targets that share them; None: in `out`.

    """
    results = Store(store or out / "store")
    for folder in (out, results.root):
        _sweep(folder)
    target = load_target(job, beside)
    with connect(target) as device, carried(results, device), Quantizers() as quantizers:
        probe = _working(device, target)
        if job.budget.energy_mj is not None:  # before minutes of training
            _check_meter(device, probe)
        task = (
            data
            if data is not None
            else load_task(job.task, beside=beside, cache=results.root / "data", seed=job.search.seed)
        )
        loaded = load_teacher(job.teacher, beside=beside, task=task, module=teacher)
        space = _space(job, task)
        try_losses(job.distillation, loaded, task, space)  # a misspelt loss or tap shows before the work
        ready, seconds = _taught(results, loaded, task, job) if train else (loaded, 0.0)
        where = replace(target, wait_s=0.0, record="", device=device.name)
        identity = [job_digest(job), where, task.fingerprint, ready.fingerprint, probe.conditions]
        yield Workbench(
            job=job,
            name=name,
            target=target,
            task=task,
            teacher=ready,
            space=space,
            device=device,
            probe=probe,
            quantizers=quantizers,
            store=results,
            log=TrialLog(out / "trials.sqlite"),
            key=fingerprint(identity),
            teach_seconds=seconds,
        )


def _space(job: Job, task: Task) -> Space:
    """Return the students to search: of the job's families, or where it names none of the task's.

    Raises:
        ConfigError: one of the job's cannot serve the task.

    """
    for name in job.search.families:
        family_of(name)
        if name not in task.families:
            raise ConfigError(
                f"the family {name!r} does not serve {task.kind}",
                mend=f"name {' or '.join(task.families)} in search.families, or leave it out",
            )
    return space_for(
        resolution=task.resolution,
        channels=task.channels,
        classes=task.outputs,
        families=job.search.families or task.families,
    )


def _sweep(out: Path) -> None:
    """Remove what killed processes left half written, and leave alone what a living one is writing."""
    for left in out.rglob(".*.partial"):
        writer = left.name.split(".")[-2]
        if writer.isdigit() and not psutil.pid_exists(int(writer)):
            left.unlink(missing_ok=True)


def _check_meter(device: Device, probe: ProbeReply) -> None:
    runtime = next(health.name for health in probe.runtimes if health.works)
    require_meter(device, runtime, asked=ENERGY_ASKED, mend=ENERGY_MEND)


def _working(device: Device, target: Target) -> ProbeReply:
    """Return what works there and answers with labels; what only times is left out of a search."""
    found = device.probe()
    timers = [health for health in found.runtimes if health.name == by_trtexec.RUNTIME and health.works]
    probe = replace(found, runtimes=tuple(one for one in found.runtimes if one not in timers))
    for health in timers:
        logger.warning("%s is left out of the search: %s", health.name, by_trtexec.NO_LABELS)
    if not any(health.works for health in probe.runtimes):
        told = [replace(health, problem=by_trtexec.NO_LABELS) for health in timers]
        problems = "; ".join(f"{health.name}: {health.problem}" for health in (*probe.runtimes, *told))
        mends = " or ".join(health.mend for health in probe.runtimes if health.mend)
        raise BackendMissing(
            f"no runtime of {target.profile.name} works on {target.device}", cause=problems, mend=mends
        )
    return probe


def _taught(store: Store, teacher: Teacher, task: Task, job: Job) -> tuple[Teacher, float]:
    if job.teacher.epochs == 0:
        return teacher, 0.0
    # What only students are trained with must not train the teacher anew.
    recipe = replace(
        job.distillation,
        losses={task.criterion: 1.0},
        temperature=None,
        balance="fixed",
        learning_rate=1.0,
        epochs=1,
        short_epochs=1,
        quantized_epochs=0,
        views=1,
        scheme="offline",
        peers=2,
        generations=2,
        mutual=1.0,
    )
    section = replace(job.teacher, model="", weights=None)  # the teacher itself is its content
    checkpoint = store.run(teach, teacher, task, section, recipe, job.search.seed)
    return with_weights(teacher, checkpoint), checkpoint.seconds

"""One search for several targets, or with trainings on other machines: the loop of each, and what they share."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from edgekd.errors import BudgetError, DeviceError, EdgekdError, UsageError
from edgekd.pipeline.delivery import deliver, refuse
from edgekd.pipeline.loop import (
    MORE,
    accept,
    closed,
    current_limits,
    finish_the_best,
    learn_the_device,
    loosest,
    next_finalists,
    refusal,
)
from edgekd.pipeline.rounds import ROUNDS, Lane, Trainer, check_sampler, search_in_rounds, train_first
from edgekd.pipeline.trials import distilled, training_of
from edgekd.pipeline.workbench import workbench
from edgekd.tasks.task import Task
from edgekd.values.job import Job
from edgekd.values.outcome import Outcome
from edgekd.values.student import StudentSpec
from edgekd.values.targets import Outcomes, TargetOutcome
from edgekd.values.trial import Verdict

log = logging.getLogger(__name__)

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_MOST_CHARS = 80


def folder_names(targets: Sequence[str]) -> dict[str, str]:
    """Return each target's folder within the run's: its name, or that of its file.

    Raises:
        UsageError: two would share one.

    """
    found: dict[str, str] = {}
    for target in targets:
        name = target.partition(":")[2] or target
        name = Path(name).name.removesuffix(".toml").removesuffix(".cassette")
        name = _UNSAFE.sub("-", name).strip(".-")[:_MOST_CHARS] or "target"
        if name in (*found.values(), "store"):
            raise UsageError(
                f"--target {target!r} cannot have a folder of its own",
                cause=f"{name!r} is taken",
                mend="give each target once, under different names",
            )
        found[target] = name
    return found


def close_the_loops(
    jobs: Mapping[str, Job],
    *,
    beside: Path,
    name: str,
    out: Path,
    command: str,
    teacher: object = None,
    data: Task | None = None,
    trainer: Trainer | None = None,
) -> Outcomes:
    """Find, train and deliver the best student for each target; whatever is trained serves all that it may.

    Each target has its own trials, limits, acceptance, bundle and report in a folder of its name; what was trained
    and labelled is shared in `out/store`. A target whose budget is not met, or whose device fails, stops no other.

    Args:
        jobs: by target; they differ in `[target]` and in `[budget]` alone.
        beside: the folder that relative paths start from.
        name: of the run; a bundle's is followed by its target's.
        out: the folder of all.
        command: that makes this run again.
        teacher: a live torch module in place of the job's.
        data: a live task in place of the job's.
        trainer: who trains several students at a time.

    Raises:
        UsageError: the jobs differ in more, or a target is given twice.
        EdgekdError: whatever is wrong for every target, such as the data.

    """
    _check_alike(jobs)
    began, folders = time.monotonic(), folder_names([*jobs])
    with ExitStack() as stack:
        lanes: list[Lane] = []
        failed: dict[str, EdgekdError] = {}
        for target, job in jobs.items():
            place = out / folders[target]
            try:
                opened = workbench(
                    job,
                    beside=beside,
                    name=f"{name}-{folders[target]}",
                    out=place,
                    teacher=teacher,
                    data=data if data is not None or not lanes else lanes[0].bench.task,
                    store=out / "store",
                )
                lanes.append(Lane(name=target, bench=stack.enter_context(opened), out=place))
            except DeviceError as error:
                log.warning("%s: %s", target, error.what)
                failed[target] = error
        outcomes = close(lanes, journal=out / ROUNDS, command=command, trainer=trainer)
        found = [_told(target, out / folders[target], lanes, outcomes, failed.get(target)) for target in jobs]
        return Outcomes(
            targets=tuple(found),
            trainings=len(_all_trained(lanes)),
            train_seconds=_train_seconds(lanes),
            seconds=time.monotonic() - began,
        )


def close_the_loop_with(
    trainer: Trainer,
    job: Job,
    *,
    beside: Path,
    name: str,
    out: Path,
    command: str,
    teacher: object = None,
    data: Task | None = None,
) -> Outcome:
    """Do what `close_the_loop` does, with several trainings at a time.

    Raises:
        BudgetError: no student meets the budget.
        DeviceError: the target fails, or what trains.

    """
    began = time.monotonic()
    with workbench(job, beside=beside, name=name, out=out, teacher=teacher, data=data) as bench:
        lane = Lane(name=name, bench=bench, out=out)
        outcomes = close([lane], journal=out / ROUNDS, command=command, trainer=trainer)
        if lane.error is not None:
            raise lane.error
        return replace(outcomes[name], seconds=time.monotonic() - began)


def close(
    lanes: Sequence[Lane], *, journal: Path, command: str, trainer: Trainer | None = None
) -> dict[str, Outcome]:
    """Carry every target from its first measurement to its bundle; return the outcomes of those that got there."""
    began, outcomes = time.monotonic(), dict[str, Outcome]()
    for lane in lanes:
        check_sampler(lane.bench)
        with _reported(lane, command):
            learn_the_device(lane.bench)
    trials = max((lane.bench.job.search.trials for lane in lanes), default=0)
    for wanted in (trials, trials + MORE, trials + 2 * MORE):
        going = [lane for lane in lanes if lane.error is None and lane.name not in outcomes]
        search_in_rounds(going, wanted, journal=journal, trainer=trainer)
        for lane in going:
            _train_finalists(lane, trainer)
            with _reported(lane, command):
                if lane.error is not None:
                    raise lane.error
                finish_the_best(lane.bench)
                accepted = accept(lane.bench)
                if accepted:
                    made = deliver(lane.bench, lane.out, command, accepted)
                    outcomes[lane.name] = closed(lane.bench, made, seconds=time.monotonic() - began)
                elif lane.bench.history().with_verdict(Verdict.INACCURATE) or wanted == trials + 2 * MORE:
                    limits = current_limits(lane.bench)
                    raise refusal("no finished student meets the budget", lane.bench.history(), limits)
    return outcomes


@contextmanager
def _reported(lane: Lane, command: str) -> Iterator[None]:
    """Keep what stops a target, with its report where that is its budget."""
    with lane.guarded():
        try:
            yield
        except BudgetError as error:
            refuse(lane.bench, lane.out, command, error, loosest(lane.bench))
            raise


def _train_finalists(lane: Lane, trainer: Trainer | None) -> None:
    """Have those trained at a time that are likely to be finished."""
    if trainer is not None and lane.error is None:
        epochs = lane.bench.job.distillation.epochs
        train_first([training_of(lane.bench, spec, epochs) for spec in next_finalists(lane.bench)], trainer)


def _told(
    target: str,
    folder: Path,
    lanes: Sequence[Lane],
    outcomes: Mapping[str, Outcome],
    error: EdgekdError | None,
) -> TargetOutcome:
    lane = next((one for one in lanes if one.name == target), None)
    trainings = len(_trained(lane)) if lane else 0
    error = lane.error if lane else error
    if target in outcomes or error is None:
        return TargetOutcome(target=target, folder=folder, outcome=outcomes.get(target), trainings=trainings)
    return TargetOutcome(
        target=target,
        folder=folder,
        trainings=trainings,
        problem=error.what,
        cause=error.cause,
        mend=error.mend,
        exit_code=error.exit_code,
    )


def _trained(lane: Lane) -> set[tuple[StudentSpec, int]]:
    trials = lane.bench.history().trials
    return {(trial.proposal.spec, trial.epochs) for trial in trials if trial.epochs}


def _all_trained(lanes: Sequence[Lane]) -> set[tuple[StudentSpec, int]]:
    return {one for lane in lanes for one in _trained(lane)}


def _train_seconds(lanes: Sequence[Lane]) -> float:
    """Sum what was trained, each student once, and the teacher's own training."""
    if not lanes:
        return 0.0
    bench = lanes[0].bench
    return bench.teach_seconds + sum(
        distilled(bench, spec, epochs).seconds for spec, epochs in _all_trained(lanes)
    )


def _check_alike(jobs: Mapping[str, Job]) -> None:
    first = next(iter(jobs.values()))
    for target, job in jobs.items():
        if replace(job, target=first.target, budget=first.budget) != first:
            raise UsageError(
                f"the job of {target!r} differs in more than its target and its budget",
                mend="run it on its own: another teacher, task or recipe shares no training",
            )

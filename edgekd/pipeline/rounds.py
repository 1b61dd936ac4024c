"""A search in rounds: for several targets that share each training, and with several trainings at a time.

A round is written down before it is carried out, so that a run that was stopped within one goes on with it: what
comes next hangs on the trials and the rounds on disk alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Protocol

from edgekd.errors import BudgetError, DeviceError, EdgekdError, UsageError
from edgekd.pipeline import sharing
from edgekd.pipeline.loop import current_limits, promising, refusal, refused
from edgekd.pipeline.measuring import screening
from edgekd.pipeline.searching import frontier_share, scaled
from edgekd.pipeline.trials import screened, taught, training_of
from edgekd.pipeline.workbench import Workbench
from edgekd.stages.propose import Asking, propose_together
from edgekd.store.journal import append, read
from edgekd.values.budget import Limits
from edgekd.values.measurement import Measurement
from edgekd.values.student import StudentSpec
from edgekd.values.targets import Round
from edgekd.values.training import TrainingOrder
from edgekd.values.trial import History, Proposal, Trial, Verdict

log = logging.getLogger(__name__)

ROUNDS = "rounds.jsonl"


class Trainer(Protocol):
    """Who trains several students at a time."""

    @property
    def workers(self) -> int:
        """How many."""

    def train(self, orders: Sequence[TrainingOrder]) -> None:
        """Train each to its last epoch, in the folder of the store where it will be looked for."""


@dataclass(kw_only=True)
class Lane:
    """One target of a run; what stops it stops no other."""

    name: str
    bench: Workbench
    out: Path
    error: EdgekdError | None = None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep what stops this target: its budget or its device."""
        try:
            yield
        except (BudgetError, DeviceError) as error:
            if error is self.error:
                return
            self.error = error
            log.warning("%s: %s%s", self.name, error.what, f": {error.cause}" if error.cause else "")


def search_in_rounds(
    lanes: Sequence[Lane], wanted: int, *, journal: Path, trainer: Trainer | None = None
) -> None:
    """Propose, time untrained and distill briefly, until each target has `wanted` students or none is left.

    Each student is trained once, for every target that it may serve; `propose_together` says which that are. A
    round holds one student, or with a trainer at most as many as it has workers, and at most half of what is wanted
    still, so that later ones learn from earlier ones. A target without a single student has an error afterwards.
    """
    limits = _limits(lanes)
    for earlier in read(journal, Round):
        carry_out(lanes, earlier, trainer)
    while picked := next_round(lanes, limits, wanted, _width(lanes, wanted, trainer)):
        append(journal, picked)
        carry_out(lanes, picked, trainer)
    for lane in _going(lanes):
        history = lane.bench.history()
        if not promising(history):
            with lane.guarded():
                raise refusal("no student is fast enough", history, limits[lane.bench.key])


def next_round(
    lanes: Sequence[Lane], limits: Mapping[str, dict[str, Limits]], wanted: int, width: int
) -> Round | None:
    """Choose at most `width` students; None where no target wants or knows another.

    The second of a round is chosen as if the first had scored like those before it (the constant liar of
    Ginsbourger et al. 2010), so that it lies elsewhere.
    """
    open_lanes = [lane for lane in _going(lanes) if _wants(lane, wanted)]
    histories = {lane.bench.key: lane.bench.history() for lane in lanes}
    picked: list[dict[str, Proposal]] = []
    while open_lanes and len(picked) < width:
        trained = History(trials=tuple(trial for one in histories.values() for trial in one.trials))
        bench = open_lanes[0].bench
        asking = [
            _asking(lane, lanes, histories[lane.bench.key], limits[lane.bench.key]) for lane in open_lanes
        ]
        found = propose_together(bench.space, asking, trained, seed=bench.seed)
        if not found and bench.job.search.aim == "frontier":  # out of reach at a share of the budget
            whole = [replace(one, limits=limits[lane.bench.key]) for one, lane in zip(asking, open_lanes)]
            found = propose_together(bench.space, whole, trained, seed=bench.seed)
        if not found:
            break
        student = {open_lanes[at].bench.key: proposal for at, proposal in found.items()}
        picked.append(student)
        for key, proposal in student.items():
            histories[key] = histories[key].adding(_believed(proposal, trained, bench))
    return Round(students=tuple(picked)) if picked else None


def carry_out(lanes: Sequence[Lane], picked: Round, trainer: Trainer | None) -> None:
    """Time each student of a round on its targets and train it once; what is on record already is left as it is."""
    drafts: list[tuple[Lane, Trial]] = []
    for student in picked.students:
        for lane in _going(lanes):
            proposal = student.get(lane.bench.key)
            if proposal is not None and not _tried(lane, proposal.spec):
                log.info(
                    "%s: trial %d: %s", lane.name, len(promising(lane.bench.history())) + 1, proposal.name
                )
                with lane.guarded():
                    drafts.append((lane, screened(lane.bench, proposal)))
    train_first(
        [
            training_of(lane.bench, trial.proposal.spec, lane.bench.job.distillation.short_epochs)
            for lane, trial in drafts
            if trial.verdict is Verdict.PROMISING
        ],
        trainer,
    )
    for lane, trial in drafts:
        (done,) = lane.bench.record(taught(lane.bench, trial))
        score = f", {lane.bench.task.metric} {done.accuracy:.4f}" if done.accuracy is not None else ""
        log.info("  %s: %s%s %s", lane.name, done.verdict.value, score, done.why)


def train_first(orders: Sequence[TrainingOrder], trainer: Trainer | None) -> None:
    """Have what several targets or students need trained elsewhere; without a trainer it is trained when it is needed."""
    each = {order.folder: order for order in orders}
    missing = [order for folder, order in each.items() if not (Path(folder) / "result.json").is_file()]
    if trainer is not None and missing:
        trainer.train(missing)


def check_sampler(bench: Workbench) -> None:
    """Refuse Optuna's samplers, which know neither several targets nor several students at a time.

    Raises:
        UsageError: the job names one.

    """
    if bench.job.search.sampler != "edgekd":
        raise UsageError(
            f"the sampler {bench.job.search.sampler!r} proposes one student for one target",
            mend='write search.sampler = "edgekd", or run one target at a time and without --cluster',
        )


def _limits(lanes: Sequence[Lane]) -> dict[str, dict[str, Limits]]:
    """Return what short measurements are held against, by the key of a target and by runtime."""
    found: dict[str, dict[str, Limits]] = {}
    for lane in _going(lanes):
        with lane.guarded():
            current = current_limits(lane.bench)
            found[lane.bench.key] = {runtime: screening(limit) for runtime, limit in current.items()}
    return found


def _going(lanes: Sequence[Lane]) -> list[Lane]:
    return [lane for lane in lanes if lane.error is None]


def _wants(lane: Lane, wanted: int) -> bool:
    history = lane.bench.history()
    return len(promising(history)) < wanted and refused(history) < 3 * wanted


def _width(lanes: Sequence[Lane], wanted: int, trainer: Trainer | None) -> int:
    if trainer is None:
        return 1
    missing = max((wanted - len(promising(lane.bench.history())) for lane in _going(lanes)), default=0)
    return max(1, min(trainer.workers, missing // 2))


def _asking(lane: Lane, lanes: Sequence[Lane], history: History, limits: dict[str, Limits]) -> Asking:
    share = frontier_share(lane.bench, history)
    return Asking(history=history, limits=scaled(limits, share), stored=_stored(lane, lanes))


def _tried(lane: Lane, spec: StudentSpec) -> bool:
    return any(
        trial.proposal.spec == spec and trial.verdict is not Verdict.MEASURED
        for trial in lane.bench.history().trials
    )


def _believed(proposal: Proposal, trained: History, bench: Workbench) -> Trial:
    scores = [
        trial.accuracy for trial in trained.with_verdict(Verdict.PROMISING) if trial.accuracy is not None
    ]
    epochs = bench.job.distillation.short_epochs
    return Trial(
        proposal=proposal, verdict=Verdict.PROMISING, accuracy=fmean(scores) if scores else 0.0, epochs=epochs
    )


def _stored(lane: Lane, lanes: Sequence[Lane]) -> tuple[Measurement, ...]:
    """Return what is known of other devices: what was imported, and what was timed for the other targets."""
    beside = [
        replace(one, device=f"{one.device} as {other.name}")
        for other in lanes
        if other is not lane
        for one in sharing.measured(other.bench.history().trials, other.bench.space)
    ]
    return (*lane.bench.stored(), *beside)

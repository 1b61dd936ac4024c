"""The whole run, in the order it happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from math import inf, sqrt
from pathlib import Path

from edgekd.errors import BudgetError, BuildError
from edgekd.pipeline.delivery import Accepted, deliver, refuse
from edgekd.pipeline.drawing import fastest_build
from edgekd.pipeline.measuring import (
    FULL,
    InModes,
    Judged,
    judge,
    judge_in_modes,
    limits_for,
    screening,
    teacher_engine,
)
from edgekd.pipeline.searching import next_proposal
from edgekd.pipeline.trials import finish, time_untrained, try_briefly
from edgekd.pipeline.workbench import Workbench, workbench
from edgekd.stages.judge_search import first_picks, measured_frontier
from edgekd.stages.probe import next_probe
from edgekd.stages.propose import probes
from edgekd.tasks.task import Task
from edgekd.values.budget import RANKS, Limits
from edgekd.values.conditions import TrustVerdict
from edgekd.values.job import LEAST_PROBES, Job
from edgekd.values.model import Precision
from edgekd.values.outcome import Outcome
from edgekd.values.student import StudentSpec
from edgekd.values.trial import History, Trial, Verdict

log = logging.getLogger(__name__)

MORE = 2  # students distilled beside, each time all finalists turn out too slow
_CHANCES = 3  # measurements that a noisy machine is given before it refuses a student
_ABREAST = 4  # finalists that are measured together
_UNFINISHED = (Verdict.MEASURED, Verdict.PROMISING)
_WORTHWHILE = 1.6  # times the latency of the fastest combination, on the student that suits it best


def close_the_loop(
    job: Job,
    *,
    beside: Path,
    name: str,
    out: Path,
    command: str,
    teacher: object = None,
    data: Task | None = None,
) -> Outcome:
    """Find, train and deliver the best student that meets the budget on the target.

    Called again after an interruption it goes on where it was: results are kept in `out/store`, trials in
    `out/trials.sqlite`, and everything decided here is decided from those.

    Raises:
        BudgetError: no student meets the budget; the report says what came closest.

    """
    began = time.monotonic()
    with workbench(job, beside=beside, name=name, out=out, teacher=teacher, data=data) as bench:
        try:
            learn_the_device(bench)
            accepted = find(bench)
        except BudgetError as error:
            refuse(bench, out, command, error, loosest(bench))
            raise
        outcome = deliver(bench, out, command, accepted)
        return closed(bench, outcome, seconds=time.monotonic() - began)


def closed(bench: Workbench, outcome: Outcome, *, seconds: float) -> Outcome:
    """Add to what was delivered how long it took, and what the search amounts to."""
    history = bench.history()
    wanted = bench.job.search.aim == "frontier"
    return replace(
        outcome,
        seconds=seconds,
        first_picks_broken=first_picks(history).share,
        frontier=measured_frontier(history) if wanted else (),
    )


def learn_the_device(bench: Workbench) -> None:
    """Time a handful of untrained students at every precision that pays.

    The first run from small to large; each further one is the student that tells most of what is still unknown.
    """
    combinations = bench.combinations()
    count = bench.job.search.probes
    spread = probes(bench.space, max(LEAST_PROBES, count // 2), seed=bench.seed)[:count]
    for at in range(count):
        known = bench.history().with_verdict(Verdict.MEASURED, Verdict.UNBUILDABLE)
        timed = {trial.proposal.spec for trial in known}
        if len(timed) > at:
            continue  # in an earlier call
        spec = spread[at] if at < len(spread) else _most_telling(bench)
        if spec is None or spec in timed:
            continue
        log.info("timing untrained student %d/%d: %s", at + 1, count, spec)
        # Two students show which precisions cannot win here; the others are spared them.
        time_untrained(bench, spec, combinations if at < 2 else worthwhile(bench.history(), combinations))  # noqa: PLR2004


def _most_telling(bench: Workbench) -> StudentSpec | None:
    absolute = [value for name in RANKS if (value := getattr(bench.job.budget.latency_ms, name)) is not None]
    return next_probe(
        bench.space,
        bench.history(),
        seed=bench.seed,
        near_ms=min(absolute, default=None),
        stored=bench.stored(),
    )


def worthwhile(
    history: History, combinations: Sequence[tuple[str, Precision]]
) -> tuple[tuple[str, Precision], ...]:
    """Return the combinations that came near the fastest on some student."""
    p50_ms: dict[StudentSpec, dict[tuple[str, Precision], float]] = {}
    for trial in history.trials:
        if trial.latency is not None:
            combination = (trial.proposal.runtime, trial.proposal.precision)
            p50_ms.setdefault(trial.proposal.spec, {})[combination] = trial.latency.percentile(50)
    near = {
        combination
        for measured in p50_ms.values()
        for combination, latency_ms in measured.items()
        if latency_ms <= _WORTHWHILE * min(measured.values())
    }
    return tuple(combination for combination in combinations if combination in near)


def find(bench: Workbench) -> Accepted:
    """Search, finish and accept; where latency alone stood in the way, search on with what was learnt.

    Raises:
        BudgetError: no student meets the budget.

    """
    trials = bench.job.search.trials
    for wanted in (trials, trials + MORE, trials + 2 * MORE):
        search(bench, wanted)
        finish_the_best(bench)
        if accepted := accept(bench):
            return accepted
        if bench.history().with_verdict(Verdict.INACCURATE):
            break  # fast enough, and not good enough: more of the same would not change that
    raise refusal("no finished student meets the budget", bench.history(), current_limits(bench))


def search(bench: Workbench, wanted: int) -> None:
    """Propose, time untrained, distill briefly, until `wanted` students were distilled or none is left."""
    limits = {runtime: screening(limit) for runtime, limit in current_limits(bench).items()}
    while len(promising(bench.history())) < wanted and refused(bench.history()) < 3 * wanted:
        proposal = next_proposal(bench, limits, wanted)
        if proposal is None:
            break
        log.info("trial %d/%d: %s", len(promising(bench.history())) + 1, wanted, proposal.name)
        trial = try_briefly(bench, proposal)
        log.info("  %s %s", trial.verdict.value, _outcome(trial))
    if not promising(bench.history()):
        raise refusal("no student is fast enough", bench.history(), limits)


def next_finalists(bench: Workbench) -> list[StudentSpec]:
    """Return the students that `finish_the_best` will distill, unless one of them turns out too slow."""
    history = bench.history()
    done = {trial.proposal.spec for trial in history.trials if trial.verdict not in _UNFINISHED}
    left = [trial.proposal.spec for trial in promising(history) if trial.proposal.spec not in done]
    return left[: max(bench.job.search.finalists - len(_fast_enough(history)), 0)]


def finish_the_best(bench: Workbench) -> None:
    """Distill the finalists fully, best first, and judge every variant worth compiling.

    A finalist that turns out too slow, or diverges, gives its place to the next.
    """
    for trial in promising(bench.history()):
        history = bench.history()
        if len(_fast_enough(history)) >= bench.job.search.finalists:
            break
        if trial.proposal.spec not in {
            t.proposal.spec for t in history.trials if t.verdict not in _UNFINISHED
        }:
            log.info("distilling fully: %s", trial.proposal.spec)
            for variant in finish(bench, trial.proposal.spec, variants(bench, trial)):
                combination = f"{variant.proposal.runtime}/{variant.proposal.precision.value}"
                log.info("  %s: %s %s", combination, variant.verdict.value, _outcome(variant))


def _fast_enough(history: History) -> set[StudentSpec]:
    """Return the finished students that meet the latency budget, whatever their accuracy."""
    return {trial.proposal.spec for trial in (*_standing(history), *history.with_verdict(Verdict.INACCURATE))}


def variants(bench: Workbench, trial: Trial) -> tuple[tuple[str, Precision], ...]:
    """Return what a finalist is compiled to: all that may win here, and fp32 wherever int8 is tried."""
    wanted = {*worthwhile(bench.history(), bench.combinations())}
    wanted |= {(trial.proposal.runtime, trial.proposal.precision)}
    parents = {(runtime, Precision.FP32) for runtime, _ in bench.combinations()}
    return tuple(combination for combination in bench.combinations() if combination in wanted | parents)


def accept(bench: Workbench) -> Accepted | None:
    """Measure the best fitting files again, together and in fresh processes; the next ones if none holds."""
    while standing := _standing(bench.history()):
        equals = _equals(standing, len(bench.task.validation), bench.job.budget.confidence)
        for _ in range(_CHANCES):
            measured = list(zip(equals, _together(bench, equals)))
            best, judged = min(measured, key=lambda pair: _merit(pair[1]))
            modes, builds = InModes(), None
            if not judged.breaches:
                # The build that ships is the one that is judged.
                judged, builds = fastest_build(bench, judged)
            if not judged.breaches:
                modes = judge_in_modes(bench, judged)
            if not (breaches := judged.breaches or modes.breaches):
                return Accepted(
                    trial=best, judged=judged, modes=modes.latencies, energy=modes.energy, builds=builds
                )
            latencies = [judged.latency, *modes.latencies.values()]
            if latencies[-1].trust.verdict is TrustVerdict.GOOD:
                break  # a quiet machine says no: once is enough
            log.info("  over its limit on a noisy machine: measuring again")
        why = "did not hold when measured again: "
        for trial, one in measured:
            if trial is best or one.breaches:
                over = "; ".join(breaches if trial is best else one.breaches)
                bench.record(replace(trial, verdict=Verdict.TOO_SLOW, why=why + over, latency=one.latency))
    return None


def _together(bench: Workbench, trials: Sequence[Trial]) -> tuple[Judged, ...]:
    """Judge files in one measurement, so that drift cannot pick the winner; where one breaks it, the first alone."""
    engines = [trial.engine for trial in trials if trial.engine is not None]  # FITS trials have one
    try:
        return judge(bench, engines, FULL)
    except BuildError:
        if len(engines) == 1:
            raise
        return judge(bench, engines[:1], FULL)


def _merit(judged: Judged) -> tuple[bool, float]:
    """Return what is least for the best: whether it breaks a limit, then its bound."""
    return bool(judged.breaches), judged.latency.upper_bound(99.0, judged.limits.confidence)


def _equals(standing: list[Trial], samples: int, confidence: float) -> list[Trial]:
    """Return the fastest of those whose accuracy is within a standard error of the highest, fastest first.

    The one-standard-error rule (Breiman et al. 1984, section 3.4.3): a difference that the validation images
    cannot tell from chance is not worth latency.
    """
    highest = max(trial.accuracy or 0.0 for trial in standing)
    error = sqrt(max(highest * (1 - highest), 0.0) / samples)  # R2 can lie below 0
    equals = [trial for trial in standing if (trial.accuracy or 0.0) >= highest - error]
    equals.sort(key=lambda trial: trial.latency.upper_bound(99.0, confidence) if trial.latency else inf)
    return equals[:_ABREAST]


def _standing(history: History) -> list[Trial]:
    """Return the fitting trials whose files were not found too slow since."""
    broken = {_identity(trial) for trial in history.with_verdict(Verdict.TOO_SLOW) if trial.engine}
    return [trial for trial in history.with_verdict(Verdict.FITS) if _identity(trial) not in broken]


def current_limits(bench: Workbench) -> dict[str, Limits]:
    """Return the budget in ms for each runtime that works, with the teacher timed now."""
    runtimes = sorted({runtime for runtime, _ in bench.combinations()})
    latencies = bench.device.time([teacher_engine(bench, runtime) for runtime in runtimes], FULL)
    return {runtime: limits_for(bench, latency) for runtime, latency in zip(runtimes, latencies)}


def loosest(bench: Workbench) -> Limits:
    """Return the limits of the runtime that has the most room."""
    return max(current_limits(bench).values(), key=lambda limits: sum(limits.latency_ms.values()))


def promising(history: History) -> list[Trial]:
    """Return briefly distilled students, the most accurate first."""
    return sorted(history.with_verdict(Verdict.PROMISING), key=lambda trial: -(trial.accuracy or 0.0))


def refused(history: History) -> int:
    """Count the students that were proposed and not distilled, those of interrupted runs included."""
    tried = {
        trial.proposal.spec
        for trial in history.with_verdict(Verdict.TOO_SLOW, Verdict.UNBUILDABLE, Verdict.DIVERGED)
    }
    others = history.with_verdict(Verdict.MEASURED, Verdict.PROMISING)  # probes, and what was distilled
    return len(tried - {trial.proposal.spec for trial in others})


def _preference(trial: Trial) -> tuple[float, float]:
    latency_ms = trial.latency.percentile(50) if trial.latency else 0.0
    return trial.accuracy or 0.0, -latency_ms


def _identity(trial: Trial) -> tuple[str, str]:
    assert trial.engine is not None  # noqa: S101 - finished trials have one
    return trial.engine.model.file.sha256, trial.engine.name


def _outcome(trial: Trial) -> str:
    latency = f"p50 {trial.latency.percentile(50):.3f} ms" if trial.latency else ""
    accuracy = f", accuracy {trial.accuracy:.4f}" if trial.accuracy is not None else ""
    return f"{latency}{accuracy}{' - ' + trial.why if trial.why else ''}"


def refusal(what: str, history: History, limits: dict[str, Limits]) -> BudgetError:
    """Say what came nearest to the budget, and what would admit it."""
    # An int8 file that gains nothing broke no limit: its float parent did.
    judged = (trial for trial in history.trials if trial.verdict is not Verdict.NO_GAIN)
    finished = [trial for trial in judged if trial.engine is not None and trial.why]
    if finished:
        best = max(finished, key=_preference)
        mend = "allow more with budget.max_accuracy_drop, or train longer with distillation.epochs"
        if best.verdict is Verdict.TOO_SLOW:
            key = "energy_mj" if "energy" in best.why else "latency_ms"
            mend = f"give a higher limit in budget.{key}, or try more students with search.trials"
        return BudgetError(what, cause=f"the closest was {best.proposal.name}: {best.why}", mend=mend)
    if diverged := history.with_verdict(Verdict.DIVERGED):
        mend = "lower distillation.learning_rate, or look for labels or images that are wrong"
        return BudgetError("no student could be trained", cause=diverged[-1].why, mend=mend)
    timed = [
        (limits[trial.proposal.runtime].tightness(trial.latency), trial)
        for trial in history.trials
        if trial.latency is not None and trial.proposal.runtime in limits
    ]
    if not timed:
        return BudgetError(what, cause="nothing could be built", mend="see why with `edgekd doctor`")
    over, nearest = min(timed, key=lambda pair: pair[0])
    wanted = limits[nearest.proposal.runtime].latency_ms.items()
    admits = " and ".join(f"{name} of {limit_ms * over:.3f} ms" for name, limit_ms in wanted)
    return BudgetError(
        what,
        cause=f"the fastest measured is {nearest.proposal.name}, {over:.2f} times the limit",
        mend=f"a limit for {admits} admits it; `edgekd plan` shows what else is within reach",
    )

"""What a device can do with a budget, before anything is trained."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from edgekd.pipeline.loop import current_limits, learn_the_device
from edgekd.pipeline.measuring import screening
from edgekd.pipeline.workbench import Workbench, workbench
from edgekd.stages.predict import Predictor, predict
from edgekd.stages.propose import Candidate, fastest
from edgekd.students import draw, features
from edgekd.values.budget import Limits
from edgekd.values.job import Job
from edgekd.values.outcome import Plan, Reach, Relaxation
from edgekd.values.student import Space, StudentSpec
from edgekd.values.trial import History

_POOL = 3000
_FRONTIER = 8  # points shown


def make_plan(job: Job, *, beside: Path, name: str, out: Path) -> Plan:
    """Time a handful of untrained students and say which budgets are within reach, and at what price.

    Nothing is trained: the teacher, too, is timed as it is, since latency hardly depends on weights.
    """
    with workbench(job, beside=beside, name=name, out=out, train=False) as bench:
        learn_the_device(bench)
        limits = current_limits(bench)
        # What was timed briefly has a likely value; a bound of 99 % would take more samples than there are.
        screened = {runtime: screening(limit) for runtime, limit in limits.items()}
        history = bench.history()
        predictor = predict(
            history,
            limits,
            channels=bench.space.channels,
            classes=bench.space.classes,
            stored=bench.stored(),
        )
        candidates = _candidates(bench.space, predictor, limits, seed=bench.seed)
        within = [found for found in candidates if found.tightness() <= 1]
        return Plan(
            reachable=bool(within),
            limits_ms={runtime: limit.latency_ms for runtime, limit in limits.items()},
            teacher_p99_ms=_teacher_p99_ms(bench, limits),
            fastest_measured_ms=_fastest_measured_ms(history, screened),
            frontier=_frontier(candidates, predictor, bench.space),
            relaxations=() if within else _relaxations(candidates),
            space_size=len(bench.space),
            measured=len(history.trials),
            trials=job.search.trials,
            device_seconds=bench.device.device_seconds,
        )


def _candidates(
    space: Space, predictor: Predictor, limits: dict[str, Limits], *, seed: int
) -> tuple[Candidate, ...]:
    rng = random.Random(f"{seed}/plan")  # noqa: S311 - not cryptography
    specs = draw(space, _POOL, rng)
    return tuple(found for spec in specs if (found := fastest(spec, space, predictor, limits)))


def _frontier(candidates: Sequence[Candidate], predictor: Predictor, space: Space) -> tuple[Reach, ...]:
    """Return students that no other beats in both expected latency and size, thinned to a few."""
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda found: found.expected_ms):
        if not best or _mega_macs(candidate.proposal.spec, space) > _mega_macs(best[-1].proposal.spec, space):
            best.append(candidate)
    step = max(1, len(best) // _FRONTIER)
    return tuple(_reach(candidate, predictor, space) for candidate in best[::step])


def _reach(candidate: Candidate, predictor: Predictor, space: Space) -> Reach:
    proposal = candidate.proposal
    doubt = 2 * predictor.models[proposal.runtime, proposal.precision].spread
    return Reach(
        spec=proposal.spec,
        runtime=proposal.runtime,
        precision=proposal.precision,
        expected_ms=candidate.expected_ms,
        low_ms=candidate.expected_ms * max(0.0, 1 - doubt),
        high_ms=candidate.expected_ms * (1 + doubt),
        mega_macs=_mega_macs(proposal.spec, space),
    )


def _relaxations(candidates: Sequence[Candidate]) -> tuple[Relaxation, ...]:
    """Say what the budget would have to become for the fastest student, at each input resolution."""
    found = []
    for resolution in sorted({candidate.proposal.spec.resolution for candidate in candidates}, reverse=True):
        here = [candidate for candidate in candidates if candidate.proposal.spec.resolution == resolution]
        nearest = min(here, key=Candidate.tightness)
        change = (
            f"a limit of {nearest.expected_ms:.3f} ms admits {nearest.proposal.runtime}/"
            f"{nearest.proposal.precision.value} at {resolution} pixels"
        )
        found.append(Relaxation(change=change, saves_ms=nearest.expected_ms - nearest.limit_ms))
    return tuple(sorted(found, key=lambda relaxation: relaxation.saves_ms))


def _teacher_p99_ms(bench: Workbench, limits: dict[str, Limits]) -> dict[str, float]:
    speedup = bench.job.budget.latency_ms.speedup
    if speedup is None:
        return {}
    return {runtime: limit.latency_ms["p99"] * speedup for runtime, limit in limits.items()}


def _fastest_measured_ms(history: History, limits: dict[str, Limits]) -> float:
    bounds = [
        limits[trial.proposal.runtime].tightness(trial.latency)
        * min(limits[trial.proposal.runtime].latency_ms.values())
        for trial in history.trials
        if trial.latency is not None and trial.proposal.runtime in limits
    ]
    return min(bounds, default=float("inf"))


def _mega_macs(spec: StudentSpec, space: Space) -> float:
    return float(10 ** (features(spec, channels=space.channels, classes=space.classes)[0] - 6))

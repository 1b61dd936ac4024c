"""What a device can do with a budget, before anything is trained."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekd.pipeline.estimating import expected_effort
from edgekd.pipeline.loop import current_limits, learn_the_device
from edgekd.pipeline.measuring import screening
from edgekd.pipeline.workbench import Workbench, workbench
from edgekd.stages.believe import capacity
from edgekd.stages.predict import Predictor, predict
from edgekd.stages.propose import Candidate, fastest
from edgekd.students import draw, features
from edgekd.students.space import LEAST_RESOLUTION
from edgekd.surrogates.selection import frontier
from edgekd.values.budget import Limits
from edgekd.values.job import Job
from edgekd.values.model import Precision
from edgekd.values.outcome import Plan, Reach, Relaxation
from edgekd.values.student import Space, StudentSpec
from edgekd.values.trial import History

_POOL = 3000
_FRONTIER = 8  # points shown
_SURE = 0.8  # share of the proposals that should turn out within the budget, as `propose` chooses them


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
        best = max(within, key=lambda found: capacity(found.proposal.spec, bench.space), default=None)
        effort = expected_effort(bench, best.proposal.spec, kept=_SURE) if best else None
        return Plan(
            reachable=bool(within),
            limits_ms={runtime: limit.latency_ms for runtime, limit in limits.items()},
            teacher_p99_ms=_teacher_p99_ms(bench, limits),
            fastest_measured_ms=_fastest_measured_ms(history, screened),
            frontier=_frontier(candidates, predictor, bench.space),
            relaxations=() if within else _relaxations(candidates),
            steps=() if within else steps_from(candidates, predictor, bench.space),
            space_size=len(bench.space),
            measured=len(history.trials),
            trials=job.search.trials,
            device_seconds=bench.device.device_seconds,
            expected_proposals=job.search.trials / _SURE,
            expected_seconds=effort.seconds if effort else None,
        )


def _candidates(
    space: Space, predictor: Predictor, limits: dict[str, Limits], *, seed: int
) -> tuple[Candidate, ...]:
    rng = random.Random(f"{seed}/plan")  # noqa: S311 - not cryptography
    specs = draw(space, _POOL, rng)
    return tuple(found for spec in specs if (found := fastest(spec, space, predictor, limits)))


def _frontier(candidates: Sequence[Candidate], predictor: Predictor, space: Space) -> tuple[Reach, ...]:
    """Return students that no other beats in both expected latency and belief, thinned to a few."""
    if not candidates:
        return ()
    expected_ms = np.array([found.expected_ms for found in candidates])
    believed = np.array([_mega_macs(found.proposal.spec, space) for found in candidates])
    best = frontier(expected_ms, believed)
    step = max(1, len(best) // _FRONTIER)
    return tuple(_reach(candidates[int(at)], predictor, space) for at in best[::step])


def _reach(candidate: Candidate, predictor: Predictor, space: Space) -> Reach:
    proposal = candidate.proposal
    expected = predictor.forecast(
        proposal.spec, proposal.runtime, proposal.precision, channels=space.channels, classes=space.classes
    )
    return Reach(
        spec=proposal.spec,
        runtime=proposal.runtime,
        precision=proposal.precision,
        expected_ms=expected.median_ms,
        low_ms=expected.low_ms,
        high_ms=expected.high_ms,
        mega_macs=_mega_macs(proposal.spec, space),
    )


def steps_from(candidates: Sequence[Candidate], predictor: Predictor, space: Space) -> tuple[Relaxation, ...]:
    """Say what single changes save on the student nearest to the budget: input, precision, runtime; most first.

    A smaller input than the space has is one that the job could allow. What is saved is expected, not measured.
    """
    nearest = min(candidates, key=Candidate.tightness)
    proposal = nearest.proposal

    def expected_ms(spec: StudentSpec, runtime: str, precision: Precision) -> float:
        return predictor.expected_ms(spec, runtime, precision, channels=space.channels, classes=space.classes)

    found = []
    largest, least = max(space.resolutions), min(space.resolutions)
    sides = [
        *sorted({*space.resolutions}, reverse=True),
        *(least * eighths // 8 // 4 * 4 for eighths in (6, 4)),
    ]
    whole = replace(proposal.spec, resolution=largest)
    whole_ms = expected_ms(whole, proposal.runtime, proposal.precision)
    for side in (side for side in sides if LEAST_RESOLUTION <= side < largest):
        smaller_ms = expected_ms(replace(whole, resolution=side), proposal.runtime, proposal.precision)
        allowed = "" if side >= least else ", which task.resolution would have to allow"
        found.append(Relaxation(change=f"input {largest} -> {side}{allowed}", saves_ms=whole_ms - smaller_ms))
    for runtime, precision in predictor.models:
        if (runtime, precision) != (proposal.runtime, proposal.precision):
            other_ms = expected_ms(proposal.spec, runtime, precision)
            change = f"{proposal.runtime}/{proposal.precision.value} and not {runtime}/{precision.value}"
            found.append(Relaxation(change=change, saves_ms=other_ms - nearest.expected_ms))
    saving = [step for step in found if step.saves_ms > 0]
    return tuple(sorted(saving, key=lambda step: -step.saves_ms))


def _relaxations(candidates: Sequence[Candidate]) -> tuple[Relaxation, ...]:
    """Say what the budget would have to become for the fastest student, at each input resolution."""
    found = []
    for resolution in sorted({candidate.proposal.spec.resolution for candidate in candidates}, reverse=True):
        here = [candidate for candidate in candidates if candidate.proposal.spec.resolution == resolution]
        nearest = min(here, key=Candidate.tightness)
        change = (
            f"a limit of {nearest.expected_ms:.3g} ms admits {nearest.proposal.runtime}/"
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

"""The next student to try: a pure function of the space and of what was tried."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import exp, log

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from edgekd.stages.believe import encode_specs
from edgekd.stages.predict import Predictor, predict
from edgekd.students import draw, features, neighbours
from edgekd.surrogates.accuracy import Encoded
from edgekd.surrogates.selection import Trials, next_trial, promises
from edgekd.values.budget import Limits
from edgekd.values.codec import fingerprint
from edgekd.values.measurement import Measurement
from edgekd.values.student import Space, StudentSpec
from edgekd.values.trial import History, Proposal, Verdict

_POOL = 1500
_SURE = 0.8  # probability of being within the limit that a proposal needs: a refusal costs a build and a measurement
_CAUTION = 0.25  # of the doubt left, after each proposal in a row that was too slow against expectation
_LEAST_DOUBT, _MOST_DOUBT = 0.03, 0.3  # SD of log latency; drift alone makes the first, more admits nothing
_CLIMBS, _PARENTS, _CHILDREN = 6, 25, 12  # rounds of search around the best of the pool
_HOPELESS = 1.6  # times the limit
_WORTH = 0.5  # of what the best would be to a target: a student below it is not tried there
_LIKELY = 0.5  # probability of being within the limit of a target that takes part in another's training
_ALIKE = 0.9  # of the highest sum: the cheapest of these is proposed
_REACH = 1.645  # standard deviations from the middle of an interval of 90 % to its end


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A proposal and what is expected of it."""

    proposal: Proposal
    expected_ms: float
    limit_ms: float
    doubt: float = 0.0  # SD of the natural log of what it will take

    def tightness(self) -> float:
        """Return expected / allowed."""
        return self.expected_ms / self.limit_ms

    def hopeful(self) -> bool:
        """Say whether a wrong prediction may be all that stands in its way."""
        return self.tightness() <= _HOPELESS

    def chance(self) -> float:
        """Return the probability of being within its limit."""
        return (
            float(ndtr(-log(self.tightness()) / self.doubt)) if self.doubt else float(self.tightness() <= 1)
        )

    def within(self, share: float) -> bool:
        """Say whether it stays below its limit with this probability."""
        return bool(self.expected_ms * exp(float(ndtri(share)) * self.doubt) <= self.limit_ms)


def propose(
    space: Space,
    history: History,
    limits: dict[str, Limits],
    *,
    seed: int,
    stored: Sequence[Measurement] = (),
    planned: int | None = None,
) -> Proposal | None:
    """Return the most promising untried student that may meet the budget; None when none can.

    Candidates are drawn at random and around the best so far, kept where the latency expected on some runtime
    and precision is within the limit with a probability of 80 %, and more after each surprise; ranked by
    `edgekd.surrogates.selection`, and improved one dimension at a time. The first go by capacity, the best prior
    there is, and fill the budget; some explore. Of equals, the one that costs least to train is proposed.
    Where none is expected to fit, the nearest is tried as long as it is not hopeless: a prediction may err.

    Args:
        space: the students there are.
        history: what was tried, built or not.
        limits: by runtime, in ms.
        seed: of the draws.
        stored: measurements of other devices.
        planned: trials in all; the last one explores no more.

    """
    rng = random.Random(f"{seed}/{len(history.trials)}")  # noqa: S311 - not cryptography
    channels, classes = space.channels, space.classes
    predictor = predict(history, limits, channels=channels, classes=classes, stored=stored)
    known, tried = Scored.of(history), tried_specs(history)
    sure = sure_of(history)
    pool = _pool(space, known, rng)
    best: list[Candidate] = []
    for last in [False] * (_CLIMBS - 1) + [True]:
        untried = [spec for spec in pool if fingerprint(spec) not in tried]
        fitting = [found for spec in untried if (found := fastest(spec, space, predictor, limits))]
        within = [found for found in fitting if found.within(sure)]
        if not within:
            nearest = min(fitting, key=Candidate.tightness, default=None)
            return nearest.proposal if nearest and nearest.hopeful() else None
        best = _ranked(within, known, space, seed=seed, planned=planned, last=last)[:_PARENTS]
        pool = [found.proposal.spec for found in best]
        pool += [neighbours(spec, space, rng) for spec in pool for _ in range(_CHILDREN)]
    return best[0].proposal


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What one target brings to a search for several."""

    history: History
    limits: dict[str, Limits]  # by runtime, in ms
    stored: Sequence[Measurement] = ()


def propose_together(
    space: Space, asking: Sequence[Asking], trained: History, *, seed: int
) -> dict[int, Proposal]:
    """Return the student that promises the targets most in all, as each of them would compile it; empty: there is none.

    What a student is worth to a target that has not tried it: 1 where it promises as much as the best that this
    target could propose alone, e^-1 where it promises a standard deviation less; times the probability that it is
    within the limit there. The student with the highest sum is proposed, of those that some target would propose
    alone. It is tried on each target to which it is worth it and where it is more likely within the limit than not:
    timing costs little, and a training then serves several. A target for which nothing is expected to fit waits
    until the others are done, and then asks as if it were alone.

    Args:
        space: the students there are.
        asking: the targets that still want students.
        trained: the trials of all targets: accuracy hangs on none of them.
        seed: of the draws.

    """
    tried = [tried_specs(one.history) for one in asking]
    count = sum(map(len, tried))
    rng = random.Random(f"{seed}/{count}/together")  # noqa: S311 - not cryptography
    known = Scored.of(trained)
    predictors = [
        predict(one.history, one.limits, channels=space.channels, classes=space.classes, stored=one.stored)
        for one in asking
    ]
    sure = [sure_of(one.history) for one in asking]

    def reached(spec: StudentSpec) -> dict[int, Candidate]:
        name = fingerprint(spec)
        found = {
            at: fastest(spec, space, predictors[at], one.limits)
            for at, one in enumerate(asking)
            if name not in tried[at]
        }
        return {at: one for at, one in found.items() if one is not None and one.chance() >= _LIKELY}

    pool, best = _pool(space, known, rng), dict[int, Candidate]()
    for _ in range(_CLIMBS):
        reachable = [reached(spec) for spec in pool]
        within = [found for found in reachable if any(one.within(sure[at]) for at, one in found.items())]
        if not within:
            return _alone(space, asking, seed=seed)
        order, worth = _by_sum(within, sure, known, space, seed=seed)
        best = {at: one for at, one in within[order[0]].items() if worth[at, order[0]] >= _WORTH}
        pool = [_spec_of(within[at]) for at in order[:_PARENTS]]
        pool += [neighbours(spec, space, rng) for spec in pool for _ in range(_CHILDREN)]
    return {at: one.proposal for at, one in best.items()}


def _alone(space: Space, asking: Sequence[Asking], *, seed: int) -> dict[int, Proposal]:
    """Let each target ask for itself: the nearest to its limit may be tried as long as it is not hopeless."""
    for at, one in enumerate(asking):
        if found := propose(space, one.history, one.limits, seed=seed, stored=one.stored):
            return {at: found}
    return {}


def _by_sum(
    within: Sequence[dict[int, Candidate]], sure: Sequence[float], known: Scored, space: Space, *, seed: int
) -> tuple[list[int], NDArray[np.float64]]:
    """Return the order of students, the best first, and what each is worth to each target if it is within its limit."""
    specs = [_spec_of(found) for found in within]
    pool, trials = _known_too(specs, known, space)
    free = np.arange(len(pool)) < len(specs)
    promise, doubt = (part[: len(specs)] for part in promises(pool, free, trials, seed=seed))
    worth, chance = np.zeros((len(sure), len(specs))), np.zeros((len(sure), len(specs)))
    for at, share in enumerate(sure):
        own = np.array([at in found and found[at].within(share) for found in within])
        if own.any():  # else it waits
            best = int(np.argmax(np.where(own, promise, -np.inf)))
            off = (promise - promise[best]) / max(float(doubt[best]), 1e-12)
            chance[at] = [found[at].chance() if at in found else 0.0 for found in within]
            worth[at] = np.where(chance[at] > 0, np.exp(np.minimum(off, 0.0)), 0.0)
    total = np.where(worth >= _WORTH, worth * chance, 0.0).sum(axis=0)
    order = [int(at) for at in np.argsort(-total, kind="stable")]
    equal = [at for at in order if total[at] >= _ALIKE * total[order[0]]]
    first = min(equal, key=lambda at: _size(specs[at], space))  # of equals, what costs least to train
    return [first, *(at for at in order if at != first)], worth


def _spec_of(found: dict[int, Candidate]) -> StudentSpec:
    return next(iter(found.values())).proposal.spec


def fastest(
    spec: StudentSpec, space: Space, predictor: Predictor, limits: dict[str, Limits]
) -> Candidate | None:
    """Return the runtime and precision on which this student is expected to be furthest below its limit."""
    found = []
    for runtime, precision in predictor.models:
        if runtime in limits:
            expected = predictor.forecast(
                spec, runtime, precision, channels=space.channels, classes=space.classes
            )
            doubt = log(expected.high_ms / expected.median_ms) / _REACH if expected.median_ms > 0 else 0.0
            found.append(
                Candidate(
                    proposal=Proposal(spec=spec, runtime=runtime, precision=precision),
                    expected_ms=expected.median_ms,
                    limit_ms=min(limits[runtime].latency_ms.values()),
                    doubt=min(max(doubt, _LEAST_DOUBT), _MOST_DOUBT),
                )
            )
    return min(found, key=Candidate.tightness, default=None)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What trials say of accuracy."""

    specs: tuple[StudentSpec, ...]
    scores: tuple[float, ...]
    short: tuple[bool, ...]
    failed: tuple[StudentSpec, ...]  # could be neither built nor trained

    @classmethod
    def of(cls, history: History) -> Scored:
        """Read a history: one score for each student and length of training, the mean over its files."""
        longest = max((trial.epochs for trial in history.trials if trial.accuracy is not None), default=0)
        scores: dict[tuple[StudentSpec, bool], list[float]] = {}
        for trial in history.trials:
            if trial.accuracy is not None:
                scores.setdefault((trial.proposal.spec, trial.epochs < longest), []).append(trial.accuracy)
        built = {trial.proposal.spec for trial in history.trials if trial.latency is not None}
        trained = {spec for spec, _ in scores}
        failed = [t.proposal.spec for t in history.with_verdict(Verdict.DIVERGED)]
        failed += [
            t.proposal.spec for t in history.with_verdict(Verdict.UNBUILDABLE) if t.proposal.spec not in built
        ]
        return cls(
            specs=tuple(spec for spec, _ in scores),
            scores=tuple(float(np.mean(found)) for found in scores.values()),
            short=tuple(short for _, short in scores),
            failed=tuple(dict.fromkeys(spec for spec in failed if spec not in trained)),
        )


def tried_specs(history: History) -> set[str]:
    """Return the fingerprints of what must not be proposed again; a probe may be."""
    return {
        fingerprint(trial.proposal.spec) for trial in history.trials if trial.verdict is not Verdict.MEASURED
    }


def sure_of(history: History) -> float:
    """Return with which probability a proposal must be within its limit: more after each surprise."""
    return 1 - (1 - _SURE) * _CAUTION ** _refusals(history)


def _refusals(history: History) -> int:
    """Count the latest proposals in a row that were too slow: the device is slower than was learnt."""
    proposed = (trial for trial in reversed(history.trials) if trial.verdict is not Verdict.MEASURED)
    return sum(1 for _ in takewhile(lambda trial: trial.verdict is Verdict.TOO_SLOW, proposed))


def probes(space: Space, count: int, *, seed: int) -> tuple[StudentSpec, ...]:
    """Return students to time untrained: spread evenly over the sizes that the space holds, all families in turn."""
    rng = random.Random(f"{seed}/probes")  # noqa: S311 - not cryptography
    drawn = draw(space, _POOL, rng)
    ordered = sorted(drawn, key=lambda spec: _size(spec, space))
    by_family = {name: [spec for spec in ordered if spec.family == name] for name in space.families}
    chosen = []
    for at in range(count):
        sizes = by_family[space.families[at % len(space.families)]]
        # The smallest first: what is impossible shows at once.
        chosen.append(sizes[round((len(sizes) - 1) * (at / max(count - 1, 1)) * 0.9)])
    return tuple(chosen)


def _ranked(
    within: Sequence[Candidate], known: Scored, space: Space, *, seed: int, planned: int | None, last: bool
) -> list[Candidate]:
    """Return candidates, the most promising first; of the last, the cheapest of equals comes first."""
    specs = [found.proposal.spec for found in within]
    pool, trials = _known_too(specs, known, space)
    count = len(specs)
    free = np.arange(len(pool)) < count
    promise, _ = promises(pool, free, trials, seed=seed, planned=planned)
    order = [int(at) for at in np.argsort(-promise[:count], kind="stable")]
    if last:
        cost = np.array([10 ** _size(spec, space) for spec in specs] + [np.inf] * (len(pool) - count))
        first = next_trial(pool, free, trials, seed=seed, cost=cost, planned=planned)
        assert first is not None  # noqa: S101 - candidates are free
        order = [first, *(at for at in order if at != first)]
    return [within[at] for at in order]


def _known_too(specs: Sequence[StudentSpec], known: Scored, space: Space) -> tuple[Encoded, Trials]:
    """Encode candidates, and behind them what was tried."""
    pool = encode_specs([*specs, *known.specs, *known.failed], space)
    count, trained = len(specs), len(known.specs)
    return pool, Trials(
        rows=tuple(range(count, count + trained)),
        scores=known.scores,
        short=known.short,
        failed=tuple(range(count + trained, len(pool))),
    )


def _pool(space: Space, known: Scored, rng: random.Random) -> list[StudentSpec]:
    order: NDArray[np.intp] = np.argsort(-np.array(known.scores), kind="stable")[:4]
    walked = []
    for spec in [known.specs[int(at)] for at in order for _ in range(60)]:
        for _ in range(rng.choice((1, 1, 2, 3))):
            spec = neighbours(spec, space, rng)  # noqa: PLW2901 - a walk
        walked.append(spec)
    return walked + draw(space, _POOL, rng)


def _size(spec: StudentSpec, space: Space) -> float:
    """Return log10 of the multiplications, which training time goes with."""
    return features(spec, channels=space.channels, classes=space.classes)[0]

"""The next student to try: a pure function of the space and of what was tried."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise, takewhile
from math import log2, log10, sqrt

import numpy as np
from numpy.typing import NDArray

from edgekd.stages.predict import Predictor, predict
from edgekd.students import draw, feature_names, features, neighbours
from edgekd.values.budget import Limits
from edgekd.values.codec import fingerprint
from edgekd.values.student import Space, StudentSpec
from edgekd.values.trial import History, Proposal, Trial, Verdict

_POOL = 1500
_MARGIN = 0.93  # of the limit that the expected latency may use
_CLIMBS, _PARENTS, _CHILDREN = 6, 25, 12  # rounds of search around the best of the pool
_CAUTION = 0.88  # times the margin, for every student in a row that was too slow against expectation
_HOPELESS = 1.6  # times the limit
_EXPLORATION = 0.7  # standard deviations of the accuracy surrogate added to its mean
_STEEPEST = 0.2  # accuracy a decade of capacity: more is noise
_LEAST_SCORES = 3  # trials with an accuracy before the surrogate is asked


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A proposal and what is expected of it."""

    proposal: Proposal
    expected_ms: float
    limit_ms: float

    def tightness(self) -> float:
        """Return expected / allowed."""
        return self.expected_ms / self.limit_ms


def propose(space: Space, history: History, limits: dict[str, Limits], *, seed: int) -> Proposal | None:
    """Return the most promising untried student that may meet the budget; None when none can.

    Candidates are drawn at random and around the best so far, kept where the latency expected on some runtime
    and precision stays within the limit, ranked by an accuracy surrogate with an exploration bonus, and improved
    one dimension at a time. Until three students have an accuracy, the largest that fits goes first: capacity is
    the best prior there is. Where none is expected to fit, the nearest is tried as long as it is not hopeless: a
    prediction may err.
    """
    rng = random.Random(f"{seed}/{len(history.trials)}")  # noqa: S311 - not cryptography
    predictor = predict(history, limits, channels=space.channels, classes=space.classes)
    tried = {
        fingerprint(trial.proposal.spec) for trial in history.trials if trial.verdict is not Verdict.MEASURED
    }
    margin = _MARGIN * _CAUTION ** _refusals(history)
    pool = _pool(space, history, rng)
    for _ in range(_CLIMBS):
        untried = (spec for spec in pool if fingerprint(spec) not in tried)
        fitting = [found for spec in untried if (found := fastest(spec, space, predictor, limits))]
        within = [found for found in fitting if found.tightness() <= margin]
        if not within:
            nearest = min(fitting, key=Candidate.tightness, default=None)
            return nearest.proposal if nearest and nearest.tightness() <= _HOPELESS else None
        scores = _scores([found.proposal.spec for found in within], space, history)
        best: list[Proposal] = [within[int(at)].proposal for at in np.argsort(-scores)[:_PARENTS]]
        pool = [proposal.spec for proposal in best]
        pool += [neighbours(spec, space, rng) for spec in pool for _ in range(_CHILDREN)]
    return best[0]


def fastest(
    spec: StudentSpec, space: Space, predictor: Predictor, limits: dict[str, Limits]
) -> Candidate | None:
    """Return the runtime and precision on which this student is expected to be furthest below its limit."""
    found = []
    for runtime, precision in predictor.models:
        if runtime in limits:
            expected_ms = predictor.expected_ms(
                spec, runtime, precision, channels=space.channels, classes=space.classes
            )
            limit_ms = min(limits[runtime].latency_ms.values())
            proposal = Proposal(spec=spec, runtime=runtime, precision=precision)
            found.append(Candidate(proposal=proposal, expected_ms=expected_ms, limit_ms=limit_ms))
    return min(found, key=Candidate.tightness, default=None)


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


def _refusals(history: History) -> int:
    """Count the latest proposals in a row that were too slow: the device is slower than was learnt."""
    proposed = (trial for trial in reversed(history.trials) if trial.verdict is not Verdict.MEASURED)
    return sum(1 for _ in takewhile(lambda trial: trial.verdict is Verdict.TOO_SLOW, proposed))


def _pool(space: Space, history: History, rng: random.Random) -> list[StudentSpec]:
    good = sorted((t for t in history.trials if t.accuracy is not None), key=_accuracy, reverse=True)[:4]
    near = [trial.proposal.spec for trial in good for _ in range(60)]
    walked = []
    for start in near:
        spec = start
        for _ in range(rng.choice((1, 1, 2, 3))):
            spec = neighbours(spec, space, rng)
        walked.append(spec)
    return walked + draw(space, _POOL, rng)


def _scores(specs: list[StudentSpec], space: Space, history: History) -> NDArray[np.float64]:
    """Rank specs by expected accuracy plus exploration; by capacity while little is known."""
    known = [trial for trial in history.trials if trial.accuracy is not None]
    if len(known) >= _LEAST_SCORES:
        return _surrogate(specs, known, space)
    # A penalty near what was tried already, so that the first trials differ from each other.
    nearness = _closeness(specs, [trial.proposal.spec for trial in known], space)
    return np.array([capacity(spec, space) for spec in specs]) - 0.3 * nearness


def capacity(spec: StudentSpec, space: Space) -> float:
    """Return the prior belief in a student, in decades.

    Arithmetic counts whole; parameters half, since width pays late in a network, where it costs little time;
    depth half; resolution whole. Wide kernels spend arithmetic on less. Widths that double where the image
    halves are the rule that holds across families (Radosavovic et al. 2020, section 4).
    """
    named = dict(zip(feature_names(), features(spec, channels=space.channels, classes=space.classes)))
    depth, side = log10(sum(stage.depth for stage in spec.stages)), log10(spec.resolution)
    size = named["log10_macs"] + 0.5 * named["log10_params"]
    widths = [stage.width for stage in spec.stages]
    uneven = sum(abs(log2(late / early) - 1) for early, late in pairwise(widths))
    return size + 0.5 * depth + side - 0.25 * named["macs_share_kernel_5"] - 0.2 * uneven


def _surrogate(specs: list[StudentSpec], known: list[Trial], space: Space) -> NDArray[np.float64]:
    """Return upper confidence bounds of a Gaussian process around a line in the prior belief."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    tried = [trial.proposal.spec for trial in known]
    rows, new = _encoded(tried, space), _encoded(specs, space)
    centre, scale = new.mean(axis=0), new.std(axis=0) + 1e-9
    rows, new = (rows - centre) / scale, (new - centre) / scale
    accuracies = np.array([_accuracy(trial) for trial in known])
    belief = np.array([capacity(spec, space) for spec in tried])
    slope = float(np.clip(np.polyfit(belief, accuracies, 1)[0], 0.0, _STEEPEST)) if np.ptp(belief) else 0.0
    line = accuracies.mean() + slope * (belief - belief.mean())
    spread = max(float((accuracies - line).std()), 1e-3)
    process = GaussianProcessRegressor(RBF(2 * sqrt(rows.shape[1])) + WhiteKernel(0.1), optimizer=None)
    process.fit(rows, (accuracies - line) / spread)
    mean, deviation = process.predict(new, return_std=True)
    hoped = slope * (np.array([capacity(spec, space) for spec in specs]) - belief.mean())
    return np.asarray(hoped + spread * (mean + _EXPLORATION * deviation))


def _closeness(specs: list[StudentSpec], others: list[StudentSpec], space: Space) -> NDArray[np.float64]:
    if not others:
        return np.zeros(len(specs))
    rows, known = _encoded(specs, space), _encoded(others, space)
    scale = rows.std(axis=0) + 1e-9
    gaps = np.sqrt((((rows[:, None] - known[None]) / scale) ** 2).mean(axis=2))
    return np.asarray(np.exp(-(gaps.min(axis=1) ** 2)))


def _encoded(specs: list[StudentSpec], space: Space) -> NDArray[np.float64]:
    return np.array([features(spec, channels=space.channels, classes=space.classes) for spec in specs])


def _size(spec: StudentSpec, space: Space) -> float:
    """Return log10 of the multiplications: the capacity prior."""
    return features(spec, channels=space.channels, classes=space.classes)[0]


def _accuracy(trial: Trial) -> float:
    return trial.accuracy if trial.accuracy is not None else 0.0

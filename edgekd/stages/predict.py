"""Expected latency of a student nobody has timed yet, from those that were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, sqrt

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from scipy.stats import t as student_t

from edgekd.errors import DataError
from edgekd.students import costs
from edgekd.surrogates.latency import LatencySurrogate, Prior, fit
from edgekd.surrogates.priors import LEAST_ROWS, moments, prices
from edgekd.values.budget import Limits
from edgekd.values.measurement import Measurement
from edgekd.values.model import Precision
from edgekd.values.student import StudentSpec
from edgekd.values.trial import History, Trial, Verdict

LEAST_TRIALS = 3
_MOST_CORRECTION = 2.0
_STRETCH = 1.05  # of the median, by the slow drift of a machine
_PRIOR_SPREAD = 0.15  # relative error assumed where there are too few trials to tell
_MIXES = (0.0, 0.5, 1.0)  # shares of the prices that other devices and runtimes support
_INTERVAL = 0.9  # of measurements that a forecast's interval should hold

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Median latency as a sum of costs, each with a price that the device sets.

    A forward pass is a start-up, a dispatch for each convolution, dense and depthwise arithmetic, and memory
    traffic; no price can be negative, so that the model extrapolates from few measurements as physics does.
    """

    prices: tuple[float, ...]  # ms per unit of `costs`
    spread: float  # relative SD of the leave-one-out errors
    trials: int

    def p50_ms(self, spec: StudentSpec, channels: int, classes: int) -> float:
        """Return the expected median in ms."""
        return float(np.dot(self.prices, costs(spec, channels=channels, classes=classes)))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What will be held against the budget: the middle, and an interval that should hold nine in ten."""

    low_ms: float
    median_ms: float
    high_ms: float


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """One latency model for each runtime and precision that was measured."""

    models: dict[tuple[str, Precision], LatencyModel]
    jitter_ms: float  # between the median and what is held against the budget, typical of this device
    correction: float = 1.0  # what proposed students turned out to take / what was expected of them

    def expected_ms(
        self, spec: StudentSpec, runtime: str, precision: Precision, *, channels: int, classes: int
    ) -> float:
        """Return what will be held against the budget, in ms."""
        model = self.models[runtime, precision]
        return self.correction * (_STRETCH * model.p50_ms(spec, channels, classes) + self.jitter_ms)

    def forecast(
        self, spec: StudentSpec, runtime: str, precision: Precision, *, channels: int, classes: int
    ) -> Expected:
        """Return what will be held against the budget, in ms, and how far off that may be.

        Leave-one-out errors of few trials tell their own spread poorly, hence Student's t.
        """
        model = self.models[runtime, precision]
        median_ms = self.expected_ms(spec, runtime, precision, channels=channels, classes=classes)
        reach = float(student_t.ppf((1 + _INTERVAL) / 2, model.trials - 1))
        off = exp(reach * model.spread * sqrt(1 + 1 / model.trials))
        return Expected(low_ms=median_ms / off, median_ms=median_ms, high_ms=median_ms * off)


def predict(
    history: History,
    limits: dict[str, Limits],
    *,
    channels: int,
    classes: int,
    stored: Sequence[Measurement] = (),
) -> Predictor:
    """Learn the device from every trial that was timed.

    Each runtime and precision has a model of its own. What the others cost here, and what `stored` says of other
    devices, is its prior, and counts as far as leave-one-out errors say that it helps.
    """
    timed = [trial for trial in history.trials if trial.latency is not None]
    groups = groups_of(history, channels=channels, classes=classes)
    models = {
        key: _fitted(group, shared_of(groups, key, stored))
        for key, group in groups.items()
        if len(group.p50_ms) >= LEAST_TRIALS
    }
    found = Predictor(models=models, jitter_ms=_jitter_ms(timed, limits))
    return replace(found, correction=_correction(found, timed, limits, channels, classes))


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What was measured on one device, runtime and precision."""

    rows: Floats  # (k, costs)
    p50_ms: Floats  # (k,)


def groups_of(history: History, *, channels: int, classes: int) -> dict[tuple[str, Precision], Timed]:
    """Return what was timed, by runtime and precision."""
    groups: dict[tuple[str, Precision], list[tuple[tuple[float, ...], float]]] = {}
    for trial in history.trials:
        if trial.latency is not None:
            row = costs(trial.proposal.spec, channels=channels, classes=classes)
            key = (trial.proposal.runtime, trial.proposal.precision)
            groups.setdefault(key, []).append((row, trial.latency.percentile(50)))
    return {
        key: Timed(rows=np.array([row for row, _ in group]), p50_ms=np.array([p50_ms for _, p50_ms in group]))
        for key, group in groups.items()
    }


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What others say of a runtime and precision, in latency per unit of work.

    Students differ a hundredfold in latency and their relative errors do not, so that rows and latencies are divided
    by the work of the student: a sum of its costs, each in units of what is typical.
    """

    unit: Floats  # (costs,)
    prior: Prior | None  # None: nothing is known of others

    def rows(self, rows: Floats) -> Floats:
        """Return costs (n, f) per unit of work."""
        return np.asarray(rows / (rows @ self.unit)[:, None])

    def fit(self, timed: Timed) -> LatencySurrogate:
        """Return what is known of the latency per unit of work."""
        return fit(self.rows(timed.rows), timed.p50_ms / (timed.rows @ self.unit), self.prior)


def shared_of(
    groups: Mapping[tuple[str, Precision], Timed],
    name: tuple[str, Precision],
    stored: Sequence[Measurement],
) -> Shared:
    """Return what the other runtimes and precisions here, and other devices, say of one."""
    others = [group for key, group in groups.items() if key != name] + _elsewhere(stored)
    every = np.vstack([groups[name].rows, *(other.rows for other in others)])
    typical = np.median(every, axis=0)
    unit = np.divide(1.0, typical, out=np.zeros_like(typical), where=typical > 0) / len(typical)
    return Shared(unit=unit, prior=_prior(others, unit))


def _elsewhere(stored: Sequence[Measurement]) -> list[Timed]:
    """Return stored measurements by device, runtime and precision."""
    groups: dict[tuple[str, str, Precision], list[Measurement]] = {}
    for one in stored:
        groups.setdefault((one.device, one.runtime, one.precision), []).append(one)
    return [
        Timed(
            rows=np.array([costs(one.spec, channels=one.channels, classes=one.classes) for one in group]),
            p50_ms=np.array([one.p50_ms for one in group]),
        )
        for group in groups.values()
    ]


def _prior(others: Sequence[Timed], unit: Floats) -> Prior | None:
    telling = [one for one in others if len(one.p50_ms) >= LEAST_ROWS]
    if not telling:
        return None
    table = np.full((len(telling), sum(len(one.p50_ms) for one in telling)), np.nan)
    start = 0
    for at, one in enumerate(telling):
        table[at, start : start + len(one.p50_ms)] = one.p50_ms / (one.rows @ unit)
        start += len(one.p50_ms)
    try:
        rows = np.vstack([one.rows for one in telling])
        return moments(prices(rows / (rows @ unit)[:, None], table, 1), 1)
    except DataError:  # every one of them is constant: nothing to share
        return None


def _fitted(timed: Timed, shared: Shared) -> LatencyModel:
    rows, p50_ms = timed.rows, timed.p50_ms
    own = np.array(
        [rows[at] @ _prices(np.delete(rows, at, 0), np.delete(p50_ms, at)) for at in range(len(rows))]
    )
    mixed, expected_ms = _prices(rows, p50_ms), own
    if shared.prior is not None:
        surrogate = shared.fit(timed)
        left_out_ms = surrogate.left_out_ms() * (rows @ shared.unit)
        start, slopes = surrogate.line()
        line = start * shared.unit + slopes  # work is a sum of costs, so that this, too, is a price of each
        share = min(_MIXES, key=lambda one: _error((1 - one) * own + one * left_out_ms, p50_ms))
        mixed = (1 - share) * mixed + share * _none_negative(line, rows)
        expected_ms = (1 - share) * own + share * left_out_ms
    spread = _error(expected_ms, p50_ms) if len(rows) > LEAST_TRIALS else _PRIOR_SPREAD
    return LatencyModel(prices=tuple(mixed.tolist()), spread=spread, trials=len(rows))


def _none_negative(line: Floats, rows: Floats) -> Floats:
    """Return the prices nearest to a line, in relative error around students (k, costs), none of them negative."""
    if line.min() >= 0:
        return line
    middle = rows.mean(axis=0)
    around = np.vstack([rows, *(middle + step for step in np.diag(rows.std(axis=0)))])
    line_ms = around @ line
    return _prices(around[line_ms > 0], line_ms[line_ms > 0])


def _error(expected_ms: Floats, p50_ms: Floats) -> float:
    """Return the relative root mean square error."""
    return float(np.sqrt(np.mean(np.square(expected_ms / p50_ms - 1))))


def _prices(rows: Floats, p50_ms: Floats) -> Floats:
    # Dividing by the latency makes least squares minimise relative errors: 10 us matter where 100 us are all.
    scale = rows.max(axis=0) + 1e-12
    prices, _ = nnls(rows / scale / p50_ms[:, None], np.ones(len(rows)))
    return np.asarray(prices / scale)


def _correction(
    found: Predictor, timed: list[Trial], limits: dict[str, Limits], channels: int, classes: int
) -> float:
    """Return by how much proposals exceed their expectation; at least 1.

    A search picks the students that are underestimated most, so what probes have taught is too kind to its picks.
    """
    ratios = []
    for trial in timed:
        runtime, precision = trial.proposal.runtime, trial.proposal.precision
        proposed = trial.verdict in (Verdict.TOO_SLOW, Verdict.PROMISING) and trial.engine is None
        if proposed and (runtime, precision) in found.models and runtime in limits:
            spec = trial.proposal.spec
            expected_ms = found.expected_ms(spec, runtime, precision, channels=channels, classes=classes)
            ratios.append(_held_ms(trial, limits[runtime]) / expected_ms)
    finite = [ratio for ratio in ratios if np.isfinite(ratio)]
    return float(np.clip(np.quantile(finite, 0.6), 1.0, _MOST_CORRECTION)) if finite else 1.0


def _held_ms(trial: Trial, limit: Limits) -> float:
    """Return what is held against a limit, in ms."""
    assert trial.latency is not None  # noqa: S101 - the caller has looked
    return limit.tightness(trial.latency) * min(limit.latency_ms.values())


def _jitter_ms(trials: list[Trial], limits: dict[str, Limits]) -> float:
    """Return by how much the budget's own bound typically lies above the median: interrupts, cold caches.

    It is nearly the same for a small network and a large one, so it is added rather than multiplied.
    """
    gaps_ms = []
    for trial in trials:
        limit = limits.get(trial.proposal.runtime)
        if trial.latency and limit:
            gaps_ms.append(max(0.0, _held_ms(trial, limit) - _STRETCH * trial.latency.percentile(50)))
    finite = [gap_ms for gap_ms in gaps_ms if np.isfinite(gap_ms)]
    # The quieter half: what a busy moment added to the others is not a property of the students.
    return float(np.quantile(finite, 0.25)) if finite else 0.0

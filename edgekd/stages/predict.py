"""Expected latency of a student nobody has timed yet, from those that were."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from edgekd.students import costs
from edgekd.values.budget import Limits
from edgekd.values.model import Precision
from edgekd.values.student import StudentSpec
from edgekd.values.trial import History, Trial, Verdict

LEAST_TRIALS = 3
_MOST_CORRECTION = 2.0
_STRETCH = 1.05  # of the median, by the slow drift of a machine
_PRIOR_SPREAD = 0.15  # relative error assumed where there are too few trials to tell


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


def predict(history: History, limits: dict[str, Limits], *, channels: int, classes: int) -> Predictor:
    """Learn the device from every trial that was timed."""
    timed = [trial for trial in history.trials if trial.latency is not None]
    groups: dict[tuple[str, Precision], list[Trial]] = {}
    for trial in timed:
        groups.setdefault((trial.proposal.runtime, trial.proposal.precision), []).append(trial)
    models = {
        key: _fitted(group, channels, classes) for key, group in groups.items() if len(group) >= LEAST_TRIALS
    }
    found = Predictor(models=models, jitter_ms=_jitter_ms(timed, limits))
    return replace(found, correction=_correction(found, timed, limits, channels, classes))


def _fitted(trials: list[Trial], channels: int, classes: int) -> LatencyModel:
    rows = np.array([costs(trial.proposal.spec, channels=channels, classes=classes) for trial in trials])
    p50_ms = np.array([trial.latency.percentile(50) for trial in trials if trial.latency])
    errors = []
    for left_out in range(len(trials)):
        kept = np.arange(len(trials)) != left_out
        prices = _prices(rows[kept], p50_ms[kept])
        errors.append(float(rows[left_out] @ prices / p50_ms[left_out] - 1))
    spread = float(np.sqrt(np.mean(np.square(errors)))) if len(trials) > LEAST_TRIALS else _PRIOR_SPREAD
    return LatencyModel(prices=tuple(_prices(rows, p50_ms)), spread=spread, trials=len(trials))


def _prices(rows: npt.NDArray[np.float64], p50_ms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
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

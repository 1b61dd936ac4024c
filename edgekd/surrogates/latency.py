"""Latency of anything on a device, from a handful of its measurements and from what other devices took."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, qmc

from edgekd.errors import DataError
from edgekd.surrogates.priors import Floats, Prices, Prior, families, ignorance, moments, prices, tells

__all__ = ["Forecast", "LatencySurrogate", "Prior", "choose", "fit", "learn_prior"]

_GRID = 128  # settings of amplitudes and noise that are averaged over
# Of a prior's covariances, from and to.
_AMPLITUDES = ((0.03, 3.0), (0.003, 1.0), (0.003, 1.0), (0.001, 0.3), (0.001, 0.3))
_IGNORANT = ((0.003, 30.0),)  # the same where no device is known
_NOISE = (0.005, 0.2)  # relative SD of a measurement around what any features can say
_SCALE_DOUBT, _START_DOUBT = 0.3, 0.1  # of the device's mean, and of an offset, relative
_FASTEST = 0.1  # of the mean: a centre says no less of anything
_PROPORTIONAL = 1.0  # of the mean, from which noise grows with latency; below, it is a clock's
_JUDGES = 40  # measurements that settle amplitudes; more would only take longer
_KEPT = 24  # settings that a forecast's spread is taken from
_POOL = 1200  # architectures that a choice is made from
_NEARNESS = 0.25  # decades around the budget that matter, natural log
_ACTED = (5, 10, 20)  # measurements with which a new device is acted out
_ACTORS = 6  # families acted out at most
_LEAST_FAMILIES = 3  # to act out a new one
_ADJUSTED = (0.7, 2.0)  # times a stated spread: what a handful of families can prove
_FAMILY_LOST = 1.2  # by what misses grow where one family of about seven is not known
_SHARE = 0.9  # of measurements that the calibrated interval holds


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a measurement is expected to give: lognormal."""

    median_ms: Floats  # (n,)
    spread: Floats  # (n,) SD of the natural log

    def quantile_ms(self, share: float) -> Floats:
        """Return the latency (n,) that a measurement stays below with this probability."""
        return np.asarray(self.median_ms * np.exp(norm.ppf(share) * self.spread))


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """One posterior: a centre, amplitudes of its covariances, a noise."""

    weight: float
    centre: Floats  # (f,)
    amplitudes: Floats  # (j,)
    noise: float
    level_ms: float  # what 1 of the model is
    factor: Floats  # (k, k) inverse of the Cholesky factor of the measurements' covariance
    pull: Floats  # (k,) covariance^-1 @ residuals


@dataclass(frozen=True, kw_only=True)
class LatencySurrogate:
    """A posterior for one device, runtime and precision: a mixture of Gaussian ones, by their evidence."""

    prior: Prior
    measured: Floats  # (k, f) standard rows
    measured_ms: Floats  # (k,)
    settings: tuple[_Setting, ...]

    def forecast(self, rows: Floats) -> Forecast:
        """Return what measurements of rows (n, f) are expected to give.

        Raises:
            DataError: rows have other features than those that were learnt from.

        """
        standard = self.prior.standard(rows)
        count, known = len(standard), len(self.measured)
        shared = (
            standard @ (self.measured @ self.prior.covariances).reshape(-1, standard.shape[1]).T
        ).reshape(count, len(self.prior.covariances), known)
        mean, square = np.zeros(count), np.zeros(count)
        amplitudes = np.zeros(len(self.prior.covariances))
        for one in self.settings:
            level = 1 + standard @ one.centre
            cross = np.einsum("j,njk->nk", one.amplitudes, shared)
            cross += _SCALE_DOUBT**2 * np.outer(level, 1 + self.measured @ one.centre) + _START_DOUBT**2
            value = level + cross @ one.pull
            extra = (
                (_SCALE_DOUBT * level) ** 2 + _START_DOUBT**2 - np.square(cross @ one.factor.T).sum(axis=1)
            )
            extra += (one.noise * np.maximum(value, _PROPORTIONAL)) ** 2
            mean += one.weight * one.level_ms * value
            square += one.weight * one.level_ms**2 * (extra + value**2)
            amplitudes += one.weight * one.level_ms**2 * one.amplitudes
        own = np.tensordot(amplitudes, self.prior.covariances, axes=1)
        square += np.einsum("nf,nf->n", standard @ own, standard)
        return self._lognormal(mean, square - mean**2)

    def line(self) -> tuple[float, Floats]:
        """Return the expected latency as a line in the features: ms at zero, and ms for each (f,)."""
        start_ms, slopes = 0.0, np.zeros(len(self.prior.shift))
        for one in self.settings:
            shared = np.tensordot(one.amplitudes, self.measured @ self.prior.covariances, axes=1)  # (k, f)
            scale = _SCALE_DOUBT**2 * float((1 + self.measured @ one.centre) @ one.pull)
            slope = one.centre * (1 + scale) + one.pull @ shared
            start = 1 + scale + _START_DOUBT**2 * float(one.pull.sum())
            slopes += one.weight * one.level_ms * slope / self.prior.scale
            start_ms += one.weight * one.level_ms * start
        return start_ms - float(slopes @ self.prior.shift), slopes

    def left_out_ms(self) -> Floats:
        """Return what each measurement (k,) would have been expected to be, had it not been made.

        In closed form (Rasmussen & Williams 2006, equation 5.12), with the weights of the settings as they are.
        """
        expected_ms = np.zeros(len(self.measured))
        for one in self.settings:
            precision = np.square(one.factor).sum(axis=0)
            expected_ms += one.weight * (self.measured_ms - one.level_ms * one.pull / precision)
        return expected_ms

    def _lognormal(self, mean_ms: Floats, variance: Floats) -> Forecast:
        level_ms = sum(one.weight * one.level_ms for one in self.settings)
        least_ms = 0.02 * level_ms
        # Monotone: what the line puts below zero is still ranked, and is never negative.
        below = np.minimum(mean_ms, least_ms)
        median_ms = np.where(mean_ms > least_ms, mean_ms, least_ms * np.exp(below / least_ms - 1))
        relative = np.maximum(variance, 0.0) / np.maximum(mean_ms, least_ms) ** 2
        spread = np.sqrt(np.log1p(relative)) * self.prior.adjusted(len(self.measured))
        return Forecast(median_ms=median_ms, spread=np.maximum(spread, 1e-6))


def learn_prior(rows: Floats, latency_ms: Floats, *, positions: int = 1) -> Prior:
    """Learn from other devices what to believe of a new one.

    Args:
        rows: (n, f) features of architectures.
        latency_ms: (devices, n), NaN where not measured.
        positions: of the encoding, where features are choices at positions, position by position.

    Stated spreads are calibrated by acting out new devices: each family of devices in turn is taken out of the
    prior and adapted to from a few measurements, and what its intervals hold is counted.

    Raises:
        DataError: shapes do not fit, a latency is not positive, or no device says anything.

    """
    rows = np.asarray(rows, dtype=np.float64)
    table = np.asarray(latency_ms, dtype=np.float64)
    found = prices(rows, table, positions)
    prior = moments(found, positions)
    return replace(prior, adjustment=_acted_out(prior, rows, table, found, positions))


def _acted_out(
    prior: Prior, rows: Floats, table: Floats, found: Prices, positions: int
) -> tuple[tuple[int, float], ...]:
    """Return what stated spreads must be multiplied by, for each number of measurements."""
    told = [one for one in table if tells(one)]
    groups = families(found.each, prior.standard(rows))
    if len(groups) < _LEAST_FAMILIES:
        return ()
    rng = np.random.default_rng(0)
    misses: dict[int, list[Floats]] = {count: [] for count in _ACTED}
    for group in groups[:_ACTORS]:
        belief = moments(found.without(group), positions)
        latency_ms = told[int(group[0])]
        known = rng.permutation(np.flatnonzero(np.isfinite(latency_ms)))[:_POOL]
        for count in _ACTED:
            if len(known) >= 2 * count:
                misses[count].append(_misses(belief, rows[known], latency_ms[known], count))
    normal = float(norm.ppf((1 + _SHARE) / 2))
    factors = {
        count: float(np.quantile(np.concatenate(got), _SHARE)) / normal
        for count, got in misses.items()
        if got
    }
    return tuple((count, _believed(factor)) for count, factor in factors.items())


def _believed(factor: float) -> float:
    """Return the part of a factor that is believed: it is of few families, and the acted prior knew one less."""
    widened = max(factor / _FAMILY_LOST, 1.0)
    return float(np.sqrt(np.clip(factor if factor < 1 else widened, *_ADJUSTED)))


def _misses(belief: Prior, rows: Floats, latency_ms: Floats, count: int) -> Floats:
    """Return by how many stated spreads measurements miss, of a device that was taken out of the prior."""
    chosen = choose(belief, rows[: len(rows) // 2], count)
    judged = np.arange(len(rows) // 2, len(rows))
    forecast = fit(rows[chosen], latency_ms[chosen], belief).forecast(rows[judged])
    missed = np.abs(np.log(latency_ms[judged] / forecast.median_ms)) / forecast.spread
    # As many of each device, or the one with most measurements would speak for all.
    return np.asarray(np.quantile(missed, np.linspace(0.01, 0.99, 99)))


def fit(rows: Floats, latency_ms: Floats, prior: Prior | None) -> LatencySurrogate:
    """Learn a device from measurements: rows (k, f) and medians (k,); k may be 0 where there is a prior.

    Bayesian linear regression on relative latency, averaged over centres, amplitudes and noise by their
    marginal likelihood (MacKay 1992); a level for the device comes with each.

    Raises:
        DataError: shapes do not fit, a latency is not positive, or there is nothing to learn from.

    """
    rows, taken_ms = np.asarray(rows, dtype=np.float64), np.asarray(latency_ms, dtype=np.float64)
    known = _measured(rows, taken_ms)
    if prior is None and not known.any():
        raise DataError("there is nothing to learn from", mend="give a measurement, or a prior")
    belief = prior or ignorance(rows[known])
    standard, taken_ms = belief.standard(rows[known]), taken_ms[known]
    if not len(taken_ms):
        return LatencySurrogate(
            prior=belief, measured=standard, measured_ms=taken_ms, settings=_unmeasured(belief)
        )
    judges = np.linspace(0, len(taken_ms) - 1, min(len(taken_ms), _JUDGES)).round().astype(int)
    settings = _settings(belief, standard[judges], taken_ms[judges])
    if len(judges) < len(taken_ms):
        settings = tuple(_solved(belief, one, standard, taken_ms) for one in settings[:4])
        total = sum(one.weight for one in settings)
        settings = tuple(replace(one, weight=one.weight / total) for one in settings)
    return LatencySurrogate(prior=belief, measured=standard, measured_ms=taken_ms, settings=settings)


def _settings(belief: Prior, standard: Floats, taken_ms: Floats) -> tuple[_Setting, ...]:
    """Return the settings that explain the measurements best, by weight."""
    amplitudes, noises = _grid(len(belief.covariances))
    parts = standard @ belief.covariances @ standard.T  # (j, k, k)
    common = np.tensordot(amplitudes, parts, axes=1)  # (g, k, k)
    evidence, solved = [], []
    for centre in belief.centres:
        level = 1 + standard @ centre
        level_ms, relative = _leveled(level, taken_ms)
        covariance = common + _SCALE_DOUBT**2 * np.outer(level, level) + _START_DOUBT**2
        covariance += np.square(noises)[:, None, None] * np.diag(np.square(np.maximum(level, _PROPORTIONAL)))
        factor = np.linalg.inv(np.linalg.cholesky(covariance))
        white = factor @ relative
        logs = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
        # A noisier or quieter device than all others takes more than ten measurements to prove.
        logs -= 0.5 * np.square((np.log(noises) - belief.noise[0]) / belief.noise[1])
        evidence.append(logs - 0.5 * np.square(white).sum(axis=1) - len(taken_ms) * np.log(level_ms))
        solved.append((level_ms, factor, np.einsum("gba,gb->ga", factor, white)))
    weights = np.exp(np.array(evidence) - np.max(evidence))
    order = np.argsort(-weights, axis=None)[:_KEPT]
    total = float(weights.ravel()[order].sum())
    found = []
    for at in order:
        which, setting = divmod(int(at), len(noises))
        level_ms, factors, pulls = solved[which]
        found.append(
            _Setting(
                weight=float(weights[which, setting]) / total,
                centre=belief.centres[which],
                amplitudes=amplitudes[setting],
                noise=float(noises[setting]),
                level_ms=level_ms,
                factor=factors[setting],
                pull=pulls[setting],
            )
        )
    return tuple(found)


def _solved(belief: Prior, setting: _Setting, standard: Floats, taken_ms: Floats) -> _Setting:
    """Return a setting's posterior given all measurements."""
    level = 1 + standard @ setting.centre
    level_ms, relative = _leveled(level, taken_ms)
    covariance = standard @ np.tensordot(setting.amplitudes, belief.covariances, axes=1) @ standard.T
    covariance += _SCALE_DOUBT**2 * np.outer(level, level) + _START_DOUBT**2
    covariance += setting.noise**2 * np.diag(np.square(np.maximum(level, _PROPORTIONAL)))
    factor = np.linalg.inv(np.linalg.cholesky(covariance))
    return replace(setting, level_ms=level_ms, factor=factor, pull=factor.T @ (factor @ relative))


def _leveled(level: Floats, taken_ms: Floats) -> tuple[float, Floats]:
    """Return what 1 of the model is in ms, and the measurements' distances from the centre."""
    level_ms = float(taken_ms.sum() / np.maximum(level, _FASTEST).sum())
    return level_ms, np.asarray(taken_ms / level_ms - level)


def _unmeasured(belief: Prior) -> tuple[_Setting, ...]:
    middle = [float(np.sqrt(low * high)) for low, high in _AMPLITUDES[: len(belief.covariances)]]
    setting = _Setting(
        weight=1.0,
        centre=belief.centres[0],
        amplitudes=np.array([1.0, *middle[1:]]),
        noise=float(np.sqrt(_NOISE[0] * _NOISE[1])),
        level_ms=1.0,
        factor=np.zeros((0, 0)),
        pull=np.zeros(0),
    )
    return (setting,)


def _grid(covariances: int) -> tuple[Floats, Floats]:
    """Return amplitudes (g, j) and noises (g,), evenly over the logarithms of their ranges (Sobol 1967)."""
    ranges = np.log([*(_AMPLITUDES if covariances > 1 else _IGNORANT), _NOISE])
    points = qmc.Sobol(len(ranges), seed=0).random(_GRID)
    values = np.exp(ranges[:, 0] + points * (ranges[:, 1] - ranges[:, 0]))
    return values[:, :-1], values[:, -1]


def choose(
    belief: LatencySurrogate | Prior, pool: Floats, count: int, *, near_ms: float | None = None
) -> NDArray[np.intp]:
    """Return which of the pool (n, f) to measure next, most telling first.

    Greedily, what takes most variance from the latencies of the whole pool, given what is measured
    (Krause et al. 2008, section 2); with `near_ms`, of those near it, by measuring near it.

    Raises:
        DataError: the pool has other features than those that were learnt from, or fewer rows than asked for.

    """
    surrogate = (
        belief
        if isinstance(belief, LatencySurrogate)
        else fit(np.zeros((0, len(belief.shift))), np.zeros(0), belief)
    )
    if count > len(pool):
        raise DataError(f"{count} were asked for, from a pool of {len(pool)}")
    places = np.unique(
        np.linspace(0, len(pool) - 1, min(len(pool), max(_POOL, count))).round().astype(np.intp)
    )
    standard = surrogate.prior.standard(np.asarray(pool)[places])
    left, noise = _left_over(surrogate, standard)
    weight = np.ones(len(standard))
    if near_ms is not None:
        expected_ms = surrogate.forecast(np.asarray(pool)[places]).median_ms
        weight = np.exp(-0.5 * np.square(np.log(expected_ms / near_ms) / _NEARNESS))
    chosen: list[int] = []
    for _ in range(count):
        alone = np.diagonal(left) + noise
        gain = weight * np.square(left * weight[:, None]).sum(axis=0) / alone
        gain[chosen] = -1.0
        best = int(np.argmax(gain))
        chosen.append(best)
        left = left - np.outer(left[:, best], left[best]) / alone[best]
    return np.asarray(places[chosen])


def _left_over(surrogate: LatencySurrogate, standard: Floats) -> tuple[Floats, Floats]:
    """Return the covariance (n, n) that measurements have left, and the variance of a measurement's noise (n,)."""
    amplitudes = sum(one.weight * one.amplitudes for one in surrogate.settings)
    covariance = np.tensordot(amplitudes, surrogate.prior.covariances, axes=1)
    centre = sum(one.weight * one.centre for one in surrogate.settings)
    noise = sum(one.weight * one.noise for one in surrogate.settings)
    both = np.vstack([surrogate.measured, standard])
    level = 1 + both @ centre
    whole = both @ covariance @ both.T + _SCALE_DOUBT**2 * np.outer(level, level) + _START_DOUBT**2
    variance = np.square(noise * np.maximum(level, _PROPORTIONAL))
    known = len(surrogate.measured)
    left = whole[known:, known:]
    if known:
        inside = whole[:known, :known] + np.diag(variance[:known])
        left = left - whole[known:, :known] @ np.linalg.solve(inside, whole[:known, known:])
    return np.asarray(left), np.asarray(variance[known:])


def _measured(rows: Floats, taken_ms: Floats) -> NDArray[np.bool_]:
    if rows.ndim != 2 or taken_ms.shape != (len(rows),):  # noqa: PLR2004 - a table
        raise DataError(
            "a fit needs rows (k, features) and latencies (k,)",
            cause=f"they are {rows.shape} and {taken_ms.shape}",
        )
    known = np.isfinite(taken_ms)
    if (taken_ms[known] <= 0).any():
        raise DataError("a latency must be above 0", cause=f"the least is {taken_ms[known].min()} ms")
    return np.asarray(known)

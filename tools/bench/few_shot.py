"""A search whose device gives a handful of latencies in all: sample, train what should fit, verify finalists."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from search_peers import Cell

from edgekd.surrogates.capacity import Amounts, belief, candidates
from edgekd.surrogates.latency import Forecast, Prior, choose, fit
from edgekd.surrogates.selection import Trials, finalist, next_trial

Floats = NDArray[np.float64]

_CANDIDATES = 1000  # that the seed draws, for the first measurements to be chosen from
_TELLING = 0.5  # of the samples are chosen for what they tell of the device, the others for what they promise
_SHARE = 0.5  # probability of being within the budget with which an untimed architecture is trained
_EARLY = (0.5, 0.75)  # of the trainings, after which the best so far is verified


@dataclass(frozen=True, kw_only=True)
class Rules:
    samples: int
    verifications: int
    trainings: int


@dataclass(kw_only=True)
class Device:
    """A device of a table that tells a latency only when asked, and remembers what it told."""

    cell: Cell
    rows: Floats  # (n, f) encoded for latency
    prior: Prior | None
    known: Amounts
    noise: float
    told_ms: dict[int, float] = field(default_factory=dict)

    def measure(self, row: int) -> float:
        self.told_ms[row] = float(self.cell.latency_ms[row])
        return self.told_ms[row]

    def fits(self, row: int) -> bool:
        return row in self.told_ms and self.told_ms[row] <= self.cell.limit_ms

    def forecast(self) -> Forecast:
        at = np.array(list(self.told_ms), dtype=np.intp)
        return fit(self.rows[at], np.array(list(self.told_ms.values())), self.prior).forecast(self.rows)

    def chance(self, forecast: Forecast) -> Floats:
        """Return the probability of each to be within the budget: 0 or 1 where it was timed."""
        whole = all(told == round(told) for told in self.told_ms.values())
        limit_ms = (
            np.floor(self.cell.limit_ms) + 0.5 if whole else self.cell.limit_ms
        )  # what is rounded down fits
        off = np.log(limit_ms / forecast.median_ms) / forecast.spread
        found = np.minimum(norm.cdf(off), 1 - 1e-9)
        for row in self.told_ms:
            found[row] = float(self.fits(row))
        return np.asarray(found)


def search_few_shot(device: Device, rules: Rules, *, seed: int) -> int | None:
    """Return the row to deliver, timed and within the budget; None where none is."""
    rng = np.random.default_rng([seed, 2])
    _sample(device, rules.samples, rng)
    forecast = device.forecast()
    rows: list[int] = []
    scores: list[float] = []
    left = rules.verifications
    early = {round(share * rules.trainings) for share in _EARLY}
    for count in range(rules.trainings):
        if count in early and left > 1 and _verified(device, forecast, rows, scores):
            left -= 1
            forecast = device.forecast()
        row = _next(device, forecast, rows, scores, seed=seed, planned=rules.trainings)
        if row is None:
            break
        rows.append(row)
        scores.append(float(device.cell.accuracy[row] + device.noise * rng.standard_normal()))
    while left and _verified(device, forecast, rows, scores):
        left -= 1
        forecast = device.forecast()
    fitting = [at for at, row in enumerate(rows) if device.fits(row)]
    return rows[max(fitting, key=lambda at: scores[at])] if fitting else None


def _verified(device: Device, forecast: Forecast, rows: list[int], scores: list[float]) -> bool:
    """Time the finalist that is worth it most; False where none is."""
    if not rows:
        return False
    at = finalist(np.array(scores), device.chance(forecast)[rows])
    if at is None or rows[at] in device.told_ms:
        return False
    device.measure(rows[at])
    return True


def _sample(device: Device, count: int, rng: np.random.Generator) -> None:
    """Measure what tells most of the device, then what promises most within the budget as far as it is known."""
    drawn = rng.permutation(len(device.rows))[:_CANDIDATES]
    telling = max(3, round(_TELLING * count)) if count > 3 else count
    if device.prior is not None:
        chosen = choose(device.prior, device.rows[drawn], telling)
        for at in chosen:
            device.measure(int(drawn[at]))
    else:
        for row in drawn[:telling]:
            device.measure(int(row))
    while len(device.told_ms) < count:
        forecast = device.forecast()
        row = _next(
            device, forecast, list(device.told_ms), [0.0] * len(device.told_ms), seed=0, planned=count
        )
        device.measure(int(drawn[len(device.told_ms)]) if row is None else row)


def _next(
    device: Device, forecast: Forecast, rows: list[int], scores: list[float], *, seed: int, planned: int
) -> int | None:
    allowed = device.chance(forecast) >= _SHARE
    some = allowed.copy()
    some[rows] = True
    at = np.flatnonzero(some)
    pool = candidates(device.known, belief(device.known, forecast.median_ms), at)
    places = np.searchsorted(at, rows)
    trials = Trials(rows=tuple(int(place) for place in places), scores=tuple(scores))
    if not rows or not any(device.fits(row) for row in rows):
        safe = np.array([device.fits(int(row)) for row in at])
        found = next_trial(pool, safe, trials, seed=seed, planned=planned)
        if found is not None:
            return int(
                at[found]
            )  # one that is known to fit comes first: there is always something to deliver
    found = next_trial(pool, allowed[at], trials, seed=seed, planned=planned)
    return None if found is None else int(at[found])

"""Find where a series changes its level, for a history that is reported and never blocks.

Deterministic, with two thresholds, as Hunter made E-divisive (Matteson and James 2014, J. Am. Stat. Assoc. 109:334;
Fleming, Kolaczkowski et al. 2023, ICPE, doi 10.1145/3578244.3583719): places that are easily enough looked at, then
a strict t-test between neighbours, the weakest out first. The places come from the best partition of the whole
series (Jackson et al. 2005, IEEE Signal Process. Lett. 12:105) and not from bisection, to which a level that lasts
for a few values and goes back is invisible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_PENALTY = 18.0  # variances of a value that a change must explain, to be looked at
_RESOLUTION = 1e-9  # relative: nothing was ever measured more finely than that


@dataclass(frozen=True, kw_only=True)
class Change:
    """A level that held up to a value, and another that holds from it on."""

    at: int  # index of the first value of the new level
    before: float  # mean since the change before, or the start
    after: float  # mean until the next change, or the end
    p: float  # of Student's t-test between the two; not corrected for having chosen the place


def change_points(values: Sequence[float], *, p: float = 0.0001, least: int = 5) -> tuple[Change, ...]:
    """Return the changes of level in the order of the series.

    Args:
        values: ratios rather than times: what a machine does to both arms of a comparison is not in them.
        p: what the t-test between two neighbouring levels must fall below.
        least: values that a level lasts, 2 or more; fewer are outliers.

    """
    if least < 2:  # noqa: PLR2004 - one value has no spread to be held against
        raise ValueError("a level lasts 2 values or more")
    series = np.asarray(values, dtype=float)
    if not np.isfinite(series).all():
        raise ValueError("a series of finite values is needed")
    places = _best_partition(series, least)
    while True:
        changes = _between(series, places)
        weakest = max(changes, key=lambda change: change.p, default=None)
        if weakest is None or weakest.p < p:
            return changes
        places.remove(weakest.at)  # its neighbours are tested anew, on longer stretches


def _best_partition(series: NDArray[np.float64], least: int) -> list[int]:
    """Return where levels begin, so that squares within and a penalty for each add up to the least."""
    count = len(series)
    if count < 2 * least:
        return []
    centred = series - series[0]  # sums of a constant series are then exactly 0
    sums, squares = (np.concatenate([[0.0], np.cumsum(centred**power)]) for power in (1, 2))
    penalty = _PENALTY * (np.mean(np.diff(series) ** 2) / 2 + _finest(series))
    cost = np.full(count + 1, np.inf)  # of the values before each place
    begin = np.zeros(count + 1, dtype=int)  # of the level that ends there
    cost[0] = 0.0
    for end in range(least, count + 1):
        starts = np.arange(end - least + 1)
        inside = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / (end - starts)
        whole = cost[starts] + inside + penalty
        begin[end] = np.argmin(whole)
        cost[end] = whole[begin[end]]
    places: list[int] = []
    at = int(begin[count])
    while at > 0:
        places.insert(0, at)
        at = int(begin[at])
    return places


def _between(series: NDArray[np.float64], places: list[int]) -> tuple[Change, ...]:
    edges = [0, *places, len(series)]
    levels = [series[start:end] for start, end in pairwise(edges)]
    return tuple(_change(at, before, after) for at, (before, after) in zip(places, pairwise(levels)))


def _change(at: int, before: NDArray[np.float64], after: NDArray[np.float64]) -> Change:
    from scipy.special import betainc  # a device that takes times has no scipy

    step, freedom = float(after.mean() - before.mean()), len(before) + len(after) - 2
    inside = sum(float(np.sum((level - level.mean()) ** 2)) for level in (before, after))
    variance = max(inside / freedom, _finest(np.concatenate([before, after])))
    t_squared = step**2 / (variance * (1 / len(before) + 1 / len(after)))
    p = float(betainc(freedom / 2, 0.5, freedom / (freedom + t_squared)))  # two-sided, of Student's t
    return Change(at=at, before=float(before.mean()), after=float(after.mean()), p=p)


def _finest(values: NDArray[np.float64]) -> float:
    """Return the variance below which values are equal."""
    return float((_RESOLUTION * np.abs(values).max()) ** 2 + np.finfo(float).tiny)

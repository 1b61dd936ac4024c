"""Decide from paired measurements whether the candidate is slower than the base by more than the margin.

A pair is one launch of each arm, alive together and timed in turns; what one machine does to both cancels in the
logarithm of their ratio. Over pairs, the estimate is Hodges and Lehmann's (1963, Ann. Math. Statist. 34:598), and
its bounds invert Wilcoxon's signed-rank test (1945, Biometrics Bull. 1:80), which is exact for few pairs and asks
of the noise no more than that it be symmetric. Which it is: a pair whose arms are exchanged has the opposite ratio.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DeviceError, UsageError
from edgekd.values.gate import Clock, GateRules, GateVerdict, Ratio
from edgekd.values.latency import Latency

_POWER = 0.95  # chance that the pairs said to be needed are enough
_QUANTILE = {Clock.WALL: 0.5, Clock.CPU: 0.25}  # of a turn's inferences, which stands for the turn
_EFFICIENCY = math.pi / 3  # variance of Hodges-Lehmann over the mean's, for normal noise


def hodges_lehmann(values: Sequence[float]) -> float:
    """Return the median of the Walsh averages: of all means of two values, each with itself too."""
    return float(np.median(_walsh(values)))


def signed_rank_bounds(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """Return bounds of the centre of symmetry, each of which is wrong with a chance of at most `alpha`.

    They are Walsh averages, by the exact law of the signed-rank statistic; ties make them wider, never wrong.
    Minus and plus infinity where there are too few values for `alpha`.
    """
    rank = _rank(len(values), alpha)
    if rank == 0:
        return -math.inf, math.inf
    averages = np.sort(_walsh(values))
    return float(averages[rank - 1]), float(averages[-rank])


def exact_alpha(count: int, alpha: float) -> float:
    """Return the chance with which a bound of `count` values errs: the largest there is at or below `alpha`."""
    rank = _rank(count, alpha)
    return float(_cumulated(count)[rank - 1]) if rank else 0.0


def signed_rank_p(values: Sequence[float], shift: float) -> float:
    """Return the exact one-sided p-value of "the centre is at most `shift`".

    It is at most alpha exactly where the lower one of `signed_rank_bounds` exceeds `shift`. Averages that equal
    `shift` count against a rejection, so ties and zeros make p larger, never too small.
    """
    at_most = int(np.count_nonzero(_walsh(values) <= shift))
    return float(_cumulated(len(values))[at_most])


def pair_log_ratio(base: Latency, candidate: Latency, clock: Clock) -> float:
    """Return log(candidate / base) of one pair: Hodges-Lehmann over its rounds.

    A round is the k-th turn of the one arm and the k-th of the other, each stood for by one quantile of the
    inferences that kept the core, of all of them where none did: the median of the wall clock, and of the CPU
    clock, whose errors only add time, the lower quartile, which scatters a quarter less.

    Raises:
        DeviceError: the clock showed no time during a turn.

    """
    turns = [turn_times(latency, clock) for latency in (base, candidate)]
    if len(turns[0]) != len(turns[1]):
        raise ValueError(f"the arms of a pair had {len(turns[0])} and {len(turns[1])} turns")
    # A difference of logarithms, so that exchanging the arms changes the sign and no digit.
    return hodges_lehmann([math.log(slow) - math.log(fast) for fast, slow in zip(*turns)])


def ratio_of(log_ratios: Sequence[float], alpha: float) -> Ratio:
    """Return the ratio that the pairs agree on; each bound is wrong with a chance of at most `alpha`."""
    low, high = signed_rank_bounds(log_ratios, alpha)
    estimate = math.exp(hodges_lehmann(log_ratios))
    return Ratio(estimate=estimate, low=math.exp(low), high=math.exp(high), confidence=1 - alpha)


def decide(log_ratios: Sequence[float], rules: GateRules, alpha: float) -> GateVerdict | None:
    """Return what the pairs say at this look, None to go on.

    Every look spends an equal share of the chance to err (Bonferroni), so that looking often costs nothing.
    `alpha` is what a FAIL may err by over all looks; less than `rules.alpha` where there are several comparisons.
    """
    pairs, last = len(log_ratios), rules.looks[-1]
    if pairs not in rules.looks and pairs < last:
        return None
    looks, margin = len(rules.looks), math.log1p(rules.margin)
    averages = _walsh(log_ratios)
    # Counting says which side of the margin a bound of `signed_rank_bounds` is on, without sorting for the bound.
    if np.count_nonzero(averages <= margin) < _rank(pairs, alpha / looks):
        return GateVerdict.FAIL
    rank = _rank(pairs, rules.alpha / looks)
    if np.count_nonzero(averages >= -margin) < rank:
        return GateVerdict.IMPROVED
    if np.count_nonzero(averages >= margin) < rank:
        return GateVerdict.PASS
    return GateVerdict.INCONCLUSIVE if pairs >= last else None


def fail_p(log_ratios: Sequence[float], rules: GateRules) -> float:
    """Return the p-value of "the candidate is slower by the margin at most", paid for all looks."""
    return min(1.0, len(rules.looks) * signed_rank_p(log_ratios, math.log1p(rules.margin)))


def holm(p_values: Sequence[float], alpha: float) -> tuple[bool, ...]:
    """Return which p-values are significant when the chance of one false one may be `alpha`.

    Holm (1979, Scand. J. Statist. 6:65): the k-th smallest of m is held against alpha / (m - k + 1), up to the
    first that is too large.
    """
    significant = [False] * len(p_values)
    for done, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[at] > alpha / (len(p_values) - done):
            break
        significant[at] = True
    return tuple(significant)


def noise_floor(log_ratios: Sequence[float]) -> float:
    """Return the SD of a pair's log ratio, by the median absolute deviation (of normal noise)."""
    values = np.asarray(log_ratios, dtype=float)
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def pairs_needed(noise: float, effect: float, margin: float, rules: GateRules) -> int:
    """Return how many pairs find a slowdown of `effect` beyond `margin` at 95 %; at least those of the first look.

    `noise` is the SD of a pair's log ratio; `effect` and `margin` are shares, 0.05 is 5 %. The formula is that of
    large samples; at 24 pairs they find 91 %, and the look that comes next has the rest.

    Raises:
        UsageError: the slowdown does not exceed the margin: no number of pairs would find it.

    """
    if effect <= margin:
        cause = f"{effect:.2%} against a margin of {margin:.2%}"
        raise UsageError(
            "a slowdown within the margin is none",
            cause=cause,
            mend="ask for a larger one, or lower the margin",
        )
    z = NormalDist().inv_cdf(1 - rules.alpha / len(rules.looks)) + NormalDist().inv_cdf(_POWER)
    gap = math.log1p(effect) - math.log1p(margin)
    return max(rules.looks[0], math.ceil(_EFFICIENCY * (z * noise / gap) ** 2))


def turn_times(latency: Latency, clock: Clock) -> list[float]:
    """Return in ms what stands for each turn, in run order.

    Raises:
        DeviceError: the clock showed no time during a turn.

    """
    times_ms = np.asarray(latency.samples_ms if clock is Clock.WALL else latency.cpu_ms, dtype=float)
    lost = np.asarray(latency.preempted or np.zeros(len(times_ms), dtype=bool), dtype=bool)
    found = [_undisturbed(times_ms[turn], lost[turn], _QUANTILE[clock]) for turn in _turns(latency)]
    if not found or min(found) <= 0:
        mend = "give --clock wall, or a model that takes longer"
        raise DeviceError(f"the {clock.value} clock showed no time during a turn", mend=mend)
    return found


def _turns(latency: Latency) -> Iterator[slice]:
    start = 0
    for size in latency.block_sizes or (len(latency.samples_ms),):
        yield slice(start, start + size)
        start += size


def _undisturbed(times_ms: NDArray[np.float64], lost: NDArray[np.bool_], quantile: float) -> float:
    kept = times_ms[~lost] if not lost.all() else times_ms
    return float(np.quantile(kept, quantile)) if kept.size else 0.0


def _walsh(values: Sequence[float]) -> NDArray[np.float64]:
    if not len(values):
        raise ValueError("there are no values")
    array = np.asarray(values, dtype=float)
    first, second = _couples(len(array))
    return np.asarray((array[first] + array[second]) / 2)


@functools.lru_cache(maxsize=64)  # of a few kB each: it is always the same looks and rounds
def _couples(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(count)


@functools.lru_cache(maxsize=4096)
def _rank(count: int, alpha: float) -> int:
    """Return which Walsh average from either end is a bound, 1 being the outermost; 0 where none is."""
    # The k-th average exceeds the centre where fewer than k lie at or below it.
    return int(np.searchsorted(_cumulated(count), alpha, side="right"))


@functools.lru_cache(maxsize=256)
def _cumulated(count: int) -> NDArray[np.float64]:
    """Return P(W <= w) of the signed-rank statistic of `count` values, for every w from 0.

    W is the sum of those ranks 1..count whose coin shows heads, so its law is a product of polynomials. All
    terms are positive: nothing cancels, and the tails are exact to the last digits.
    """
    chances = np.zeros(count * (count + 1) // 2 + 1)
    chances[0] = 1.0
    for rank in range(1, count + 1):
        chances[rank:] = (chances[rank:] + chances[:-rank]) / 2
        chances[:rank] /= 2
    return np.cumsum(chances)

"""Measured latency: every raw sample, and what may be concluded from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from statistics import NormalDist

from edgekd.values.conditions import Conditions, Trust

DEPENDENT = 0.2  # lag-1 autocorrelation above which samples are no longer taken as exchangeable
_NORMAL_FROM = 2  # effective samples expected on either side of the percentile
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How samples are taken; part of a number's identity."""

    version: int = 3
    launches: int = 3  # fresh processes an engine
    blocks: int = 4  # turns an engine gets within a launch, interleaved with the others
    samples: int = 100  # inferences a block
    warmup_ms: float = 60.0  # at least this long, then until two windows agree
    seed: int = 0  # order of the engines within a round
    period_ms: float = 0.0  # one inference each so often, asleep in between; 0: back to back
    soak_s: float = 0.0  # of untimed inferences, spread over the blocks of a launch
    one_core: bool = False  # single-threaded engines of a launch share one core, another one each launch

    @property
    def fingerprint(self) -> str:
        """Name everything but the seed: numbers of equal fingerprints were taken alike."""
        rules = {name: value for name, value in asdict(self).items() if name != "seed"}
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a fresh process took to be ready for its first answer."""

    open_ms: float  # reading, compiling and the first inference
    memory_mib: float  # growth of its resident memory meanwhile


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall-clock inference times in run order, input copy and output copy included.

    Every sample is kept. What is concluded from them leaves out the inferences that lost the core to another
    process: those are marked by their cause, the scheduler's own count, and never by their value.
    """

    samples_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]  # thread CPU time of the same inferences
    protocol: Protocol
    conditions: Conditions
    trust: Trust
    preempted: tuple[bool, ...] = ()  # of the same inferences; empty where it is not known
    block_sizes: tuple[int, ...] = ()  # samples of each turn, in run order over all launches
    launches: tuple[Launch, ...] = ()  # in order

    @cached_property
    def undisturbed_ms(self) -> tuple[float, ...]:
        """The samples that had the core to themselves; all of them where none had."""
        kept = tuple(ms for ms, lost in zip(self.samples_ms, self.preempted) if not lost)
        return kept or self.samples_ms

    @property
    def throttle(self) -> str:
        """Say what held the processor back while this was measured; empty where nothing did."""
        return self.conditions.load.throttle

    @property
    def latter_half(self) -> Latency:
        """The samples of the later blocks of a soak: what it settled at. All of them where there is one block."""
        blocks = len(self.block_sizes) // 2
        skipped = sum(self.block_sizes[:blocks])
        return replace(
            self,
            samples_ms=self.samples_ms[skipped:],
            cpu_ms=self.cpu_ms[skipped:],
            preempted=self.preempted[skipped:],
            block_sizes=self.block_sizes[blocks:],
        )

    @cached_property
    def _ordered_ms(self) -> list[float]:
        return sorted(self.undisturbed_ms)

    @property
    def mean_ms(self) -> float:
        """Mean of the undisturbed samples."""
        return math.fsum(self.undisturbed_ms) / len(self.undisturbed_ms)

    def percentile(self, rank: float) -> float:
        """Return the nearest-rank percentile in ms, `rank` in (0, 100]."""
        return _nearest_rank(self._ordered_ms, rank)

    def disturbed_percentile(self, rank: float) -> float:
        """Return the percentile in ms over all samples, those included that lost the core to another process."""
        return _nearest_rank(sorted(self.samples_ms), rank)

    def upper_bound(self, rank: float, confidence: float = 0.95) -> float:
        """Return a one-sided upper confidence bound of a percentile in ms.

        Distribution-free: the k-th order statistic, with the smallest k such that
        P(Binomial(n, rank) < k) >= confidence. With too few samples for that, infinity.
        Samples are taken as exchangeable, which is why they are spread over launches. Where those above the
        percentile come in clusters, n is the number of independent samples that would tell as much
        (`effective_count`), and k is scaled back to all of them: from the normal law where that is closer,
        because the largest of six, say, is not what six clusters of two hundred tell of a median.
        """
        at = _place(len(self.undisturbed_ms), self.effective_count(rank), rank / 100, confidence)
        return math.inf if at is None else self._ordered_ms[at - 1]

    def lower_bound(self, rank: float, confidence: float = 0.95) -> float:
        """Return a one-sided lower confidence bound of a percentile in ms: `upper_bound`'s mirror image.

        With too few samples for that, 0.
        """
        at = _place(len(self.undisturbed_ms), self.effective_count(rank), 1 - rank / 100, confidence)
        return 0.0 if at is None else self._ordered_ms[-at]

    def effective_count(self, rank: float) -> int:
        """Return how many independent samples tell as much of a percentile as these do.

        n / (1 + 2 sum rho_k), with rho_k the autocorrelation at lag k of "this sample lies at or above the
        percentile" (Heidelberger & Lewis, Operations Research 32(1), 1984), summed over the initial positive
        sequence (Geyer, Statistical Science 7(4), 1992). All n where rho_1 is at most 0.2.
        """
        limit_ms = self.percentile(rank)
        above = [at for at, ms in enumerate(self.undisturbed_ms) if ms >= limit_ms]
        return max(1, math.floor(len(self.undisturbed_ms) / _inflation(above, len(self.undisturbed_ms))))


def autocorrelation(values: Sequence[float]) -> float:
    """Return the lag-1 autocorrelation of a series; 0 where it is constant or shorter than three."""
    if len(values) < 3:  # noqa: PLR2004 - two differences
        return 0.0
    mean = math.fsum(values) / len(values)
    apart = [value - mean for value in values]
    spread = math.fsum(one * one for one in apart)
    return math.fsum(one * other for one, other in pairwise(apart)) / spread if spread else 0.0


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value; equal ones share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or values[order[end]] != values[order[start]]:
            for at in order[start:end]:
                found[at] = (start + end - 1) / 2
            start = end
    return found


def _inflation(above: Sequence[int], count: int) -> float:
    """Return 1 + 2 sum rho_k of a 0/1 series given by the places of its ones, or 1 where rho_1 is small."""
    share, places = len(above) / count, set(above)
    if not 0 < share < 1:
        return 1.0

    def rho(lag: int) -> float:
        together = sum(at + lag in places for at in above) / (count - lag)
        return (together - share * share) / (share - share * share)

    total = rho(1)
    if sum(at + 1 in places for at in above) < 2:  # noqa: PLR2004 - a single pair of neighbours is chance
        return 1.0
    if total <= max(DEPENDENT, 2 / math.sqrt(count)):  # of independent samples, 2 in 100 pass the latter
        return 1.0
    for lag in range(2, count // 2, 2):
        pair = rho(lag) + rho(lag + 1)
        if pair <= 0:
            break
        total += pair
    return 1 + 2 * total


def _place(count: int, effective: int, quantile: float, confidence: float) -> int | None:
    """Return which of `count` ordered samples (1-based) bounds a quantile, where they tell as much as `effective`."""
    at = order_statistic(effective, quantile, confidence)
    if effective == count:
        return at
    share = math.inf if at is None else at / effective
    if effective * min(quantile, 1 - quantile) >= _NORMAL_FROM:
        sigmas = NormalDist().inv_cdf(confidence)
        share = min(share, quantile + sigmas * math.sqrt(quantile * (1 - quantile) / effective))
    return None if share > 1 else math.ceil(share * count - _ROUNDING)


def _nearest_rank(ordered_ms: Sequence[float], rank: float) -> float:
    at = math.ceil(rank * len(ordered_ms) / 100)  # in this order: 7 / 100 * 100 is not 7
    return ordered_ms[max(at, 1) - 1]


def order_statistic(count: int, quantile: float, confidence: float) -> int | None:
    """Return k (1-based) so that the k-th smallest of `count` samples bounds `quantile` from above."""
    below = 0.0  # P(Binomial(count, quantile) < k)
    for k in range(1, count + 1):
        below += math.exp(_log_binomial(count, k - 1, quantile))
        if below >= confidence:
            return k
    return None


def _log_binomial(count: int, hits: int, chance: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return ways + hits * math.log(chance) + (count - hits) * math.log1p(-chance)

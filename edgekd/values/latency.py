"""Measured latency: every raw sample, and what may be concluded from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from edgekd.values.conditions import Conditions, Trust


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How samples are taken; part of a number's identity."""

    version: int = 1
    launches: int = 3  # fresh processes an engine
    blocks: int = 4  # turns an engine gets within a launch, interleaved with the others
    samples: int = 100  # inferences a block
    warmup_ms: float = 60.0  # at least this long, then until two windows agree
    seed: int = 0  # order of the engines within a round


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

    @cached_property
    def _ordered_ms(self) -> list[float]:
        return sorted(self.undisturbed_ms)

    @property
    def mean_ms(self) -> float:
        """Mean of the undisturbed samples."""
        return math.fsum(self.undisturbed_ms) / len(self.undisturbed_ms)

    def percentile(self, rank: float) -> float:
        """Return the nearest-rank percentile in ms, `rank` in (0, 100]."""
        at = math.ceil(rank * len(self.undisturbed_ms) / 100)  # in this order: 7 / 100 * 100 is not 7
        return self._ordered_ms[max(at, 1) - 1]

    def upper_bound(self, rank: float, confidence: float = 0.95) -> float:
        """Return a one-sided upper confidence bound of a percentile in ms.

        Distribution-free: the k-th order statistic, with the smallest k such that
        P(Binomial(n, rank) < k) >= confidence. With too few samples for that, infinity.
        Samples are taken as exchangeable, which is why they are spread over launches.
        """
        at = order_statistic(len(self.undisturbed_ms), rank / 100, confidence)
        return math.inf if at is None else self._ordered_ms[at - 1]


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

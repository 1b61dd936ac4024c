from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.values.latency import Latency, order_statistic

LatencyOf = Callable[[Sequence[float]], Latency]


def exact(count: int, quantile: Fraction, confidence: Fraction) -> int | None:
    """The bound's order statistic by whole-number arithmetic."""
    below = Fraction(0)
    for k in range(1, count + 1):
        below += math.comb(count, k - 1) * quantile ** (k - 1) * (1 - quantile) ** (count - k + 1)
        if below >= confidence:
            return k
    return None


@given(
    count=st.integers(1, 400),
    percent=st.sampled_from([50, 90, 95, 99]),
    confidence=st.sampled_from([80, 90, 95, 99]),
)
def test_the_order_statistic_is_the_exact_one(count: int, percent: int, confidence: int) -> None:
    quantile, level = Fraction(percent, 100), Fraction(confidence, 100)
    assert order_statistic(count, percent / 100, confidence / 100) == exact(count, quantile, level)


@pytest.mark.parametrize(("confidence", "needed"), [(0.95, 299), (0.99, 459)])
def test_p99_needs_this_many_samples(confidence: float, needed: int) -> None:
    assert order_statistic(needed - 1, 0.99, confidence) is None
    assert order_statistic(needed, 0.99, confidence) == needed


def test_many_samples_bring_the_bound_near_the_percentile() -> None:
    at = order_statistic(20_000, 0.99, 0.95)
    assert at is not None
    assert 19_800 < at < 19_840


def test_the_upper_bound_covers_the_true_percentile_as_often_as_it_says(latency_of: LatencyOf) -> None:
    rng = random.Random(0)  # noqa: S311 - a simulation
    rounds, covered = 800, 0
    true_p90_ms = -math.log(0.1)  # of an exponential distribution
    for _ in range(rounds):
        latency = latency_of([rng.expovariate(1.0) for _ in range(120)])
        covered += latency.upper_bound(90, 0.95) >= true_p90_ms
    assert 0.93 <= covered / rounds <= 0.99  # at least the level; order statistics are a little above it


def test_too_few_samples_give_no_bound(latency_of: LatencyOf) -> None:
    assert latency_of([1.0] * 298).upper_bound(99, 0.95) == math.inf
    assert latency_of([1.0] * 299).upper_bound(99, 0.95) == 1.0


@given(samples=st.lists(st.floats(0.001, 1000), min_size=1, max_size=200), rank=st.integers(1, 100))
def test_a_percentile_is_the_smallest_sample_with_that_share_at_or_below_it(
    latency_of: LatencyOf, samples: list[float], rank: int
) -> None:
    found = latency_of(samples).percentile(rank)
    at_or_below = sum(sample <= found for sample in samples)
    below = sum(sample < found for sample in samples)
    assert 100 * at_or_below >= rank * len(samples)
    assert 100 * below < rank * len(samples)


@given(samples=st.lists(st.floats(0.001, 1000), min_size=1, max_size=500))
def test_bounds_are_above_percentiles_and_rise_with_confidence(
    latency_of: LatencyOf, samples: list[float]
) -> None:
    latency = latency_of(samples)
    for rank in (50, 90, 95, 99):
        assert latency.percentile(rank) <= latency.upper_bound(rank, 0.8) <= latency.upper_bound(rank, 0.95)


def test_the_mean_is_the_mean(latency_of: LatencyOf) -> None:
    assert latency_of([1.0, 2.0, 6.0]).mean_ms == 3.0


def test_what_lost_the_core_to_another_process_is_kept_and_left_out_of_conclusions(
    latency_of: LatencyOf,
) -> None:
    whole = latency_of([1.0, 9.0, 2.0, 3.0])
    marked = replace(whole, preempted=(False, True, False, False))
    assert marked.samples_ms == whole.samples_ms
    assert (marked.percentile(99), marked.mean_ms, marked.upper_bound(50, 0.8)) == (3.0, 2.0, 3.0)
    assert whole.percentile(99) == 9.0


def test_where_every_sample_lost_the_core_all_count(latency_of: LatencyOf) -> None:
    assert replace(latency_of([1.0, 9.0]), preempted=(True, True)).percentile(99) == 9.0

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.values.latency import Latency, Protocol, autocorrelation, order_statistic, ranks

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


def dependent(rng: random.Random, phi: float, count: int) -> list[float]:
    """An autoregressive series with standard normal values, shifted to be positive."""
    found = [rng.gauss(0.0, 1.0)]
    for _ in range(count - 1):
        found.append(phi * found[-1] + math.sqrt(1 - phi * phi) * rng.gauss(0.0, 1.0))
    return [100.0 + value for value in found]


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("rank", "true_ms"), [(50, 100.0), (90, 101.28155)])
def test_the_upper_bound_covers_where_samples_depend_on_one_another(
    latency_of: LatencyOf, phi: float, rank: int, true_ms: float
) -> None:
    rng = random.Random(f"{phi}/{rank}")  # noqa: S311 - a simulation
    rounds = 200
    latencies = [latency_of(dependent(rng, phi, 1200)) for _ in range(rounds)]
    covered = sum(latency.upper_bound(rank, 0.95) >= true_ms for latency in latencies)
    below = sum(latency.lower_bound(rank, 0.95) <= true_ms for latency in latencies)
    assert covered / rounds >= 0.90  # 0.95, less three standard errors
    assert below / rounds >= 0.90


def test_samples_in_clusters_would_fool_a_bound_that_takes_them_as_exchangeable(
    latency_of: LatencyOf,
) -> None:
    rng = random.Random(0)  # noqa: S311 - a simulation
    fooled = 0
    for _ in range(100):
        samples = sorted(dependent(rng, 0.9, 1200))
        at = order_statistic(1200, 0.5, 0.95)
        fooled += at is not None and samples[at - 1] < 100.0
    assert fooled > 20  # five times as often as it says


def test_independent_samples_count_as_they_are(latency_of: LatencyOf) -> None:
    rng = random.Random(3)  # noqa: S311 - a simulation
    latency = latency_of([rng.expovariate(1.0) for _ in range(1200)])
    assert [latency.effective_count(rank) for rank in (50, 90, 99)] == [1200] * 3
    assert abs(autocorrelation(ranks(latency.samples_ms))) < 0.1


def test_one_spell_of_slow_samples_is_worth_little(latency_of: LatencyOf) -> None:
    latency = latency_of([1.0 + at * 1e-6 for at in range(585)] + [2.0] * 15)
    assert latency.effective_count(99) < 60
    assert latency.upper_bound(99) == math.inf
    assert latency_of([1.0] * 600).upper_bound(99) == 1.0  # equal samples come in no clusters


@given(samples=st.lists(st.floats(0.001, 1000), min_size=1, max_size=300))
def test_a_lower_bound_is_below_the_percentile_and_0_of_too_few(
    latency_of: LatencyOf, samples: list[float]
) -> None:
    latency = latency_of(samples)
    for rank in (50, 90, 99):
        assert 0.0 <= latency.lower_bound(rank) <= latency.percentile(rank)
    assert latency_of([1.0] * 4).lower_bound(50) == 0.0
    assert latency_of([1.0] * 5).lower_bound(50) == 1.0


def test_ranks_and_their_autocorrelation() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [2.5, 0.0, 2.5, 1.0]
    assert autocorrelation([1.0, -1.0] * 50) == pytest.approx(-0.99)
    assert autocorrelation([1.0] * 5) == autocorrelation([1.0, 2.0]) == 0.0


def test_percentiles_of_disturbed_samples_are_told_apart(latency_of: LatencyOf) -> None:
    marked = replace(latency_of([1.0, 9.0, 2.0]), preempted=(False, True, False))
    assert (marked.percentile(99), marked.disturbed_percentile(99)) == (2.0, 9.0)


def test_a_soak_is_judged_by_its_later_blocks(latency_of: LatencyOf) -> None:
    lost = (False, True, False, False, True, False)
    whole = replace(latency_of([1, 2, 3, 4, 5, 6]), block_sizes=(1, 2, 2, 1), preempted=lost)
    half = whole.latter_half
    assert (half.samples_ms, half.cpu_ms) == ((4, 5, 6), (4, 5, 6))
    assert (half.preempted, half.block_sizes) == ((False, True, False), (2, 1))
    assert latency_of([1.0, 2.0]).latter_half.samples_ms == (1.0, 2.0)


def test_a_protocol_is_the_same_whatever_its_seed() -> None:
    assert Protocol(seed=1).fingerprint == Protocol(seed=2).fingerprint
    others = [
        Protocol(version=1),
        Protocol(one_core=True),
        Protocol(blocks=5),
        Protocol(period_ms=33.0),
        Protocol(soak_s=60.0),
    ]
    assert len({protocol.fingerprint for protocol in (*others, Protocol())}) == 6

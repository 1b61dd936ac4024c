from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from edgekd.errors import ConfigError
from edgekd.values.budget import Budget, LatencyBudget, Limits
from edgekd.values.latency import Latency

LatencyOf = Callable[[Sequence[float]], Latency]


@pytest.mark.parametrize("both", [{}, {"p99": 1.0, "speedup": 2.0}])
def test_a_budget_holds_percentiles_or_a_speedup(both: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        LatencyBudget(**both)


@pytest.mark.parametrize("name", ["p50", "p99", "speedup"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_limit_is_above_zero(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be above 0"):
        LatencyBudget(**{name: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("confidence", 1.0),
        ("confidence", 0.2),
        ("max_accuracy_drop", -0.1),
        ("max_accuracy_drop", 2.0),
        ("size_mb", 0.0),
    ],
)
def test_a_figure_that_means_nothing_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        Budget(latency_ms=LatencyBudget(p99=1.0), **{key: value})


def test_a_speedup_is_taken_from_the_teachers_p99(latency_of: LatencyOf) -> None:
    teacher = latency_of([1.0] * 98 + [8.0] * 2)
    assert LatencyBudget(speedup=4.0).limits(teacher) == {"p99": 2.0}
    with pytest.raises(ConfigError, match="needs a teacher"):
        LatencyBudget(speedup=4.0).limits()


def test_percentiles_are_limits_as_they_stand() -> None:
    assert LatencyBudget(p50=1.0, p99=2.0).limits() == {"p50": 1.0, "p99": 2.0}


def test_the_bound_and_not_the_estimate_is_held_against_the_limit(latency_of: LatencyOf) -> None:
    samples = [1.0] * 985 + [3.0] * 15  # p99 is 3, so is its bound; p50 is 1
    tail = [1.0] * 993 + [3.0] * 7  # p99 is 1, its 95 % bound is 3
    limits = Limits(latency_ms={"p99": 2.0}, confidence=0.95)
    assert latency_of(tail).percentile(99) == 1.0
    assert limits.breaches(latency_of(tail), 0) == ("p99 <= 3.000 ms at 95%, limit 2.000 ms",)
    assert limits.breaches(latency_of(samples), 0)
    assert limits.breaches(latency_of([1.0] * 1000), 0) == ()


def test_too_few_samples_are_a_breach_that_says_so(latency_of: LatencyOf) -> None:
    limits = Limits(latency_ms={"p99": 2.0}, confidence=0.95)
    assert limits.breaches(latency_of([1.0] * 298), 0) == ("298 samples are too few to bound p99 at 95%",)
    assert limits.breaches(latency_of([1.0] * 299), 0) == ()


def test_every_limit_that_breaks_is_named(latency_of: LatencyOf) -> None:
    limits = Limits(latency_ms={"p50": 0.5, "p99": 2.0}, confidence=0.95, size_mb=1.0)
    found = limits.breaches(latency_of([1.0] * 1000), 2_000_000)
    assert [breach.split()[0] for breach in found] == ["p50", "size"]


def test_tightness_is_the_worst_ratio_of_measured_to_allowed(latency_of: LatencyOf) -> None:
    limits = Limits(latency_ms={"p50": 4.0, "p99": 2.0}, confidence=0.95)
    assert limits.tightness(latency_of([1.0] * 1000)) == 0.5

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from edgekd.errors import ConfigError
from edgekd.values.budget import Budget, LatencyBudget, Limits
from edgekd.values.latency import Latency, Launch

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
        ("memory_mb", -1.0),
        ("open_ms", 0.0),
        ("sustained_minutes", 0.0),
        ("period_ms", float("nan")),
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


def test_memory_and_start_up_are_judged_by_the_median_launch(latency_of: LatencyOf) -> None:
    launches = tuple(Launch(open_ms=ms, memory_mib=mib) for ms, mib in ((10, 4), (90, 40), (20, 5)))
    latency = replace(latency_of([1.0] * 300), launches=launches)
    limits = Limits(latency_ms={"p99": 2.0}, confidence=0.95, memory_mb=5.0, open_ms=15.0)
    assert limits.breaches(latency, 0) == (
        "memory 5.24 MB, limit 5 MB",
        "start-up 20.00 ms, limit 15 ms",
    )
    assert replace(limits, memory_mb=6.0, open_ms=20.0).breaches(latency, 0) == ()


def test_what_was_not_measured_does_not_fit(latency_of: LatencyOf) -> None:
    limits = Limits(latency_ms={"p99": 2.0}, confidence=0.95, open_ms=15.0)
    assert limits.breaches(latency_of([1.0] * 300), 0) == ("start-up was not measured",)


def test_a_period_that_half_of_the_inferences_may_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match="period_ms is shorter"):
        Budget(latency_ms=LatencyBudget(p50=40.0), period_ms=33.0)
    assert Budget(latency_ms=LatencyBudget(p50=20.0), period_ms=33.0).period_ms == 33.0


def test_samples_in_clusters_are_said_to_be_worth_less(latency_of: LatencyOf) -> None:
    spell = [1.0 + at * 1e-6 for at in range(585)] + [1.5] * 15
    (breach,) = Limits(latency_ms={"p99": 2.0}, confidence=0.95).breaches(latency_of(spell), 0)
    assert breach.startswith("600 samples in clusters, worth")
    assert "too few to bound p99" in breach


def test_a_speedup_limits_p99() -> None:
    assert LatencyBudget(speedup=4.0).percentiles == ("p99",)
    assert LatencyBudget(p50=1.0, p95=2.0).percentiles == ("p50", "p95")

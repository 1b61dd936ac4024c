"""Upper limits on measured quantities of the compiled file, and a floor on accuracy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.errors import ConfigError
from edgekd.values.latency import Latency

RANKS = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
_MB_A_MIB = (1 << 20) / 1e6


@dataclass(frozen=True, kw_only=True)
class LatencyBudget:
    """Absolute limits in ms, or a speed-up of p99 over the teacher on the same runtime and device."""

    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        absolute = [getattr(self, name) for name in RANKS if getattr(self, name) is not None]
        if bool(absolute) == (self.speedup is not None):
            raise ConfigError(
                "[budget.latency_ms] must hold percentiles or a speed-up, one of the two",
                mend="write latency_ms = { p99 = 2.0 } or latency_ms = { speedup = 4.0 }",
            )
        for name in (*RANKS, "speedup"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"[budget.latency_ms] {name} must be above 0", cause=f"it is {value}")

    @property
    def percentiles(self) -> tuple[str, ...]:
        """Name the percentiles that are limited; a speed-up limits p99."""
        return tuple(name for name in RANKS if getattr(self, name) is not None) or ("p99",)

    def limits(self, teacher: Latency | None = None) -> dict[str, float]:
        """Return limits in ms by percentile name; a speed-up is taken from the teacher's p99."""
        if self.speedup is None:
            return {name: limit for name in RANKS if (limit := getattr(self, name)) is not None}
        if teacher is None:
            raise ConfigError("a speed-up budget needs a teacher that runs on the target")
        return {"p99": teacher.percentile(99.0) / self.speedup}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a student must meet to be accepted."""

    latency_ms: LatencyBudget
    max_accuracy_drop: float = 0.01  # of the task's metric, against the teacher
    size_mb: float | None = None  # of the compiled file, on disk
    memory_mb: float | None = None  # growth of a fresh process until its first answer
    open_ms: float | None = None  # start-up of a fresh process: reading, compiling and the first inference
    energy_mj: float | None = None  # of an inference above the idle device; it needs a meter there
    sustained_minutes: float | None = None  # the latency limits hold after so long back to back, too
    period_ms: float | None = None  # they hold with one inference in so long and sleep in between, too
    confidence: float = 0.95  # of the upper bound that is held against a latency limit

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:  # noqa: PLR2004 - below it, the bound lies under the estimate
            mend = "0.95 is usual"
            raise ConfigError(
                "[budget] confidence must lie in [0.5, 1)", cause=f"it is {self.confidence}", mend=mend
            )
        if not 0 <= self.max_accuracy_drop < 1:
            raise ConfigError(
                "[budget] max_accuracy_drop must lie in [0, 1)",
                cause=f"it is {self.max_accuracy_drop}",
                mend="write a share, not percent: one point is 0.01",
            )
        for name in ("size_mb", "memory_mb", "open_ms", "energy_mj", "sustained_minutes", "period_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"[budget] {name} must be above 0", cause=f"it is {value}")
        self._check_period()

    def _check_period(self) -> None:
        """Refuse a period that a limit says an inference may fill: such inferences would queue without end."""
        p50, period_ms = self.latency_ms.p50, self.period_ms
        if period_ms is not None and p50 is not None and p50 > period_ms:
            raise ConfigError(
                "[budget] period_ms is shorter than half of the inferences may take",
                cause=f"one every {period_ms:g} ms, and latency_ms.p50 is {p50:g}",
                mend="give a longer period_ms, or a limit below it",
            )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A budget in absolute numbers for one runtime: what a latency is judged by."""

    latency_ms: dict[str, float]
    confidence: float
    size_mb: float | None = None
    memory_mb: float | None = None
    open_ms: float | None = None

    def breaches(self, latency: Latency, size_bytes: int) -> tuple[str, ...]:
        """Name every limit that is not met with the stated confidence; none means it fits."""
        found = list(self.latency_breaches(latency))
        if self.size_mb is not None and size_bytes > self.size_mb * 1e6:
            found.append(f"size {size_bytes / 1e6:.2f} MB, limit {self.size_mb:g} MB")
        memory_mb = [launch.memory_mib * _MB_A_MIB for launch in latency.launches]
        found += _over("memory", "MB", memory_mb, self.memory_mb)
        found += _over("start-up", "ms", [launch.open_ms for launch in latency.launches], self.open_ms)
        return tuple(found)

    def latency_breaches(self, latency: Latency) -> tuple[str, ...]:
        """Name every latency limit that is not met with the stated confidence."""
        found = []
        for name, limit_ms in self.latency_ms.items():
            bound_ms = latency.upper_bound(RANKS[name], self.confidence)
            if math.isinf(bound_ms):
                found.append(f"{_samples(latency, RANKS[name])} to bound {name} at {self.confidence:.0%}")
            elif bound_ms > limit_ms:
                found.append(f"{name} <= {bound_ms:.3f} ms at {self.confidence:.0%}, limit {limit_ms:.3f} ms")
        return tuple(found)

    def tightness(self, latency: Latency) -> float:
        """Return the largest measured / allowed ratio; at most 1 where everything fits."""
        return max(
            latency.upper_bound(RANKS[name], self.confidence) / limit_ms
            for name, limit_ms in self.latency_ms.items()
        )


def _samples(latency: Latency, rank: float) -> str:
    count, effective = len(latency.undisturbed_ms), latency.effective_count(rank)
    worth = "" if effective == count else f" in clusters, worth {effective} independent ones,"
    return f"{count} samples{worth} are too few"


def _over(what: str, unit: str, launches: Sequence[float], limit: float | None) -> tuple[str, ...]:
    """Hold the median launch against a limit."""
    if limit is None:
        return ()
    if not launches:
        return (f"{what} was not measured",)
    median = statistics.median(launches)
    return (f"{what} {median:.2f} {unit}, limit {limit:g} {unit}",) if median > limit else ()

"""A latency made of given samples, under conditions that do not matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from edgekd.values.conditions import Conditions, Hardware, Load, Software, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol

LatencyOf = Callable[[Sequence[float]], Latency]


@pytest.fixture(scope="session")  # also for tests that hypothesis repeats
def conditions() -> Conditions:
    return Conditions(
        hardware=Hardware(machine="x86_64", processor="p", cores=2, memory_mib=1024, features=("avx2",)),
        software=Software(system="Linux", kernel="6", python="3.11", runtimes={"r": "1"}, governor="unknown"),
        load=Load(load_average=0.1, others_percent=1.0, steal_percent=0.0, involuntary_switches=0),
    )


@pytest.fixture(scope="session")  # also for tests that hypothesis repeats
def latency_of(conditions: Conditions) -> LatencyOf:
    def build(samples_ms: Sequence[float]) -> Latency:
        return Latency(
            samples_ms=tuple(samples_ms),
            cpu_ms=tuple(samples_ms),
            protocol=Protocol(),
            conditions=conditions,
            trust=Trust(verdict=TrustVerdict.GOOD),
        )

    return build

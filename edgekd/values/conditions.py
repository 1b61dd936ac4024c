"""Everything that changes a latency, and whether a number taken under it can be trusted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import Enum


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine itself."""

    machine: str  # x86_64, aarch64
    processor: str
    cores: int  # this process may use
    memory_mib: int
    features: tuple[str, ...]  # avx512_vnni, avx512_bf16, amx_int8, asimddp, ...


@dataclass(frozen=True, kw_only=True)
class Software:
    """What runs on it."""

    system: str
    kernel: str
    python: str
    runtimes: dict[str, str]  # name -> version, of those that import
    governor: str  # cpufreq's, or "unknown"
    power: str = ""  # a board's power mode and the limits of its clocks; empty where it is no board


@dataclass(frozen=True, kw_only=True)
class Load:
    """What else happened while the samples were taken."""

    load_average: float
    others_percent: float  # CPU time of other processes, percent of one core
    steal_percent: float
    involuntary_switches: int
    temperature_c: float | None = None  # the highest seen
    clock_mhz: float | None = None  # the last seen
    throttled: int = 0  # times that the processor, or the firmware, slowed itself down
    quota_ms: float = 0.0  # that a cgroup's CPU quota kept its processes waiting
    memory_pressure_percent: float = 0.0  # of the last 10 s, in which some process waited for memory
    lowest_mhz: float | None = None
    highest_mhz: float | None = None
    temperature_rise_c: float = 0.0  # from the lowest seen to the highest
    governor: str = "unknown"  # at the end
    governor_changed: bool = False

    @property
    def throttle(self) -> str:
        """Say what held the processor back meanwhile; empty where nothing did."""
        reasons = []
        if self.throttled:
            reasons.append(f"throttled {self.throttled} {'time' if self.throttled == 1 else 'times'}")
        if self.quota_ms > 0:
            reasons.append(f"the cgroup's CPU quota stopped it for {self.quota_ms:.0f} ms")
        return "; ".join(reasons)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Hardware, software and load of one measurement."""

    hardware: Hardware
    software: Software
    load: Load

    @property
    def fingerprint(self) -> str:
        """Name the machine and its software; load is not part of it."""
        return _digest([asdict(self.hardware), asdict(self.software)])

    @property
    def hardware_fingerprint(self) -> str:
        """Name the machine alone."""
        return _digest(asdict(self.hardware))

    @property
    def software_fingerprint(self) -> str:
        """Name its software alone."""
        return _digest(asdict(self.software))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class TrustVerdict(Enum):
    """Whether a number may decide something."""

    GOOD = "good"
    NOISY = "noisy"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """A verdict on a measurement, with its reasons."""

    verdict: TrustVerdict
    reasons: tuple[str, ...] = ()

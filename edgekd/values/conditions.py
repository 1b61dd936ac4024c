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


@dataclass(frozen=True, kw_only=True)
class Load:
    """What else happened while the samples were taken."""

    load_average: float
    others_percent: float  # CPU time of other processes, percent of one core
    steal_percent: float
    involuntary_switches: int
    temperature_c: float | None = None
    clock_mhz: float | None = None


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Hardware, software and load of one measurement."""

    hardware: Hardware
    software: Software
    load: Load

    @property
    def fingerprint(self) -> str:
        """Name the machine and its software; load is not part of it."""
        text = json.dumps([asdict(self.hardware), asdict(self.software)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class TrustVerdict(Enum):
    """Whether a number may decide something."""

    GOOD = "good"
    NOISY = "noisy"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """A verdict on a measurement, with its reasons."""

    verdict: TrustVerdict
    reasons: tuple[str, ...] = ()

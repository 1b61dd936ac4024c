"""The deliverable: what goes into a bundle, its manifest, and what checking one says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.values.artifact import Artifact
from edgekd.values.budget import Limits
from edgekd.values.conditions import Conditions, Trust
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.power import Energy
from edgekd.values.preprocess import Recipe
from edgekd.values.student import StudentSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LatencySummary:
    """What a latency boils down to, in ms."""

    p50: float
    p90: float
    p95: float
    p99: float
    p99_upper: float | None  # one-sided bound at `confidence`; None where the samples are too few
    mean: float
    confidence: float
    samples: int
    protocol: Protocol
    trust: Trust
    conditions: Conditions
    preempted: int = 0  # inferences beside the samples that lost the core to another process
    p99_disturbed: float | None = None  # those included; no other figure has them


def summarise(latency: Latency, confidence: float) -> LatencySummary:
    """Boil a latency down, with its p99 bounded from above at `confidence`."""
    p99_upper = latency.upper_bound(99.0, confidence)
    return LatencySummary(
        p50=latency.percentile(50.0),
        p90=latency.percentile(90.0),
        p95=latency.percentile(95.0),
        p99=latency.percentile(99.0),
        p99_upper=p99_upper if math.isfinite(p99_upper) else None,
        mean=latency.mean_ms,
        confidence=confidence,
        samples=len(latency.undisturbed_ms),
        protocol=latency.protocol,
        trust=latency.trust,
        conditions=latency.conditions,
        preempted=len(latency.samples_ms) - len(latency.undisturbed_ms),
        p99_disturbed=latency.disturbed_percentile(99.0),
    )


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a compiled file's outputs lie from the reference's, on the same inputs."""

    max_error: float  # largest absolute difference of an output
    scale: float  # largest absolute reference output
    changed_labels: int
    samples: int

    @property
    def relative_error(self) -> float:
        """`max_error / scale`."""
        return self.max_error / self.scale if self.scale else self.max_error

    @property
    def words(self) -> str:
        """How far, and how many labels changed where any did: outputs of many tasks name none."""
        labels = f"{self.changed_labels} of {self.samples} labels differ; " if self.changed_labels else ""
        return f"{labels}error {self.relative_error:.1e}"

    @property
    def agreement(self) -> float:
        """Share of the samples that keep their label."""
        return 1 - self.changed_labels / self.samples


@dataclass(frozen=True, kw_only=True)
class Builds:
    """What several builds of one model came to, where a build is a random draw."""

    p50_ms: tuple[float, ...]  # of each build, in turns, in the order they were built
    picked: int  # which of them ships; measured again for the deployment's own latency
    build_spread: float  # relative standard deviation between builds, launches' own scatter taken out
    launch_spread: float  # relative standard deviation between launches of one build
    failed: tuple[str, ...] = ()  # why a build gave nothing

    @property
    def range(self) -> float:
        """How much slower the slowest build is than the fastest: 0.1 is 10 %."""
        return max(self.p50_ms) / min(self.p50_ms) - 1


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One file of the bundle on one runtime: its latency and the accuracy of that same file."""

    runtime: str
    precision: Precision
    threads: int
    files: tuple[str, ...]  # the first is the one to load; each is in the manifest's `files`
    latency: LatencySummary
    accuracy: float  # test metric of this very file
    parity: Parity | None = None  # against torch, on real images
    modes: dict[str, LatencySummary] = field(default_factory=dict)  # "sustained 10 min", "one every 33 ms"
    energy: Energy | None = None  # of an inference above the idle device, where the budget limited it
    builds: Builds | None = None  # where a build is a random draw and several were tried

    @property
    def name(self) -> str:
        """`openvino/int8`."""
        return f"{self.runtime}/{self.precision.value}"


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Test metric of the teacher and of the accepted file, and the size of the test set."""

    metric: str
    teacher: float
    student: float
    validation_teacher: float
    validation_student: float
    test_samples: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`: what is in the bundle, where it came from and what it was measured to do."""

    schema_version: int
    name: str
    task: str
    classes: tuple[str, ...]
    spec: StudentSpec
    files: dict[str, str]  # relative path -> sha256, of every file but the manifest
    deployments: tuple[Deployment, ...]  # the accepted one first
    limits_ms: dict[str, float]
    accuracy: Accuracies
    teacher_sha256: str
    data_sha256: str
    job_sha256: str
    calibration_sha256: str
    tools: dict[str, str]  # name -> version, on the host
    seed: int
    command: str = ""  # that makes this bundle again
    teacher_latency: LatencySummary | None = None  # on the accepted deployment's runtime and threads
    decoding: dict[str, Any] = field(
        default_factory=dict
    )  # how outputs become answers: plain JSON, for run.py

    @property
    def accepted(self) -> Deployment:
        """What was measured to meet the budget."""
        return self.deployments[0]


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """An engine that goes into the bundle, with what was measured on that very file."""

    engine: Engine
    latency: Latency
    accuracy: float  # test metric
    parity: Parity | None = None
    modes: dict[str, Latency] = field(default_factory=dict)
    energy: Energy | None = None
    builds: Builds | None = None


@dataclass(frozen=True, kw_only=True)
class BundleContent:
    """Everything a bundle is made of."""

    name: str
    task: str
    classes: tuple[str, ...]
    spec: StudentSpec
    source: Model  # the portable ONNX: fp32, or with explicit Q/DQ
    shipped: tuple[Shipped, ...]  # the accepted one first
    preprocess: Recipe
    limits: Limits
    accuracy: Accuracies
    teacher_sha256: str
    data_sha256: str
    job_sha256: str
    calibration_sha256: str
    tools: dict[str, str]
    seed: int
    samples: Artifact | None = None  # .npz that `stages.bundle.save_samples` wrote
    command: str = ""
    teacher_latency: Latency | None = None
    decoding: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at; `passed` is None where it could not be done here."""

    name: str
    passed: bool | None
    detail: str
    parity: Parity | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What checking a bundle found; a failed digest never gets this far."""

    folder: Path
    checks: tuple[Check, ...]
    schema_version: int = 1  # of `edgekd verify --json`

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.passed is not False for check in self.checks)

"""The deliverable's manifest."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.values.conditions import Conditions, Trust
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision
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


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One file of the bundle on one runtime: its latency and the accuracy of that same file."""

    runtime: str
    precision: Precision
    threads: int
    files: tuple[str, ...]  # the first is the one to load; each is in the manifest's `files`
    latency: LatencySummary
    accuracy: float  # test metric of this very file


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

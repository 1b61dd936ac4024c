"""What the verbs answer: a run's outcome, a plan, a profile, an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.values.bundle import Accuracies, LatencySummary
from edgekd.values.model import Precision, Signature
from edgekd.values.student import StudentSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ChosenStudent:
    """What was accepted."""

    spec: StudentSpec
    precision: Precision
    runtime: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`edgekd run --json`."""

    bundle: Path
    report: Path
    student: ChosenStudent
    latency_ms: LatencySummary
    teacher_latency_ms: LatencySummary
    budget: dict[str, float]  # limits in ms
    accuracy: Accuracies
    trials: dict[str, int]  # by verdict
    device_seconds: float
    train_seconds: float
    seconds: float
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Reach:
    """One point of the frontier: the largest student expected at this latency."""

    spec: StudentSpec
    runtime: str
    precision: Precision
    expected_ms: float
    low_ms: float  # expected -/+ two relative SDs of the predictor
    high_ms: float
    mega_macs: float


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """One change that would bring a student within reach, and what it saves."""

    change: str
    saves_ms: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`edgekd plan --json`: what the device can do, before any training."""

    reachable: bool
    limits_ms: dict[str, dict[str, float]]  # by runtime
    teacher_p99_ms: dict[str, float]
    fastest_measured_ms: float  # what is held against the limit, of the fastest student timed
    frontier: tuple[Reach, ...]
    relaxations: tuple[Relaxation, ...]
    space_size: int
    measured: int
    trials: int
    device_seconds: float
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """`edgekd profile --json`: one model on one runtime."""

    model_sha256: str
    runtime: str
    precision: Precision
    latency_ms: LatencySummary | None
    open_ms: float | None
    memory_mib: float | None
    problem: str = ""  # why there is no latency


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Every runtime and precision that was asked for."""

    signature: Signature
    results: tuple[Profiled, ...]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One file of an export, checked and measured."""

    files: dict[str, str]  # relative path -> sha256
    runtime: str
    precision: Precision
    max_error: float  # against the source's own outputs
    scale: float  # of those outputs
    changed_labels: int
    samples: int
    latency_ms: LatencySummary


@dataclass(frozen=True, kw_only=True)
class Exported:
    """`edgekd export --json`, and the manifest beside the files."""

    source: str
    signature: Signature
    opset: int
    exports: tuple[ExportedFile, ...]
    problems: tuple[str, ...]
    calibration_sha256: str
    schema_version: int = SCHEMA_VERSION

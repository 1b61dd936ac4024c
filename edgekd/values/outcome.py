"""What the verbs answer: a run's outcome, a plan, a profile, an export."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekd.values.bundle import Accuracies, LatencySummary
from edgekd.values.layer import LayerTable
from edgekd.values.ledger import Ledger
from edgekd.values.model import Precision, Signature
from edgekd.values.power import Energy
from edgekd.values.student import StudentSpec
from edgekd.values.variant import Blamed, Exchange, Loss, Quantization, Variant

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ChosenStudent:
    """What was accepted."""

    spec: StudentSpec
    precision: Precision
    runtime: str


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """A student that was timed and trained, and that no other beats in both."""

    spec: StudentSpec
    runtime: str
    precision: Precision
    p50_ms: float  # measured
    accuracy: float  # on validation
    epochs: int  # of distillation behind it


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
    modes: dict[str, LatencySummary] = field(default_factory=dict)  # "sustained 10 min", "one every 33 ms"
    energy: Energy | None = None  # where the budget limits it
    first_picks_broken: float = 0.0  # share of the proposals that turned out too slow when timed
    frontier: tuple[FrontierPoint, ...] = ()  # measured, by latency; where `search.aim` is "frontier"
    task: str = "classification"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Reach:
    """One point of the frontier: the student that is believed in most at this latency."""

    spec: StudentSpec
    runtime: str
    precision: Precision
    expected_ms: float
    low_ms: float  # to high_ms: an interval that should hold nine in ten
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
    fastest_measured_ms: float  # what is likely to be held against the limit, of the fastest student timed
    frontier: tuple[Reach, ...]
    relaxations: tuple[Relaxation, ...]
    steps: tuple[Relaxation, ...]  # what single changes are expected to save on the fastest student
    space_size: int
    measured: int
    trials: int  # distilled briefly
    device_seconds: float
    expected_proposals: float  # to build and time for that many trials, the refused ones included
    expected_seconds: float | None  # of a run here, to a factor of 2; None where nothing is within reach
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
    ledger: Ledger | None = None  # of a request, of a bundle
    energy: Energy | None = None  # where it was asked for


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Every runtime and precision that was asked for."""

    signature: Signature
    results: tuple[Profiled, ...]
    layers: tuple[LayerTable, ...] = ()  # of each runtime, where they were asked for
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One model of an export, checked against the source and measured."""

    files: dict[str, str]  # relative path -> sha256; the first is the one to load
    runtime: str
    precision: Precision
    max_error: float  # against the source's own outputs, of the output that departs furthest
    scale: float  # of that output: its largest value, at least 0.05
    changed_labels: int | None  # None where no output looks like logits
    samples: int
    latency_ms: LatencySummary
    faithful: bool = True  # fp32 within 1e-5 of the scale; int8 is only reported
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Exported:
    """`edgekd export --json`, and the manifest beside the files."""

    source: str
    signature: Signature
    opset: int
    exports: tuple[ExportedFile, ...]
    problems: tuple[str, ...]
    calibration_sha256: str  # of the real inputs; empty where they were random
    source_sha256: str = ""
    tools: dict[str, str] = field(default_factory=dict)  # name -> version, on the host
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """Whether every float file computes what its source does."""
        return all(one.faithful for one in self.exports)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """`edgekd quantize --json`: the file to ship, int8 where that gains, beside the float one it was made from."""

    files: dict[str, str]  # path -> sha256; the first is the one to load
    runtime: str
    size_bytes: int
    parent_size_bytes: int
    latency_ms: LatencySummary
    parent_latency_ms: LatencySummary  # fp32 on the same runtime, taken in turns with it
    speedup: float  # parent's p50 / its own
    max_error: float  # against the parent's outputs
    scale: float
    changed_labels: int | None
    samples: int  # inputs that were compared on
    calibration_sha256: str  # empty where the inputs were random
    problems: tuple[str, ...]
    precision: Precision = Precision.INT8
    quantization: Quantization | None = None  # how it was made; None where a float file ships
    float_files: dict[str, str] = field(default_factory=dict)  # always delivered
    variants: tuple[Variant, ...] = ()  # everything that was tried
    blamed: tuple[Blamed, ...] = ()  # what int8 made slower
    exchange: Exchange | None = None  # what was put back to float for the accuracy
    loss: Loss | None = None  # of what ships
    why: str = ""  # int8 is not shipped
    seconds: float = 0.0
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """`edgekd compile --json`: what a runtime made of a model, and that it still computes the same."""

    files: dict[str, str]  # path -> sha256; the first is the one to load
    runtime: str
    precision: Precision
    threads: int
    size_bytes: int
    open_ms: float
    source_open_ms: float  # of the file it was made from
    memory_mib: float
    max_error: float  # against the source's outputs on the same runtime
    scale: float
    problems: tuple[str, ...]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """`edgekd distill --json`: one student, trained and exported; nothing was held against the budget."""

    spec: StudentSpec
    files: dict[str, str]  # path -> sha256
    metric: str
    teacher: float  # validation metric
    student: float  # validation metric of the torch module
    epochs: int
    train_seconds: float
    images_per_second: float
    max_error: float  # of the exported file against torch, on real images
    scale: float
    schema_version: int = SCHEMA_VERSION

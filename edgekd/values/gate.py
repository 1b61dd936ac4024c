"""What the latency gate is asked, what it saw, and what it concludes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from edgekd.errors import UsageError
from edgekd.values.conditions import Conditions
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Precision
from edgekd.values.preprocess import Normalisation

SCHEMA_VERSION = 1


class GateVerdict(Enum):
    """What a comparison ends with."""

    PASS = "PASS"  # noqa: S105 - a verdict
    IMPROVED = "IMPROVED"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"  # too noisy for the question within the pairs or the time given
    ENVIRONMENT = "ENVIRONMENT"  # the machine was in no state to answer


class Clock(Enum):
    """Which time of an inference decides."""

    WALL = "wall"  # the truth
    CPU = "cpu"  # of the inferring thread: steadier under load; single-threaded inference only


@dataclass(frozen=True, kw_only=True)
class GateRules:
    """What counts as a regression, and how long to look for one."""

    margin: float = 0.03  # a slowdown up to this share is none
    alpha: float = 0.01  # chance of one false FAIL in a whole call, over all comparisons and looks
    looks: tuple[int, ...] = (10, 15, 20, 30, 40, 60)  # pairs after which a decision is tried
    clock: Clock = Clock.WALL
    max_minutes: float = 10.0  # a comparison
    size_margin: float = 0.10
    memory_margin: float = 0.10
    max_accuracy_drop: float = 0.01
    reference_every: int = 5  # pairs between two health checks
    most_dropped: float = 0.20  # share of the pairs that throttling may cost
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            mend = "write a share: 0.03 is 3 %"
            raise UsageError("the margin must lie in (0, 1)", cause=f"it is {self.margin}", mend=mend)
        if not 0 < self.alpha < 0.5:  # noqa: PLR2004 - above it, a coin would be the better judge
            raise UsageError("alpha must lie in (0, 0.5)", cause=f"it is {self.alpha}", mend="0.01 is usual")
        if not self.max_minutes > 0:
            raise UsageError("the time given must be above 0 minutes", cause=f"it is {self.max_minutes}")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What `edgekd check` is asked."""

    models: tuple[Path, ...]  # base and candidate, files, bundles or folders of them; or the candidate alone
    rules: GateRules = field(default_factory=GateRules)
    base_command: str = ""  # builds the base, which is then a git revision; {out} is where its .onnx goes
    release: Path | None = None  # the last release's file: every candidate is held against it too
    baseline: Path | None = None  # absolute limits that were measured on this very machine
    update: bool = False  # measure and write the baseline
    limits_ms: dict[str, float] = field(default_factory=dict)  # by percentile, for the baseline to be written
    runtimes: tuple[str, ...] = ()  # none: a bundle's own, or the first of the target that works
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    data: str = ""  # labelled images; empty: accuracy is not looked at
    normalisation: Normalisation | None = None  # of those images
    command: str = ""  # that asks this again, for the reports


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as slow the candidate is, with bounds that each hold at `confidence`."""

    estimate: float
    low: float
    high: float
    confidence: float  # one-sided, of each bound


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Base and candidate timed in turns, each in a fresh process of its own."""

    number: int
    base: Latency
    candidate: Latency
    dropped: str = ""  # why it does not count; decided before its ratio is looked at


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison."""

    path: str
    sha256: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_p50_ms: float
    samples: int
    size_bytes: int
    memory_mib: float  # median growth of a fresh process until its first answer
    open_ms: float  # median start-up: reading, compiling and the first inference
    accuracy: float | None = None  # where labelled data were given
    quantiles_ms: tuple[float, ...] = ()  # p1, p2, ... p99 of the undisturbed samples, for drawing


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One candidate against one base on one runtime."""

    name: str
    against: str  # "base", "release", "baseline"
    runtime: str
    precision: Precision
    threads: int
    verdict: GateVerdict
    reasons: tuple[str, ...]  # why it is not PASS, or what to know about a PASS
    clock: Clock
    ratio: Ratio | None  # None where nothing could be compared
    other_ratio: Ratio | None  # by the clock that did not decide
    margin: float
    pairs: int  # that count
    dropped: tuple[str, ...]  # why each of the others does not
    seconds: float
    base: Arm
    candidate: Arm
    log_ratios: tuple[float, ...]  # of the pairs that count, in run order
    p_fail: float  # chance of such pairs, or slower ones, were the candidate exactly at the margin; over all looks
    reference: Ratio | None = None  # the reference model against itself, by the same method and clock
    reference_p50_ms: float | None = None
    protocol: Protocol
    conditions: Conditions


@dataclass(frozen=True, kw_only=True)
class Gate:
    """`edgekd check`: every comparison of one call, and the verdict over all."""

    verdict: GateVerdict
    comparisons: tuple[Comparison, ...]
    rules: GateRules
    seconds: float
    changes: tuple[str, ...] = ()  # change points in the history; reported, never blocking
    schema_version: int = SCHEMA_VERSION

    @property
    def decisive(self) -> Comparison:
        """The comparison that the verdict comes from: the slowest of those that have it."""
        having = [one for one in self.comparisons if one.verdict is self.verdict] or list(self.comparisons)
        return max(having, key=lambda one: one.ratio.estimate if one.ratio else 0.0)


@dataclass(frozen=True, kw_only=True)
class GateEntry:
    """What the history keeps of a comparison that ended."""

    time: str  # UTC, ISO 8601
    fingerprint: str  # of the conditions
    name: str
    against: str  # "base", "release", "baseline"
    runtime: str
    base_sha256: str
    candidate_sha256: str
    ratio: float | None  # None where nothing could be compared
    low: float | None  # None where the pairs were too few for a bound
    high: float | None
    verdict: GateVerdict
    base_p50_ms: float
    candidate_p50_ms: float
    reference_p50_ms: float | None = None  # of the reference model meanwhile, where it ran


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a machine was found to resolve: a model against itself, for a runtime, its threads and order of latency."""

    fingerprint: str  # of the conditions
    device: str
    runtime: str
    threads: int  # of each inference: two of them scatter otherwise than one
    reference: str  # the model that was timed
    decade: int  # floor(log10(p50 in ms)): noise in per cent falls as inferences get longer
    noise: float  # SD of a pair's log ratio of wall times
    cpu_noise: float  # and of CPU times
    p50_ms: float
    pair_seconds: float
    pairs: int
    date: str  # UTC, ISO 8601

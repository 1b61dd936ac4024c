"""Which machines there are, what they resolve, and whether bundles that shipped still keep to their limits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from edgekd.values.board import Board, Lease, Survey
from edgekd.values.bundle import Check, LatencySummary
from edgekd.values.conditions import Conditions
from edgekd.values.gate import Calibration, Clock
from edgekd.values.model import Precision
from edgekd.values.order import RuntimeHealth

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What it takes to find a slowdown: a question to the gate, and its price on one machine and runtime."""

    effect: float  # the slowdown to be found, a share
    margin: float  # over which it must be seen
    clock: Clock
    pairs: int  # with which it is found at 95 %
    minutes: float  # until the look that has them, health checks included
    within_reach: bool  # by the gate's last look, and within the time given
    honest_margin: float | None = None  # that this machine can hold instead; None where none is


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A calibration, and the questions that it answers."""

    calibration: Calibration
    resolutions: tuple[Resolution, ...]


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """`edgekd devices calibrate`: a calibration for each runtime."""

    device: str
    threads: int
    history: Path  # where they are kept
    calibrated: tuple[Calibrated, ...]
    problems: tuple[str, ...] = ()  # runtimes that were left out, and why
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class KnownDevice:
    """A device that can be reached now."""

    name: str
    fingerprint: str  # of the conditions
    conditions: Conditions


@dataclass(frozen=True, kw_only=True)
class KnownBoard:
    """A board that was added, and what it said where it was asked."""

    board: Board
    survey: Survey | None = None  # None where it was not asked, or did not answer
    problem: str = ""  # why it did not answer


@dataclass(frozen=True, kw_only=True)
class KnownCalibration:
    """A calibration that was kept, and why it no longer holds."""

    calibration: Calibration
    outdated: str  # empty where it holds


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """`edgekd devices`: what can be reached, and what was calibrated."""

    devices: tuple[KnownDevice, ...]
    calibrations: tuple[KnownCalibration, ...]
    history: Path
    boards: tuple[KnownBoard, ...] = ()  # that were added
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Added:
    """`edgekd devices add`: a board that was written down, and what was found there."""

    board: Board
    key_kind: str  # of the host key whose fingerprint the board has: ssh-ed25519, ...
    survey: Survey
    conditions: Conditions | None  # None where no worker runs there yet
    runtimes: tuple[RuntimeHealth, ...]
    problems: tuple[str, ...]  # what keeps it from being measured on, with what mends it
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Probed:
    """`edgekd devices probe`: what a board is now, and which runtimes really work there."""

    board: Board
    survey: Survey
    conditions: Conditions
    runtimes: tuple[RuntimeHealth, ...]
    changed: bool  # since it was last looked at
    profile_file: Path | None = None  # where a hardware profile was written
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Leased:
    """`edgekd devices lock`: who holds a board now."""

    device: str
    lease: Lease | None  # None: it was released
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """`edgekd devices clean` and `remove`: what was freed, and whether the board is still known."""

    device: str
    freed_mib: float | None  # None where its files were left
    forgotten: bool
    schema_version: int = SCHEMA_VERSION


class Standing(Enum):
    """Whether a bundle that shipped still keeps to its limits."""

    MEETS = "MEETS"
    BREAKS = "BREAKS"  # a percentile is over its limit with confidence, or it no longer runs or computes what it did
    INCONCLUSIVE = "INCONCLUSIVE"
    UNAVAILABLE = "UNAVAILABLE"  # the runtime is not on this device
    INCOMPARABLE = "INCOMPARABLE"  # other hardware, and the same was asked for
    REFUSED = "REFUSED"  # a file is not what the manifest says


GRAVEST_FIRST = (
    Standing.REFUSED,
    Standing.BREAKS,
    Standing.UNAVAILABLE,
    Standing.INCOMPARABLE,
    Standing.INCONCLUSIVE,
    Standing.MEETS,
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that is not as it was when the bundle was measured."""

    what: str
    then: str
    now: str


@dataclass(frozen=True, kw_only=True)
class HeldLimit:
    """A limit, and the percentile that was held against it; all in ms."""

    percentile: str  # "p99"
    limit_ms: float
    measured_ms: float
    low_ms: float | None  # one-sided bounds at the bundle's confidence; None where the samples are too few
    high_ms: float | None
    standing: Standing  # MEETS, BREAKS or INCONCLUSIVE


@dataclass(frozen=True, kw_only=True)
class BundleVerdict:
    """What became of one bundle."""

    bundle: Path
    standing: Standing
    reasons: tuple[str, ...]  # why it is not MEETS, or what to know about a MEETS
    name: str = ""  # of the bundle; empty where its manifest cannot be read, and so below
    runtime: str = ""
    precision: Precision | None = None
    threads: int = 0
    then: LatencySummary | None = None  # in the manifest
    now: LatencySummary | None = None  # None where it was not measured
    limits: tuple[HeldLimit, ...] = ()
    changes: tuple[Change, ...] = ()
    same_hardware: bool | None = None  # None where it is not known
    checks: tuple[Check, ...] = ()  # as `edgekd verify` has them


@dataclass(frozen=True, kw_only=True)
class Requalified:
    """`edgekd requalify`: which of the bundles that shipped still keep to their limits here and now."""

    device: str
    bundles: tuple[BundleVerdict, ...]  # in the order given
    seconds: float
    schema_version: int = SCHEMA_VERSION

    @property
    def standing(self) -> Standing:
        """The gravest standing of a bundle."""
        found = {one.standing for one in self.bundles}
        return next(standing for standing in GRAVEST_FIRST if standing in found)

"""One student tried, what came of it and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from edgekd.values.latency import Latency
from edgekd.values.model import Engine, Precision
from edgekd.values.student import StudentSpec
from edgekd.values.variant import Exchange, Quantization


class Verdict(Enum):
    """How a trial ended."""

    MEASURED = "measured"  # timed untrained, to learn the device
    TOO_SLOW = "too slow"
    UNBUILDABLE = "unbuildable"
    DIVERGED = "diverged"
    PROMISING = "promising"  # fast enough, distilled briefly
    NO_GAIN = "no gain"  # an int8 file that is not faster than its float parent
    INACCURATE = "inaccurate"  # fits the latency, breaks the accuracy floor
    FITS = "fits"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A student to try, on a runtime at a precision."""

    spec: StudentSpec
    runtime: str
    precision: Precision

    @property
    def name(self) -> str:
        """`residual @32 …, openvino/int8`."""
        return f"{self.spec}, {self.runtime}/{self.precision.value}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A proposal and everything learnt from it."""

    proposal: Proposal
    verdict: Verdict
    why: str = ""
    epochs: int = 0  # of distillation behind `accuracy`
    latency: Latency | None = None
    accuracy: float | None = None  # validation metric, of the compiled file where `engine` is given
    engine: Engine | None = None
    quantization: Quantization | None = None  # how a finished student's int8 file was made
    exchange: Exchange | None = None  # what was put back to float in it, for its accuracy
    seconds: float = 0.0  # wall time the trial took on the host
    device_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class History:
    """The trials of one job in order: all the state a search has."""

    trials: tuple[Trial, ...] = field(default=())

    def with_verdict(self, *verdicts: Verdict) -> tuple[Trial, ...]:
        """Return the trials that ended so."""
        return tuple(trial for trial in self.trials if trial.verdict in verdicts)

    def adding(self, trial: Trial) -> History:
        """Return a history one trial longer."""
        return History(trials=(*self.trials, trial))

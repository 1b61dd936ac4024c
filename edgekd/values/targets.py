"""A run for several targets, or with several trainings at a time: what it decides, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.values.outcome import Outcome
from edgekd.values.trial import Proposal

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Round:
    """Students that are tried at a time: each with how it is compiled, by the key of the target's trials."""

    students: tuple[dict[str, Proposal], ...]


@dataclass(frozen=True, kw_only=True)
class TargetOutcome:
    """What came of one target: an outcome, or why there is none."""

    target: str
    folder: Path  # of its bundle, report and trials
    outcome: Outcome | None = None
    trainings: int = 0  # students trained for it or with it, briefly and fully
    problem: str = ""
    cause: str = ""
    mend: str = ""
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """`edgekd run --target A --target B --json`."""

    targets: tuple[TargetOutcome, ...]
    trainings: int  # of all targets, each counted once
    train_seconds: float
    seconds: float
    schema_version: int = SCHEMA_VERSION

    @property
    def exit_code(self) -> int:
        """0 where every target has its student; 1 where one's budget is not met, else what stopped the first."""
        codes = [one.exit_code for one in self.targets if one.exit_code]
        return 1 if 1 in codes else next(iter(codes), 0)

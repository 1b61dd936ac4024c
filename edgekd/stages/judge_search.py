"""What a search amounts to: the frontier it measured, and how often its first picks broke the budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekd.surrogates.selection import frontier
from edgekd.values.outcome import FrontierPoint
from edgekd.values.trial import History, Verdict

_TRAINED = (Verdict.PROMISING, Verdict.FITS, Verdict.INACCURATE)


@dataclass(frozen=True, kw_only=True)
class FirstPicks:
    """Students as they were proposed, timed before anything was trained."""

    timed: int
    broken: int  # of them beyond the budget

    @property
    def share(self) -> float:
        """Return the share that broke the budget; 0 where none was timed."""
        return self.broken / self.timed if self.timed else 0.0


def first_picks(history: History) -> FirstPicks:
    """Count proposals that were timed untrained, and those of them that were too slow.

    Finished files are no first picks: an engine is kept for these alone.
    """
    picks = [
        trial
        for trial in history.with_verdict(Verdict.PROMISING, Verdict.TOO_SLOW, Verdict.DIVERGED)
        if trial.engine is None and trial.latency is not None
    ]
    broken = sum(trial.verdict is Verdict.TOO_SLOW for trial in picks)
    return FirstPicks(timed=len(picks), broken=broken)


def measured_frontier(history: History) -> tuple[FrontierPoint, ...]:
    """Return the students that no other beats in both latency and accuracy, the fastest first.

    Each was timed; where some were trained fully, they are compared among themselves, as short trainings score less.
    """
    trained = [t for t in history.with_verdict(*_TRAINED) if t.accuracy is not None and t.latency is not None]
    points = []
    for finished in (False, True):
        group = [trial for trial in trained if (trial.engine is not None) is finished]
        if not group:
            continue
        p50_ms = np.array([trial.latency.percentile(50) for trial in group if trial.latency])
        accuracy = np.array([trial.accuracy for trial in group], dtype=np.float64)
        points += [
            FrontierPoint(
                spec=group[at].proposal.spec,
                runtime=group[at].proposal.runtime,
                precision=group[at].proposal.precision,
                p50_ms=float(p50_ms[at]),
                accuracy=float(accuracy[at]),
                epochs=group[at].epochs,
            )
            for at in frontier(p50_ms, accuracy)
        ]
    return tuple(points)

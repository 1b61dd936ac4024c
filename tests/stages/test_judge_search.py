"""What a search amounts to is read from its history: first picks that broke the budget, and the frontier."""

from __future__ import annotations

import random

import pytest

from edgekd.stages.judge_search import first_picks, measured_frontier
from edgekd.students import sample, space_for
from edgekd.values.latency import Latency
from edgekd.values.model import Precision
from edgekd.values.trial import History, Proposal, Trial, Verdict
from tests.stages.test_predict import latency

SPACE = space_for(resolution=32, channels=3, classes=10)
RNG = random.Random(2)  # noqa: S311 - no secret depends on it


def trial(verdict: Verdict, p50_ms: float | None, accuracy: float | None = None) -> Trial:
    proposal = Proposal(spec=sample(SPACE, RNG), runtime="openvino", precision=Precision.INT8)
    taken: Latency | None = latency(p50_ms) if p50_ms is not None else None
    return Trial(proposal=proposal, verdict=verdict, latency=taken, accuracy=accuracy, epochs=3)


def test_first_picks_are_counted_by_what_their_first_measurement_said() -> None:
    history = History(
        trials=(
            trial(Verdict.MEASURED, 9.0),  # a probe is no pick
            trial(Verdict.TOO_SLOW, 3.0),
            trial(Verdict.PROMISING, 1.0, 0.8),
            trial(Verdict.DIVERGED, 1.0),
            trial(Verdict.UNBUILDABLE, None),
            trial(Verdict.PROMISING, 1.5, 0.9),
        )
    )
    found = first_picks(history)
    assert (found.timed, found.broken) == (4, 1)
    assert found.share == pytest.approx(0.25)


def test_no_picks_have_no_share() -> None:
    assert first_picks(History()).share == 0.0


def test_the_frontier_leaves_out_what_another_beats_in_both() -> None:
    trials = (
        trial(Verdict.PROMISING, 2.0, 0.9),
        trial(Verdict.PROMISING, 1.0, 0.7),
        trial(Verdict.PROMISING, 1.5, 0.6),  # slower and worse than the one before
        trial(Verdict.TOO_SLOW, 0.5),
        trial(Verdict.MEASURED, 0.1),
    )
    found = measured_frontier(History(trials=trials))
    assert [(point.p50_ms, point.accuracy) for point in found] == [(1.0, 0.7), (2.0, 0.9)]
    assert found[0].spec == trials[1].proposal.spec

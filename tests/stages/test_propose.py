"""The next student is a pure function of what was tried, within the budget, and never tried before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from edgekd.stages.predict import predict
from edgekd.stages.propose import fastest, probes, propose
from edgekd.students import contains, costs, features, neighbours, sample, space_for
from edgekd.timing.conditions import conditions
from edgekd.values.budget import LatencyBudget, Limits
from edgekd.values.conditions import Load, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Precision
from edgekd.values.student import StudentSpec
from edgekd.values.trial import History, Proposal, Trial, Verdict

SPACE = space_for(resolution=32, channels=3, classes=10)
PRICES_MS = {Precision.FP32: (0.02, 0.004, 0.03, 0.2, 0.05), Precision.INT8: (0.03, 0.005, 0.012, 0.15, 0.02)}
IDLE = conditions(Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0))


def device_ms(spec: StudentSpec, precision: Precision = Precision.FP32) -> float:
    return float(np.dot(PRICES_MS[precision], costs(spec, channels=3, classes=10)))


def latency(p50_ms: float) -> Latency:
    samples = (p50_ms,) * 400
    trust = Trust(verdict=TrustVerdict.GOOD)
    return Latency(samples_ms=samples, cpu_ms=samples, protocol=Protocol(), conditions=IDLE, trust=trust)


def limits(p99_ms: float) -> dict[str, Limits]:
    return {"openvino": Limits(latency_ms={"p99": p99_ms}, confidence=0.95)}


def tried(proposal: Proposal, limit_ms: float) -> Trial:
    """Return what the device would make of a proposal; accuracy grows with the multiplications."""
    measured = latency(device_ms(proposal.spec, proposal.precision))
    if measured.percentile(99) > limit_ms:
        return Trial(proposal=proposal, verdict=Verdict.TOO_SLOW, latency=measured)
    accuracy = 0.1 * macs(proposal.spec)
    return Trial(proposal=proposal, verdict=Verdict.PROMISING, latency=measured, accuracy=accuracy, epochs=3)


def macs(spec: StudentSpec) -> float:
    return features(spec, channels=3, classes=10)[0]


@pytest.fixture(scope="module", autouse=True)
def _fewer_candidates() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekd.stages.propose._POOL", 500)
        patch.setattr("edgekd.stages.propose._CLIMBS", 2)
        yield


@pytest.fixture(scope="module")
def probed() -> History:
    trials = [
        Trial(
            proposal=Proposal(spec=spec, runtime="openvino", precision=precision),
            verdict=Verdict.MEASURED,
            latency=latency(device_ms(spec, precision)),
        )
        for spec in probes(SPACE, 8, seed=0)
        for precision in PRICES_MS
    ]
    return History(trials=tuple(trials))


def searched(history: History, limit_ms: float, count: int) -> History:
    for _ in range(count):
        proposal = propose(SPACE, history, limits(limit_ms), seed=0)
        assert proposal is not None
        history = history.adding(tried(proposal, limit_ms))
    return history


@pytest.fixture(scope="module")
def later(probed: History) -> History:
    """Give the history after five proposals, each answered by the device."""
    return searched(probed, 1.0, 5)


def test_the_same_history_gives_the_same_proposal(probed: History, later: History) -> None:
    for history in (probed, later):
        assert propose(SPACE, history, limits(1.0), seed=0) == propose(SPACE, history, limits(1.0), seed=0)


def test_nothing_is_proposed_twice_and_everything_meets_its_limit(probed: History, later: History) -> None:
    trials = later.trials[len(probed.trials) :]
    assert len({trial.proposal.spec for trial in trials}) == 5
    assert [trial.verdict for trial in trials] == [Verdict.PROMISING] * 5
    assert all(contains(SPACE, trial.proposal.spec) for trial in trials)


def test_while_nothing_is_known_a_large_student_goes_first(probed: History) -> None:
    first = propose(SPACE, probed, limits(1.0), seed=0)
    assert first is not None
    predictor = predict(probed, limits(1.0), channels=3, classes=10)
    rng = random.Random(4)  # noqa: S311 - no secret depends on it
    within = [
        macs(spec)
        for spec in (sample(SPACE, rng) for _ in range(300))
        if (found := fastest(spec, SPACE, predictor, limits(1.0))) and found.expected_ms <= 0.93
    ]
    assert macs(first.spec) > np.quantile(within, 0.9)


def test_a_probe_may_be_proposed_and_a_refused_student_may_not(probed: History) -> None:
    first = propose(SPACE, probed, limits(1.0), seed=0)
    assert first is not None
    for verdict in (Verdict.TOO_SLOW, Verdict.UNBUILDABLE, Verdict.DIVERGED):
        after = probed.adding(Trial(proposal=first, verdict=verdict))
        second = propose(SPACE, after, limits(1.0), seed=0)
        assert second is not None
        assert second.spec != first.spec


def test_a_tighter_limit_gives_a_smaller_student(probed: History) -> None:
    proposals = [propose(SPACE, probed, limits(limit_ms), seed=0) for limit_ms in (0.5, 2.0)]
    tight, wide = (macs(proposal.spec) for proposal in proposals if proposal)
    assert tight < wide


def test_there_is_no_proposal_where_nothing_fits(probed: History) -> None:
    assert propose(SPACE, probed, limits(0.02), seed=0) is None


def test_there_is_no_proposal_before_the_device_was_probed() -> None:
    assert propose(SPACE, History(), limits(1.0), seed=0) is None


def test_the_precision_that_is_fastest_here_is_proposed(probed: History) -> None:
    found = propose(SPACE, probed, limits(1.0), seed=0)
    assert found is not None
    assert found.precision is min(PRICES_MS, key=lambda precision: device_ms(found.spec, precision))


def test_a_runtime_without_a_limit_is_left_alone(probed: History) -> None:
    elsewhere = tuple(
        replace(trial, proposal=replace(trial.proposal, runtime="other"), latency=latency(0.001))
        for trial in probed.trials
    )
    found = propose(SPACE, History(trials=(*probed.trials, *elsewhere)), limits(1.0), seed=0)
    assert found is not None
    assert found.runtime == "openvino"


def test_a_speedup_and_the_same_limit_in_ms_give_the_same_proposal(probed: History) -> None:
    from_teacher = Limits(latency_ms=LatencyBudget(speedup=4.0).limits(latency(4.0)), confidence=0.95)
    relative = propose(SPACE, probed, {"openvino": from_teacher}, seed=0)
    assert relative == propose(SPACE, probed, limits(1.0), seed=0)


def test_the_tightest_of_several_percentiles_counts(probed: History) -> None:
    both = {"openvino": Limits(latency_ms={"p50": 0.5, "p99": 5.0}, confidence=0.95)}
    found = propose(SPACE, probed, both, seed=0)
    assert found is not None
    assert device_ms(found.spec, found.precision) <= 0.5


def test_what_was_learnt_moves_the_search_to_the_better_family(probed: History) -> None:
    told = History(
        trials=tuple(
            replace(
                trial,
                verdict=Verdict.PROMISING,
                accuracy=0.9 if trial.proposal.spec.family == "inverted" else 0.2,
            )
            for trial in probed.trials
        )
    )
    found = propose(SPACE, told, limits(1.0), seed=0)
    assert found is not None
    assert found.spec.family == "inverted"
    other = History(trials=tuple(replace(t, accuracy=1.1 - (t.accuracy or 0.0)) for t in told.trials))
    found = propose(SPACE, other, limits(1.0), seed=0)
    assert found is not None
    assert found.spec.family == "residual"


def test_probes_run_from_small_to_large_through_all_families_and_hang_on_the_seed_alone() -> None:
    chosen = probes(SPACE, 8, seed=0)
    assert chosen == probes(SPACE, 8, seed=0) != probes(SPACE, 8, seed=1)
    assert [spec.family for spec in chosen[:4]] == [*SPACE.families, *SPACE.families]
    for family in SPACE.families:
        sizes = [macs(spec) for spec in chosen if spec.family == family]
        assert sizes == sorted(sizes)
        assert sizes[-1] > sizes[0] + 0.6  # decades: a factor of four at least


def test_the_likes_of_a_student_that_failed_to_build_are_left_for_later(probed: History) -> None:
    """The same draws each time, as histories are as long: only what became of the neighbour differs."""

    def after(verdict: Verdict, spec: StudentSpec) -> StudentSpec:
        proposal = Proposal(spec=spec, runtime="openvino", precision=Precision.FP32)
        found = propose(SPACE, probed.adding(Trial(proposal=proposal, verdict=verdict)), limits(1.0), seed=0)
        assert found is not None
        return found.spec

    elsewhere = probed.trials[0].proposal.spec
    best = after(Verdict.MEASURED, elsewhere)
    beside = neighbours(best, SPACE, random.Random(0))  # noqa: S311 - no secret depends on it
    assert after(Verdict.MEASURED, beside) == best
    assert after(Verdict.UNBUILDABLE, beside) != best


def test_a_device_that_is_known_less_well_gets_more_room(probed: History) -> None:
    rng = np.random.default_rng(0)
    loud = History(
        trials=tuple(
            replace(t, latency=latency(device_ms(t.proposal.spec, t.proposal.precision) * float(factor)))
            for t, factor in zip(probed.trials, np.exp(0.2 * rng.normal(size=len(probed.trials))))
        )
    )
    shares = []
    for history in (probed, loud):
        found = propose(SPACE, history, limits(1.0), seed=0)
        assert found is not None
        predictor = predict(history, limits(1.0), channels=3, classes=10)
        known = fastest(found.spec, SPACE, predictor, limits(1.0))
        assert known is not None
        shares.append(known.tightness())
    assert shares[1] < shares[0] - 0.05


def test_a_surprise_makes_the_next_proposal_more_careful(probed: History) -> None:
    first = propose(SPACE, probed, limits(1.0), seed=0)
    assert first is not None
    surprised = probed.adding(Trial(proposal=first, verdict=Verdict.TOO_SLOW))
    second = propose(SPACE, surprised, limits(1.0), seed=0)
    assert second is not None
    predictor = predict(probed, limits(1.0), channels=3, classes=10)
    expected = [fastest(one.spec, SPACE, predictor, limits(1.0)) for one in (first, second)]
    before, after = (found.tightness() for found in expected if found)
    assert after < before


def test_a_wide_int8_student_is_proposed_where_the_widest_float_one_that_fits_is_narrower(
    probed: History,
) -> None:
    proposal = propose(SPACE, probed, limits(1.0), seed=0)
    assert proposal is not None
    assert proposal.precision is Precision.INT8
    assert device_ms(proposal.spec, Precision.INT8) <= 1.0 < device_ms(proposal.spec, Precision.FP32)

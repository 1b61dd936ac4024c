"""The latency model recovers a device whose prices are known, exactly and through noise."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from edgekd.stages.predict import LEAST_TRIALS, predict
from edgekd.stages.propose import probes
from edgekd.students import costs, sample, space_for
from edgekd.timing.conditions import conditions
from edgekd.values.budget import Limits
from edgekd.values.conditions import Load, Trust, TrustVerdict
from edgekd.values.job import LEAST_PROBES
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Precision
from edgekd.values.student import StudentSpec
from edgekd.values.trial import History, Proposal, Trial, Verdict

SPACE = space_for(resolution=32, channels=3, classes=10)
PRICES_MS = (0.02, 0.004, 0.03, 0.2, 0.05)  # of a start, a layer, a million dense, depthwise, elements
LIMITS = {"openvino": Limits(latency_ms={"p99": 2.0}, confidence=0.95)}
IDLE = conditions(Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0))


def device_ms(spec: StudentSpec) -> float:
    return float(np.dot(PRICES_MS, costs(spec, channels=3, classes=10)))


def latency(p50_ms: float, tail_ms: float = 0.0, count: int = 400) -> Latency:
    """Return samples around a median, one in fifty of them later by the tail."""
    samples = tuple(p50_ms + tail_ms * (at % 50 == 0) for at in range(count))
    trust = Trust(verdict=TrustVerdict.GOOD)
    return Latency(samples_ms=samples, cpu_ms=samples, protocol=Protocol(), conditions=IDLE, trust=trust)


def timed(spec: StudentSpec, p50_ms: float, tail_ms: float = 0.0, runtime: str = "openvino") -> Trial:
    proposal = Proposal(spec=spec, runtime=runtime, precision=Precision.FP32)
    return Trial(proposal=proposal, verdict=Verdict.MEASURED, latency=latency(p50_ms, tail_ms))


def history_of(count: int, noise: float = 0.0, tail_ms: float = 0.0) -> History:
    rng = np.random.default_rng(5)
    specs = probes(SPACE, count, seed=0)
    factors = np.exp(noise * rng.normal(size=count))
    return History(trials=tuple(timed(s, device_ms(s) * f, tail_ms) for s, f in zip(specs, factors)))


def errors(history: History) -> list[float]:
    """Return the relative errors of the median, on students that nobody timed."""
    model = predict(history, LIMITS, channels=3, classes=10).models["openvino", Precision.FP32]
    rng = random.Random(9)  # noqa: S311 - no secret depends on it
    unseen = [sample(SPACE, rng) for _ in range(200)]
    return [abs(model.p50_ms(spec, 3, 10) / device_ms(spec) - 1) for spec in unseen]


def test_a_device_whose_costs_add_up_is_recovered() -> None:
    assert max(errors(history_of(12))) <= 0.05


def test_noise_of_two_percent_costs_little() -> None:
    assert np.median(errors(history_of(12, noise=0.02))) <= 0.05


def test_the_spread_follows_the_noise() -> None:
    quiet, loud = (
        predict(history_of(12, noise=noise), LIMITS, channels=3, classes=10)
        .models["openvino", Precision.FP32]
        .spread
        for noise in (0.0, 0.1)
    )
    assert quiet < 0.05 < loud


def test_every_runtime_and_precision_has_a_model_of_its_own() -> None:
    slow = [
        timed(t.proposal.spec, 3 * device_ms(t.proposal.spec), runtime="b") for t in history_of(12).trials
    ]
    both = History(trials=(*history_of(12).trials, *slow))
    predictor = predict(both, LIMITS, channels=3, classes=10)
    spec = sample(SPACE, random.Random(1))  # noqa: S311
    fast_ms, slow_ms = (
        predictor.models[runtime, Precision.FP32].p50_ms(spec, 3, 10) for runtime in ("openvino", "b")
    )
    assert slow_ms == pytest.approx(3 * fast_ms, rel=0.01)


def test_too_few_trials_make_no_model() -> None:
    few = predict(history_of(LEAST_TRIALS - 1), LIMITS, channels=3, classes=10)
    assert few.models == {}
    assert predict(History(), LIMITS, channels=3, classes=10).jitter_ms == 0.0


def test_trials_without_a_latency_teach_nothing() -> None:
    failed = replace(history_of(1).trials[0], verdict=Verdict.UNBUILDABLE, latency=None)
    known, more = history_of(6), history_of(6).adding(failed)
    assert predict(known, LIMITS, channels=3, classes=10) == predict(more, LIMITS, channels=3, classes=10)


def test_what_is_expected_includes_the_tail_that_the_budget_judges() -> None:
    history = history_of(12, tail_ms=0.3)
    predictor = predict(history, LIMITS, channels=3, classes=10)
    spec = sample(SPACE, random.Random(1))  # noqa: S311
    median_ms = predictor.models["openvino", Precision.FP32].p50_ms(spec, 3, 10)
    expected_ms = predictor.expected_ms(spec, "openvino", Precision.FP32, channels=3, classes=10)
    assert expected_ms == pytest.approx(median_ms + 0.3, rel=0.06)


def test_no_price_is_negative_however_odd_the_measurements() -> None:
    specs = probes(SPACE, 8, seed=2)
    rng = np.random.default_rng(1)
    odd = History(trials=tuple(timed(spec, float(ms)) for spec, ms in zip(specs, rng.uniform(0.1, 9, 8))))
    model = predict(odd, LIMITS, channels=3, classes=10).models["openvino", Precision.FP32]
    assert min(model.prices) >= 0


def test_proposals_that_took_longer_than_expected_raise_what_is_expected_of_the_next() -> None:
    probed = history_of(12)
    specs = probes(SPACE, 15, seed=3)[-3:]
    picks = [replace(timed(s, 1.5 * device_ms(s)), verdict=Verdict.TOO_SLOW) for s in specs]
    before = predict(probed, LIMITS, channels=3, classes=10)
    after = predict(History(trials=(*probed.trials, *picks)), LIMITS, channels=3, classes=10)
    assert before.correction == 1.0
    assert 1.1 < after.correction <= 2.0


def test_proposals_that_took_less_than_expected_make_nobody_careless() -> None:
    probed = history_of(12)
    picks = [
        replace(timed(s, 0.5 * device_ms(s)), verdict=Verdict.PROMISING) for s in probes(SPACE, 3, seed=3)
    ]
    assert predict(History(trials=(*probed.trials, *picks)), LIMITS, channels=3, classes=10).correction == 1.0


def test_the_fewest_probes_that_a_job_may_ask_for_are_what_the_model_needs() -> None:
    assert LEAST_PROBES == LEAST_TRIALS
    specs = probes(SPACE, LEAST_PROBES, seed=0)
    assert len(set(specs)) == LEAST_PROBES
    for count, known in ((LEAST_PROBES, 1), (LEAST_PROBES - 1, 0)):
        trials = tuple(timed(spec, device_ms(spec)) for spec in specs[:count])
        assert len(predict(History(trials=trials), LIMITS, channels=3, classes=10).models) == known

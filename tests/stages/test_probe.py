"""The next student to time is one that teaches, and hangs on what was timed alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from edgekd.stages.predict import predict
from edgekd.stages.probe import next_probe
from edgekd.stages.propose import probes
from edgekd.students import costs, draw, space_for
from edgekd.timing.conditions import conditions
from edgekd.values.conditions import Load, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol
from edgekd.values.measurement import Measurement
from edgekd.values.model import Precision
from edgekd.values.student import StudentSpec
from edgekd.values.trial import History, Proposal, Trial, Verdict

SPACE = space_for(resolution=32, channels=3, classes=10)
PRICES_MS = (0.02, 0.004, 0.03, 0.2, 0.05)
IDLE = conditions(Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0))


def device_ms(spec: StudentSpec) -> float:
    return float(np.dot(PRICES_MS, costs(spec, channels=3, classes=10)))


def timed(spec: StudentSpec, runtime: str = "openvino") -> Trial:
    samples = (device_ms(spec),) * 10
    latency = Latency(
        samples_ms=samples,
        cpu_ms=samples,
        protocol=Protocol(),
        conditions=IDLE,
        trust=Trust(verdict=TrustVerdict.GOOD),
    )
    proposal = Proposal(spec=spec, runtime=runtime, precision=Precision.FP32)
    return Trial(proposal=proposal, verdict=Verdict.MEASURED, latency=latency)


KNOWN = History(trials=tuple(timed(spec) for spec in probes(SPACE, 4, seed=0)))


def test_nothing_tells_before_anything_was_timed():
    assert next_probe(SPACE, History(), seed=0) is None


def test_the_choice_is_new_and_hangs_on_the_history_and_the_seed_alone():
    chosen = next_probe(SPACE, KNOWN, seed=0)
    assert chosen == next_probe(SPACE, KNOWN, seed=0)
    assert chosen not in {trial.proposal.spec for trial in KNOWN.trials}


def test_near_a_small_budget_smaller_students_are_chosen():
    rng = random.Random(0)  # noqa: S311
    budget_ms = float(np.quantile([device_ms(spec) for spec in draw(SPACE, 300, rng)], 0.1))
    near, anywhere = (next_probe(SPACE, KNOWN, seed=0, near_ms=near_ms) for near_ms in (budget_ms, None))
    assert near is not None
    assert anywhere is not None
    assert device_ms(near) < 0.5 * device_ms(anywhere)


def test_what_other_devices_took_helps_where_little_was_timed_here():
    rng = random.Random(3)  # noqa: S311
    noise = np.random.default_rng(0)
    stored = tuple(
        Measurement(
            device=str(factor),
            processor="",
            runtime="openvino",
            version="",
            precision=Precision.FP32,
            spec=spec,
            channels=3,
            classes=10,
            p50_ms=factor * device_ms(spec),
            samples=1,
            protocol="",
        )
        for factor in (0.5, 3.0)
        for spec in draw(SPACE, 60, rng)
    )
    unseen = draw(SPACE, 60, rng)

    def error(given: tuple[Measurement, ...], few: History) -> float:
        found = predict(few, {}, channels=3, classes=10, stored=given).models["openvino", Precision.FP32]
        return float(np.median([abs(found.p50_ms(spec, 3, 10) / device_ms(spec) - 1) for spec in unseen]))

    draws = [
        History(trials=tuple(noisy(trial, float(np.exp(0.15 * noise.normal()))) for trial in KNOWN.trials))
        for _ in range(10)
    ]
    assert np.mean([error(stored, few) for few in draws]) < 0.9 * np.mean([error((), few) for few in draws])


def noisy(trial: Trial, factor: float) -> Trial:
    assert trial.latency is not None
    samples = tuple(factor * ms for ms in trial.latency.samples_ms)
    return replace(trial, latency=replace(trial.latency, samples_ms=samples, cpu_ms=samples))


def test_a_forecast_is_an_interval_around_what_is_expected():
    predictor = predict(KNOWN, {}, channels=3, classes=10)
    spec = KNOWN.trials[0].proposal.spec
    found = predictor.forecast(spec, "openvino", Precision.FP32, channels=3, classes=10)
    expected_ms = predictor.expected_ms(spec, "openvino", Precision.FP32, channels=3, classes=10)
    assert found.median_ms == expected_ms
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms

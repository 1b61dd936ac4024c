"""A machine's noise is found from a model against itself, and says honestly what it can resolve."""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from edgekd.errors import DeviceError, UsageError
from edgekd.stages.calibrate_device import (
    QUESTIONS,
    calibrate_device,
    calibrating,
    honest_margin,
    resolutions,
)
from edgekd.stages.references import reference
from edgekd.timing.duet import pairs_needed
from edgekd.values.conditions import Conditions, Hardware, Load, Software, Trust, TrustVerdict
from edgekd.values.gate import Calibration, Clock, GateRules
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine

QUIET = Load(load_average=0.1, others_percent=0.5, steal_percent=0.0, involuntary_switches=0)
RULES = GateRules()
TODAY = "2026-02-03T04:05:06+00:00"


def conditions(load: Load = QUIET) -> Conditions:
    return Conditions(
        hardware=Hardware(machine="m", processor="p", cores=2, memory_mib=1, features=()),
        software=Software(system="s", kernel="k", python="3", runtimes={}, governor="unknown"),
        load=load,
    )


@dataclass
class NoisyDevice:
    """Times a model with a noise of its own for each launch; nothing is run."""

    scatter: float  # SD of the logarithm of a launch's speed: a pair's log ratio has sqrt(2) of it
    bias: float = 1.0  # of the second arm
    throttled: Callable[[int], bool] = lambda _: False
    trust: Trust = field(default_factory=lambda: Trust(verdict=TrustVerdict.GOOD))
    p50_ms: float = 2.0
    asked: list[tuple[tuple[Engine, ...], Protocol]] = field(default_factory=list)
    name: str = "local"
    _chance: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - noise, not a secret

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        if len(engines) == 2:
            self.asked.append((tuple(engines), protocol))
        return tuple(self._latency(at, protocol) for at in range(len(engines)))

    def _latency(self, at: int, protocol: Protocol) -> Latency:
        speed = math.exp(self._chance.gauss(0.0, self.scatter)) * (self.bias if at else 1.0)
        blocks = [[self.p50_ms * speed] * protocol.samples for _ in range(protocol.blocks)]
        samples_ms = tuple(ms for block in blocks for ms in block)
        hot = bool(at) and self.throttled(len(self.asked))
        return Latency(
            samples_ms=samples_ms,
            cpu_ms=tuple(ms**0.5 for ms in samples_ms),  # half the noise
            protocol=protocol,
            conditions=conditions(replace(QUIET, throttled=1) if hot else QUIET),
            trust=self.trust,
            block_sizes=tuple(len(block) for block in blocks),
        )


def seconds(each: float) -> Callable[[], float]:
    ticks: Iterator[float] = itertools.count(0.0, each)
    return lambda: next(ticks)


def calibrated(device: NoisyDevice, pairs: int = 40, **given: object) -> Calibration:
    return calibrate_device(
        device, "onnxruntime", threads=1, pairs=pairs, rules=RULES, today=TODAY, now=seconds(3.0), **given
    )  # type: ignore[arg-type]


def known(noise: float, cpu_noise: float = 0.001, pair_seconds: float = 1.0) -> Calibration:
    return Calibration(
        fingerprint="f",
        device="local",
        runtime="onnxruntime",
        threads=1,
        reference="compute",
        decade=0,
        noise=noise,
        cpu_noise=cpu_noise,
        p50_ms=2.0,
        pair_seconds=pair_seconds,
        pairs=40,
        date=TODAY,
    )


def test_the_noise_of_a_pair_is_found_by_both_clocks():
    found = calibrated(NoisyDevice(scatter=0.02), pairs=200)
    assert found.noise == pytest.approx(0.02 * math.sqrt(2), rel=0.2)
    assert found.cpu_noise == pytest.approx(found.noise / 2, rel=1e-6)


def test_a_calibration_says_what_was_measured_where_and_when():
    found = calibrated(NoisyDevice(scatter=0.001, p50_ms=0.2))
    assert (found.device, found.runtime, found.reference) == ("local", "onnxruntime", "compute")
    assert (found.pairs, found.decade, found.date) == (40, -1, TODAY)
    assert found.fingerprint == conditions().fingerprint
    assert found.p50_ms == pytest.approx(0.2, rel=0.01)
    assert found.pair_seconds == 3.0


def test_each_pair_is_the_same_model_twice_in_an_order_of_its_own():
    device = NoisyDevice(scatter=0.001)
    calibrated(device, pairs=12, name="launch")
    assert len(device.asked) == 12
    for (first, second), protocol in device.asked:
        assert first == second
        assert first.model == reference("launch")
        assert protocol.launches == 1
    assert len({protocol.seed for _, protocol in device.asked}) == 12


def test_something_is_known_after_every_ten_pairs():
    device = NoisyDevice(scatter=0.01)
    found = calibrating(device, "openvino", threads=1, pairs=34, rules=RULES, today=TODAY, now=seconds(1.0))  # type: ignore[arg-type]
    assert [one.pairs for one in found] == [10, 20, 30, 34]


def test_throttled_pairs_are_taken_again():
    device = NoisyDevice(scatter=0.001, throttled=lambda number: number in {3, 4, 9})
    assert calibrated(device, pairs=20).pairs == 20
    assert len(device.asked) == 23


def test_a_machine_that_throttles_all_the_time_is_an_unhealthy_device():
    device = NoisyDevice(scatter=0.001, throttled=lambda number: number > 5)
    with pytest.raises(DeviceError, match="throttles too much") as caught:
        calibrated(device, pairs=20)
    assert len(device.asked) == 24  # a fifth more than were wanted, and no longer
    assert "throttled 1 time" in caught.value.cause


def test_whether_a_pair_counts_does_not_hang_on_what_it_shows():
    slow = NoisyDevice(scatter=0.001, throttled=lambda number: number % 7 == 0, bias=3.0)
    even = NoisyDevice(scatter=0.001, throttled=lambda number: number % 7 == 0)
    calibrated(slow, pairs=20)
    calibrated(even, pairs=20)
    assert len(slow.asked) == len(even.asked)


@pytest.mark.parametrize("pairs", [0, 9, -1])
def test_too_few_pairs_are_refused_before_anything_is_timed(pairs: int):
    device = NoisyDevice(scatter=0.01)
    with pytest.raises(UsageError, match="at least 10"):
        calibrated(device, pairs=pairs)
    assert device.asked == []


def test_a_machine_that_favours_one_arm_is_said_to(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        calibrated(NoisyDevice(scatter=0.001, bias=1.1))
    assert "cannot compare" in caplog.text


def test_a_busy_machine_is_said_to_be_busy_and_a_quiet_one_is_not(caplog: pytest.LogCaptureFixture):
    busy = Trust(verdict=TrustVerdict.NOISY, reasons=("other processes used 150 % of a core",))
    with caplog.at_level(logging.WARNING):
        calibrated(NoisyDevice(scatter=0.001))
        assert caplog.text == ""
        calibrated(NoisyDevice(scatter=0.001, trust=busy))
    assert "150 % of a core" in caplog.text


def test_every_question_is_answered_for_each_clock():
    found = resolutions(known(0.01), RULES)
    asked = [(one.effect, one.margin, one.clock) for one in found]
    assert asked == [(*question, clock) for question in QUESTIONS for clock in (Clock.WALL, Clock.CPU)]
    assert {one.clock for one in resolutions(known(0.01), RULES, (Clock.WALL,))} == {Clock.WALL}


def test_a_quiet_machine_resolves_everything_at_the_first_look():
    found = resolutions(known(0.0), RULES)
    assert all(one.within_reach and one.pairs == 10 for one in found)
    assert all(one.minutes == pytest.approx(12 / 60) for one in found)  # two health checks beside


def test_minutes_count_to_the_look_at_which_it_is_decided():
    noise = next(noise / 1e4 for noise in range(1, 500) if pairs_needed(noise / 1e4, 0.05, 0.03, RULES) > 20)
    one = next(one for one in resolutions(known(noise, pair_seconds=6.0), RULES) if one.effect == 0.05)
    assert 20 < one.pairs <= 30
    assert one.minutes == pytest.approx((30 + 6) * 6.0 / 60)


def test_where_more_than_the_last_look_is_needed_a_wider_margin_is_advised():
    one = next(
        one for one in resolutions(known(0.05), RULES) if (one.effect, one.clock) == (0.05, Clock.WALL)
    )
    assert not one.within_reach
    assert one.pairs > RULES.looks[-1]
    assert one.honest_margin is not None
    assert one.honest_margin > one.margin
    assert pairs_needed(0.05, 5 / 3 * one.honest_margin, one.honest_margin, RULES) <= RULES.looks[-1]
    tighter = one.honest_margin - 0.005
    assert pairs_needed(0.05, 5 / 3 * tighter, tighter, RULES) > RULES.looks[-1]


def test_the_time_given_limits_the_pairs_too():
    slow = known(0.02, pair_seconds=60.0)  # the first look takes 12 minutes
    found = resolutions(slow, RULES)
    assert not any(one.within_reach for one in found)
    assert all(one.honest_margin is None for one in found)
    assert all(
        one.within_reach for one in resolutions(slow, replace(RULES, max_minutes=100)) if one.effect > 0.05
    )


def test_hopeless_noise_has_no_honest_margin():
    assert honest_margin(50.0, 5 / 3, 60, RULES) is None
    assert honest_margin(0.0, 2.0, 60, RULES) == 0.001

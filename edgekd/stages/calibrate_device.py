"""Find out how much a machine's timings scatter, by timing a model against itself, and what that can resolve."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from edgekd.devices import Device
from edgekd.errors import DeviceError, UsageError
from edgekd.stages.compare import Rivals, Side, pair_protocol
from edgekd.stages.references import reference
from edgekd.timing.duet import noise_floor, pair_log_ratio, pairs_needed, ratio_of
from edgekd.values.conditions import TrustVerdict
from edgekd.values.fleet import Resolution
from edgekd.values.gate import Calibration, Clock, GateRules
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Precision

__all__ = ["LEAST_PAIRS", "QUESTIONS", "calibrate_device", "calibrating", "resolutions"]

log = logging.getLogger(__name__)

QUESTIONS = ((0.01, 0.005), (0.05, 0.03), (0.08, 0.03), (0.10, 0.05))  # (slowdown, margin), as shares
LEAST_PAIRS = 10  # fewer say nothing about how far pairs scatter
_EVERY = 10  # pairs between two results
_MARGINS = (*(at / 1000 for at in range(1, 10)), *(at / 200 for at in range(2, 200)))

Now = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class _Twins:
    """One pair of the same model."""

    first: Latency
    second: Latency
    seconds: float

    def log_ratio(self, clock: Clock) -> float:
        return pair_log_ratio(self.first, self.second, clock)

    @property
    def throttle(self) -> str:
        return self.first.conditions.load.throttle or self.second.conditions.load.throttle


def calibrate_device(
    device: Device,
    runtime: str,
    *,
    threads: int,
    pairs: int = 40,
    rules: GateRules,
    today: str,
    name: str = "compute",
    now: Now = time.monotonic,
) -> Calibration:
    """Time a reference model against itself, and say how far pairs scatter.

    Args:
        device: where.
        runtime: that runs the reference.
        threads: of each inference.
        pairs: that count; those that throttling touched are taken again.
        rules: of the comparisons to come: seed, and how many pairs may be lost to throttling.
        today: UTC, ISO 8601.
        name: of the reference model.
        now: a monotonic clock in seconds.

    Raises:
        BackendMissing: the runtime is not installed on the device.
        DeviceError: the machine throttles all the time.
        UsageError: `pairs` is too small to say anything.

    """
    found = calibrating(
        device, runtime, threads=threads, pairs=pairs, rules=rules, today=today, name=name, now=now
    )
    *_, last = found
    return last


def calibrating(
    device: Device,
    runtime: str,
    *,
    threads: int,
    pairs: int,
    rules: GateRules,
    today: str,
    name: str = "compute",
    now: Now = time.monotonic,
) -> Iterator[Calibration]:
    """Yield what `calibrate_device` returns after every 10 pairs, so that an interruption loses at most those."""
    if pairs < LEAST_PAIRS:
        mend = f"give at least {LEAST_PAIRS}; 40 are usual"
        raise UsageError(f"{pairs} pairs cannot show how far pairs scatter", mend=mend)
    engine = Engine(model=reference(name), runtime=runtime, precision=Precision.FP32, threads=threads)
    kept: list[_Twins] = []
    for twins in _measured(device, engine, pairs, rules, now):
        kept.append(twins)
        if len(kept) % _EVERY == 0 or len(kept) == pairs:
            yield _calibration(kept, device.name, engine, name, today)
    _warn(kept, rules)


def resolutions(
    calibration: Calibration, rules: GateRules, clocks: Sequence[Clock] = (Clock.WALL, Clock.CPU)
) -> tuple[Resolution, ...]:
    """Say which slowdown takes how many pairs and minutes; where that is too much, which margin is honest.

    An honest margin asks the same question on a larger scale: +5 % over 3 % becomes +8.3 % over 5 %.
    """
    most = _affordable(calibration, rules)
    found = []
    for effect, margin in QUESTIONS:
        for clock in clocks:
            noise = calibration.noise if clock is Clock.WALL else calibration.cpu_noise
            pairs = pairs_needed(noise, effect, margin, rules)
            found.append(
                Resolution(
                    effect=effect,
                    margin=margin,
                    clock=clock,
                    pairs=pairs,
                    minutes=_minutes(calibration, _decided_after(pairs, rules), rules),
                    within_reach=pairs <= most,
                    honest_margin=None
                    if pairs <= most
                    else honest_margin(noise, effect / margin, most, rules),
                )
            )
    return tuple(found)


def honest_margin(noise: float, proportion: float, pairs: int, rules: GateRules) -> float | None:
    """Return the least margin over which `pairs` find a slowdown `proportion` times as large, at 95 %.

    In tenths of a point below 1 %, in half points above. None where even 100 % would be too little.
    """
    return next(
        (
            margin
            for margin in _MARGINS
            if pairs_needed(noise, effect=proportion * margin, margin=margin, rules=rules) <= pairs
        ),
        None,
    )


def _measured(device: Device, engine: Engine, pairs: int, rules: GateRules, now: Now) -> Iterator[_Twins]:
    """Yield the pairs that count; their number decides when it ends, never what they show."""
    side = Side(path=engine.model.file.path.name, engine=engine)
    protocol = pair_protocol(device, Rivals(name="reference", base=side, candidate=side), rules)
    spare = max(math.ceil(rules.most_dropped * pairs), 2)
    lost: list[str] = []
    for number in range(pairs + spare):
        twins = _twins(device, engine, replace(protocol, seed=rules.seed + number), now)
        if twins.throttle:
            lost.append(twins.throttle)
            log.info("    pair %d does not count: %s", number + 1, twins.throttle)
            continue
        log.info(
            "    pair %d of %d: %+.2f %%, %.1f s",
            number + 1 - len(lost),
            pairs,
            100 * math.expm1(twins.log_ratio(Clock.WALL)),
            twins.seconds,
        )
        yield twins
        if number + 1 - len(lost) == pairs:
            return
    raise DeviceError(
        f"{device.name} throttles too much to be calibrated",
        cause=f"{len(lost)} of {pairs + spare} pairs were touched; the last: {lost[-1]}",
        mend="let it cool, lift the cgroup's quota or lower its clocks, and calibrate again",
    )


def _twins(device: Device, engine: Engine, protocol: Protocol, now: Now) -> _Twins:
    start = now()
    first, second = device.time([engine, engine], protocol)
    return _Twins(first=first, second=second, seconds=now() - start)


def _calibration(kept: Sequence[_Twins], device: str, engine: Engine, name: str, today: str) -> Calibration:
    p50_ms = statistics.median(one.percentile(50) for twins in kept for one in (twins.first, twins.second))
    return Calibration(
        fingerprint=kept[-1].second.conditions.fingerprint,
        device=device,
        runtime=engine.runtime,
        threads=engine.threads,
        reference=name,
        decade=math.floor(math.log10(p50_ms)),
        noise=noise_floor([twins.log_ratio(Clock.WALL) for twins in kept]),
        cpu_noise=noise_floor([twins.log_ratio(Clock.CPU) for twins in kept]),
        p50_ms=p50_ms,
        pair_seconds=statistics.median(twins.seconds for twins in kept),
        pairs=len(kept),
        date=today,
    )


def _warn(kept: Sequence[_Twins], rules: GateRules) -> None:
    ratio = ratio_of([twins.log_ratio(Clock.WALL) for twins in kept], rules.alpha)
    if ratio.low > 1 + rules.margin or ratio.high < 1 / (1 + rules.margin):
        log.warning(
            "the reference against itself came out as %.3f: this machine cannot compare", ratio.estimate
        )
    latencies = [one for twins in kept for one in (twins.first, twins.second)]
    noisy = [one.trust for one in latencies if one.trust.verdict is TrustVerdict.NOISY]
    if 2 * len(noisy) > len(latencies):
        why = "; ".join(noisy[-1].reasons)
        log.warning("the machine was busy: this is its noise now, and an idle one resolves more (%s)", why)


def _affordable(calibration: Calibration, rules: GateRules) -> int:
    """Return after how many pairs a comparison ends: at its last look, or when the time given is over."""
    looks = [look for look in rules.looks if _minutes(calibration, look, rules) <= rules.max_minutes]
    return looks[-1] if looks else 0


def _decided_after(pairs: int, rules: GateRules) -> int:
    return next((look for look in rules.looks if look >= pairs), pairs)


def _minutes(calibration: Calibration, pairs: int, rules: GateRules) -> float:
    """Return the minutes that pairs take, with a health check every so many."""
    return (pairs + math.ceil(pairs / rules.reference_every)) * calibration.pair_seconds / 60

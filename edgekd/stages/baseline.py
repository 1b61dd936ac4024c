"""Absolute limits: measure them once, and hold candidates against them where the machine is still the same."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import replace
from pathlib import Path

from edgekd.devices import Device
from edgekd.errors import ConfigError, NoBaseline
from edgekd.stages.references import reference
from edgekd.stages.subject import Subject
from edgekd.stages.weigh import Side, arm_of
from edgekd.store import write_text
from edgekd.values.baseline import SCHEMA_VERSION, Baseline
from edgekd.values.budget import RANKS, Limits
from edgekd.values.codec import decode, encode
from edgekd.values.gate import Arm, Clock, Comparison, GateRules, GateVerdict, Ratio
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Precision

log = logging.getLogger(__name__)

ABSOLUTE = Protocol(launches=5, blocks=4, samples=80)
_DRIFTED = 0.03  # of the reference model: beyond it, the machine is not what it was
_MAKE = "make one on this machine: give the same command with --update"


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file strictly.

    Raises:
        NoBaseline: there is none, it is malformed, or of another schema.

    """
    if not path.is_file():
        raise NoBaseline(f"there is no baseline {path}", mend=_MAKE)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data.get("schema_version") if isinstance(data, dict) else None
        if found != SCHEMA_VERSION:
            cause = f"its schema is {found}, this edgekd's is {SCHEMA_VERSION}"
            raise NoBaseline(f"{path} cannot be compared with", cause=cause, mend=_MAKE)
        return decode(Baseline, data, path.name)
    except (ValueError, OSError, ConfigError) as error:
        raise NoBaseline(f"{path} is not a baseline", cause=str(error), mend=_MAKE) from None


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline file, whole or not at all."""
    write_text(path, json.dumps(json.loads(encode(baseline)), indent=2) + "\n")
    log.info("baseline in %s", path)


def measure_baseline(
    device: Device, one: Subject, rules: GateRules, limits_ms: dict[str, float], date: str
) -> Baseline:
    """Measure a subject beside the reference model; limits are those given, or what was measured and the margin.

    A limit on p99 that follows from a measurement allows for the upper bound that later ones are judged by.
    """
    latency, beside = _measured(device, one.engine)
    conditions = latency.conditions
    usual = {"p99": latency.upper_bound(99.0, 1 - rules.alpha) * (1 + rules.margin)}
    return Baseline(
        schema_version=SCHEMA_VERSION,
        runtime=one.engine.runtime,
        precision=one.engine.precision,
        threads=one.engine.threads,
        hardware=conditions.hardware_fingerprint,
        software=conditions.software_fingerprint,
        protocol_fingerprint=ABSOLUTE.fingerprint,
        protocol=ABSOLUTE,
        conditions=conditions,
        limits_ms=limits_ms or usual,
        measured=arm_of(Side(path=str(one.path), engine=one.engine), [latency]),
        reference_p50_ms=beside.percentile(50),
        date=date,
    )


def hold(device: Device, one: Subject, baseline: Baseline, rules: GateRules) -> Comparison:
    """Measure a subject and hold its percentiles against the baseline's limits.

    PASS where every upper bound keeps its limit, FAIL where a lower bound is beyond it, INCONCLUSIVE between;
    ENVIRONMENT where the reference model is not as fast as it was, or the processor was throttled.

    Raises:
        NoBaseline: hardware, software, protocol or settings are not those of the baseline.

    """
    check_comparable(one, baseline, device)
    start = time.monotonic()
    latency, beside = _measured(device, one.engine)
    verdict, reasons = _judged(latency, beside, baseline, rules)
    candidate = arm_of(Side(path=str(one.path), engine=one.engine), [latency])
    grown = candidate.size_bytes > baseline.measured.size_bytes * (1 + rules.size_margin)
    breaches = (f"the file grew to {candidate.size_bytes} bytes",) if grown else ()
    return Comparison(
        name=one.path.name,
        against="baseline",
        runtime=one.engine.runtime,
        precision=one.engine.precision,
        threads=one.engine.threads,
        verdict=GateVerdict.FAIL if breaches else verdict,
        reasons=(*breaches, *reasons),
        clock=Clock.WALL,
        ratio=_ratio(latency, baseline.measured, rules),
        other_ratio=None,
        margin=rules.margin,
        pairs=0,
        dropped=(),
        seconds=time.monotonic() - start,
        base=baseline.measured,
        candidate=candidate,
        log_ratios=(),
        p_fail=1.0,  # absolute limits take no share in Holm's correction
        reference_p50_ms=beside.percentile(50),
        protocol=ABSOLUTE,
        conditions=latency.conditions,
    )


def check_comparable(one: Subject, baseline: Baseline, device: Device) -> None:
    """Refuse numbers that were taken on another machine, by other software, settings or rules.

    Raises:
        NoBaseline: it names what differs.

    """
    now = device.probe().conditions
    engine = one.engine
    differing = [
        name
        for name, then, today in (
            ("hardware", baseline.hardware, now.hardware_fingerprint),
            ("software", baseline.software, now.software_fingerprint),
            ("protocol", baseline.protocol_fingerprint, ABSOLUTE.fingerprint),
            ("runtime", baseline.runtime, engine.runtime),
            ("precision", baseline.precision, engine.precision),
            ("threads", baseline.threads, engine.threads),
        )
        if then != today
    ]
    if differing:
        raise NoBaseline(
            "the baseline does not hold here",
            cause=f"it was made on {baseline.date} with another {' and '.join(differing)}",
            mend=f"{_MAKE}; or compare with the other file instead: edgekd check BASE CANDIDATE",
        )


def _measured(device: Device, engine: Engine) -> tuple[Latency, Latency]:
    """Time an engine in turns with the reference model."""
    beside = replace(engine, model=reference(), precision=Precision.FP32, shapes=None)
    latency, reference_latency = device.time([engine, beside], ABSOLUTE)
    return latency, reference_latency


def _judged(
    latency: Latency, beside: Latency, baseline: Baseline, rules: GateRules
) -> tuple[GateVerdict, tuple[str, ...]]:
    moved = beside.percentile(50) / baseline.reference_p50_ms - 1
    if latency.conditions.load.throttle:
        return GateVerdict.ENVIRONMENT, (
            f"the processor was slowed down: {latency.conditions.load.throttle}",
        )
    if abs(moved) > _DRIFTED:
        reason = f"the reference model takes {moved:+.1%} of its time then: the machine is not what it was"
        return GateVerdict.ENVIRONMENT, (reason,)
    confidence = 1 - rules.alpha
    limits = Limits(latency_ms=baseline.limits_ms, confidence=confidence)
    over = [
        f"{name} is at least {low_ms:.3f} ms, limit {limit_ms:.3f} ms"
        for name, limit_ms in baseline.limits_ms.items()
        if (low_ms := latency.lower_bound(RANKS[name], confidence)) > limit_ms
    ]
    if over:
        return GateVerdict.FAIL, tuple(over)
    if unclear := limits.breaches(latency, 0):
        return GateVerdict.INCONCLUSIVE, unclear
    return GateVerdict.PASS, ()


def _ratio(latency: Latency, base: Arm, rules: GateRules) -> Ratio:
    """Return p50 against the baseline's; the bounds are the candidate's own, the baseline counts as exact."""
    confidence = 1 - rules.alpha
    high_ms = latency.upper_bound(50.0, confidence)
    return Ratio(
        estimate=latency.percentile(50) / base.p50_ms,
        low=latency.lower_bound(50.0, confidence) / base.p50_ms,
        high=high_ms / base.p50_ms if math.isfinite(high_ms) else math.inf,
        confidence=confidence,
    )

"""Gates as the tests of their outputs need them: realistic values, one field away from each other."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgekd.values.conditions import Conditions, Hardware, Load, Software
from edgekd.values.gate import Arm, Clock, Comparison, Gate, GateRules, GateVerdict, Ratio
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision

_CONDITIONS = Conditions(
    hardware=Hardware(
        machine="x86_64", processor="AMD EPYC 9B14", cores=2, memory_mib=7952, features=("avx512_vnni",)
    ),
    software=Software(
        system="Linux",
        kernel="6.8.0",
        python="3.11.9",
        runtimes={"onnxruntime": "1.32.0", "openvino": "2026.4.1"},
        governor="powersave",
    ),
    load=Load(
        load_average=1.9,
        others_percent=88.0,
        steal_percent=0.4,
        involuntary_switches=310,
        temperature_c=61.0,
        clock_mhz=2794.0,
    ),
)
_BASE = Arm(
    path="base/mobilenet.onnx",
    sha256="b" * 64,
    p50_ms=2.310,
    p95_ms=2.616,
    p99_ms=2.927,
    cpu_p50_ms=2.305,
    samples=4800,
    size_bytes=13_964_571,
    memory_mib=41.3,
    open_ms=182.0,
    accuracy=0.7188,
)

CompareMaker = Callable[..., Comparison]
GateMaker = Callable[..., Gate]


def _compared(ratio: float = 1.004, pairs: int = 15, scatter: float = 0.004, **changed: Any) -> Comparison:
    """Give a comparison whose pairs scatter around a ratio."""
    rng = random.Random(round(1e4 * ratio) + pairs)  # noqa: S311 - noise, not a secret
    logs = tuple(math.log(ratio) + rng.gauss(0.0, scatter) for _ in range(pairs))
    wide = 2.9 * scatter / math.sqrt(max(pairs, 1))
    bounds = Ratio(
        estimate=ratio, low=ratio * math.exp(-wide), high=ratio * math.exp(wide), confidence=1 - 0.01 / 6
    )
    slower = {name: getattr(_BASE, name) * ratio for name in ("p50_ms", "p95_ms", "p99_ms", "cpu_p50_ms")}
    candidate = replace(
        _BASE,
        path="new/mobilenet.onnx",
        sha256="c" * 64,
        accuracy=0.7163,
        quantiles_ms=_curve(ratio),
        **slower,
    )
    usual: dict[str, Any] = {
        "name": "mobilenet.onnx",
        "against": "base",
        "runtime": "onnxruntime",
        "precision": Precision.INT8,
        "threads": 1,
        "verdict": GateVerdict.PASS,
        "reasons": (),
        "clock": Clock.WALL,
        "ratio": bounds,
        "other_ratio": replace(bounds, estimate=ratio * 0.999),
        "margin": 0.03,
        "pairs": pairs,
        "dropped": (),
        "seconds": 14.2,
        "base": replace(_BASE, quantiles_ms=_curve(1.0)),
        "candidate": candidate,
        "log_ratios": logs,
        "p_fail": 1e-4,
        "reference": Ratio(estimate=1.001, low=0.996, high=1.006, confidence=1 - 0.01 / 6),
        "protocol": Protocol(launches=1, blocks=8, samples=40),
        "conditions": _CONDITIONS,
    }
    return Comparison(**{**usual, **changed})


def _curve(scale: float) -> tuple[float, ...]:
    """Give quantiles of a distribution with a long right tail, p1 to p99."""
    tails = ((-math.log(1 - rank / 100)) ** 1.5 for rank in range(1, 100))
    return tuple(scale * (2.310 + 0.0663 * (tail - 0.577)) for tail in tails)


def _gated(*comparisons: Comparison, **changed: Any) -> Gate:
    """Give a gate whose verdict is the gravest of its comparisons'."""
    order = ("FAIL", "ENVIRONMENT", "INCONCLUSIVE", "PASS", "IMPROVED")
    verdict = min((one.verdict for one in comparisons), key=lambda verdict: order.index(verdict.value))
    usual: dict[str, Any] = {"verdict": verdict, "rules": GateRules(), "seconds": 61.5}
    return Gate(comparisons=comparisons, **{**usual, **changed})


@pytest.fixture
def compared() -> CompareMaker:
    """Make comparisons."""
    return _compared


@pytest.fixture
def gated() -> GateMaker:
    """Make gates."""
    return _gated


@pytest.fixture
def failed(compared: CompareMaker) -> Comparison:
    """Give a regression of 4.9 %."""
    return compared(ratio=1.049, verdict=GateVerdict.FAIL, reasons=())


@pytest.fixture
def noisy(compared: CompareMaker) -> Comparison:
    """Give a comparison that could not tell, with a pair that was lost."""
    reasons = (
        "60 pairs could not tell",
        "pairs scatter by 4.1%; a margin of 8% is one that they can answer for",
    )
    return compared(
        ratio=1.028,
        pairs=60,
        scatter=0.041,
        verdict=GateVerdict.INCONCLUSIVE,
        name="detector.onnx",
        reasons=reasons,
        dropped=("pair 7: candidate was throttled: core 1 by its package's heat",),
        seconds=214.0,
    )


@pytest.fixture
def sick(compared: CompareMaker) -> Comparison:
    """Give a comparison of which nothing came, because of the machine."""
    one = compared(
        verdict=GateVerdict.ENVIRONMENT,
        name="tagger.onnx",
        reasons=("5 of 5 pairs were lost",),
        dropped=tuple(f"pair {number}: base was throttled: core 0 by its own heat" for number in range(5)),
        pairs=0,
    )
    return replace(one, ratio=None, other_ratio=None, p_fail=1.0)

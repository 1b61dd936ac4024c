"""The gate as JSON: for `check --json`, for github-action-benchmark and for Bencher."""

from __future__ import annotations

import json
import math
from typing import Any

from edgekd.stages.announce import words
from edgekd.values.codec import plain
from edgekd.values.gate import Comparison, Gate, Ratio

_NS = 1e6  # in a millisecond


def gate_json(gate: Gate) -> dict[str, Any]:
    """Give the decisive comparison flattened, and all of them in full; what is not finite becomes null."""
    one = gate.decisive
    whole = plain(gate)
    top = {
        "schema_version": gate.schema_version,
        "verdict": gate.verdict.value,
        "name": one.name,
        "against": one.against,
        "reasons": list(one.reasons),
        **_flat(one.ratio),
        "margin": one.margin,
        "clock": one.clock.value,
        "pairs": one.pairs,
        "dropped": list(one.dropped),
        "seconds": gate.seconds,
        **{
            name: plain(getattr(one, name))
            for name in ("runtime", "precision", "threads", "base", "candidate")
        },
        "conditions": plain(one.conditions),
        "protocol": plain(one.protocol),
        "rules": whole["rules"],
        "changes": whole["changes"],
        "comparisons": whole["comparisons"],
    }
    found: dict[str, Any] = _finite(top)
    return found


def benchmark_json(gate: Gate) -> str:
    """Write github-action-benchmark's `customSmallerIsBetter`: the ratio and the candidate's p50 of each.

    Of the two, the ratio is the one to draw over time: it does not follow the machine.
    """
    rows: list[dict[str, Any]] = []
    for one in gate.comparisons:
        extra = f"{one.verdict.value}; {words.sentence(one)}"
        if one.ratio is not None:
            spread = words.interval(one.ratio)
            ratio = {"unit": "times the base", "value": one.ratio.estimate, "range": spread, "extra": extra}
            rows.append({"name": f"{_label(one)} ratio", **ratio})
        p50 = {"unit": "ms", "value": one.candidate.p50_ms, "extra": extra}
        rows.append({"name": f"{_label(one)} p50", **p50})
    return _text([row for row in rows if math.isfinite(row["value"])])


def bencher_json(gate: Gate) -> str:
    """Write the Bencher Metric Format: latency in ns as Bencher has it, and the ratio.

    The bounds of the latency are the ratio's, around the candidate's p50: what remains uncertain beside the base.
    """
    metrics = {}
    for one in gate.comparisons:
        measures = {"latency": _latency(one), "latency-ratio": _measure(one.ratio, 1.0)}
        kept = {name: measure for name, measure in measures.items() if measure}
        if kept:
            metrics[_label(one)] = kept
    return _text(metrics)


def _flat(ratio: Ratio | None) -> dict[str, float | None]:
    return {
        "ratio": ratio.estimate if ratio else None,
        "ratio_low": ratio.low if ratio else None,
        "ratio_high": ratio.high if ratio else None,
        "confidence": ratio.confidence if ratio else None,
    }


def _latency(one: Comparison) -> dict[str, float]:
    p50_ns = one.candidate.p50_ms * _NS
    if not math.isfinite(p50_ns):
        return {}
    return _measure(one.ratio, p50_ns / one.ratio.estimate) if one.ratio else {"value": p50_ns}


def _measure(ratio: Ratio | None, scale: float) -> dict[str, float]:
    if ratio is None:
        return {}
    named = {"value": ratio.estimate, "lower_value": ratio.low, "upper_value": ratio.high}
    return {name: value * scale for name, value in named.items() if math.isfinite(value)}


def _label(one: Comparison) -> str:
    against = "" if one.against == "base" else f" against {words.clean(one.against, 40)}"
    return f"{words.name(one)} ({words.engine(one)}){against}"


def _text(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(item) for key, item in data.items()}
    return [_finite(item) for item in data] if isinstance(data, list) else data

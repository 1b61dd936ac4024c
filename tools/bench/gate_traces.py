"""What other tools, and a stored baseline, say of the samples that the gate took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from gate_coverage import peers

from edgekd.timing.duet import hodges_lehmann, pair_log_ratio
from edgekd.values.gate import Clock, Pair


def others(traces: Sequence[Sequence[Pair]], *, apart: int) -> dict[str, Any]:
    """Let other tools' rules judge the same samples: the candidate's against the base's of an earlier gate.

    That is what a stored baseline is: a measurement of the base from another time. `apart` gates before is the
    last one of the same runtime.
    """
    stored, beside = [], []
    for before, now in zip(traces, traces[apart:]):
        candidate = [np.array(pair.candidate.samples_ms) for pair in now]
        stored.append(peers([np.array(pair.base.samples_ms) for pair in before], candidate))
        beside.append(peers([np.array(pair.base.samples_ms) for pair in now], candidate))
    return {
        "share that fails, stored baseline": _shares(stored),
        "share that fails, base of the same pairs": _shares(beside),
    }


def spread(traces: Sequence[Sequence[Pair]], clock: Clock, runtimes: Sequence[str]) -> dict[str, Any]:
    """Compare how much an estimate scatters from gate to gate, at equal samples: by pairs, and by a stored median.

    What a stored baseline is held against is the median wall time of the candidate's samples.
    """
    found: dict[str, Any] = {}
    for at, runtime in enumerate(runtimes):
        own = [trace for trace in traces[at :: len(runtimes)] if trace]
        if len(own) < 3:
            continue
        paired = [
            hodges_lehmann([pair_log_ratio(pair.base, pair.candidate, clock) for pair in trace])
            for trace in own
        ]
        alone = [
            math.log(statistics.median(ms for pair in trace for ms in pair.candidate.samples_ms))
            for trace in own
        ]
        found[runtime] = {
            "pairs, %": round(100 * statistics.stdev(paired), 3),
            "stored median, %": round(100 * statistics.stdev(alone), 3),
            "ratio": round(statistics.stdev(alone) / statistics.stdev(paired), 1),
        }
    return found


def _shares(verdicts: Sequence[dict[str, bool]]) -> dict[str, float]:
    return {
        name: round(statistics.mean(one[name] for one in verdicts), 3)
        for name in (verdicts[0] if verdicts else ())
    }

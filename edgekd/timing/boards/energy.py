"""Turn readings of power or of energy counters into what one inference costs.

The energy of a busy pass less that of an idle pass of the same length: the rails feed the whole board, and only the
difference is the inference's. The sampling itself costs power in both, and cancels.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

from edgekd.errors import DeviceError
from edgekd.values.power import Energy, Trace

_BATCHES = 10  # of a pass: samples within one depend on each other, batches hardly do
_FEWEST = _BATCHES + 1  # readings of a pass
_QUANTILE = 2.262  # Student's t, two-sided 95 %, 9 degrees of freedom


def from_power(source: str, at_s: Sequence[float], power_mw: Sequence[float]) -> Trace:
    """Integrate power readings over time, by trapezoids."""
    steps = [
        (later_s - earlier_s) * (earlier_mw + later_mw) / 2
        for earlier_s, later_s, earlier_mw, later_mw in zip(at_s, at_s[1:], power_mw, power_mw[1:])
    ]
    return _trace(source, at_s, steps)


def from_counter(source: str, at_s: Sequence[float], counted_mj: Sequence[float], range_mj: float) -> Trace:
    """Take the differences of a counter that starts again at zero after `range_mj`."""
    steps = [
        later - earlier if later >= earlier else later - earlier + range_mj
        for earlier, later in pairwise(counted_mj)
    ]
    return _trace(source, at_s, steps)


def energy_per_inference(busy: Trace, idle: Sequence[Trace], inferences: int) -> Energy:
    """Return the energy of a busy pass above the mean of idle passes, for each of its inferences.

    The uncertainty has three parts, added as squares: how much the power varied within the busy pass and within the
    idle ones (batch means), and how far the idle passes lie apart (as if drawn evenly between the extremes).

    Raises:
        DeviceError: a pass has too few readings to say anything.

    """
    for trace in (busy, *idle):
        if len(trace.at_s) < _FEWEST or trace.duration_s <= 0:
            raise DeviceError(
                f"the power of a pass was read {len(trace.at_s)} times",
                cause=f"{trace.source} answers too slowly for {trace.duration_s:.1f} s",
                mend="measure energy over more seconds",
            )
    if not idle or inferences < 1:
        raise DeviceError("energy needs an idle pass and at least one inference")
    idle_mw = statistics.fmean(trace.power_mw for trace in idle)
    idle_errors = [_standard_error_mw(trace) for trace in idle]
    apart_mw = max(trace.power_mw for trace in idle) - min(trace.power_mw for trace in idle)
    error_mw = math.hypot(
        _standard_error_mw(busy),
        math.hypot(*idle_errors) / len(idle),
        apart_mw / math.sqrt(12),  # the standard deviation of an even distribution of that width
    )
    return Energy(
        source=busy.source,
        inferences=inferences,
        energy_mj=(busy.power_mw - idle_mw) * busy.duration_s / inferences,
        uncertainty_mj=_QUANTILE * error_mw * busy.duration_s / inferences,
        busy_mw=busy.power_mw,
        idle_mw=idle_mw,
        busy_s=busy.duration_s,
    )


def _trace(source: str, at_s: Sequence[float], steps_mj: Sequence[float]) -> Trace:
    grown = accumulate((max(0.0, step) for step in steps_mj), initial=0.0)
    return Trace(source=source, at_s=tuple(at_s), energy_mj=tuple(grown) if at_s else ())


def _standard_error_mw(trace: Trace) -> float:
    """Estimate how far the mean power of such a pass scatters, from the means of its parts."""
    step_s = trace.duration_s / _BATCHES
    marks = [_energy_at(trace, trace.at_s[0] + step_s * at) for at in range(_BATCHES + 1)]
    means = [(later - earlier) / step_s for earlier, later in pairwise(marks)]
    return statistics.stdev(means) / math.sqrt(_BATCHES)


def _energy_at(trace: Trace, moment_s: float) -> float:
    """Interpolate the energy delivered until a moment."""
    at = bisect_left(trace.at_s, moment_s)
    if at == 0 or at == len(trace.at_s):
        return trace.energy_mj[min(at, len(trace.at_s) - 1)]
    earlier_s, later_s = trace.at_s[at - 1], trace.at_s[at]
    share = (moment_s - earlier_s) / (later_s - earlier_s)
    return trace.energy_mj[at - 1] + share * (trace.energy_mj[at] - trace.energy_mj[at - 1])

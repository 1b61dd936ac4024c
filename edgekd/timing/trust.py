"""Say whether a measurement may decide something, and if not, why not."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import accumulate

from edgekd.values.conditions import Load, Trust, TrustVerdict
from edgekd.values.latency import DEPENDENT, autocorrelation, ranks

_SPREAD = 0.10  # robust coefficient of variation of CPU times
_DRIFT = 0.05  # between the medians of the first and the last block
_STEAL_PERCENT = 2.0
_PREEMPTED = 0.10  # share of the inferences
_WAITING = 1.3  # wall time / CPU time of one thread
_IDLE_ENOUGH = 0.7  # share of the cores we do not use that others may take
_LAUNCHES_APART = 0.02  # of the median, between the fastest launch and the slowest
_LAUNCHES_RATIO = 10.0  # variance of launches' medians / that within launches; F(2, 9) is 8.0 at 99 %
_FEW = 20  # samples too few to tell whether they depend on one another
_HARMLESS = 0.02  # robust coefficient of variation
_CLOCKS_APART = 0.10  # of the highest
_WARMER_C = 10.0
_PRESSURE_PERCENT = 5.0  # of the time, some process waited for memory


def judge(
    wall_ms: Sequence[float],
    cpu_ms: Sequence[float],
    preempted: Sequence[bool],
    *,
    block_sizes: Sequence[int],
    load: Load,
    cores: int,
    threads: int,
    launches: int = 1,
    steady: bool = True,
) -> Trust:
    """Judge samples in run order, taken in blocks of these sizes, evenly over `launches`, under `load`.

    CPU times show what the code did; wall times against them show what the machine did to it. `steady` is false
    where an input gave another answer than while warming up.
    """
    blocks_ms = [
        cpu_ms[end - size : end] for size, end in zip(block_sizes, accumulate(block_sizes)) if size > 0
    ]
    reasons = (
        *(() if steady else ("the same input gave another answer than while warming up",)),
        *_spread(cpu_ms),
        *_drift(blocks_ms),
        *_launches([statistics.median(block) for block in blocks_ms], launches),
        *_dependence(wall_ms, preempted),
        *_waiting(wall_ms, cpu_ms, threads),
        *_preempted(preempted),
        *_neighbours(load, cores, threads),
        *_machine(load),
    )
    return Trust(verdict=TrustVerdict.NOISY if reasons else TrustVerdict.GOOD, reasons=reasons)


def limited(trust: Trust, reason: str) -> Trust:
    """Return a verdict that is noisy at best, for this reason before all others."""
    return Trust(verdict=TrustVerdict.NOISY, reasons=(reason, *trust.reasons))


def _spread(cpu_ms: Sequence[float]) -> tuple[str, ...]:
    if len(cpu_ms) < 4:  # noqa: PLR2004 - quartiles need four
        return ("fewer than 4 samples",)
    spread = _robust_spread(cpu_ms)
    return (f"CPU times vary by {spread:.0%} (more than {_SPREAD:.0%})",) if spread > _SPREAD else ()


def _robust_spread(times_ms: Sequence[float]) -> float:
    low, middle, high = statistics.quantiles(times_ms, n=4)
    return (high - low) / 1.349 / middle if middle else 0.0  # the normal law's IQR is 1.349 sigma


def _drift(blocks_ms: Sequence[Sequence[float]]) -> tuple[str, ...]:
    if len(blocks_ms) < 2:  # noqa: PLR2004 - drift needs a first and a last block
        return ()
    first, last = statistics.median(blocks_ms[0]), statistics.median(blocks_ms[-1])
    drift = last / first - 1 if first else 0.0
    return (f"drifted by {drift:+.0%} from the first block to the last",) if abs(drift) > _DRIFT else ()


def _launches(medians_ms: Sequence[float], launches: int) -> tuple[str, ...]:
    """Compare launches by the medians of their blocks: one-way analysis of variance, and a difference that matters."""
    size = len(medians_ms) // max(launches, 1)
    if launches < 2 or size < 2:  # noqa: PLR2004 - there is nothing between, or nothing within
        return ()
    groups = [medians_ms[at * size : (at + 1) * size] for at in range(launches)]
    middles = [statistics.fmean(group) for group in groups]
    between = size * statistics.variance(middles)
    within = statistics.fmean(statistics.variance(group) for group in groups)
    apart = (max(middles) - min(middles)) / statistics.fmean(middles) if min(middles) > 0 else 0.0
    if apart <= _LAUNCHES_APART or between <= _LAUNCHES_RATIO * within:
        return ()
    return (f"launches disagree by {apart:.0%}: {launches} processes are few to tell its latency",)


def _dependence(wall_ms: Sequence[float], preempted: Sequence[bool]) -> tuple[str, ...]:
    """Look for clusters of slow samples; of what varies by less than 2 %, order is of no concern."""
    kept = [ms for ms, lost in zip(wall_ms, preempted) if not lost] or wall_ms
    if len(kept) < _FEW or _robust_spread(kept) <= _HARMLESS:
        return ()
    found = autocorrelation(ranks(kept))
    return (f"consecutive samples depend on one another ({found:.2f})",) if found > DEPENDENT else ()


def _waiting(wall_ms: Sequence[float], cpu_ms: Sequence[float], threads: int) -> tuple[str, ...]:
    if threads > 1 or not wall_ms:  # only one thread's CPU time can be held against the wall's
        return ()
    wall, busy = statistics.median(wall_ms), statistics.median(cpu_ms)
    if busy <= 0 or wall <= _WAITING * busy:
        return ()
    return (f"waited for a processor: half of the inferences took over {wall / busy:.1f}x their CPU time",)


def _preempted(preempted: Sequence[bool]) -> tuple[str, ...]:
    share = sum(preempted) / max(len(preempted), 1)
    return (f"{share:.0%} of the inferences lost the core to other processes",) if share > _PREEMPTED else ()


def _neighbours(load: Load, cores: int, threads: int) -> tuple[str, ...]:
    reasons = []
    if load.steal_percent > _STEAL_PERCENT:
        reasons.append(f"the hypervisor took {load.steal_percent:.0f} % of a core")
    allowed = max(10.0, 100 * _IDLE_ENOUGH * (cores - threads))
    if load.others_percent > allowed:
        reasons.append(f"other processes used {load.others_percent:.0f} % of a core")
    return tuple(reasons)


def _machine(load: Load) -> tuple[str, ...]:
    """Say what the machine did to itself."""
    reasons = [load.throttle] if load.throttle else []
    low, high = load.lowest_mhz, load.highest_mhz
    if low is not None and high is not None and low < (1 - _CLOCKS_APART) * high:
        reasons.append(f"clocks moved from {low:.0f} to {high:.0f} MHz")
    if load.governor_changed:
        reasons.append(f"the frequency governor changed to {load.governor}")
    if load.temperature_rise_c > _WARMER_C:
        reasons.append(f"temperature rose by {load.temperature_rise_c:.0f} C to {load.temperature_c:.0f} C")
    if load.memory_pressure_percent > _PRESSURE_PERCENT:
        reasons.append(f"processes waited for memory {load.memory_pressure_percent:.0f} % of the time")
    return tuple(reasons)

"""Say whether a measurement may decide something, and if not, why not."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from edgekd.values.conditions import Load, Trust, TrustVerdict

_SPREAD = 0.10  # robust coefficient of variation of CPU times
_DRIFT = 0.05  # between the medians of the first and the last block
_STEAL_PERCENT = 2.0
_PREEMPTED = 0.10  # share of the inferences
_WAITING = 1.3  # wall time / CPU time of one thread
_IDLE_ENOUGH = 0.7  # share of the cores we do not use that others may take


def judge(
    wall_ms: Sequence[float],
    cpu_ms: Sequence[float],
    preempted: Sequence[bool],
    *,
    blocks: int,
    load: Load,
    cores: int,
    threads: int,
) -> Trust:
    """Judge samples in run order, taken in `blocks` turns under `load`.

    CPU times show what the code did; wall times against them show what the machine did to it.
    """
    reasons = (
        *_spread(cpu_ms),
        *_drift(cpu_ms, blocks),
        *_waiting(wall_ms, cpu_ms, threads),
        *_preempted(preempted),
        *_neighbours(load, cores, threads),
    )
    return Trust(verdict=TrustVerdict.NOISY if reasons else TrustVerdict.GOOD, reasons=reasons)


def _spread(cpu_ms: Sequence[float]) -> tuple[str, ...]:
    if len(cpu_ms) < 4:  # noqa: PLR2004 - quartiles need four
        return ("fewer than 4 samples",)
    low, middle, high = statistics.quantiles(cpu_ms, n=4)
    spread = (high - low) / 1.349 / middle if middle else 0.0  # the normal law's IQR is 1.349 sigma
    return (f"CPU times vary by {spread:.0%} (more than {_SPREAD:.0%})",) if spread > _SPREAD else ()


def _drift(cpu_ms: Sequence[float], blocks: int) -> tuple[str, ...]:
    size = len(cpu_ms) // max(blocks, 1)
    if blocks < 2 or size < 1:  # noqa: PLR2004 - drift needs a first and a last block
        return ()
    first, last = statistics.median(cpu_ms[:size]), statistics.median(cpu_ms[-size:])
    drift = last / first - 1 if first else 0.0
    return (f"drifted by {drift:+.0%} from the first block to the last",) if abs(drift) > _DRIFT else ()


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

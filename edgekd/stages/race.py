"""Whether a file is faster than its parent: pairs of fresh processes in turns, until a bound says so or cannot."""

from __future__ import annotations

import math
from dataclasses import replace

from edgekd.devices import Device
from edgekd.timing.duet import pair_log_ratio, ratio_of
from edgekd.values.gate import Clock, Ratio
from edgekd.values.latency import Protocol
from edgekd.values.model import Engine

LEAST_GAIN = 0.03  # an int8 file that is faster by less is not worth an accuracy to watch
ALPHA = 0.02  # chance of a bound that errs
PAIRS = 6  # the fewest whose bounds err so seldom: 2^-6
MOST_PAIRS = 12
PAIR = Protocol(launches=1, blocks=6, samples=40, warmup_ms=40.0, one_core=True)
_TURN_MS = 10.0
_LEAST_SAMPLES, _MOST_SAMPLES = 3, 80  # a turn


def race(device: Device, parent: Engine, own: Engine, *, about_ms: float, seed: int = 0) -> Ratio:
    """Return how many times as slow `own` is as its parent, from pairs as the latency gate takes them.

    Six pairs; twelve where six leave open which side of 1 - `LEAST_GAIN` it is on.

    Args:
        device: where they run.
        parent: the float form.
        own: the other.
        about_ms: what an inference takes, for the length of a turn.
        seed: of the order of turns.

    Raises:
        BuildError: one of them cannot be opened, or dies.

    """
    samples = min(max(math.ceil(_TURN_MS / max(about_ms, 1e-3)), _LEAST_SAMPLES), _MOST_SAMPLES)
    seen: list[float] = []
    for number in range(MOST_PAIRS):
        protocol = replace(PAIR, samples=samples, seed=seed + number)
        base, candidate = device.time([parent, own], protocol)
        seen.append(pair_log_ratio(base, candidate, Clock.WALL))
        if len(seen) < PAIRS:
            continue
        ratio = ratio_of(seen, ALPHA)
        if ratio.high <= 1 - LEAST_GAIN or ratio.low > 1 - LEAST_GAIN:
            break
    return ratio_of(seen, ALPHA)


def wins(ratio: Ratio) -> bool:
    """Say whether a file is faster than its parent beyond doubt, and by enough to matter."""
    return ratio.high <= 1 - LEAST_GAIN

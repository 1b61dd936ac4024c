"""What the gates on distillation share: gains paired by seed, and arithmetic that no mood of the machine changes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from edgekd.distillation import loop
from edgekd.distillation.arithmetic import Arithmetic

SHARE, T_BAR = 0.5, 3.0  # of the reference's gain; least t


def judged(gains: Sequence[float], reference: float) -> dict[str, float | bool]:
    """Hold gains, one a seed, against the reference's mean gain."""
    mean = statistics.fmean(gains)
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    t = mean / error if error else math.copysign(math.inf, mean)
    passed = mean >= SHARE * reference and t > T_BAR
    return {"gain": round(mean, 4), "reference": round(reference, 4), "t": round(t, 2), "passed": passed}


def means(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every score over the seeds."""
    return {name: round(statistics.fmean(run[name] for run in runs), 4) for name in runs[0]}


@contextmanager
def fixed_arithmetic() -> Iterator[None]:
    """Train in fp32 on one thread: which format is fastest is measured otherwise, and runs would differ by it."""
    before, threads = loop.choose_arithmetic, torch.get_num_threads()
    loop.choose_arithmetic = lambda *_, **__: Arithmetic()  # type: ignore[assignment]
    torch.set_num_threads(1)
    try:
        yield
    finally:
        loop.choose_arithmetic = before
        torch.set_num_threads(threads)

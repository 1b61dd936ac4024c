"""How far what a file computes lies from what its source computes, on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import ModelError

FP32_RELATIVE_ERROR = 1e-5  # of an output's scale
# What a sigmoid or softmax gives in float32 is known to a few 1e-7, the spacing of floats near 1, however near to
# zero it lies: an output whose largest value is smaller than this is held against this.
_LEAST_SCALE = 0.05

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Match:
    """The output that departs furthest, relative to its own scale, and the labels that changed."""

    output: str
    max_error: float
    scale: float  # the reference's largest value, at least 0.05
    changed_labels: int | None  # None where no output looks like logits
    samples: int  # rows compared

    @property
    def relative_error(self) -> float:
        """`max_error / scale`."""
        return self.max_error / self.scale


def match(expected: Arrays, found: Arrays) -> Match:
    """Compare outputs, rows first, by name; by position where a converter renamed them.

    Raises:
        ModelError: an output is missing, or of another shape.

    """
    if len(expected) != len(found):
        raise ModelError(f"the file has {len(found)} outputs and its source {len(expected)}")
    renamed = found if expected.keys() == found.keys() else dict(zip(expected, found.values()))
    pairs = [(name, wanted, renamed[name]) for name, wanted in expected.items()]
    compared = [_compared(name, wanted, own) for name, wanted, own in pairs]
    worst = max(compared, key=lambda one: one.relative_error)
    changed = [one.changed_labels for one in compared if one.changed_labels is not None]
    return Match(
        output=worst.output,
        max_error=worst.max_error,
        scale=worst.scale,
        changed_labels=sum(changed) if changed else None,
        samples=worst.samples,
    )


def _compared(name: str, wanted: NDArray[Any], own: NDArray[Any]) -> Match:
    if wanted.shape != own.shape:
        raise ModelError(
            f"output {name!r} of the file has another shape than its source's",
            cause=f"{own.shape[1:]} in place of {wanted.shape[1:]}",
        )
    reference, outputs = wanted.astype(np.float64), own.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity - infinity: said below
        gap = np.abs(outputs - reference)
    gap[reference == outputs] = 0.0
    error = float(gap.max(initial=0.0))
    logits = wanted.ndim == 3 and wanted.shape[-1] > 1 and wanted.dtype.kind == "f"  # noqa: PLR2004 - (n, B, classes)
    return Match(
        output=name,
        max_error=error if math.isfinite(error) else math.inf,
        scale=max(float(np.abs(reference).max(initial=0.0)), _LEAST_SCALE),
        changed_labels=int((outputs.argmax(-1) != reference.argmax(-1)).sum()) if logits else None,
        samples=len(wanted),
    )

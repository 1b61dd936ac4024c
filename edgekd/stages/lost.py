"""What a compiled form of a model lost against its float parent, by their answers to the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.quantizers.divergence import Arrays, changed_labels, divergence
from edgekd.values.variant import Loss

Array = NDArray[Any]


def lost(expected: Arrays, found: Arrays, drop: float | None = None) -> Loss:
    """Compare outputs by name, rows first.

    Args:
        expected: the parent's.
        found: its own.
        drop: what the task's metric fell by, as a share, where labels are known.

    """
    rows = len(next(iter(expected.values())))
    changed = changed_labels(expected, found)
    return Loss(divergence=divergence(expected, found), changed=changed, drop=drop, samples=rows)


def lost_on_task(
    expected: Array, found: Array, labels: Array, score: Callable[[Array, Array], float]
) -> Loss:
    """Compare answers (n, ...) to labelled samples, and what they are worth.

    Args:
        expected: the parent's.
        found: its own.
        labels: (n, ...).
        score: the task's metric of answers and labels; more is better.

    """
    drop = score(expected, labels) - score(found, labels)
    # A vector a sample is what `divergence` takes for logits: rows, batch, classes.
    rows = [one[:, None] if one.ndim == 2 else one for one in (expected, found)]  # noqa: PLR2004
    return lost({"answers": rows[0]}, {"answers": rows[1]}, drop=float(drop))


def top_one(answers: Array, labels: Array) -> float:
    """Return the share of logits (n, classes) whose largest is the label's; one that is not finite is wrong."""
    right = (answers.argmax(axis=1) == labels) & np.isfinite(answers).all(axis=1)
    return float(right.mean())

"""How far outputs lie from their reference, in one number that grows with what quantisation does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

_LOGITS_AXES = 3  # rows, batch, classes


def divergence(expected: Arrays, found: Arrays) -> float:
    """Return the divergence of the output that departs furthest; infinity where one is not finite.

    Of logits it is the mean Kullback-Leibler divergence to the reference's softmax in nats; of any other output the
    mean squared error over the reference's variance, the inverse of a signal-to-noise ratio.

    Args:
        expected: the reference's outputs by name, rows first.
        found: by the same names, or in the same order.

    """
    pairs = zip(expected.values(), _aligned(expected, found))
    return max((_one(wanted, own) for wanted, own in pairs), default=0.0)


def changed_labels(expected: Arrays, found: Arrays) -> float | None:
    """Return the share of rows whose largest logit is another one; None where no output looks like logits."""
    shares = [
        float((own.argmax(-1) != wanted.argmax(-1)).mean())
        for wanted, own in zip(expected.values(), _aligned(expected, found))
        if is_logits(wanted)
    ]
    return max(shares, default=None)


def is_logits(output: NDArray[Any]) -> bool:
    """Say whether an output, rows first, looks like logits: (n, batch, classes)."""
    return output.ndim == _LOGITS_AXES and output.shape[-1] > 1 and output.dtype.kind == "f"


def _aligned(expected: Arrays, found: Arrays) -> list[NDArray[Any]]:
    same = expected.keys() == found.keys()
    return [found[name] for name in expected] if same else list(found.values())


def _one(wanted: NDArray[Any], own: NDArray[Any]) -> float:
    reference, outputs = wanted.astype(np.float64), own.astype(np.float64)
    if not np.isfinite(outputs).all():
        return math.inf
    if is_logits(wanted):
        return float(np.mean(_kl(reference, outputs)))
    variance = float(reference.var())
    error = float(np.mean((outputs - reference) ** 2))
    return error / max(variance, 1e-12) if error else 0.0


def _kl(reference: NDArray[np.float64], outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return KL(softmax(reference) || softmax(outputs)) along the last axis."""
    logs = [values - _log_sum_exp(values) for values in (reference, outputs)]
    found: NDArray[np.float64] = np.maximum(0.0, (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=-1))
    return found


def _log_sum_exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    most = values.max(axis=-1, keepdims=True)
    return np.asarray(most + np.log(np.exp(values - most).sum(axis=-1, keepdims=True)))

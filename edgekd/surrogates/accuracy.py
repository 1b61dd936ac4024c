"""What accuracy an architecture would reach, with its uncertainty, from the few that were trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError

Floats = NDArray[np.float64]

_LINEAR_AND_LENGTH = (
    (4.0, 0.5),
    (1.0, 1.0),
    (0.0, 0.5),
    (0.0, 1.0),
)  # variance of the line, length of the bell
_NOISES = (0.02, 0.1, 0.3)  # variance of a training's luck, with each bell's variance at 1
_OFFSET = 4.0  # variance of the common level, which is unknown
_SHAPE = 2.0  # of the inverse gamma prior of the scale: as if this many scores had been seen
_SLOPE, _SLOPE_SCORES = (
    0.5,
    3.0,
)  # expected of the belief, in SD of the scores, and how many scores it is worth
CONSTANT = 1e-12  # standard deviation below which values are all the same
_WORST = 2.0  # robust SDs below the median that a score may lie; more would say nothing of the good ones
_SHORT, _SHORT_OFFSET = 0.3, 1.0  # variance of what short scores have among themselves, and of their level


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Architectures as two views of each: what they amount to, and what was chosen.

    Views are scaled so that two random architectures lie about 1 to 2 apart, squared, in each.
    """

    numbers: Floats  # (n, features)
    choices: Floats  # (n, columns)
    belief: Floats  # (n,) expected order before anything was trained, any scale

    def __len__(self) -> int:
        return len(self.belief)

    def at(self, rows: Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]) -> Encoded:
        """Return some of the architectures."""
        chosen = np.asarray(rows)
        if chosen.dtype != np.bool_:
            chosen = chosen.astype(np.intp)  # an empty list is of floats
        return Encoded(numbers=self.numbers[chosen], choices=self.choices[chosen], belief=self.belief[chosen])


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Mean and standard deviation of each architecture's score, in the unit of the scores: (n,) each."""

    mean: Floats
    deviation: Floats


@dataclass(frozen=True, kw_only=True)
class AccuracySurrogate:
    """A Gaussian process around a line in the belief, with what it learnt from."""

    known: Encoded
    slope: float
    linear: float
    length: float
    weights: Floats  # (trained,) of the kernel's columns
    factor: Floats  # Cholesky factor of the trained ones' covariance
    level: float  # of the scores
    scale: float
    variance: float

    def expect(self, new: Encoded) -> Expectation:
        """Return what to expect of a full training of each architecture."""
        kernel = _kernel(new, self.known, self.linear, self.length) + _OFFSET
        prior = 2.0 + _OFFSET + self.linear * (new.numbers**2).sum(axis=1)
        explained = np.linalg.solve(self.factor, kernel.T)
        mean = self.slope * new.belief + kernel @ self.weights
        variance = self.variance * np.maximum(prior - (explained**2).sum(axis=0), 1e-9)
        return Expectation(mean=self.level + self.scale * mean, deviation=self.scale * np.sqrt(variance))


def encoded(numbers: Floats, choices: Floats, belief: Floats, *, positions: int) -> Encoded:
    """Scale two views of the same architectures.

    Args:
        numbers: (n, features) of any scale; each becomes comparable.
        choices: (n, columns) one-hot, or ordinal columns that lie in [0, 1].
        belief: (n,) what is expected to be more accurate has more.
        positions: choices behind `choices`.

    Raises:
        DataError: the views are not of the same architectures, or something in them is not finite.

    """
    if not len(numbers) == len(choices) == len(belief):
        cause = f"{len(numbers)} rows of numbers, {len(choices)} of choices, {len(belief)} beliefs"
        raise DataError("views must be of the same architectures", cause=cause)
    if not (np.isfinite(numbers).all() and np.isfinite(choices).all() and np.isfinite(belief).all()):
        raise DataError("an encoding holds NaN or infinity", mend="leave out what cannot be encoded")
    return Encoded(
        numbers=standard(numbers) / np.sqrt(max(numbers.shape[1], 1)),
        choices=np.asarray(choices, dtype=np.float64) / np.sqrt(2.0 * max(positions, 1)),
        belief=standard(belief),
    )


def fit_accuracy(known: Encoded, scores: Floats, short: NDArray[np.bool_] | None = None) -> AccuracySurrogate:
    """Learn from trained architectures, by marginal likelihood over a few additive kernels.

    The kernel is a line and a bell in the numbers and a bell in the choices. Scores far below the median are
    raised to a robust limit: how bad a failed network is tells little of the good ones. Short scores share the
    full ones' function, add one of their own and a level (Kennedy & O'Hagan 2000, with a factor of 1).

    Args:
        known: (n) architectures.
        scores: (n,) of any scale.
        short: (n,) which scores come from short trainings; none where all are alike.

    Raises:
        DataError: no scores, or some are not finite.

    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or len(values) != len(known) or not np.isfinite(values).all():
        raise DataError(
            "an accuracy is missing or not finite",
            cause=f"{np.isfinite(values).sum()} finite scores of {len(known)} architectures",
            mend="record a training that failed without an accuracy",
        )
    level, scale, relative = standardised(values)
    slope = _slope(known.belief, relative)
    rest = relative - slope * known.belief
    extra = np.zeros((len(values), len(values)))
    both = None if short is None or short.all() else np.outer(short, short)
    best: tuple[float, float, float, float, Floats] | None = None
    for linear, length in _LINEAR_AND_LENGTH:
        kernel = _kernel(known, known, linear, length)
        if both is not None:
            extra = both * (_SHORT * kernel + _SHORT_OFFSET)
        for noise in _NOISES:
            noisy = kernel + extra + _OFFSET + (noise + 1e-8) * np.eye(len(values))
            factor = np.asarray(np.linalg.cholesky(noisy), dtype=np.float64)
            white = np.linalg.solve(factor, rest)
            variance = float((white @ white + _SHAPE) / (len(values) + _SHAPE))
            likelihood = -0.5 * (len(values) + _SHAPE) * np.log(variance) - np.log(np.diag(factor)).sum()
            if best is None or likelihood > best[0]:
                best = (float(likelihood), linear, length, variance, factor)
    assert best is not None  # noqa: S101 - the grid is not empty
    _, linear, length, variance, factor = best
    weights = np.linalg.solve(factor.T, np.linalg.solve(factor, rest))
    return AccuracySurrogate(
        known=known, slope=slope, linear=linear, length=length, weights=weights, factor=factor,
        level=level, scale=scale, variance=variance,
    )  # fmt: skip


def standardised(scores: Floats) -> tuple[float, float, Floats]:
    """Return level, scale and the scores in them, those far below the median raised to a limit."""
    median = float(np.median(scores))
    robust = 1.48 * float(np.median(np.abs(scores - median)))
    kept = np.maximum(scores, median - _WORST * robust) if robust > 0 else scores
    level, scale = float(kept.mean()), float(kept.std())
    scale = scale if scale > 0 else 1.0
    return level, scale, (kept - level) / scale


def _slope(belief: Floats, scores: Floats) -> float:
    """Return the ridge slope towards a prior one, never negative."""
    centred = belief - belief.mean()
    found = (centred @ scores + _SLOPE_SCORES * _SLOPE) / (centred @ centred + _SLOPE_SCORES)
    return max(float(found), 0.0)


def _kernel(left: Encoded, right: Encoded, linear: float, length: float) -> Floats:
    found = np.exp(-0.5 * squared_gaps(left.numbers, right.numbers) / length**2)
    found += np.exp(-0.5 * squared_gaps(left.choices, right.choices) / length**2)
    if linear:
        found += linear * (left.numbers @ right.numbers.T)
    return found


def squared_gaps(left: Floats, right: Floats) -> Floats:
    """Return squared distances: (n, f), (m, f) -> (n, m)."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None]
    return np.asarray(np.maximum(squares - 2.0 * left @ right.T, 0.0))


def standard(rows: Floats) -> Floats:
    """Return columns of mean 0 and standard deviation 1; those that are constant become 0."""
    values = np.asarray(rows, dtype=np.float64)
    spread = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(spread > CONSTANT, spread, 1.0))

"""What to train next, what to deliver, and what no other beats: decisions from expected scores and latencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.surrogates.accuracy import CONSTANT, Encoded, Floats, fit_accuracy, squared_gaps

_FIRST = 5  # scores before the surrogate is asked
_UNBELIEVED = 3  # every which of the first trials goes by distance alone: a wrong belief is seen soon
_APART, _REACH = 1.5, 0.5  # SD of belief that repeating what was tried costs; squared distance it reaches
_HOPE = 0.7  # standard deviations added to the mean
_FLOOR_EVERY, _FLOOR_HOPE = 5, 2.0  # exploration floor: which trials trust no belief, and how much they hope
_EQUAL = 0.1  # standard deviations between two candidates of which the cheaper to try goes first
_JITTER = 0.05  # SD of belief: seeds differ, the order of what is all but equal only


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What was tried: rows into the candidates, and how it went."""

    rows: tuple[int, ...]  # built and scored
    scores: tuple[float, ...]
    short: tuple[bool, ...] = ()  # which scores come from short trainings; none: all are alike
    failed: tuple[int, ...] = ()  # rows that could not be built or trained

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.scores) or len(self.short) not in (0, len(self.rows)):
            cause = f"{len(self.rows)} trials, {len(self.scores)} scores, {len(self.short)} lengths"
            raise DataError("each trial needs a score", cause=cause)


def next_trial(
    pool: Encoded,
    allowed: NDArray[np.bool_],
    trials: Trials,
    *,
    seed: int,
    cost: Floats | None = None,
    planned: int | None = None,
) -> int | None:
    """Return the row to try next; None where none is left.

    The first trials go by belief, each away from what was tried; then by mean and hope of a Gaussian process
    around the belief, as far as the scores bear it out. Some trials trust no belief at all, in both phases, so
    that a wrong one costs little more than to have none. Of what is all but equal, the cheapest is tried.

    Args:
        pool: the candidates, the tried ones among them.
        allowed: (n,) which may be tried: measured or expected to be within the budget.
        trials: so far.
        seed: of what is left to chance.
        cost: (n,) of a trial, any unit.
        planned: trials in all; the last one explores no more.

    """
    free = np.array(allowed, dtype=bool)
    free[[*trials.rows, *trials.failed]] = False
    if not free.any():
        return None
    promise, doubt = promises(pool, free, trials, seed=seed, planned=planned)
    best = int(np.argmax(np.where(free, promise, -np.inf)))
    if cost is None:
        return best
    equal = free & (promise >= promise[best] - _EQUAL * doubt[best])
    return int(np.argmin(np.where(equal, cost, np.inf)))


def promises(
    pool: Encoded, free: NDArray[np.bool_], trials: Trials, *, seed: int, planned: int | None = None
) -> tuple[Floats, Floats]:
    """Return what each candidate promises, and one standard deviation of it, (n,) each, as `next_trial` ranks them.

    `free` says which may be tried: belief is relative to theirs.
    """
    merit, doubt = _merit(pool, free, trials, seed=seed, planned=planned)
    return merit - _failing(pool, trials), doubt


def finalist(scores: Floats, chance: Floats) -> int | None:
    """Return which trained one to time next, or to deliver: None where none may be within the budget.

    What is gained over the best that is known to be within it, times the chance of it. One that is known has a
    chance of 1, and is returned where no other promises more.

    Args:
        scores: (n,) of those that were trained.
        chance: (n,) of being within the budget: 0 or 1 where it was measured.

    """
    known = np.flatnonzero(chance >= 1)
    if not len(known):
        at = int(np.argmax(chance * (1e-6 + scores - scores.min())))
        return at if chance[at] > 0 else None
    safe = int(known[np.argmax(scores[known])])
    gain = np.where(chance < 1, chance * (scores - scores[safe]), 0.0)
    best = int(np.argmax(gain))
    return best if gain[best] > 0 else safe


def frontier(latency_ms: Floats, score: Floats) -> NDArray[np.intp]:
    """Return the rows that no other beats in both, the fastest first."""
    order = np.lexsort((-np.asarray(score), np.asarray(latency_ms)))
    highest = np.maximum.accumulate(np.asarray(score)[order])
    before = np.concatenate([[-np.inf], highest[:-1]])
    return np.asarray(order[np.asarray(score)[order] > before])


def _merit(
    pool: Encoded, free: NDArray[np.bool_], trials: Trials, *, seed: int, planned: int | None
) -> tuple[Floats, Floats]:
    """Return what each candidate promises, and one standard deviation of it, (n,) each."""
    count = len(trials.rows)
    rng = np.random.default_rng([seed, 7])  # the same jitter throughout a search
    belief = _within(pool.belief, free) + _JITTER * rng.standard_normal(len(pool))
    if count < _FIRST:
        trust = 0.0 if count % _UNBELIEVED == _UNBELIEVED - 1 else 1.0
        return trust * belief - _APART * _nearness(pool, trials.rows), np.ones(len(pool))
    floor = count % _FLOOR_EVERY == _FLOOR_EVERY - 1 and count + 1 != planned
    believed = Encoded(
        numbers=pool.numbers, choices=pool.choices, belief=np.zeros(len(pool)) if floor else belief
    )
    short = np.array(trials.short) if trials.short else None
    surrogate = fit_accuracy(believed.at(trials.rows), np.array(trials.scores), short)
    expected = surrogate.expect(believed)
    hope = _FLOOR_HOPE if floor else _HOPE
    return expected.mean + hope * expected.deviation, expected.deviation


def _within(belief: Floats, free: NDArray[np.bool_]) -> Floats:
    """Return the belief in standard deviations among those that may be tried."""
    spread = float(belief[free].std())
    return np.asarray((belief - belief[free].mean()) / (spread if spread > CONSTANT else 1.0))


def _nearness(pool: Encoded, rows: Sequence[int]) -> Floats:
    """Return 1 at what was tried, towards 0 away from it."""
    if not rows:
        return np.zeros(len(pool))
    gaps = squared_gaps(pool.numbers, pool.numbers[list(rows)])
    return np.asarray(np.exp(-gaps.min(axis=1) / _REACH))


def _failing(pool: Encoded, trials: Trials) -> Floats:
    """Return a penalty beside what could not be built or trained: its neighbours often share why."""
    near = _nearness(pool, trials.failed)
    scale = float(np.std(trials.scores)) if len(trials.rows) >= _FIRST else 1.0
    return _APART * scale * near

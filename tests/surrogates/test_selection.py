"""What to try next: within what is allowed, from what is believed, and away from what failed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.surrogates.accuracy import Encoded, encoded
from edgekd.surrogates.selection import Trials, finalist, frontier, next_trial

COUNT = 300
RNG = np.random.default_rng(5)
NUMBERS = RNG.normal(size=(COUNT, 3))
CHOICES = np.eye(3)[RNG.integers(0, 3, size=(COUNT, 4))].reshape(COUNT, -1)
TRUTH = 70 + 3 * NUMBERS[:, 0] - (NUMBERS[:, 1] - 0.5) ** 2
ALL = np.ones(COUNT, dtype=bool)


def pool(belief: NDArray[np.float64]) -> Encoded:
    return encoded(NUMBERS, CHOICES, belief, positions=4)


def searched(belief: NDArray[np.float64], count: int, seed: int = 0) -> list[int]:
    candidates, rows = pool(belief), []
    for _ in range(count):
        trials = Trials(rows=tuple(rows), scores=tuple(TRUTH[rows].tolist()))
        row = next_trial(candidates, ALL, trials, seed=seed, planned=count)
        assert row is not None
        rows.append(row)
    return rows


def regret(rows: list[int]) -> float:
    return float(TRUTH.max() - TRUTH[rows].max())


def test_it_finds_the_best_in_a_few_trials_where_chance_does_not() -> None:
    drawn = [regret(np.random.default_rng(seed).permutation(COUNT)[:15].tolist()) for seed in range(20)]
    found = [regret(searched(np.zeros(COUNT), 15, seed)) for seed in range(3)]
    assert np.mean(found) < 0.3 * np.mean(drawn)


def test_the_first_trial_follows_the_belief_and_a_wrong_belief_is_overcome() -> None:
    assert TRUTH[searched(TRUTH, 1)[0]] >= np.quantile(TRUTH, 0.97)
    wrong = searched(-TRUTH, 20)
    drawn = [regret(np.random.default_rng(seed).permutation(COUNT)[:20].tolist()) for seed in range(20)]
    assert regret(wrong) <= np.mean(drawn)


def test_the_same_trials_and_seed_give_the_same_choice_and_nothing_is_tried_twice() -> None:
    rows = searched(NUMBERS[:, 2], 12)
    assert rows == searched(NUMBERS[:, 2], 12)
    assert len(set(rows)) == 12


def test_only_what_is_allowed_is_tried_and_nothing_where_nothing_is_left() -> None:
    allowed = np.zeros(COUNT, dtype=bool)
    allowed[[4, 9]] = True
    candidates = pool(TRUTH)
    first = next_trial(candidates, allowed, Trials(rows=(), scores=()), seed=0)
    assert first in (4, 9)
    both = Trials(rows=(4, 9), scores=(1.0, 2.0))
    assert next_trial(candidates, allowed, both, seed=0) is None
    assert next_trial(candidates, allowed, Trials(rows=(4,), scores=(1.0,), failed=(9,)), seed=0) is None


def test_the_neighbours_of_what_failed_are_left_for_later() -> None:
    numbers = np.array([[0.0, 0.0], [0.01, 0.0], [3.0, 1.0], [-3.0, -1.0]])
    candidates = encoded(numbers, np.eye(4), np.array([1.0, 0.99, 0.5, 0.0]), positions=1)
    none = Trials(rows=(), scores=())
    assert next_trial(candidates, np.ones(4, dtype=bool), none, seed=0) in (0, 1)
    failed = Trials(rows=(), scores=(), failed=(0,))
    assert next_trial(candidates, np.ones(4, dtype=bool), failed, seed=0) == 2


def test_of_equals_the_cheapest_is_tried() -> None:
    candidates = encoded(np.zeros((3, 2)), np.zeros((3, 2)), np.array([1.0, 1.0, -5.0]), positions=1)
    none = Trials(rows=(), scores=())
    for cost, best in (([5.0, 1.0, 0.1], 1), ([1.0, 5.0, 0.1], 0)):
        assert next_trial(candidates, np.ones(3, dtype=bool), none, seed=0, cost=np.array(cost)) == best


def test_a_trial_without_a_score_is_refused() -> None:
    with pytest.raises(DataError, match="needs a score"):
        Trials(rows=(1, 2), scores=(0.5,))


def test_the_frontier_holds_what_no_other_beats_in_both() -> None:
    latency_ms, score = np.array([3.0, 1.0, 2.0, 2.0, 4.0]), np.array([0.9, 0.5, 0.7, 0.8, 0.9])
    assert frontier(latency_ms, score).tolist() == [1, 3, 0]


def test_a_finalist_is_worth_its_gain_times_its_chance() -> None:
    scores = np.array([90.0, 93.0, 94.0])
    assert finalist(scores, np.array([1.0, 0.9, 0.1])) == 1
    assert finalist(scores, np.array([1.0, 0.1, 0.9])) == 2
    assert finalist(scores, np.array([1.0, 0.0, 0.0])) == 0  # both were measured and are too slow
    assert finalist(scores, np.array([1.0, 1.0, 0.0])) == 1


def test_where_nothing_is_known_to_fit_the_likeliest_good_one_is_a_finalist_and_hopeless_ones_are_not() -> (
    None
):
    assert finalist(np.array([90.0, 93.0]), np.array([0.9, 0.6])) == 1
    assert finalist(np.array([90.0, 93.0]), np.array([0.0, 0.0])) is None

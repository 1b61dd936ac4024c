"""The accuracy surrogate orders what it has not seen, knows what it does not know, and bears odd scores."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from edgekd.errors import DataError
from edgekd.surrogates.accuracy import Encoded, encoded, fit_accuracy, standardised

RNG = np.random.default_rng(3)
NUMBERS = RNG.normal(size=(400, 4))
PICKED = RNG.integers(0, 3, size=(400, 5))
CHOICES = np.eye(3)[PICKED].reshape(400, -1)
TRUTH = 90 + NUMBERS[:, 0] - 0.5 * NUMBERS[:, 1] ** 2 + 0.8 * (PICKED[:, 2] == 1)


def architectures(belief: NDArray[np.float64] | None = None) -> Encoded:
    return encoded(NUMBERS, CHOICES, np.zeros(400) if belief is None else belief, positions=5)


def order(train: int, belief: NDArray[np.float64] | None = None) -> float:
    pool = architectures(belief)
    rows = np.arange(train)
    found = fit_accuracy(pool.at(rows), TRUTH[rows]).expect(pool.at(np.arange(train, 400)))
    return float(spearmanr(found.mean, TRUTH[train:])[0])


def test_more_trainings_order_the_others_better() -> None:
    few, many = order(8), order(80)
    assert many > 0.9
    assert many > few + 0.1


def test_a_good_belief_orders_where_scores_are_few_and_a_wrong_one_is_outweighed() -> None:
    assert order(6, TRUTH) > order(6) + 0.1
    assert order(80, -TRUTH) > 0.85


def test_doubt_is_small_at_what_was_trained_and_larger_away_from_it() -> None:
    pool = architectures()
    rows = np.arange(20)
    expected = fit_accuracy(pool.at(rows), TRUTH[rows]).expect(pool)
    assert expected.deviation[rows].max() < 0.7 * np.median(expected.deviation[20:])
    assert np.median(np.abs(expected.mean[rows] - TRUTH[rows])) < 0.2


def test_a_stated_deviation_covers_about_as_often_as_it_says() -> None:
    pool = architectures()
    rows = np.arange(40)
    expected = fit_accuracy(pool.at(rows), TRUTH[rows]).expect(pool)
    inside = np.abs(expected.mean - TRUTH)[40:] <= 1.645 * expected.deviation[40:]
    assert 0.75 < inside.mean() < 0.99


def test_one_network_at_chance_does_not_blind_it_to_the_others() -> None:
    pool, scores = architectures(), TRUTH[:40].copy()
    scores[0] = 10.0
    found = fit_accuracy(pool.at(np.arange(40)), scores).expect(pool.at(np.arange(40, 400)))
    assert spearmanr(found.mean, TRUTH[40:])[0] > 0.6
    level, scale, kept = standardised(scores)
    assert level > 85
    assert scale < 3
    assert kept[0] == kept.min()


def test_the_scale_of_scores_changes_nothing() -> None:
    pool, rows = architectures(), np.arange(30)
    plain = fit_accuracy(pool.at(rows), TRUTH[rows]).expect(pool)
    shares = fit_accuracy(pool.at(rows), TRUTH[rows] / 100).expect(pool)
    assert shares.mean * 100 == pytest.approx(plain.mean)
    assert shares.deviation * 100 == pytest.approx(plain.deviation)


def test_short_scores_help_and_are_not_taken_for_full_ones() -> None:
    pool = architectures()
    rows, short = np.arange(60), np.arange(60) >= 10
    scores = TRUTH[rows] - 8.0 * short  # short trainings all score less
    both = fit_accuracy(pool.at(rows), scores, short).expect(pool.at(np.arange(60, 400)))
    alone = fit_accuracy(pool.at(np.arange(10)), scores[:10]).expect(pool.at(np.arange(60, 400)))
    mixed = fit_accuracy(pool.at(rows), scores).expect(pool.at(np.arange(60, 400)))
    assert spearmanr(both.mean, TRUTH[60:])[0] > spearmanr(alone.mean, TRUTH[60:])[0] + 0.05
    error, confused = (np.abs(found.mean - TRUTH[60:]).mean() for found in (both, mixed))
    assert error < 0.5 * confused


def test_equal_scores_are_borne() -> None:
    pool = architectures()
    expected = fit_accuracy(pool.at(np.arange(5)), np.full(5, 0.7)).expect(pool)
    assert np.isfinite(expected.mean).all()
    assert np.isfinite(expected.deviation).all()


@pytest.mark.parametrize("scores", [np.array([]), np.array([0.9, np.nan]), np.array([0.5])])
def test_scores_that_are_missing_are_refused(scores: NDArray[np.float64]) -> None:
    known = architectures().at(np.arange(0 if not len(scores) else 2))
    with pytest.raises(DataError, match="missing or not finite"):
        fit_accuracy(known, scores)


def test_views_of_other_architectures_or_with_nan_are_refused() -> None:
    with pytest.raises(DataError, match="same architectures"):
        encoded(NUMBERS, CHOICES[:-1], np.zeros(400), positions=5)
    with pytest.raises(DataError, match="NaN"):
        encoded(np.full((400, 2), np.nan), CHOICES, np.zeros(400), positions=5)
